//! What keeps layouts in the repository: versions and holds.

use std::time::Duration;

use env::Timestamp;
use model::{
    ChunkDigest, ContentDigest, Error, ImageName, Kind, LayoutDigest, Result, VersionId,
    VersionNumber,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row, SqliteConnection};

use super::failure::Failure;
use super::versions::{damaged, digest, find, version_number};
use super::{boot_sets, documents};
use crate::records::{EntryDigest, HoldRecord, Revision, Root, VersionRecord};

/// The revision of the change that is being made.
pub(super) async fn next_revision(connection: &mut SqliteConnection) -> Result<i64, Failure> {
    Ok(sqlx::query_scalar("UPDATE revision SET last = last + 1 RETURNING last")
        .fetch_one(connection)
        .await?)
}

/// Roots after a revision, ascending. Those of one revision come together: a change of layout
/// gives many versions the same one.
pub(super) async fn after(
    connection: &mut SqliteConnection,
    after: Revision,
    max: usize,
) -> Result<Vec<Root>, Failure> {
    let query = "
        WITH root (name, number, holder, content, layout, record, revision) AS (
            SELECT i.name, v.number, NULL, v.content, v.layout, v.record, v.revision
              FROM version v JOIN image i ON i.id = v.image WHERE v.revision > ?1
             UNION ALL
            SELECT image, number, holder, content, layout, NULL, revision
              FROM hold WHERE revision > ?1)
        SELECT *, (SELECT group_concat(hex(b.digest), ' ') FROM boot_set b
                    WHERE b.content = root.content) AS boot_sets,
                  (SELECT group_concat(hex(d.digest), ' ') FROM document d
                    WHERE d.content = root.content) AS documents
          FROM root
         WHERE revision <= coalesce(
                   (SELECT revision FROM root ORDER BY revision LIMIT 1 OFFSET ?2),
                   9223372036854775807)
         ORDER BY revision";
    let last = i64::try_from(max.max(1) - 1).unwrap_or(i64::MAX);
    Ok(sqlx::query_as(query).bind(after.0).bind(last).fetch_all(connection).await?)
}

/// The newest layout of a content.
pub(super) async fn layout_of(
    connection: &mut SqliteConnection,
    content: ContentDigest,
) -> Result<Option<LayoutDigest>, Failure> {
    let query = "
        SELECT layout FROM (SELECT layout, revision FROM version WHERE content = ?1
                             UNION ALL
                            SELECT layout, revision FROM hold WHERE content = ?1)
         ORDER BY revision DESC LIMIT 1";
    let found: Option<Vec<u8>> = sqlx::query_scalar(query)
        .bind(content.as_bytes().as_slice())
        .fetch_optional(connection)
        .await?;
    Ok(found.map(|bytes| digest(&bytes)).transpose()?.map(LayoutDigest))
}

