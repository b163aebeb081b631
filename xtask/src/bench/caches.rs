//! The boot working sets of many images in a host's stock: what they take, and how fast a guest starts
//! from them.
//!
//! ```text
//! one Debian ─► 200 clones ─► a change each ─► a boot each (the trace) ─► a set each
//!                                                                          │ larder boot-set sync
//!                      replay: from the stock | base present ◄─────── STATE/stock
//! ```
//!
//! **What is made up**: the images. Each is a clone with a commit upon it that replaces "files": runs of
//! blocks wherever the disk has data, with bytes of another Debian image, so that they compress as
//! files do. Every tenth also has another kernel: the longest run of the trace's reads is replaced. The
//! trace is that of one real boot, replayed upon each image; so all read the same addresses, and the
//! blocks that were changed are the only ones that differ.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use model::boot_set::BOOT;
use model::{Error, ImageName, Realm, Reference, Result, Selector};
use repository::Repository;
use repository::repository::Machine;

use super::replay::{Call, Client, trace_of};
use super::rows::{Contender, Row};
use super::{Bench, Session, Size, inputs};
use crate::demo::larder::Larder;

pub const BENCH: Bench = Bench {
    name: "caches",
    about: "The boot working sets of 200 images in a host's stock: bytes per image, and starts from it.",
    in_tests: true,
    tools: &[],
    run,
};

/// Bytes of a replaced file: its length is one of these, taken in turn.
const FILE_LENS: &[usize] =
    &[16 << 10, 40 << 10, 8 << 10, 128 << 10, 24 << 10, 400 << 10, 64 << 10];

/// What is the same for all images.
struct Place {
    larder: Larder,
    folder: PathBuf,
    sockets: tempfile::TempDir,
    calls: Vec<Call>,
}

/// How many images, and how many bytes of each are changed.
struct Scale {
    images: u64,
    changed_len: usize,
}

fn run(session: &mut Session) -> Result<()> {
    let disks = inputs::disks(session)?;
    let scale = match session.size {
        Size::Small => Scale { images: 3, changed_len: 64 << 10 },
        Size::Full => Scale { images: 200, changed_len: 20 << 20 },
    };
    let place = Place {
        larder: inputs::larder(session, "larder")?,
        folder: session.folder.path().join("larder"),
        sockets: inputs::sockets()?,
        calls: trace_of(session, &disks[0])?,
    };
    place.larder.json(&["import", inputs::text(&disks[0])?, "image"])?;
    let data = data_ranges(&disks[0])?;
    let other = data_ranges(&disks[1])?;
    let donor = File::open(&disks[1]).map_err(|e| Error::io("open", "a disk", e))?;
    for number in 0..scale.images {
        let changes = changes(number, &scale, &data, &other, &place.calls);
        place.derive(number, &changes, &donor)?;
        if number % 20 == 19 {
            println!("{} images", number + 1);
        }
    }
    sync(session, &place, &scale)?;
    starts(session, &place, &scale)
}

/// What one image replaces: where, with how many bytes from where in the donor.
type Changes = Vec<(u64, usize, u64)>;

/// Ranges of a disk that hold data.
fn data_ranges(disk: &std::path::Path) -> Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    super::blocks::for_each_range(disk, |begin, len| {
        ranges.push((begin, begin + len));
        Ok(())
    })?;
    Ok(ranges)
}

fn changes(
    number: u64,
    scale: &Scale,
    data: &[(u64, u64)],
    other: &[(u64, u64)],
    calls: &[Call],
) -> Changes {
    let mut bytes = inputs::noise(1000 + number);
    let mut random = move || {
        let mut eight = [0; 8];
        bytes.fill(&mut eight);
        u64::from_le_bytes(eight)
    };
    let mut changes = Changes::new();
    let mut left = scale.changed_len;
    for file in 0.. {
        if left == 0 {
            break;
        }
        let len = FILE_LENS[file % FILE_LENS.len()].min(left);
        let (to, from) = (place_in(data, len, random()), place_in(other, len, random()));
        changes.push((to, len, from));
        left -= len;
    }
    if number % 10 == 9
        && let Some((offset, len)) = longest_run(calls)
    {
        for at in (0..len).step_by(1 << 20) {
            let len = (len - at).min(1 << 20) as usize;
            changes.push((offset + at, len, place_in(other, len, random())));
        }
    }
    changes
}

/// A block-aligned place for so many bytes in one of the ranges, or what is nearest to that.
fn place_in(ranges: &[(u64, u64)], len: usize, random: u64) -> u64 {
    let room = |(start, end): &(u64, u64)| (end - start).saturating_sub(len as u64) / 4096 + 1;
    let mut at = random % ranges.iter().map(room).sum::<u64>().max(1);
    for range in ranges {
        if at < room(range) {
            return range.0 + at * 4096;
        }
        at -= room(range);
    }
    0
}

