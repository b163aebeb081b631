//! Images: the list, labels, removal.

use std::collections::BTreeMap;

use env::Timestamp;
use model::name::LabelKey;
use model::{ImageName, Result, TagName, VersionId, VersionNumber};
use sqlx::{Row, SqliteConnection};

use super::failure::Failure;
use super::roots;
use super::versions;
use super::versions::{damaged, image_name, image_not_found, labels, version_number};
use crate::records::{ImageFilter, ImageRecord};

/// Everything of every image, a row for each; `?1` is true where the versions' origins are wanted.
///
/// Lists within a row are joined by SQLite: rows cost more than bytes, since each crosses from the
/// connection's thread to the caller's. Length and creation are those of the row with the greatest
/// number: SQLite takes columns beside a lone `max` from the row that has it
/// (<https://www.sqlite.org/lang_select.html#bareagg>).
const LIST: &str = "
    SELECT i.name, v.length, v.created, v.versions, v.origins,
           (SELECT group_concat(t.name || ':' || t.number, ' ') FROM tag t
             WHERE t.image = i.id) AS tags,
           (SELECT json_group_object(l.key, l.value) FROM label l WHERE l.image = i.id) AS labels
      FROM (SELECT image, max(number), length, created, group_concat(number, ' ') AS versions,
                   group_concat(CASE WHEN ?1 THEN origin END, char(10)) AS origins
              FROM version GROUP BY image) v
      JOIN image i ON i.id = v.image";

/// The images that pass a filter, by name.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    filter: &ImageFilter,
) -> Result<Vec<ImageRecord>, Failure> {
    let wanted = filter.search.as_ref().map(|text| text.to_lowercase());
    let rows = sqlx::query(LIST).bind(wanted.is_some()).fetch_all(connection).await?;
    let mut images = Vec::new();
    for row in &rows {
        let versions: &str = row.try_get("versions")?;
        let image = ImageRecord {
            name: image_name(row.try_get("name")?)?,
            versions: numbers(versions)?,
            tags: tags(row.try_get("tags")?)?,
            labels: labels(row.try_get("labels")?)?,
            length: row.try_get("length")?,
            created: Timestamp(row.try_get("created")?),
        };
        let origins: Option<&str> = row.try_get("origins")?;
        let labelled =
            filter.labels.iter().all(|(key, value)| image.labels.get(key) == Some(value));
        let found = wanted
            .as_ref()
            .is_none_or(|wanted| occurs(wanted, &image, origins.unwrap_or_default()));
        if labelled && found {
            images.push(image);
        }
    }
    images.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

/// True where lower-case text occurs in the words of an image.
fn occurs(wanted: &str, image: &ImageRecord, origins: &str) -> bool {
    image.name.as_str().contains(wanted)
        || image.tags.keys().any(|tag| tag.as_str().contains(wanted))
        || image
            .labels
            .iter()
            .any(|(key, value)| format!("{key}={value}").to_lowercase().contains(wanted))
        || origins.lines().any(|origin| origin.to_lowercase().contains(wanted))
}

/// Sets a label, or takes it away.
pub(super) async fn set_label(
    connection: &mut SqliteConnection,
    image: &ImageName,
    key: &LabelKey,
    value: Option<&str>,
) -> Result<(), Failure> {
    let id = existing(connection, image).await?;
    match value {
        Some(value) => {
            sqlx::query(
                "INSERT INTO label (image, key, value) VALUES (?1, ?2, ?3)
                 ON CONFLICT (image, key) DO UPDATE SET value = excluded.value",
            )
            .bind(id)
            .bind(key.as_str())
            .bind(value)
            .execute(connection)
            .await?
        }
        None => {
            sqlx::query("DELETE FROM label WHERE image = ?1 AND key = ?2")
                .bind(id)
                .bind(key.as_str())
                .execute(connection)
                .await?
        }
    };
    Ok(())
}

/// Removes an image with its versions, tags and labels. Its row stays: it keeps the last number.
pub(super) async fn remove(
    connection: &mut SqliteConnection,
    image: &ImageName,
) -> Result<Vec<VersionId>, Failure> {
    let id = existing(connection, image).await?;
    for version in versions::all(connection, image).await? {
        versions::require_unneeded(connection, &version.id, Some(id)).await?;
    }
    sqlx::query("DELETE FROM label WHERE image = ?1").bind(id).execute(&mut *connection).await?;
    let mut removed: Vec<i64> =
        sqlx::query_scalar("DELETE FROM version WHERE image = ?1 RETURNING number")
            .bind(id)
            .fetch_all(&mut *connection)
            .await?;
    roots::forget_unused(connection).await?;
    removed.sort_unstable();
    let versions = removed
        .into_iter()
        .map(|number| Ok(VersionId { image: image.clone(), version: version_number(number)? }));
    Ok(versions.collect::<sqlx::Result<_>>()?)
}

/// The database's number of an image that has versions; `NotFound` if there is none.
async fn existing(connection: &mut SqliteConnection, image: &ImageName) -> Result<i64, Failure> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT id FROM image i
          WHERE name = ?1 AND EXISTS (SELECT 1 FROM version WHERE image = i.id)",
    )
    .bind(image.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    match found {
        Some(id) => Ok(id),
        None => Err(image_not_found(connection, image).await?.into()),
    }
}

fn numbers(joined: &str) -> sqlx::Result<Vec<VersionNumber>> {
    let mut numbers = joined
        .split_ascii_whitespace()
        .map(|text| version_number(text.parse().map_err(damaged)?))
        .collect::<sqlx::Result<Vec<_>>>()?;
    numbers.sort_unstable();
    Ok(numbers)
}

fn tags(joined: Option<&str>) -> sqlx::Result<BTreeMap<TagName, VersionNumber>> {
    joined
        .unwrap_or_default()
        .split_ascii_whitespace()
        .map(|pair| {
            let (name, number) =
                pair.split_once(':').ok_or_else(|| damaged("a tag of no version"))?;
            let number = version_number(number.parse().map_err(damaged)?)?;
            Ok((TagName::new(name).map_err(damaged)?, number))
        })
        .collect()
}
