//! What fio does, at a socket or on a file.

use std::path::Path;

use model::{Error, Kind, Result};

use crate::bench::inputs;
use crate::process;
use crate::workspace::system_program;

/// Where fio works.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// At an NBD server's socket.
    Nbd(&'a Path),
    /// On a file; the other is the one whose pages the kernel keeps for it.
    File(&'a Path, &'a Path),
    /// On a file past its page cache, as a hypervisor does with `cache=none`.
    Direct(&'a Path),
}

/// One kind of load.
pub struct Job {
    /// What it is called.
    pub name: &'static str,
    how: &'static str,
    bytes: &'static str,
    depth: u32,
    /// True where it begins with nothing of the file in the page cache.
    pub is_dropped: bool,
}

impl Job {
    /// A load of a name: how it goes, bytes of a request, requests under way.
    pub const fn new(
        name: &'static str,
        how: &'static str,
        bytes: &'static str,
        depth: u32,
    ) -> Job {
        Job { name, how, bytes, depth, is_dropped: false }
    }

    /// The same after the page cache of a file was dropped.
    pub const fn dropped(self) -> Job {
        Job { is_dropped: true, ..self }
    }

    /// Does it for some seconds.
    pub fn run(&self, target: &Target<'_>, seconds: f64) -> Result<Vec<(&'static str, f64)>> {
        let mut command = system_program("fio");
        command.args(["--name=bench", "--output-format=json", "--randseed=1", "--norandommap"]);
        command.arg(format!("--rw={}", self.how)).arg(format!("--bs={}", self.bytes));
        match target {
            Target::Nbd(socket) => {
                command.arg("--ioengine=nbd").arg(format!("--uri={}", inputs::nbd_uri(socket)));
                command.arg(format!("--iodepth={}", self.depth));
            }
            Target::File(file, kept_by) => {
                command.arg("--ioengine=psync").arg(format!("--filename={}", file.display()));
                command.args(["--allow_file_create=0", "--invalidate=0", "--fallocate=none"]);
                // A file that the kernel reads by itself for FUSE gets no hints of how it will be read.
                command.args(["--thread", "--group_reporting", "--fadvise_hint=0"]);
                command.arg(format!("--numjobs={}", self.depth));
                if self.is_dropped {
                    drop_pages(kept_by)?;
                }
            }
            Target::Direct(file) => {
                command.arg("--ioengine=libaio").arg(format!("--filename={}", file.display()));
                command.args(["--allow_file_create=0", "--fallocate=none", "--direct=1"]);
                command.arg(format!("--iodepth={}", self.depth));
            }
        }
        // What is read once more is in the page cache again.
        if !(self.is_dropped && self.how == "read") {
            command.arg("--time_based").arg(format!("--runtime={}ms", (seconds * 1000.0) as u64));
        }
        let text = process::output(&mut command, "")?;
        columns(&text, if self.how.ends_with("write") { "write" } else { "read" })
    }
}

/// Drops a file's pages; they are written before.
fn drop_pages(file: &Path) -> Result<()> {
    inputs::settle();
    let mut command = system_program("dd");
    command.arg(format!("if={}", file.display()));
    process::output(command.args(["iflag=nocache", "count=0", "status=none"]), "").map(drop)
}

fn columns(text: &str, direction: &str) -> Result<Vec<(&'static str, f64)>> {
    // Its warnings may stand before its answer.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let failed = || Error::new(Kind::Invalid, "read", "fio's answer");
    let answer: serde_json::Value =
        serde_json::from_str(json).map_err(|source| failed().caused_by(source))?;
    let did = &answer["jobs"][0][direction];
    let number = |value: &serde_json::Value| {
        value.as_f64().ok_or_else(|| failed().because("a number is missing"))
    };
    Ok(vec![
        ("mib_per_second", number(&did["bw_bytes"])? / f64::from(1 << 20)),
        ("requests_per_second", number(&did["iops"])?),
        ("mean_us", number(&did["lat_ns"]["mean"])? / 1000.0),
    ])
}
