//! An image to order: a recipe of two stages, built, changed in a file, and built again.

use std::path::Path;

use model::{Error, Kind, Result};

use super::larder::{Answer, Larder};

/// A core that boots, and a web server upon it.
const RECIPE: &str = r#"name = "web"
[distribution]
id = "debian"
release = "bookworm"
[[stage]]
name = "core"
packages = ["systemd-sysv", "udev", "dbus", "kmod", "iproute2", "linux-image-cloud-amd64"]
[[stage]]
name = "web"
parent = "core"
packages = ["nginx-light"]
files = [{ to = "/var/www/html/index.html", content = "PAGE" }]
[system]
root_password = ""
[disk]
size = "2G"
boot = "bios"
"#;

/// Builds it twice, with another page; the second time only what changed may be made.
pub fn build_twice(larder: &Larder, folder: &Path) -> Result<()> {
    build(larder, folder, "one page")?;
    println!("another page:");
    let again = build(larder, folder, "another page")?;
    let cached = |at: usize| again.value("stages")[at]["cached"].as_bool();
    if (cached(0), cached(1)) != (Some(true), Some(false)) {
        return Err(Error::new(Kind::Bug, "build", "web")
            .because("the stage that changed, and no other, was to be made"));
    }
    Ok(())
}

fn build(larder: &Larder, folder: &Path, page: &str) -> Result<Answer> {
    let path = folder.join("web.toml");
    let failed = |source| Error::io("write", path.display().to_string(), source);
    std::fs::write(&path, RECIPE.replace("PAGE", page)).map_err(failed)?;
    let built = larder.json(&["build", &super::text(&path)?])?;
    for stage in built.value("stages").as_array().into_iter().flatten() {
        let (name, why) = (stage["name"].as_str(), stage["why"].as_str());
        let (name, why) = (name.unwrap_or_default(), why.unwrap_or_default());
        match stage["cached"].as_bool() {
            Some(true) => println!("  {name}: cached: {why}"),
            _ => {
                let seconds = stage["seconds"].as_f64().unwrap_or_default();
                println!("  {name}: built in {seconds:.1} s: {why}");
            }
        }
    }
    Ok(built)
}
