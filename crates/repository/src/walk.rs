//! A walk over the roots: what versions and holds refer to, each distinct part once.
//!
//! ```text
//! root ── layout ── manifest root ── leaves ── (segment, content, map) ── chunks
//! ```
//!
//! **Invariant**: memory is bounded: [`Seen`] forgets nothing that it has promised to remember, but
//! promises only so much. What it has no room for is new each time: visited again, never left out.

use std::collections::HashSet;

use catalog::{Catalog, EntryDigest, Revision, Root};
use model::Result;

/// How many digests a walk remembers: at most some 40 MB. Distinct maps of some 32 TiB.
pub const SEEN_MAX: usize = 1 << 19;

/// How many roots are fetched at once.
const ROOTS_PER_CALL: usize = 1024;

/// Remembers which digests were met, as far as there is room.
#[derive(Debug)]
pub struct Seen {
    digests: HashSet<EntryDigest>,
    max: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Seen::new(SEEN_MAX)
    }
}

impl Seen {
    /// Room for `max` digests.
    pub fn new(max: usize) -> Self {
        Seen { digests: HashSet::new(), max }
    }

    /// Forgets a digest: it is new once more.
    pub fn forget(&mut self, digest: &EntryDigest) {
        self.digests.remove(digest);
    }

    /// True where the digest was not met before, or there was no room to remember it.
    pub fn is_new(&mut self, digest: &EntryDigest) -> bool {
        match self.digests.len() < self.max {
            true => self.digests.insert(*digest),
            false => !self.digests.contains(digest),
        }
    }
}

/// Calls `visit` for each root that came to be, or was laid out anew, after a revision. Returns the
/// last revision met.
pub fn for_each_root(
    catalog: &dyn Catalog,
    after: Revision,
    mut visit: impl FnMut(&Root) -> Result<()>,
) -> Result<Revision> {
    let mut last = after;
    loop {
        let roots = catalog.roots(last, ROOTS_PER_CALL)?;
        let Some(end) = roots.last() else { return Ok(last) };
        last = end.revision;
        roots.iter().try_for_each(&mut visit)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_new_each_time() {
        let mut seen = Seen::new(2);
        let digest = |byte| [byte; 32];
        assert!(seen.is_new(&digest(1)) && seen.is_new(&digest(2)));
        assert!(!seen.is_new(&digest(1)) && !seen.is_new(&digest(2)));
        assert!(seen.is_new(&digest(3)) && seen.is_new(&digest(3)));
    }
}
