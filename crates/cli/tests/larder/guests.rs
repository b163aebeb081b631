//! `larder run`: a guest from a mirror, its console on the terminal.

#[path = "../../../builder/tests/support/small_kernel.rs"]
mod small_kernel;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::harness::{LIMIT, Larder, Process};

const TEXT: &[u8] = b"hello from the guest\r\n";

/// A disk that says [`TEXT`] on the serial port, copies its first sector to its second, and resets
/// the machine.
///
/// ```text
///   xor ax, ax ; mov ds, ax ; mov es, ax ; mov dx, 0x3f8 ; mov si, text
///   say: lodsb ; test al, al ; jz write ; out dx, al ; jmp say
///   write: mov ax, 0x0301 ; mov bx, 0x7c00 ; mov cx, 2 ; mov dx, 0x80 ; int 0x13
///   mov al, 0xfe ; out 0x64, al ; hang: jmp hang
/// ```
fn writing_disk() -> Vec<u8> {
    const CODE: [u8; 40] = [
        0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0xba, 0xf8, 0x03, 0xbe, 0x28, 0x7c, // set up
        0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // say
        0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7c, 0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xcd,
        0x13, // write
        0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe, // reset
    ];
    disk(&CODE, TEXT)
}

/// A disk that says [`TEXT`], then what it is sent, and never ends.
///
/// ```text
///   xor ax, ax ; mov ds, ax ; mov dx, 0x3f8 ; mov si, text
///   say: lodsb ; test al, al ; jz echo ; out dx, al ; jmp say
///   echo: mov dx, 0x3fd ; in al, dx ; test al, 1 ; jz echo ; mov dx, 0x3f8 ; in al, dx ; out dx, al ; jmp echo
/// ```
fn echoing_disk() -> Vec<u8> {
    const CODE: [u8; 33] = [
        0x31, 0xc0, 0x8e, 0xd8, 0xba, 0xf8, 0x03, 0xbe, 0x21, 0x7c, // set up
        0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // say
        0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf8, // echo: until a byte is there
        0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xf1, // take it, say it
    ];
    disk(&CODE, TEXT)
}

fn disk(code: &[u8], text: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..code.len()].copy_from_slice(code);
    disk[code.len()..code.len() + text.len()].copy_from_slice(text);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// Has bash write nothing between what is typed and what comes of it.
const PLAIN_ECHO: &[u8] = b"bind 'set enable-bracketed-paste off'\n";

/// A terminal with larder in it.
pub struct Terminal {
    process: Process,
    master: File,
    seen: Vec<u8>,
}

impl Terminal {
    pub fn run(larder: &Larder, line: &str) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let open = || File::options().read(true).write(true).open(&name).unwrap();
        let mut command = larder.command(line);
        command.stdin(open()).stdout(open()).stderr(open());
        let process = Process::start(&mut command);
        Terminal { process, master: File::from(master), seen: Vec::new() }
    }

    /// Reads until a text has been seen since the last call; returns what came before its end.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> String {
        let start = Instant::now();
        loop {
            let found = self.seen.windows(text.len()).position(|seen| seen == text.as_bytes());
            if let Some(position) = found {
                let rest = self.seen.split_off(position + text.len());
                let seen = std::mem::replace(&mut self.seen, rest);
                return String::from_utf8_lossy(&seen).into_owned();
            }
            let shown = String::from_utf8_lossy(&self.seen).into_owned();
            assert!(start.elapsed() < limit, "no {text:?} in {shown:?}");
            let mut readable = [PollFd::new(&self.master, PollFlags::IN)];
            let step = Timespec { tv_sec: 1, tv_nsec: 0 };
            if rustix::event::poll(&mut readable, Some(&step)).unwrap() == 0 {
                continue;
            }
            let mut bytes = [0; 4096];
            let count = self.master.read(&mut bytes).unwrap_or(0);
            assert!(count > 0, "it ended without {text:?}: {shown:?}");
            self.seen.extend(&bytes[..count]);
        }
    }

    pub fn send(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    pub fn ends(&mut self) -> i32 {
        assert!(self.process.ends_within(LIMIT));
        self.process.child.wait().unwrap().code().unwrap()
    }
}

fn import(larder: &Larder, bytes: &[u8]) {
    larder.write("disk.raw", bytes);
    larder.json("import disk.raw guest");
}

#[test]
fn a_guest_talks_on_the_terminal_and_its_mirror_is_thrown_away() {
    let larder = Larder::new();
    import(&larder, &echoing_disk());
    let mut terminal = Terminal::run(&larder, "run guest --memory 32M --accel tcg");
    terminal.wait_for("hello from the guest", LIMIT);
    assert_eq!(larder.json("mirrors")["mirrors"].as_array().unwrap().len(), 1);
    terminal.send(b"ping");
    terminal.wait_for("ping", LIMIT);
    terminal.send(b"\x01x");
    assert_eq!(terminal.ends(), 0);
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
    assert_eq!(std::fs::read_dir(larder.path("state/mirrors")).unwrap().count(), 0);
}

