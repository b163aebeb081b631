//! How much there is.

use model::Result;
use sqlx::{Row, SqliteConnection};

use super::failure::Failure;
use crate::records::CatalogStatistics;

/// Counts and sums, from the rows of versions and packs: of entries and hooks only boot working sets are read.
pub(super) async fn statistics(
    connection: &mut SqliteConnection,
) -> Result<CatalogStatistics, Failure> {
    let row = sqlx::query(
        "SELECT *
           FROM (SELECT count(DISTINCT image) AS image_count, count(*) AS version_count,
                        coalesce(sum(length), 0) AS logical_len,
                        coalesce(sum(data_len), 0) AS data_len
                   FROM version),
                (SELECT count(*) AS pack_count,
                        coalesce(sum(data_len), 0) AS unique_len,
                        coalesce(sum(data_stored_len), 0) AS unique_stored_len,
                        coalesce(sum(stored_len), 0) AS pack_len,
                        coalesce(sum(entry_count), 0) AS entry_count,
                        coalesce(sum(hook_count), 0) AS hook_count
                   FROM pack),
                (SELECT coalesce(sum(stored_len), 0) AS boot_set_len
                   FROM entry WHERE kind IN (6, 7)),
                (SELECT page_count * page_size AS catalog_len
                   FROM pragma_page_count, pragma_page_size)",
    )
    .fetch_one(connection)
    .await?;
    Ok(CatalogStatistics {
        image_count: row.try_get("image_count")?,
        version_count: row.try_get("version_count")?,
        logical_len: row.try_get("logical_len")?,
        data_len: row.try_get("data_len")?,
        unique_len: row.try_get("unique_len")?,
        unique_stored_len: row.try_get("unique_stored_len")?,
        pack_count: row.try_get("pack_count")?,
        pack_len: row.try_get("pack_len")?,
        entry_count: row.try_get("entry_count")?,
        hook_count: row.try_get("hook_count")?,
        boot_set_len: row.try_get("boot_set_len")?,
        catalog_len: row.try_get("catalog_len")?,
    })
}
