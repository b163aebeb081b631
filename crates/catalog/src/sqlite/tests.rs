//! What the file looks like from below, and what happens when SQLite says no.

use std::path::Path;
use std::sync::Arc;

use env::ManualClock;
use model::{Error, Kind};
use sqlx::SqliteConnection;

use super::SqliteCatalog;
use super::failure::Failure;
use crate::Catalog;
use crate::contract;
use crate::records::ImageFilter;

fn open(path: &Path) -> model::Result<SqliteCatalog> {
    SqliteCatalog::open(path, Arc::new(ManualClock::default()))
}

/// Runs statements on the connection that writes, outside any transaction of the catalog's.
fn run(catalog: &SqliteCatalog, statements: &str) {
    let outcome = catalog.connections.write("test", async |connection: &mut SqliteConnection| {
        let end = "COMMIT; ";
        let text = format!("{end}{statements}; BEGIN IMMEDIATE");
        sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(connection).await?;
        Ok::<(), Failure>(())
    });
    outcome.unwrap();
}

fn fails_to_open(path: &Path) -> Error {
    open(path).err().expect("an error")
}

#[test]
fn the_schema_is_the_one_that_was_promised() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = open(&folder.path().join("catalog.sqlite")).unwrap();
    let rows: Vec<(String, String, Option<String>)> = catalog
        .connections
        .read("test", async |connection| {
            let query = "SELECT type, name, sql FROM sqlite_schema ORDER BY type, name";
            Ok(sqlx::query_as(query).fetch_all(connection).await?)
        })
        .unwrap();
    let stamps: (i64, i64, i64, i64) = catalog
        .connections
        .read("test", async |connection| {
            let query = "SELECT (SELECT application_id FROM pragma_application_id),
                (SELECT user_version FROM pragma_user_version),
                (SELECT page_size FROM pragma_page_size),
                (SELECT auto_vacuum FROM pragma_auto_vacuum)";
            Ok(sqlx::query_as(query).fetch_one(connection).await?)
        })
        .unwrap();
    let (application, format, page_size, auto_vacuum) = stamps;
    let mut dump = format!(
        "application_id {application:#x}\nuser_version {format}\npage_size {page_size}\n\
         auto_vacuum {auto_vacuum}\n"
    );
    for (what, name, sql) in rows {
        dump.push_str(&format!("\n{what} {name}\n{}\n", sql.unwrap_or_default()));
    }
    let golden = include_str!("../../golden/schema-3.txt");
    assert_eq!(dump, golden, "the format changed: give it a new number, a new golden file, a page");
}

#[test]
fn a_file_of_a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    run(&open(&path).unwrap(), "PRAGMA user_version = 7");
    let error = fails_to_open(&path);
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("format 7 is newer"), "{error}");
    assert_eq!(error.hint_text(), Some("use a newer larder"));
    assert!(error.to_string().contains("catalog.sqlite"), "{error}");
}

#[test]
fn a_database_of_another_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    run(&open(&path).unwrap(), "PRAGMA application_id = 0");
    assert_eq!(fails_to_open(&path).kind(), Kind::Refused);
}

#[test]
fn what_is_no_database_is_corrupt_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    let text = "this is no database ".repeat(1000);
    std::fs::write(&path, &text).unwrap();
    let error = fails_to_open(&path);
    assert_eq!(error.kind(), Kind::Corrupt, "{}", error.chain());
    assert!(error.to_string().contains("catalog.sqlite"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let kind = fails_to_open(&folder.path().join("absent/catalog.sqlite")).kind();
    assert_eq!(kind, Kind::NotFound);
}

#[test]
fn an_empty_file_becomes_a_catalog() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    std::fs::write(&path, "").unwrap();
    assert!(open(&path).unwrap().images(&ImageFilter::default()).unwrap().is_empty());
}

#[test]
fn a_catalog_that_must_be_there_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    let clock = || Arc::new(env::SystemClock);
    let refused = || SqliteCatalog::open_existing(&path, clock()).err().expect("an error");
    for reason in ["the file is missing", "the file is empty"] {
        let error = refused();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().ends_with(reason), "{error}");
        assert!(error.hint_text().unwrap().contains("larder scrub --rebuild"));
        std::fs::write(&path, "").unwrap();
    }
    drop(open(&path).unwrap());
    SqliteCatalog::open_existing(&path, clock()).unwrap().check_pages().unwrap();
}

#[test]
fn a_damaged_page_is_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    let catalog = open(&path).unwrap();
    let lease = catalog.begin_lease(std::time::Duration::from_secs(9)).unwrap();
    catalog.publish(lease, &contract::publication("a")).unwrap();
    drop(catalog);
    let mut bytes = std::fs::read(&path).unwrap();
    // The first page, with the header and the schema, stays sound.
    bytes[4096..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let catalog = open(&path).unwrap();
    let error = catalog.images(&ImageFilter::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{}", error.chain());
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = open(&folder.path().join("catalog.sqlite")).unwrap();
    let lease = catalog.begin_lease(std::time::Duration::from_secs(3600)).unwrap();
    catalog.publish(lease, &contract::publication("a")).unwrap();
    let before = catalog.statistics().unwrap();
    // SQLite never goes below the pages there are.
    run(&catalog, "PRAGMA max_page_count = 1");
    let lease = catalog.begin_lease(std::time::Duration::from_secs(3600)).unwrap();
    let mut large = contract::pack(1);
    for index in 0..10_000_u32 {
        let mut entry = large.entries[0];
        entry.digest[..4].copy_from_slice(&index.to_be_bytes());
        large.entries.push(entry);
    }
    let error = catalog.add_pack(lease, &large).unwrap_err();
    assert_eq!(error.kind(), Kind::Full, "{}", error.chain());
    assert_eq!(catalog.statistics().unwrap(), before);
    run(&catalog, "PRAGMA max_page_count = 1000000");
    catalog.add_pack(lease, &large).unwrap();
    catalog.publish(lease, &contract::publication("a")).unwrap();
}

#[test]
fn a_lock_that_another_keeps_is_told_and_readers_do_not_mind_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    let (catalog, other) = (open(&path).unwrap(), open(&path).unwrap());
    let lease = catalog.begin_lease(std::time::Duration::from_secs(3600)).unwrap();
    catalog.publish(lease, &contract::publication("a")).unwrap();
    run(&catalog, "PRAGMA busy_timeout = 0");
    other
        .connections
        .write("test", async |_connection| {
            let image = model::ImageName::new("a").unwrap();
            let removal = std::thread::scope(|scope| {
                scope.spawn(|| catalog.remove_image(&image)).join().unwrap()
            });
            let error = removal.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(catalog.images(&ImageFilter::default()).unwrap().len(), 1);
}

#[test]
fn a_clean_close_leaves_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    let (first, second) = (open(&path).unwrap(), open(&path).unwrap());
    contract::numbers_ascend_and_are_never_reused(&first);
    second.images(&ImageFilter::default()).unwrap();
    let log = folder.path().join("catalog.sqlite-wal");
    assert!(log.metadata().unwrap().len() > 0);
    drop(first);
    assert_eq!(log.metadata().unwrap().len(), 0, "the log is cut although another has it open");
    drop(second);
    let files: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files, ["catalog.sqlite"]);
}
