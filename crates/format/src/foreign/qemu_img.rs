//! Formats that we do not read: converted by `qemu-img`, in a child that is confined, into a raw
//! temporary file that is then read like any other.
//!
//! ```text
//! FILE (opened by us) --stdin--> setpriv > prlimit > unshare > qemu-img --stdout--> file in TMPDIR
//!                                no new    CPU,      no        -f FORMAT            sparse,
//!                                rights    memory,   network   no backing           without a
//!                                          file len            file                 name
//! ```
//!
//! **Invariants**: the child is told the format and never guesses one; it opens the disk through
//! the descriptor that it inherits, so no name of the user's reaches QEMU's parser of names; a
//! backing file is refused before the conversion; a VMDK whose data lie in other files is refused
//! before any child is started.
//!
//! **Failure**: a disk that drives the child mad ends it at one of its limits: that is an error
//! here, and the temporary file is gone with its descriptor. The child dies with the thread that
//! waits for it.
//!
//! **Not here**: a jail. The child keeps our user's rights to files; what stands between a bug in
//! QEMU's format drivers and those files is only the limits above.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use model::block::LENGTH_MAX;
use model::source::DiskSource;
use model::{Error, Kind, Result};
use serde_json::Value;

use super::open::{OPERATION, length_of, read_up_to};
use super::raw::RawSource;

/// Address space of a child: QEMU's own use with room for tables of large disks.
const ADDRESS_SPACE_MAX: u64 = 4 << 30;
/// Seconds of CPU that any conversion may take, and how many bytes of input buy one more.
const CPU_SECONDS_MIN: u64 = 60;
const BYTES_PER_CPU_SECOND: u64 = 1 << 20;
/// What is kept of a child's output.
const REPLY_LEN_MAX: u64 = 1 << 20;

/// How the child opens the descriptor that we hand it.
const INHERITED: &str = "/proc/self/fd/0";

/// Reads the disk in `file`, a `format` of `qemu-img`'s, by way of a conversion.
pub(super) fn open_converted(
    file: File,
    subject: String,
    format: &str,
) -> Result<Box<dyn DiskSource>> {
    if format == "vmdk" {
        require_one_file(&file, &subject)?;
    }
    // A file that QEMU is asked to open without its backing file.
    let image = serde_json::json!({
        "driver": format,
        "file": { "driver": "file", "filename": INHERITED },
    });
    let child = Child { subject: &subject, input: Some(&file) };
    let facts = child.info(&format!("json:{image}"))?;
    if let Some(name) = facts.get("backing-filename").and_then(Value::as_str) {
        let name: String = name.chars().take(1024).flat_map(char::escape_default).collect();
        return Err(Error::new(Kind::Refused, OPERATION, &subject)
            .because(format!("it lies on the backing file \"{name}\""))
            .hint("flatten it first: qemu-img convert -O qcow2 FILE FLAT.qcow2"));
    }
    let length = length_in(&facts, &subject)?;
    let converted = child.convert(&format!("json:{image}"), length)?;
    let source = RawSource::open(converted, subject)?;
    Ok(Box::new(source))
}

/// Reads the qcow2 at `path` with all backing files behind it, wherever they are.
pub(super) fn open_trusted_chain(path: &Path) -> Result<Box<dyn DiskSource>> {
    let subject = path.display().to_string();
    let absolute = path.canonicalize().map_err(|e| Error::io(OPERATION, &subject, e))?;
    let Some(name) = absolute.to_str() else {
        return Err(Error::new(Kind::Invalid, OPERATION, subject)
            .because("its path is no UTF-8, which qemu-img needs for a chain of files"));
    };
    let image = serde_json::json!({
        "driver": "qcow2",
        "file": { "driver": "file", "filename": name },
    });
    let child = Child { subject: &subject, input: None };
    let facts = child.info(&format!("json:{image}"))?;
    let length = length_in(&facts, &subject)?;
    let converted = child.convert(&format!("json:{image}"), length)?;
    Ok(Box::new(RawSource::open(converted, subject)?))
}

