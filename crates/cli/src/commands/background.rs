//! Commands that serve in the background: the same command once more, in a session of its own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use model::{Error, Kind, Result};

use crate::output::print_line;

/// Set in the environment of a larder that serves in the background.
const IN_BACKGROUND: &str = "LARDER_IN_BACKGROUND";

/// True where this was started in the background.
pub fn is_here() -> bool {
    std::env::var_os(IN_BACKGROUND).is_some()
}

/// Leaves the terminal, whose end would end this, where this was started in the background.
pub fn leave_terminal() {
    if is_here() {
        // It fails where that is done already.
        let _ = rustix::process::setsid();
    }
}

/// Starts the same command without `--detach` in a session of its own, and passes its line on.
pub fn start(operation: &'static str) -> Result<()> {
    let failed = |error| Error::io("start", "larder in the background", error);
    let program = std::env::current_exe().map_err(failed)?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env(IN_BACKGROUND, "1")
        .spawn()
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
    }
    if !line.is_empty() {
        return print_line(line.trim_end());
    }
    // It ended without a line: what it said on stderr is what there is to say.
    let output = child.wait_with_output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stderr);
    // Warnings may stand before it.
    let mut lines = text.lines().skip_while(|line| !line.starts_with("larder: "));
    let reason =
        lines.next().unwrap_or("it ended early").trim_start_matches("larder: ").to_string();
    let error = Error::new(Kind::Unavailable, operation, "in the background").because(reason);
    Err(match lines.next().and_then(|line| line.strip_prefix("hint: ")) {
        Some(hint) => error.hint(hint),
        None => error,
    })
}