/// The longest stretch that the trace reads one request behind the other.
fn longest_run(calls: &[Call]) -> Option<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for call in calls {
        let Call::Read { offset, len } = *call else { continue };
        match runs.last_mut() {
            Some((start, run)) if *start + *run == offset => *run += u64::from(len),
            _ => runs.push((offset, len.into())),
        }
    }
    runs.into_iter().max_by_key(|(_, len)| *len)
}

fn image(number: u64) -> String {
    format!("derived-{number}")
}

impl Place {
    fn socket(&self) -> PathBuf {
        self.sockets.path().join("mirror")
    }

    /// Forgets all mirrors and bases of the host, and keeps its stock.
    fn forget(&self) -> Result<()> {
        inputs::remove(&self.folder.join("state/mirrors"))?;
        inputs::remove(&self.folder.join("state/bases"))
    }

    /// Makes one image, and boots it once.
    fn derive(&self, number: u64, changes: &Changes, donor: &File) -> Result<()> {
        let (image, socket) = (image(number), self.socket());
        self.larder.json(&["clone", "image", &image])?;
        self.forget()?;
        let attached = self.larder.attach(&image, "fresh", &socket)?;
        let mut client = Client::connect(&socket)?;
        let mut buffer = vec![0; 1 << 20];
        for (offset, len, from) in changes {
            let bytes = &mut buffer[..*len];
            bytes.fill(0);
            // The end of the donor is zeros.
            let _ = donor.read_at(bytes, *from);
            client.write_once(*offset, bytes)?;
        }
        drop(client);
        self.larder.json(&["commit", "fresh"])?;
        attached.detach()?;
        self.forget()?;
        let attached = self.larder.attach_with(&image, "fresh", &socket, &["--record", "boot"])?;
        Client::connect(&socket)?.replay(&self.calls, 1)?;
        attached.detach()?;
        self.forget()
    }

    /// One start of a guest: its trace without think times.
    fn start(
        &self,
        larder: &Larder,
        reference: &str,
        depth: usize,
    ) -> Result<Vec<(&'static str, f64)>> {
        inputs::settle();
        let began = Instant::now();
        let attached = larder.attach(reference, "fresh", &self.socket())?;
        let start = began.elapsed().as_secs_f64();
        let client = Client::connect(&self.socket())?;
        let began = Instant::now();
        client.replay(&self.calls, depth)?;
        let replay = began.elapsed().as_secs_f64();
        let fetched = larder.mirror("fresh")?.number("fetched_bytes")?;
        attached.detach()?;
        Ok(vec![
            ("replay_seconds", replay),
            ("start_seconds", start),
            ("fetched_mib", fetched as f64 / f64::from(1 << 20)),
        ])
    }
}

const MB: f64 = 1e6;

fn sync(session: &mut Session, place: &Place, scale: &Scale) -> Result<()> {
    place.forget()?;
    let sets = sizes_of_sets(place, scale)?;
    let synced = place.larder.json(&["boot-set", "sync", "--limit", "10GiB"])?;
    let stocked = synced.number("stocked")? as f64;
    let stored = synced.number("stored_bytes")? as f64;
    let (_, on_disk) = inputs::size_of(&place.folder.join("state/stock"))?;
    let columns = vec![
        ("sets", stocked),
        ("stored_mb", stored / MB),
        ("on_disk_mb", on_disk as f64 / MB),
        ("mb_per_image", stored / MB / stocked.max(1.0)),
        ("fetched_mb", synced.number("fetched_bytes")? as f64 / MB),
        ("seconds", synced.seconds()?.as_secs_f64()),
    ];
    session.rows.add(Row { contender: "larder, the stock".into(), round: 0, columns });
    for (name, bytes) in [
        ("sets, each alone, plain", sets.plain_len),
        ("sets, each alone, compressed", sets.alone_len),
        ("pieces, each once, compressed", sets.pieces_len),
        ("blocks, each once, plain", sets.distinct_len),
    ] {
        let columns = vec![
            ("sets", sets.count as f64),
            ("stored_mb", bytes as f64 / MB),
            ("mb_per_image", bytes as f64 / MB / (sets.count as f64).max(1.0)),
        ];
        session.rows.add(Row { contender: name.into(), round: 0, columns });
    }
    let again = place.larder.json(&["boot-set", "sync", "--limit", "10GiB"])?;
    let columns = vec![
        ("fetched_mb", again.number("fetched_bytes")? as f64 / MB),
        ("seconds", again.seconds()?.as_secs_f64()),
    ];
    session.rows.add(Row { contender: "larder, nothing new".into(), round: 0, columns });
    session.notes.push(format!(
        "{} images: clones of one Debian, each with a commit that replaces {} in runs of 8 to 400 KiB, \
         wherever the disk has data, by data of another Debian image; every tenth also has the longest \
         run of the trace replaced (a kernel or initrd). The images are made up, the trace is that of a \
         real boot, replayed upon each. A set holds {:.1} MB on average; {:.1} MB of all sets are distinct \
         blocks. The stock takes {:.2} MB per image, all counted.",
        scale.images,
        human(scale.changed_len),
        sets.plain_len as f64 / MB / sets.count.max(1) as f64,
        sets.distinct_len as f64 / MB,
        stored / MB / stocked.max(1.0),
    ));
    Ok(())
}