#[test]
fn what_a_guest_wrote_to_a_named_mirror_is_kept_and_committed() {
    let larder = Larder::new();
    let mut bytes = writing_disk();
    import(&larder, &bytes);
    // Nobody at the terminal: no stdin, and a file for what it says.
    let run = |line: &str| {
        let said = File::create(larder.path("said")).unwrap();
        let mut command = larder.command(line);
        let mut guest =
            Process::start(command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()));
        assert!(guest.ends_within(LIMIT));
        assert_eq!(guest.child.wait().unwrap().code(), Some(0));
        let said = larder.read("said");
        assert!(said.windows(TEXT.len()).any(|window| window == TEXT), "{line}");
    };
    run("run guest --memory 32M --accel tcg --mirror kept");
    let kept = &larder.json("mirrors")["mirrors"][0];
    assert_eq!((&kept["name"], &kept["dirty_bytes"]), (&"kept".into(), &4096.into()));
    let commit = larder.json("commit kept");
    assert_eq!((&commit["version"], &commit["new_bytes"]), (&2.into(), &4096.into()));
    bytes.copy_within(..512, 512);
    larder.json("export guest@2 out.raw");
    assert!(larder.read("out.raw") == bytes);
    // The new version boots too, and a mirror without a name leaves nothing.
    run("run guest@2 --memory 32M --accel tcg -- -name extra");
    let mirrors = larder.json("mirrors");
    assert_eq!(mirrors["mirrors"].as_array().unwrap().len(), 1, "{mirrors}");
}

#[test]
fn a_guest_boots_through_vhost_user_and_what_it_wrote_is_committed() {
    let larder = Larder::new();
    let mut bytes = writing_disk();
    import(&larder, &bytes);
    let mut served = larder.attach("guest --mirror m --vhost-user ./guest.sock --nbd ./nbd.sock");
    let exports = &served.ready["exports"];
    assert_eq!(
        (&exports[0]["door"], &exports[0]["writable"]),
        (&"vhost-user".into(), &true.into())
    );
    assert_eq!((&exports[1]["door"], &exports[1]["writable"]), (&"nbd".into(), &false.into()));
    let boot = || {
        larder.shell(
            "timeout 100 qemu-system-x86_64 -accel tcg -m 64 -machine q35,memory-backend=memory \
             -object memory-backend-memfd,id=memory,size=64M,share=on \
             -chardev socket,id=disk,path=guest.sock,reconnect=1 \
             -device vhost-user-blk-pci,chardev=disk,bootindex=0 \
             -no-reboot -display none -monitor none -serial file:said",
        );
        let said = larder.read("said");
        assert!(said.windows(TEXT.len()).any(|window| window == TEXT));
    };
    boot();
    let commit = larder.json("commit m");
    assert_eq!((&commit["version"], &commit["new_bytes"]), (&2.into(), &4096.into()));
    bytes.copy_within(..512, 512);
    larder.json("export guest@2 out.raw");
    assert!(larder.read("out.raw") == bytes);
    // Another guest, at the same socket, while it is still served.
    boot();
    larder.json("detach m");
    assert!(served.process.ends_within(LIMIT));
    assert!(!larder.path("guest.sock").exists());
}

#[test]
fn a_guest_boots_through_fuse_and_what_it_wrote_is_committed() {
    let larder = Larder::new();
    let mut bytes = writing_disk();
    import(&larder, &bytes);
    std::fs::create_dir(larder.path("mount")).unwrap();
    let served = larder.attach("guest --mirror m --fuse mount");
    larder.shell(
        "timeout 100 qemu-system-x86_64 -accel tcg -m 64 -drive \
         file=mount/mirrors/m,format=raw,if=virtio,file.locking=off -no-reboot -display none \
         -monitor none -serial file:said",
    );
    let said = larder.read("said");
    assert!(said.windows(TEXT.len()).any(|window| window == TEXT));
    let commit = larder.json("commit m");
    assert_eq!((&commit["version"], &commit["new_bytes"]), (&2.into(), &4096.into()));
    served.stop();
    bytes.copy_within(..512, 512);
    larder.json("export guest@2 out.raw");
    assert!(larder.read("out.raw") == bytes);
}

