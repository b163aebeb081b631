//! A folder with a repository and a state folder of its own, and larder run in it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

/// How long anything may take before it counts as hanging.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A folder, a repository `repo` and a state folder `state` in it. Every command runs in the
/// folder, so that names in command lines and messages are relative to it.
pub struct Larder {
    folder: tempfile::TempDir,
    temporary: tempfile::TempDir,
}

/// What came of a command.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// The error of a command that failed as it should: one line, and perhaps a hint.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    pub hint: Option<String>,
}

impl Larder {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("larder-test-").tempdir().unwrap();
        let temporary = tempfile::Builder::new().prefix("larder-temp-").tempdir().unwrap();
        Larder { folder, temporary }
    }

    /// Where its temporary files are.
    pub fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The command for a line of words.
    pub fn command(&self, line: &str) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_larder")), line)
    }

    fn command_of(&self, program: &Path, line: &str) -> Command {
        let mut command = Command::new(program);
        command.args(line.split_whitespace()).current_dir(self.folder.path());
        for variable in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "LARDER_LOG"] {
            command.env_remove(variable);
        }
        command
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.temporary.path())
            .env("LARDER_REPO", "repo")
            .env("LARDER_STATE", "state")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs larder; whatever comes of it.
    pub fn attempt(&self, line: &str) -> Outcome {
        Outcome::of(self.command(line), &[])
    }

    /// Runs larder, which must succeed; what it printed.
    pub fn run(&self, line: &str) -> String {
        let outcome = self.attempt(line);
        assert_eq!(outcome.code, Some(0), "larder {line}: {}", outcome.stderr);
        String::from_utf8(outcome.stdout).unwrap()
    }

    /// Runs larder with bytes at its stdin.
    pub fn run_with_input(&self, line: &str, input: &[u8]) -> Outcome {
        Outcome::of(self.command(line), input)
    }

    /// Runs larder with `--format json`; stdout must be one JSON document on one line.
    pub fn json(&self, line: &str) -> Value {
        let text = self.run(&format!("{line} --format json"));
        assert_eq!(text.lines().count(), 1, "larder {line}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Runs larder, which must fail with code 1 and nothing but an error.
    pub fn fails(&self, line: &str) -> Failure {
        self.attempt(line).failure(line)
    }

    /// Everything that may not change when a command fails.
    pub fn inventory(&self) -> String {
        let mut text = String::new();
        if !self.path("repo/repository.toml").exists() {
            return "no repository".to_string();
        }
        for line in ["list", "stats"] {
            let mut document = self.json(line);
            // Bytes of the catalog's file grow by what a failed attempt passed through it.
            for key in ["metadata_bytes", "index_bytes"] {
                document.as_object_mut().unwrap().remove(key);
            }
            document.as_object_mut().unwrap().remove("stored_bytes");
            writeln!(text, "{document}").unwrap();
        }
        for file in files_below(&self.path("repo/packs")) {
            let len = file.metadata().unwrap().len();
            writeln!(text, "{} {len}", file.display()).unwrap();
        }
        text
    }

    /// Attaches in the foreground and waits until it serves.
    pub fn attach(&self, line: &str) -> Served {
        self.try_attach(line).unwrap_or_else(|failure| panic!("attach {line}: {failure:?}"))
    }

    /// Attaches; the error where it ends before it serves.
    pub fn try_attach(&self, line: &str) -> Result<Served, Failure> {
        let log = self.path(format!("attach-{}.log", unique()));
        let mut child = self
            .command(&format!("attach {line} --format json"))
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        if ready.is_empty() {
            let code = child.wait().unwrap().code();
            let stderr = std::fs::read_to_string(&log).unwrap();
            return Err(Outcome { code, stdout: Vec::new(), stderr }.failure(line));
        }
        let ready: Value = serde_json::from_str(&ready).unwrap();
        assert_eq!(ready["event"], "ready");
        Ok(Served { process: Process { child }, ready, log })
    }

    /// Starts this host's daemon and waits until it serves what it served before.
    pub fn daemon(&self, line: &str) -> HostDaemon {
        self.daemon_of(Path::new(env!("CARGO_BIN_EXE_larder")), line, &[])
    }

    /// The same with a larder elsewhere, and variables of the environment.
    pub fn daemon_of(&self, program: &Path, line: &str, variables: &[(&str, &str)]) -> HostDaemon {
        let log = self.path(format!("daemon-{}.log", unique()));
        let line = format!("host run {line} --format json --log json");
        let mut command = self.command_of(program, &line);
        command.envs(variables.iter().copied());
        let mut child =
            command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        assert!(!ready.is_empty(), "{}", std::fs::read_to_string(&log).unwrap());
        let ready: Value = serde_json::from_str(&ready).unwrap();
        assert_eq!(ready["event"], "ready");
        HostDaemon { process: Process { child }, ready, log }
    }

    /// Runs a shell line in the folder; true where it succeeded, and all that it printed.
    pub fn try_shell(&self, line: &str) -> (bool, String) {
        let output = Command::new("sh")
            .args(["-c", &format!("exec 2>&1; {line}")])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a shell line that must succeed; all that it printed.
    pub fn shell(&self, line: &str) -> String {
        let (succeeded, text) = self.try_shell(line);
        assert!(succeeded, "{line}\n{text}");
        text
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        // What a test left in the background ends with it.
        let Ok(mirrors) = std::fs::read_dir(self.path("state/mirrors")) else { return };
        for mirror in mirrors.flatten() {
            if mirror.path().join("control").exists() {
                let name = mirror.file_name();
                let _ended = self.attempt(&format!("detach {}", name.to_string_lossy()));
            }
        }
    }
}

impl Outcome {
    fn of(mut command: Command, input: &[u8]) -> Outcome {
        command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            if let Some(mut stdin) = stdin {
                // A command that fails does not read to the end.
                scope.spawn(move || drop(stdin.write_all(input)));
            }
            let output = child.wait_with_output().unwrap();
            Outcome {
                code: output.status.code(),
                stdout: output.stdout,
                stderr: String::from_utf8(output.stderr).unwrap(),
            }
        })
    }

    /// This as an error of one line, and perhaps a hint.
    pub fn failure(self, line: &str) -> Failure {
        assert_eq!(self.code, Some(1), "larder {line}: {}", self.stderr);
        assert!(self.stdout.is_empty(), "larder {line}: {self:?}");
        // Progress lines are documents; what is left is the error.
        let lines: Vec<&str> = self.stderr.lines().filter(|line| !line.starts_with('{')).collect();
        let message = lines.first().and_then(|line| line.strip_prefix("larder: "));
        let message = message.unwrap_or_else(|| panic!("larder {line}: {}", self.stderr));
        let hint = match lines[1..] {
            [] => None,
            [hint] => Some(hint.strip_prefix("hint: ").unwrap_or_else(|| panic!("{hint}"))),
            _ => panic!("larder {line}: more than an error and a hint: {}", self.stderr),
        };
        Failure { message: message.to_string(), hint: hint.map(str::to_string) }
    }
}

