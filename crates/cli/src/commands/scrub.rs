use std::path::PathBuf;

use env::{Clock, SystemClock, Timestamp};
use model::{ChunkDigest, Error, Kind, Result};
use repository::repository::Machine;
use repository::scrub::finding::{Fault, Finding, Outcome, Touched, kind_word};
use repository::{RebuildRequest, Rebuilt, Repository, ScrubRequest, Scrubbed, rebuild};
use serde_json::{Value, json};

use super::length::Length;
use crate::arguments::Format;
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{human_len, print_facts, print_json, print_line, print_table};

/// Read everything back, and say what is damaged and which versions that touches.
///
/// Without `--repair` nothing is changed. With it, what is damaged is restored from other copies of
/// the same bytes: in this repository, or in the one that `--from` names. Nothing is removed. With
/// `--rebuild`, a catalog that is lost or damaged is made anew from the packs and the exported names;
/// stop everything else that uses the repository first. Ends with code 1 where something is damaged
/// or missing still.
#[derive(Debug, clap::Args)]
pub struct Scrub {
    /// Read at most that much a second: a number, or one with KiB, MiB, GiB.
    #[arg(long, value_name = "BYTES_PER_SECOND")]
    rate: Option<Length>,
    /// Compute the content digest of every version again from the bytes of its blocks.
    #[arg(long)]
    deep: bool,
    /// Restore what is damaged or missing.
    #[arg(long)]
    repair: bool,
    /// Another repository that may have the same bytes.
    #[arg(long, value_name = "REPO", requires = "repair")]
    from: Option<PathBuf>,
    /// Make the catalog anew from the packs and the exported names.
    #[arg(long, conflicts_with_all = ["rate", "deep", "repair"])]
    rebuild: bool,
    /// Rebuild also where the catalog that is there is sound.
    #[arg(long, requires = "rebuild")]
    even_if_sound: bool,
}

impl Scrub {
    pub fn run(self, context: &Context) -> Result<()> {
        if self.rebuild {
            return self.rebuild(context);
        }
        let start = SystemClock.monotonic();
        let repository = context.repository()?;
        let from = match &self.from {
            Some(folder) => Some(Repository::open(&Machine::real(), folder)?),
            None => None,
        };
        let progress = context.progress("scrub");
        let request = ScrubRequest {
            rate_bytes_per_second: self.rate.map(|rate| rate.0),
            deep: self.deep,
            progress: &progress,
            cancel: cancel_flag()?,
        };
        let scrubbed = match self.repair {
            true => repository.repair(&request, from.as_ref())?,
            false => repository.scrub(&request)?,
        };
        drop(progress);
        let seconds = (SystemClock.monotonic() - start).as_secs_f64();
        match context.format {
            Format::Json => print_json(&document(&scrubbed, seconds))?,
            Format::Text => print_scrubbed(&scrubbed, seconds)?,
        }
        verdict(&scrubbed, self.repair, &context.repo.path.display().to_string())
    }

    fn rebuild(self, context: &Context) -> Result<()> {
        let start = SystemClock.monotonic();
        let progress = context.progress("rebuild");
        let request = RebuildRequest {
            even_if_sound: self.even_if_sound,
            progress: &progress,
            cancel: cancel_flag()?,
        };
        let rebuilt = rebuild(&Machine::real(), context.repository_folder()?, &request)?;
        drop(progress);
        let seconds = (SystemClock.monotonic() - start).as_secs_f64();
        match context.format {
            Format::Json => print_json(&rebuilt_document(&rebuilt, seconds)),
            Format::Text => print_rebuilt(&rebuilt, seconds),
        }
    }
}

