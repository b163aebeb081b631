//! Repair: what is broken is restored from copies.
//!
//! ```text
//! broken entry ─► another pack that lists it ─► its blocks in other chunks, and what is left of it
//!              ─► a segment of the same bytes, here or in another repository ─► the entry again
//!                                                                            └► or a new layout
//! ```
//!
//! **Invariants**: rows move only to bytes that were verified and are durable. Nothing is removed but
//! rows of entries that cannot be read and that nothing refers to: writers bring those again.
//!
//! **Failure**: a repair that ends early has restored a part; the next one goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use catalog::{EntryDigest, Revision};
use format::{EntryKind, encode_record, record_digest};
use model::{BlockDigest, Kind, Reference, Result};

use super::copies::{BlockReader, Copies, find_blocks};
use super::finding::{Fault, Finding, Outcome};
use super::restored::Restored;
use super::rows::for_each_row;
use super::verify::{Verified, verify, verify_plain};
use super::{Broken, Looked, Scrub, ScrubRequest, Scrubbed};
use crate::chunks::RepositoryChunks;
use crate::repository::Repository;
use crate::walk::for_each_root;

/// How many bytes of chunks that are known in part are kept in memory.
const PARTS_LEN_MAX: usize = 64 << 20;

/// What is known of a chunk that cannot be restored whole yet: its blocks, verified.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    pub(super) blocks: Vec<Option<Vec<u8>>>,
}

impl Part {
    /// Adds a block.
    pub fn add(&mut self, index: u32, bytes: &[u8]) {
        let index = index as usize;
        if self.blocks.len() <= index {
            self.blocks.resize(index + 1, None);
        }
        self.blocks[index].get_or_insert_with(|| bytes.to_vec());
    }

    /// The whole chunk, if its blocks are all there.
    pub fn whole(&self, digest: EntryDigest) -> Option<Verified> {
        let blocks: Option<Vec<&[u8]>> = self.blocks.iter().map(|block| block.as_deref()).collect();
        verify_plain(EntryKind::Chunk, digest, blocks?.concat()).ok()
    }
}

/// A repair under way.
pub(super) struct Repair<'a> {
    pub(super) repository: &'a Repository,
    pub(super) from: Option<&'a Repository>,
    pub(super) request: &'a ScrubRequest<'a>,
    pub(super) lease: catalog::LeaseId,
    pub(super) restored: Restored<'a>,
    pub(super) copies: Copies,
    pub(super) chunks: Arc<RepositoryChunks>,
    pub(super) parts: HashMap<EntryDigest, Part>,
    looked: Looked,
    /// Where each entry was restored from.
    sources: HashMap<EntryDigest, String>,
}

impl Repository {
    /// Scrubs, and restores what is broken: from other packs of this repository, from blocks in
    /// other chunks, from versions with equal bytes here and in `from`. The report is that of the
    /// scrub, each finding with what became of it; what is lost names the versions that it is lost
    /// from.
    ///
    /// Cost: a scrub; the index of every pack two or three times; the segments that are read from
    /// elsewhere. Memory for one segment beyond what a scrub needs.
    ///
    /// # Errors
    /// As of a scrub; `Full`. What was restored until then stays.
    pub fn repair(&self, request: &ScrubRequest, from: Option<&Repository>) -> Result<Scrubbed> {
        let lease = self.begin_lease()?;
        let looked = self.look(request)?;
        if looked.report.is_sound() {
            return Ok(looked.report);
        }
        let wanted: HashSet<EntryDigest> = looked.broken.keys().copied().collect();
        let mut repair = Repair {
            repository: self,
            from,
            request,
            lease: lease.id(),
            restored: Restored::new(self, lease.id()),
            copies: Copies::find(self, &wanted)?,
            chunks: Arc::new(self.plain_chunks()),
            parts: HashMap::new(),
            looked,
            sources: HashMap::new(),
        };
        repair.move_unlisted()?;
        loop {
            repair.restore_copies()?;
            repair.restore_from_blocks()?;
            repair.restored.flush()?;
            // What can be read again may refer to more that cannot.
            if !repair.look_again()? {
                break;
            }
        }
        let touched: Vec<_> = repair.looked.touched.iter().copied().collect();
        repair.lay_out_anew(touched)?;
        repair.write_records_anew()?;
        repair.restored.flush()?;
        repair.conclude()
    }
}

