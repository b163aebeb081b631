//! The blob interface: many writers at once, on one image and on one each, with readers beside them
//! and without.

use std::io::Cursor;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use env::{Entropy, SeededEntropy};
use model::progress::{Cancel, Silent};
use model::{Error, ImageName, Kind, Reference, Result, Selector};
use repository::repository::Machine;
use repository::{Repository, WriteRequest};

use super::{Bench, Session, Size};

pub const BENCH: Bench = Bench {
    name: "blob",
    about: "Writers and readers of byte ranges at once: MiB/s of both, and how long a write takes.",
    in_tests: true,
    tools: &[],
    run,
};

const MIB: usize = 1 << 20;

/// Length of the images that are written to.
const IMAGE_LEN: u64 = 64 * MIB as u64;

/// Threads that read beside the writers.
const READER_COUNT: u64 = 2;

static CANCEL: Cancel = Cancel::new();

/// One measurement.
struct Load {
    writers: u64,
    /// Whether all write to one image, or each to its own.
    one_image: bool,
    readers: u64,
    write_len: usize,
    write_count: u64,
}

fn run(session: &mut Session) -> Result<()> {
    let (writer_counts, write_count, small_count, rounds): (&[u64], _, _, _) = match session.size {
        Size::Small => (&[1, 4], 8, 16, 1),
        Size::Full => (&[1, 2, 4, 8, 16, 32, 64], 64, 512, 1),
    };
    let mut loads = Vec::new();
    for &writers in writer_counts {
        for one_image in [true, false] {
            if writers == 1 && !one_image {
                continue;
            }
            for readers in [0, READER_COUNT] {
                let write_count = write_count.max(writers);
                loads.push(Load { writers, one_image, readers, write_len: MIB, write_count });
            }
        }
    }
    for &writers in [writer_counts[0], writer_counts[writer_counts.len() - 1]].iter() {
        let (one_image, readers) = (true, 0);
        loads.push(Load { writers, one_image, readers, write_len: 4096, write_count: small_count });
    }
    let folder = session.folder.path().to_path_buf();
    let mut contenders: Vec<super::rows::Contender<'_>> = Vec::new();
    let alone =
        Load { writers: 0, one_image: true, readers: READER_COUNT, write_len: MIB, write_count };
    for load in std::iter::once(alone).chain(loads) {
        let folder = folder.clone();
        contenders.push((load.name(), Box::new(move || load.measure(&folder))));
    }
    session.rows.alternate(rounds, &mut contenders)?;
    session.notes.push(format!(
        "Library calls of one process on a repository of its own. Writes are of noise, at random \
         offsets of an image of {} MiB; each is durable when its time is taken. {READER_COUNT} readers \
         open the latest version and read 1 MiB of it at a random offset, again and again. A row of \
         1 MiB has {write_count} writes, one of 4 KiB {small_count}, so that a p99 is nearly the longest.",
        IMAGE_LEN >> 20
    ));
    Ok(())
}

impl Load {
    fn name(&self) -> String {
        let writers = match (self.writers, self.one_image) {
            (0, _) => return "no writers, readers".to_owned(),
            (1, true) => "1 writer".to_owned(),
            (count, true) => format!("{count} on one image"),
            (count, false) => format!("{count} on own images"),
        };
        let len = if self.write_len < MIB { ", 4 KiB" } else { "" };
        let readers = if self.readers > 0 { ", readers" } else { "" };
        format!("{writers}{len}{readers}")
    }

