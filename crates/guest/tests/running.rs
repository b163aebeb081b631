//! Guests that run in a real QEMU, from a boot sector that talks on the serial port.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use guest::{Accelerator, Console, Drive, Guest, GuestConfig};
use model::Kind;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const SOON: Duration = Duration::from_secs(60);

/// A boot sector that says `login: `, echoes what it is sent, and never ends.
///
/// ```text
///   mov dx, 0x3f8 ; mov si, text ; say: lodsb ; test al, al ; jz echo ; out dx, al ; jmp say
///   echo: mov dx, 0x3fd ; in al, dx ; test al, 1 ; jz echo ; mov dx, 0x3f8 ; in al, dx ; out dx, al ; jmp echo
/// ```
fn talking_disk(folder: &Path) -> PathBuf {
    const CODE: [u8; 33] = [
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax ; mov ds, ax
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xbe, 0x21, 0x7c, // mov si, 0x7c21
        0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // say
        0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf8, // echo: until a byte is there
        0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xf1, // take it, say it
    ];
    // The firmware reads by cylinders: a disk of less than one has no boot sector to it.
    let mut disk = vec![0; 1024 * 1024];
    disk[..33].copy_from_slice(&CODE);
    disk[33..41].copy_from_slice(b"login: \0");
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let path = folder.join("talking.raw");
    std::fs::write(&path, disk).unwrap();
    path
}

fn config(folder: &Path) -> GuestConfig {
    let drive = Drive::File { path: talking_disk(folder), read_only: false };
    let mut config = GuestConfig::new(vec![drive], Console::Scripted);
    config.memory_mib = 16;
    config.accelerator = Some(Accelerator::Tcg);
    config
}

#[test]
fn a_guest_boots_talks_pauses_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::start(&config(folder.path())).unwrap();
    guest.console().unwrap().wait_for("login: ", SOON).unwrap();
    guest.console().unwrap().send("hello").unwrap();
    guest.console().unwrap().wait_for("hello\n", SOON).unwrap();
    guest.qmp().stop().unwrap();
    assert_eq!(guest.qmp().status().unwrap(), "paused");
    guest.qmp().wait_event("STOP", SOON).unwrap();
    guest.qmp().cont().unwrap();
    assert_eq!(guest.qmp().status().unwrap(), "running");
    // Nothing in a boot sector hears the power button.
    let error = guest.power_down(Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(guest.is_running());
    guest.qmp().quit().unwrap();
    assert!(guest.wait(Some(SOON)).unwrap().success());
    guest.console().unwrap().wait_for("login: ", SOON).unwrap_err();
}

#[test]
fn a_dropped_guest_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest::start(&config(folder.path())).unwrap();
    let process = PathBuf::from(format!("/proc/{}", guest.pid()));
    assert!(process.exists());
    drop(guest);
    assert!(!process.exists());
}

#[test]
fn a_guest_does_not_depend_on_the_thread_that_started_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut guest = std::thread::spawn(move || Guest::start(&config).unwrap()).join().unwrap();
    guest.console().unwrap().wait_for("login: ", SOON).unwrap();
    assert!(guest.is_running());
}

#[test]
fn a_configuration_that_qemu_refuses_is_told_in_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.drives = vec![Drive::File { path: "/no/such/disk.raw".into(), read_only: true }];
    let error = Guest::start(&config).map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("/no/such/disk.raw"), "{error}");
}

#[test]
fn a_missing_qemu_says_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.program = "no-such-qemu".into();
    let error = Guest::start(&config).map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.hint_text().unwrap().contains("qemu-system-x86"));
}

/// Set in the process that is to be killed with its guest running.
const DOOMED: &str = "LARDER_TEST_DOOMED_FOLDER";

#[test]
fn a_guest_ends_with_the_process_that_started_it_however_that_ends() {
    const NAME: &str = "a_guest_ends_with_the_process_that_started_it_however_that_ends";
    if let Some(folder) = std::env::var_os(DOOMED) {
        let guest = Guest::start(&config(Path::new(&folder))).unwrap();
        writeln!(std::io::stdout(), "\nguest {}", guest.pid()).unwrap();
        let _exit = guest.wait(None);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(DOOMED, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let pid = lines.find_map(|line| line.unwrap().strip_prefix("guest ")?.parse().ok()).unwrap();
    let handle = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    // A process handle is readable once the process has ended.
    let mut ended = [PollFd::new(&handle, PollFlags::IN)];
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ended, Some(&limit)).unwrap(), 1);
}
