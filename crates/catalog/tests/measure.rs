//! What the catalog costs: bytes for each row, time for each call.
//!
//! Prints a table; run by hand: `PACKS=7700 cargo test -p catalog --test measure -- --nocapture`.
//! Without `PACKS` it runs small, so that it cannot rot.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catalog::{Catalog, EntryDigest, ImageFilter, NewPack, SqliteCatalog, contract};
use env::SystemClock;
use model::Realm;
use model::digest::Hook;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

const ENTRIES: u64 = 130;
const HOOKS: u64 = 64;
const LONG: Duration = Duration::from_secs(3600);

#[test]
#[expect(clippy::print_stdout, reason = "the table is what this is for")]
fn the_cost_of_rows_and_calls() {
    let pack_count: u64 =
        std::env::var("PACKS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    let realm = Realm::default_realm();
    let catalog = SqliteCatalog::open(&path, Arc::new(SystemClock)).unwrap();
    let row = |what: &str, value: String| println!("{what:44} {value}");

    let lease = catalog.begin_lease(LONG).unwrap();
    let mut slowest = Duration::ZERO;
    let start = Instant::now();
    for number in 0..pack_count {
        let pack = pack(number);
        let start = Instant::now();
        catalog.add_pack(lease, &pack).unwrap();
        slowest = slowest.max(start.elapsed());
    }
    row("add_pack, mean (130 entries, 64 hooks)", mean(start.elapsed(), pack_count));
    row("add_pack, slowest", format!("{slowest:.1?}"));
    let log = path.with_extension("sqlite-wal").metadata().unwrap().len();
    row("log after all", format!("{log} bytes"));
    catalog.publish(lease, &contract::publication("a")).unwrap();

    for batch in [1_u64, 100, 1000] {
        let digests: Vec<EntryDigest> =
            (0..batch).map(|i| digest(i * 7919 % (pack_count * ENTRIES))).collect();
        let rounds = 20;
        let start = Instant::now();
        for _ in 0..rounds {
            let found = catalog.locate(&realm, &digests).unwrap();
            assert!(found.iter().all(Option::is_some));
        }
        row(&format!("locate, each of {batch}"), mean(start.elapsed(), rounds * batch));
    }
    let hooks: Vec<Hook> = (0..64).map(|i| hook(i * 7919 % (pack_count * HOOKS))).collect();
    let start = Instant::now();
    for _ in 0..100 {
        assert!(!catalog.packs_with_hooks(&realm, &hooks, 4).unwrap().is_empty());
    }
    row("packs_with_hooks, 64 known", mean(start.elapsed(), 100));
    let unknown: Vec<Hook> = (0..64).map(|i| Hook(i << 6 | 1)).collect();
    let start = Instant::now();
    for _ in 0..100 {
        assert!(catalog.packs_with_hooks(&realm, &unknown, 4).unwrap().is_empty());
    }
    row("packs_with_hooks, 64 unknown", mean(start.elapsed(), 100));

    let start = Instant::now();
    for _ in 0..10 {
        catalog.statistics().unwrap();
    }
    row("statistics", mean(start.elapsed(), 10));
    let start = Instant::now();
    for _ in 0..20 {
        let lease = catalog.begin_lease(LONG).unwrap();
        catalog.publish(lease, &contract::publication("a")).unwrap();
    }
    row("begin_lease and publish", mean(start.elapsed(), 20));

    let lease = catalog.begin_lease(LONG).unwrap();
    for number in 0..5 {
        catalog.add_pack(lease, &pack(pack_count + number)).unwrap();
    }
    let start = Instant::now();
    assert_eq!(catalog.abandon_lease(lease).unwrap().len(), 5);
    row("abandon_lease of 5 packs", format!("{:.1?}", start.elapsed()));
    drop(catalog);

    let start = Instant::now();
    for _ in 0..20 {
        let catalog = SqliteCatalog::open(&path, Arc::new(SystemClock)).unwrap();
        catalog.images(&ImageFilter::default()).unwrap();
    }
    row("open, list, close", mean(start.elapsed(), 20));
    let start = Instant::now();
    for number in 0..10 {
        SqliteCatalog::open(&path.with_extension(number.to_string()), Arc::new(SystemClock))
            .unwrap();
    }
    row("create, close", mean(start.elapsed(), 10));
    let empty = path.with_extension("0").metadata().unwrap().len();
    row("an empty catalog", format!("{empty} bytes"));
    row("the file", format!("{} bytes", path.metadata().unwrap().len()));
    for (table, count) in
        [("entry", pack_count * ENTRIES), ("hook", pack_count * HOOKS), ("pack", pack_count)]
    {
        let bytes = table_len(&path, table);
        let each = bytes as f64 / count as f64;
        row(&format!("{table}: {count} rows"), format!("{bytes} bytes, {each:.1} each"));
    }
}

fn mean(elapsed: Duration, count: u64) -> String {
    format!("{:.1} µs", elapsed.as_secs_f64() * 1e6 / count as f64)
}

fn pack(number: u64) -> NewPack {
    let mut pack = contract::pack(1);
    pack.name = format!("{:032x}", u128::from(scatter(number)) << 64 | u128::from(number));
    pack.entries = (0..ENTRIES)
        .map(|index| catalog::EntryRecord {
            digest: digest(number * ENTRIES + index),
            offset: index * 60_000,
            stored_len: 60_000,
            plain_len: 262_144,
            encoding: 1,
            kind: 1,
        })
        .collect();
    pack.hooks = (0..HOOKS).map(|index| hook(number * HOOKS + index)).collect();
    pack
}

fn digest(number: u64) -> EntryDigest {
    let mut digest = [0; 32];
    for (index, part) in digest.chunks_exact_mut(8).enumerate() {
        part.copy_from_slice(&scatter(number + ((index as u64) << 56)).to_le_bytes());
    }
    digest
}

/// As a hook is: the two highest bits of its first byte are all that byte may have.
fn hook(number: u64) -> Hook {
    Hook(scatter(number) & !0x3f)
}

/// Numbers to numbers that look random, each to another (the finish of splitmix64).
fn scatter(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

fn table_len(path: &Path, table: &str) -> i64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
        let bytes = sqlx::query_scalar("SELECT sum(pgsize) FROM dbstat WHERE name = ?1")
            .bind(table)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        bytes
    })
}
