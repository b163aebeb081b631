//! Packs, where their entries lie, and which hooks lead to them.

use env::Timestamp;
use model::digest::{DIGEST_LEN, Hook};
use model::{Error, Kind, Realm, Result};
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row, SqliteConnection};

use super::batch::{Batch, INTEGER_WIDTH, asked};
use super::connections::integer;
use super::failure::Failure;
use super::leases::require_alive;
use super::versions::damaged;
use crate::records::{
    EntryDigest, EntryRecord, LeaseId, Location, Mark, NewPack, PackId, PackRecord,
};

const ADD: &str = "add the pack";

/// Everything of a pack in one row; the condition comes after.
macro_rules! pack_query {
    ($condition:literal) => {
        concat!("SELECT id, name, stored_len, entry_count, lease, condemned FROM pack ", $condition)
    };
}

/// Bytes of a row of entries on its way in: the digest, then offset, stored length, plain length,
/// encoding and kind. The statement that cuts it up says the same numbers.
const ENTRY_ROW_LEN: usize = DIGEST_LEN + 5 * INTEGER_WIDTH;
const _: () = assert!(ENTRY_ROW_LEN == 132 && INTEGER_WIDTH == 20);

/// What becomes of an entry whose digest is known already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It keeps its place, which is claimed for the lease.
    Stays,
    /// Its place is in the new pack from now on, which is nobody's.
    Moves,
}

