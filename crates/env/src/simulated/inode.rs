//! One file of the simulated disk: its pages, and what it would be if power were lost now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::entropy::SeededEntropy;

pub(super) const PAGE_LEN: usize = 4096;
pub(super) const SECTOR_LEN: usize = 512;
/// Older values of a sector or a length that are remembered; the oldest is the synced one.
const VERSIONS_MAX: usize = 4;

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    pub(super) pages: HashMap<u64, Arc<[u8; PAGE_LEN]>>,
    pub(super) len: u64,
    /// Sector -> the values it had since the last sync, oldest (the synced one) first.
    pub(super) unsynced: BTreeMap<u64, Vec<[u8; SECTOR_LEN]>>,
    /// The lengths since the last sync, oldest first; empty where it did not change.
    pub(super) older_lens: Vec<u64>,
    pub(super) locked_by: Option<u64>,
    pub(super) shared_by: BTreeSet<u64>,
}

pub(super) fn remember<T>(versions: &mut Vec<T>, older: T) {
    if versions.len() == VERSIONS_MAX {
        versions.remove(1);
    }
    versions.push(older);
}

impl Inode {
    pub(super) fn sector(&self, sector: u64) -> [u8; SECTOR_LEN] {
        let mut bytes = [0; SECTOR_LEN];
        let at = sector * SECTOR_LEN as u64;
        if let Some(page) = self.pages.get(&(at / PAGE_LEN as u64)) {
            let from = (at % PAGE_LEN as u64) as usize;
            bytes.copy_from_slice(&page[from..from + SECTOR_LEN]);
        }
        bytes
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let count = (buffer.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let from = (at % PAGE_LEN as u64) as usize;
            let step = (PAGE_LEN - from).min(count - done);
            match self.pages.get(&(at / PAGE_LEN as u64)) {
                Some(page) => buffer[done..done + step].copy_from_slice(&page[from..from + step]),
                None => buffer[done..done + step].fill(0),
            }
            done += step;
        }
        count
    }

    /// Remembers what the sectors of a range held.
    pub(super) fn remember(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let sector_len = SECTOR_LEN as u64;
        for sector in offset / sector_len..(offset + len).div_ceil(sector_len) {
            let older = self.sector(sector);
            remember(self.unsynced.entry(sector).or_default(), older);
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        self.remember(offset, bytes.len() as u64);
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let from = (at % PAGE_LEN as u64) as usize;
            let step = (PAGE_LEN - from).min(bytes.len() - done);
            let page = self.pages.entry(at / PAGE_LEN as u64).or_insert_with(zero_page);
            Arc::make_mut(page)[from..from + step].copy_from_slice(&bytes[done..done + step]);
            done += step;
        }
        self.grow(offset + bytes.len() as u64);
    }

    pub(super) fn grow(&mut self, end: u64) {
        if end > self.len {
            let older = self.len;
            remember(&mut self.older_lens, older);
            self.len = end;
        }
    }

    /// Makes a range zeros; pages that lie wholly in it are given back.
    pub(super) fn zero(&mut self, offset: u64, end: u64) {
        let page_len = PAGE_LEN as u64;
        let touched: Vec<u64> = match end.saturating_sub(offset) / page_len {
            count if count < self.pages.len() as u64 => {
                (offset / page_len..end.div_ceil(page_len)).collect()
            }
            _ => self.pages.keys().copied().filter(|page| (page + 1) * page_len > offset).collect(),
        };
        for number in touched {
            let (from, to) = (offset.max(number * page_len), end.min((number + 1) * page_len));
            if from >= to || !self.pages.contains_key(&number) {
                continue;
            }
            self.remember(from, to - from);
            if to - from == page_len {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                let base = number * page_len;
                Arc::make_mut(page)[(from - base) as usize..(to - base) as usize].fill(0);
            }
        }
    }

    pub(super) fn let_go(&mut self, handle: u64) {
        self.shared_by.remove(&handle);
        if self.locked_by == Some(handle) {
            self.locked_by = None;
        }
    }

    pub(super) fn lose_power(&mut self, entropy: &SeededEntropy) {
        for (sector, versions) in std::mem::take(&mut self.unsynced) {
            let pick = entropy.next() as usize % (versions.len() + 1);
            if let Some(bytes) = versions.get(pick) {
                let at = sector * SECTOR_LEN as u64;
                let from = (at % PAGE_LEN as u64) as usize;
                let page = self.pages.entry(at / PAGE_LEN as u64).or_insert_with(zero_page);
                Arc::make_mut(page)[from..from + SECTOR_LEN].copy_from_slice(bytes);
            }
        }
        let lens = std::mem::take(&mut self.older_lens);
        let pick = entropy.next() as usize % (lens.len() + 1);
        self.len = lens.get(pick).copied().unwrap_or(self.len);
        self.zero(self.len, u64::MAX);
        self.unsynced.clear();
    }
}

fn zero_page() -> Arc<[u8; PAGE_LEN]> {
    Arc::new([0; PAGE_LEN])
}
