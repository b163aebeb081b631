use std::path::PathBuf;

use builder::{BuildRequest, Event};
use model::{Result, TagName};
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::interrupt::cancel_flag;
use crate::output::{print_facts, print_json};

/// Build the image that a recipe describes, stage by stage.
///
/// Packages are resolved to exact versions and digests, kept in a lock beside the recipe; what is
/// built is exactly the lock. Each stage is a version, and is not built again while nothing in it
/// changes: a build that failed goes on where it was. `larder recipe example` prints a recipe.
#[derive(Debug, clap::Args)]
pub struct Build {
    /// The recipe.
    recipe: PathBuf,
    /// A tag for the version.
    #[arg(long)]
    tag: Option<TagName>,
    /// Fail where the lock is missing or is for something else.
    #[arg(long, conflicts_with = "update")]
    locked: bool,
    /// Resolve packages anew, though the lock fits.
    #[arg(long)]
    update: bool,
    /// Open a shell in the image where a step fails.
    #[arg(long)]
    shell_on_failure: bool,
}

impl Build {
    pub fn run(self, context: &Context) -> Result<()> {
        builder::rootless::enter()?;
        let repository = context.repository_or_new()?;
        let told = context.format == Format::Text && !context.is_quiet();
        let tell = move |event: Event| {
            if !told {
                return;
            }
            match event {
                Event::Resolving(why) => anstream::eprintln!("resolving packages: {why}"),
                Event::Cached(name) => anstream::eprintln!("{name}: cached"),
                Event::Building(name, why) => anstream::eprintln!("{name}: building: {why}"),
            }
        };
        let built = builder::build(
            &repository,
            &BuildRequest {
                recipe: self.recipe,
                tag: self.tag,
                locked: self.locked,
                update: self.update,
                shell_on_failure: self.shell_on_failure,
                state: context.state.path.clone(),
                tell: &tell,
                cancel: cancel_flag()?,
            },
        )?;
        if context.format == Format::Json {
            let stages: Vec<_> = built
                .stages
                .iter()
                .map(|stage| {
                    json!({
                        "name": stage.name,
                        "key": stage.key,
                        "cached": stage.cached,
                        "why": stage.why,
                        "seconds": stage.seconds,
                        "root_ms": stage.root_seconds.map(|seconds| seconds * 1000.0),
                    })
                })
                .collect();
            return print_json(&json!({
                "image": built.version.image,
                "version": built.version.version,
                "digest": built.content,
                "length_bytes": built.length,
                "new": built.is_new,
                "stages": stages,
            }));
        }
        let mut facts: Vec<(&str, String)> = built
            .stages
            .iter()
            .map(|stage| {
                let what = match stage.cached {
                    true => "cached".to_owned(),
                    false => format!("built in {:.1} s", stage.seconds),
                };
                ("stage", format!("{}: {what}: {}", stage.name, stage.why))
            })
            .collect();
        let new = if built.is_new { "" } else { " (as before)" };
        facts.push(("version", format!("{}{new}", built.version)));
        facts.push(("digest", built.content.to_string()));
        print_facts(&facts)
    }
}
