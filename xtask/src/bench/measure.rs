//! A program's wall time, CPU time and peak memory.

use std::process::Command;
use std::time::{Duration, Instant};

use model::{Error, Kind, Result};

use crate::process;

/// What a program used, with the programs that it started and waited for.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// From start to end.
    pub wall: Duration,
    /// On processors, in its own code.
    pub user: Duration,
    /// On processors, in the kernel for it.
    pub system: Duration,
    /// The most memory that it (or one that it started) had at one time, in bytes.
    pub peak_bytes: u64,
}

impl Measured {
    /// As columns of a row.
    pub fn columns(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("wall_seconds", self.wall.as_secs_f64()),
            ("cpu_seconds", (self.user + self.system).as_secs_f64()),
            ("peak_mib", self.peak_bytes as f64 / (1024.0 * 1024.0)),
        ]
    }
}

/// Runs a program to its end and measures it.
///
/// # Errors
/// `Invalid`: it failed.
pub fn measure(command: &mut Command) -> Result<Measured> {
    let shown = process::shown(command);
    let began = Instant::now();
    let (child, _registered) = process::start(command)?;
    let (status, usage) =
        wait(child.id()).map_err(|source| Error::io("measure", shown.clone(), source))?;
    let wall = began.elapsed();
    process::go_on()?;
    if !(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0) {
        return Err(Error::new(Kind::Invalid, "measure", shown).because("it failed"));
    }
    Ok(Measured {
        wall,
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        // The kernel counts in KiB.
        peak_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    })
}

/// Waits for a child by its id, which tells what it used; nobody else may wait for it.
fn wait(pid: u32) -> std::io::Result<(i32, libc::rusage)> {
    let pid = i32::try_from(pid).map_err(std::io::Error::other)?;
    let mut status = 0;
    loop {
        // SAFETY: `rusage` is numbers only, for which all zeros is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to locals that live through the call, of the types asked for.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if waited == pid {
            return Ok((status, usage));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_measured_by_what_it_used() {
        // A megabyte of zeros through a shell's child.
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 1000000 /dev/zero | cat >/dev/null"]);
        let measured = measure(&mut command).unwrap();
        assert!(measured.wall > Duration::ZERO);
        assert!(measured.peak_bytes > 100_000, "{measured:?}");
        assert!(measure(Command::new("sh").args(["-c", "exit 3"])).is_err());
    }
}
