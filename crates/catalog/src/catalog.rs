//! The trait of catalogs, and its promises.

use std::time::Duration;

use model::digest::Hook;
use model::name::LabelKey;
use model::{
    ContentDigest, ImageName, LayoutDigest, Names, Realm, Reference, Result, TagName, VersionId,
};

use crate::records::{
    BootSetRecord, CatalogStatistics, DocumentRecord, Doomed, EntryDigest, HoldRecord, ImageFilter,
    ImageRecord, LeaseId, Location, Mark, NewPack, PackId, PackRecord, Publication, Revision, Root,
    VersionRecord,
};

/// Names, versions, hooks, places of chunks, leases.
///
/// Calls may come from many threads and processes at once; each is one transaction, and durable
/// when it returns, but for counts of attaches and for leases, which mean nothing after power loss. Promises, which [`crate::contract`] tests on every engine:
///
/// 1. A version exists wholly or not at all, and never changes, but for its tags, counts and layout.
/// 2. Version numbers of an image ascend from 1 in the order of publishing, and are never reused:
///    not after a version is removed, and not after the image is removed and made anew.
/// 3. A publication succeeds only while its lease is alive and what it is based on has the layout
///    that it says; otherwise it fails with `Stale` and nothing has happened.
/// 4. A lookup that fails to find a name says which names come near (in the hint).
/// 5. Nothing crosses realms: a pack's entries and hooks are found in its realm only.
/// 6. What a live lease has put or claimed stays until the lease ends, and what a version or a hold
///    refers to stays as long as it does, provided that packs are removed by the protocol of
///    `docs/formats/catalog.md`, "How packs are removed".
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
    /// new version is the one it was cloned from; of a machine, the disk that it stands on.
    fn clone_version(&self, from: &VersionId, image: &ImageName) -> Result<VersionRecord>;

    /// Moves a tag of the version's image to it.
    fn set_tag(&self, version: &VersionId, tag: &TagName) -> Result<()>;

    /// Sets a label of an image; `None` takes it away.
    fn set_label(&self, image: &ImageName, key: &LabelKey, value: Option<&str>) -> Result<()>;

    /// Removes a version and its tags; the image too when it was the last one. `Refused` where a
    /// machine stands on it.
    fn remove_version(&self, version: &VersionId) -> Result<()>;

    /// Removes an image with all its versions. Returns which those were. `Refused` where a machine of
    /// another image stands on one of them.
    fn remove_image(&self, image: &ImageName) -> Result<Vec<VersionId>>;

    /// Counts one attach of a version.
    fn count_attach(&self, version: &VersionId) -> Result<()>;

    /// Begins a lease that is alive for `time_to_live` from now.
    fn begin_lease(&self, time_to_live: Duration) -> Result<LeaseId>;

    /// Makes a lease that is still alive live for `time_to_live` from now. `Stale` if it has expired.
    fn renew_lease(&self, lease: LeaseId, time_to_live: Duration) -> Result<()>;

    /// Ends a lease whose work was given up or needs no publication. Returns the names of the packs
    /// that were put under it and that nobody else has claimed, now unknown to the catalog: the
    /// caller removes their bytes. Calling it after `publish` or twice does nothing.
    fn abandon_lease(&self, lease: LeaseId) -> Result<Vec<String>>;

    /// Makes a durable pack's entries and hooks visible, under a lease. An entry whose digest is
    /// known already in the realm keeps its old place, which is claimed.
    fn add_pack(&self, lease: LeaseId, pack: &NewPack) -> Result<PackId>;

    /// Where entries lie, in the order asked; `None` for the unknown.
    fn locate(&self, realm: &Realm, digests: &[EntryDigest]) -> Result<Vec<Option<Location>>>;

    /// Finds entries that the holder of a lease is about to refer to, in the order asked, `None` for
    /// the unknown. Those found stay until the lease ends: their packs are condemned no longer, and
    /// go with nobody else's lease. `Stale` where the lease has expired and that had to be written.
    ///
    /// Cost: as [`Catalog::locate`], unless a pack is condemned or another's.
    fn claim(
        &self,
        lease: LeaseId,
        realm: &Realm,
        digests: &[EntryDigest],
    ) -> Result<Vec<Option<Location>>>;

    /// The packs that hold blocks with these hooks, each once, newest first, at most `max` for each
    /// hook; condemned ones are left out.
    fn packs_with_hooks(&self, realm: &Realm, hooks: &[Hook], max: usize) -> Result<Vec<PackId>>;

    /// A pack by number.
    fn pack(&self, id: PackId) -> Result<PackRecord>;

    /// All packs.
    fn packs(&self) -> Result<Vec<PackRecord>>;

    /// Makes the version exist as the next of its image, moves the tag, ends the lease.
    fn publish(&self, lease: LeaseId, publication: &Publication) -> Result<VersionRecord>;

    /// Makes a disk exist as the next version of its image, and the machine that stands on it as the
    /// next of its own: both or neither. The machine's parent is the disk's version, whatever its
    /// facts say. Ends the lease.
    fn publish_machine(
        &self,
        lease: LeaseId,
        disk: &Publication,
        machine: &Publication,
    ) -> Result<[VersionRecord; 2]>;

    /// The layout of a content: of a version or a hold that has it, the newest; `None` where there
    /// is neither any more.
    fn layout_of(&self, content: ContentDigest) -> Result<Option<LayoutDigest>>;

    /// Gives the versions and holds of a content a new layout, where they have the old one. Returns
    /// how many those were. The packs put under the lease are nobody's from then on; the lease
    /// lives on.
    fn swap_layout(
        &self,
        lease: LeaseId,
        content: ContentDigest,
        old: LayoutDigest,
        new: LayoutDigest,
    ) -> Result<u64>;

    /// Gives a content a working set under a name, or another one. The packs put under the lease
    /// are nobody's from then on; the lease lives on. `NotFound` where neither a version nor a hold
    /// has the content. The set goes when the last of those goes.
    fn set_boot_set(&self, lease: LeaseId, set: &BootSetRecord) -> Result<()>;

    /// The working sets of a content, by name.
    fn boot_sets(&self, content: ContentDigest) -> Result<Vec<BootSetRecord>>;

    /// Keeps a document with a content, in the place of one of the same name. The packs put under
    /// the lease are nobody's from then on; the lease lives on. `NotFound` where neither a version
    /// nor a hold has the content. It goes when the last of those goes.
    fn set_document(&self, lease: LeaseId, document: &DocumentRecord) -> Result<()>;

    /// Takes a document away from a content. Does nothing where there is none.
    fn remove_document(&self, content: ContentDigest, name: &str) -> Result<()>;

    /// The documents of a content, by name.
    fn documents(&self, content: ContentDigest) -> Result<Vec<DocumentRecord>>;

    /// Holds a version for somebody: what it refers to stays, also when the version is removed, until
    /// it is released or `time_to_live` is over. A holder holds one version: an earlier hold ends.
    fn hold(
        &self,
        version: &VersionId,
        holder: &str,
        time_to_live: Option<Duration>,
    ) -> Result<VersionRecord>;

    /// Makes a hold live for `time_to_live` from now. `NotFound` where it has been forgotten.
    fn renew_hold(&self, holder: &str, time_to_live: Duration) -> Result<()>;

    /// Ends a hold. Does nothing where there is none.
    fn release(&self, holder: &str) -> Result<()>;

    /// All holds that have not expired, by holder.
    fn holds(&self) -> Result<Vec<HoldRecord>>;

    /// Begins the lease of a collect. There is one collect at a time: `Busy` while the lease of
    /// another is alive.
    fn begin_collect(&self, time_to_live: Duration) -> Result<LeaseId>;

    /// Versions and holds that came to be, or were laid out anew, after a revision; ascending by
    /// revision, at most `max` and those of equal revision beyond. From the default revision: all.
    fn roots(&self, after: Revision, max: usize) -> Result<Vec<Root>>;

    /// Entries in ascending order of realm and digest, behind the one given, at most `max`, each with
    /// its pack.
    fn entries(
        &self,
        after: Option<(&Realm, EntryDigest)>,
        max: usize,
    ) -> Result<Vec<(Realm, Location)>>;

    /// Marks packs for removal: those that no live lease has put and that are not condemned yet.
    /// From now on hooks no longer lead to them. Under the lease of a collect.
    fn condemn(&self, lease: LeaseId, packs: &[PackId]) -> Result<Mark>;

    /// How many leases of work are alive that began before a mark.
    fn leases_before(&self, mark: Mark) -> Result<u64>;

    /// Takes the mark from packs that turned out to be referred to, and makes them nobody's.
    fn spare(&self, lease: LeaseId, packs: &[PackId]) -> Result<()>;

    /// Makes the catalog forget those of the packs that are condemned still, and whose mark no live
    /// lease of work precedes. Returns their names: the caller removes their bytes. Under the lease
    /// of a collect, and only for packs that its search for references, begun after their mark, has
    /// not met.
    fn remove_condemned(&self, lease: LeaseId, packs: &[Doomed]) -> Result<Vec<String>>;

    /// Makes a durable pack visible that holds copies of known entries: their places are in it from
    /// now on. The pack is nobody's.
    fn move_entries(&self, lease: LeaseId, pack: &NewPack) -> Result<PackId>;

    /// Forgets entries that cannot be read and that nothing refers to, so that writers bring them
    /// again. Their packs stay.
    fn forget_entries(&self, lease: LeaseId, realm: &Realm, digests: &[EntryDigest]) -> Result<()>;

    /// Says that another entry tells of a version's publication: the one that did is lost. `Stale`
    /// where the version has another record than `old`, or is gone.
    fn replace_record(
        &self,
        lease: LeaseId,
        version: &VersionId,
        old: EntryDigest,
        new: EntryDigest,
    ) -> Result<()>;

    /// All names, as of one instant; images and holds by name. Holds that have expired are left out.
    fn names(&self) -> Result<Names>;

    /// Puts names into a catalog that has none. `Refused` where it has.
    fn restore_names(&self, names: &Names) -> Result<()>;

    /// Gives space that the catalog no longer needs back to the file system.
    fn compact(&self) -> Result<()>;

    /// How much there is.
    fn statistics(&self) -> Result<CatalogStatistics>;
}
