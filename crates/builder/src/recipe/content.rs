//! What a recipe says, as types. The words are those of the file; [`super::keys`] tells what each means.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Spanned;

/// A whole recipe.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The image that it makes.
    pub name: Spanned<String>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Labels of the image.
    #[serde(default)]
    pub labels: BTreeMap<String, Spanned<String>>,
    /// What packages are of.
    pub distribution: Distribution,
    /// Where packages come from; the machine's own configuration where there is none.
    #[serde(default)]
    pub archive: Vec<Archive>,
    /// The stages, each upon another.
    #[serde(default)]
    pub stage: Vec<Stage>,
    /// What the last stage settles.
    #[serde(default)]
    pub system: System,
    /// The disk, made by the first stage.
    #[serde(default)]
    pub disk: Option<Spanned<Disk>>,
    /// What machines made of the image learn who they are from.
    #[serde(default)]
    pub contextualization: Option<Contextualization>,
    /// What a version has to pass before it is tagged.
    #[serde(default)]
    pub test: Vec<Test>,
    /// Who vouches for what was built.
    #[serde(default)]
    pub sign: Option<Sign>,
}

/// What machines made of the image learn who they are from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Contextualization {
    /// The words of [`SEEDS`].
    pub seeds: Vec<Spanned<String>>,
}

/// What an image can read a seed from.
pub const SEEDS: [&str; 4] = ["nocloud", "configdrive", "ec2", "credentials"];

/// The label of an image that says which of [`SEEDS`] it reads, with spaces between them.
pub const CONTEXTUALIZATION: &str = "contextualization";

/// A test.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// What it is called.
    pub name: Spanned<String>,
    /// The console shows a login prompt.
    #[serde(default)]
    pub login: bool,
    /// Units that are active.
    #[serde(default)]
    pub units: Vec<Spanned<String>>,
    /// TCP ports that are listened at.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// A command that prints TAP.
    #[serde(default)]
    pub command: Option<Spanned<String>>,
    /// Or a script beside the recipe.
    #[serde(default)]
    pub script: Option<Spanned<String>>,
    /// The guest is given one of [`SEEDS`], and takes it.
    #[serde(default)]
    pub seed: Option<Spanned<String>>,
    /// The longest that it may take.
    #[serde(default = "five_minutes")]
    pub timeout: Spanned<String>,
}

fn five_minutes() -> Spanned<String> {
    Spanned::new(0..0, crate::gate::TIMEOUT.into())
}

/// Who vouches for what was built.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sign {
    /// The file of the secret key, beside the recipe or absolute.
    pub key: Spanned<String>,
    /// The file whose first line is the key's password.
    #[serde(default)]
    pub password_file: Option<String>,
}

/// What packages are of.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    /// One of [`DISTRIBUTIONS`].
    pub id: Spanned<String>,
    /// The release by its code name (`bookworm`), or by its number where packages are rpm.
    pub release: Spanned<String>,
    /// `amd64`, `i386` or `arm64`.
    #[serde(default = "amd64")]
    pub arch: Spanned<String>,
}

/// The distributions that can be built.
pub const DISTRIBUTIONS: [&str; 6] = ["debian", "ubuntu", "fedora", "centos", "rocky", "alma"];

/// What kind of packages a distribution has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Those of dpkg.
    Deb,
    /// Those of rpm.
    Rpm,
}

impl Distribution {
    /// What kind of packages it has.
    pub fn family(&self) -> Family {
        match self.id.get_ref().as_str() {
            "fedora" | "centos" | "rocky" | "alma" => Family::Rpm,
            _ => Family::Deb,
        }
    }

    /// The number of a release that has one.
    pub fn number(&self) -> Option<u32> {
        self.release.get_ref().split('.').next()?.parse().ok()
    }
}

fn amd64() -> Spanned<String> {
    Spanned::new(0..0, "amd64".into())
}

/// Where packages come from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Where it is; the machine's own archives where there is none.
    #[serde(default)]
    pub url: Option<Spanned<String>>,
    /// The suite in it; the release where there is none.
    #[serde(default)]
    pub suite: Option<String>,
    /// Its parts.
    #[serde(default = "main")]
    pub components: Vec<String>,
    /// The file with the keys that it is signed with, beside the recipe or absolute.
    #[serde(default)]
    pub signed_by: Option<Spanned<String>>,
}

fn main() -> Vec<String> {
    vec!["main".into()]
}

/// One stage.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Its name in the recipe. Not a part of its key.
    #[serde(skip_serializing)]
    pub name: Spanned<String>,
    /// Another stage, or a version in the repository.
    #[serde(default, skip_serializing)]
    pub parent: Option<Spanned<String>>,
    /// Packages that it adds.
    #[serde(default)]
    pub packages: Vec<Spanned<String>>,
    /// Packages that it must not have.
    #[serde(default)]
    pub exclude_packages: Vec<Spanned<String>>,
    /// Files that it puts.
    #[serde(default)]
    pub files: Vec<Spanned<FileEntry>>,
    /// Users that it adds.
    #[serde(default)]
    pub users: Vec<Spanned<User>>,
    /// Services that it switches on and off.
    #[serde(default)]
    pub services: Services,
    /// Commands that it runs, in order, after all else.
    #[serde(default)]
    pub run: Vec<Spanned<RunStep>>,
    /// Paths that cleaning leaves alone.
    #[serde(default)]
    pub keep: Vec<Spanned<String>>,
}

