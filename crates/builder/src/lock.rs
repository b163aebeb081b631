//! The lock: which packages exactly a recipe's stages are made of, in a file beside the recipe.
//!
//! ```text
//! web.toml ──resolve (apt, signed indexes)──► web.lock ──► build: exactly these
//! ```
//!
//! **Invariants**: a lock says for what it was made. One that was made for something else is not used.

use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

/// Locks of thousands of packages stay far below.
const LOCK_LEN_MAX: u64 = 64 << 20;

const HEAD: &str = "# The packages that the recipe beside this file is built from. Made by `larder build`;\n\
                    # `larder build --update` makes it anew. Keep it with the recipe.\n";

/// A whole lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    format: u32,
    /// One for each stage, in order.
    #[serde(default)]
    pub stage: Vec<LockedStage>,
}

/// What a stage is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedStage {
    /// The stage's name.
    pub name: String,
    /// The digest of what was asked for.
    pub asked: String,
    /// What counts as the time of the build: when the youngest index was signed, in seconds since
    /// 1970-01-01 UTC.
    pub source_date_epoch: i64,
    /// What is done in which order: `unpack a b`, `configure a b`, `remove c` by dpkg; by rpm, all at
    /// once, `install a`, `upgrade b`, `remove c`.
    #[serde(default)]
    pub order: Vec<String>,
    /// The packages that are added or replaced.
    #[serde(default)]
    pub package: Vec<LockedPackage>,
}

/// A package, exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
    /// The SHA-256 digest of its file, from the signed index.
    pub sha256: String,
    /// Bytes of its file.
    pub size: u64,
    /// Where it is in its archive.
    pub path: String,
    /// Which of the recipe's archives that is, counted from 0.
    pub archive: usize,
    /// Its whole address, while that is at hand.
    #[serde(skip)]
    pub uri: Option<String>,
}

impl Lock {
    /// A lock of these stages.
    pub fn new(stage: Vec<LockedStage>) -> Lock {
        Lock { format: FORMAT, stage }
    }

    /// Where the lock of a recipe is.
    pub fn path_of(recipe: &Path) -> PathBuf {
        recipe.with_extension("lock")
    }

    /// Reads a lock; `None` where there is none.
    ///
    /// # Errors
    /// `Invalid` where it is no lock, `Refused` where a newer larder made it.
    pub fn read(path: &Path) -> Result<Option<Lock>> {
        let subject = || path.display().to_string();
        let failed = |error| Error::io("read the lock", subject(), error);
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(facts) if facts.len() > LOCK_LEN_MAX => {
                return Err(Error::new(Kind::Invalid, "read the lock", subject())
                    .because("it is longer than any lock"));
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        #[derive(Deserialize)]
        struct Numbered {
            format: u32,
        }
        if let Ok(Numbered { format }) = toml::from_str(&text)
            && format != FORMAT
        {
            return Err(Error::new(Kind::Refused, "read the lock", subject())
                .because(format!("it has format {format}; this larder knows {FORMAT}"))
                .hint("`larder build --update` makes it anew"));
        }
        let lock: Lock = toml::from_str(&text).map_err(|error| {
            let place = crate::recipe::Place::new(subject(), text.as_str());
            let start = error.span().map_or(0, |span| span.start);
            place
                .error("read the lock", start, error.message().replace('\n', " "))
                .hint("`larder build --update` makes it anew")
        })?;
        lock.check(path)?;
        Ok(Some(lock))
    }

    /// Names and digests become file names and words of commands: they must be what they seem.
    fn check(&self, path: &Path) -> Result<()> {
        let word = |text: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || "+-.:~_^".contains(c);
            !text.is_empty()
                && text.chars().all(fits)
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        };
        for stage in &self.stage {
            for package in &stage.package {
                let digest = package.sha256.len() == 64
                    && package.sha256.bytes().all(|b| b.is_ascii_hexdigit());
                let place = !package.path.starts_with(['/', '-'])
                    && !package.path.contains(char::is_whitespace)
                    && package.path.split('/').all(|part| part != "..");
                let words = [&package.name, &package.version, &package.architecture];
                if !digest || !place || !words.into_iter().all(|text| word(text)) {
                    return Err(Error::new(
                        Kind::Invalid,
                        "read the lock",
                        path.display().to_string(),
                    )
                    .because(format!("what it says of `{}` cannot be", package.name))
                    .hint("`larder build --update` makes it anew"));
                }
            }
            for line in &stage.order {
                let mut words = line.split(' ');
                let known = matches!(
                    words.next(),
                    Some("unpack" | "configure" | "remove" | "install" | "upgrade")
                );
                if !known || !words.all(word) {
                    return Err(Error::new(
                        Kind::Invalid,
                        "read the lock",
                        path.display().to_string(),
                    )
                    .because(format!("`{line}` is nothing that can be done")));
                }
            }
        }
        Ok(())
    }

    /// Writes a lock, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let subject = path.display().to_string();
        let text = toml::to_string(self)
            .map_err(|error| Error::new(Kind::Bug, "write the lock", &subject).caused_by(error))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
            std::io::Write::write_all(&mut file, format!("{HEAD}{text}").as_bytes())?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            file.as_file().set_permissions(mode)?;
            file.as_file().sync_all()?;
            file.persist(path).map(drop).map_err(|error| error.error)
        };
        write().map_err(|error| Error::io("write the lock", subject, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> Lock {
        Lock::new(vec![LockedStage {
            name: "core".into(),
            asked: "00".into(),
            source_date_epoch: 7,
            order: vec!["unpack a b".into(), "configure a b".into()],
            package: vec![LockedPackage {
                name: "a".into(),
                version: "1:2-3+b1~x".into(),
                architecture: "all".into(),
                sha256: "ab".repeat(32),
                size: 5,
                path: "pool/a.deb".into(),
                archive: 0,
                uri: None,
            }],
        }])
    }

    #[test]
    fn a_lock_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = Lock::path_of(&folder.path().join("web.toml"));
        assert_eq!(Lock::read(&path).unwrap(), None);
        lock().write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), Some(lock()));
        assert!(path.ends_with("web.lock"));
    }

    #[test]
    fn a_lock_that_would_reach_elsewhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let changes: [fn(&mut Lock); 5] = [
            |lock| lock.stage[0].package[0].path = "../../etc/shadow".into(),
            |lock| lock.stage[0].package[0].name = "-x".into(),
            |lock| lock.stage[0].package[0].sha256 = "/etc/passwd".into(),
            |lock| lock.stage[0].order[0] = "erase all".into(),
            |lock| lock.format = 99,
        ];
        for change in changes {
            let mut changed = lock();
            change(&mut changed);
            changed.write(&path).unwrap();
            assert!(Lock::read(&path).is_err(), "{changed:?}");
        }
        std::fs::write(&path, "format = 1\n[[stage]]\nnam = 1\n").unwrap();
        let error = Lock::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 3, column 1: unknown field `nam`"), "{error}");
    }
}
