//! What collect asks for: all entries, marks upon packs, removal.
//!
//! **Invariants**: a pack is condemned only when no live lease has put it; it is forgotten only while
//! it is condemned still and no lease of work is alive that had begun before its mark.

use env::Timestamp;
use model::digest::DIGEST_LEN;
use model::{Realm, Result};
use sqlx::SqliteConnection;

use super::batch::{Batch, asked};
use super::failure::Failure;
use super::leases::{Purpose, mark, require_alive};
use super::packs::{Rows, pack_name};
use super::roots;
use super::versions::{damaged, digest};
use crate::records::{Doomed, EntryDigest, EntryRecord, LeaseId, Location, Mark, PackId};

const COLLECT: &str = "collect";

/// Entries in ascending order of realm and digest.
pub(super) async fn entries(
    connection: &mut SqliteConnection,
    after: Option<(&Realm, EntryDigest)>,
    max: usize,
) -> Result<Vec<(Realm, Location)>, Failure> {
    let (prefix, last) = match &after {
        Some((realm, digest)) => (Some(realm.as_str()), digest.as_slice()),
        None => (None, &[][..]),
    };
    type Row = (String, Vec<u8>, i64, Vec<u8>, u64, u32, u32, u8, u8);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT r.prefix, e.digest, e.pack, p.name, e.offset, e.stored_len, e.plain_len,
                e.encoding, e.kind
           FROM entry e JOIN realm r ON r.id = e.realm JOIN pack p ON p.id = e.pack
          WHERE (e.realm, e.digest) >
                (coalesce((SELECT id FROM realm WHERE prefix = ?1), -1), ?2)
          ORDER BY e.realm, e.digest LIMIT ?3",
    )
    .bind(prefix)
    .bind(last)
    .bind(i64::try_from(max).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    let place =
        |(prefix, bytes, pack, name, offset, stored_len, plain_len, encoding, kind): Row| {
            let digest: [u8; DIGEST_LEN] = digest(&bytes)?;
            let entry = EntryRecord { digest, offset, stored_len, plain_len, encoding, kind };
            let location = Location { pack: PackId(pack), pack_name: pack_name(&name)?, entry };
            Ok((Realm::new(&prefix).map_err(damaged)?, location))
        };
    Ok(rows.into_iter().map(place).collect::<sqlx::Result<_>>()?)
}

/// Condemns packs.
pub(super) async fn condemn(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    packs: &[PackId],
) -> Result<Mark, Failure> {
    require_alive(connection, lease, now, COLLECT).await?;
    let mark = mark(connection).await?;
    let packs = Batch::of_integers(packs.iter().map(|pack| pack.0));
    sqlx::query(asked!(
        "?2",
        "UPDATE pack SET condemned = ?3
          WHERE id IN (SELECT CAST(substr(?1, i * 20 + 1, 20) AS INTEGER) FROM asked)
            AND condemned IS NULL
            AND (lease IS NULL
                 OR NOT EXISTS (SELECT 1 FROM lease l WHERE l.id = pack.lease AND l.expires > ?4))"
    ))
    .bind(&packs.bytes)
    .bind(packs.count)
    .bind(mark.0)
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(mark)
}

/// Takes the mark from packs, and makes them nobody's.
pub(super) async fn spare(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    packs: &[PackId],
) -> Result<(), Failure> {
    require_alive(connection, lease, now, COLLECT).await?;
    let packs = Batch::of_integers(packs.iter().map(|pack| pack.0));
    sqlx::query(asked!(
        "?2",
        "UPDATE pack SET condemned = NULL, lease = NULL
          WHERE id IN (SELECT CAST(substr(?1, i * 20 + 1, 20) AS INTEGER) FROM asked)
            AND condemned IS NOT NULL"
    ))
    .bind(&packs.bytes)
    .bind(packs.count)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets packs that are condemned still. Returns their names.
pub(super) async fn remove(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    packs: &[Doomed],
) -> Result<Vec<String>, Failure> {
    require_alive(connection, lease, now, COLLECT).await?;
    roots::forget_expired(connection, now).await?;
    let mut removed = Vec::new();
    for doomed in packs {
        let gone: Option<(Vec<u8>, i64)> = sqlx::query_as(
            "DELETE FROM pack
              WHERE id = ?1 AND condemned IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM lease l
                                 WHERE l.purpose = ?2 AND l.id < pack.condemned AND l.expires > ?3)
             RETURNING name, realm",
        )
        .bind(doomed.pack.0)
        .bind(Purpose::Work as i64)
        .bind(now.0)
        .fetch_optional(&mut *connection)
        .await?;
        let Some((name, realm)) = gone else { continue };
        let rows = Rows {
            digests: Batch::of_bytes(doomed.entries.iter().copied()),
            hooks: Batch::of_bytes(doomed.hooks.iter().map(|hook| hook.0.to_le_bytes())),
        };
        rows.remove(connection, realm, doomed.pack.0).await?;
        removed.push(pack_name(&name)?);
    }
    Ok(removed)
}
