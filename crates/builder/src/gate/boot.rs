//! One boot of a version under test: a throwaway mirror, firmware, a seed, a guest.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use env::{Entropy, SystemEntropy};
use guest::disk_files::{self, DiskFile};
use guest::seed::{Seed, SeedKind};
use guest::{Console, Drive, Guest, GuestConfig};
use model::{Error, Kind, Result};

use super::Gate;
use super::checks::Checks;
use super::plan::{Firmware, Plan, SeedWord, Test};
use super::port::Port;
use super::report::Outcome;
use crate::attached::Attached;
use crate::tool::{Log, Run, program};

/// The unit that opens a shell of root's at the second serial port.
const UNIT: &str = include_str!("larder-test.service");
const UNIT_PATH: &str = "/etc/systemd/system/larder-test.service";
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/larder-test.service";

/// Where scripts are in the guest; their number comes behind.
pub(crate) const SCRIPTS: &str = "/usr/lib/larder-test/";

/// What a guest under test has of memory, in MiB.
const MEMORY_MIB: u64 = 768;

const LOOK_LIMIT: Duration = Duration::from_secs(120);

/// UEFI's code and its variables, by the Debian package `ovmf` and by Fedora's.
const UEFI: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
];

/// The partition type of an EFI system partition.
const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";

/// A boot to be made.
pub(crate) struct Boot<'a> {
    gate: &'a Gate<'a>,
    firmware: Firmware,
    seed: Option<SeedWord>,
    /// The tests, each with its place in the plan.
    tests: Vec<(usize, &'a Test)>,
}

/// Which boots the tests need: one for each firmware and each seed.
///
/// # Errors
/// Where it is not said how the disk boots, those of looking at it.
pub(crate) fn boots<'a>(
    gate: &'a Gate<'a>,
    plan: &'a Plan,
    log: &Log,
    work: &Path,
) -> Result<Vec<Boot<'a>>> {
    let firmware = match plan.firmware.is_empty() {
        false => plan.firmware.clone(),
        true => firmware_of(gate, log, &work.join("look"))?,
    };
    let mut seeds: Vec<Option<SeedWord>> = Vec::new();
    for test in &plan.tests {
        if !seeds.contains(&test.seed) {
            seeds.push(test.seed);
        }
    }
    let mut all = Vec::new();
    for firmware in firmware {
        for seed in &seeds {
            let tests = plan.tests.iter().enumerate().filter(|(_, test)| test.seed == *seed);
            all.push(Boot { gate, firmware, seed: *seed, tests: tests.collect() });
        }
    }
    Ok(all)
}

/// What starts a disk, by what is on it.
fn firmware_of(gate: &Gate, log: &Log, work: &Path) -> Result<Vec<Firmware>> {
    make_folder(work)?;
    let attached = Attached::open(gate.repository, gate.version, work)?;
    let run = Run { log, limit: LOOK_LIMIT, cancel: gate.cancel };
    // A disk without partitions is refused by sfdisk, and is no error.
    let table = run.answer(program("sfdisk").arg("--json").arg(attached.file()));
    let table: serde_json::Value =
        table.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let Some(partitions) = table["partitiontable"]["partitions"].as_array() else {
        let is_whole = attached.root(&run).is_ok_and(|(offset, _)| offset == 0);
        return Ok(vec![if is_whole { Firmware::Direct } else { Firmware::Bios }]);
    };
    let is_uefi = partitions
        .iter()
        .any(|partition| partition["type"].as_str().is_some_and(|t| t.eq_ignore_ascii_case(ESP)));
    // Code in front of the partition table is for a BIOS.
    let mut code = [0; 440];
    let file = std::fs::File::open(attached.file());
    let read = file.and_then(|file| std::os::unix::fs::FileExt::read_exact_at(&file, &mut code, 0));
    read.map_err(|error| Error::io("read", gate.version.id.to_string(), error))?;
    let is_bios = code.iter().any(|byte| *byte != 0) || !is_uefi;
    let all = [is_bios.then_some(Firmware::Bios), is_uefi.then_some(Firmware::Uefi)];
    Ok(all.into_iter().flatten().collect())
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .map_err(|error| Error::io("make", path.display().to_string(), error))
}