/// A file that a stage puts.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Where in the image.
    pub to: String,
    /// The file beside the recipe that it is a copy of. Its digest is in the stage's key.
    #[serde(default, skip_serializing)]
    pub from: Option<String>,
    /// Or its text.
    #[serde(default)]
    pub content: Option<String>,
    /// Permissions, in octal.
    #[serde(default = "plain_mode")]
    pub mode: String,
    /// The owner: `user`, `user:group`, or numbers.
    #[serde(default = "root")]
    pub owner: String,
}

fn plain_mode() -> String {
    "0644".into()
}

fn root() -> String {
    "root".into()
}

/// What a file is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents<'a> {
    /// A file beside the recipe.
    From(&'a str),
    /// Text in the recipe.
    Text(&'a str),
}

impl FileEntry {
    /// What it is made of; `None` where that is not said, or said twice.
    pub fn contents(&self) -> Option<Contents<'_>> {
        match (&self.from, &self.content) {
            (Some(from), None) => Some(Contents::From(from)),
            (None, Some(text)) => Some(Contents::Text(text)),
            _ => None,
        }
    }

    /// Its permissions, where they are octal.
    pub fn mode_bits(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8).ok().filter(|bits| *bits <= 0o7777)
    }
}

/// A user that a stage adds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The login name.
    pub name: String,
    /// The number; the next free one from 1000 where there is none.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Groups that the user is in, beside one of the same name.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The home folder; `/home/NAME` where there is none.
    #[serde(default)]
    pub home: Option<String>,
    /// The login shell.
    #[serde(default = "shell")]
    pub shell: String,
    /// The password as crypt(5) has it; locked where there is none.
    #[serde(default)]
    pub password: Option<String>,
    /// Lines of `authorized_keys`.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}

fn shell() -> String {
    "/bin/bash".into()
}

/// Services that a stage switches on and off.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Services {
    /// Started at boot.
    #[serde(default)]
    pub enable: Vec<String>,
    /// Not started at boot.
    #[serde(default)]
    pub disable: Vec<String>,
    /// Not started at all.
    #[serde(default)]
    pub mask: Vec<String>,
}

/// A command that a stage runs.
#[derive(Clone, Debug, Serialize)]
pub struct RunStep {
    /// What the shell gets.
    pub command: Option<String>,
    /// Or a script beside the recipe. Its digest is in the stage's key.
    #[serde(skip_serializing)]
    pub script: Option<String>,
    /// The longest that it may take.
    pub timeout: String,
    /// Whether it has the network.
    pub network: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RunTable {
    #[serde(default)]
    command: Option<String>,
    #[serde(default)]
    script: Option<String>,
    #[serde(default = "ten_minutes")]
    timeout: String,
    #[serde(default)]
    network: bool,
}

fn ten_minutes() -> String {
    "10m".into()
}

impl<'de> Deserialize<'de> for RunStep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RunStep;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a command, or a table with `command` or `script`")
            }

            fn visit_str<E>(self, text: &str) -> Result<RunStep, E> {
                Ok(RunStep {
                    command: Some(text.to_owned()),
                    script: None,
                    timeout: ten_minutes(),
                    network: false,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RunStep, A::Error> {
                let table = RunTable::deserialize(MapAccessDeserializer::new(map))?;
                let RunTable { command, script, timeout, network } = table;
                Ok(RunStep { command, script, timeout, network })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What the last stage settles.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// The host's name.
    #[serde(default)]
    pub hostname: Option<Spanned<String>>,
    /// As `LANG` has it.
    #[serde(default)]
    pub locale: Option<String>,
    /// As in the zone database: `Europe/Paris`.
    #[serde(default)]
    pub timezone: Option<Spanned<String>>,
    /// Root's password as crypt(5) has it; empty to log in without one; locked where there is none.
    #[serde(default)]
    pub root_password: Option<String>,
}

/// The disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its length: `2G`.
    #[serde(default = "two_gib")]
    pub size: Spanned<String>,
    /// How it boots.
    #[serde(default)]
    pub boot: Boot,
    /// The boot partition's length.
    #[serde(default = "boot_size")]
    pub boot_size: Spanned<String>,
    /// Partitions behind that of the system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<Partition>,
}

/// A partition behind that of the system: an empty file system.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Its name in the partition table.
    pub name: Spanned<String>,
    /// Its length.
    pub size: Spanned<String>,
    /// Where it is mounted.
    pub mount: Spanned<String>,
}

impl Default for Disk {
    fn default() -> Self {
        Disk {
            size: two_gib(),
            boot: Boot::default(),
            boot_size: boot_size(),
            partitions: Vec::new(),
        }
    }
}

fn two_gib() -> Spanned<String> {
    Spanned::new(0..0, "2G".into())
}

fn boot_size() -> Spanned<String> {
    Spanned::new(0..0, "127M".into())
}

/// How a disk boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// By a kernel that QEMU is given: the disk is one file system.
    #[default]
    Direct,
    /// By a BIOS: syslinux.
    Bios,
    /// By UEFI firmware, by systemd-boot, and by a BIOS too.
    Uefi,
}

impl Recipe {
    /// The disk, as said or as it is where nothing is said.
    pub fn disk_or_default(&self) -> Disk {
        self.disk.as_ref().map_or_else(Disk::default, |disk| disk.get_ref().clone())
    }
}