/// The error where something is damaged or missing still.
fn verdict(scrubbed: &Scrubbed, is_repaired: bool, subject: &str) -> Result<()> {
    let restored = scrubbed.findings.iter().filter(|f| matches!(f.outcome, Outcome::Restored(_)));
    let left = scrubbed.corrupt_count + scrubbed.missing_count - restored.count() as u64;
    if left == 0 {
        return Ok(());
    }
    let error = Error::new(Kind::Corrupt, "scrub", subject);
    Err(match is_repaired {
        true => error
            .because(format!("{left} findings could not be repaired"))
            .hint("`--from REPO` names another repository that may have the bytes"),
        false => error
            .because(format!(
                "{} damaged, {} missing",
                scrubbed.corrupt_count, scrubbed.missing_count
            ))
            .hint("`larder scrub --repair` restores what has another copy"),
    })
}

fn document(scrubbed: &Scrubbed, seconds: f64) -> Value {
    let listed = scrubbed.findings.len() as u64;
    json!({
        "packs": scrubbed.pack_count,
        "chunks": scrubbed.chunk_count,
        "metadata_entries": scrubbed.metadata_count,
        "read_bytes": scrubbed.read_len,
        "roots": scrubbed.root_count,
        "corrupt": scrubbed.corrupt_count,
        "missing": scrubbed.missing_count,
        "findings": scrubbed.findings.iter().map(finding_document).collect::<Vec<_>>(),
        "findings_left_out": scrubbed.corrupt_count + scrubbed.missing_count - listed,
        "unnamed_packs": scrubbed.unnamed_packs,
        "abandoned_packs": scrubbed.abandoned_packs,
        "seconds": seconds,
    })
}

fn finding_document(finding: &Finding) -> Value {
    let (outcome, source) = outcome_words(&finding.outcome);
    json!({
        "fault": finding.fault.word(),
        "kind": finding.kind.map(|kind| kind_word(Some(kind))),
        "digest": finding.digest.map(ChunkDigest),
        "pack": finding.pack,
        "reason": finding.reason,
        "versions": finding.touched.iter().map(touched_document).collect::<Vec<_>>(),
        "more_versions": finding.touches_more,
        "outcome": outcome,
        "source": source,
    })
}

fn touched_document(touched: &Touched) -> Value {
    json!({
        "image": touched.version.image,
        "version": touched.version.version,
        "holder": touched.holder,
        "ranges": touched.ranges.iter().map(|r| [r.start, r.end]).collect::<Vec<_>>(),
        "more_ranges": touched.has_more_ranges,
    })
}

fn outcome_words(outcome: &Outcome) -> (&'static str, Option<&str>) {
    match outcome {
        Outcome::Told => ("found", None),
        Outcome::Restored(source) => ("restored", Some(source)),
        Outcome::Lost => ("lost", None),
    }
}

fn print_scrubbed(scrubbed: &Scrubbed, seconds: f64) -> Result<()> {
    if !scrubbed.findings.is_empty() {
        let rows = scrubbed.findings.iter().map(finding_row).collect();
        print_table(&["fault", "what", "versions", "why", "outcome"], rows)?;
    }
    let mut facts = vec![
        ("packs", scrubbed.pack_count.to_string()),
        ("chunks", scrubbed.chunk_count.to_string()),
        ("other entries", scrubbed.metadata_count.to_string()),
        ("versions and holds", scrubbed.root_count.to_string()),
        ("damaged", scrubbed.corrupt_count.to_string()),
        ("missing", scrubbed.missing_count.to_string()),
        ("read", format!("{} in {seconds:.2} s", human_len(scrubbed.read_len))),
    ];
    for (what, packs) in
        [("unnamed packs", &scrubbed.unnamed_packs), ("abandoned packs", &scrubbed.abandoned_packs)]
    {
        if !packs.is_empty() {
            facts.push((what, format!("{}, for `larder collect`", packs.len())));
        }
    }
    print_facts(&facts)
}

fn finding_row(finding: &Finding) -> Vec<String> {
    let mut versions: Vec<String> = finding.touched.iter().map(touched_text).collect();
    if finding.touches_more {
        versions.push("and more".to_string());
    }
    let outcome = match outcome_words(&finding.outcome) {
        (word, Some(source)) => format!("{word}: {source}"),
        (word, None) => word.to_string(),
    };
    let none = match finding.fault {
        Fault::DamagedPack | Fault::WrongRow => "",
        _ => "none",
    };
    let versions = match versions.is_empty() {
        true => none.to_string(),
        false => versions.join(", "),
    };
    vec![
        finding.fault.word().to_string(),
        finding.to_string(),
        versions,
        finding.reason.clone(),
        outcome,
    ]
}

