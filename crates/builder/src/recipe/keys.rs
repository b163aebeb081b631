//! Every key of a recipe with its words: the schema and the documentation are made from this table,
//! and a test compares it with what the reader takes.

use super::{DISTRIBUTIONS, SEEDS};

/// What a key's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A whole number.
    Number,
    /// True or false.
    Flag,
    /// A list of texts.
    Texts,
    /// A list of whole numbers.
    Numbers,
    /// A table, whose keys follow.
    Table,
    /// A list of tables, whose keys follow.
    Tables,
    /// A list of texts and tables, whose keys follow.
    TextsOrTables,
    /// A table with any keys, and texts.
    TextTable,
}

impl Value {
    /// In words.
    pub fn words(self) -> String {
        match self {
            Text => "text".into(),
            OneOf(words) => format!("`\"{}\"`", words.join("\"`, `\"")),
            Number => "a number".into(),
            Flag => "`true` or `false`".into(),
            Texts => "a list of texts".into(),
            Numbers => "a list of numbers".into(),
            Table => "a table".into(),
            Tables => "tables, any number".into(),
            TextsOrTables => "a list of texts and tables".into(),
            TextTable => "a table of texts".into(),
        }
    }
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Where it stands: `stage.files.mode`.
    pub path: &'static str,
    /// What its value is.
    pub value: Value,
    /// Whether it must be there.
    pub required: bool,
    /// What it means.
    pub words: &'static str,
    /// A line that has it.
    pub example: &'static str,
}

const fn must(path: &'static str, value: Value, words: &'static str, example: &'static str) -> Key {
    Key { path, value, required: true, words, example }
}

const fn may(path: &'static str, value: Value, words: &'static str, example: &'static str) -> Key {
    Key { path, value, required: false, words, example }
}

use Value::{Flag, Number, Numbers, OneOf, Table, Tables, Text, TextTable, Texts, TextsOrTables};

