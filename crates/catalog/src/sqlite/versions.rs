//! Versions: one, all of an image, and what little of them changes.

use std::collections::BTreeMap;

use env::Timestamp;
use model::digest::DIGEST_LEN;
use model::name::LabelKey;
use model::{
    ContentDigest, Error, ImageName, Kind, LayoutDigest, Reference, Result, Selector, TagName,
    VersionId, VersionKind, VersionNumber,
};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row};

use super::failure::Failure;
use super::{near, roots};
use crate::records::{VersionFacts, VersionRecord};

/// Everything of a version in one row; the condition comes after.
macro_rules! version_query {
    ($condition:literal) => {
        concat!(
            "SELECT i.name, v.number, v.kind, v.length, v.data_len, v.content, v.layout,
                    v.parent_image, v.parent_number, v.origin, v.created, v.attach_count,
                    (SELECT group_concat(t.name, ' ') FROM tag t
                      WHERE t.image = v.image AND t.number = v.number) AS tags,
                    (SELECT json_group_object(l.key, l.value) FROM label l
                      WHERE l.image = v.image) AS labels,
                    (SELECT max(w.number) FROM version w WHERE w.image = v.image) AS latest
               FROM image i JOIN version v ON v.image = i.id WHERE i.name = ?1 ",
            $condition
        )
    };
}

/// The version that a reference means, or why there is none, with what comes near.
pub(super) async fn find(
    connection: &mut SqliteConnection,
    reference: &Reference,
) -> Result<VersionRecord, Failure> {
    let name = reference.image.as_str();
    let found: Option<VersionRecord> = match &reference.selector {
        Selector::Latest => {
            sqlx::query_as(version_query!("ORDER BY v.number DESC LIMIT 1"))
                .bind(name)
                .fetch_optional(&mut *connection)
                .await?
        }
        Selector::Number(number) => {
            sqlx::query_as(version_query!("AND v.number = ?2"))
                .bind(name)
                .bind(number.get().cast_signed())
                .fetch_optional(&mut *connection)
                .await?
        }
        Selector::Tag(tag) => {
            sqlx::query_as(version_query!(
                "AND v.number = (SELECT number FROM tag WHERE image = i.id AND name = ?2)"
            ))
            .bind(name)
            .bind(tag.as_str())
            .fetch_optional(&mut *connection)
            .await?
        }
    };
    match found {
        Some(record) => Ok(record),
        None => Err(not_found(connection, reference).await?.into()),
    }
}

/// All versions of an image, ascending.
pub(super) async fn all(
    connection: &mut SqliteConnection,
    image: &ImageName,
) -> Result<Vec<VersionRecord>, Failure> {
    let versions: Vec<VersionRecord> = sqlx::query_as(version_query!("ORDER BY v.number"))
        .bind(image.as_str())
        .fetch_all(&mut *connection)
        .await?;
    if versions.is_empty() {
        return Err(image_not_found(connection, image).await?.into());
    }
    Ok(versions)
}

/// The database's number of the image that a version belongs to; `NotFound` if there is no such
/// version.
pub(super) async fn image_of(
    connection: &mut SqliteConnection,
    version: &VersionId,
) -> Result<i64, Failure> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT i.id FROM image i JOIN version v ON v.image = i.id
          WHERE i.name = ?1 AND v.number = ?2",
    )
    .bind(version.image.as_str())
    .bind(version.version.get().cast_signed())
    .fetch_optional(&mut *connection)
    .await?;
    match found {
        Some(image) => Ok(image),
        None => Err(not_found(connection, &version.clone().into()).await?.into()),
    }
}

/// Moves a tag of an image to one of its versions, which exists.
pub(super) async fn put_tag(
    connection: &mut SqliteConnection,
    image: i64,
    number: i64,
    tag: &TagName,
) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO tag (image, name, number) VALUES (?1, ?2, ?3)
         ON CONFLICT (image, name) DO UPDATE SET number = excluded.number",
    )
    .bind(image)
    .bind(tag.as_str())
    .bind(number)
    .execute(connection)
    .await?;
    Ok(())
}