#[test]
fn a_guest_that_is_killed_with_larder_leaves_a_mirror_that_opens_again() {
    let larder = Larder::new();
    import(&larder, &echoing_disk());
    let mut terminal = Terminal::run(&larder, "run guest --memory 32M --accel tcg --mirror m");
    terminal.wait_for("hello from the guest", LIMIT);
    let commit = larder.json("commit m");
    assert_eq!(commit["version"], 2, "a commit while the guest runs");
    terminal.process.kill();
    let mut again = Terminal::run(&larder, "run guest@2 --memory 32M --accel tcg --mirror m");
    again.wait_for("hello from the guest", LIMIT);
    again.process.signal(rustix::process::Signal::TERM);
    again.ends();
    larder.json("detach m --discard");
}

#[test]
fn a_run_that_is_killed_beside_a_daemon_leaves_nothing_served() {
    let larder = Larder::new();
    import(&larder, &echoing_disk());
    let daemon = larder.daemon("");
    let run = |line: &str| {
        let mut terminal = Terminal::run(&larder, line);
        terminal.wait_for("hello from the guest", LIMIT);
        terminal
    };
    let served = || larder.json("mirrors")["mirrors"].clone();
    let mut thrown_away = run("run guest --memory 32M --accel tcg");
    let mut kept = run("run guest --memory 32M --accel tcg --mirror kept");
    assert_eq!(served().as_array().unwrap().len(), 2);
    thrown_away.process.kill();
    // It is no mirror any more before the last of its files is gone.
    let folders = || std::fs::read_dir(larder.path("state/mirrors")).unwrap().count();
    while served().as_array().unwrap().len() > 1 || folders() > 1 {
        std::thread::yield_now();
    }
    // A daemon that comes after the one that was asked knows it, too.
    daemon.kill();
    kept.process.kill();
    let mut unnamed = Some(larder.daemon(""));
    while !served()[0]["served_by"].is_null() {
        std::thread::yield_now();
    }
    assert_eq!(served()[0]["name"], "kept");
    let terminal = run("run guest --memory 32M --accel tcg");
    drop(unnamed.take());
    drop(terminal);
    let _daemon = larder.daemon("");
    while served().as_array().unwrap().len() > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn arguments_that_qemu_refuses_leave_no_mirror() {
    let larder = Larder::new();
    import(&larder, &echoing_disk());
    let outcome = larder.attempt("run guest --memory 32M --accel tcg -- -no-such-option");
    assert_eq!(outcome.code, Some(1));
    // On a terminal QEMU has said what it refuses itself.
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert!(lines[0].contains("-no-such-option: invalid option"), "{lines:?}");
    assert_eq!(lines.last(), Some(&"larder: start QEMU: it ended with exit status: 1"));
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
}

#[test]
fn a_disk_without_a_loader_is_started_by_the_newest_kernel_in_it() {
    let larder = Larder::new();
    std::fs::create_dir_all(larder.path("tree/etc")).unwrap();
    std::fs::create_dir_all(larder.path("tree/boot")).unwrap();
    larder.write("tree/boot/vmlinuz-6.1.0-9", b"an old one");
    larder.write("tree/boot/vmlinuz-6.1.0-10", &small_kernel::small_kernel());
    larder.write("tree/boot/initrd.img-6.1.0-10", b"nothing");
    let made = std::process::Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([larder.path("tree"), larder.path("disk.raw")])
        .arg("16M")
        .status();
    assert!(made.unwrap().success());
    larder.json("import disk.raw guest");
    let mut terminal = Terminal::run(&larder, "run guest --memory 32M --accel tcg");
    terminal.wait_for("root=/dev/vda rw", LIMIT);
    terminal.wait_for(small_kernel::PROMPT, LIMIT);
    terminal.process.signal(rustix::process::Signal::TERM);
    terminal.ends();
    // Who says what is to be started is believed.
    let own =
        "run guest --memory 32M --accel tcg -- -kernel tree/boot/vmlinuz-6.1.0-10 -append mine";
    let mut terminal = Terminal::run(&larder, own);
    terminal.wait_for("mine", LIMIT);
    terminal.process.signal(rustix::process::Signal::TERM);
    terminal.ends();
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
}

/// A disk of a real Debian that `cargo xtask images` makes.
fn debian(kind: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/images");
    let mut images = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(&format!("{kind}-")) && name.ends_with(".raw")
    };
    images.find(is_it).expect("run `cargo xtask images` first")
}

/// Where the root file system of such a disk begins.
const ROOT_OFFSET: u64 = 64 << 20;

