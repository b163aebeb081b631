//! Random lives: clients that import, commit, clone, remove, hold, read and collect, at once or alone.

#![expect(clippy::print_stdout, reason = "numbers and seeds, shown where a test fails")]

mod support;

use std::path::PathBuf;

use env::SeededEntropy;
use support::lives::{Client, Model, collect_all, export, open, soak};

/// A folder in memory, where there is such: these tests are not about what a disk forgets.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = folder.path().to_path_buf();
    for name in ["lived", "fresh"] {
        std::fs::create_dir(path.join(name)).unwrap();
    }
    (folder, path)
}

/// How many seeds are tried, and from where: to repeat a failure, or to look for longer.
fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let first = number("LARDER_SEED", 1);
    // Of two seeds that differ in their lowest bit alone the sequences are the same.
    (first..first + number("LARDER_SEEDS", count)).map(|seed| 2 * seed)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn a_random_life_ends_with_every_version_whole_and_little_more_than_a_fresh_import() {
    for seed in seeds(2) {
        let (_folder, path) = folder();
        println!("LARDER_SEED={}", seed / 2);
        let (lived, fresh) = soak(&path, seed, number("LARDER_STEPS", 150), 2 << 20);
        println!("{lived} bytes, fresh {fresh}: {:.3}", lived as f64 / fresh as f64);
        assert!(lived * 100 <= fresh * 125, "seed {seed}: {lived} bytes, fresh {fresh}");
    }
}

/// Clients with connections of their own, as processes have them, and clients that share one.
#[test]
fn clients_at_once_see_every_version_whole_at_any_time() {
    for seed in seeds(2) {
        println!("LARDER_SEED={}", seed / 2);
        let (_folder, path) = folder();
        let model = Model::default();
        let repositories: Vec<_> =
            (0..3).map(|number| open(&path.join("lived"), seed * 1000 + 2 * number)).collect();
        std::thread::scope(|scope| {
            for client in 0..4u64 {
                let repository = &repositories[client as usize % repositories.len()];
                let (model, name) = (&model, format!("mirror {client}"));
                let random = SeededEntropy::new(seed * 1000 + 2 * client);
                scope.spawn(move || {
                    let held = None;
                    let length_max = 1 << 20;
                    let mut client = Client { repository, model, random, name, held, length_max };
                    (0..number("LARDER_STEPS", 60)).for_each(|_| client.step());
                    client.release();
                });
            }
        });
        collect_all(&repositories[0]);
        let late = open(&path.join("lived"), seed * 1000 + 98);
        for (version, bytes) in &*model.lock().unwrap() {
            assert!(export(&late, version).unwrap() == **bytes, "seed {seed}: {version}");
        }
    }
}