    fn measure(&self, folder: &std::path::Path) -> Result<Vec<(&'static str, f64)>> {
        let made = tempfile::tempdir_in(folder).map_err(|source| {
            Error::io("make a folder in", folder.display().to_string(), source)
        })?;
        let path = made.path().join("repository");
        let (repository, _) = Repository::open_or_create(&Machine::real(), &path)?;
        let image_count = if self.one_image { 1 } else { self.writers };
        for image in 0..image_count {
            let name = image_name(image)?;
            repository.create_image(&name, IMAGE_LEN)?;
            if image == 0 {
                write(&repository, &name, 0, &noise(u64::MAX, IMAGE_LEN as usize))?;
            }
        }
        let ended = AtomicBool::new(false);
        let read_len = AtomicU64::new(0);
        let times = Mutex::new(Vec::new());
        let next = AtomicU64::new(0);
        let began = Instant::now();
        let wall = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..self.readers)
                .map(|reader| {
                    let (repository, ended, read_len) = (&repository, &ended, &read_len);
                    scope.spawn(move || self.read(reader, repository, ended, read_len))
                })
                .collect();
            let writers: Vec<_> = (0..self.writers)
                .map(|writer| {
                    let (repository, times, next) = (&repository, &times, &next);
                    scope.spawn(move || self.write(writer, repository, next, times))
                })
                .collect();
            let written: Result<()> = writers.into_iter().try_for_each(joined);
            let wall = began.elapsed();
            ended.store(true, Ordering::SeqCst);
            readers.into_iter().try_for_each(joined).and(written).map(|()| wall)
        })?;
        let mut times = times.into_inner().unwrap_or_default();
        times.sort_unstable();
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let mut columns = Vec::new();
        if !times.is_empty() {
            let written = times.len() as u64 * self.write_len as u64;
            columns.push(("write_mib_s", mib(written) / wall.as_secs_f64()));
            columns.push(("write_p50_ms", percentile_ms(&times, 50)));
            columns.push(("write_p99_ms", percentile_ms(&times, 99)));
        }
        if self.readers > 0 {
            let seconds = began.elapsed().as_secs_f64();
            columns.push(("read_mib_s", mib(read_len.into_inner()) / seconds));
        }
        Ok(columns)
    }

    fn write(
        &self,
        writer: u64,
        repository: &Repository,
        next: &AtomicU64,
        times: &Mutex<Vec<Duration>>,
    ) -> Result<()> {
        let image = image_name(if self.one_image { 0 } else { writer })?;
        let random = SeededEntropy::new(writer);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.write_count {
                return Ok(());
            }
            let bytes = noise(number, self.write_len);
            let offset = random.next() % (IMAGE_LEN / 4096 - self.write_len as u64 / 4096) * 4096;
            let began = Instant::now();
            write(repository, &image, offset, &bytes)?;
            let took = began.elapsed();
            times.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(took);
        }
    }

    fn read(
        &self,
        reader: u64,
        repository: &Repository,
        ended: &AtomicBool,
        read_len: &AtomicU64,
    ) -> Result<()> {
        let latest = Reference { image: image_name(0)?, selector: Selector::Latest };
        let random = SeededEntropy::new(1000 + reader);
        let mut bytes = vec![0; MIB];
        let mut count = 0;
        // Without writers there is nobody to wait for: as many reads as there would be writes.
        let at_most = if self.writers == 0 { self.write_count } else { u64::MAX };
        while count < at_most && (self.writers == 0 || !ended.load(Ordering::SeqCst)) {
            let version = repository.open_version(&latest)?;
            version.read_at(random.next() % (IMAGE_LEN - MIB as u64), &mut bytes)?;
            read_len.fetch_add(MIB as u64, Ordering::Relaxed);
            count += 1;
        }
        Ok(())
    }
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    let died = |_| Err(Error::new(Kind::Bug, "measure", "writers and readers").because("one died"));
    thread.join().unwrap_or_else(died)
}

fn image_name(number: u64) -> Result<ImageName> {
    ImageName::new(&format!("image{number}"))
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SeededEntropy::new(seed).fill(&mut bytes);
    bytes
}

fn write(repository: &Repository, image: &ImageName, offset: u64, bytes: &[u8]) -> Result<()> {
    let request = WriteRequest {
        image: image.clone(),
        origin: "bench".to_owned(),
        progress: &Silent,
        cancel: &CANCEL,
    };
    repository.write(offset, &mut Cursor::new(bytes), &request).map(drop)
}

/// Of sorted times, the one below which that many in a hundred lie, in milliseconds.
fn percentile_ms(sorted: &[Duration], percent: usize) -> f64 {
    let position = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len()) - 1;
    sorted[position].as_secs_f64() * 1000.0
}
