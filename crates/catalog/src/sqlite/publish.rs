//! The transactions that make versions exist.

use env::Timestamp;
use model::{
    ContentDigest, Error, ImageName, Kind, LayoutDigest, Result, Selector, VersionId, VersionKind,
    VersionNumber,
};
use sqlx::SqliteConnection;

use super::connections::integer;
use super::failure::Failure;
use super::versions::{find, number_of_kind, put_tag};
use super::{leases, roots};
use crate::records::{Condition, EntryDigest, LeaseId, Publication, VersionFacts, VersionRecord};

const PUBLISH: &str = "publish";

/// Makes a version exist and ends the lease.
pub(super) async fn publish(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    publication: &Publication,
) -> Result<VersionRecord, Failure> {
    leases::require_alive(connection, lease, now, PUBLISH).await?;
    let version = add(connection, lease, now, publication, &publication.facts).await?;
    leases::end(connection, lease).await?;
    Ok(version)
}

/// Makes a disk exist, and the machine that stands on it.
pub(super) async fn publish_machine(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    [disk, machine]: [&Publication; 2],
) -> Result<[VersionRecord; 2], Failure> {
    leases::require_alive(connection, lease, now, PUBLISH).await?;
    let stands_on = add(connection, lease, now, disk, &disk.facts).await?;
    let facts = VersionFacts { parent: Some(stands_on.id.clone()), ..machine.facts.clone() };
    let booted = add(connection, lease, now, machine, &facts).await?;
    leases::end(connection, lease).await?;
    Ok([stands_on, booted])
}

/// Makes a version exist, and the packs of the lease nobody's.
async fn add(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    publication: &Publication,
    facts: &VersionFacts,
) -> Result<VersionRecord, Failure> {
    require_base(connection, publication).await?;
    match publication.condition {
        Condition::Any => {}
        Condition::NewImage => require_new(connection, &publication.image, PUBLISH).await?,
        Condition::LatestIs(number) => {
            require_latest(connection, &publication.image, number).await?;
        }
    }
    release_packs(connection, lease).await?;
    let version = NewVersion {
        image: &publication.image,
        facts,
        record: publication.record,
        operation: PUBLISH,
    };
    let (image, number) = version.insert(connection, now).await?;
    if let Some(tag) = &publication.tag {
        put_tag(connection, image, number, tag).await?;
    }
    newest(connection, &publication.image).await
}

/// Makes a new image out of a version that exists.
pub(super) async fn clone_version(
    connection: &mut SqliteConnection,
    from: &VersionId,
    image: &ImageName,
    now: Timestamp,
) -> Result<VersionRecord, Failure> {
    let source = find(connection, &from.clone().into()).await?;
    require_new(connection, image, "clone to").await?;
    // A machine's parent is the disk that it stands on, and a copy of it stands there too.
    let parent = match source.facts.kind {
        VersionKind::Machine => source.facts.parent.clone(),
        _ => Some(from.clone()),
    };
    let facts = VersionFacts { parent, origin: format!("clone {from}"), ..source.facts };
    let version = NewVersion { image, facts: &facts, record: None, operation: "clone to" };
    version.insert(connection, now).await?;
    newest(connection, image).await
}

/// Gives the versions and holds of a content a new layout where they have the old one.
pub(super) async fn swap_layout(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    content: ContentDigest,
    [old, new]: [LayoutDigest; 2],
) -> Result<u64, Failure> {
    leases::require_alive(connection, lease, now, "lay out anew").await?;
    let revision = roots::next_revision(connection).await?;
    let mut swapped = 0;
    for table in ["version", "hold"] {
        let done = sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE {table} SET layout = ?3, revision = ?4 WHERE content = ?1 AND layout = ?2"
        )))
        .bind(content.as_bytes().as_slice())
        .bind(old.as_bytes().as_slice())
        .bind(new.as_bytes().as_slice())
        .bind(revision)
        .execute(&mut *connection)
        .await?;
        swapped += done.rows_affected();
    }
    if swapped > 0 {
        release_packs(connection, lease).await?;
    }
    Ok(swapped)
}

/// Says that another entry tells of a version's publication. The version is a root of it from now on.
pub(super) async fn replace_record(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    version: &VersionId,
    [old, new]: [EntryDigest; 2],
) -> Result<(), Failure> {
    let operation = "replace the record";
    leases::require_alive(connection, lease, now, operation).await?;
    let revision = roots::next_revision(connection).await?;
    let replaced = sqlx::query(
        "UPDATE version SET record = ?4, revision = ?5
          WHERE image = (SELECT id FROM image WHERE name = ?1) AND number = ?2 AND record = ?3",
    )
    .bind(version.image.as_str())
    .bind(version.version.get().cast_signed())
    .bind(old.as_slice())
    .bind(new.as_slice())
    .bind(revision)
    .execute(&mut *connection)
    .await?;
    if replaced.rows_affected() == 0 {
        return Err(Error::new(Kind::Stale, operation, version.to_string())
            .because("it is gone, or has another record by now")
            .into());
    }
    release_packs(connection, lease).await
}

