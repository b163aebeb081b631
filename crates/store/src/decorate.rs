//! A pack store behind a link that is slow, narrow, or broken: for tests and benches.
//!
//! ```text
//! request ─► broken? ─► engine ─► its bytes take their turn on the link (rate) ─► delay ─► answer
//! ```
//!
//! All requests share one link: its rate is divided among them, in the order in which the engine has
//! answered. The delay of one request does not hold up another.
//!
//! **Not here**: the catalog, which answers at its own speed.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use env::{Clock, SystemClock};
use model::{Error, Kind, Result};

use crate::pack_store::{PackName, PackStore};

/// How fast a link is, and when it is down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkSpeed {
    /// Added to each request.
    pub delay: Duration,
    /// What all requests together get through; without it, whatever comes.
    pub rate_bytes_per_second: Option<u64>,
    /// While this file exists, every request fails as one that may work later.
    pub away_file: Option<PathBuf>,
}

impl FromStr for LinkSpeed {
    type Err = Error;

    /// Reads `rate=125MB,delay=1ms,away=FILE`, one or more of them: a rate in `B`, `kB`, `MB` or `GB` a
    /// second, a delay in `us`, `ms` or `s`, the path of a file that takes the link down while it
    /// exists.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::new(Kind::Invalid, "read the link", format!("`{text}`"))
                .hint("write `rate=125MB,delay=1ms`, or one of them")
        };
        let number = |value: &str, units: &[(&str, u64)]| {
            let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let (_, factor) = units.iter().find(|(unit, _)| *unit == &value[digits.len()..])?;
            digits.parse::<u64>().ok()?.checked_mul(*factor).filter(|number| *number > 0)
        };
        let mut speed = LinkSpeed::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("rate", value)) => {
                    let units = [("B", 1), ("kB", 1000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
                    let rate = number(value, &units).ok_or_else(invalid)?;
                    speed.rate_bytes_per_second = Some(rate);
                }
                Some(("delay", value)) => {
                    let units = [("us", 1), ("ms", 1000), ("s", 1_000_000)];
                    speed.delay = Duration::from_micros(number(value, &units).ok_or_else(invalid)?);
                }
                Some(("away", path)) if !path.is_empty() => speed.away_file = Some(path.into()),
                _ => return Err(invalid()),
            }
        }
        Ok(speed)
    }
}

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every request fails as one that may work later.
    Away,
    /// What is read has a bit that is wrong.
    WrongBytes,
    /// Packs are not found.
    Missing,
    /// Requests take that much longer.
    Slow(Duration),
}

/// For how many requests a fault is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// For the next one.
    Once,
    /// Until it is mended.
    Always,
}

/// A pack store behind a link.
pub struct DecoratedPackStore {
    engine: Arc<dyn PackStore>,
    speed: LinkSpeed,
    fault: Mutex<Option<(Fault, Lasting)>>,
    /// When the link has done what it has to do so far.
    free_at: Mutex<Duration>,
    request_count: AtomicU64,
    read_len: AtomicU64,
}

impl DecoratedPackStore {
    /// Puts a link before an engine.
    pub fn new(engine: Arc<dyn PackStore>, speed: LinkSpeed) -> Self {
        DecoratedPackStore {
            engine,
            speed,
            fault: Mutex::default(),
            free_at: Mutex::default(),
            request_count: AtomicU64::new(0),
            read_len: AtomicU64::new(0),
        }
    }

    /// Breaks it.
    pub fn break_with(&self, fault: Fault, lasting: Lasting) {
        *lock(&self.fault) = Some((fault, lasting));
    }

    /// Mends it.
    pub fn mend(&self) {
        *lock(&self.fault) = None;
    }

    /// Requests so far, failed ones too.
    pub fn request_count(&self) -> u64 {
        self.request_count.load(Ordering::Relaxed)
    }

    /// Bytes that were read so far.
    pub fn read_len(&self) -> u64 {
        self.read_len.load(Ordering::Relaxed)
    }

    /// The fault that this request meets.
    fn fault(&self) -> Option<Fault> {
        if self.speed.away_file.as_ref().is_some_and(|path| path.exists()) {
            return Some(Fault::Away);
        }
        let mut fault = lock(&self.fault);
        let (met, lasting) = (*fault)?;
        if lasting == Lasting::Once {
            *fault = None;
        }
        Some(met)
    }

    fn pass<T>(
        &self,
        operation: &'static str,
        subject: &str,
        len_of: impl FnOnce(&T) -> usize,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Option<Fault>)> {
        self.request_count.fetch_add(1, Ordering::Relaxed);
        let fault = self.fault();
        let start = SystemClock.monotonic();
        let fails = |kind, reason| Err(Error::new(kind, operation, subject).because(reason));
        let mut delay = self.speed.delay;
        match fault {
            Some(Fault::Away) => return fails(Kind::Unavailable, "the store is away"),
            Some(Fault::Missing) => return fails(Kind::NotFound, "no such pack"),
            Some(Fault::Slow(more)) => delay += more,
            Some(Fault::WrongBytes) | None => {}
        }
        let done = work()?;
        wait_until(self.transferred(len_of(&done) as u64, start) + delay);
        Ok((done, fault))
    }