/// Makes a pack's entries and hooks visible.
pub(super) async fn add(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    pack: &NewPack,
    known: Known,
) -> Result<PackId, Failure> {
    let entries = entry_batch(pack)?;
    let hooks = Batch::of_bytes(pack.hooks.iter().map(|hook| hook.0.to_le_bytes()));
    require_alive(connection, lease, now, ADD).await?;
    let realm = realm_made(connection, &pack.realm).await?;
    let owner = (known == Known::Stays).then_some(lease);
    let id = insert_pack(connection, owner, realm, pack).await?;
    let statement = match known {
        Known::Stays => INSERT_ENTRIES_THAT_STAY,
        Known::Moves => INSERT_ENTRIES_THAT_MOVE,
    };
    let written = sqlx::query(statement)
        .bind(&entries.bytes)
        .bind(entries.count)
        .bind(realm)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    if written.rows_affected() < pack.entries.len() as u64 {
        let digests = Batch::of_bytes(pack.entries.iter().map(|entry| entry.digest));
        claim_packs_of(connection, lease, realm, &digests).await?;
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

macro_rules! insert_entries {
    ($on_conflict:literal) => {
        asked!(
            "?2",
            concat!(
                "INSERT INTO entry
                        (realm, digest, pack, offset, stored_len, plain_len, encoding, kind)
                 SELECT ?3, substr(?1, i * 132 + 1, 32), ?4,
                        CAST(substr(?1, i * 132 + 33, 20) AS INTEGER),
                        CAST(substr(?1, i * 132 + 53, 20) AS INTEGER),
                        CAST(substr(?1, i * 132 + 73, 20) AS INTEGER),
                        CAST(substr(?1, i * 132 + 93, 20) AS INTEGER),
                        CAST(substr(?1, i * 132 + 113, 20) AS INTEGER)
                   FROM asked WHERE true
                     ON CONFLICT (realm, digest) DO UPDATE
                    SET pack = excluded.pack, offset = excluded.offset,
                        stored_len = excluded.stored_len, plain_len = excluded.plain_len,
                        encoding = excluded.encoding, kind = excluded.kind ",
                $on_conflict
            )
        )
    };
}

/// A row whose pack is gone, which the removal of a damaged pack may leave, is no place.
const INSERT_ENTRIES_THAT_STAY: &str =
    insert_entries!("WHERE NOT EXISTS (SELECT 1 FROM pack WHERE id = entry.pack)");
const INSERT_ENTRIES_THAT_MOVE: &str = insert_entries!("");

async fn insert_pack(
    connection: &mut SqliteConnection,
    lease: Option<LeaseId>,
    realm: i64,
    pack: &NewPack,
) -> Result<i64, Failure> {
    let name = pack_name_bytes(&pack.name)?;
    let lens = [pack.stored_len, pack.data_len, pack.data_stored_len]
        .map(|len| integer(len, ADD, &pack.name));
    let [stored_len, data_len, data_stored_len] = lens;
    let id: Option<i64> = sqlx::query_scalar(
        "INSERT INTO pack (name, realm, lease, stored_len, data_len, data_stored_len,
                           entry_count, hook_count)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (name) DO NOTHING RETURNING id",
    )
    .bind(name.as_slice())
    .bind(realm)
    .bind(lease.map(|lease| lease.0))
    .bind(stored_len?)
    .bind(data_len?)
    .bind(data_stored_len?)
    .bind(integer(pack.entries.len() as u64, ADD, &pack.name)?)
    .bind(integer(pack.hooks.len() as u64, ADD, &pack.name)?)
    .fetch_optional(connection)
    .await?;
    id.ok_or_else(|| {
        Error::new(Kind::Exists, ADD, &pack.name)
            .because("the catalog knows a pack of this name")
            .into()
    })
}

/// Makes the packs nobody's, and condemned no longer, that hold entries which a lease refers to.
async fn claim_packs_of(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    realm: i64,
    digests: &Batch,
) -> Result<(), Failure> {
    sqlx::query(asked!(
        "?2",
        "UPDATE pack SET lease = NULL, condemned = NULL
          WHERE (condemned IS NOT NULL OR lease IS NOT NULL AND lease <> ?4)
            AND id IN (SELECT e.pack FROM asked
                        CROSS JOIN entry e ON e.realm = ?3
                                          AND e.digest = substr(?1, i * 32 + 1, 32))"
    ))
    .bind(&digests.bytes)
    .bind(digests.count)
    .bind(realm)
    .bind(lease.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Claims entries in a transaction that writes, and says where they lie.
pub(super) async fn claim(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    realm: &Realm,
    digests: &[EntryDigest],
) -> Result<Vec<Option<Location>>, Failure> {
    require_alive(connection, lease, now, "use what the repository has").await?;
    let id = realm_made(connection, realm).await?;
    let wanted = Batch::of_bytes(digests.iter().copied());
    claim_packs_of(connection, lease, id, &wanted).await?;
    locate(connection, realm, digests).await
}

/// The keys of a pack's rows.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) digests: Batch,
    pub(super) hooks: Batch,
}

impl Rows {
    /// Removes the rows that have these keys and lead to the pack.
    pub(super) async fn remove(
        &self,
        connection: &mut SqliteConnection,
        realm: i64,
        pack: i64,
    ) -> Result<(), Failure> {
        sqlx::query(asked!(
            "?2",
            "DELETE FROM entry WHERE realm = ?3 AND pack = ?4
                AND digest IN (SELECT substr(?1, i * 32 + 1, 32) FROM asked)"
        ))
        .bind(&self.digests.bytes)
        .bind(self.digests.count)
        .bind(realm)
        .bind(pack)
        .execute(&mut *connection)
        .await?;
        sqlx::query(asked!(
            "?2",
            "DELETE FROM hook WHERE realm = ?3 AND pack = ?4
                AND hook IN (SELECT substr(?1, i * 8 + 1, 8) FROM asked)"
        ))
        .bind(&self.hooks.bytes)
        .bind(self.hooks.count)
        .bind(realm)
        .bind(pack)
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Removes the rows of entries, wherever they lead.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    realm: &Realm,
    digests: &[EntryDigest],
) -> Result<(), Failure> {
    require_alive(connection, lease, now, "forget entries").await?;
    let wanted = Batch::of_bytes(digests.iter().copied());
    sqlx::query(asked!(
        "?2",
        "DELETE FROM entry WHERE realm = (SELECT id FROM realm WHERE prefix = ?3)
            AND digest IN (SELECT substr(?1, i * 32 + 1, 32) FROM asked)"
    ))
    .bind(&wanted.bytes)
    .bind(wanted.count)
    .bind(realm.as_str())
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
    Ok(look_up(connection, None, realm, digests).await?.places)
}

/// What a look-up found.
pub(super) struct LookedUp {
    /// Where the entries lie, in the order asked.
    pub(super) places: Vec<Option<Location>>,
    /// True where one lies in a pack that is condemned, or under another's lease.
    pub(super) must_be_claimed: bool,
}

/// Looks entries up for the holder of a lease, in one statement: places and claims are of one state.
pub(super) async fn look_up(
    connection: &mut SqliteConnection,
    lease: Option<LeaseId>,
    realm: &Realm,
    digests: &[EntryDigest],
) -> Result<LookedUp, Failure> {
    let wanted = Batch::of_bytes(digests.iter().copied());
    type Row = (i64, i64, Vec<u8>, u64, u32, u32, u8, u8, bool);
    let rows: Vec<Row> = sqlx::query_as(asked!(
        "?2",
        "SELECT i, e.pack, p.name, e.offset, e.stored_len, e.plain_len, e.encoding, e.kind,
                p.condemned IS NOT NULL OR p.lease IS NOT NULL AND p.lease IS NOT ?4
           FROM asked
          CROSS JOIN entry e ON e.realm = (SELECT id FROM realm WHERE prefix = ?3)
                            AND e.digest = substr(?1, i * 32 + 1, 32)
           JOIN pack p ON p.id = e.pack"
    ))
    .bind(wanted.bytes)
    .bind(wanted.count)
    .bind(realm.as_str())
    .bind(lease.map(|lease| lease.0))
    .fetch_all(connection)
    .await?;
    let mut found = LookedUp { places: vec![None; digests.len()], must_be_claimed: false };
    for (index, pack, name, offset, stored_len, plain_len, encoding, kind, others) in rows {
        let index = usize::try_from(index).map_err(damaged)?;
        let digest = digests[index];
        found.must_be_claimed |= others;
        found.places[index] = Some(Location {
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
                                            JOIN pack p ON p.id = n.pack AND p.condemned IS NULL
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
    let found: Option<PackRecord> =
        sqlx::query_as(pack_query!("WHERE id = ?1")).bind(id.0).fetch_optional(connection).await?;
    found.ok_or_else(|| {
        Error::new(Kind::NotFound, "find the pack", id.0.to_string())
            .because("the catalog does not know it, or no longer")
            .into()
    })
}

/// All packs, by number.
pub(super) async fn all(connection: &mut SqliteConnection) -> Result<Vec<PackRecord>, Failure> {
    Ok(sqlx::query_as(pack_query!("ORDER BY id")).fetch_all(connection).await?)
}

impl FromRow<'_, SqliteRow> for PackRecord {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(PackRecord {
            id: PackId(row.try_get("id")?),
            name: pack_name(row.try_get("name")?)?,
            stored_len: row.try_get("stored_len")?,
            entry_count: row.try_get("entry_count")?,
            lease: row.try_get::<Option<i64>, _>("lease")?.map(LeaseId),
            condemned: row.try_get::<Option<i64>, _>("condemned")?.map(Mark),
        })
    }
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
