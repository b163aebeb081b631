//! The trait of catalogs, and its promises.

use std::time::Duration;

use model::digest::Hook;
use model::name::LabelKey;
use model::{ImageName, Realm, Reference, Result, TagName, VersionId};

use crate::records::{
    CatalogStatistics, EntryDigest, ImageFilter, ImageRecord, LeaseId, Location, NewPack, PackId,
    PackRecord, Publication, VersionRecord,
};

/// Names, versions, hooks, places of chunks, leases.
///
/// Calls may come from many threads and processes at once; each is one transaction, and durable
/// when it returns. Promises, which [`crate::contract`] tests on every engine:
///
/// 1. A version exists wholly or not at all, and never changes, but for its tags, counts and layout.
/// 2. Version numbers of an image ascend from 1 in the order of publishing, and are never reused:
///    not after a version is removed, and not after the image is removed and made anew.
/// 3. A publication succeeds only while its lease is alive and every pack it names exists;
///    otherwise it fails with `Stale` and nothing has happened.
/// 4. A lookup that fails to find a name says which names come near (in the hint).
/// 5. Nothing crosses realms: a pack's entries and hooks are found in its realm only.
///
/// # Errors
/// `NotFound`, `Exists`, `Stale`, `Invalid` as said above and below; `Full` and `Unavailable` from
/// the disk or the database beneath.
pub trait Catalog: Send + Sync {
    /// The images that pass the filter, by name.
    fn images(&self, filter: &ImageFilter) -> Result<Vec<ImageRecord>>;

    /// The version that a reference means now.
    fn version(&self, reference: &Reference) -> Result<VersionRecord>;

    /// All versions of an image, ascending.
    fn versions(&self, image: &ImageName) -> Result<Vec<VersionRecord>>;

    /// Makes version 1 of a new image out of a version that exists. Copies nothing. Parent of the
    /// new version is the one it was cloned from.
    fn clone_version(&self, from: &VersionId, image: &ImageName) -> Result<VersionRecord>;

    /// Moves a tag of the version's image to it.
    fn set_tag(&self, version: &VersionId, tag: &TagName) -> Result<()>;

    /// Sets a label of an image; `None` takes it away.
    fn set_label(&self, image: &ImageName, key: &LabelKey, value: Option<&str>) -> Result<()>;

    /// Removes a version and its tags; the image too when it was the last one.
    fn remove_version(&self, version: &VersionId) -> Result<()>;

    /// Removes an image with all its versions. Returns which those were.
    fn remove_image(&self, image: &ImageName) -> Result<Vec<VersionId>>;

    /// Counts one attach of a version.
    fn count_attach(&self, version: &VersionId) -> Result<()>;

    /// Begins a lease that is alive for `time_to_live` from now.
    fn begin_lease(&self, time_to_live: Duration) -> Result<LeaseId>;

    /// Makes a lease that is still alive live for `time_to_live` from now. `Stale` if it has expired.
    fn renew_lease(&self, lease: LeaseId, time_to_live: Duration) -> Result<()>;

    /// Ends a lease whose work was given up. Returns the names of the packs that were put under it
    /// and that nobody else can have used, now unknown to the catalog: the caller removes their
    /// bytes. What others may have used stays, for collect. Calling it after `publish` or twice
    /// does nothing.
    fn abandon_lease(&self, lease: LeaseId) -> Result<Vec<String>>;

    /// Makes a durable pack's entries and hooks visible, under a lease. An entry whose digest is
    /// known already in the realm keeps its old place.
    fn add_pack(&self, lease: LeaseId, pack: &NewPack) -> Result<PackId>;

    /// Where entries lie, in the order asked; `None` for the unknown.
    fn locate(&self, realm: &Realm, digests: &[EntryDigest]) -> Result<Vec<Option<Location>>>;

    /// The packs that hold blocks with these hooks, each once, newest first, at most `max` for each
    /// hook.
    fn packs_with_hooks(&self, realm: &Realm, hooks: &[Hook], max: usize) -> Result<Vec<PackId>>;

    /// A pack by number.
    fn pack(&self, id: PackId) -> Result<PackRecord>;

    /// All packs.
    fn packs(&self) -> Result<Vec<PackRecord>>;

    /// Makes the version exist as the next of its image, moves the tag, ends the lease.
    fn publish(&self, lease: LeaseId, publication: &Publication) -> Result<VersionRecord>;

    /// How much there is.
    fn statistics(&self) -> Result<CatalogStatistics>;
}
