//! The catalog in one SQLite file. Its tables: `docs/formats/catalog.md`.
//!
//! ```text
//! SqliteCatalog ── a method of the trait ── one transaction ── a function of a module below
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | `connections` | who reads and who writes; transactions |
//! | `schema` | the tables, the format's number |
//! | `images`, `versions`, `publish` | names and what they mean |
//! | `packs`, `leases` | places of chunks, hooks; what protects them until they are referred to |
//! | `statistics` | how much there is |
//! | `batch` | many rows in one parameter |
//! | `near` | names that come near to one that was not found |
//! | `failure` | SQLite's errors, sorted by what the caller should do |
//!
//! **Invariants**: a call is one transaction, durable when it returns (write-ahead log,
//! `synchronous = FULL`); readers never wait for writers.
//!
//! **Failure**: a process that dies at any instant leaves the state before its transaction or after
//! it. Two processes may have the file open; one writes at a time.

mod batch;
mod connections;
mod failure;
mod images;
mod leases;
mod near;
mod packs;
mod publish;
mod schema;
mod statistics;
mod versions;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use env::Clock;
use model::digest::Hook;
use model::name::LabelKey;
use model::{ImageName, Realm, Reference, Result, TagName, VersionId};

use crate::catalog::Catalog;
use crate::records::{
    CatalogStatistics, EntryDigest, ImageFilter, ImageRecord, LeaseId, Location, NewPack, PackId,
    PackRecord, Publication, VersionRecord,
};
use connections::Connections;

/// The catalog in one SQLite file.
///
/// Calls block; many threads may call at once. Whoever drives asynchronous tasks calls from a thread
/// that may wait.
pub struct SqliteCatalog {
    connections: Connections,
    clock: Arc<dyn Clock>,
}

impl SqliteCatalog {
    /// Opens the catalog in a file of an existing folder; makes it where the file is absent or
    /// empty.
    ///
    /// Cost: a file opened and one page read; where it is made, some fsyncs, and the folder is locked
    /// (`flock`) for that long.
    ///
    /// # Errors
    /// `Refused` for a file of a newer format or another program, `Corrupt` for one that is no SQLite
    /// database, `NotFound` where there is no such folder, `Unavailable` and `Full` from the disk.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<SqliteCatalog> {
        let connections = Connections::new(path)?;
        schema::prepare(&connections)?;
        Ok(SqliteCatalog { connections, clock })
    }
}

impl Catalog for SqliteCatalog {
    fn images(&self, filter: &ImageFilter) -> Result<Vec<ImageRecord>> {
        self.connections.read("list the images", async |c| images::list(c, filter).await)
    }

    fn version(&self, reference: &Reference) -> Result<VersionRecord> {
        self.connections.read("find the version", async |c| versions::find(c, reference).await)
    }

    fn versions(&self, image: &ImageName) -> Result<Vec<VersionRecord>> {
        self.connections.read("list the versions", async |c| versions::all(c, image).await)
    }

    fn clone_version(&self, from: &VersionId, image: &ImageName) -> Result<VersionRecord> {
        let now = self.clock.now();
        self.connections.write("clone", async |c| publish::clone_version(c, from, image, now).await)
    }

    fn set_tag(&self, version: &VersionId, tag: &TagName) -> Result<()> {
        self.connections.write("set the tag", async |c| {
            let image = versions::image_of(c, version).await?;
            versions::put_tag(c, image, version.version.get().cast_signed(), tag).await
        })
    }

    fn set_label(&self, image: &ImageName, key: &LabelKey, value: Option<&str>) -> Result<()> {
        self.connections
            .write("set the label", async |c| images::set_label(c, image, key, value).await)
    }

    fn remove_version(&self, version: &VersionId) -> Result<()> {
        self.connections.write("remove", async |c| versions::remove(c, version).await)
    }

    fn remove_image(&self, image: &ImageName) -> Result<Vec<VersionId>> {
        self.connections.write("remove", async |c| images::remove(c, image).await)
    }

    fn count_attach(&self, version: &VersionId) -> Result<()> {
        self.connections
            .write("count the attach", async |c| versions::count_attach(c, version).await)
    }

    fn begin_lease(&self, time_to_live: Duration) -> Result<LeaseId> {
        let now = self.clock.now();
        self.connections
            .write("begin the lease", async |c| leases::begin(c, now, time_to_live).await)
    }

    fn renew_lease(&self, lease: LeaseId, time_to_live: Duration) -> Result<()> {
        let now = self.clock.now();
        self.connections
            .write("renew the lease", async |c| leases::renew(c, lease, now, time_to_live).await)
    }

    fn abandon_lease(&self, lease: LeaseId) -> Result<Vec<String>> {
        let operation = "abandon the lease";
        let found =
            self.connections.read(operation, async |c| leases::find_abandoned(c, lease).await)?;
        let now = self.clock.now();
        self.connections.write(operation, async |c| leases::abandon(c, lease, now, &found).await)
    }

    fn add_pack(&self, lease: LeaseId, pack: &NewPack) -> Result<PackId> {
        let now = self.clock.now();
        self.connections.write("add the pack", async |c| packs::add(c, lease, now, pack).await)
    }

    fn locate(&self, realm: &Realm, digests: &[EntryDigest]) -> Result<Vec<Option<Location>>> {
        self.connections.read("locate chunks", async |c| packs::locate(c, realm, digests).await)
    }

    fn packs_with_hooks(&self, realm: &Realm, hooks: &[Hook], max: usize) -> Result<Vec<PackId>> {
        self.connections
            .read("look up hooks", async |c| packs::with_hooks(c, realm, hooks, max).await)
    }

    fn pack(&self, id: PackId) -> Result<PackRecord> {
        self.connections.read("find the pack", async |c| packs::one(c, id).await)
    }

    fn packs(&self) -> Result<Vec<PackRecord>> {
        self.connections.read("list the packs", async |c| packs::all(c).await)
    }

    fn publish(&self, lease: LeaseId, publication: &Publication) -> Result<VersionRecord> {
        let now = self.clock.now();
        self.connections
            .write("publish", async |c| publish::publish(c, lease, now, publication).await)
    }

    fn statistics(&self) -> Result<CatalogStatistics> {
        self.connections.read("count", async |c| statistics::statistics(c).await)
    }
}