fn touched_text(touched: &Touched) -> String {
    let mut text = touched.version.to_string();
    if let Some(holder) = &touched.holder {
        text.push_str(&format!(" (held by {holder})"));
    }
    if let Some(first) = touched.ranges.first() {
        text.push_str(&format!(" from {} to {}", first.start, first.end));
        if touched.ranges.len() > 1 || touched.has_more_ranges {
            text.push_str(" and elsewhere");
        }
    }
    text
}

fn rebuilt_document(rebuilt: &Rebuilt, seconds: f64) -> Value {
    let pairs = |pairs: &[(String, String)], name: &str| {
        let one = |(what, why): &(String, String)| json!({ name: what, "reason": why });
        pairs.iter().map(one).collect::<Vec<_>>()
    };
    json!({
        "packs": rebuilt.pack_count,
        "entries": rebuilt.entry_count,
        "exported": rebuilt.exported_micros.map(|micros| Timestamp(micros).to_rfc3339()),
        "export_refused": rebuilt.export_refused,
        "versions_from_export": rebuilt.exported_count,
        "versions_from_records":
            rebuilt.from_records.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "left_out": pairs(&rebuilt.left_out, "version"),
        "unreadable_packs": pairs(&rebuilt.unreadable_packs, "pack"),
        "kept": rebuilt.kept,
        "unknown": unknown(rebuilt),
        "seconds": seconds,
    })
}

fn print_rebuilt(rebuilt: &Rebuilt, seconds: f64) -> Result<()> {
    let exported = rebuilt
        .exported_micros
        .map_or("never".to_string(), |micros| Timestamp(micros).to_rfc3339());
    let mut facts = vec![
        ("packs", rebuilt.pack_count.to_string()),
        ("entries", rebuilt.entry_count.to_string()),
        ("names exported", exported),
        ("versions from there", rebuilt.exported_count.to_string()),
        ("younger versions", rebuilt.from_records.len().to_string()),
        ("left out", rebuilt.left_out.len().to_string()),
    ];
    if let Some(kept) = &rebuilt.kept {
        facts.push(("old catalog", kept.display().to_string()));
    }
    facts.push(("time", format!("{seconds:.2} s")));
    print_facts(&facts)?;
    for version in &rebuilt.from_records {
        print_line(&format!("made from its record: {version}"))?;
    }
    for (version, reason) in &rebuilt.left_out {
        print_line(&format!("left out: {version}: {reason}"))?;
    }
    for (pack, reason) in &rebuilt.unreadable_packs {
        print_line(&format!("not readable: pack {pack}: {reason}"))?;
    }
    unknown(rebuilt).iter().try_for_each(|line| print_line(&format!("not known: {line}")))?;
    print_line("`larder scrub` reads back whether the bytes are sound")
}

/// What a rebuild cannot know, in words.
fn unknown(rebuilt: &Rebuilt) -> Vec<String> {
    let mut lines = Vec::new();
    match (rebuilt.exported_micros, &rebuilt.export_refused) {
        (Some(micros), _) => {
            let when = Timestamp(micros).to_rfc3339();
            lines.push(format!(
                "clones, tags, labels, removals, holds and attaches since the export of {when}"
            ));
        }
        (None, reason) => {
            lines.push("clones, tags, labels, removals, holds and attaches".to_string());
            if let Some(reason) = reason {
                lines.push(format!("what the export says, which cannot be used: {reason}"));
            }
        }
    }
    if !rebuilt.from_records.is_empty() {
        lines.push(
            "whether the younger versions were published under these numbers, or at all"
                .to_string(),
        );
    }
    lines.push("boot working sets: the next boots record them again".into());
    lines.push("who was writing: packs that no version refers to are for `larder collect`".into());
    lines
}
