//! Documents: what is kept with a content and told in words.
//!
//! A description, a signature, the log of a test: each an entry of its own in a pack, under a name
//! in the catalog. They belong to the content, so a clone has them too; they go when the last version
//! and the last hold of the content go.

use catalog::DocumentRecord;
use format::entry::{EntryKind, PLAIN_LEN_MAX};
use model::{ContentDigest, Error, Kind, Result};

use crate::packer::{Entry, Packer};
use crate::repository::Repository;

/// The most documents of one content.
pub const DOCUMENT_COUNT_MAX: usize = 64;

/// The most bytes of a document's name.
const NAME_LEN_MAX: usize = 128;

const KEEP: &str = "keep the document";

impl Repository {
    /// Keeps a document with a content, in the place of one of the same name. Durable when it
    /// returns. Cost: a pack written and synced, one transaction.
    ///
    /// # Errors
    /// `Invalid` for a name that is none, an empty document or one of more than 4 MiB; `Full` where
    /// the content has 64 already; `NotFound` where no version has the content.
    pub fn keep_document(
        &self,
        content: ContentDigest,
        name: &str,
        bytes: Vec<u8>,
    ) -> Result<DocumentRecord> {
        let refuse = |kind, reason: String| Err(Error::new(kind, KEEP, name).because(reason));
        if !is_name(name) {
            return refuse(
                Kind::Invalid,
                format!("a name is 1 to {NAME_LEN_MAX} of a-z 0-9 . _ - / :"),
            );
        }
        if bytes.is_empty() || bytes.len() > PLAIN_LEN_MAX {
            return refuse(
                Kind::Invalid,
                format!("{} bytes are not 1 to {PLAIN_LEN_MAX}", bytes.len()),
            );
        }
        let known = self.catalog.documents(content)?;
        if known.len() >= DOCUMENT_COUNT_MAX && known.iter().all(|known| known.name != name) {
            return refuse(Kind::Full, format!("there are {DOCUMENT_COUNT_MAX} already"));
        }
        let lease = self.begin_lease()?;
        let digest = *blake3::hash(&bytes).as_bytes();
        if self.catalog.claim(lease.id(), &self.realm, &[digest])?.iter().all(Option::is_none) {
            let mut packer = Packer::start(self.destination_of(lease.id()));
            packer.push(Entry::whole(EntryKind::Document, digest, bytes))?;
            packer.finish()?;
        }
        let document = DocumentRecord { content, name: name.to_string(), digest };
        self.catalog.set_document(lease.id(), &document)?;
        self.export_names_if_old();
        Ok(document)
    }

    /// A document of a content; `None` where there is none of that name.
    ///
    /// # Errors
    /// `Corrupt` where it is damaged; those of the catalog and the store.
    pub fn document(&self, content: ContentDigest, name: &str) -> Result<Option<Vec<u8>>> {
        let documents = self.catalog.documents(content)?;
        let found = documents.into_iter().find(|document| document.name == name);
        found.map(|document| self.chunks().document(document.digest)).transpose()
    }
}

fn is_name(name: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/:".contains(&byte);
    (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(allowed)
}
