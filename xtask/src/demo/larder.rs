//! Larder as a user runs it: by its command line, reading its JSON.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use model::{Error, Kind, Result};
use serde_json::Value;

use crate::process::{self, Registered};
use crate::workspace::system_program;

/// How long a mirror may take until it serves, or until it has ended.
const DOOR_MAX: Duration = Duration::from_secs(60);

/// A binary with a repository and a state folder of its own.
pub struct Larder {
    binary: PathBuf,
    repository: PathBuf,
    state: PathBuf,
    /// The link that the repository's packs are behind.
    link: Option<String>,
}

/// A JSON answer, whose missing keys are errors.
#[derive(Clone, Debug)]
pub struct Answer(Value);

impl Answer {
    /// The number at a key, rounded.
    pub fn number(&self, key: &'static str) -> Result<u64> {
        let value = &self.0[key];
        // Milliseconds may come with a fraction.
        let rounded = value.as_f64().filter(|number| *number >= 0.0).map(|number| number.round());
        value.as_u64().or(rounded.map(|number| number as u64)).ok_or_else(|| self.without(key))
    }

    /// The number at a key, with its fraction.
    pub fn fraction(&self, key: &'static str) -> Result<f64> {
        self.0[key].as_f64().ok_or_else(|| self.without(key))
    }

    /// What is at a key.
    pub fn value(&self, key: &str) -> &Value {
        &self.0[key]
    }

    /// The text at a key.
    pub fn text(&self, key: &'static str) -> Result<&str> {
        self.0[key].as_str().ok_or_else(|| self.without(key))
    }

    /// The duration at the key `seconds`.
    pub fn seconds(&self) -> Result<Duration> {
        self.0["seconds"]
            .as_f64()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| self.without("seconds"))
    }

    fn without(&self, key: &str) -> Error {
        Error::new(Kind::Invalid, "read", format!("`{key}` in larder's answer"))
            .because(format!("the answer is {}", self.0))
    }
}

impl Larder {
    /// A larder that keeps everything under `folder`.
    pub fn new(binary: PathBuf, folder: &Path) -> Larder {
        let [repository, state] = ["repository", "state"].map(|name| folder.join(name));
        Larder { binary, repository, state, link: None }
    }

    /// The same, its packs behind a link: `rate=125MB,delay=1ms`.
    #[must_use]
    pub fn over_link(&self, link: &str) -> Larder {
        let (binary, repository) = (self.binary.clone(), self.repository.clone());
        Larder { binary, repository, state: self.state.clone(), link: Some(link.to_owned()) }
    }

    fn prepare(&self, mut command: Command, arguments: &[&str]) -> Command {
        command.args(arguments);
        command.env("LARDER_REPO", &self.repository).env("LARDER_STATE", &self.state);
        if let Some(link) = &self.link {
            command.env("LARDER_LINK", link);
        }
        command
    }

    /// A command that answers with JSON, for whoever wants to run it in a way of their own.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.prepare(Command::new(&self.binary), &["--format", "json"]);
        command.args(arguments);
        command
    }

    /// Runs a command and reads its JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Answer> {
        let mut command = self.command(arguments);
        let output = process::output(&mut command, "")?;
        serde_json::from_str(&output).map(Answer).map_err(|source| {
            Error::new(Kind::Invalid, "read", process::shown(&command))
                .because(format!("its output is no JSON: {output:?}"))
                .caused_by(source)
        })
    }

    /// What `larder mirrors` says of one mirror.
    pub fn mirror(&self, name: &str) -> Result<Answer> {
        let answer = self.json(&["mirrors"])?;
        let found = answer.0["mirrors"]
            .as_array()
            .and_then(|mirrors| mirrors.iter().find(|mirror| mirror["name"] == name));
        found.cloned().map(Answer).ok_or_else(|| answer.without("mirrors"))
    }

    /// Serves a version over NBD at a socket, and returns once it does. If we die, it is told to end.
    pub fn attach(
        &self,
        reference: &str,
        mirror: &'static str,
        socket: &Path,
    ) -> Result<Attached<'_>> {
        self.attach_with(reference, mirror, socket, &[])
    }

    /// The same with more options.
    pub fn attach_with(
        &self,
        reference: &str,
        mirror: &'static str,
        socket: &Path,
        options: &[&str],
    ) -> Result<Attached<'_>> {
        self.attach_at("--nbd", reference, mirror, socket, options)
    }

    /// The same at the door that an option of `larder attach` opens.
    pub fn attach_at(
        &self,
        door: &str,
        reference: &str,
        mirror: &'static str,
        socket: &Path,
        options: &[&str],
    ) -> Result<Attached<'_>> {
        let mut command = system_program("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(&self.binary);
        let mut command = self.prepare(command, &["attach", reference, "--mirror", mirror, door]);
        command.arg(socket).args(options).stdin(Stdio::null()).stdout(Stdio::piped());
        let (mut child, registered) = process::start(&mut command)?;
        let stdout = child.stdout.take();
        let attached = Attached { larder: self, mirror, child, _registered: registered };
        let (sender, receiver) = mpsc::channel();
        // Lives until the mirror closes its output.
        let _reader = thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
                let _gone = line.map(|line| sender.send(line));
            }
        });
        loop {
            match receiver.recv_timeout(DOOR_MAX) {
                Ok(line) if line.contains("ready") => return Ok(attached),
                Ok(_) => {}
                Err(_) => {
                    process::go_on()?;
                    return Err(Error::new(Kind::Unavailable, "run", process::shown(&command))
                        .because("it ended, or was silent for a minute, before it was ready"));
                }
            }
        }
    }
}

/// A mirror that is being served. Dropped, it is told to end.
pub struct Attached<'a> {
    larder: &'a Larder,
    mirror: &'static str,
    child: Child,
    _registered: Registered,
}

impl Attached<'_> {
    /// Ends the mirror as a user does, and waits for that.
    pub fn detach(mut self) -> Result<()> {
        self.larder.json(&["detach", self.mirror])?;
        match process::wait(&mut self.child, DOOR_MAX)? {
            Some(_) => Ok(()),
            None => Err(Error::new(Kind::Unavailable, "detach", self.mirror)
                .because("the process that serves it goes on")),
        }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}
