//! What the command line means: flags over environment over settings file over defaults.

use std::path::{Path, PathBuf};
use std::time::Duration;

use env::{FileSystem, RealFileSystem};
use model::{Error, Kind, Result};
use repository::repository::Machine;
use repository::{Repository, TrustedKey};
use serde::Deserialize;

use crate::arguments::{Format, GlobalArguments};
use crate::commands::read_key;
use crate::progress_bar::ProgressBar;

const SETTINGS_LEN_MAX: u64 = 1 << 20;

/// What every command works with.
pub struct Context {
    /// The repository's folder.
    pub repo: Setting,
    /// This host's state folder.
    pub state: Setting,
    /// How results are printed.
    pub format: Format,
    /// The settings file, whether or not it exists.
    pub settings_file: PathBuf,
    /// Public keys, as the settings name them: of what is attached, one must have signed it.
    pub require_signature_by: Vec<String>,
    quiet: bool,
    lease_time: Option<Duration>,
}

/// A path, and where it was set.
#[derive(Clone, Debug)]
pub struct Setting {
    pub path: PathBuf,
    pub origin: &'static str,
}

/// The settings file: `~/.config/larder/settings.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
    repo: Option<PathBuf>,
    state: Option<PathBuf>,
    #[serde(default)]
    require_signature_by: Vec<String>,
}

impl Context {
    /// Joins flags, environment, settings file and defaults.
    pub fn new(arguments: &GlobalArguments) -> Result<Self> {
        let settings_file = base_folder("XDG_CONFIG_HOME", ".config").join("larder/settings.toml");
        let file = read_settings(&settings_file)?;
        let choose = |typed: &Option<PathBuf>, filed: Option<PathBuf>, default: PathBuf| {
            let typed = typed.clone().filter(|path| !path.as_os_str().is_empty());
            match (typed, filed) {
                (Some(path), _) => Setting { path, origin: "flag or environment" },
                (None, Some(path)) => Setting { path, origin: "settings file" },
                (None, None) => Setting { path: default, origin: "default" },
            }
        };
        let repo = base_folder("XDG_DATA_HOME", ".local/share").join("larder");
        let state = base_folder("XDG_STATE_HOME", ".local/state").join("larder");
        Ok(Context {
            repo: choose(&arguments.repo, file.repo, repo),
            state: choose(&arguments.state, file.state, state),
            format: arguments.format,
            settings_file,
            require_signature_by: file.require_signature_by,
            quiet: arguments.quiet,
            lease_time: arguments.lease_seconds.map(Duration::from_secs),
        })
    }

    /// Opens the repository.
    pub fn repository(&self) -> Result<Repository> {
        self.refuse_urls()?;
        let repository = open_repository(&self.repo.path)?;
        Ok(self.timed(repository).trusting(&self.trusted()?))
    }

    /// Opens the repository, or makes one and says so.
    pub fn repository_or_new(&self) -> Result<Repository> {
        self.refuse_urls()?;
        let (repository, is_new) = Repository::open_or_create(&Machine::real(), &self.repo.path)?;
        if is_new && !self.quiet && self.format == Format::Text {
            anstream::eprintln!("made a new repository in {}", self.repo.path.display());
        }
        Ok(self.timed(repository))
    }

    /// The keys that this host believes.
    pub fn trusted(&self) -> Result<Vec<TrustedKey>> {
        self.require_signature_by.iter().map(|key| read_key(key)).collect()
    }

    fn timed(&self, repository: Repository) -> Repository {
        match self.lease_time {
            Some(lease_time) => repository.with_lease_time(lease_time),
            None => repository,
        }
    }

    /// True where no progress is wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The repository's folder, whatever state the repository is in.
    pub fn repository_folder(&self) -> Result<&Path> {
        self.refuse_urls()?;
        Ok(&self.repo.path)
    }

    /// A progress bar for long work, as the user wants it.
    pub fn progress(&self, what: &str) -> ProgressBar {
        ProgressBar::new(what, self.format, self.quiet)
    }

    /// Refuses a repository that is not a folder.
    pub fn refuse_urls(&self) -> Result<()> {
        match self.repo.path.to_string_lossy().contains("://") {
            true => Err(Error::new(
                Kind::Invalid,
                "open the repository",
                self.repo.path.display().to_string(),
            )
            .because("this larder opens repositories in folders only")),
            false => Ok(()),
        }
    }
}

/// Names a link that packs are behind, as `rate=125MB,delay=1ms,away=FILE`: for benches and soaks.
const LINK: &str = "LARDER_LINK";

/// Opens the repository in a folder.
pub fn open_repository(folder: &Path) -> Result<Repository> {
    match std::env::var(LINK) {
        Ok(link) => Repository::open_over_link(&Machine::real(), folder, link.parse()?),
        Err(_) => Repository::open(&Machine::real(), folder),
    }
}

fn base_folder(variable: &str, below_home: &str) -> PathBuf {
    let absolute = |path: &PathBuf| path.is_absolute();
    std::env::var_os(variable).map(PathBuf::from).filter(absolute).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        home.join(below_home)
    })
}

fn read_settings(path: &Path) -> Result<SettingsFile> {
    let failed = |error| Error::io("read the settings", path.display().to_string(), error);
    if !RealFileSystem.exists(path).map_err(failed)? {
        return Ok(SettingsFile::default());
    }
    let bytes = RealFileSystem.read_file(path, SETTINGS_LEN_MAX).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    toml::from_str(&text).map_err(|error| {
        // Its Display draws a picture over several lines.
        let start = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
        Error::new(Kind::Invalid, "read the settings", path.display().to_string())
            .because(format!("line {line}: {}", error.message()))
    })
}