impl Boot<'_> {
    /// What it is called: its firmware, and its seed.
    pub(crate) fn name(&self) -> String {
        match self.seed {
            Some(seed) => format!("{}-{}", self.firmware.as_str(), seed.as_str()),
            None => self.firmware.as_str().to_owned(),
        }
    }

    /// Boots and tests; what was found, and all that the console said.
    pub(crate) fn run(&self, folder: &Path) -> Result<(Vec<Outcome>, String)> {
        make_folder(folder)?;
        let attached = Attached::open(self.gate.repository, self.gate.version, folder)?;
        let no_shell = self.put_shell(attached.file())?;
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::io("make", "a port for the guest", error))?;
        let theirs = Arc::new(OwnedFd::from(theirs));
        let seed = self.seed.map(|_| seed());
        let mut drives =
            vec![Drive::File { path: attached.file().to_path_buf(), read_only: false }];
        let mut extra_arguments = self.firmware_arguments(folder)?;
        if let (Some(word), Some(seed)) = (self.seed, &seed) {
            let (drive, arguments) = seed_arguments(word, seed, folder)?;
            drives.extend(drive);
            extra_arguments.extend(arguments);
        }
        if self.seed != Some(SeedWord::Ec2) {
            // Units wait for minutes for a network that never comes. This one leads nowhere.
            let words = [
                "-netdev",
                "user,id=nowhere,restrict=on",
                "-device",
                "virtio-net-pci,netdev=nowhere,romfile=",
            ];
            extra_arguments.extend(words.map(OsString::from));
        }
        let port = format!("socket,id=test,fd={}", theirs.as_raw_fd());
        for word in ["-chardev", &port, "-serial", "chardev:test"] {
            extra_arguments.push(word.into());
        }
        let config = GuestConfig {
            memory_mib: MEMORY_MIB,
            inherited: vec![theirs],
            extra_arguments,
            ..GuestConfig::new(drives, Console::Stream)
        };
        let began = Instant::now();
        let mut guest = Guest::start(&config)?;
        // The guest's end of the port is QEMU's alone now: its end is seen.
        drop(config);
        let console = guest
            .take_console_stream()
            .ok_or_else(|| Error::new(Kind::Bug, "test", self.gate.version.id.to_string()))?;
        let mut checks = Checks {
            began,
            console: Port::new(console)?,
            shell: Port::new(ours)?,
            no_shell,
            is_open: false,
            has_prompt: false,
            seed,
            seed_word: self.seed,
            cancel: self.gate.cancel,
        };
        let mut outcomes = Vec::new();
        for (index, test) in &self.tests {
            let began = Instant::now();
            let checks = checks.of(*index, test)?;
            // So short a number reads back as it was, from any JSON.
            let seconds = (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
            outcomes.push(Outcome { name: test.name.clone(), boot: self.name(), checks, seconds });
        }
        guest.kill();
        Ok((outcomes, checks.console.text()))
    }

    /// Puts the shell and the scripts into the mirror; why not, where the disk cannot take them.
    fn put_shell(&self, disk: &Path) -> Result<Option<String>> {
        let mut files =
            vec![DiskFile { path: UNIT_PATH.into(), contents: UNIT.into(), mode: 0o644 }];
        for (index, test) in &self.tests {
            if let Some(script) = &test.script {
                let (path, contents) = (format!("{SCRIPTS}{index}"), script.clone().into_bytes());
                files.push(DiskFile { path, contents, mode: 0o755 });
            }
        }
        match disk_files::put(disk, &files, &[(WANTED, "../larder-test.service")]) {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == Kind::NotFound => {
                Ok(Some("no partition is an ext2, ext3 or ext4 with an init in it".into()))
            }
            Err(error) if error.kind() == Kind::Corrupt => Ok(Some(error.chain())),
            Err(error) => Err(error),
        }
    }

    fn firmware_arguments(&self, folder: &Path) -> Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = Vec::new();
        match self.firmware {
            Firmware::Bios => {}
            Firmware::Uefi => {
                let (code, variables) = uefi(folder)?;
                for (unit, file, more) in [(0, code, ",readonly=on"), (1, variables, "")] {
                    let file = file.display().to_string().replace(',', ",,");
                    arguments.push("-drive".into());
                    arguments
                        .push(format!("if=pflash,unit={unit},format=raw{more},file={file}").into());
                }
            }
            Firmware::Direct => {
                let version = self.gate.version;
                let reference = version.id.to_string().parse()?;
                let reader = self.gate.repository.open_version(&reference)?;
                arguments =
                    crate::direct::arguments(&Arc::new(reader), folder)?.ok_or_else(|| {
                        Error::new(Kind::NotFound, "find a kernel in", version.id.to_string())
                            .because("it is no file system with one in /boot")
                    })?;
            }
        }
        Ok(arguments)
    }
}

/// UEFI's code, and variables of this guest's own.
fn uefi(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let found = UEFI.iter().find(|(code, _)| Path::new(code).exists());
    let Some((code, variables)) = found else {
        return Err(Error::new(Kind::NotFound, "find UEFI firmware", UEFI[0].0)
            .because("it is not installed")
            .hint("apt-get install --no-install-recommends ovmf"));
    };
    let own = folder.join("variables.fd");
    std::fs::copy(variables, &own)
        .map_err(|error| Error::io("copy", variables.to_string(), error))?;
    Ok((code.into(), own))
}

/// A seed with things that no image has by itself.
fn seed() -> Seed {
    let word = SystemEntropy.name()[..8].to_owned();
    Seed {
        instance_id: format!("test-{word}"),
        host_name: format!("test-{word}"),
        ssh_keys: vec![format!(
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExhcmRlclRlc3RLZXlMYXJkZXJUZXN0S2V5TGFyZGVy {word}"
        )],
        user_data: Some(
            format!("#cloud-config\nwrite_files:\n- path: {USER_DATA_FILE}\n  content: {word}\n")
                .into_bytes(),
        ),
        meta_data: None,
    }
}

/// The file that the seed's user-data asks for.
pub(crate) const USER_DATA_FILE: &str = "/var/tmp/larder-test-seed";

fn seed_arguments(
    word: SeedWord,
    seed: &Seed,
    folder: &Path,
) -> Result<(Option<Drive>, Vec<OsString>)> {
    let disk = |kind| -> Result<_> {
        let path = folder.join("seed.iso");
        std::fs::write(&path, seed.disk(kind)?)
            .map_err(|error| Error::io("write", path.display().to_string(), error))?;
        Ok((Some(Drive::File { path, read_only: true }), Vec::new()))
    };
    match word {
        SeedWord::NoCloud => disk(SeedKind::NoCloud),
        SeedWord::ConfigDrive => disk(SeedKind::ConfigDrive),
        SeedWord::Ec2 => {
            Ok((None, guest::ec2_metadata::arguments(seed, &folder.join("metadata"))?))
        }
        SeedWord::Credentials => {
            let arguments = seed.credential_arguments()?;
            Ok((None, arguments.into_iter().map(OsString::from).collect()))
        }
    }
}