#[test]
#[ignore = "boots a real Debian, some minutes without KVM; needs `cargo xtask images`"]
fn a_real_debian_stands_still_for_a_commit_and_sees_its_disk_grow() {
    let larder = Larder::new();
    larder.json(&format!("import {} debian", debian("agent").display()));
    larder.json("create data --length 1MiB");
    let served = larder.attach("data --mirror data --vhost-user ./data.sock");
    // Its memory is one that a vhost-user server may share.
    let mut terminal = Terminal::run(
        &larder,
        "run debian --mirror m --accel tcg --memory 512M --length 3GiB -- \
         -chardev socket,id=data,path=data.sock -device vhost-user-blk-pci,chardev=data",
    );
    terminal.wait_for("login: ", LIMIT * 5);
    terminal.send(b"root\n");
    terminal.wait_for("~# ", LIMIT);
    terminal.send(PLAIN_ECHO);
    terminal.wait_for("~# ", LIMIT);
    terminal.send(b"cat /sys/block/vda/size; systemctl is-active qemu-guest-agent\n");
    terminal.wait_for("6291456", LIMIT);
    terminal.wait_for("\nactive", LIMIT);
    // Nothing syncs it but the freeze.
    terminal
        .send(b"sysctl -qw vm.dirty_writeback_centisecs=0; echo still > /root/word; echo wrote\n");
    terminal.wait_for("\nwrote", LIMIT);
    let commit = larder.json("commit m --quiesce");
    assert!(commit["frozen_file_systems"].as_u64().unwrap() > 0, "{commit}");
    assert!(commit["frozen_ms"].as_f64().unwrap() < 5000.0, "{commit}");
    // It goes on.
    terminal.send(b"echo more > /root/later && sync && echo later\n");
    terminal.wait_for("\nlater", LIMIT);

    // Of the disk at the NBD door it learns when it starts again; of the other one at once.
    assert_eq!(larder.json("resize m --length 4GiB")["doors"][0]["sees_it"], false);
    let resized = larder.json("resize data --length 9MiB");
    assert_eq!(resized["doors"][0], serde_json::json!({"door": "vhost-user", "sees_it": true}));
    terminal.send(b"until grep -x 18432 /sys/block/vdb/size; do sleep 1; done\n");
    terminal.wait_for("\n18432", LIMIT);
    terminal.send(b"\x01x");
    assert_eq!(terminal.ends(), 0);
    served.stop();

    larder.json("export debian@2 out.raw");
    assert_eq!(larder.path("out.raw").metadata().unwrap().len(), 3 << 30);
    let root = format!("'out.raw?offset={ROOT_OFFSET}'");
    larder.shell(&format!("e2fsck -fn {root}"));
    assert_eq!(larder.shell(&format!("debugfs -R 'cat /root/word' {root} 2>/dev/null")), "still\n");
    let features = larder.shell(&format!("dumpe2fs -h {root} 2>/dev/null"));
    assert!(!features.contains("needs_recovery"), "its journal was played out");
    larder.json("commit m");
    assert_eq!(larder.json("show debian")["length_bytes"], 4_u64 << 30);
}

#[test]
#[ignore = "boots a real Debian, some minutes without KVM; needs `cargo xtask images`"]
fn a_real_debian_without_an_agent_is_not_harmed_by_being_asked() {
    let larder = Larder::new();
    larder.json(&format!("import {} debian", debian("minimal").display()));
    let mut terminal = Terminal::run(&larder, "run debian --mirror m --accel tcg");
    terminal.wait_for("login: ", LIMIT * 5);
    let failure = larder.fails("commit m --quiesce");
    assert!(failure.hint.unwrap().contains("qemu-guest-agent"));
    terminal.send(b"root\n");
    terminal.wait_for("~# ", LIMIT);
    terminal.send(PLAIN_ECHO);
    terminal.wait_for("~# ", LIMIT);
    terminal.send(b"sync && echo alive\n");
    terminal.wait_for("\nalive", LIMIT);
    assert_eq!(larder.json("commit m")["version"], 2);
    terminal.send(b"\x01x");
    assert_eq!(terminal.ends(), 0);
}

#[test]
#[ignore = "boots a real Debian, some minutes without KVM; needs `cargo xtask images`"]
fn a_real_debian_boots_to_its_login_prompt() {
    let image = debian("minimal");
    let larder = Larder::new();
    larder.json(&format!("import {} debian", image.display()));
    let mut terminal = Terminal::run(&larder, "run debian --mirror m");
    terminal.wait_for("login: ", LIMIT * 5);
    let commit = larder.json("commit m --tag booted");
    assert_eq!(commit["version"], 2);
    terminal.send(b"\x01x");
    assert_eq!(terminal.ends(), 0);
    let mirrors = larder.json("mirrors");
    let fetched = mirrors["mirrors"][0]["host_bytes"].as_u64().unwrap();
    let length = mirrors["mirrors"][0]["length_bytes"].as_u64().unwrap();
    assert!(fetched < length / 4, "{fetched} of {length} bytes came here to boot it");
    let mut again = Terminal::run(&larder, "run debian:booted");
    again.wait_for("login: ", LIMIT * 5);
    again.send(b"\x01x");
    assert_eq!(again.ends(), 0);
}
