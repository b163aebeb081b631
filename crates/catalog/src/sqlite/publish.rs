//! The transactions that make versions exist.

use env::Timestamp;
use model::{Error, ImageName, Kind, Result, Selector, VersionId};
use sqlx::SqliteConnection;

use super::batch::{Batch, asked};
use super::connections::integer;
use super::failure::Failure;
use super::leases;
use super::versions::{find, number_of_kind, put_tag};
use crate::records::{LeaseId, PackId, Publication, VersionFacts, VersionRecord};

const PUBLISH: &str = "publish";

/// Makes a version exist, adopts the packs it refers to, ends the lease.
pub(super) async fn publish(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    publication: &Publication,
) -> Result<VersionRecord, Failure> {
    leases::require_alive(connection, lease, now, PUBLISH).await?;
    if publication.image_must_be_new {
        require_new(connection, &publication.image, PUBLISH).await?;
    }
    adopt(connection, lease, publication).await?;
    let (image, number) =
        insert(connection, &publication.image, &publication.facts, now, PUBLISH).await?;
    if let Some(tag) = &publication.tag {
        put_tag(connection, image, number, tag).await?;
    }
    leases::end(connection, lease).await?;
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
    let facts = VersionFacts {
        parent: Some(from.clone()),
        origin: format!("clone {from}"),
        ..source.facts
    };
    insert(connection, image, &facts, now, "clone to").await?;
    newest(connection, image).await
}

/// Checks that every pack a publication names exists, and makes it and the packs put under the
/// lease nobody's: from now on no lease that is abandoned takes them along, and collect spares them.
async fn adopt(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    publication: &Publication,
) -> Result<(), Failure> {
    let named = Batch::of_integers(publication.packs.iter().map(|&PackId(pack)| pack));
    let missing: Option<i64> = sqlx::query_scalar(asked!(
        "?2",
        "SELECT CAST(substr(?1, i * 20 + 1, 20) AS INTEGER) AS named FROM asked
          WHERE NOT EXISTS (SELECT 1 FROM pack WHERE id = named) LIMIT 1"
    ))
    .bind(&named.bytes)
    .bind(named.count)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(pack) = missing {
        return Err(Error::new(Kind::Stale, PUBLISH, publication.image.as_str())
            .because(format!("pack {pack}, to which the version refers, was removed meanwhile"))
            .hint("start again: what is missing will be stored anew")
            .into());
    }
    // Only rows that change are written: most packs that a publication names were adopted long ago.
    sqlx::query(asked!(
        "?2",
        "UPDATE pack SET lease = NULL, condemned = 0
          WHERE id IN (SELECT CAST(substr(?1, i * 20 + 1, 20) AS INTEGER) FROM asked)
            AND (lease IS NOT NULL OR condemned <> 0)"
    ))
    .bind(&named.bytes)
    .bind(named.count)
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE pack SET lease = NULL, condemned = 0 WHERE lease = ?1")
        .bind(lease.0)
        .execute(connection)
        .await?;
    Ok(())
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

/// Inserts the next version of an image. Returns the database's number of the image, and the
/// version's number.
async fn insert(
    connection: &mut SqliteConnection,
    image: &ImageName,
    facts: &VersionFacts,
    now: Timestamp,
    operation: &'static str,
) -> Result<(i64, i64), Failure> {
    let length = integer(facts.length, operation, image.as_str())?;
    let data_len = integer(facts.data_len, operation, image.as_str())?;
    let (id, number): (i64, i64) = sqlx::query_as(
        "INSERT INTO image (name, last_version) VALUES (?1, 1)
         ON CONFLICT (name) DO UPDATE SET last_version = last_version + 1
         RETURNING id, last_version",
    )
    .bind(image.as_str())
    .fetch_one(&mut *connection)
    .await?;
    let parent = facts.parent.as_ref();
    sqlx::query(
        "INSERT INTO version (image, number, kind, length, data_len, content, layout,
                              parent_image, parent_number, origin, created)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
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
    .execute(connection)
    .await?;
    Ok((id, number))
}

async fn newest(
    connection: &mut SqliteConnection,
    image: &ImageName,
) -> Result<VersionRecord, Failure> {
    let latest = model::Reference { image: image.clone(), selector: Selector::Latest };
    find(connection, &latest).await
}
