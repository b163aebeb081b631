//! Packs in memory, for tests. Leaves out durability and failure.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{Error, Kind, Result};

use crate::pack_store::{PackName, PackStore};

/// Packs in memory.
#[derive(Debug, Default)]
pub struct MemoryPackStore {
    packs: Mutex<HashMap<PackName, Vec<u8>>>,
}

impl MemoryPackStore {
    /// Flips one bit of a pack, so that a test can see the damage found.
    pub fn flip_bit(&self, name: &PackName, offset: usize) {
        if let Some(byte) = self.guard().get_mut(name).and_then(|bytes| bytes.get_mut(offset)) {
            *byte ^= 1;
        }
    }

    fn guard(&self) -> MutexGuard<'_, HashMap<PackName, Vec<u8>>> {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn missing(operation: &'static str, name: &PackName) -> Error {
    Error::new(Kind::NotFound, operation, name.as_str()).because("no such pack")
}

impl PackStore for MemoryPackStore {
    fn put(&self, name: &PackName, bytes: &[u8]) -> Result<()> {
        let mut packs = self.guard();
        if packs.contains_key(name) {
            return Err(Error::new(Kind::Exists, "put the pack", name.as_str()));
        }
        packs.insert(name.clone(), bytes.to_vec());
        Ok(())
    }

    fn read(&self, name: &PackName, offset: u64, len: usize) -> Result<Vec<u8>> {
        let packs = self.guard();
        let bytes = packs.get(name).ok_or_else(|| missing("read the pack", name))?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = start..start.saturating_add(len);
        bytes.get(range).map(<[u8]>::to_vec).ok_or_else(|| {
            Error::new(Kind::Corrupt, "read the pack", name.as_str()).because("it ends too early")
        })
    }

    fn len(&self, name: &PackName) -> Result<u64> {
        let packs = self.guard();
        packs.get(name).map(|b| b.len() as u64).ok_or_else(|| missing("measure the pack", name))
    }

    fn list(&self) -> Result<Vec<PackName>> {
        Ok(self.guard().keys().cloned().collect())
    }

    fn remove(&self, name: &PackName) -> Result<()> {
        self.guard().remove(name);
        Ok(())
    }

    fn unfinished(&self) -> Result<Vec<(PackName, u64)>> {
        Ok(Vec::new())
    }

    fn discard_unfinished(&self, _name: &PackName) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_contract_holds() {
        crate::pack_store::contract::check(&super::MemoryPackStore::default());
    }
}
