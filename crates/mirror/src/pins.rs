//! Bases that stay: a file in a base's folder says so, and eviction looks for it.
//!
//! ```text
//! bases/<content>/pin.<name>      what the pin is of, as whoever made it wrote it
//! ```
//!
//! **Invariant**: a pin is durable when its call returns, and no byte of its base goes from then on.
//!
//! **Not here**: what the text says, which versions are pinned, bringing them (`host`).

use std::io;

use model::{ContentDigest, Error, Result};

use crate::evict::PIN;
use crate::state_folder::StateFolder;

/// The longest text of a pin.
const TEXT_LEN_MAX: u64 = 64 << 10;

/// A pin, as it lies in the state folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinFile {
    /// The content whose base it keeps.
    pub content: ContentDigest,
    /// Its name: words that may stand in a file's name.
    pub name: String,
    /// What whoever made it wrote.
    pub text: String,
}

impl StateFolder {
    /// Makes a pin, or replaces its text. Durable when it returns.
    ///
    /// # Errors
    /// Those of the host's disk.
    pub fn write_pin(&self, pin: &PinFile) -> Result<()> {
        let folder = self.room().base_folder(pin.content);
        let write = || {
            // Nobody evicts meanwhile.
            let _lock = self.room().lock()?;
            self.file_system().create_folders(&folder)?;
            let path = folder.join(format!("{PIN}{}", pin.name));
            self.file_system().replace(&path, pin.text.as_bytes())?;
            folder.ancestors().skip(1).take(3).try_for_each(|f| self.file_system().sync_folder(f))
        };
        write().map_err(|error| Error::io("pin", pin.content.to_string(), error))
    }

    /// Removes a pin. Does nothing where there is none.
    ///
    /// # Errors
    /// Those of the host's disk.
    pub fn remove_pin(&self, content: ContentDigest, name: &str) -> Result<()> {
        let path = self.room().base_folder(content).join(format!("{PIN}{name}"));
        match self.file_system().remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("unpin", content.to_string(), error))
            }
            _ => Ok(()),
        }
    }

    /// All pins of this host, by content and name.
    ///
    /// # Errors
    /// Those of the host's disk.
    pub fn pins(&self) -> Result<Vec<PinFile>> {
        let folder = self.room().bases_folder();
        let failed = |error| Error::io("list the pins in", folder.display().to_string(), error);
        if !self.file_system().exists(&folder).map_err(failed)? {
            return Ok(Vec::new());
        }
        let mut pins = Vec::new();
        for base in self.file_system().list(&folder).map_err(failed)? {
            let Some(content) = base.to_str().and_then(|text| text.parse().ok()) else { continue };
            // It may have been evicted meanwhile.
            for file in self.file_system().list(&folder.join(&base)).unwrap_or_default() {
                let Some(name) = file.to_str().and_then(|text| text.strip_prefix(PIN)) else {
                    continue;
                };
                let path = folder.join(&base).join(&file);
                let text = self.file_system().read_file(&path, TEXT_LEN_MAX).map_err(failed)?;
                let text = String::from_utf8_lossy(&text).into_owned();
                pins.push(PinFile { content, name: name.to_string(), text });
            }
        }
        pins.sort_by(|a, b| (a.content.0, &a.name).cmp(&(b.content.0, &b.name)));
        Ok(pins)
    }
}
