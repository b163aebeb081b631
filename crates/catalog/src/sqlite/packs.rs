//! Packs, where their entries lie, and which hooks lead to them.

use env::Timestamp;
use model::digest::{DIGEST_LEN, Hook};
use model::{Error, Kind, Realm, Result};
use sqlx::SqliteConnection;

use super::batch::{Batch, INTEGER_WIDTH, asked};
use super::connections::integer;
use super::failure::Failure;
use super::leases::require_alive;
use super::versions::damaged;
use crate::records::{EntryDigest, EntryRecord, LeaseId, Location, NewPack, PackId, PackRecord};

const ADD: &str = "add the pack";

/// Bytes of a row of entries on its way in: the digest, then offset, stored length, plain length,
/// encoding and kind. The statement that cuts it up says the same numbers.
const ENTRY_ROW_LEN: usize = DIGEST_LEN + 5 * INTEGER_WIDTH;
const _: () = assert!(ENTRY_ROW_LEN == 132 && INTEGER_WIDTH == 20);

/// Makes a pack's entries and hooks visible.
pub(super) async fn add(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    pack: &NewPack,
) -> Result<PackId, Failure> {
    let name = pack_name_bytes(&pack.name)?;
    let lens = [pack.stored_len, pack.data_len, pack.data_stored_len]
        .map(|len| integer(len, ADD, &pack.name));
    let [stored_len, data_len, data_stored_len] = lens;
    let entries = entry_batch(pack)?;
    let hooks = Batch::of_bytes(pack.hooks.iter().map(|hook| hook.0.to_le_bytes()));
    require_alive(connection, lease, now, ADD).await?;
    let realm = realm_made(connection, &pack.realm).await?;
    let id: Option<i64> = sqlx::query_scalar(
        "INSERT INTO pack (name, realm, lease, stored_len, data_len, data_stored_len,
                           entry_count, hook_count)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (name) DO NOTHING RETURNING id",
    )
    .bind(name.as_slice())
    .bind(realm)
    .bind(lease.0)
    .bind(stored_len?)
    .bind(data_len?)
    .bind(data_stored_len?)
    .bind(entries.count)
    .bind(hooks.count)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(id) = id else {
        return Err(Error::new(Kind::Exists, ADD, &pack.name)
            .because("the catalog knows a pack of this name")
            .into());
    };
    let inserted = sqlx::query(asked!(
        "?2",
        "INSERT OR IGNORE INTO entry
                (realm, digest, pack, offset, stored_len, plain_len, encoding, kind)
         SELECT ?3, substr(?1, i * 132 + 1, 32), ?4,
                CAST(substr(?1, i * 132 + 33, 20) AS INTEGER),
                CAST(substr(?1, i * 132 + 53, 20) AS INTEGER),
                CAST(substr(?1, i * 132 + 73, 20) AS INTEGER),
                CAST(substr(?1, i * 132 + 93, 20) AS INTEGER),
                CAST(substr(?1, i * 132 + 113, 20) AS INTEGER)
           FROM asked"
    ))
    .bind(&entries.bytes)
    .bind(entries.count)
    .bind(realm)
    .bind(id)
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() < pack.entries.len() as u64 {
        adopt_holders(connection, lease, realm, &entries).await?;
    }
    sqlx::query(asked!(
        "?2",
        "INSERT OR IGNORE INTO hook (realm, hook, pack)
         SELECT ?3, substr(?1, i * 8 + 1, 8), ?4 FROM asked"
    ))
    .bind(&hooks.bytes)
    .bind(hooks.count)
    .bind(realm)
    .bind(id)
    .execute(connection)
    .await?;
    Ok(PackId(id))
}

/// Makes the packs nobody's that hold the places of known entries.
///
/// Whoever brings an entry again will refer to it without naming the pack that it was first in. Were
/// that pack's lease abandoned later, the entry would be lost although a second pack has its bytes.
async fn adopt_holders(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    realm: i64,
    entries: &Batch,
) -> Result<(), Failure> {
    sqlx::query(asked!(
        "?2",
        "UPDATE pack SET lease = NULL, condemned = 0
          WHERE lease IS NOT NULL AND lease <> ?4
            AND id IN (SELECT e.pack FROM asked
                        CROSS JOIN entry e ON e.realm = ?3
                                          AND e.digest = substr(?1, i * 132 + 1, 32))"
    ))
    .bind(&entries.bytes)
    .bind(entries.count)
    .bind(realm)
    .bind(lease.0)
    .execute(connection)
    .await?;
    Ok(())
}

fn entry_batch(pack: &NewPack) -> Result<Batch> {
    let mut batch = Batch::default();
    batch.bytes.reserve(pack.entries.len() * ENTRY_ROW_LEN);
    for entry in &pack.entries {
        batch.bytes.extend_from_slice(&entry.digest);
        batch.integer(integer(entry.offset, ADD, &pack.name)?);
        batch.integer(entry.stored_len.into());
        batch.integer(entry.plain_len.into());
        batch.integer(entry.encoding.into());
        batch.integer(entry.kind.into());
        batch.count += 1;
    }
    Ok(batch)
}