/// Holds a version; forgets holds that have expired.
pub(super) async fn hold(
    connection: &mut SqliteConnection,
    version: &VersionId,
    holder: &str,
    now: Timestamp,
    time_to_live: Option<Duration>,
) -> Result<VersionRecord, Failure> {
    let record = find(connection, &version.clone().into()).await?;
    sqlx::query("DELETE FROM hold WHERE expires <= ?1 OR holder = ?2")
        .bind(now.0)
        .bind(holder)
        .execute(&mut *connection)
        .await?;
    let revision = next_revision(connection).await?;
    sqlx::query(
        "INSERT INTO hold (holder, image, number, content, layout, revision, expires)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .bind(holder)
    .bind(version.image.as_str())
    .bind(version.version.get().cast_signed())
    .bind(record.facts.content.as_bytes().as_slice())
    .bind(record.facts.layout.as_bytes().as_slice())
    .bind(revision)
    .bind(time_to_live.map(|time_to_live| now.plus(time_to_live).0))
    .execute(connection)
    .await?;
    Ok(record)
}

/// Makes a hold live from now.
pub(super) async fn renew(
    connection: &mut SqliteConnection,
    holder: &str,
    now: Timestamp,
    time_to_live: Duration,
) -> Result<(), Failure> {
    let renewed = sqlx::query("UPDATE hold SET expires = ?2 WHERE holder = ?1")
        .bind(holder)
        .bind(now.plus(time_to_live).0)
        .execute(connection)
        .await?;
    if renewed.rows_affected() > 0 {
        return Ok(());
    }
    Err(Error::new(Kind::NotFound, "renew the hold", holder)
        .because("it has ended")
        .hint("hold the version again, if it is still there")
        .into())
}

/// Ends a hold.
pub(super) async fn release(
    connection: &mut SqliteConnection,
    holder: &str,
) -> Result<(), Failure> {
    sqlx::query("DELETE FROM hold WHERE holder = ?1")
        .bind(holder)
        .execute(&mut *connection)
        .await?;
    forget_unused(connection).await
}

/// Forgets what is kept for the sake of contents that neither a version nor a hold has.
pub(super) async fn forget_unused(connection: &mut SqliteConnection) -> Result<(), Failure> {
    boot_sets::forget_unused(&mut *connection).await?;
    documents::forget_unused(connection).await
}

/// Makes the roots of a content roots anew: what they keep has changed. Returns how many there are.
pub(super) async fn touch(
    connection: &mut SqliteConnection,
    content: ContentDigest,
) -> Result<u64, Failure> {
    let revision = next_revision(connection).await?;
    let mut of_content = 0;
    for table in ["version", "hold"] {
        let query = format!("UPDATE {table} SET revision = ?2 WHERE content = ?1");
        let touched = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(content.as_bytes().as_slice())
            .bind(revision)
            .execute(&mut *connection)
            .await?;
        of_content += touched.rows_affected();
    }
    Ok(of_content)
}

/// The holds that have not expired. Expired ones stay roots until they are forgotten.
pub(super) async fn holds(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<Vec<HoldRecord>, Failure> {
    let query = "SELECT holder, image, number, content, layout, expires FROM hold
                  WHERE expires IS NULL OR expires > ?1 ORDER BY holder";
    Ok(sqlx::query_as(query).bind(now.0).fetch_all(connection).await?)
}

/// Forgets the holds that have expired.
pub(super) async fn forget_expired(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<(), Failure> {
    sqlx::query("DELETE FROM hold WHERE expires <= ?1").bind(now.0).execute(connection).await?;
    Ok(())
}

fn version(image: &str, number: i64) -> sqlx::Result<VersionId> {
    let image = ImageName::new(image).map_err(damaged)?;
    let version: VersionNumber = version_number(number)?;
    Ok(VersionId { image, version })
}

/// Digests out of the hexadecimal words that SQLite makes of them.
fn digests(joined: Option<&str>) -> sqlx::Result<Vec<EntryDigest>> {
    let parse = |word: &str| word.to_lowercase().parse::<ChunkDigest>().map_err(damaged);
    joined.unwrap_or_default().split_ascii_whitespace().map(|w| Ok(parse(w)?.0)).collect()
}

impl FromRow<'_, SqliteRow> for Root {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let record: Option<Vec<u8>> = row.try_get("record")?;
        Ok(Root {
            version: version(row.try_get("name")?, row.try_get("number")?)?,
            holder: row.try_get("holder")?,
            content: ContentDigest(digest(row.try_get("content")?)?),
            layout: LayoutDigest(digest(row.try_get("layout")?)?),
            record: record.map(|bytes| digest(&bytes)).transpose()?,
            boot_sets: digests(row.try_get("boot_sets")?)?,
            documents: digests(row.try_get("documents")?)?,
            revision: Revision(row.try_get("revision")?),
        })
    }
}

impl FromRow<'_, SqliteRow> for HoldRecord {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(HoldRecord {
            holder: row.try_get("holder")?,
            version: version(row.try_get("image")?, row.try_get("number")?)?,
            content: ContentDigest(digest(row.try_get("content")?)?),
            layout: LayoutDigest(digest(row.try_get("layout")?)?),
            expires: row.try_get::<Option<i64>, _>("expires")?.map(Timestamp),
        })
    }
}