/// Counts one attach of a version.
pub(super) async fn count_attach(
    connection: &mut SqliteConnection,
    version: &VersionId,
) -> Result<(), Failure> {
    let image = image_of(connection, version).await?;
    sqlx::query(
        "UPDATE version SET attach_count = attach_count + 1 WHERE image = ?1 AND number = ?2",
    )
    .bind(image)
    .bind(version.version.get().cast_signed())
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes a version with its tags, and the image's labels when it was the last one.
pub(super) async fn remove(
    connection: &mut SqliteConnection,
    version: &VersionId,
) -> Result<(), Failure> {
    let image = image_of(connection, version).await?;
    require_unneeded(connection, version, None).await?;
    // Its tags go with it: ON DELETE CASCADE.
    sqlx::query("DELETE FROM version WHERE image = ?1 AND number = ?2")
        .bind(image)
        .bind(version.version.get().cast_signed())
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "DELETE FROM label
          WHERE image = ?1 AND NOT EXISTS (SELECT 1 FROM version WHERE image = ?1)",
    )
    .bind(image)
    .execute(&mut *connection)
    .await?;
    roots::forget_unused(connection).await
}

/// Checks that no machine stands on a version, but for those of an image that goes with it.
pub(super) async fn require_unneeded(
    connection: &mut SqliteConnection,
    version: &VersionId,
    leaving: Option<i64>,
) -> Result<(), Failure> {
    let machine: Option<(String, i64)> = sqlx::query_as(
        "SELECT i.name, v.number FROM version v JOIN image i ON i.id = v.image
          WHERE v.kind = ?1 AND v.parent_image = ?2 AND v.parent_number = ?3
            AND v.image IS NOT ?4 ORDER BY i.name, v.number LIMIT 1",
    )
    .bind(number_of_kind(VersionKind::Machine))
    .bind(version.image.as_str())
    .bind(version.version.get().cast_signed())
    .bind(leaving)
    .fetch_optional(connection)
    .await?;
    let Some((name, number)) = machine else { return Ok(()) };
    let machine = format!("{name}@{number}");
    Err(Error::new(Kind::Refused, "remove", version.to_string())
        .because(format!("it is the disk of the machine {machine}"))
        .hint(format!("remove the machine first: `larder remove {machine}`"))
        .into())
}

/// Why a reference means nothing: no such image, or no such version or tag of it.
async fn not_found(
    connection: &mut SqliteConnection,
    reference: &Reference,
) -> Result<Error, Failure> {
    let numbers: Vec<i64> = sqlx::query_scalar(
        "SELECT v.number FROM image i JOIN version v ON v.image = i.id
          WHERE i.name = ?1 ORDER BY v.number",
    )
    .bind(reference.image.as_str())
    .fetch_all(&mut *connection)
    .await?;
    if numbers.is_empty() {
        return image_not_found(connection, &reference.image).await;
    }
    let error = Error::new(Kind::NotFound, "find", reference.to_string());
    let Selector::Tag(tag) = &reference.selector else {
        let hint = format!("{} has {}", reference.image, spans(&numbers));
        return Ok(error.because("the image has no version of this number").hint(hint));
    };
    let tags: Vec<String> = sqlx::query_scalar(
        "SELECT t.name FROM image i JOIN tag t ON t.image = i.id WHERE i.name = ?1",
    )
    .bind(reference.image.as_str())
    .fetch_all(connection)
    .await?;
    let names = tags.iter().map(String::as_str);
    let hint = near::hint(tag.as_str(), names)
        .unwrap_or_else(|| format!("{} has {}", reference.image, spans(&numbers)));
    Ok(error.because("the image has no such tag").hint(hint))
}

/// Why there is no image of a name, with the names that come near.
pub(super) async fn image_not_found(
    connection: &mut SqliteConnection,
    image: &ImageName,
) -> Result<Error, Failure> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM image i WHERE EXISTS (SELECT 1 FROM version WHERE image = i.id)",
    )
    .fetch_all(connection)
    .await?;
    let error = Error::new(Kind::NotFound, "find", image.as_str())
        .because("there is no image of this name");
    if names.is_empty() {
        let hint = format!("the repository is empty; `larder import FILE {image}` makes an image");
        return Ok(error.hint(hint));
    }
    let hint = near::hint(image.as_str(), names.iter().map(String::as_str))
        .unwrap_or_else(|| "`larder list` shows the images there are".to_string());
    Ok(error.hint(hint))
}

