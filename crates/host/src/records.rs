//! What a daemon serves, as it survives the daemon: `STATE/daemon.toml`, see
//! `docs/formats/daemon.md`.
//!
//! **Invariant**: the file is replaced whole; a mirror is in it before its attach is answered, and is
//! out of it before its detach is.
//!
//! **Failure**: a crash leaves the file before or after a change, never part of one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use attach::nbd::Address;
use env::FileSystem;
use mirror::{Patience, StateFolder};
use model::{Error, Kind, MirrorName, Reference, Result};
use serde::{Deserialize, Serialize};

use crate::clients::Client;
use crate::doors::DoorOptions;
use crate::owner::AttachRequest;

/// The name of the file in the state folder.
const FILE_NAME: &str = "daemon.toml";

/// The format number that this code writes and reads.
const FORMAT: u32 = 1;

/// The longest file that is read.
const LEN_MAX: u64 = 16 << 20;

/// A mirror that a daemon serves: its doors and its policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The mirror.
    pub mirror: String,
    /// The NBD server's address, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<String>,
    /// The socket of the vhost-user-blk door, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<PathBuf>,
    /// The folder of the FUSE mount, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuse: Option<PathBuf>,
    /// No door writes.
    #[serde(default)]
    pub read_only: bool,
    /// How long reads wait while the repository cannot be reached; without it, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch_timeout_ms: Option<u64>,
    /// The name of the working set that is recorded, where somebody asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// The process that it is served for; without one, until it is detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
}

impl Record {
    /// What is served, in a form that another process understands: with absolute paths.
    ///
    /// # Errors
    /// `Invalid` for a path that is no text.
    pub fn new(request: &AttachRequest) -> Result<Self> {
        let doors = &request.doors;
        let absolute = |path: &Path| {
            let path = std::path::absolute(path)
                .map_err(|error| Error::io("serve", path.display().to_string(), error))?;
            match path.to_str() {
                Some(_) => Ok(path),
                None => Err(Error::new(Kind::Invalid, "serve", path.display().to_string())
                    .because("the path is not UTF-8")),
            }
        };
        let nbd = match &doors.nbd {
            Some(Address::Unix(path)) => Some(Address::Unix(absolute(path)?)),
            other => other.clone(),
        };
        Ok(Record {
            mirror: request.mirror.to_string(),
            nbd: nbd.map(|address| address.to_string()),
            vhost_user: doors.vhost_user.as_deref().map(absolute).transpose()?,
            fuse: doors.fuse.as_deref().map(absolute).transpose()?,
            read_only: doors.read_only,
            fetch_timeout_ms: match request.patience {
                Patience::Unlimited => None,
                Patience::Limited(limit) => Some(limit.as_millis().try_into().unwrap_or(u64::MAX)),
            },
            record: request.record.clone(),
            client: request.client.clone(),
        })
    }

    /// How it is attached: as a version, or without one as it stands.
    ///
    /// # Errors
    /// `Invalid` for a record that nobody wrote.
    pub fn request(&self, reference: Option<Reference>) -> Result<AttachRequest> {
        Ok(AttachRequest {
            reference,
            mirror: self.name()?,
            doors: self.doors()?,
            patience: self.patience(),
            record: self.record.clone(),
            // In the mirror's own log by now.
            length: None,
            client: self.client.clone(),
        })
    }

    /// The mirror's name.
    pub fn name(&self) -> Result<MirrorName> {
        MirrorName::new(&self.mirror)
    }

    fn doors(&self) -> Result<DoorOptions> {
        let nbd = self.nbd.as_deref().map(str::parse).transpose()?;
        Ok(DoorOptions {
            vhost_user: self.vhost_user.clone(),
            nbd,
            fuse: self.fuse.clone(),
            read_only: self.read_only,
        })
    }

