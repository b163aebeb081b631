//! Who a booting guest is to be, as `run` is told it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use catalog::VersionRecord;
use clap::ValueEnum;
use guest::Drive;
use guest::seed::{Seed, SeedKind};
use model::name::LabelKey;
use model::{Error, Kind, MirrorName, Result};

/// The longest file with keys or data that is read, in bytes.
const FILE_LEN_MAX: u64 = guest::seed::DATA_LEN_MAX as u64;

/// What a guest is told who it is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeedWord {
    /// What the image says that it reads; a disk for cloud-init and credentials where it says nothing.
    Auto,
    /// A disk `cidata`, for cloud-init.
    Nocloud,
    /// A disk `config-2`, as OpenStack gives one.
    Configdrive,
    /// Credentials of systemd: root's keys and the host name.
    Credentials,
    /// Nothing.
    None,
}

#[derive(Debug, clap::Args)]
pub struct SeedArguments {
    /// The guest's host name.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// A file with public keys of those who may log in. May come several times.
    #[arg(long = "ssh-key", value_name = "FILE")]
    ssh_keys: Vec<PathBuf>,
    /// What cloud-init is to do: a script, or YAML that begins with `#cloud-config`.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// More meta-data for cloud-init, in YAML (NoCloud only).
    #[arg(long, value_name = "FILE")]
    meta_data: Option<PathBuf>,
    /// What the guest reads all this from.
    #[arg(long, value_enum, default_value_t = SeedWord::Auto)]
    seed: SeedWord,
}

/// What QEMU gets.
#[derive(Default)]
pub struct Seeded {
    pub drives: Vec<Drive>,
    pub arguments: Vec<OsString>,
}

impl SeedArguments {
    /// Whether there is a seed at all.
    pub fn is_wanted(&self) -> bool {
        self.says_something() || !matches!(self.seed, SeedWord::Auto | SeedWord::None)
    }

    fn says_something(&self) -> bool {
        let files = self.user_data.is_some() || self.meta_data.is_some();
        self.hostname.is_some() || !self.ssh_keys.is_empty() || files
    }

    /// Which kinds of seed are given: a disk, and whether credentials.
    fn kinds(&self, version: &VersionRecord) -> (Option<SeedKind>, bool) {
        match self.seed {
            SeedWord::Nocloud => (Some(SeedKind::NoCloud), false),
            SeedWord::Configdrive => (Some(SeedKind::ConfigDrive), false),
            SeedWord::Credentials => (None, true),
            SeedWord::None => (None, false),
            SeedWord::Auto if !self.says_something() => (None, false),
            SeedWord::Auto => {
                let key = LabelKey::new(builder::recipe::CONTEXTUALIZATION).ok();
                let label = key.and_then(|key| version.labels.get(&key));
                let Some(label) = label else { return (Some(SeedKind::NoCloud), true) };
                let reads = |word: &str| label.split(' ').any(|known| known == word);
                let disk = match (reads("nocloud"), reads("configdrive")) {
                    (true, _) => Some(SeedKind::NoCloud),
                    (false, true) => Some(SeedKind::ConfigDrive),
                    (false, false) => None,
                };
                (disk, reads("credentials"))
            }
        }
    }

    /// Makes the seed of a guest on a mirror; its disk is a file in the folder.
    ///
    /// # Errors
    /// `Invalid` where what is said is no host name, key or data, or nothing of the seed would take it.
    pub fn make(
        &self,
        version: &VersionRecord,
        mirror: &MirrorName,
        folder: &Path,
    ) -> Result<Seeded> {
        let (disk, has_credentials) = self.kinds(version);
        let refuse = |what: &str, why: &str| {
            Err(Error::new(Kind::Invalid, "give the guest", what).because(why))
        };
        if disk.is_none() && (self.user_data.is_some() || self.meta_data.is_some()) {
            return refuse("user-data and meta-data", "only the disk of a seed holds them");
        }
        if self.meta_data.is_some() && disk != Some(SeedKind::NoCloud) {
            return refuse("meta-data", "only NoCloud takes more of it");
        }
        if self.seed == SeedWord::None && self.says_something() {
            return refuse("a name or keys", "`--seed none` gives it nothing");
        }
        if disk.is_none() && !has_credentials {
            return Ok(Seeded::default());
        }
        let seed = self.read(version, mirror)?;
        let mut seeded = Seeded::default();
        if let Some(kind) = disk {
            let path = folder.join("seed.iso");
            std::fs::write(&path, seed.disk(kind)?)
                .map_err(|error| Error::io("write", path.display().to_string(), error))?;
            seeded.drives.push(Drive::File { path, read_only: true });
        }
        if has_credentials {
            seeded.arguments.extend(seed.credential_arguments()?.into_iter().map(OsString::from));
        }
        Ok(seeded)
    }

    fn read(&self, version: &VersionRecord, mirror: &MirrorName) -> Result<Seed> {
        let mut ssh_keys = Vec::new();
        for path in &self.ssh_keys {
            let text = read_text(path)?;
            let lines = text.lines().map(str::trim);
            let found = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            let wrong = Error::new(Kind::Invalid, "give the guest", path.display().to_string());
            if text.contains("PRIVATE KEY") {
                return Err(wrong
                    .because("it is a secret key; a guest gets the public one")
                    .hint("the file whose name ends in `.pub`"));
            }
            let found: Vec<String> = found.map(str::to_owned).collect();
            if found.is_empty() || !found.iter().all(|line| is_key(line)) {
                return Err(wrong
                    .because("it is no file of public keys")
                    .hint("a line is as in authorized_keys: ssh-ed25519 AAAA... who"));
            }
            ssh_keys.extend(found);
        }
        let image = version.id.image.as_str();
        let name = image.rsplit('/').next().unwrap_or(image).replace(['.', '_'], "-");
        let seed = Seed {
            // cloud-init acts once on each: a mirror that is kept has had its turn.
            instance_id: format!("larder-{mirror}"),
            host_name: self.hostname.clone().unwrap_or_else(|| name.trim_matches('-').to_owned()),
            ssh_keys,
            user_data: self.user_data.as_deref().map(read_bytes).transpose()?,
            meta_data: self.meta_data.as_deref().map(read_text).transpose()?,
        };
        seed.check()?;
        Ok(seed)
    }
}

/// Whether a line of `authorized_keys` has a kind of key, and the key behind it.
fn is_key(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_kind = |word: &str| ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| word.starts_with(kind));
    words.windows(2).any(|pair| is_kind(pair[0]) && pair[1].starts_with("AAAA"))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::io("read", path.display().to_string(), error);
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > FILE_LEN_MAX {
        return Err(Error::new(Kind::Invalid, "give the guest", path.display().to_string())
            .because(format!("it has {len} bytes; {FILE_LEN_MAX} is the most")));
    }
    std::fs::read(path).map_err(failed)
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bytes(path)?).map_err(|_| {
        Error::new(Kind::Invalid, "read", path.display().to_string()).because("it is not text")
    })
}