/// Refuses a VMDK that is only the description of other files; QEMU would open those.
fn require_one_file(file: &File, subject: &str) -> Result<()> {
    let mut first = [0; 24];
    let len = read_up_to(file, &mut first, 0).map_err(|e| Error::io(OPERATION, subject, e))?;
    // QEMU takes a header without a capacity for a description too.
    let is_sparse = len == first.len() && first.starts_with(b"KDMV") && first[12..20] != [0; 8];
    if is_sparse {
        return Ok(());
    }
    Err(Error::new(Kind::Refused, OPERATION, subject)
        .because("this VMDK describes data in other files")
        .hint("flatten it first: qemu-img convert -f vmdk -O qcow2 FILE FLAT.qcow2"))
}

fn length_in(facts: &Value, subject: &str) -> Result<u64> {
    match facts.get("virtual-size").and_then(Value::as_u64) {
        Some(length) if length <= LENGTH_MAX => Ok(length),
        _ => Err(Error::new(Kind::Corrupt, OPERATION, subject)
            .because(format!("its length is not between 0 and {LENGTH_MAX} bytes"))),
    }
}

/// One disk that children of ours are asked about.
struct Child<'a> {
    subject: &'a str,
    /// What the child finds at [`INHERITED`].
    input: Option<&'a File>,
}

impl Child<'_> {
    /// What `qemu-img info` says; it opens no backing file.
    fn info(&self, image: &str) -> Result<Value> {
        let mut command = confined("qemu-img", CPU_SECONDS_MIN, 1 << 20);
        command.args(["info", "--output=json", image]);
        let reply = self.run(command, Stdio::piped())?;
        serde_json::from_slice(&reply).map_err(|error| {
            Error::new(Kind::Unavailable, OPERATION, self.subject)
                .because("qemu-img answered something unknown")
                .caused_by(error)
        })
    }

    /// Converts the disk into a sparse raw file without a name.
    fn convert(&self, image: &str, length: u64) -> Result<File> {
        let failed = |error| Error::io("make room for a converted disk for", self.subject, error);
        let output = tempfile::tempfile().map_err(failed)?;
        let input_len = match self.input {
            Some(file) => length_of(file).map_err(failed)?,
            None => length,
        };
        let seconds = CPU_SECONDS_MIN.saturating_add(input_len / BYTES_PER_CPU_SECOND);
        // QEMU rounds up to sectors.
        let mut command = confined("qemu-img", seconds, length.next_multiple_of(512).max(1 << 20));
        command.args(["convert", "-O", "raw", image, "/proc/self/fd/1"]);
        let stdout = output.try_clone().map_err(failed)?;
        self.run(command, Stdio::from(stdout))?;
        Ok(output)
    }

    /// Runs `command` to its end and returns what it wrote to a piped standard output.
    fn run(&self, mut command: Command, stdout: Stdio) -> Result<Vec<u8>> {
        let failed = |error| Error::io("run qemu-img for", self.subject, error);
        let stdin = match self.input {
            Some(file) => Stdio::from(file.try_clone().map_err(failed)?),
            None => Stdio::null(),
        };
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => missing("setpriv, prlimit and unshare", "util-linux"),
            _ => failed(error),
        })?;
        // A pipe that nobody empties would stop the child; drain both at once.
        let stderr = child.stderr.take();
        let complaints = thread::spawn(move || drain(stderr));
        let reply = drain(child.stdout.take());
        let status = child.wait().map_err(failed)?;
        let complaints = complaints.join().unwrap_or_default();
        if status.success() {
            return Ok(reply);
        }
        Err(self.explain(status, &complaints))
    }

    fn explain(&self, status: std::process::ExitStatus, complaints: &[u8]) -> Error {
        use std::os::unix::process::ExitStatusExt;
        let text = String::from_utf8_lossy(complaints);
        let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("");
        let line: String = line.chars().filter(|c| !c.is_control()).take(500).collect();
        if status.code() == Some(127) {
            return missing("qemu-img", "qemu-utils");
        }
        if line.contains("No space left on device") {
            return Error::new(Kind::Full, OPERATION, self.subject)
                .because("there is no room for its conversion")
                .hint("set TMPDIR to a folder with room for the disk's data");
        }
        let reason = match status.signal() {
            Some(signal) => format!("qemu-img was ended by signal {signal}, at one of its limits"),
            None => format!("qemu-img says: {line}"),
        };
        Error::new(Kind::Corrupt, OPERATION, self.subject).because(reason)
    }
}

