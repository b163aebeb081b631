//! Documents: which entries are kept with a content.

use env::Timestamp;
use model::{ContentDigest, Error, Kind, Result};
use sqlx::SqliteConnection;

use super::failure::Failure;
use super::versions::{damaged, digest};
use super::{leases, publish, roots};
use crate::records::{DocumentRecord, LeaseId};

const SET: &str = "keep the document";

/// Keeps a document with a content.
pub(super) async fn set(
    connection: &mut SqliteConnection,
    lease: LeaseId,
    now: Timestamp,
    document: &DocumentRecord,
) -> Result<(), Failure> {
    leases::require_alive(connection, lease, now, SET).await?;
    if roots::touch(connection, document.content).await? == 0 {
        return Err(Error::new(Kind::NotFound, SET, document.name.clone())
            .because("no version has this content any more")
            .into());
    }
    put(connection, document).await?;
    publish::release_packs(connection, lease).await
}

/// Takes a document away from a content. Does nothing where there is none.
pub(super) async fn remove(
    connection: &mut SqliteConnection,
    content: ContentDigest,
    name: &str,
) -> Result<(), Failure> {
    sqlx::query("DELETE FROM document WHERE content = ?1 AND name = ?2")
        .bind(content.as_bytes().as_slice())
        .bind(name)
        .execute(connection)
        .await?;
    Ok(())
}

/// The documents of a content, by name.
pub(super) async fn of_content(
    connection: &mut SqliteConnection,
    content: ContentDigest,
) -> Result<Vec<DocumentRecord>, Failure> {
    let rows: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT name, digest FROM document WHERE content = ?1 ORDER BY name")
            .bind(content.as_bytes().as_slice())
            .fetch_all(connection)
            .await?;
    let record = |(name, bytes): (String, Vec<u8>)| {
        Ok(DocumentRecord { content, name, digest: digest(&bytes)? })
    };
    Ok(rows.into_iter().map(record).collect::<sqlx::Result<_>>()?)
}

/// All documents, by content and name.
pub(super) async fn all(connection: &mut SqliteConnection) -> Result<Vec<DocumentRecord>, Failure> {
    let rows: Vec<(Vec<u8>, String, Vec<u8>)> =
        sqlx::query_as("SELECT content, name, digest FROM document ORDER BY content, name")
            .fetch_all(connection)
            .await?;
    let record = |(content, name, bytes): (Vec<u8>, String, Vec<u8>)| {
        let content = <[u8; 32]>::try_from(content).map_err(|_| damaged("a content digest"))?;
        Ok(DocumentRecord { content: ContentDigest(content), name, digest: digest(&bytes)? })
    };
    Ok(rows.into_iter().map(record).collect::<sqlx::Result<_>>()?)
}

/// Writes the row of a document.
pub(super) async fn put(
    connection: &mut SqliteConnection,
    document: &DocumentRecord,
) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO document (content, name, digest) VALUES (?1, ?2, ?3)
         ON CONFLICT (content, name) DO UPDATE SET digest = excluded.digest",
    )
    .bind(document.content.as_bytes().as_slice())
    .bind(&document.name)
    .bind(document.digest.as_slice())
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets the documents of contents that neither a version nor a hold has.
pub(super) async fn forget_unused(connection: &mut SqliteConnection) -> Result<(), Failure> {
    sqlx::query(
        "DELETE FROM document
          WHERE NOT EXISTS (SELECT 1 FROM version v WHERE v.content = document.content)
            AND NOT EXISTS (SELECT 1 FROM hold h WHERE h.content = document.content)",
    )
    .execute(connection)
    .await?;
    Ok(())
}
