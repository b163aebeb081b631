//! Working sets: which entries tell what guests of a content read first.

use env::Timestamp;
use model::{ContentDigest, Error, Kind, Result};
use sqlx::SqliteConnection;

use super::failure::Failure;
use super::versions::digest;
use super::{leases, publish, roots};
use crate::records::{BootSetRecord, LeaseId};

const SET: &str = "set the working set";

/// Gives a content a working set. Versions and holds of the content are roots anew: what they keep
/// has changed.
pub(super) async fn set(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    set: &BootSetRecord,
) -> Result<(), Failure> {
    leases::require_alive(connection, lease, now, SET).await?;
    if roots::touch(connection, set.content).await? == 0 {
        return Err(Error::new(Kind::NotFound, SET, set.content.to_string())
            .because("no version has this content any more")
            .into());
    }
    sqlx::query(
        "INSERT INTO boot_set (content, name, digest, boots) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (content, name) DO UPDATE
            SET digest = excluded.digest, boots = excluded.boots",
    )
    .bind(set.content.as_bytes().as_slice())
    .bind(&set.name)
    .bind(set.digest.as_slice())
    .bind(i64::from(set.boots))
    .execute(&mut *connection)
    .await?;
    publish::release_packs(connection, lease).await
}

/// The working sets of a content.
pub(super) async fn all(
    connection: &mut SqliteConnection,
    content: ContentDigest,
) -> Result<Vec<BootSetRecord>, Failure> {
    let rows: Vec<(String, Vec<u8>, u32)> =
        sqlx::query_as("SELECT name, digest, boots FROM boot_set WHERE content = ?1 ORDER BY name")
            .bind(content.as_bytes().as_slice())
            .fetch_all(connection)
            .await?;
    let record = |(name, bytes, boots): (String, Vec<u8>, u32)| {
        Ok(BootSetRecord { content, name, digest: digest(&bytes)?, boots })
    };
    Ok(rows.into_iter().map(record).collect::<sqlx::Result<_>>()?)
}

/// Forgets the working sets of contents that neither a version nor a hold has.
pub(super) async fn forget_unused(connection: &mut SqliteConnection) -> Result<(), Failure> {
    sqlx::query(
        "DELETE FROM boot_set
          WHERE NOT EXISTS (SELECT 1 FROM version v WHERE v.content = boot_set.content)
            AND NOT EXISTS (SELECT 1 FROM hold h WHERE h.content = boot_set.content)",
    )
    .execute(connection)
    .await?;
    Ok(())
}
