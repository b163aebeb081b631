//! Images to order: recipes that share a core, built by stages.

use std::path::{Path, PathBuf};

use model::{Error, Kind, Result};

use super::larder::{Answer, Larder};

/// A core that boots; what stands upon it comes behind.
const CORE: &str = r#"
[distribution]
id = "debian"
release = "bookworm"
[system]
root_password = ""
[disk]
size = "2G"
boot = "bios"
[[stage]]
name = "core"
packages = ["systemd-sysv", "udev", "dbus", "kmod", "iproute2", "linux-image-cloud-amd64"]
"#;

/// A web server upon it.
const NGINX: &str = r#"
[[stage]]
name = "nginx"
parent = "core"
packages = ["nginx"]
"#;

/// A smaller one, with a page.
const WEB: &str = r#"
[[stage]]
name = "web"
parent = "core"
packages = ["nginx-light"]
files = [{ to = "/var/www/html/index.html", content = "PAGE" }]
"#;

/// Builds a minimal Debian, and one with a web server, which stands on the same core; their disks as
/// files.
pub fn two_disks(larder: &Larder, folder: &Path) -> Result<[PathBuf; 2]> {
    let disk = |name: &str, more: &str| -> Result<PathBuf> {
        println!("{name}:");
        build(larder, folder, name, more)?;
        let path = folder.join(format!("{name}.raw"));
        larder.json(&["export", name, &super::text(&path)?])?;
        Ok(path)
    };
    Ok([disk("minimal", "")?, disk("nginx", NGINX)?])
}

/// Builds a web server twice, with another page; the second time only what changed may be made.
pub fn build_twice(larder: &Larder, folder: &Path) -> Result<()> {
    build(larder, folder, "web", &WEB.replace("PAGE", "one page"))?;
    println!("another page:");
    let again = build(larder, folder, "web", &WEB.replace("PAGE", "another page"))?;
    let cached = |at: usize| again.value("stages")[at]["cached"].as_bool();
    if (cached(0), cached(1)) != (Some(true), Some(false)) {
        return Err(Error::new(Kind::Bug, "build", "web")
            .because("the stage that changed, and no other, was to be made"));
    }
    Ok(())
}

fn build(larder: &Larder, folder: &Path, name: &str, more: &str) -> Result<Answer> {
    let path = folder.join(format!("{name}.toml"));
    let failed = |source| Error::io("write", path.display().to_string(), source);
    std::fs::write(&path, format!("name = \"{name}\"{CORE}{more}")).map_err(failed)?;
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