/// Numbers that ascend, as people write them: `versions 1-3, 7`.
fn spans(numbers: &[i64]) -> String {
    let mut spans: Vec<(i64, i64)> = Vec::new();
    for &number in numbers {
        match spans.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => spans.push((number, number)),
        }
    }
    let written =
        spans.iter().map(
            |&(start, end)| {
                if start == end { start.to_string() } else { format!("{start}-{end}") }
            },
        );
    let word = if numbers.len() == 1 { "version" } else { "versions" };
    format!("{word} {}", written.collect::<Vec<_>>().join(", "))
}

impl FromRow<'_, SqliteRow> for VersionRecord {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let parent = match row.try_get::<Option<String>, _>("parent_image")? {
            Some(image) => Some(VersionId {
                image: image_name(&image)?,
                version: version_number(row.try_get("parent_number")?)?,
            }),
            None => None,
        };
        Ok(VersionRecord {
            id: VersionId {
                image: image_name(row.try_get("name")?)?,
                version: version_number(row.try_get("number")?)?,
            },
            facts: VersionFacts {
                kind: kind_from_number(row.try_get("kind")?)?,
                length: row.try_get::<u64, _>("length")?,
                data_len: row.try_get::<u64, _>("data_len")?,
                content: ContentDigest(digest(row.try_get("content")?)?),
                layout: LayoutDigest(digest(row.try_get("layout")?)?),
                parent,
                origin: row.try_get("origin")?,
            },
            created: Timestamp(row.try_get("created")?),
            tags: tag_names(row.try_get("tags")?)?,
            labels: labels(row.try_get("labels")?)?,
            attach_count: row.try_get("attach_count")?,
            latest: version_number(row.try_get("latest")?)?,
        })
    }
}

pub(super) fn digest(bytes: &[u8]) -> sqlx::Result<[u8; DIGEST_LEN]> {
    bytes.try_into().map_err(damaged)
}

/// The number by which a kind of version is kept.
pub(super) fn number_of_kind(kind: VersionKind) -> i64 {
    match kind {
        VersionKind::Disk => 0,
        VersionKind::Memory => 1,
        VersionKind::Machine => 2,
        VersionKind::Group => 3,
    }
}

/// The kind of version that a number means.
pub(super) fn kind_from_number(number: i64) -> sqlx::Result<VersionKind> {
    match number {
        0 => Ok(VersionKind::Disk),
        1 => Ok(VersionKind::Memory),
        2 => Ok(VersionKind::Machine),
        3 => Ok(VersionKind::Group),
        _ => Err(damaged(format!("{number} is no kind of version"))),
    }
}

/// Text of the database as an image name.
pub(super) fn image_name(text: &str) -> sqlx::Result<ImageName> {
    ImageName::new(text).map_err(damaged)
}

/// A number of the database as a version's.
pub(super) fn version_number(number: i64) -> sqlx::Result<VersionNumber> {
    u64::try_from(number)
        .ok()
        .and_then(VersionNumber::new)
        .ok_or_else(|| damaged(format!("{number} is no version number")))
}

/// Labels out of the JSON object that SQLite makes of their rows.
pub(super) fn labels(json: &str) -> sqlx::Result<BTreeMap<LabelKey, String>> {
    let plain: BTreeMap<String, String> = serde_json::from_str(json).map_err(damaged)?;
    plain
        .into_iter()
        .map(|(key, value)| Ok((LabelKey::new(&key).map_err(damaged)?, value)))
        .collect()
}

fn tag_names(joined: Option<&str>) -> sqlx::Result<Vec<TagName>> {
    let mut tags = joined
        .unwrap_or_default()
        .split_ascii_whitespace()
        .map(|tag| TagName::new(tag).map_err(damaged))
        .collect::<sqlx::Result<Vec<_>>>()?;
    tags.sort();
    Ok(tags)
}

/// The error for a row that this code would never have written.
pub(super) fn damaged(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_numbers_are_told_as_a_span() {
        assert_eq!(spans(&[1, 2, 3, 7, 9, 10]), "versions 1-3, 7, 9-10");
        assert_eq!(spans(&[4]), "version 4");
    }
}
