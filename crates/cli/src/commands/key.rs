use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use model::{Error, Kind, Result};
use repository::signing::NewKey;
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{print_json, print_line};

/// Make keys that sign versions.
///
/// They are minisign's: `minisign` reads them, and its keys sign here.
#[derive(Debug, clap::Args)]
pub struct Key {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a pair of keys: NAME.key signs, NAME.pub verifies.
    Generate(Generate),
}

#[derive(Debug, clap::Args)]
struct Generate {
    /// What the files are called, without their endings.
    name: PathBuf,
    /// Encrypt the secret key with the first line of this file.
    #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
    password_file: Option<PathBuf>,
    /// Do not encrypt the secret key: whoever reads its file can sign.
    #[arg(long)]
    no_password: bool,
}

impl Key {
    pub fn run(self, context: &Context) -> Result<()> {
        let KeyCommand::Generate(generate) = self.command;
        generate.run(context)
    }
}

impl Generate {
    fn run(self, context: &Context) -> Result<()> {
        let password = match &self.password_file {
            Some(file) => Some(read_password(file)?),
            None if self.no_password => None,
            None => {
                return Err(Error::new(Kind::Invalid, "generate", self.name.display().to_string())
                    .because("it is not said how the secret key is protected")
                    .hint("`--password-file FILE` encrypts it; `--no-password` does not"));
            }
        };
        let [secret, public] =
            ["key", "pub"].map(|ending| PathBuf::from(format!("{}.{ending}", self.name.display())));
        for path in [&secret, &public] {
            if path.exists() {
                return Err(Error::new(Kind::Exists, "generate", path.display().to_string())
                    .because("there is a file of that name")
                    .hint("keys are never overwritten: choose another name"));
            }
        }
        let key = NewKey::generate(password)?;
        write_new(&secret, &key.secret, 0o600)?;
        write_new(&public, &key.public, 0o644)?;
        let line = key.public.lines().nth(1).unwrap_or_default();
        if context.format == Format::Json {
            return print_json(&json!({
                "key_id": key.id,
                "public_key": line,
                "secret_key_file": secret,
                "public_key_file": public,
            }));
        }
        print_line(&format!(
            "key {}: {} signs, {} verifies",
            key.id,
            secret.display(),
            public.display()
        ))?;
        print_line(&format!("for the settings of hosts: require_signature_by = [\"{line}\"]"))
    }
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let failed = |error| Error::io("write", path.display().to_string(), error);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// The first line of a file.
pub fn read_password(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::io("read the password", path.display().to_string(), error))?;
    Ok(text.lines().next().unwrap_or_default().to_string())
}
