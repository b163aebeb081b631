//! The first pass: each pack, read back whole.

use std::collections::{HashMap, HashSet};

use catalog::{EntryDigest, Location, PackId, PackRecord};
use format::EntryKind;
use format::pack::{PackEntry, PackIndex, check_header};
use model::{Kind, Result};
use rayon::prelude::*;
use store::PackName;

use super::Scrub;
use super::finding::{Fault, Finding};
use super::verify::verify;
use crate::packer::row_of;
use crate::repository::Repository;

/// Stored bytes that are read, and verified on all cores, at once.
const BATCH_LEN: u64 = 8 << 20;

/// What the first pass has learnt of packs, for the second.
#[derive(Default)]
pub struct Packs {
    /// Every pack that the catalog named when the pass began.
    pub known: HashMap<PackId, PackRecord>,
    /// How many rows name an entry in a pack and agree with its table.
    pub rows_here: HashMap<PackId, u64>,
    /// Packs that are not in the store.
    pub lost: HashSet<PackId>,
    /// Packs whose table cannot be read, and why.
    pub unindexed: HashMap<PackId, String>,
    /// Packs that are wrong in another way, and how: their entries can be read.
    pub unlisted: HashMap<PackId, (Fault, String)>,
}

/// Where entries lie, one by one where rows among them cannot be read: those come back as errors.
pub fn locate_each(
    repository: &Repository,
    digests: &[EntryDigest],
) -> Result<Vec<Result<Option<Location>, String>>> {
    let Repository { catalog, realm, .. } = repository;
    match catalog.locate(realm, digests) {
        Ok(places) => Ok(places.into_iter().map(Ok).collect()),
        Err(error) if error.kind() == Kind::Corrupt => match digests.len() {
            1 => Ok(vec![Err(error.chain())]),
            len => {
                let (left, right) = digests.split_at(len / 2);
                let mut places = locate_each(repository, left)?;
                places.append(&mut locate_each(repository, right)?);
                Ok(places)
            }
        },
        Err(error) => Err(error),
    }
}

