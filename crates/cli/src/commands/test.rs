use std::path::{Path, PathBuf};

use builder::gate::{CONSOLE, Gate, Outcome, Plan, Report};
use model::{Error, Kind, Reference, Result};
use serde_json::{Value, json};

use crate::arguments::Format;
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{print_json, print_line};

/// Boot a version from a throwaway mirror and run its tests.
///
/// The tests are those of the recipe that it was built from, or of `--recipe`; a version without any
/// is tested for its login prompt. Guests start by each firmware that the disk is for. What was found
/// and what the consoles said is kept with the version; its description and its signatures stay
/// as the build left them.
#[derive(Debug, clap::Args)]
pub struct Test {
    /// The version.
    reference: Reference,
    /// Take the tests of this recipe.
    #[arg(long, value_name = "FILE", conflicts_with = "last")]
    recipe: Option<PathBuf>,
    /// Boot nothing: show what was found last.
    #[arg(long)]
    last: bool,
    /// Also write what was found and what the consoles said into this folder.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
}

impl Test {
    pub fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository()?;
        let version = repository.catalog().version(&self.reference)?;
        let told = context.format == Format::Text && !context.is_quiet();
        let tell = move |boot: &str| {
            if told {
                anstream::eprintln!("booting: {boot}");
            }
        };
        let gate = Gate {
            repository: &repository,
            version: &version,
            state: &context.state.path,
            tell: &tell,
            cancel: cancel_flag()?,
        };
        let report = match self.last {
            true => gate.last_report()?.ok_or_else(|| {
                Error::new(Kind::NotFound, "show the tests of", version.id.to_string())
                    .because("it was not tested")
            })?,
            false => gate.run(&match &self.recipe {
                Some(path) => of_recipe(path)?,
                None => gate.plan()?,
            })?,
        };
        if let Some(folder) = &self.export {
            let failed = |error| Error::io("write to", folder.display().to_string(), error);
            std::fs::create_dir_all(folder).map_err(failed)?;
            let text = told_report(&report).to_string();
            std::fs::write(folder.join("results.json"), text).map_err(failed)?;
            for document in repository.catalog().documents(version.facts.content)? {
                if let Some(boot) = document.name.strip_prefix(CONSOLE) {
                    let bytes = repository.chunks().document(document.digest)?;
                    let name = format!("console-{}.log", boot.replace('/', "_"));
                    std::fs::write(folder.join(name), bytes).map_err(failed)?;
                }
            }
        }
        if context.format == Format::Json {
            let mut document = told_report(&report);
            document["image"] = json!(version.id.image);
            document["version"] = json!(version.id.version);
            document["digest"] = json!(version.facts.content);
            print_json(&document)?;
        } else {
            report.outcomes.iter().try_for_each(print_outcome)?;
        }
        fails(&report, &version.id.to_string())
    }
}

/// The tests of a recipe.
fn of_recipe(path: &Path) -> Result<Plan> {
    let recipe = builder::check(path)?;
    let absolute = std::path::absolute(path)
        .map_err(|error| Error::io("find", path.display().to_string(), error))?;
    Plan::of(&recipe, absolute.parent().unwrap_or(Path::new("/")))?.ok_or_else(|| {
        Error::new(Kind::Invalid, "test by", path.display().to_string())
            .because("the recipe has no `[[test]]`")
    })
}

/// What tests found, for programs.
pub fn told_report(report: &Report) -> Value {
    let tests = report.outcomes.iter().map(|outcome| {
        json!({
            "name": outcome.name,
            "boot": outcome.boot,
            "passed": outcome.passed(),
            "seconds": outcome.seconds,
            "checks": outcome.checks,
        })
    });
    json!({
        "passed": report.passed(),
        "failed": report.failed(),
        "tests": tests.collect::<Vec<_>>(),
    })
}

/// What a test found, for people.
pub fn print_outcome(outcome: &Outcome) -> Result<()> {
    let word = if outcome.passed() { "passed" } else { "FAILED" };
    let Outcome { name, boot, seconds, checks } = outcome;
    print_line(&format!("{boot}: {name}: {word} ({seconds:.1} s)"))?;
    checks.iter().filter(|check| !check.passed).try_for_each(|check| {
        print_line(&format!("    {}: {}", check.what, check.reason.replace('\n', " | ")))
    })
}

/// An error where a test failed.
pub fn fails(report: &Report, version: &str) -> Result<()> {
    if report.failed() == 0 {
        return Ok(());
    }
    let counted = format!("{} of {} failed", report.failed(), report.outcomes.len().max(1));
    let first = report.first_failure().unwrap_or_else(|| "there was nothing to test".into());
    Err(Error::new(Kind::Refused, "test", version)
        .because(format!("{counted}; first {first}"))
        .hint(format!("`larder test {version} --last --export DIR` has what the consoles said")))
}