async fn realm_made(connection: &mut SqliteConnection, realm: &Realm) -> Result<i64, Failure> {
    sqlx::query("INSERT OR IGNORE INTO realm (prefix) VALUES (?1)")
        .bind(realm.as_str())
        .execute(&mut *connection)
        .await?;
    Ok(sqlx::query_scalar("SELECT id FROM realm WHERE prefix = ?1")
        .bind(realm.as_str())
        .fetch_one(connection)
        .await?)
}

/// Where entries lie, in the order asked.
pub(super) async fn locate(
    connection: &mut SqliteConnection,
    realm: &Realm,
    digests: &[EntryDigest],
) -> Result<Vec<Option<Location>>, Failure> {
    let wanted = Batch::of_bytes(digests.iter().copied());
    type Row = (i64, i64, Vec<u8>, u64, u32, u32, u8, u8);
    let rows: Vec<Row> = sqlx::query_as(asked!(
        "?2",
        "SELECT i, e.pack, p.name, e.offset, e.stored_len, e.plain_len, e.encoding, e.kind
           FROM asked
          CROSS JOIN entry e ON e.realm = (SELECT id FROM realm WHERE prefix = ?3)
                            AND e.digest = substr(?1, i * 32 + 1, 32)
           JOIN pack p ON p.id = e.pack"
    ))
    .bind(wanted.bytes)
    .bind(wanted.count)
    .bind(realm.as_str())
    .fetch_all(connection)
    .await?;
    let mut found = vec![None; digests.len()];
    for (index, pack, name, offset, stored_len, plain_len, encoding, kind) in rows {
        let index = usize::try_from(index).map_err(damaged)?;
        let digest = digests[index];
        found[index] = Some(Location {
            pack: PackId(pack),
            pack_name: pack_name(&name)?,
            entry: EntryRecord { digest, offset, stored_len, plain_len, encoding, kind },
        });
    }
    Ok(found)
}

/// The packs that hooks lead to, newest first.
pub(super) async fn with_hooks(
    connection: &mut SqliteConnection,
    realm: &Realm,
    hooks: &[Hook],
    max: usize,
) -> Result<Vec<PackId>, Failure> {
    let wanted = Batch::of_bytes(hooks.iter().map(|hook| hook.0.to_le_bytes()));
    let packs: Vec<i64> = sqlx::query_scalar(asked!(
        "?2",
        "SELECT DISTINCT h.pack
           FROM asked
          CROSS JOIN hook h ON h.realm = (SELECT id FROM realm WHERE prefix = ?3)
                           AND h.hook = substr(?1, i * 8 + 1, 8)
                           AND h.pack IN (SELECT n.pack FROM hook n
                                           WHERE n.realm = h.realm AND n.hook = h.hook
                                           ORDER BY n.pack DESC LIMIT ?4)
          ORDER BY h.pack DESC"
    ))
    .bind(wanted.bytes)
    .bind(wanted.count)
    .bind(realm.as_str())
    .bind(i64::try_from(max).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    Ok(packs.into_iter().map(PackId).collect())
}

/// A pack by number.
pub(super) async fn one(
    connection: &mut SqliteConnection,
    id: PackId,
) -> Result<PackRecord, Failure> {
    let found: Option<(i64, Vec<u8>, u64)> =
        sqlx::query_as("SELECT id, name, stored_len FROM pack WHERE id = ?1")
            .bind(id.0)
            .fetch_optional(connection)
            .await?;
    match found {
        Some(row) => Ok(record(row)?),
        None => Err(Error::new(Kind::NotFound, "find the pack", id.0.to_string())
            .because("the catalog does not know it, or no longer")
            .into()),
    }
}

/// All packs, by number.
pub(super) async fn all(connection: &mut SqliteConnection) -> Result<Vec<PackRecord>, Failure> {
    let rows: Vec<(i64, Vec<u8>, u64)> =
        sqlx::query_as("SELECT id, name, stored_len FROM pack ORDER BY id")
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(record).collect::<sqlx::Result<_>>()?)
}

fn record((id, name, stored_len): (i64, Vec<u8>, u64)) -> sqlx::Result<PackRecord> {
    Ok(PackRecord { id: PackId(id), name: pack_name(&name)?, stored_len })
}

/// The 16 bytes of a pack's name, by which it is kept.
fn pack_name_bytes(name: &str) -> Result<[u8; 16]> {
    let lower = name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    match u128::from_str_radix(name, 16) {
        Ok(number) if lower && name.len() == 32 => Ok(number.to_be_bytes()),
        _ => Err(Error::new(Kind::Invalid, ADD, format!("`{name}`"))
            .because("a pack name is 32 hexadecimal digits")),
    }
}

/// The name of a pack, from the 16 bytes by which it is kept.
pub(super) fn pack_name(bytes: &[u8]) -> sqlx::Result<String> {
    let bytes: [u8; 16] = bytes.try_into().map_err(damaged)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
