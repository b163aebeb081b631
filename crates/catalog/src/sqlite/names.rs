//! All names at once: out, to be written down beside the packs; in, to a catalog made anew.

use std::collections::{BTreeMap, HashMap};

use env::Timestamp;
use model::name::LabelKey;
use model::{
    ContentDigest, Error, Kind, LayoutDigest, NamedDocument, NamedHold, NamedImage, NamedVersion,
    Names, Result, TagName, VersionId,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};

use super::connections::integer;
use super::documents;
use super::failure::Failure;
use super::versions::{
    damaged, digest, image_name, kind_from_number, number_of_kind, version_number,
};
use crate::records::DocumentRecord;

const RESTORE: &str = "restore the names to";

/// All names, as of one instant.
pub(super) async fn all(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<Names, Failure> {
    // One transaction: the statements must see one state.
    let mut transaction = connection.begin().await?;
    let names = read(&mut transaction, now).await;
    transaction.rollback().await?;
    names
}

async fn read(connection: &mut SqliteConnection, now: Timestamp) -> Result<Names, Failure> {
    let images: Vec<(i64, String, u64)> =
        sqlx::query_as("SELECT id, name, last_version FROM image ORDER BY name")
            .fetch_all(&mut *connection)
            .await?;
    let mut versions: HashMap<i64, Vec<NamedVersion>> = HashMap::new();
    let query = "SELECT image, number, kind, length, data_len, content, layout, parent_image,
                        parent_number, origin, created, record, attach_count
                   FROM version ORDER BY image, number";
    for row in &sqlx::query(query).fetch_all(&mut *connection).await? {
        versions.entry(row.try_get("image")?).or_default().push(version(row)?);
    }
    let mut tags: HashMap<i64, BTreeMap<TagName, _>> = HashMap::new();
    let query = "SELECT image, name, number FROM tag";
    let rows: Vec<(i64, String, i64)> = sqlx::query_as(query).fetch_all(&mut *connection).await?;
    for (image, tag, number) in rows {
        let tag = TagName::new(&tag).map_err(damaged)?;
        tags.entry(image).or_default().insert(tag, version_number(number)?);
    }
    let mut labels: HashMap<i64, BTreeMap<LabelKey, String>> = HashMap::new();
    let query = "SELECT image, key, value FROM label";
    let rows: Vec<(i64, String, String)> =
        sqlx::query_as(query).fetch_all(&mut *connection).await?;
    for (image, key, value) in rows {
        labels.entry(image).or_default().insert(LabelKey::new(&key).map_err(damaged)?, value);
    }
    let image = |(id, name, last_version): (i64, String, u64)| {
        Ok(NamedImage {
            name: image_name(&name)?,
            last_version,
            labels: labels.remove(&id).unwrap_or_default(),
            tags: tags.remove(&id).unwrap_or_default(),
            versions: versions.remove(&id).unwrap_or_default(),
        })
    };
    let images = images.into_iter().map(image).collect::<sqlx::Result<_>>()?;
    let holds = holds(connection, now).await?;
    let documents = documents::all(connection).await?.into_iter().map(named_document).collect();
    Ok(Names { images, holds, documents })
}

fn version(row: &SqliteRow) -> sqlx::Result<NamedVersion> {
    let parent = match row.try_get::<Option<String>, _>("parent_image")? {
        Some(image) => Some(VersionId {
            image: image_name(&image)?,
            version: version_number(row.try_get("parent_number")?)?,
        }),
        None => None,
    };
    let record: Option<Vec<u8>> = row.try_get("record")?;
    Ok(NamedVersion {
        number: version_number(row.try_get("number")?)?,
        kind: kind_from_number(row.try_get("kind")?)?,
        length: row.try_get("length")?,
        data_len: row.try_get("data_len")?,
        content: ContentDigest(digest(row.try_get("content")?)?),
        layout: LayoutDigest(digest(row.try_get("layout")?)?),
        parent,
        origin: row.try_get("origin")?,
        created_micros: row.try_get("created")?,
        record: record.map(|bytes| digest(&bytes)).transpose()?,
        attach_count: row.try_get("attach_count")?,
    })
}

async fn holds(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<Vec<NamedHold>, Failure> {
    let holds = super::roots::holds(connection, now).await?;
    let named = |hold: crate::records::HoldRecord| NamedHold {
        holder: hold.holder,
        version: hold.version,
        content: hold.content,
        layout: hold.layout,
        expires_micros: hold.expires.map(|expires| expires.0),
    };
    Ok(holds.into_iter().map(named).collect())
}

fn named_document(document: DocumentRecord) -> NamedDocument {
    let DocumentRecord { content, name, digest } = document;
    NamedDocument { content, name, digest }
}

/// Puts names into a catalog that has none.
pub(super) async fn restore(
    connection: &mut SqliteConnection,
    names: &Names,
) -> Result<(), Failure> {
    let used: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM image) OR EXISTS (SELECT 1 FROM hold)")
            .fetch_one(&mut *connection)
            .await?;
    if used {
        return Err(Error::new(Kind::Refused, RESTORE, "the catalog")
            .because("it has names already")
            .into());
    }
    for image in &names.images {
        restore_image(connection, image).await?;
    }
    for hold in &names.holds {
        let revision = super::roots::next_revision(connection).await?;
        sqlx::query(
            "INSERT INTO hold (holder, image, number, content, layout, revision, expires)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(&hold.holder)
        .bind(hold.version.image.as_str())
        .bind(hold.version.version.get().cast_signed())
        .bind(hold.content.as_bytes().as_slice())
        .bind(hold.layout.as_bytes().as_slice())
        .bind(revision)
        .bind(hold.expires_micros)
        .execute(&mut *connection)
        .await?;
    }
    for NamedDocument { content, name, digest } in &names.documents {
        let document = DocumentRecord { content: *content, name: name.clone(), digest: *digest };
        documents::put(connection, &document).await?;
    }
    Ok(())
}

async fn restore_image(
    connection: &mut SqliteConnection,
    image: &NamedImage,
) -> Result<(), Failure> {
    let id: i64 =
        sqlx::query_scalar("INSERT INTO image (name, last_version) VALUES (?1, ?2) RETURNING id")
            .bind(image.name.as_str())
            .bind(integer(image.last_version, RESTORE, image.name.as_str())?)
            .fetch_one(&mut *connection)
            .await?;
    for version in &image.versions {
        restore_version(connection, id, image, version).await?;
    }
    for (tag, number) in &image.tags {
        super::versions::put_tag(connection, id, number.get().cast_signed(), tag).await?;
    }
    for (key, value) in &image.labels {
        sqlx::query("INSERT INTO label (image, key, value) VALUES (?1, ?2, ?3)")
            .bind(id)
            .bind(key.as_str())
            .bind(value)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn restore_version(
    connection: &mut SqliteConnection,
    image: i64,
    named: &NamedImage,
    version: &NamedVersion,
) -> Result<(), Failure> {
    let revision = super::roots::next_revision(connection).await?;
    let of_name = |value| integer(value, RESTORE, named.name.as_str());
    sqlx::query(
        "INSERT INTO version (image, number, kind, length, data_len, content, layout, parent_image,
                              parent_number, origin, created, record, revision, attach_count)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )
    .bind(image)
    .bind(version.number.get().cast_signed())
    .bind(number_of_kind(version.kind))
    .bind(of_name(version.length)?)
    .bind(of_name(version.data_len)?)
    .bind(version.content.as_bytes().as_slice())
    .bind(version.layout.as_bytes().as_slice())
    .bind(version.parent.as_ref().map(|parent| parent.image.as_str()))
    .bind(version.parent.as_ref().map(|parent| parent.version.get().cast_signed()))
    .bind(&version.origin)
    .bind(version.created_micros)
    .bind(version.record.as_ref().map(<[u8; 32]>::as_slice))
    .bind(revision)
    .bind(of_name(version.attach_count)?)
    .execute(connection)
    .await?;
    Ok(())
}