    /// When that many bytes are through the link.
    fn transferred(&self, len: u64, start: Duration) -> Duration {
        let Some(rate) = self.speed.rate_bytes_per_second else { return start };
        let mut free_at = lock(&self.free_at);
        let time = Duration::from_secs_f64(len as f64 / rate as f64);
        *free_at = (*free_at).max(start) + time;
        *free_at
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_until(time: Duration) {
    loop {
        let left = time.saturating_sub(SystemClock.monotonic());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

impl PackStore for DecoratedPackStore {
    fn put(&self, name: &PackName, bytes: &[u8]) -> Result<()> {
        let work = || self.engine.put(name, bytes);
        self.pass("put the pack", name.as_str(), |()| bytes.len(), work).map(|_| ())
    }

    fn read(&self, name: &PackName, offset: u64, len: usize) -> Result<Vec<u8>> {
        let work = || self.engine.read(name, offset, len);
        let (mut bytes, fault) = self.pass("read the pack", name.as_str(), Vec::len, work)?;
        self.read_len.fetch_add(len as u64, Ordering::Relaxed);
        if fault == Some(Fault::WrongBytes)
            && let Some(byte) = bytes.get_mut(len / 2)
        {
            *byte ^= 1;
        }
        Ok(bytes)
    }

    fn len(&self, name: &PackName) -> Result<u64> {
        let work = || self.engine.len(name);
        self.pass("measure the pack", name.as_str(), |_| 0, work).map(|(len, _)| len)
    }

    fn list(&self) -> Result<Vec<PackName>> {
        let work = || self.engine.list();
        self.pass("list the packs of", "the store", |_| 0, work).map(|(names, _)| names)
    }

    fn remove(&self, name: &PackName) -> Result<()> {
        let work = || self.engine.remove(name);
        self.pass("remove the pack", name.as_str(), |()| 0, work).map(|_| ())
    }

    fn unfinished(&self) -> Result<Vec<(PackName, u64)>> {
        let work = || self.engine.unfinished();
        self.pass("list the packs of", "the store", |_| 0, work).map(|(names, _)| names)
    }

    fn discard_unfinished(&self, name: &PackName) -> Result<()> {
        let work = || self.engine.discard_unfinished(name);
        self.pass("remove the pack", name.as_str(), |()| 0, work).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryPackStore;

    fn store(speed: &str) -> DecoratedPackStore {
        DecoratedPackStore::new(Arc::new(MemoryPackStore::default()), speed.parse().unwrap())
    }

    fn name() -> PackName {
        PackName::new(&"a".repeat(32)).unwrap()
    }

    #[test]
    fn the_contract_holds() {
        crate::pack_store::contract::check(&store("delay=1us"));
    }

    #[test]
    fn a_link_is_read_as_it_is_written() {
        let check = |text: &str, delay_us, rate| {
            let delay = Duration::from_micros(delay_us);
            assert_eq!(
                text.parse::<LinkSpeed>().unwrap(),
                LinkSpeed { delay, rate_bytes_per_second: rate, away_file: None }
            );
        };
        check("rate=125MB,delay=1ms", 1000, Some(125_000_000));
        check("delay=20ms", 20_000, None);
        check("rate=9B", 0, Some(9));
        for text in
            ["", "rate", "rate=", "rate=0MB", "rate=5", "rate=5MiB", "delay=1m", "away=", "x=1ms"]
        {
            assert!(text.parse::<LinkSpeed>().is_err(), "{text}");
        }
    }

    #[test]
    fn while_its_file_exists_a_link_is_down() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let store = store(&format!("delay=1us,away={}", file.path().display()));
        assert_eq!(store.put(&name(), b"bytes").unwrap_err().kind(), Kind::Unavailable);
        file.close().unwrap();
        store.put(&name(), b"bytes").unwrap();
        assert_eq!(store.read(&name(), 0, 5).unwrap(), b"bytes");
    }

    #[test]
    fn requests_share_the_rate_and_wait_for_the_delay_side_by_side() {
        let store = store("rate=10MB,delay=50ms");
        store.engine.put(&name(), &vec![1; 500_000]).unwrap();
        let start = SystemClock.monotonic();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| store.read(&name(), 0, 500_000).unwrap());
            }
        });
        // Four times 50 ms on the link, once 50 ms of delay; one after the other it were 400 ms.
        let taken = SystemClock.monotonic() - start;
        assert!(taken >= Duration::from_millis(250), "{taken:?}");
        assert_eq!((store.request_count(), store.read_len()), (4, 2_000_000));
    }

    #[test]
    fn faults_are_met_once_or_until_they_are_mended() {
        let store = store("delay=1us");
        store.put(&name(), b"bytes").unwrap();
        let kind = || store.read(&name(), 0, 5).map_err(|error| error.kind());
        store.break_with(Fault::Away, Lasting::Once);
        assert_eq!(kind(), Err(Kind::Unavailable));
        assert_eq!(kind().unwrap(), b"bytes");
        store.break_with(Fault::Missing, Lasting::Always);
        assert_eq!((kind(), kind()), (Err(Kind::NotFound), Err(Kind::NotFound)));
        store.break_with(Fault::WrongBytes, Lasting::Always);
        assert_ne!(kind().unwrap(), b"bytes");
        let start = SystemClock.monotonic();
        store.break_with(Fault::Slow(Duration::from_millis(30)), Lasting::Once);
        assert_eq!(kind().unwrap(), b"bytes");
        assert!(SystemClock.monotonic() - start >= Duration::from_millis(30));
        store.break_with(Fault::Away, Lasting::Always);
        assert!(store.put(&name(), b"x").is_err() && store.list().is_err());
        store.mend();
        assert_eq!(kind().unwrap(), b"bytes");
    }
}
