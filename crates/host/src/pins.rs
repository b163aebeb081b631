//! Versions that are complete on this host and stay so.
//!
//! ```text
//! pin: sizes ─► fits the limit? ─► pin on disk ─► hold ─► fetch, by several threads ─► complete
//! again, after it was cut short:       there          there      what is missing
//! unpin: release ─► pin removed
//! ```
//!
//! A pin is a file in the folder of the version's base, and a hold in the catalog, as a mirror has one:
//! the version can be read here also when it is removed there.
//!
//! **Failure**: a pin that is cut short keeps what it has brought, and goes on when it is asked for
//! again. A crash between pin and hold leaves a pin without a hold; the next `pin` takes one.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use env::entropy::{Entropy, SystemEntropy};
use env::{Clock, SystemClock};
use mirror::{Binding, Patience, PinFile, ReadOnlyView, StateFolder};
use model::device::Device;
use model::progress::{Cancel, Progress};
use model::{Error, Kind, Reference, Result, SEGMENT_LEN};
use repository::Repository;
use serde::{Deserialize, Serialize};
use store::ChunkStore;

use crate::control::{Request, Response, ask};
use crate::daemon::daemon_socket;
use crate::mirrors::control_socket;

/// The format number of a pin's text.
const FORMAT: u32 = 1;

/// Threads that fetch: one waits for the store while others unpack.
const THREADS: usize = 8;

/// Bytes of a disk that a thread brings at a time, and then looks whether it is to stop.
const STEP_LEN: u64 = 256 << 10;

/// Bytes of room that other processes are asked for at a time.
const ROOM_LEN: u64 = 16 << 20;

/// How often room is asked for before a pin gives up.
const ROOM_TRIES: usize = 4;

/// A version that is kept on this host, as its file tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    format: u32,
    /// The version, as `image@number`.
    pub version: String,
    /// Who holds it in the catalog.
    holder: String,
    /// Bytes of the disk.
    pub length_bytes: u64,
    /// Blocks that are no hole.
    pub blocks: u64,
    /// Their bytes: what they take of this host's disk.
    pub plain_bytes: u64,
    /// Stored bytes of the chunks that hold them.
    pub stored_bytes: u64,
    /// True once all of it was here.
    pub complete: bool,
}

/// What a pin came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Pinned {
    /// The pin.
    pub pin: Pin,
    /// Stored bytes that were read from the repository.
    pub fetched_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Makes a version complete on this host and keeps it so. Does what is left to do where an earlier
