//! Leases: what protects packs between their upload and the version that refers to them.
//!
//! ```text
//! begin ── add_pack ── add_pack ── publish      packs nobody's: versions refer to them
//!              │                └─ abandon      packs removed, but for those that others claimed
//!              └─ (expires)                     packs stay under a dead lease, for collect
//! ```

use std::time::Duration;

use env::Timestamp;
use model::{Error, Kind, Result};
use sqlx::SqliteConnection;

use super::failure::Failure;
use super::packs::{Rows, pack_name};
use crate::records::{LeaseId, Mark};

/// What a lease is for, as the file numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Writing or reading versions. Collect waits for it.
    Work = 0,
    /// A collect. There is one at a time.
    Collect = 1,
}

/// Begins a lease. Forgets leases that have expired: without a row a lease is dead for good.
pub(super) async fn begin(
    connection: &mut SqliteConnection,
    now: Timestamp,
    time_to_live: Duration,
    purpose: Purpose,
) -> Result<LeaseId, Failure> {
    sqlx::query("DELETE FROM lease WHERE expires <= ?1")
        .bind(now.0)
        .execute(&mut *connection)
        .await?;
    if purpose == Purpose::Collect {
        require_no_other_collect(connection).await?;
    }
    let id =
        sqlx::query_scalar("INSERT INTO lease (purpose, expires) VALUES (?1, ?2) RETURNING id")
            .bind(purpose as i64)
            .bind(now.plus(time_to_live).0)
            .fetch_one(connection)
            .await?;
    Ok(LeaseId(id))
}

async fn require_no_other_collect(connection: &mut SqliteConnection) -> Result<(), Failure> {
    let other: Option<i64> = sqlx::query_scalar("SELECT id FROM lease WHERE purpose = ?1 LIMIT 1")
        .bind(Purpose::Collect as i64)
        .fetch_optional(connection)
        .await?;
    match other {
        None => Ok(()),
        Some(_) => Err(Error::new(Kind::Refused, "collect", "the repository")
            .because("another collect is at work, or died a short time ago")
            .hint("it ends by itself; try again later")
            .into()),
    }
}

/// The instant now: every lease that has begun is below it.
pub(super) async fn mark(connection: &mut SqliteConnection) -> Result<Mark, Failure> {
    let last: Option<i64> =
        sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'lease'")
            .fetch_optional(connection)
            .await?;
    Ok(Mark(last.unwrap_or(0) + 1))
}

/// How many leases of work are alive that began before a mark.
pub(super) async fn alive_before(
    connection: &mut SqliteConnection,
    now: Timestamp,
    mark: Mark,
) -> Result<u64, Failure> {
    let query = "SELECT count(*) FROM lease WHERE purpose = ?1 AND id < ?2 AND expires > ?3";
    Ok(sqlx::query_scalar(query)
        .bind(Purpose::Work as i64)
        .bind(mark.0)
        .bind(now.0)
        .fetch_one(connection)
        .await?)
}

/// Makes a lease that is alive live from now.
pub(super) async fn renew(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    time_to_live: Duration,
) -> Result<(), Failure> {
    require_alive(connection, lease, now, "renew").await?;
    sqlx::query("UPDATE lease SET expires = ?2 WHERE id = ?1")
        .bind(lease.0)
        .bind(now.plus(time_to_live).0)
        .execute(connection)
        .await?;
    Ok(())
}

/// `Stale` unless a lease is alive.
pub(super) async fn require_alive(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    operation: &'static str,
) -> Result<(), Failure> {
    let alive: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM lease WHERE id = ?1 AND expires > ?2")
            .bind(lease.0)
            .bind(now.0)
            .fetch_optional(connection)
            .await?;
    if alive.is_some() {
        return Ok(());
    }
    Err(Error::new(Kind::Stale, operation, format!("lease {}", lease.0))
        .because("the lease has ended or expired")
        .hint("the work took longer than its lease; start it again")
        .into())
}

/// Ends a lease. The packs put under it are nobody's already, or removed.
pub(super) async fn end(connection: &mut SqliteConnection, lease: LeaseId) -> Result<(), Failure> {
    sqlx::query("DELETE FROM lease WHERE id = ?1").bind(lease.0).execute(connection).await?;
    Ok(())
}

/// A pack put under a lease that is being given up, with the keys of its rows.
pub(super) struct Abandoned {
    pack: i64,
    rows: Rows,
}

/// Finds what abandoning a lease would remove. Reads all entries and hooks, because an index by pack
/// would double their size and is wanted here only; so it is done outside the writing transaction.
/// What packs of a lease hold does not change in between.
pub(super) async fn find_abandoned(
    connection: &mut SqliteConnection,
    lease: LeaseId,
) -> Result<Vec<Abandoned>, Failure> {
    let packs: Vec<i64> = sqlx::query_scalar("SELECT id FROM pack WHERE lease = ?1 ORDER BY id")
        .bind(lease.0)
        .fetch_all(&mut *connection)
        .await?;
    let mut found: Vec<Abandoned> =
        packs.into_iter().map(|pack| Abandoned { pack, rows: Rows::default() }).collect();
    if found.is_empty() {
        return Ok(found);
    }
    for (table, key) in [("entry", "digest"), ("hook", "hook")] {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT pack, {key} FROM {table}
              WHERE pack IN (SELECT id FROM pack WHERE lease = ?1)"
        )))
        .bind(lease.0)
        .fetch_all(&mut *connection)
        .await?;
        for (pack, key) in rows {
            // A pack added a moment ago, by someone who uses a lease that he abandons.
            let Ok(index) = found.binary_search_by_key(&pack, |abandoned| abandoned.pack) else {
                continue;
            };
            let keys = match table {
                "entry" => &mut found[index].rows.digests,
                _ => &mut found[index].rows.hooks,
            };
            keys.bytes.extend_from_slice(&key);
            keys.count += 1;
        }
    }
    Ok(found)
}

/// Ends a lease and removes the packs that were put under it and that nobody has claimed since.
/// Returns the names of the removed.
pub(super) async fn abandon(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    found: &[Abandoned],
) -> Result<Vec<String>, Failure> {
    end(connection, lease).await?;
    let mut removed = Vec::new();
    for Abandoned { pack, rows } in found {
        let gone: Option<(Vec<u8>, i64)> =
            sqlx::query_as("DELETE FROM pack WHERE id = ?1 AND lease = ?2 RETURNING name, realm")
                .bind(pack)
                .bind(lease.0)
                .fetch_optional(&mut *connection)
                .await?;
        let Some((name, realm)) = gone else { continue };
        rows.remove(connection, realm, *pack).await?;
        removed.push(pack_name(&name)?);
    }
    Ok(removed)
}
