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
//! | `roots` | what keeps layouts in the repository: versions and holds |
//! | `boot_sets` | working sets of contents |
//! | `documents` | documents of contents |
//! | `collect` | all entries; marks upon packs; removal |
//! | `names` | all names at once, out and in |
//! | `statistics` | how much there is |
//! | `batch` | many rows in one parameter |
//! | `near` | names that come near to one that was not found |
//! | `failure` | SQLite's errors, sorted by what the caller should do |
//!
//! **Invariants**: a call is one transaction, durable when it returns (write-ahead log,
//! `synchronous = FULL`; leases and counts of attaches wait for no disk); readers never wait for writers.
//!
//! **Failure**: a process that dies at any instant leaves the state before its transaction or after
//! it. Two processes may have the file open; one writes at a time.

mod batch;
mod boot_sets;
mod collect;
mod connections;
mod documents;
mod failure;
mod images;
mod leases;
mod names;
mod near;
mod packs;
mod publish;
mod roots;
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
use model::{
    ContentDigest, Error, ImageName, Kind, LayoutDigest, Names, Realm, Reference, Result, TagName,
    VersionId,
};

use crate::catalog::Catalog;
use crate::records::{
    BootSetRecord, CatalogStatistics, DocumentRecord, Doomed, EntryDigest, HoldRecord, ImageFilter,
    ImageRecord, LeaseId, Location, Mark, NewPack, PackId, PackRecord, Publication, Revision, Root,
    VersionRecord,
};
use connections::Connections;
use leases::Purpose;
use packs::Known;

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

    /// Opens the catalog in a file that must be one already.
    ///
    /// # Errors
    /// As [`SqliteCatalog::open`]; `Corrupt` where the file is absent or empty.
    pub fn open_existing(path: &Path, clock: Arc<dyn Clock>) -> Result<SqliteCatalog> {
        let connections = Connections::new(path)?;
        schema::require(&connections)?;
        Ok(SqliteCatalog { connections, clock })
    }

    /// Has SQLite look at every page: `Corrupt` where one is not sound. What rows say is not looked
    /// at.
    ///
    /// Cost: one pass over the file.
    pub fn check_pages(&self) -> Result<()> {
        let operation = "check the catalog";
        let found: Vec<String> = self.connections.read(operation, async |c| {
            let check = sqlx::query_scalar("PRAGMA quick_check(1)");
            Ok(check.fetch_all(c).await?)
        })?;
        match found.iter().find(|line| *line != "ok") {
            None => Ok(()),
            Some(first) => {
                let file = self.connections.file().display().to_string();
                Err(Error::new(Kind::Corrupt, operation, file)
                    .because(first.clone())
                    .hint("`larder scrub --rebuild` makes it anew from the packs"))
            }
        }
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
        self.connections.write_without_sync("count the attach", async |c| {
            versions::count_attach(c, version).await
        })
    }

    fn begin_lease(&self, time_to_live: Duration) -> Result<LeaseId> {
        let now = self.clock.now();
        self.connections.write("begin the lease", async |c| {
            leases::begin(c, now, time_to_live, Purpose::Work).await
        })
    }

    fn renew_lease(&self, lease: LeaseId, time_to_live: Duration) -> Result<()> {
        let now = self.clock.now();
        self.connections.write_without_sync("renew the lease", async |c| {
            leases::renew(c, lease, now, time_to_live).await
        })
    }

    fn abandon_lease(&self, lease: LeaseId) -> Result<Vec<String>> {
        let operation = "abandon the lease";
        let found =
            self.connections.read(operation, async |c| leases::find_abandoned(c, lease).await)?;
        let work = async |c: &mut _| leases::abandon(c, lease, &found).await;
        match found.is_empty() {
            true => self.connections.write_without_sync(operation, work),
            false => self.connections.write(operation, work),
        }
    }

    fn add_pack(&self, lease: LeaseId, pack: &NewPack) -> Result<PackId> {
        let now = self.clock.now();
        self.connections
            .write("add the pack", async |c| packs::add(c, lease, now, pack, Known::Stays).await)
    }

    fn move_entries(&self, lease: LeaseId, pack: &NewPack) -> Result<PackId> {
        let now = self.clock.now();
        self.connections.write("move entries to the pack", async |c| {
            packs::add(c, lease, now, pack, Known::Moves).await
        })
    }

    fn claim(
        &self,
        lease: LeaseId,
        realm: &Realm,
        digests: &[EntryDigest],
    ) -> Result<Vec<Option<Location>>> {
        let operation = "claim chunks";
        let found = self
            .connections
            .read(operation, async |c| packs::look_up(c, Some(lease), realm, digests).await)?;
        if !found.must_be_claimed {
            return Ok(found.places);
        }
        let now = self.clock.now();
        self.connections
            .write(operation, async |c| packs::claim(c, lease, now, realm, digests).await)
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

    fn publish_machine(
        &self,
        lease: LeaseId,
        disk: &Publication,
        machine: &Publication,
    ) -> Result<[VersionRecord; 2]> {
        let now = self.clock.now();
        self.connections.write("publish", async |c| {
            publish::publish_machine(c, lease, now, [disk, machine]).await
        })
    }

    fn layout_of(&self, content: ContentDigest) -> Result<Option<LayoutDigest>> {
        self.connections.read("find the layout", async |c| roots::layout_of(c, content).await)
    }

    fn swap_layout(
        &self,
        lease: LeaseId,
        content: ContentDigest,
        old: LayoutDigest,
        new: LayoutDigest,
    ) -> Result<u64> {
        let now = self.clock.now();
        self.connections.write("lay out anew", async |c| {
            publish::swap_layout(c, lease, now, content, [old, new]).await
        })
    }

    fn set_boot_set(&self, lease: LeaseId, set: &BootSetRecord) -> Result<()> {
        let now = self.clock.now();
        self.connections
            .write("set the working set", async |c| boot_sets::set(c, lease, now, set).await)
    }

    fn boot_sets(&self, content: ContentDigest) -> Result<Vec<BootSetRecord>> {
        self.connections.read("find the working sets", async |c| boot_sets::all(c, content).await)
    }

    fn set_document(&self, lease: LeaseId, document: &DocumentRecord) -> Result<()> {
        let now = self.clock.now();
        let set = async |c: &mut _| documents::set(c, lease, now, document).await;
        self.connections.write("keep the document", set)
    }

    fn remove_document(&self, content: ContentDigest, name: &str) -> Result<()> {
        let remove = async |c: &mut _| documents::remove(c, content, name).await;
        self.connections.write("remove the document", remove)
    }

    fn documents(&self, content: ContentDigest) -> Result<Vec<DocumentRecord>> {
        let find = async |c: &mut _| documents::of_content(c, content).await;
        self.connections.read("find the documents", find)
    }

    fn hold(
        &self,
        version: &VersionId,
        holder: &str,
        time_to_live: Option<Duration>,
    ) -> Result<VersionRecord> {
        let now = self.clock.now();
        self.connections.write("hold the version", async |c| {
            roots::hold(c, version, holder, now, time_to_live).await
        })
    }

    fn renew_hold(&self, holder: &str, time_to_live: Duration) -> Result<()> {
        let now = self.clock.now();
        self.connections
            .write("renew the hold", async |c| roots::renew(c, holder, now, time_to_live).await)
    }

    fn release(&self, holder: &str) -> Result<()> {
        self.connections.write("release the version", async |c| roots::release(c, holder).await)
    }

    fn holds(&self) -> Result<Vec<HoldRecord>> {
        let now = self.clock.now();
        self.connections.read("list the holds", async |c| roots::holds(c, now).await)
    }

    fn begin_collect(&self, time_to_live: Duration) -> Result<LeaseId> {
        let now = self.clock.now();
        self.connections.write("collect", async |c| {
            roots::forget_expired(c, now).await?;
            leases::begin(c, now, time_to_live, Purpose::Collect).await
        })
    }

    fn roots(&self, after: Revision, max: usize) -> Result<Vec<Root>> {
        self.connections
            .read("list what is referred to", async |c| roots::after(c, after, max).await)
    }

    fn entries(
        &self,
        after: Option<(&Realm, EntryDigest)>,
        max: usize,
    ) -> Result<Vec<(Realm, Location)>> {
        self.connections.read("list the entries", async |c| collect::entries(c, after, max).await)
    }

    fn condemn(&self, lease: LeaseId, packs: &[PackId]) -> Result<Mark> {
        let now = self.clock.now();
        self.connections.write("collect", async |c| collect::condemn(c, lease, now, packs).await)
    }

    fn leases_before(&self, mark: Mark) -> Result<u64> {
        let now = self.clock.now();
        self.connections.read("collect", async |c| leases::alive_before(c, now, mark).await)
    }

    fn spare(&self, lease: LeaseId, packs: &[PackId]) -> Result<()> {
        let now = self.clock.now();
        self.connections.write("collect", async |c| collect::spare(c, lease, now, packs).await)
    }

    fn remove_condemned(&self, lease: LeaseId, packs: &[Doomed]) -> Result<Vec<String>> {
        let now = self.clock.now();
        self.connections.write("collect", async |c| collect::remove(c, lease, now, packs).await)
    }

    fn forget_entries(&self, lease: LeaseId, realm: &Realm, digests: &[EntryDigest]) -> Result<()> {
        let now = self.clock.now();
        self.connections
            .write("forget entries", async |c| packs::forget(c, lease, now, realm, digests).await)
    }

    fn replace_record(
        &self,
        lease: LeaseId,
        version: &VersionId,
        old: EntryDigest,
        new: EntryDigest,
    ) -> Result<()> {
        let now = self.clock.now();
        self.connections.write("replace the record", async |c| {
            publish::replace_record(c, lease, now, version, [old, new]).await
        })
    }

    fn names(&self) -> Result<Names> {
        let now = self.clock.now();
        self.connections.read("read the names", async |c| names::all(c, now).await)
    }

    fn restore_names(&self, names: &Names) -> Result<()> {
        self.connections.write("restore the names", async |c| names::restore(c, names).await)
    }

    fn compact(&self) -> Result<()> {
        self.connections.compact()
    }

    fn statistics(&self) -> Result<CatalogStatistics> {
        self.connections.read("count", async |c| statistics::statistics(c).await)
    }
}
