//! A stage upon another version: changed in place, in a mirror of it.

use std::time::Duration;

use catalog::VersionRecord;
use env::{Clock, SystemClock};
use model::{ImageName, Result};
use repository::{Committed, Repository};

use crate::attached::Attached;
use crate::boot::{Kernel, kernels};
use crate::contained::Inside;
use crate::first::{Job, Part};
use crate::tool::Run;
use crate::tree::Tree;

/// How long a look into an image may take.
pub(crate) const LOOK_LIMIT: Duration = Duration::from_secs(300);

/// What came of a stage.
pub(crate) struct Derived {
    /// The version that it is.
    pub committed: Committed,
    /// How long it took from the cached parent to files that can be changed.
    pub opened: Duration,
}

/// Makes a part of the stage, or all of it, and commits it as a version of `image`.
pub(crate) fn make(
    repository: &Repository,
    job: &Job,
    parent: &VersionRecord,
    part: Part,
    image: &ImageName,
) -> Result<Derived> {
    let began = SystemClock.monotonic();
    let run = Run { log: job.log, limit: LOOK_LIMIT, cancel: job.cancel };
    let attached = Attached::open(repository, parent, job.work)?;
    let boot_partition = attached.boot_partition(&run)?;
    let mounted = attached.mount(job.work, job.log, &run)?;
    let (kernel, opened) = {
        let tree = Tree::open(&mounted.folder_from_here())?;
        let opened = SystemClock.monotonic().saturating_sub(began);
        job.log.say(&format!("its parent can be changed after {} ms", opened.as_millis()));
        let inside = Inside {
            root: mounted.folder().to_path_buf(),
            holder: Some(mounted.holder()),
            epoch: job.locked.source_date_epoch,
            room: None,
        };
        let before = kernels(&tree)?;
        job.work_on(&tree, &inside, part)?;
        let changed = boot_partition.is_some() && kernels(&tree)? != before;
        (changed.then(|| Kernel::take_out(&tree, job.work)).transpose()?, opened)
    };
    mounted.finish()?;
    if let (Some(kernel), Some(offset)) = (kernel, boot_partition) {
        job.log.say("another kernel: it goes to the boot partition");
        kernel.put(attached.file(), offset, job)?;
    }
    job.cancel.check("build", &job.place.file)?;
    let committed = attached.commit(image, format!("build {}", job.stage.name.get_ref()))?;
    Ok(Derived { committed, opened })
}