fn missing(program: &str, package: &str) -> Error {
    Error::new(Kind::Unavailable, OPERATION, "")
        .because(format!("this format needs {program}, which is not installed"))
        .hint(format!("install the package {package}"))
}

/// `program` without a network, without new rights, with limits; arguments are to follow.
fn confined(program: &str, cpu_seconds: u64, file_len_max: u64) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "--pdeathsig", "KILL", "--", "prlimit"]);
    command.arg(format!("--as={ADDRESS_SPACE_MAX}"));
    command.arg(format!("--cpu={cpu_seconds}"));
    command.arg(format!("--fsize={file_len_max}"));
    command.args(["--core=0", "--nofile=256", "--"]);
    command.args(no_network());
    command.arg(program);
    command.env_clear();
    for name in ["PATH", "TMPDIR", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// The words before a command that take its network away, as far as the system lets us.
fn no_network() -> Vec<OsString> {
    let ways: [&[&str]; 2] =
        [&["unshare", "--net", "--"], &["unshare", "--user", "--map-current-user", "--net", "--"]];
    let works = |way: &&[&str]| {
        let mut attempt = Command::new(way[0]);
        attempt.args(&way[1..]).arg("true");
        attempt.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        attempt.status().is_ok_and(|status| status.success())
    };
    let way = ways.into_iter().find(works).unwrap_or_default();
    way.iter().map(|word| OsStr::new(word).to_owned()).collect()
}

fn drain(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What is lost to an error is lost to a message only.
        let _ = pipe.by_ref().take(REPLY_LEN_MAX).read_to_end(&mut bytes);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(program: &str, words: &[&str]) -> Result<String> {
        let mut command = confined(program, 1, 1 << 20);
        command.args(words);
        let child = Child { subject: "disk.vmdk", input: None };
        child.run(command, Stdio::piped()).map(|reply| String::from_utf8(reply).unwrap())
    }

    #[test]
    fn a_child_sees_no_network_but_its_own_loopback() {
        let devices = outcome("cat", &["/proc/self/net/dev"]).unwrap();
        let names: Vec<&str> =
            devices.lines().skip(2).filter_map(|l| l.split(':').next()).collect();
        assert_eq!(names.iter().map(|name| name.trim()).collect::<Vec<_>>(), ["lo"]);
    }

    #[test]
    fn a_child_ends_at_its_limits_of_time_and_file_length() {
        let error = outcome("sh", &["-c", "while :; do :; done"]).unwrap_err();
        assert!(error.chain().contains("limits"), "{}", error.chain());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        let output = format!("of={}", path.display());
        let words = ["if=/dev/zero", "bs=64k", "count=64", &output];
        outcome("dd", &words).unwrap_err();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = outcome("no-such-program-anywhere", &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.chain().contains("qemu-img"), "{}", error.chain());
        assert_eq!(error.hint_text(), Some("install the package qemu-utils"));
    }

    #[test]
    fn a_child_has_none_of_our_environment_but_what_it_needs() {
        let names = outcome("env", &[]).unwrap();
        assert!(names.contains("PATH="));
        assert!(!names.contains("CARGO"), "{names}");
    }

    #[test]
    fn a_child_that_says_much_is_cut_off_and_not_waited_for_in_vain() {
        let script = "head -c 9000000 /dev/zero; head -c 9000000 /dev/zero >&2";
        assert_eq!(outcome("sh", &["-c", script]).unwrap().len() as u64, REPLY_LEN_MAX);
    }
}