/// one was cut short.
///
/// # Errors
/// `NotFound` where there is no such version; `Refused` where all pins together would be larger than
/// the limit for bases; `Full` where what is in use leaves no room; `Cancelled`; those of the store.
pub fn pin(
    state: &StateFolder,
    repository: &Repository,
    reference: &Reference,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Pinned> {
    let start = SystemClock.monotonic();
    let version = repository.catalog().version(reference)?;
    let sizes = repository.version_sizes(&version)?;
    let (content, name) = (version.facts.content, file_name(&version.id.to_string()));
    let text = version.id.to_string();
    let before = list(state)?.into_iter().find(|pin| pin.version == text);
    let mut pin = Pin {
        format: FORMAT,
        holder: before.as_ref().map_or_else(|| new_holder(state, &text), |p| p.holder.clone()),
        version: text,
        length_bytes: version.facts.length,
        blocks: sizes.blocks,
        plain_bytes: sizes.plain_len,
        stored_bytes: sizes.stored_len,
        complete: false,
    };
    check_limit(state, &pin)?;
    write(state, content, &name, &pin)?;
    repository.catalog().hold(&version.id, &pin.holder, None)?;
    let chunks = Arc::new(repository.chunks().another());
    let binding = Binding {
        parent: version.id,
        content,
        layout: version.facts.layout,
        length: version.facts.length,
    };
    let view = ReadOnlyView::open(state, &binding, chunks.clone())?;
    view.set_patience(Patience::Unlimited);
    progress.expect(Some(sizes.plain_len));
    let manifest = chunks.manifest(binding.layout)?;
    bring_all(state, &view, &manifest, progress, cancel, &pin.version)?;
    view.close()?;
    pin.complete = true;
    write(state, content, &name, &pin)?;
    let seconds = (SystemClock.monotonic() - start).as_secs_f64();
    Ok(Pinned { pin, fetched_bytes: chunks.read_len(), seconds })
}

/// All pins of this host, by version.
///
/// # Errors
/// Those of the state folder; `Corrupt` where a pin cannot be read.
pub fn list(state: &StateFolder) -> Result<Vec<Pin>> {
    let mut pins = state.pins()?.iter().map(read).collect::<Result<Vec<Pin>>>()?;
    pins.sort_by(|a, b| a.version.cmp(&b.version));
    Ok(pins)
}

/// Ends a pin: the version may be evicted from now on. The repository is asked which version
/// is meant where that is not said by number.
///
/// # Errors
/// `NotFound` where the version is not pinned.
pub fn unpin(
    state: &StateFolder,
    reference: &Reference,
    open_repository: impl Fn() -> Result<Repository>,
) -> Result<Pin> {
    let pins = state.pins()?;
    let named = |text: &str| pins.iter().find(|file| file.name == file_name(text));
    let file = match named(&reference.to_string()) {
        Some(file) => file,
        None => {
            let version = open_repository()?.catalog().version(reference)?.id.to_string();
            named(&version).ok_or_else(|| {
                let error = Error::new(Kind::NotFound, "unpin", version.as_str());
                error.because("it is not pinned").hint("`larder pin --list` says what is")
            })?
        }
    };
    let pin = read(file)?;
    let released = open_repository().and_then(|r| r.catalog().release(&pin.holder));
    if let Err(error) = released {
        tracing::warn!("the version is held still: {}", error.chain());
    }
    state.remove_pin(file.content, &file.name)?;
    Ok(pin)
}

fn read(file: &PinFile) -> Result<Pin> {
    let pin: Pin = toml::from_str(&file.text).map_err(|error| {
        Error::new(Kind::Corrupt, "read the pin of", file.content.to_string())
            .because(error.message().to_string())
    })?;
    match pin.format {
        FORMAT => Ok(pin),
        newer => Err(Error::new(Kind::Refused, "read the pin of", pin.version)
            .because(format!("its format is {newer}, and this larder knows {FORMAT} only"))
            .hint("use a newer larder")),
    }
}

fn write(state: &StateFolder, content: model::ContentDigest, name: &str, pin: &Pin) -> Result<()> {
    let text = toml::to_string(pin).map_err(|error| {
        Error::new(Kind::Bug, "pin", pin.version.as_str()).because(error.to_string())
    })?;
    state.write_pin(&PinFile { content, name: name.to_string(), text })
}

/// A version as it may stand in a file's name. No image's name has a plus.
fn file_name(version: &str) -> String {
    version.replace('/', "+")
}

/// Pins cannot be evicted, so together they must fit.
fn check_limit(state: &StateFolder, pin: &Pin) -> Result<()> {
    let Some(limit) = state.base_limit() else { return Ok(()) };
    let others = list(state)?.into_iter().filter(|other| other.version != pin.version);
    let pinned: u64 = others.map(|other| other.plain_bytes).sum();
    if pinned.saturating_add(pin.plain_bytes) <= limit {
        return Ok(());
    }
    Err(Error::new(Kind::Refused, "pin", pin.version.as_str())
        .because(format!(
            "it takes {} bytes, and of the {limit} bytes for local copies {pinned} are pinned",
            pin.plain_bytes
        ))
        .hint("unpin another version, or raise `--base-cache`"))
}

/// Brings every segment that holds data, several ranges at a time.
fn bring_all(
    state: &StateFolder,
    view: &ReadOnlyView,
    manifest: &model::Manifest,
    progress: &dyn Progress,
    cancel: &Cancel,
    subject: &str,
) -> Result<()> {
    let length = view.length();
    let steps: Vec<u64> = manifest
        .segments()
        .iter()
        .flat_map(|entry| {
            let start = u64::from(entry.segment) * SEGMENT_LEN;
            (start..(start + SEGMENT_LEN).min(length)).step_by(STEP_LEN as usize)
        })
        .collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let asking = Mutex::new(());
    let work = || -> Result<()> {
        while let Some(offset) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            cancel.check("pin", subject)?;
            let len = STEP_LEN.min(length - offset);
            bring(state, view, (*offset, len), &asking)?;
            progress.advance(view.data_len(*offset, len));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| work().inspect_err(|_| failed.store(true, Ordering::Relaxed))))
            .collect();
        let bug = || Err(Error::new(Kind::Bug, "pin", subject).because("a thread panicked"));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bug()))
            .fold(Ok(()), Result::and)
    })
}

/// Brings a range. Where there is no room, other processes are asked to give up what only they can;
/// one thread asks at a time.
fn bring(
    state: &StateFolder,
    view: &ReadOnlyView,
    range: (u64, u64),
    asking: &Mutex<()>,
) -> Result<()> {
    let (offset, len) = range;
    let is_full =
        |brought: &Result<()>| brought.as_ref().is_err_and(|error| error.kind() == Kind::Full);
    let mut brought = view.bring(offset, len);
    if is_full(&brought) {
        let _asking = asking.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ROOM_TRIES {
            // Another thread may have asked meanwhile.
            state.look_for_room_again();
            brought = view.bring(offset, len);
            if !is_full(&brought) {
                break;
            }
            ask_for_room(state, ROOM_LEN);
        }
    }
    brought.map_err(|error| match error.kind() {
        Kind::Full => error.hint("detach mirrors, or raise `--base-cache`"),
        _ => error,
    })
}

/// Asks the processes that serve mirrors of this host to evict, until they gave that much back.
fn ask_for_room(state: &StateFolder, bytes: u64) {
    let names = mirror::Mirror::list(state).unwrap_or_default();
    let sockets = names.iter().map(|name| control_socket(state, name));
    let mut freed = 0;
    for socket in std::iter::once(daemon_socket(state)).chain(sockets) {
        if freed >= bytes {
            break;
        }
        if let Ok(Some(Response::Room { freed_bytes })) = ask(&socket, &Request::MakeRoom { bytes })
        {
            freed += freed_bytes;
        }
    }
}

/// Words that tell a person where to look, and a random end: two hosts may have one name.
fn new_holder(state: &StateFolder, version: &str) -> String {
    let folder: &Path = state.path();
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let random = SystemEntropy.name();
    format!("pin of {version} on {host} in {}, {}", folder.display(), &random[..8])
}
