//! What scrub finds, and which versions it touches.

use std::fmt;
use std::ops::Range;

use catalog::EntryDigest;
use format::EntryKind;
use model::{ChunkDigest, VersionId};

/// How many findings are listed; more are only counted.
pub const FINDINGS_MAX: usize = 1 << 16;

/// How many versions are named for one finding.
pub const TOUCHED_MAX: usize = 1000;

/// How many address ranges are told for one version.
pub const RANGES_MAX: usize = 16;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An entry is needed, but neither row nor pack has it.
    Missing,
    /// An entry's bytes are not what its digest names.
    Damaged,
    /// A pack's header, table, list or footer is damaged; its entries may be sound.
    DamagedPack,
    /// A row of the catalog says something else than the pack that it names.
    WrongRow,
    /// A version is not what the catalog says of it.
    WrongVersion,
}

impl Fault {
    /// As one word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Fault::Missing => "missing",
            Fault::Damaged => "damaged",
            Fault::DamagedPack => "damaged-pack",
            Fault::WrongRow => "wrong-row",
            Fault::WrongVersion => "wrong-version",
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub fault: Fault,
    /// What the entry holds, where it is known.
    pub kind: Option<EntryKind>,
    /// The entry, where it is about one.
    pub digest: Option<EntryDigest>,
    /// The pack, where it is about one.
    pub pack: Option<String>,
    /// Why it is found to be wrong.
    pub reason: String,
    /// The versions and holds that refer to it; the first [`TOUCHED_MAX`].
    pub touched: Vec<Touched>,
    /// True where there are more.
    pub touches_more: bool,
    /// What a repair did.
    pub outcome: Outcome,
}

/// What a repair did about a finding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was tried.
    #[default]
    Told,
    /// It is as it should be again, from there.
    Restored(String),
    /// No copy was found.
    Lost,
}

/// A version that a finding touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The version.
    pub version: VersionId,
    /// Who holds it, where it is touched as a hold.
    pub holder: Option<String>,
    /// Which bytes of its disk, ascending; the first [`RANGES_MAX`].
    pub ranges: Vec<Range<u64>>,
    /// True where there are more.
    pub has_more_ranges: bool,
}

impl Finding {
    /// Something wrong with an entry.
    pub fn entry(fault: Fault, digest: EntryDigest, reason: impl Into<String>) -> Self {
        Finding { digest: Some(digest), ..Finding::new(fault, reason) }
    }

    /// Something wrong with a pack as a whole.
    pub fn pack(fault: Fault, pack: &str, reason: impl Into<String>) -> Self {
        Finding { pack: Some(pack.to_string()), ..Finding::new(fault, reason) }
    }

    /// Something wrong.
    pub fn new(fault: Fault, reason: impl Into<String>) -> Self {
        Finding {
            fault,
            kind: None,
            digest: None,
            pack: None,
            reason: reason.into(),
            touched: Vec::new(),
            touches_more: false,
            outcome: Outcome::Told,
        }
    }

    /// Says what the entry holds.
    #[must_use]
    pub fn of_kind(self, kind: Option<EntryKind>) -> Self {
        Finding { kind, ..self }
    }

    /// Says in which pack the entry lies.
    #[must_use]
    pub fn in_pack(self, pack: &str) -> Self {
        Finding { pack: Some(pack.to_string()), ..self }
    }

    /// Notes that a version is touched at some addresses.
    pub(crate) fn touch(
        &mut self,
        version: &VersionId,
        holder: Option<&str>,
        ranges: impl IntoIterator<Item = Range<u64>>,
    ) {
        let known = self.touched.iter().rposition(|touched| {
            touched.version == *version && touched.holder.as_deref() == holder
        });
        let position = match known {
            Some(position) => position,
            None if self.touched.len() == TOUCHED_MAX => {
                self.touches_more = true;
                return;
            }
            None => {
                self.touched.push(Touched {
                    version: version.clone(),
                    holder: holder.map(str::to_string),
                    ranges: Vec::new(),
                    has_more_ranges: false,
                });
                self.touched.len() - 1
            }
        };
        let touched = &mut self.touched[position];
        for range in ranges {
            let is_full = touched.ranges.len() == RANGES_MAX;
            match touched.ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ if is_full => touched.has_more_ranges = true,
                _ => touched.ranges.push(range),
            }
        }
    }
}

/// What is wrong, with what: `chunk 3fa0... in pack 77...`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(digest) = &self.digest {
            parts.push(format!("{} {}", kind_word(self.kind), ChunkDigest(*digest)));
        }
        if let Some(pack) = &self.pack {
            parts.push(format!("pack {pack}"));
        }
        match parts.is_empty() {
            true => f.write_str("the catalog"),
            false => f.write_str(&parts.join(" in ")),
        }
    }
}

/// What an entry holds, as people say it.
pub fn kind_word(kind: Option<EntryKind>) -> &'static str {
    match kind {
        None => "entry",
        Some(EntryKind::Chunk) => "chunk",
        Some(EntryKind::SegmentMap) => "segment map",
        Some(EntryKind::ManifestLeaf) => "manifest leaf",
        Some(EntryKind::Manifest) => "manifest",
        Some(EntryKind::Record) => "record",
        Some(EntryKind::BootSet) => "boot working set",
        Some(EntryKind::BootPiece) => "boot piece",
        Some(EntryKind::Document) => "document",
    }
}
