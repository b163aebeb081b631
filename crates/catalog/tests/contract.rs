//! The SQLite catalog keeps the promises of the trait.

use std::sync::Arc;

use catalog::{SqliteCatalog, contract};
use env::SystemClock;

#[test]
fn the_catalog_in_sqlite_keeps_every_promise() {
    for (name, promise) in contract::PROMISES {
        let folder = tempfile::tempdir().unwrap();
        let catalog =
            SqliteCatalog::open(&folder.path().join("catalog.sqlite"), Arc::new(SystemClock))
                .unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| promise(&catalog)));
        assert!(outcome.is_ok(), "the promise that is broken: {name}");
    }
}

#[test]
fn names_come_out_of_another_catalog_as_they_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let open =
        |name| SqliteCatalog::open(&folder.path().join(name), Arc::new(SystemClock)).unwrap();
    contract::check_restored(&open("from.sqlite"), &open("to.sqlite"));
}