/// A process that ends, at the latest, with this value.
pub struct Process {
    pub child: Child,
}

impl Process {
    pub fn start(command: &mut Command) -> Process {
        Process { child: command.spawn().unwrap() }
    }

    pub fn signal(&self, signal: Signal) {
        // Not waited for yet, so the number is still this process's.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// `kill -9`; returns when it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end; false where it has not come in that time.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        if self.child.try_wait().unwrap().is_some() {
            return true;
        }
        let handle = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let mut ended = [PollFd::new(&handle, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: limit.as_secs().try_into().unwrap(),
            tv_nsec: limit.subsec_nanos().into(),
        };
        rustix::event::poll(&mut ended, Some(&limit)).unwrap() == 1
    }

    /// Waits until a condition holds (true) or the process has ended (false).
    pub fn runs_until(&mut self, mut condition: impl FnMut() -> bool) -> bool {
        loop {
            if condition() {
                return true;
            }
            if self.ends_within(Duration::from_millis(1)) {
                return false;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// A mirror that larder serves in the foreground. Killed when dropped.
pub struct Served {
    pub process: Process,
    pub ready: Value,
    pub log: PathBuf,
}

impl Served {
    fn door(&self, door: &str) -> Option<&str> {
        let exports = self.ready["exports"].as_array().unwrap();
        exports.iter().find(|export| export["door"] == door)?["address"].as_str()
    }

    /// The NBD URI.
    pub fn uri(&self) -> &str {
        self.door("nbd").unwrap()
    }

    /// The mirror's file in the FUSE mount.
    pub fn file(&self) -> PathBuf {
        PathBuf::from(self.door("fuse").unwrap())
    }

    /// Ends it as Ctrl-C does. Nothing may have been warned of.
    pub fn stop(self) {
        self.process.signal(Signal::INT);
        self.stop_by_itself();
    }

    /// Waits for the end that it was asked for elsewhere. Nothing may have been warned of.
    pub fn stop_by_itself(mut self) {
        assert!(self.process.ends_within(LIMIT), "attach does not end");
        let log = std::fs::read_to_string(&self.log).unwrap();
        assert!(self.process.child.wait().unwrap().success(), "{log}");
        assert_eq!(log, "");
    }

    /// `kill -9`; returns when it is gone.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mount = self.door("fuse").and_then(|file| Path::new(file).ancestors().nth(2));
        let mount = mount.map(Path::to_path_buf);
        let _killed = self.process.child.kill();
        let _waited = self.process.child.wait();
        if let Some(mount) = mount {
            // A killed owner leaves its mount; where it is gone already there is nothing to do.
            let _unmounted =
                Command::new("umount").arg("-l").arg(mount).stderr(Stdio::null()).status();
        }
    }
}

/// This host's daemon. Killed when dropped.
pub struct HostDaemon {
    pub process: Process,
    pub ready: Value,
    log: PathBuf,
}

impl HostDaemon {
    /// Ends it as a service manager does.
    pub fn stop(mut self) {
        self.process.signal(Signal::TERM);
        assert!(self.process.ends_within(LIMIT), "the daemon does not end");
        assert!(self.process.child.wait().unwrap().success(), "{}", self.log());
    }

    /// `kill -9`; returns when it is gone.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

/// Every file below a folder, in order.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return files };
    for entry in entries {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files.sort();
    files
}

fn unique() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Numbers that look random and are the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The seed of a test: from `LARDER_TEST_SEED`, or the one given. Printed, so that a failure
    /// shows it.
    pub fn for_test(default: u64) -> Self {
        let seed = std::env::var("LARDER_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or(default);
        let _shown = writeln!(std::io::stderr(), "LARDER_TEST_SEED={seed}");
        Random::new(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