fn human(len: usize) -> String {
    format!("{:.1} MB", len as f64 / MB)
}

/// What the sets would take in other ways.
#[derive(Default)]
struct SetSizes {
    count: usize,
    plain_len: u64,
    alone_len: u64,
    pieces_len: u64,
    distinct_len: u64,
}

fn sizes_of_sets(place: &Place, scale: &Scale) -> Result<SetSizes> {
    let repository = Repository::open(&Machine::real(), &place.folder.join("repository"))?;
    let mut sizes = SetSizes::default();
    let mut pieces: HashMap<[u8; 32], u64> = HashMap::new();
    let mut blocks: BTreeMap<[u8; 32], ()> = BTreeMap::new();
    for number in 0..scale.images {
        let image = ImageName::new(&image(number))?;
        let reference = Reference { image, selector: Selector::Latest };
        let version = repository.catalog().version(&reference)?;
        let Some(found) = repository.boot_set(&version, BOOT)? else { continue };
        let own = repository.boot_set_sizes(&found)?;
        sizes.count += 1;
        sizes.plain_len += own.plain_len;
        sizes.alone_len += own.stored_len;
        let digests: Vec<_> = found.set.pieces().iter().map(|piece| piece.digest).collect();
        let places = repository.catalog().locate(&Realm::default_realm(), &digests)?;
        for place in places.into_iter().flatten() {
            pieces.insert(place.entry.digest, place.entry.stored_len.into());
        }
        for read in found.set.reads() {
            let source = &found.set.sources()[read.source as usize].blocks;
            let first = read.first_in_chunk as usize;
            for block in &source[first..first + read.read.block_count as usize] {
                blocks.insert(*block.as_bytes(), ());
            }
        }
    }
    sizes.pieces_len = pieces.values().sum();
    sizes.distinct_len = blocks.len() as u64 * 4096;
    Ok(sizes)
}

/// Starts from the stock, beside those with the base there and those from the repository.
fn starts(session: &mut Session, place: &Place, scale: &Scale) -> Result<()> {
    let rounds = if session.size == Size::Full { 9 } else { 1 };
    // Some image in the middle, which no sync has touched last.
    let reference = image(scale.images / 2);
    let link = place.larder.over_link("rate=125MB,delay=1ms");
    let empty = place.folder.join("state/stock");
    let aside = place.folder.join("aside");
    let moved = |from: &PathBuf, to: &PathBuf| {
        std::fs::rename(from, to).map_err(|error| Error::io("move", "the stock", error))
    };
    for (depth, under_way) in [(1, "one by one"), (4, "4 under way")] {
        let (place, reference, link) = (&place, &reference, &link);
        let (empty, aside, moved) = (&empty, &aside, &moved);
        let stocked = move || {
            place.forget()?;
            place.start(link, reference, depth)
        };
        let present = move || {
            inputs::remove(&place.folder.join("state/mirrors"))?;
            place.start(&place.larder, reference, depth)
        };
        let far = move || {
            place.forget()?;
            moved(empty, aside)?;
            let row = place.start(link, reference, depth);
            moved(aside, empty)?;
            row
        };
        let mut contenders: Vec<Contender<'_>> = vec![
            (format!("from the stock, {under_way}"), Box::new(stocked)),
            (format!("base present, {under_way}"), Box::new(present)),
            (format!("over 1 Gbit/s and 1 ms, {under_way}"), Box::new(far)),
        ];
        for round in 0..rounds {
            // In this order: the first leaves the base that the second finds.
            for (contender, measure) in &mut contenders {
                let columns = measure()?;
                session.rows.add(Row { contender: contender.clone(), round, columns });
            }
        }
    }
    let median = |who: &str| session.rows.median(who, "replay_seconds").unwrap_or(0.0);
    let mut text = String::new();
    for under_way in ["one by one", "4 under way"] {
        let [stock, base, far] = ["from the stock", "base present", "over 1 Gbit/s and 1 ms"]
            .map(|who| median(&format!("{who}, {under_way}")));
        text += &format!(
            "- {under_way}: {stock:.3} s from the compressed stock, {base:.3} s with the base there, \
             {far:.3} s over the link without a stock\n"
        );
    }
    let fetched = session.rows.median("from the stock, one by one", "fetched_mib").unwrap_or(0.0);
    session.notes.push(format!(
        "A start is the trace without think times. From the stock {fetched:.3} MiB are read from the \
         repository.\n\n{text}"
    ));
    Ok(())
}
