//! The trait of engines that keep packs.

use std::fmt;

use model::{Error, Kind, Result};

/// The random name of a pack: 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackName(String);

impl PackName {
    /// The name, if it is 32 hexadecimal digits.
    pub fn new(text: &str) -> Result<Self> {
        let sound = text.len() == 32
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !sound {
            return Err(Error::new(Kind::Corrupt, "use the pack name", format!("`{text}`"))
                .because("a pack name is 32 hexadecimal digits"));
        }
        Ok(PackName(text.to_string()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Keeps packs: immutable, with random names. Calls may come from many threads at once.
///
/// The contract, which [`contract`] tests on every engine:
/// 1. A pack is durable and whole when `put` returns, and not visible before it is whole.
/// 2. A pack is never changed; `put` under a name that exists fails with `Exists`.
/// 3. `read` of bytes that a pack does not have fails with `Corrupt`; of a pack that does not
///    exist, with `NotFound`.
/// 4. `remove` of a pack that does not exist succeeds.
/// 5. A `put` that fails leaves nothing under the name. What one that died has left is listed by
///    `unfinished`, beside what a `put` under way is writing: only who knows that its writer is gone
///    discards it.
pub trait PackStore: Send + Sync {
    /// Stores a pack. Durable when it returns.
    fn put(&self, name: &PackName, bytes: &[u8]) -> Result<()>;

    /// Reads `len` bytes of a pack from `offset`.
    fn read(&self, name: &PackName, offset: u64, len: usize) -> Result<Vec<u8>>;

    /// Bytes of a pack.
    fn len(&self, name: &PackName) -> Result<u64>;

    /// The names of all packs, in no order.
    fn list(&self) -> Result<Vec<PackName>>;

    /// Removes a pack.
    fn remove(&self, name: &PackName) -> Result<()>;

    /// Packs that are being put, or whose `put` died, each with the bytes it takes; in no order.
    fn unfinished(&self) -> Result<Vec<(PackName, u64)>>;

    /// Removes what a `put` that died has left. Does nothing where there is nothing.
    fn discard_unfinished(&self, name: &PackName) -> Result<()>;
}

/// The contract of [`PackStore`] as a test suite: every engine's tests call it.
pub mod contract {
    use super::*;

    /// Panics where `store`, which must be empty, breaks the contract.
    pub fn check(store: &dyn PackStore) {
        let name = |digit: char| PackName::new(&digit.to_string().repeat(32)).expect("well-formed");
        let (a, b) = (name('a'), name('b'));
        assert_eq!(store.read(&a, 0, 1).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(store.len(&a).unwrap_err().kind(), Kind::NotFound);
        store.put(&a, b"0123456789").unwrap();
        assert_eq!(store.put(&a, b"other").unwrap_err().kind(), Kind::Exists);
        assert_eq!(store.read(&a, 2, 3).unwrap(), b"234");
        assert_eq!(store.read(&a, 0, 10).unwrap(), b"0123456789");
        for (offset, len) in [(0, 11), (10, 1), (u64::MAX, 1), (5, usize::MAX)] {
            assert_eq!(store.read(&a, offset, len).unwrap_err().kind(), Kind::Corrupt, "{offset}");
        }
        assert_eq!(store.len(&a).unwrap(), 10);
        store.put(&b, b"").unwrap();
        let mut names = store.list().unwrap();
        names.sort();
        assert_eq!(names, [a.clone(), b.clone()]);
        store.remove(&a).unwrap();
        store.remove(&a).unwrap();
        assert_eq!(store.list().unwrap(), [b]);
        assert_eq!(store.read(&a, 0, 1).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(store.unfinished().unwrap(), []);
        store.discard_unfinished(&a).unwrap();
    }
}
