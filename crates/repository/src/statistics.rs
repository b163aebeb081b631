//! How much a repository holds.

use model::Result;

use crate::repository::Repository;

/// How much a repository holds. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// Images.
    pub image_count: u64,
    /// Versions.
    pub version_count: u64,
    /// Sum of what guests see.
    pub logical_len: u64,
    /// Sum of what is no hole.
    pub data_len: u64,
    /// Plain bytes of distinct blocks.
    pub unique_len: u64,
    /// What the repository takes on disk, everything counted.
    pub stored_len: u64,
    /// The part of `stored_len` that boot working sets take, which are copies.
    pub boot_set_len: u64,
    /// The part of `stored_len` that is neither: maps, manifests, lists, catalog.
    pub metadata_len: u64,
    /// The part of `metadata_len` that finds duplicates and places: the catalog.
    pub index_len: u64,
}

impl Statistics {
    /// The share of the data that deduplication saved: 1 - unique / data; 0 where there is none.
    pub fn dedup_ratio(&self) -> f64 {
        match self.data_len {
            0 => 0.0,
            data => 1.0 - self.unique_len as f64 / data as f64,
        }
    }
}

impl Repository {
    /// Counts what the repository holds. Cost: a few sums in the catalog.
    pub fn statistics(&self) -> Result<Statistics> {
        let counted = self.catalog.statistics()?;
        let settings_len = toml::to_string(&self.settings).map_or(0, |text| text.len() as u64);
        let names_len = settings_len + self.export_len();
        let stored_len = counted.pack_len + counted.catalog_len + names_len;
        Ok(Statistics {
            image_count: counted.image_count,
            version_count: counted.version_count,
            logical_len: counted.logical_len,
            data_len: counted.data_len,
            unique_len: counted.unique_len,
            stored_len,
            boot_set_len: counted.boot_set_len,
            metadata_len: stored_len
                .saturating_sub(counted.unique_stored_len)
                .saturating_sub(counted.boot_set_len),
            index_len: counted.catalog_len,
        })
    }
}
