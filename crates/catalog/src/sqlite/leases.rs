//! Leases: what protects packs between their upload and the version that refers to them.
//!
//! ```text
//! begin ── add_pack ── add_pack ── publish      packs adopted: nobody's lease any more
//!              │                └─ abandon      packs removed, or condemned if others may use them
//!              └─ (expires)                     packs stay under a dead lease, for collect
//! ```

use std::time::Duration;

use env::Timestamp;
use model::{Error, Kind, Result};
use sqlx::SqliteConnection;

use super::batch::{Batch, asked};
use super::failure::Failure;
use super::packs::pack_name;
use crate::records::LeaseId;

/// Begins a lease. Forgets leases that have expired: without a row a lease is dead for good.
pub(super) async fn begin(
    connection: &mut SqliteConnection,
    now: Timestamp,
    time_to_live: Duration,
) -> Result<LeaseId, Failure> {
    sqlx::query("DELETE FROM lease WHERE expires <= ?1")
        .bind(now.0)
        .execute(&mut *connection)
        .await?;
    let id = sqlx::query_scalar("INSERT INTO lease (expires) VALUES (?1) RETURNING id")
        .bind(now.plus(time_to_live).0)
        .fetch_one(connection)
        .await?;
    Ok(LeaseId(id))
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

/// Ends a lease. The packs put under it were adopted before, or condemned.
pub(super) async fn end(connection: &mut SqliteConnection, lease: LeaseId) -> Result<(), Failure> {
    sqlx::query("DELETE FROM lease WHERE id = ?1").bind(lease.0).execute(connection).await?;
    Ok(())
}

/// A pack put under a lease that is being given up, with the keys of its rows.
pub(super) struct Abandoned {
    pack: i64,
    realm: i64,
    digests: Batch,
    hooks: Batch,
}

/// Finds what abandoning a lease would remove. Reads all entries and hooks, because an index by pack
/// would double their size and is wanted here only; so it is done outside the writing transaction.
/// What packs of a lease hold does not change in between.
pub(super) async fn find_abandoned(
    connection: &mut SqliteConnection,
    lease: LeaseId,
) -> Result<Vec<Abandoned>, Failure> {
    let packs: Vec<(i64, i64)> =
        sqlx::query_as("SELECT id, realm FROM pack WHERE lease = ?1 AND condemned = 0 ORDER BY id")
            .bind(lease.0)
            .fetch_all(&mut *connection)
            .await?;
    let mut found: Vec<Abandoned> = packs
        .into_iter()
        .map(|(pack, realm)| Abandoned {
            pack,
            realm,
            digests: Batch::default(),
            hooks: Batch::default(),
        })
        .collect();
    if found.is_empty() {
        return Ok(found);
    }
    let of_lease = "(SELECT id FROM pack WHERE lease = ?1 AND condemned = 0)";
    for (table, key) in [("entry", "digest"), ("hook", "hook")] {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT pack, {key} FROM {table} WHERE pack IN {of_lease}"
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
                "entry" => &mut found[index].digests,
                _ => &mut found[index].hooks,
            };
            keys.bytes.extend_from_slice(&key);
            keys.count += 1;
        }
    }
    Ok(found)
}

/// Ends a lease and removes the packs that were put under it, unless another lease is alive, whose
/// holder may be deduplicating against them: then they are condemned, for collect to look at.
/// Returns the names of the removed.
pub(super) async fn abandon(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    found: &[Abandoned],
) -> Result<Vec<String>, Failure> {
    end(connection, lease).await?;
    let others: Option<i64> = sqlx::query_scalar("SELECT 1 FROM lease WHERE expires > ?1 LIMIT 1")
        .bind(now.0)
        .fetch_optional(&mut *connection)
        .await?;
    let mut removed = Vec::new();
    if others.is_none() {
        for abandoned in found {
            removed.extend(remove(connection, lease, abandoned).await?);
        }
    }
    sqlx::query("UPDATE pack SET condemned = 1 WHERE lease = ?1 AND condemned = 0")
        .bind(lease.0)
        .execute(connection)
        .await?;
    Ok(removed)
}

/// Removes a pack that is still this lease's own. Returns its name, or `None` if it no longer is.
async fn remove(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    abandoned: &Abandoned,
) -> Result<Option<String>, Failure> {
    let name: Option<Vec<u8>> = sqlx::query_scalar(
        "DELETE FROM pack WHERE id = ?1 AND lease = ?2 AND condemned = 0 RETURNING name",
    )
    .bind(abandoned.pack)
    .bind(lease.0)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(name) = name else { return Ok(None) };
    sqlx::query(asked!(
        "?2",
        "DELETE FROM entry WHERE realm = ?3 AND pack = ?4
            AND digest IN (SELECT substr(?1, i * 32 + 1, 32) FROM asked)"
    ))
    .bind(&abandoned.digests.bytes)
    .bind(abandoned.digests.count)
    .bind(abandoned.realm)
    .bind(abandoned.pack)
    .execute(&mut *connection)
    .await?;
    sqlx::query(asked!(
        "?2",
        "DELETE FROM hook WHERE realm = ?3 AND pack = ?4
            AND hook IN (SELECT substr(?1, i * 8 + 1, 8) FROM asked)"
    ))
    .bind(&abandoned.hooks.bytes)
    .bind(abandoned.hooks.count)
    .bind(abandoned.realm)
    .bind(abandoned.pack)
    .execute(connection)
    .await?;
    Ok(Some(pack_name(&name)?))
}
