use model::{ChunkDigest, Result};
use repository::collect::explain::Explained;
use repository::collect::{CollectEvents, CollectStep};
use repository::{CollectLimits, CollectPlan, CollectRequest, Collected};
use serde_json::{Value, json};

use crate::arguments::Format;
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{human_len, print_facts, print_json, print_line, print_table};

/// Give back the bytes that nothing refers to any more.
///
/// Without `--apply` it says what it would do and changes nothing. Packs that are mostly dead are
/// copied without what is dead; chunks that are partly dead, and chunks whose blocks lie scattered, are
/// cut again, which changes no version's content. Imports, commits and mirrors go on meanwhile.
/// Imports, commits and exports that began before are waited for.
#[derive(Debug, clap::Args)]
pub struct Collect {
    /// Do it.
    #[arg(long)]
    apply: bool,
    /// Wait for nobody; what others hold up is left to the next collect.
    #[arg(long, requires = "apply")]
    no_wait: bool,
    /// Say why the chunk, map or manifest with this digest is there.
    #[arg(long, value_name = "DIGEST", conflicts_with = "apply")]
    explain: Option<ChunkDigest>,
}

impl Collect {
    pub fn run(self, context: &Context) -> Result<()> {
        let cancel = cancel_flag()?;
        let repository = context.repository()?;
        let limits = CollectLimits::default();
        if let Some(digest) = self.explain {
            return print_explained(
                context.format,
                &digest,
                &repository.explain(&digest.0, cancel)?,
            );
        }
        if !self.apply {
            return print_plan(context.format, &repository.plan_collect(&limits, cancel)?);
        }
        let events = Steps { format: context.format, is_quiet: context.is_quiet() };
        let request = CollectRequest { limits, waits: !self.no_wait, events: &events, cancel };
        print_collected(context.format, &repository.collect(&request)?)
    }
}

/// Says on stderr what a collect has come to.
struct Steps {
    format: Format,
    is_quiet: bool,
}

impl CollectEvents for Steps {
    fn step(&self, step: CollectStep) {
        let (name, text) = match step {
            CollectStep::WaitingForAnother => (
                "waiting",
                "waiting for another collect, or for a minute after one that died".to_string(),
            ),
            CollectStep::Looking => ("looking", "looking at what is referred to".to_string()),
            CollectStep::Cutting { chunks } => {
                ("cutting", format!("cutting {chunks} chunks again"))
            }
            CollectStep::Copying { packs: 0 } => return,
            CollectStep::Copying { packs } => {
                ("copying", format!("copying what is live of {packs} packs"))
            }
            CollectStep::Condemned => ("condemned", "marked what may go".to_string()),
            CollectStep::Waiting { leases } => (
                "waiting",
                format!(
                    "waiting for {leases} imports, commits or exports; Ctrl-C leaves the rest to the next collect"
                ),
            ),
            CollectStep::Removing { packs } => ("removing", format!("removing {packs} packs")),
        };
        match (self.is_quiet, self.format) {
            (true, _) => {}
            (false, Format::Text) => anstream::eprintln!("{text}"),
            (false, Format::Json) => {
                anstream::eprintln!("{}", json!({ "event": name, "text": text }))
            }
        }
    }
}

fn print_plan(format: Format, plan: &CollectPlan) -> Result<()> {
    if format == Format::Json {
        return print_json(&plan_as_json(plan));
    }
    print_table(&["what", "count", "bytes", "of them live"], plan_rows(plan))?;
    match plan.is_empty() {
        true => print_line("nothing to collect"),
        false => print_line(&format!(
            "{} would be given back by `larder collect --apply`",
            human_len(plan.removable_len)
        )),
    }
}

fn plan_rows(plan: &CollectPlan) -> Vec<Vec<String>> {
    let row = |what: &str, count: u64, len: u64, live: u64| {
        vec![what.to_string(), count.to_string(), human_len(len), human_len(live)]
    };
    let recut = plan.recut.partly_dead_count + plan.recut.scattered_count;
    vec![
        row("packs", plan.pack_count, plan.pack_len, plan.live_len),
        row("dead packs", plan.dead.count, plan.dead.len, 0),
        row("packs to copy", plan.repack.count, plan.repack.len, plan.repack.live_len),
        row("chunks to cut again", recut, plan.recut.len, plan.recut.live_len),
        row("files without a name", plan.orphans.count, plan.orphans.len, 0),
    ]
}

