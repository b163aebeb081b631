//! The stock of boot working sets: what it holds, what it takes, and guests that boot from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use catalog::ImageFilter;
use env::RealFileSystem;
use host::commit::{CommitOptions, Committer};
use host::stock::stock_folder;
use host::{AttachRequest, DoorOptions, Owner};
use mirror::{Patience, StateFolder};
use model::device::Device;
use model::progress::{Cancel, Silent};
use model::{ImageName, Kind, MirrorName, Reference};
use repository::repository::Machine;
use repository::{Repository, Stock, SyncRequest, Synced, Wanted};

const LENGTH: usize = 8 << 20;
/// What a guest reads when it boots: from, bytes.
const READS: [(u64, usize); 2] = [(6 << 20, 1 << 20), (1 << 20, 1 << 20)];

struct Place {
    folder: tempfile::TempDir,
    repository: Repository,
    stock: Stock,
    cancel: Cancel,
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn request(reference: &str, record: Option<&str>) -> AttachRequest {
    AttachRequest {
        reference: Some(reference.parse().unwrap()),
        patience: Patience::Limited(std::time::Duration::ZERO),
        mirror: MirrorName::new("m").unwrap(),
        doors: DoorOptions::default(),
        client: None,
        length: None,
        record: record.map(str::to_string),
    }
}

fn image(name: &str) -> ImageName {
    ImageName::new(name).unwrap()
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::real();
        let at = folder.path().join("repository");
        let (repository, _) = Repository::open_or_create(&machine, &at).unwrap();
        let state = StateFolder::new(Arc::new(RealFileSystem), folder.path().join("state"));
        let stock = Stock::open_or_create(&machine, &stock_folder(&state)).unwrap();
        Place { folder, repository, stock, cancel: Cancel::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self, name: &str) -> StateFolder {
        StateFolder::new(Arc::new(RealFileSystem), self.path(name))
    }

    /// An image with these bytes as its version 2.
    fn add(&self, name: &str, bytes: &[u8]) {
        self.repository.create_image(&image(name), bytes.len() as u64).unwrap();
        self.change(name, 0, bytes);
    }

    /// Commits a change to an image.
    fn change(&self, name: &str, offset: u64, bytes: &[u8]) {
        let state = self.state("work");
        let owner = Owner::start(self.repository.clone(), state, &request(name, None)).unwrap();
        owner.mirror().write(offset, bytes).unwrap();
        let committer = Committer::new(self.repository.clone(), owner.mirror().clone());
        committer.commit(&CommitOptions::default(), &Silent).unwrap();
        owner.stop(true).unwrap();
    }

    /// Boots a guest, so that the version has a set of its own.
    fn boot(&self, name: &str) {
        let state = self.state("work");
        let boot = request(name, Some("boot"));
        let owner = Owner::start(self.repository.clone(), state, &boot).unwrap();
        for (offset, len) in READS {
            owner.mirror().read(offset, &mut vec![0; len]).unwrap();
        }
        owner.stop(true).unwrap();
    }

    fn sync(&self, limit_len: u64) -> Synced {
        self.sync_some(ImageFilter::default(), limit_len)
    }

    fn sync_some(&self, filter: ImageFilter, limit_len: u64) -> Synced {
        let request = SyncRequest {
            from: &self.repository,
            wanted: Wanted::Images(filter),
            limit_len,
            progress: &Silent,
            cancel: &self.cancel,
        };
        self.stock.sync(&request).unwrap()
    }

    fn is_stocked(&self, reference: &str) -> bool {
        let reference: Reference = reference.parse().unwrap();
        let version = self.repository.catalog().version(&reference).unwrap();
        self.stock.find(version.facts.content).is_some()
    }

    /// Boots on the host with the stock. Returns what was fetched from the repository.
    fn boot_from_stock(&self, reference: &str, bytes: &[u8]) -> u64 {
        let (state, request) = (self.state("state"), request(reference, None));
        let owner = Owner::start(self.repository.clone(), state.clone(), &request).unwrap();
        for (offset, len) in READS {
            let mut buffer = vec![0; len];
            owner.mirror().read(offset, &mut buffer).unwrap();
            assert!(buffer == bytes[offset as usize..][..len], "{reference} at {offset}");
        }
        let fetched = owner.status().fetched_bytes;
        owner.stop(true).unwrap();
        std::fs::remove_dir_all(self.path("state/bases")).unwrap();
        fetched
    }
}

fn packs_of(folder: &Path) -> Vec<PathBuf> {
    let packs = std::fs::read_dir(folder.join("packs")).unwrap();
    packs.map(|pack| pack.unwrap().path()).collect()
}

#[test]
fn a_stocked_guest_boots_without_the_repositorys_packs() {
    let place = Place::new();
    let bytes = noise(1, LENGTH);
    place.add("web", &bytes);
    assert_eq!(place.sync(1 << 30).without_set, 1, "nobody has booted it yet");
    place.boot("web");
    let synced = place.sync(1 << 30);
    assert_eq!((synced.wanted, synced.added, synced.stocked), (1, 1, 1));
    assert!(synced.fetched_len >= 2 << 20);
    assert_eq!(place.sync(1 << 30), Synced { added: 0, fetched_len: 0, ..synced });
    std::fs::rename(place.path("repository/packs"), place.path("away")).unwrap();
    assert_eq!(place.boot_from_stock("web", &bytes), 0);
    // What is not of the set is not there.
    let owner = Owner::start(place.repository.clone(), place.state("state"), &request("web", None))
        .unwrap();
    assert_eq!(owner.mirror().read(0, &mut [0; 4096]).unwrap_err().kind(), Kind::Unavailable);
    owner.stop(true).unwrap();
}

#[test]
fn damage_in_the_stock_is_a_miss() {
    let place = Place::new();
    let bytes = noise(1, LENGTH);
    place.add("web", &bytes);
    place.boot("web");
    place.sync(1 << 30);
    let packs = packs_of(&place.path("state/stock"));
    assert!(!packs.is_empty());
    let sound: Vec<Vec<u8>> = packs.iter().map(|pack| std::fs::read(pack).unwrap()).collect();
    // Here and there, everywhere; then gone.
    for step in [1 << 20, 5000, 64] {
        for (pack, sound) in packs.iter().zip(&sound) {
            let mut damaged = sound.clone();
            damaged.iter_mut().step_by(step).for_each(|byte| *byte ^= 1);
            std::fs::write(pack, damaged).unwrap();
        }
        assert!(place.boot_from_stock("web", &bytes) > 0, "step {step}");
    }
    packs.iter().for_each(|pack| std::fs::remove_file(pack).unwrap());
    assert!(place.boot_from_stock("web", &bytes) > 0);
}

#[test]
fn versions_that_are_alike_are_stocked_for_the_price_of_what_differs() {
    let place = Place::new();
    let mut bytes = noise(1, LENGTH);
    place.add("web", &bytes);
    place.boot("web");
    let first = place.sync(1 << 30);
    // One that inherits its set, and one that has its own.
    let web = place.repository.catalog().version(&"web".parse().unwrap()).unwrap();
    for name in ["heir", "own"] {
        place.repository.catalog().clone_version(&web.id, &image(name)).unwrap();
    }
    place.change("heir", 0, &noise(2, 4096));
    let change = noise(3, 64 << 10);
    bytes[6 << 20..][..change.len()].copy_from_slice(&change);
    place.change("own", 6 << 20, &change);
    place.boot("own");
    let second = place.sync(1 << 30);
    assert_eq!((second.added, second.stocked), (2, 3));
    let grown = second.stored_len - first.stored_len;
    assert!(grown < 400 << 10, "{grown} bytes for two sets of 2 MiB");
    std::fs::rename(place.path("repository/packs"), place.path("away")).unwrap();
    assert_eq!(place.boot_from_stock("own", &bytes), 0);
    let heir = noise(1, LENGTH);
    assert_eq!(place.boot_from_stock("heir", &heir), 0);
}

#[test]
fn the_most_used_come_first_and_what_does_not_fit_goes() {
    let place = Place::new();
    let disks: Vec<(String, Vec<u8>)> =
        (0..4).map(|n| (format!("image{n}"), noise(n, LENGTH))).collect();
    for (name, bytes) in &disks {
        place.add(name, bytes);
        place.boot(name);
    }
    // Used as often, so the newest are wanted most.
    let limit = 6 << 20;
    let synced = place.sync(limit);
    assert!(synced.stored_len <= limit, "{synced:?}");
    assert_eq!((synced.stocked, synced.left_out), (2, 2));
    assert!(place.is_stocked("image3") && place.is_stocked("image2"));
    for _ in 0..3 {
        place.boot("image0");
    }
    let synced = place.sync(limit);
    assert!(synced.stored_len <= limit, "{synced:?}");
    assert!(place.is_stocked("image0") && place.is_stocked("image3"));
    assert!(!place.is_stocked("image2"));
    assert_eq!(place.boot_from_stock("image0", &disks[0].1), 0);
    // What is not wanted goes too, and its bytes with it.
    let filter = ImageFilter { search: Some("image1".to_string()), ..ImageFilter::default() };
    let synced = place.sync_some(filter, limit);
    assert_eq!((synced.stocked, synced.added, synced.evicted), (1, 1, 2));
    assert!(synced.stored_len < 4 << 20, "{synced:?}");
    assert_eq!(place.sync(0).stocked, 0);
    assert!(place.stock.stored_len().unwrap() < 1 << 20);
}
