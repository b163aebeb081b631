//! What a FUSE mount shows: every version of the repository, and the mirror that is served.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use attach::fuse::Tree;
use catalog::ImageFilter;
use mirror::{Binding, Mirror, Patience, ReadOnlyView, StateFolder};
use model::device::Device;
use model::progress::Silent;
use model::{Error, ImageName, Kind, MirrorName, Result, VersionId, VersionNumber};
use repository::Repository;

use crate::commit::{CommitOptions, Committer};

/// All versions, and one mirror.
pub struct MirrorTree {
    repository: Repository,
    state: StateFolder,
    mirror: Arc<Mirror>,
    committer: Arc<Committer>,
    device: Arc<dyn Device>,
    patience: Patience,
    views: Arc<OpenVersions>,
}

/// The versions that somebody has open in a mount.
#[derive(Default)]
pub struct OpenVersions(Mutex<Vec<Weak<ReadOnlyView>>>);

impl OpenVersions {
    fn add(&self, view: &Arc<ReadOnlyView>) {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.retain(|view| view.strong_count() > 0);
        views.push(Arc::downgrade(view));
    }

    /// Ends all waits of their readers for a repository that cannot be reached.
    pub fn give_up(&self) {
        let views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.iter().filter_map(Weak::upgrade).for_each(|view| view.give_up());
    }
}

impl MirrorTree {
    /// Shows `mirror` as `device`, which may be a read-only view of it, and versions, whose readers
    /// wait with `patience` and are known to `views`.
    pub fn new(
        repository: Repository,
        state: StateFolder,
        mirror: Arc<Mirror>,
        committer: Arc<Committer>,
        device: Arc<dyn Device>,
        patience: Patience,
        views: Arc<OpenVersions>,
    ) -> Self {
        MirrorTree { repository, state, mirror, committer, device, patience, views }
    }

    fn check(&self, mirror: &MirrorName) -> Result<()> {
        match mirror == self.mirror.name() {
            true => Ok(()),
            false => Err(Error::new(Kind::NotFound, "open", mirror.as_str())
                .because("this mount shows another mirror")),
        }
    }
}

impl Tree for MirrorTree {
    fn images(&self) -> Result<Vec<ImageName>> {
        let images = self.repository.catalog().images(&ImageFilter::default())?;
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    fn versions(&self, image: &ImageName) -> Result<Vec<VersionNumber>> {
        let versions = self.repository.catalog().versions(image)?;
        Ok(versions.into_iter().map(|version| version.id.version).collect())
    }

    fn version_length(&self, version: &VersionId) -> Result<u64> {
        Ok(self.repository.catalog().version(&version.clone().into())?.facts.length)
    }

    fn open_version(&self, version: &VersionId) -> Result<Arc<dyn Device>> {
        let record = self.repository.catalog().version(&version.clone().into())?;
        self.repository.require_signature(&record)?;
        let binding = Binding {
            parent: record.id,
            content: record.facts.content,
            layout: record.facts.layout,
            length: record.facts.length,
        };
        let view = Arc::new(ReadOnlyView::open(&self.state, &binding, self.repository.chunks())?);
        view.set_patience(self.patience);
        self.views.add(&view);
        Ok(view)
    }

    fn is_read_only(&self) -> bool {
        self.device.is_read_only()
    }

    fn mirrors(&self) -> Result<Vec<MirrorName>> {
        Ok(vec![self.mirror.name().clone()])
    }

    fn mirror_length(&self, mirror: &MirrorName) -> Result<u64> {
        self.check(mirror)?;
        Ok(self.device.length())
    }

    fn open_mirror(&self, mirror: &MirrorName) -> Result<Arc<dyn Device>> {
        self.check(mirror)?;
        Ok(self.device.clone())
    }

    fn clone_mirror(&self, mirror: &MirrorName, image: &ImageName) -> Result<VersionId> {
        self.check(mirror)?;
        self.committer.clone_to(image)
    }

    fn commit_mirror(&self, mirror: &MirrorName) -> Result<VersionId> {
        self.check(mirror)?;
        let outcome = self.committer.commit(&CommitOptions::default(), &Silent)?;
        let version = VersionNumber::new(outcome.version)
            .ok_or_else(|| Error::new(Kind::Bug, "commit", mirror.as_str()))?;
        Ok(VersionId { image: ImageName::new(&outcome.image)?, version })
    }
}