impl Scrub<'_> {
    /// Reads every pack back.
    pub fn packs(&mut self) -> Result<Packs> {
        let repository = self.repository;
        // The store first: what is put in between is named by the time the catalog is asked.
        let stored = repository.packs.list()?;
        let records = repository.catalog.packs()?;
        let deep_len = match self.request.deep {
            true => repository.catalog.statistics()?.data_len,
            false => 0,
        };
        let stored_len =
            records.iter().map(|record| record.stored_len).fold(0, u64::saturating_add);
        self.request.progress.expect(Some(stored_len.saturating_add(deep_len)));
        let named: HashSet<&str> = records.iter().map(|record| record.name.as_str()).collect();
        let mut unnamed: Vec<String> = stored
            .iter()
            .map(|name| name.as_str().to_string())
            .filter(|name| !named.contains(name.as_str()))
            .collect();
        unnamed.sort_unstable();
        self.looked.report.unnamed_packs = unnamed;
        self.looked.report.pack_count = records.len() as u64;
        let mut packs = Packs::default();
        for record in &records {
            self.check_cancelled()?;
            self.pack(record, &mut packs)?;
        }
        packs.known = records.into_iter().map(|record| (record.id, record)).collect();
        Ok(packs)
    }

    fn pack(&mut self, record: &PackRecord, packs: &mut Packs) -> Result<()> {
        let store = &self.repository.packs;
        let name = PackName::new(&record.name)?;
        let len = match store.len(&name) {
            Ok(len) => len,
            Err(error) if error.kind() == Kind::NotFound => {
                packs.lost.insert(record.id);
                return Ok(());
            }
            Err(error) => {
                packs.unindexed.insert(record.id, error.chain());
                return Ok(());
            }
        };
        let read = |offset, len| store.read(&name, offset, len);
        let index = match PackIndex::read(len, read) {
            Ok(index) => index,
            Err(error) => {
                packs.unindexed.insert(record.id, error.chain());
                return Ok(());
            }
        };
        let header = read(0, 16).and_then(|bytes| Ok(check_header(&bytes)?));
        let counts = (record.stored_len, record.entry_count);
        if let Err(error) = header {
            packs.unlisted.insert(record.id, (Fault::DamagedPack, error.chain()));
        } else if counts != (len, index.entries().len() as u64) {
            let reason =
                format!("the catalog says that it has {} bytes, {} entries", counts.0, counts.1);
            packs.unlisted.insert(record.id, (Fault::WrongRow, reason));
        }
        let rows_here = self.entries(record, &name, &index)?;
        packs.rows_here.insert(record.id, rows_here);
        Ok(())
    }

    /// Verifies all entries of a pack, and compares its table with the rows. Returns how many rows
    /// name an entry in this pack and agree.
    fn entries(&mut self, pack: &PackRecord, name: &PackName, index: &PackIndex) -> Result<u64> {
        let digests: Vec<EntryDigest> = index.entries().iter().map(|entry| entry.digest).collect();
        let rows = locate_each(self.repository, &digests)?;
        let mut rows_here = 0;
        let mut position = 0;
        for batch in batches(index.entries()) {
            self.check_cancelled()?;
            let outcomes = self.read_batch(name, batch);
            let len: u64 = batch.iter().map(|entry| u64::from(entry.stored_len)).sum();
            self.looked.report.read_len += len;
            self.request.progress.advance(len);
            self.rate.pass(len, self.request.cancel)?;
            for (entry, outcome) in batch.iter().zip(outcomes) {
                rows_here += u64::from(self.entry(pack, entry, outcome, &rows[position]));
                position += 1;
            }
        }
        Ok(rows_here)
    }

    /// Judges one entry. True where its row is right and names this pack.
    fn entry(
        &mut self,
        pack: &PackRecord,
        entry: &PackEntry,
        outcome: Result<(), String>,
        row: &Result<Option<Location>, String>,
    ) -> bool {
        let kind = Some(entry.kind);
        let fault = |fault, reason: String| {
            Finding::entry(fault, entry.digest, reason).of_kind(kind).in_pack(&pack.name)
        };
        match row {
            Err(reason) => {
                self.found_broken(entry.digest, fault(Fault::WrongRow, reason.clone()));
                false
            }
            // Without a row it matters only where a root needs it; with one elsewhere it is a spare.
            Ok(None) => false,
            Ok(Some(row)) if row.pack != pack.id => false,
            Ok(Some(row)) if row.entry != row_of(entry) => {
                let reason = "the catalog names another place, length or kind than the pack";
                self.found_broken(entry.digest, fault(Fault::WrongRow, reason.to_string()));
                false
            }
            Ok(Some(_)) => {
                match outcome {
                    Ok(()) => self.count_sound(entry.kind),
                    Err(reason) => self.found_broken(entry.digest, fault(Fault::Damaged, reason)),
                }
                true
            }
        }
    }

    /// Counts an entry that is as it should be.
    pub fn count_sound(&mut self, kind: EntryKind) {
        match kind {
            EntryKind::Chunk => self.looked.report.chunk_count += 1,
            _ => self.looked.report.metadata_count += 1,
        }
    }

    /// Reads entries that lie one behind the other, and verifies each.
    fn read_batch(&self, name: &PackName, batch: &[PackEntry]) -> Vec<Result<(), String>> {
        let store = &self.repository.packs;
        let Some(first) = batch.first() else { return Vec::new() };
        let len: usize = batch.iter().map(|entry| entry.stored_len as usize).sum();
        let judge = |entry: &PackEntry, stored: &[u8]| verify(&row_of(entry), stored).map(drop);
        match store.read(name, first.offset, len) {
            Ok(bytes) => batch
                .par_iter()
                .map(|entry| {
                    let start = (entry.offset - first.offset) as usize;
                    judge(entry, &bytes[start..start + entry.stored_len as usize])
                })
                .collect(),
            // A disk that cannot read one sector may read the others.
            Err(_) => batch
                .iter()
                .map(|entry| {
                    store
                        .read(name, entry.offset, entry.stored_len as usize)
                        .map_err(|error| error.chain())
                        .and_then(|stored| judge(entry, &stored))
                })
                .collect(),
        }
    }
}

/// Entries in batches of about [`BATCH_LEN`] stored bytes.
fn batches(entries: &[PackEntry]) -> impl Iterator<Item = &[PackEntry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut len = 0;
        let fits = |entry: &&PackEntry| {
            len += u64::from(entry.stored_len);
            len <= BATCH_LEN
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, behind) = rest.split_at(count);
        rest = behind;
        (!batch.is_empty()).then_some(batch)
    })
}