fn plan_as_json(plan: &CollectPlan) -> Value {
    let packs = |packs: &repository::collect::plan::PlannedPacks| json!({ "packs": packs.count, "bytes": packs.len, "live_bytes": packs.live_len });
    json!({
        "removable_bytes": plan.removable_len,
        "removed_bytes": 0,
        "packs": plan.pack_count,
        "pack_bytes": plan.pack_len,
        "live_bytes": plan.live_len,
        "young_packs": plan.young_count,
        "dead": packs(&plan.dead),
        "repack": packs(&plan.repack),
        "recut": {
            "partly_dead_chunks": plan.recut.partly_dead_count,
            "scattered_chunks": plan.recut.scattered_count,
            "bytes": plan.recut.len,
            "live_bytes": plan.recut.live_len,
            "left_chunks": plan.recut.left_count,
        },
        "orphans": { "files": plan.orphans.count, "bytes": plan.orphans.len },
    })
}

fn print_collected(format: Format, collected: &Collected) -> Result<()> {
    for (pack, error) in &collected.left {
        tracing::warn!(pack, error = error.chain(), "left as it is; `larder scrub` says more");
    }
    if format == Format::Json {
        let plan = &collected.plan;
        return print_json(&json!({
            "removable_bytes": plan.removable_len,
            "removed_bytes": collected.removed_len,
            "removed_packs": collected.removed_packs,
            "written_bytes": collected.written_len,
            "layouts": collected.layouts,
            "waiting_packs": collected.waiting_packs,
            "damaged_packs": collected.left.len(),
            "packs": plan.pack_count,
            "repacked_packs": plan.repack.count,
            "recut_chunks": plan.recut.partly_dead_count + plan.recut.scattered_count,
            "left_chunks": plan.recut.left_count,
        }));
    }
    print_facts(&[
        ("removed", human_len(collected.removed_len)),
        ("packs removed", collected.removed_packs.to_string()),
        ("copied", human_len(collected.written_len)),
        ("packs that wait for others", collected.waiting_packs.to_string()),
    ])
}

fn print_explained(format: Format, digest: &ChunkDigest, explained: &Explained) -> Result<()> {
    if format == Format::Json {
        let uses: Vec<Value> = explained
            .uses
            .iter()
            .map(|used| {
                let range =
                    |(offset, len): &(u64, u64)| json!({ "offset": offset, "length_bytes": len });
                json!({
                    "version": used.version.to_string(),
                    "holder": used.holder,
                    "ranges": used.ranges.iter().map(range).collect::<Vec<_>>(),
                })
            })
            .collect();
        let entry = explained.entry.as_ref().map(|entry| {
            json!({
                "kind": entry.kind,
                "pack": entry.pack,
                "stored_bytes": entry.stored_len,
                "plain_bytes": entry.plain_len,
                "condemned": entry.is_condemned,
                "young": entry.is_young,
            })
        });
        return print_json(&json!({
            "digest": digest,
            "entry": entry,
            "uses": uses,
            "use_count": explained.use_count,
            "verdict": explained.verdict(),
        }));
    }
    let mut facts = vec![("digest", digest.to_string())];
    if let Some(entry) = &explained.entry {
        let lens =
            format!("{}, {} unpacked", human_len(entry.stored_len), human_len(entry.plain_len));
        facts.push(("what", format!("{}, {lens}", entry.kind)));
        let mark = if entry.is_condemned { ", marked for removal" } else { "" };
        facts.push(("pack", format!("{}{mark}", entry.pack)));
    }
    for used in &explained.uses {
        let holder =
            used.holder.as_ref().map_or_else(String::new, |name| format!(", held by {name}"));
        let ranges: Vec<String> =
            used.ranges.iter().map(|(offset, len)| format!("{offset}+{len}")).collect();
        let at =
            if ranges.is_empty() { String::new() } else { format!(" at {}", ranges.join(" ")) };
        facts.push(("used by", format!("{}{holder}{at}", used.version)));
    }
    let listed = explained.uses.len() as u64;
    if explained.use_count > listed {
        facts.push(("and", format!("{} more", explained.use_count - listed)));
    }
    facts.push(("so", explained.verdict().to_string()));
    print_facts(&facts)
}