/// All keys, each behind the table that it is in.
pub const KEYS: &[Key] = &[
    must(
        "name",
        Text,
        "The image that the recipe makes. Its next version is what was built.",
        "name = \"web\"",
    ),
    may(
        "description",
        Text,
        "What the image is for; becomes its label `description`.",
        "description = \"A web server\"",
    ),
    may("labels", TextTable, "Labels that the image gets.", "labels = { owner = \"lab\" }"),
    must("distribution", Table, "What packages are of.", "[distribution]"),
    must(
        "distribution.id",
        OneOf(&DISTRIBUTIONS),
        "The distribution. Packages of `debian` and `ubuntu` are resolved and installed by apt and dpkg; those of `fedora`, `centos` (CentOS Stream), `rocky` and `alma` by dnf and rpm. What of this is tested how, distributions.md says.",
        "id = \"debian\"",
    ),
    must(
        "distribution.release",
        Text,
        "The release, by its code name; by its number where packages are rpm: Fedora from 33, the others from 9.",
        "release = \"bookworm\"",
    ),
    may(
        "distribution.arch",
        OneOf(&["amd64", "i386", "arm64"]),
        "The architecture; `amd64` unless said. `i386` is built and booted on a machine of amd64. `arm64` is resolved and locked anywhere, and built where the machine runs its programs, by itself or by qemu-user; its disk is `direct`, and it is not booted for tests.",
        "arch = \"amd64\"",
    ),
    may(
        "archive",
        Tables,
        "Where packages come from. Without one, from where this machine gets its own: its places, keys and proxies are taken, for the suites of the recipe's release; they have packages of this machine's distribution only. Nothing of it is written into the image.",
        "[[archive]]",
    ),
    may(
        "archive.url",
        Text,
        "Where the archive is. Without it, this machine's own archives. Where packages are rpm, the folder that `repodata` is in, a metalink or a list of mirrors; `$releasever` and `$basearch` stand for release and architecture.",
        "url = \"file:///srv/archive\"",
    ),
    may(
        "archive.suite",
        Text,
        "The suite in the archive; the release unless said. Without `url`, this suite alone of this machine's archives, where without both it is the release with its updates and its security. Nothing where packages are rpm.",
        "suite = \"bookworm-backports\"",
    ),
    may(
        "archive.components",
        Texts,
        "The parts of the suite; `main` unless said. Nothing where packages are rpm.",
        "components = [\"main\"]",
    ),
    may(
        "archive.signed_by",
        Text,
        "The file with the keys that the archive is signed with: absolute, or beside the recipe. Without it, the keys that apt trusts on this machine. Where packages are rpm it must be there beside `url`, in letters (`-----BEGIN`): each package must be signed with one of these keys, and so must the index where it is signed at all.",
        "signed_by = \"archive.gpg\"",
    ),
    must(
        "stage",
        Tables,
        "The stages, each behind its parent; the last is the image. A stage that was built is a version, and is not built again while nothing in it changes.",
        "[[stage]]",
    ),
    must(
        "stage.name",
        Text,
        "The stage's name in the recipe. Another name is no other stage.",
        "name = \"core\"",
    ),
    may(
        "stage.parent",
        Text,
        "What it stands on: a stage of the recipe, or a version in the repository. Only the first stage may have none: it is made from packages alone.",
        "parent = \"core\"",
    ),
    may(
        "stage.packages",
        Texts,
        "Packages that the stage adds, and what they depend on (not what they recommend). The first stage has, beside these, the packages that are essential or required; where packages are rpm, it has these alone, and `@core` is a group of packages.",
        "packages = [\"nginx-light\"]",
    ),
    may(
        "stage.exclude_packages",
        Texts,
        "Packages that the stage must not have: others are taken to fulfil dependencies, and what is installed is removed.",
        "exclude_packages = [\"tzdata\"]",
    ),
    may(
        "stage.files",
        Tables,
        "Files that the stage puts, after its packages.",
        "files = [{ to = \"/etc/motd\", content = \"welcome\\n\" }]",
    ),
    must("stage.files.to", Text, "Where in the image.", "to = \"/etc/motd\""),
    may(
        "stage.files.from",
        Text,
        "The file beside the recipe that it is a copy of.",
        "from = \"motd\"",
    ),
    may(
        "stage.files.content",
        Text,
        "Its text, where there is no `from`.",
        "content = \"welcome\\n\"",
    ),
    may(
        "stage.files.mode",
        Text,
        "Its permissions in octal; `0644` unless said.",
        "mode = \"0600\"",
    ),
    may(
        "stage.files.owner",
        Text,
        "Its owner, as `user` or `user:group`, by name or number; `root` unless said.",
        "owner = \"root:adm\"",
    ),
    may(
        "stage.users",
        Tables,
        "Users that the stage adds, before its files.",
        "users = [{ name = \"ann\" }]",
    ),
    must(
        "stage.users.name",
        Text,
        "The login name; also that of the user's own group.",
        "name = \"ann\"",
    ),
    may(
        "stage.users.uid",
        Number,
        "The number; the next free one from 1000 unless said.",
        "uid = 1200",
    ),
    may(
        "stage.users.groups",
        Texts,
        "Groups that the user is in; they must be there.",
        "groups = [\"sudo\"]",
    ),
    may(
        "stage.users.home",
        Text,
        "The home folder; `/home/NAME` unless said.",
        "home = \"/srv/ann\"",
    ),
    may(
        "stage.users.shell",
        Text,
        "The login shell; `/bin/bash` unless said.",
        "shell = \"/bin/sh\"",
    ),
    may(
        "stage.users.password",
        Text,
        "The password as crypt(5) has it. Without it no password is right.",
        "password = \"$y$j9T$...\"",
    ),
    may(
        "stage.users.ssh_keys",
        Texts,
        "Lines of `~/.ssh/authorized_keys`.",
        "ssh_keys = [\"ssh-ed25519 AAAA... ann\"]",
    ),
    may(
        "stage.services",
        Table,
        "Services that the stage switches on and off, by `systemctl` in the image.",
        "[stage.services]",
    ),
    may("stage.services.enable", Texts, "Started at boot.", "enable = [\"nginx\"]"),
    may("stage.services.disable", Texts, "Not started at boot.", "disable = [\"apt-daily.timer\"]"),
    may("stage.services.mask", Texts, "Not started at all.", "mask = [\"getty@tty1\"]"),
    may(
        "stage.run",
        TextsOrTables,
        "Commands that the stage runs by `/bin/sh -e`, in order, after everything else. They see the image as their root, without the host's files, devices, processes and, unless they ask for it, network.",
        "run = [\"ldconfig\"]",
    ),
    may("stage.run.command", Text, "What the shell gets.", "command = \"make install\""),
    may(
        "stage.run.script",
        Text,
        "The script beside the recipe that the shell gets, where there is no `command`.",
        "script = \"setup.sh\"",
    ),
    may(
        "stage.run.timeout",
        Text,
        "The longest that it may take: `30s`, `10m`, `2h`; `10m` unless said. A step that takes longer fails.",
        "timeout = \"30m\"",
    ),
    may(
        "stage.run.network",
        Flag,
        "Whether it has the network; not, unless said. What it fetches is not locked.",
        "network = true",
    ),
    may(
        "stage.keep",
        Texts,
        "Paths that are to stay although cleaning would empty them at the end of the stage: logs, caches, package lists.",
        "keep = [\"/var/log/apt\"]",
    ),
    may("system", Table, "What the last stage settles.", "[system]"),
    may("system.hostname", Text, "The name of the machine.", "hostname = \"web\""),
    may("system.locale", Text, "What `LANG` is.", "locale = \"C.UTF-8\""),
    may(
        "system.timezone",
        Text,
        "The time zone, as the zone database calls it.",
        "timezone = \"Europe/Paris\"",
    ),
    may(
        "system.root_password",
        Text,
        "Root's password as crypt(5) has it. Empty: root logs in without one, on consoles. Without this key no password is right.",
        "root_password = \"\"",
    ),
    may("disk", Table, "The disk, which the first stage makes.", "[disk]"),
    may(
        "disk.size",
        Text,
        "Its length in whole MiB or more: `512M`, `2G`; `2G` unless said. What is not used takes no space.",
        "size = \"4G\"",
    ),
    may(
        "disk.boot",
        OneOf(&["direct", "bios", "uefi"]),
        "How it boots: `direct`, one file system without partitions, whose kernel QEMU is given; `bios`, by syslinux; `uefi`, by systemd-boot, and by a BIOS too. `direct` unless said.",
        "boot = \"bios\"",
    ),
    may(
        "disk.boot_size",
        Text,
        "The length of the boot partition, which holds kernel and initrd; `127M` unless said.",
        "boot_size = \"255M\"",
    ),
    may(
        "disk.partitions",
        Tables,
        "Partitions behind that of the system, which gets what they leave: empty file systems (ext4), mounted at boot.",
        "partitions = [{ name = \"data\", size = \"1G\", mount = \"/srv\" }]",
    ),
    must("disk.partitions.name", Text, "Its name in the partition table.", "name = \"data\""),
    must("disk.partitions.size", Text, "Its length in whole MiB or more.", "size = \"1G\""),
    must("disk.partitions.mount", Text, "Where it is mounted.", "mount = \"/srv\""),
    may(
        "contextualization",
        Table,
        "What machines made of the image learn who they are from. The build checks that the image has what reads it, and tells cloud-init to look there and nowhere else; `larder run` gives the image what it reads.",
        "[contextualization]",
    ),
    must(
        "contextualization.seeds",
        Texts,
        "Any of `nocloud` (a disk for cloud-init), `configdrive` (a disk as OpenStack gives one), `ec2` (metadata as EC2 serves them) and `credentials` (systemd 252 or newer).",
        "seeds = [\"nocloud\", \"credentials\"]",
    ),
    may(
        "test",
        Tables,
        "What a version must pass before the build tags it. Guests boot from a throwaway mirror, by each firmware that the disk is for; tests with the same seed share a guest, in order. Results and console logs are kept with the version.",
        "[[test]]",
    ),
    must("test.name", Text, "What it is called.", "name = \"serves\""),
    may("test.login", Flag, "The serial console shows a login prompt.", "login = true"),
    may("test.units", Texts, "Units that are active.", "units = [\"nginx\"]"),
    may("test.ports", Numbers, "TCP ports at which somebody listens.", "ports = [80]"),
    may(
        "test.command",
        Text,
        "What root's shell gets in the guest. It prints TAP: a plan (`1..2`), and `ok` or `not ok` for each. It passes with a complete plan, nothing that is not ok, and exit code 0.",
        "command = \"echo 1..1; test -d /srv && echo ok\"",
    ),
    may(
        "test.script",
        Text,
        "The script beside the recipe that is run, where there is no `command`; by the shell unless its first line names another program.",
        "script = \"check.sh\"",
    ),
    may(
        "test.seed",
        OneOf(&SEEDS),
        "The guest gets a host name, a key and user-data by this, and has them.",
        "seed = \"nocloud\"",
    ),
    may(
        "test.timeout",
        Text,
        "The longest that it may take, its guest's boot included: `30s`, `10m`; `5m` unless said.",
        "timeout = \"10m\"",
    ),
    may(
        "sign",
        Table,
        "Who vouches for what was built: its description is signed once all tests have passed.",
        "[sign]",
    ),
    must(
        "sign.key",
        Text,
        "The file of a secret key of `larder key generate` or minisign: absolute, or beside the recipe.",
        "key = \"lab.key\"",
    ),
    may(
        "sign.password_file",
        Text,
        "The file whose first line is the key's password.",
        "password_file = \"lab.password\"",
    ),
];

