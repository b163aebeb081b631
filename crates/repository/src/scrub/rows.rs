//! The second pass: each row of the catalog names a pack that holds what the row says.
//!
//! Rows come by digest, so those of one pack lie anywhere. Packs with a sound table were compared
//! with their rows in the first pass; here rows are only counted, and looked at again where there
//! are more than that.

use std::collections::{HashMap, HashSet};

use catalog::{EntryDigest, Location, PackId};
use format::EntryKind;
use format::pack::PackIndex;
use model::{Kind, Result};
use store::PackName;

use super::Scrub;
use super::finding::{Fault, Finding};
use super::packs::Packs;
use super::verify::verify;
use crate::repository::Repository;

/// How many rows are fetched at once.
const ROWS_PER_CALL: usize = 4096;

/// Calls `visit` for each row of the repository's realm.
///
/// # Errors
/// `Corrupt` where a row cannot be read.
pub fn for_each_row(
    repository: &Repository,
    mut visit: impl FnMut(&Location) -> Result<()>,
) -> Result<()> {
    let mut after: Option<(model::Realm, EntryDigest)> = None;
    loop {
        let from = after.as_ref().map(|(realm, digest)| (realm, *digest));
        let rows = repository.catalog.entries(from, ROWS_PER_CALL)?;
        let Some((realm, last)) = rows.last() else { return Ok(()) };
        after = Some((realm.clone(), last.entry.digest));
        for (realm, place) in &rows {
            if *realm == repository.realm {
                visit(place)?;
            }
        }
    }
}

impl Scrub<'_> {
    /// Compares rows with packs.
    pub fn rows(&mut self, packs: &Packs) -> Result<()> {
        let mut count: HashMap<PackId, u64> = HashMap::new();
        let repository = self.repository;
        let walked = for_each_row(repository, |place| {
            self.check_cancelled()?;
            *count.entry(place.pack).or_default() += 1;
            if packs.lost.contains(&place.pack) {
                self.lost_entry(place)?;
            } else if packs.unindexed.contains_key(&place.pack) {
                self.unindexed_entry(place)?;
            }
            Ok(())
        });
        match walked {
            Err(error) if error.kind() == Kind::Corrupt => {
                // Those that roots need are found one by one in the third pass.
                self.found(Finding::new(Fault::WrongRow, error.chain()));
            }
            other => other?,
        }
        let suspects: HashSet<PackId> = packs
            .rows_here
            .iter()
            .filter(|(pack, here)| count.get(pack).is_some_and(|count| count > here))
            .map(|(pack, _)| *pack)
            .collect();
        self.strangers(packs, &suspects)?;
        self.judge_packs(packs, &count);
        Ok(())
    }

    /// A row that names a pack which is not in the store.
    fn lost_entry(&mut self, place: &Location) -> Result<()> {
        // Collect may have moved the entry, or forgotten the pack, since the first pass.
        let again =
            self.repository.catalog.locate(&self.repository.realm, &[place.entry.digest])?;
        if again.first().is_some_and(|again| again.as_ref() == Some(place)) {
            let kind = EntryKind::try_from(place.entry.kind).ok();
            let reason = "its pack is not in the store";
            let finding = Finding::entry(Fault::Missing, place.entry.digest, reason);
            self.found_broken(place.entry.digest, finding.of_kind(kind).in_pack(&place.pack_name));
        }
        Ok(())
    }

    /// A row that names a pack whose table cannot be read: the row alone says what lies where.
    fn unindexed_entry(&mut self, place: &Location) -> Result<()> {
        let entry = &place.entry;
        let name = PackName::new(&place.pack_name)?;
        let len = u64::from(entry.stored_len);
        let stored = self.repository.packs.read(&name, entry.offset, entry.stored_len as usize);
        let verified =
            stored.map_err(|error| error.chain()).and_then(|stored| verify(entry, &stored));
        self.looked.report.read_len += len;
        self.request.progress.advance(len);
        self.rate.pass(len, self.request.cancel)?;
        match verified {
            Ok(verified) => self.count_sound(verified.kind),
            Err(reason) => {
                let kind = EntryKind::try_from(entry.kind).ok();
                let finding = Finding::entry(Fault::Damaged, entry.digest, reason);
                self.found_broken(entry.digest, finding.of_kind(kind).in_pack(name.as_str()));
            }
        }
        Ok(())
    }

    /// Rows that name a pack which does not list them.
    fn strangers(&mut self, packs: &Packs, suspects: &HashSet<PackId>) -> Result<()> {
        let mut listed: HashMap<PackId, HashSet<EntryDigest>> = HashMap::new();
        for pack in suspects {
            let name = PackName::new(&packs.known[pack].name)?;
            let store = &self.repository.packs;
            let len = store.len(&name)?;
            let index = PackIndex::read(len, |offset, len| store.read(&name, offset, len))?;
            listed.insert(*pack, index.entries().iter().map(|entry| entry.digest).collect());
        }
        if listed.is_empty() {
            return Ok(());
        }
        let repository = self.repository;
        let walked = for_each_row(repository, |place| {
            let Some(listed) = listed.get(&place.pack) else { return Ok(()) };
            if !listed.contains(&place.entry.digest) {
                let kind = EntryKind::try_from(place.entry.kind).ok();
                let reason = "the catalog names a pack that does not list it";
                let finding = Finding::entry(Fault::WrongRow, place.entry.digest, reason);
                let finding = finding.of_kind(kind).in_pack(&place.pack_name);
                self.found_broken(place.entry.digest, finding);
            }
            Ok(())
        });
        match walked {
            Err(error) if error.kind() == Kind::Corrupt => Ok(()),
            other => other,
        }
    }

    /// Packs that are wrong as a whole, as far as anything lies in them.
    fn judge_packs(&mut self, packs: &Packs, count: &HashMap<PackId, u64>) {
        let mut wrong: Vec<(PackId, Fault, &str)> = Vec::new();
        wrong.extend(packs.lost.iter().map(|pack| (*pack, Fault::Missing, "")));
        wrong.extend(
            packs.unindexed.iter().map(|(pack, why)| (*pack, Fault::DamagedPack, why.as_str())),
        );
        wrong.extend(
            packs.unlisted.iter().map(|(pack, (fault, why))| (*pack, *fault, why.as_str())),
        );
        wrong.sort_unstable_by_key(|(pack, ..)| *pack);
        for (pack, fault, reason) in wrong {
            let name = &packs.known[&pack].name;
            match (count.get(&pack), fault) {
                (None, _) => self.looked.report.abandoned_packs.push(name.clone()),
                // Its entries are what is missing.
                (Some(_), Fault::Missing) => {}
                (Some(_), fault) => {
                    self.looked.unlisted.insert(pack);
                    self.found(Finding::pack(fault, name, reason));
                }
            }
        }
    }
}