    fn patience(&self) -> Patience {
        match self.fetch_timeout_ms {
            None => Patience::Unlimited,
            Some(limit) => Patience::Limited(Duration::from_millis(limit)),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    #[serde(default)]
    mirrors: Vec<Record>,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

fn path(state: &StateFolder) -> PathBuf {
    state.path().join(FILE_NAME)
}

/// Reads what is to be served; nothing where there is no file.
///
/// # Errors
/// `Refused` for a newer format, `Corrupt` for a file that cannot be read.
pub fn read(file_system: &dyn FileSystem, state: &StateFolder) -> Result<Vec<Record>> {
    let path = path(state);
    let operation = "read what the daemon serves from";
    let failed = |error| Error::io(operation, path.display().to_string(), error);
    if !file_system.exists(&path).map_err(failed)? {
        return Ok(Vec::new());
    }
    let bytes = file_system.read_file(&path, LEN_MAX).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let damaged = |error: toml::de::Error| {
        Error::new(Kind::Corrupt, operation, path.display().to_string())
            .because(error.message().to_string())
            .hint("move it away and attach the mirrors again: nothing of them is in this file")
    };
    // The number first: a newer format may have keys that this code does not know.
    let FormatOnly { format } = toml::from_str(&text).map_err(damaged)?;
    if format != FORMAT {
        return Err(Error::new(Kind::Refused, operation, path.display().to_string())
            .because(format!("it has format {format}; this larder knows format {FORMAT}"))
            .hint("use a newer larder"));
    }
    let document: Document = toml::from_str(&text).map_err(damaged)?;
    Ok(document.mirrors)
}

/// Writes what is to be served. Durable when it returns.
pub fn write(file_system: &dyn FileSystem, state: &StateFolder, records: &[Record]) -> Result<()> {
    let path = path(state);
    let operation = "note what the daemon serves in";
    let document = Document { format: FORMAT, mirrors: records.to_vec() };
    let text = toml::to_string(&document)
        .map_err(|error| Error::new(Kind::Bug, operation, FILE_NAME).caused_by(error))?;
    file_system
        .create_folders(state.path())
        .and_then(|()| file_system.replace(&path, text.as_bytes()))
        .map_err(|error| Error::io(operation, path.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use env::RealFileSystem;

    use super::*;

    #[test]
    fn what_is_served_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::new(Arc::new(RealFileSystem), folder.path());
        assert_eq!(read(&RealFileSystem, &state).unwrap(), []);
        let name = MirrorName::new("m").unwrap();
        let doors = |nbd: &str| DoorOptions {
            vhost_user: None,
            nbd: Some(nbd.parse().unwrap()),
            fuse: Some("mount".into()),
            read_only: true,
        };
        let limit = Patience::Limited(Duration::from_millis(1500));
        let records: Vec<Record> = ["./a b\"c", "127.0.0.1:10809"]
            .iter()
            .zip([(limit, None), (Patience::Unlimited, Some("run:x".to_string()))])
            .map(|(nbd, (patience, record))| {
                let (mirror, doors) = (name.clone(), doors(nbd));
                let client = record.is_some().then(|| Client::this_process(true).unwrap());
                let request = AttachRequest {
                    reference: None,
                    mirror,
                    doors,
                    patience,
                    record,
                    length: None,
                    client,
                };
                Record::new(&request).unwrap()
            })
            .collect();
        write(&RealFileSystem, &state, &records).unwrap();
        let found = read(&RealFileSystem, &state).unwrap();
        assert_eq!(found, records);
        let Some(Address::Unix(path)) = found[0].doors().unwrap().nbd else { panic!("a path") };
        assert_eq!(path, std::path::absolute("a b\"c").unwrap());
        assert_eq!(
            found.iter().map(Record::patience).collect::<Vec<_>>(),
            [limit, Patience::Unlimited]
        );
    }

    #[test]
    fn a_newer_format_is_refused_and_rubbish_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::new(Arc::new(RealFileSystem), folder.path());
        for (text, kind) in [
            ("format = 2\nsurprise = 1\n", Kind::Refused),
            ("format = 1\nsurprise = 1\n", Kind::Corrupt),
            ("\0\0\0", Kind::Corrupt),
            ("format = 1\n[[mirrors]]\nnbd = 1\n", Kind::Corrupt),
        ] {
            std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
            let error = read(&RealFileSystem, &state).unwrap_err();
            assert_eq!(error.kind(), kind, "{text}: {}", error.chain());
            assert!(error.hint_text().is_some());
        }
    }
}