/// The keys that stand directly in a table; in the recipe itself where the path is empty.
pub fn keys_in(table: &str) -> impl Iterator<Item = &'static Key> + '_ {
    KEYS.iter().filter(move |key| match key.path.rsplit_once('.') {
        Some((above, _)) => above == table,
        None => table.is_empty(),
    })
}

/// A recipe that builds, with most of what recipes can say; comments tell what it is.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The page of the documentation about recipes.
pub fn page() -> String {
    let mut page = String::from(
        "# Recipes\n\nA recipe says in TOML what an image is to be. `larder build RECIPE` makes it, \
         stage by stage; each stage\nis kept as a version and not built again while nothing in it \
         changes. `larder recipe check RECIPE` says whether\na recipe can be read, `larder recipe \
         example` prints one, `larder recipe schema` the JSON schema for editors.\nThis page is \
         made from the table that these come from.\n\n```toml\n",
    );
    page.push_str(EXAMPLE);
    page.push_str("```\n");
    for key in KEYS {
        let depth = key.path.split('.').count().min(3) + 1;
        let need = if key.required { ", must be there" } else { "" };
        page.push_str(&format!(
            "\n{} `{}`\n\n{}{need}.\n\n{}\n\n```toml\n{}\n```\n",
            "#".repeat(depth),
            key.path,
            capital(&key.value.words()),
            key.words,
            key.example,
        ));
    }
    page
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::{Place, Recipe};

    /// A recipe with an unknown key in this table.
    fn with_unknown_key_in(table: &str) -> String {
        let unknown = "zzzzzzzzzzzzzzzzzzzzzz = 1";
        let head = "name = \"x\"\n[distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n";
        let stage = "[[stage]]\nname = \"a\"\n";
        match table {
            "" => format!("{unknown}\n{head}"),
            "distribution" => format!("{head}{unknown}\n"),
            "archive" => format!("{head}[[archive]]\n{unknown}\n"),
            "test" | "disk.partitions" => format!("{head}{stage}[[{table}]]\n{unknown}\n"),
            "stage" => format!("{head}{stage}{unknown}\n"),
            "stage.services" => format!("{head}{stage}services = {{ {unknown} }}\n"),
            _ if table.starts_with("stage.") => {
                format!("{head}{stage}{} = [{{ {unknown} }}]\n", &table[6..])
            }
            _ => format!("{head}{stage}[{table}]\n{unknown}\n"),
        }
    }

    #[test]
    fn the_reader_takes_the_keys_of_the_table_and_no_others() {
        let tables = KEYS.iter().filter(|key| matches!(key.value, Table | Tables | TextsOrTables));
        for table in tables.map(|key| key.path).chain([""]) {
            let text = with_unknown_key_in(table);
            let error = toml::from_str::<Recipe>(&text).unwrap_err();
            let mut known: Vec<_> = error.message().split('`').skip(1).step_by(2).skip(1).collect();
            let mut listed: Vec<_> =
                keys_in(table).map(|key| key.path.rsplit('.').next().unwrap()).collect();
            known.sort_unstable();
            listed.sort_unstable();
            assert_eq!(known, listed, "[{table}]: {}", error.message());
        }
    }

    #[test]
    fn the_example_is_a_recipe() {
        let (recipe, _) = Recipe::read(Place::new("example", EXAMPLE)).unwrap();
        assert!(recipe.stage.len() > 1);
    }

    #[test]
    fn every_key_has_a_heading_in_the_documentation() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipes.md");
        if std::env::var_os("LARDER_GOLDEN").is_some_and(|word| word == "write") {
            std::fs::write(&path, page()).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text == page(), "LARDER_GOLDEN=write makes {} anew", path.display());
        for key in KEYS {
            assert!(text.contains(&format!("# `{}`\n", key.path)), "{}", key.path);
            assert!(key.words.ends_with('.'), "{}", key.path);
        }
    }
}
