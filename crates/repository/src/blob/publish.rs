//! The loop that lays a patch upon the latest version and publishes, until nobody was faster.
//!
//! Writers of one process take turns, so that one of them at a time tries. A writer in another
//! process may still be faster: then the patch is laid upon the new latest. What was stored before is
//! found again, so that a try costs the edge blocks, the touched maps and the manifest.
//!
//! **Invariant**: of the processes that try at once one gets through, and those that lose rest for a
//! random time whose most does not grow: how long somebody has waited makes nobody slower.

use std::io::Read;
use std::time::Duration;

use catalog::{Condition, Publication, VersionRecord};
use model::{BLOCK_LEN, Error, Kind, Reference, Result, Selector};

use super::patch::{Gather, Patch, too_long};
use super::place::place;
use super::write::{WriteRequest, Written};
use crate::layout::LaidOut;
use crate::lease::Lease;
use crate::rebuild::Rebuild;
use crate::repository::Repository;

/// How often a patch is laid upon a version. With 16 processes that try all the time, each gets
/// through in one of 16 tries; that 512 fail is less likely than one in 10^14.
const TRIES_MAX: u32 = 512;

/// The longest rest after a try in vain.
const REST_MAX: Duration = Duration::from_millis(8);

/// Where a patch goes.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// To this offset.
    Offset(u64),
    /// Behind the end.
    End,
}

impl Target {
    fn operation(self) -> &'static str {
        match self {
            Target::Offset(_) => "write to",
            Target::End => "append to",
        }
    }

    fn upon(self, version: &VersionRecord) -> u64 {
        match self {
            Target::Offset(offset) => offset,
            Target::End => version.facts.length,
        }
    }
}

impl Repository {
    pub(super) fn write_at(
        &self,
        target: Target,
        source: &mut (dyn Read + Send),
        request: &WriteRequest,
    ) -> Result<Written> {
        let latest = Reference { image: request.image.clone(), selector: Selector::Latest };
        let lease = self.begin_lease()?;
        let first = self.catalog.version(&latest)?;
        let gather = Gather {
            repository: self,
            lease: &lease,
            operation: target.operation(),
            subject: request.image.as_str(),
            progress: request.progress,
            cancel: request.cancel,
        };
        let mut patch = gather.gather(target.upon(&first), source)?;
        let mut sums = Sums::default();
        sums.add_patch(&patch);
        let turn = self.turns.take(&request.image);
        for try_count in 1..=TRIES_MAX {
            request.cancel.check(target.operation(), request.image.as_str())?;
            let parent = self.catalog.version(&latest)?;
            let offset = target.upon(&parent);
            if let Patch::Stored(stored) = &patch
                && !patch.fits(offset)
            {
                patch = gather.gather_again(offset, stored)?;
                sums.add_patch(&patch);
            }
            let (publication, laid_out) =
                self.lay_patch(&parent, &patch, offset, target, request, &lease)?;
            sums.add(&laid_out);
            match self.catalog.publish(lease.id(), &publication) {
                Ok(version) => {
                    lease.ended();
                    self.export_names_if_old();
                    let Sums { new_len, stored_len } = sums;
                    let len = patch.len();
                    return Ok(Written { version, offset, len, new_len, stored_len, try_count });
                }
                Err(error) => self.may_try_again(error, &parent, &lease)?,
            }
            // The next try finds there what this one has stored.
            if let Some(pack) = laid_out.written.last_pack {
                self.lists.get(pack)?;
            }
            turn.rest(self.rest());
        }
        Err(Error::new(Kind::Stale, target.operation(), request.image.as_str())
            .because(format!("other processes were faster {TRIES_MAX} times"))
            .hint("try again"))
    }

    /// Lays a patch upon a version; everything that the new version refers to is durable then.
    fn lay_patch(
        &self,
        parent: &VersionRecord,
        patch: &Patch,
        offset: u64,
        target: Target,
        request: &WriteRequest,
        lease: &Lease,
    ) -> Result<(Publication, LaidOut)> {
        let end = offset.checked_add(patch.len());
        if end.is_none_or(|end| end > model::block::LENGTH_MAX) {
            return Err(too_long(target.operation(), request.image.as_str(), offset));
        }
        let manifest = self.manifest_of(parent)?;
        let (bytes, body) = place(self, &manifest, patch, offset)?;
        let rebuild = Rebuild::new(self, &manifest, &bytes, body.as_ref().map(|body| body as _));
        let rebuilt = self.rebuild(
            parent,
            &rebuild,
            &bytes,
            lease,
            (&request.image, &request.origin),
            |_| Ok(()),
        )?;
        let publication = Publication {
            image: request.image.clone(),
            facts: rebuilt.facts,
            based_on: Some((parent.id.clone(), parent.facts.layout)),
            condition: Condition::LatestIs(parent.id.version),
            tag: None,
            record: rebuilt.record,
        };
        Ok((publication, rebuilt.laid_out))
    }

    /// Passes where a publication failed because the image has moved on, and the lease has not
    /// expired.
    fn may_try_again(&self, error: Error, parent: &VersionRecord, lease: &Lease) -> Result<()> {
        if error.kind() != Kind::Stale {
            return Err(error);
        }
        self.catalog.renew_lease(lease.id(), self.lease_time)?;
        let image = parent.id.image.clone();
        let now = self.catalog.version(&Reference { image, selector: Selector::Latest })?;
        match (&now.id, now.facts.layout) == (&parent.id, parent.facts.layout) {
            true => Err(error),
            false => Ok(()),
        }
    }

    /// A random part of [`REST_MAX`].
    fn rest(&self) -> Duration {
        let mut byte = [0];
        self.entropy.fill(&mut byte);
        REST_MAX * u32::from(byte[0]) / 256
    }
}

/// Bytes of all tries.
#[derive(Default)]
struct Sums {
    new_len: u64,
    stored_len: u64,
}

impl Sums {
    fn add_patch(&mut self, patch: &Patch) {
        if let Patch::Stored(stored) = patch {
            self.new_len += stored.new_len;
            self.stored_len += stored.stored_len;
        }
    }

    fn add(&mut self, laid_out: &LaidOut) {
        self.new_len += laid_out.new_block_count * BLOCK_LEN as u64;
        self.stored_len += laid_out.written.stored_len;
    }
}
