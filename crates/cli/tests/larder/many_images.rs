//! Thousands of images in the catalog.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catalog::{Catalog, SqliteCatalog};
use model::{ImageName, TagName, VersionId};
use repository::repository::catalog_path;

use crate::harness::Larder;

const IMAGE_COUNT: usize = 6_000;

#[test]
fn a_list_of_6000_images_is_there_at_once() {
    let larder = Larder::new();
    larder.write("disk.raw", &[1; 10_000]);
    larder.json("import disk.raw origin");
    {
        let clock = Arc::new(env::SystemClock);
        let path = catalog_path(&larder.path("repo"));
        let catalog = SqliteCatalog::open(&path, clock).unwrap();
        let origin: VersionId = catalog.version(&"origin".parse().unwrap()).unwrap().id;
        for index in 1..IMAGE_COUNT {
            let image = ImageName::new(&format!("team-{}/image-{index}", index % 37)).unwrap();
            let clone = catalog.clone_version(&origin, &image).unwrap();
            if index % 10 == 0 {
                catalog.set_tag(&clone.id, &TagName::new("stable").unwrap()).unwrap();
            }
        }
    }
    let list = larder.json("list");
    assert_eq!(list["images"].as_array().unwrap().len(), IMAGE_COUNT);
    let mut times: Vec<Duration> = (0..9)
        .map(|_| {
            let start = Instant::now();
            larder.run("list --format json");
            start.elapsed()
        })
        .collect();
    times.sort();
    let median = times[times.len() / 2];
    let mut stderr = std::io::stderr();
    let _told = writeln!(stderr, "list of {IMAGE_COUNT} images: {median:?}, of {times:?}");
    // The goal is 100 ms of a release build on a machine at rest. This is neither, and what else runs
    // here can only add to the fastest.
    assert!(times[0] < Duration::from_millis(300), "{times:?}");
    let found = larder.json("list --search image-5999");
    assert_eq!(found["images"].as_array().unwrap().len(), 1);
}