impl Repair<'_> {
    /// True where an entry could not be read, and still cannot.
    pub fn is_broken(&self, digest: &EntryDigest) -> bool {
        self.looked.broken.contains_key(digest) && !self.restored.contains(digest)
    }

    /// Restores an entry.
    pub fn restore(&mut self, entry: &Verified, source: impl Into<String>) -> Result<()> {
        self.restored.push(entry)?;
        self.parts.remove(&entry.digest);
        self.sources.insert(entry.digest, source.into());
        Ok(())
    }

    /// Walks the roots once more: what is touched still, and what else is broken. True where more was
    /// found than was known.
    fn look_again(&mut self) -> Result<bool> {
        let shallow = ScrubRequest { deep: false, ..*self.request };
        let mut again = Scrub::new(self.repository, &shallow);
        let known = self.still_broken();
        again.expect_broken(&known);
        again.roots()?;
        let (digests, findings): (Vec<EntryDigest>, Vec<Finding>) = again
            .looked
            .report
            .findings
            .into_iter()
            .filter(|finding| finding.fault != Fault::WrongVersion)
            .filter_map(|finding| Some((finding.digest?, finding)))
            .filter(|(digest, _)| !self.looked.broken.contains_key(digest))
            .unzip();
        self.looked.touched = again.looked.touched;
        let wanted: HashSet<EntryDigest> = digests.iter().copied().collect();
        if wanted.is_empty() {
            return Ok(false);
        }
        self.copies.find_more(self.repository, &wanted)?;
        for (digest, finding) in digests.into_iter().zip(findings) {
            let position = self.looked.report.found(finding);
            self.looked.broken.insert(digest, Broken { finding: position });
        }
        Ok(true)
    }

    fn still_broken(&self) -> Vec<EntryDigest> {
        let mut broken: Vec<EntryDigest> =
            self.looked.broken.keys().filter(|digest| self.is_broken(digest)).copied().collect();
        broken.sort_unstable();
        broken
    }

    /// Whole copies in other packs, or in the same one where a row was wrong.
    fn restore_copies(&mut self) -> Result<()> {
        for digest in self.still_broken() {
            self.request.cancel.check("repair", "the repository")?;
            if let Some((pack, entry)) = self.copies.sound(self.repository, &digest) {
                self.restore(&entry, format!("pack {pack}"))?;
            }
        }
        Ok(())
    }

    /// Chunks from what is left of them and from equal blocks in other chunks.
    fn restore_from_blocks(&mut self) -> Result<()> {
        let chunks: Vec<EntryDigest> = self
            .still_broken()
            .into_iter()
            .filter(|digest| self.copies.lists.contains_key(digest))
            .collect();
        let wanted: HashSet<BlockDigest> =
            chunks.iter().flat_map(|chunk| &self.copies.lists[chunk]).copied().collect();
        let places = find_blocks(self.repository, &wanted)?;
        let mut reader = BlockReader::new(self.repository);
        let mut parts_len = 0;
        for digest in chunks {
            self.request.cancel.check("repair", "the repository")?;
            let list = &self.copies.lists[&digest];
            let mut part = Part { blocks: vec![None; list.len()] };
            self.copies.salvage(self.repository, &digest, &mut part.blocks);
            for (slot, block) in part.blocks.iter_mut().zip(list) {
                if slot.is_none() {
                    *slot = places.get(block).and_then(|places| reader.read(places));
                }
            }
            match part.whole(digest) {
                Some(entry) => self.restore(&entry, "its blocks in other chunks")?,
                None => {
                    parts_len += part.blocks.iter().flatten().map(Vec::len).sum::<usize>();
                    if parts_len <= PARTS_LEN_MAX {
                        self.parts.insert(digest, part);
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives the sound entries of packs that do not list them as they should packs that do.
    fn move_unlisted(&mut self) -> Result<()> {
        if self.looked.unlisted.is_empty() {
            return Ok(());
        }
        let mut places = Vec::new();
        for_each_row(self.repository, |place| {
            if self.looked.unlisted.contains(&place.pack) && !self.is_broken(&place.entry.digest) {
                places.push(place.clone());
            }
            Ok(())
        })?;
        for place in places {
            self.request.cancel.check("repair", "the repository")?;
            let name = store::PackName::new(&place.pack_name)?;
            let stored = self.repository.packs.read(
                &name,
                place.entry.offset,
                place.entry.stored_len as usize,
            )?;
            if let Ok(entry) = verify(&place.entry, &stored) {
                self.restored.push(&entry)?;
            }
        }
        Ok(())
    }

    /// Writes new records for versions whose own are lost: the catalog knows what they said.
    fn write_records_anew(&mut self) -> Result<()> {
        let mut lost = Vec::new();
        for_each_root(&*self.repository.catalog, Revision::default(), |root| {
            let broken = root.record.filter(|record| self.is_broken(record));
            lost.extend(broken.map(|record| (root.version.clone(), record)));
            Ok(())
        })?;
        for (version, old) in lost {
            let Repository { catalog, .. } = self.repository;
            let known = match catalog.version(&Reference::from(version.clone())) {
                Ok(known) => known,
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let mut record = self.repository.record_of(&version.image, &known.facts)?;
            record.version.number = version.version;
            record.version.created_micros = known.created.0;
            let plain = encode_record(&record);
            let digest = record_digest(&plain);
            let kind = EntryKind::Record;
            self.restored.push(&Verified { kind, digest, plain, blocks: Vec::new() })?;
            self.restored.flush()?;
            match catalog.replace_record(self.lease, &version, old, digest) {
                Err(error) if error.kind() == Kind::Stale => {}
                other => other?,
            }
            self.sources.insert(old, "what the catalog knows".to_string());
        }
        Ok(())
    }

    /// Says what became of each finding. Rows of what is lost, but that nothing refers to any more,
    /// go: writers that bring the same bytes again must not be told that they are there.
    fn conclude(self) -> Result<Scrubbed> {
        let left = self.still_broken();
        let Repair { repository, request, lease, looked, sources, .. } = self;
        let shallow = ScrubRequest { deep: false, ..*request };
        let mut again = Scrub::new(repository, &shallow);
        again.expect_broken(&left);
        again.roots()?;
        let is_needed = |digest: &EntryDigest| {
            let position = again.looked.broken.get(digest).and_then(|broken| broken.finding);
            position
                .is_some_and(|position| !again.looked.report.findings[position].touched.is_empty())
        };
        let forgotten: Vec<EntryDigest> =
            left.iter().filter(|digest| !is_needed(digest)).copied().collect();
        repository.catalog.forget_entries(lease, &repository.realm, &forgotten)?;
        let forgotten: HashSet<EntryDigest> = forgotten.into_iter().collect();
        let left: HashSet<EntryDigest> = left.into_iter().collect();
        let wrong: HashSet<_> = again
            .looked
            .report
            .findings
            .iter()
            .filter(|finding| finding.fault == Fault::WrongVersion)
            .flat_map(|finding| finding.touched.iter().map(|touched| touched.version.clone()))
            .collect();
        let mut report = looked.report;
        for finding in &mut report.findings {
            finding.outcome = match finding.digest {
                Some(digest) if forgotten.contains(&digest) && !sources.contains_key(&digest) => {
                    Outcome::Restored("forgotten: nothing refers to it any more".to_string())
                }
                Some(digest) if left.contains(&digest) => Outcome::Lost,
                Some(digest) => {
                    let source = sources.get(&digest).map_or("a new layout", String::as_str);
                    Outcome::Restored(source.to_string())
                }
                None if finding.pack.is_some() => {
                    Outcome::Restored("its entries lie in new packs".to_string())
                }
                None => {
                    match finding.touched.iter().any(|touched| wrong.contains(&touched.version)) {
                        true => Outcome::Lost,
                        false => Outcome::Restored("a new layout".to_string()),
                    }
                }
            };
        }
        Ok(report)
    }
}
