//! Which accelerator runs guests on this machine: KVM where it does, else TCG.
//!
//! That `/dev/kvm` opens says little: inside a virtual machine it may open and then run nothing.
//! So the last word is a probe: QEMU starts a machine whose firmware is four instructions that end
//! QEMU with a known exit code. Only a processor that ran them gives that code.
//!
//! **Failure**: a probe that says nothing within its limit is killed and counts as no.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::config::QEMU_PROGRAM;

/// How a guest's processors are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The kernel's: near the speed of the host.
    Kvm,
    /// QEMU's translator: works everywhere, some ten times slower.
    Tcg,
}

impl Accelerator {
    /// The word that QEMU knows it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    /// The model of its guests' processors.
    pub fn cpu_model(self) -> &'static str {
        match self {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max",
        }
    }

    /// Reads QEMU's word for it.
    pub fn parse(word: &str) -> Option<Self> {
        [Accelerator::Kvm, Accelerator::Tcg].into_iter().find(|each| each.as_str() == word)
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The longest that the probe may take before it counts as a no.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// The exit code that the probe's firmware asks for: `isa-debug-exit` ends QEMU with `2n + 1`.
const PROBE_EXIT_CODE: i32 = 2 * 0x31 + 1;

/// Picks KVM when it runs guests on this machine, TCG otherwise.
///
/// Cost: two file reads where the processor cannot virtualise; else one start of QEMU, some 100 ms,
/// two seconds at most. Nothing is cached.
pub fn pick_accelerator() -> Accelerator {
    let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !opens || !processor_virtualises(&cpu_info) {
        tracing::debug!(opens, "KVM is not usable here: TCG");
        return Accelerator::Tcg;
    }
    if runs_guests(Accelerator::Kvm, Path::new(QEMU_PROGRAM)) {
        Accelerator::Kvm
    } else {
        tracing::debug!("KVM opens but ran no guest: TCG");
        Accelerator::Tcg
    }
}

/// Whether the flags of `/proc/cpuinfo` hold Intel's or AMD's virtualisation.
fn processor_virtualises(cpu_info: &str) -> bool {
    cpu_info
        .lines()
        .filter_map(|line| line.strip_prefix("flags"))
        .any(|flags| flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// A firmware of 64 KiB whose first instructions end QEMU through `isa-debug-exit`.
fn probe_firmware() -> Vec<u8> {
    const LEN: usize = 64 * 1024;
    // The processor starts 16 bytes below the end, in 16-bit mode.
    const RESET: usize = LEN - 16;
    const CODE: [u8; 8] = [
        0xba, 0x01, 0x05, // mov dx, 0x501
        0xb0, 0x31, // mov al, 0x31
        0xee, // out dx, al
        0xf4, // hlt
        0x90, // nop
    ];
    let mut firmware = vec![0; LEN];
    firmware[RESET..RESET + CODE.len()].copy_from_slice(&CODE);
    firmware
}

/// Whether QEMU runs a processor with this accelerator, shown by running one.
fn runs_guests(accelerator: Accelerator, program: &Path) -> bool {
    let Ok(firmware) = rustix::fs::memfd_create("larder-probe", MemfdFlags::CLOEXEC) else {
        return false;
    };
    let mut firmware = File::from(firmware);
    if firmware.write_all(&probe_firmware()).is_err() {
        return false;
    }
    let path = format!("/proc/{}/fd/{}", std::process::id(), firmware.as_raw_fd());
    let child = Command::new(program)
        .args(["-nodefaults", "-display", "none", "-no-user-config", "-machine", "pc", "-m", "2"])
        .args(["-accel", accelerator.as_str(), "-bios", &path])
        .args(["-device", "isa-debug-exit,iobase=0x501,iosize=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    let handle = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let (sender, receiver) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let code = child.wait().ok().and_then(|status| status.code());
        let _gone = sender.send(code);
    });
    let code = receiver.recv_timeout(PROBE_MAX).unwrap_or_else(|_| {
        if let Some(handle) = handle {
            let _ended = rustix::process::pidfd_send_signal(handle, Signal::KILL);
        }
        None
    });
    let _joined = waiter.join();
    code == Some(PROBE_EXIT_CODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_a_processor_are_whole_words() {
        assert!(processor_virtualises("model\t: x\nflags\t\t: fpu vmx sse\n"));
        assert!(processor_virtualises("flags\t\t: svm\n"));
        assert!(!processor_virtualises("flags\t\t: fpu vmxoff svm_lock\nvmx flags : x\n"));
        assert!(!processor_virtualises(""));
    }

    #[test]
    fn the_probe_tells_a_processor_that_ran_from_one_that_did_not() {
        assert!(runs_guests(Accelerator::Tcg, Path::new(QEMU_PROGRAM)));
        assert!(!runs_guests(Accelerator::Tcg, Path::new("/bin/true")));
        assert!(!runs_guests(Accelerator::Tcg, Path::new("/no/such/program")));
    }

    #[test]
    fn a_word_is_read_back() {
        for each in [Accelerator::Kvm, Accelerator::Tcg] {
            assert_eq!(Accelerator::parse(each.as_str()), Some(each));
        }
        assert_eq!(Accelerator::parse("hax"), None);
    }
}
