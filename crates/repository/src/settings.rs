//! A repository's settings: the small text file that makes a folder a repository.
//!
//! Written once when the repository is made; see `docs/formats/repository.md`.

use std::path::Path;

use chunking::ChunkSize;
use env::{FileSystem, OpenMode};
use model::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// The name of the settings file in a repository's folder.
pub const FILE_NAME: &str = "repository.toml";

/// The format number of repositories that this code makes and reads.
pub const FORMAT: u32 = 1;

const LEN_MAX: u64 = 64 << 10;

/// What a repository was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The format number.
    pub format: u32,
    /// A random name, the repository's for ever.
    pub id: String,
    /// How many blocks of 4 KiB a chunk may hold.
    #[serde(default = "default_chunk_blocks")]
    pub chunk_blocks: u32,
    /// The zstd level that entries are compressed with.
    #[serde(default = "default_compression_level")]
    pub compression_level: i32,
}

fn default_chunk_blocks() -> u32 {
    ChunkSize::DEFAULT.blocks() as u32
}

fn default_compression_level() -> i32 {
    3
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Settings {
    /// The settings of a new repository.
    pub fn new(id: String) -> Self {
        Settings {
            format: FORMAT,
            id,
            chunk_blocks: default_chunk_blocks(),
            compression_level: default_compression_level(),
        }
    }

    /// How many blocks a chunk may hold.
    pub fn chunk_size(&self) -> ChunkSize {
        ChunkSize::from_blocks(self.chunk_blocks).unwrap_or(ChunkSize::DEFAULT)
    }

    /// Reads the settings of the repository in `folder`; `None` where there is none.
    ///
    /// # Errors
    /// `Refused` for a repository of a newer format, `Corrupt` for a file that is no settings.
    pub fn read(file_system: &dyn FileSystem, folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE_NAME);
        let operation = "open the repository";
        let subject = folder.display().to_string();
        match file_system.exists(&path) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(Error::io(operation, subject, error)),
        }
        let bytes = file_system
            .read_file(&path, LEN_MAX)
            .map_err(|error| Error::io(operation, subject.clone(), error))?;
        Settings::parse(&String::from_utf8_lossy(&bytes), &subject).map(Some)
    }

    fn parse(text: &str, subject: &str) -> Result<Self> {
        let operation = "open the repository";
        let damaged = |error: toml::de::Error| {
            Error::new(Kind::Corrupt, operation, subject)
                .because(format!("{FILE_NAME} cannot be read: {}", error.message()))
        };
        // The number first: a newer format may have keys that this code does not know.
        let FormatOnly { format } = toml::from_str(text).map_err(damaged)?;
        if format != FORMAT {
            return Err(Error::new(Kind::Refused, operation, subject)
                .because(format!("it has format {format}; this larder knows format {FORMAT}"))
                .hint("use a newer larder"));
        }
        let settings: Settings = toml::from_str(text).map_err(damaged)?;
        if ChunkSize::from_blocks(settings.chunk_blocks).is_none() {
            return Err(Error::new(Kind::Invalid, operation, subject)
                .because(format!("chunk_blocks = {} is not in 1..=256", settings.chunk_blocks)));
        }
        Ok(settings)
    }

    /// Writes the settings into `folder`, durably. Of several who make the same repository at once
    /// the last one's stay; each is there whole.
    pub fn write(&self, file_system: &dyn FileSystem, folder: &Path) -> Result<()> {
        let failed = |error| Error::io("make the repository", folder.display().to_string(), error);
        let text = toml::to_string(self)
            .map_err(|error| Error::new(Kind::Bug, "write", FILE_NAME).caused_by(error))?;
        // A name of its own: two processes may be making the repository at the same time.
        let new = folder.join(format!("repository.{}.new", self.id));
        file_system
            .open(&new, OpenMode::CreateNew)
            .and_then(|file| {
                file.write_all_at(text.as_bytes(), 0)?;
                file.sync()?;
                file_system.rename(&new, &folder.join(FILE_NAME))?;
                file_system.sync_folder(folder)
            })
            .map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_refused_with_a_hint() {
        let error = Settings::parse("format = 2\nid = \"x\"\nnew_key = 1\n", "dir").unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert_eq!(error.hint_text(), Some("use a newer larder"));
    }

    #[test]
    fn settings_survive_their_text_and_unknown_keys_are_errors() {
        let settings = Settings::new("abc".into());
        let text = toml::to_string(&settings).unwrap();
        assert_eq!(Settings::parse(&text, "dir").unwrap(), settings);
        assert!(Settings::parse(&format!("{text}\nsurprise = 1\n"), "dir").is_err());
        assert!(Settings::parse("format = 1\nid = \"x\"\nchunk_blocks = 0\n", "dir").is_err());
    }
}
