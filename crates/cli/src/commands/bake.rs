use std::time::{Duration, Instant};

use bakery::{BakeRequest, Qemu, Ready};
use guest::Accelerator;
use model::{ImageName, Reference, Result, TagName};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::guests::{HostDisks, parse_accelerator};
use crate::commands::length::Length;
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{human_len, print_facts, print_json};

/// Boot a version once, and keep the booted machine, to be resumed in milliseconds.
///
/// The guest gets one CPU, little memory, no network card and empty slots for what is added later.
/// When it is ready it is stopped: its memory and device state become a version of IMAGE-machine, its
/// disk one of IMAGE-machine/disk, both at once. `larder resume IMAGE-machine` brings copies to life.
#[derive(Debug, clap::Args)]
pub struct Bake {
    /// The version to boot.
    reference: Reference,
    /// The image that gets the machine; without this, the version's, and `-machine`.
    #[arg(long, value_name = "IMAGE")]
    to: Option<ImageName>,
    /// A tag for the machine.
    #[arg(long)]
    tag: Option<TagName>,
    /// The guest's memory; more can be added when it is resumed.
    #[arg(long, default_value = "256MiB")]
    memory: Length,
    /// How it is known that the guest is ready: `login`, its console asks who logs in; `port`, it
    /// writes a line to its port `larder.agent.0`; `helper`, Larder's helper in it answers; `agent`, QEMU's
    /// guest agent in it does.
    #[arg(long, default_value = "login", value_parser = parse_ready)]
    ready: Ready,
    /// How many seconds the guest may take until it is ready.
    #[arg(long, default_value = "300", value_name = "SECONDS")]
    timeout: u64,
    /// kvm or tcg; found out when not given. A machine can be resumed by the same only.
    #[arg(long, value_name = "ACCELERATOR", value_parser = parse_accelerator)]
    accel: Option<Accelerator>,
    /// Store memory that the guest has freed as it is, instead of asking the guest for it.
    #[arg(long)]
    keep_free_memory: bool,
    /// Put no helper into the guest. Its copies then have no identity of their own and cannot be grown.
    #[arg(long)]
    no_helper: bool,
}

impl Bake {
    pub fn run(self, context: &Context) -> Result<()> {
        let began = Instant::now();
        let repository = context.repository()?;
        let disks = HostDisks::new(context, repository.clone(), true)?;
        let progress = context.progress(&format!("bake {}", self.reference));
        let request = BakeRequest {
            reference: self.reference,
            image: self.to,
            tag: self.tag,
            memory_len: self.memory.0,
            ready: self.ready,
            timeout: Duration::from_secs(self.timeout),
            accelerator: self.accel,
            keep_free_memory: self.keep_free_memory,
            installs_helper: !self.no_helper,
            progress: &progress,
            cancel: cancel_flag()?,
        };
        let monitor = Qemu::new(disks.state().path());
        let baked = bakery::bake(&repository, disks.state(), &monitor, &disks, &request)?;
        let memory_len = request.memory_len;
        drop(progress);
        let published = &baked.published;
        let seconds = began.elapsed().as_secs_f64();
        let (machine, disk) = (&published.machine, &published.disk);
        if context.format == Format::Json {
            return print_json(&json!({
                "machine": machine.id.to_string(),
                "image": machine.id.image,
                "version": machine.id.version,
                "disk": disk.id.to_string(),
                "digest": machine.facts.content.to_string(),
                "state_bytes": baked.state_len,
                "memory_bytes": memory_len,
                "memory_data_bytes": machine.facts.data_len,
                "memory_new_bytes": published.new_len,
                "memory_stored_bytes": published.stored_len,
                "has_helper": baked.has_helper,
                "given_back_bytes": baked.given_back_len,
                "disk_dirty_bytes": published.disk_dirty_len,
                "disk_stored_bytes": published.disk_stored_len,
                "boot_seconds": baked.boot.as_secs_f64(),
                "seconds": seconds,
            }));
        }
        print_facts(&[
            ("machine", machine.id.to_string()),
            ("disk", disk.id.to_string()),
            ("booted in", format!("{:.1} s", baked.boot.as_secs_f64())),
            ("memory", human_len(memory_len)),
            ("of that data", human_len(machine.facts.data_len)),
            ("new", human_len(published.new_len)),
            ("stored", human_len(published.stored_len)),
            ("stored of the disk", human_len(published.disk_stored_len)),
            ("time", format!("{seconds:.1} s")),
        ])
    }
}

fn parse_ready(word: &str) -> Result<Ready, String> {
    match word {
        "login" => Ok(Ready::Login),
        "port" => Ok(Ready::Port),
        "helper" => Ok(Ready::Helper),
        "agent" => Ok(Ready::Agent),
        _ => Err("it is none of `login`, `port`, `helper`, `agent`".to_string()),
    }
}