/// Makes the packs put under a lease nobody's: from now on something refers to them.
pub(super) async fn release_packs(
    connection: &mut SqliteConnection,
    lease: LeaseId,
) -> Result<(), Failure> {
    sqlx::query("UPDATE pack SET lease = NULL, condemned = NULL WHERE lease = ?1")
        .bind(lease.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Checks that the version that a publication is based on has the layout of which it keeps parts.
///
/// A layout that no version has any more is nothing that collect looks for: what it refers to may be
/// condemned already.
async fn require_base(
    connection: &mut SqliteConnection,
    publication: &Publication,
) -> Result<(), Failure> {
    let Some((base, layout)) = &publication.based_on else { return Ok(()) };
    let unchanged: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM image i JOIN version v ON v.image = i.id
                         WHERE i.name = ?1 AND v.number = ?2 AND v.layout = ?3)",
    )
    .bind(base.image.as_str())
    .bind(base.version.get().cast_signed())
    .bind(layout.as_bytes().as_slice())
    .fetch_one(connection)
    .await?;
    if unchanged {
        return Ok(());
    }
    Err(Error::new(Kind::Stale, PUBLISH, publication.image.as_str())
        .because(format!("{base}, upon which it is made, was removed or laid out anew meanwhile"))
        .hint("start again")
        .into())
}

async fn require_latest(
    connection: &mut SqliteConnection,
    image: &ImageName,
    number: VersionNumber,
) -> Result<(), Failure> {
    let latest: Option<i64> = sqlx::query_scalar(
        "SELECT max(v.number) FROM image i JOIN version v ON v.image = i.id WHERE i.name = ?1",
    )
    .bind(image.as_str())
    .fetch_one(connection)
    .await?;
    if latest == Some(number.get().cast_signed()) {
        return Ok(());
    }
    Err(Error::new(Kind::Stale, PUBLISH, image.as_str())
        .because(format!("version {number} is its latest no longer"))
        .hint("start again")
        .into())
}

async fn require_new(
    connection: &mut SqliteConnection,
    image: &ImageName,
    operation: &'static str,
) -> Result<(), Failure> {
    let exists: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM image i JOIN version v ON v.image = i.id WHERE i.name = ?1)",
    )
    .bind(image.as_str())
    .fetch_one(connection)
    .await?;
    if exists {
        return Err(Error::new(Kind::Exists, operation, image.as_str())
            .because("an image of this name exists already")
            .hint("choose another name, or remove the image first")
            .into());
    }
    Ok(())
}

/// A version on its way into the tables.
struct NewVersion<'a> {
    image: &'a ImageName,
    facts: &'a VersionFacts,
    record: Option<EntryDigest>,
    operation: &'static str,
}

impl NewVersion<'_> {
    /// Inserts the next version of an image. Returns the database's number of the image, and the
    /// version's number.
    async fn insert(
        &self,
        connection: &mut SqliteConnection,
        now: Timestamp,
    ) -> Result<(i64, i64), Failure> {
        let NewVersion { image, facts, .. } = *self;
        let length = integer(facts.length, self.operation, image.as_str())?;
        let data_len = integer(facts.data_len, self.operation, image.as_str())?;
        let (id, number): (i64, i64) = sqlx::query_as(
            "INSERT INTO image (name, last_version) VALUES (?1, 1)
             ON CONFLICT (name) DO UPDATE SET last_version = last_version + 1
             RETURNING id, last_version",
        )
        .bind(image.as_str())
        .fetch_one(&mut *connection)
        .await?;
        let revision = roots::next_revision(connection).await?;
        let parent = facts.parent.as_ref();
        sqlx::query(
            "INSERT INTO version (image, number, kind, length, data_len, content, layout,
                                  parent_image, parent_number, origin, created, record, revision)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )
        .bind(id)
        .bind(number)
        .bind(number_of_kind(facts.kind))
        .bind(length)
        .bind(data_len)
        .bind(facts.content.as_bytes().as_slice())
        .bind(facts.layout.as_bytes().as_slice())
        .bind(parent.map(|parent| parent.image.as_str()))
        .bind(parent.map(|parent| parent.version.get().cast_signed()))
        .bind(&facts.origin)
        .bind(now.0)
        .bind(self.record.as_ref().map(EntryDigest::as_slice))
        .bind(revision)
        .execute(connection)
        .await?;
        Ok((id, number))
    }
}

async fn newest(
    connection: &mut SqliteConnection,
    image: &ImageName,
) -> Result<VersionRecord, Failure> {
    let latest = model::Reference { image: image.clone(), selector: Selector::Latest };
    find(connection, &latest).await
}
