use std::path::PathBuf;

use model::{Error, Kind, Reference, Result};
use repository::signing::{DESCRIPTION, SIGNATURE_PREFIX};
use repository::{SigningKey, TrustedKey, Verdict};
use serde_json::json;

use crate::arguments::Format;
use crate::commands::key::read_password;
use crate::context::Context;
use crate::output::{print_json, print_line};

/// Sign a version: vouch for its content, and for what is known of it.
///
/// Signed is the description (`larder show --description`), which names the content digest. The
/// signature belongs to the content: clones have it too.
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The version.
    reference: Reference,
    /// The secret key's file, of `larder key generate` or minisign.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The key's password is the first line of this file.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl Sign {
    pub fn run(self, context: &Context) -> Result<()> {
        let text = std::fs::read_to_string(&self.key)
            .map_err(|error| Error::io("read the key", self.key.display().to_string(), error))?;
        let password = self.password_file.as_deref().map(read_password).transpose()?;
        let key = SigningKey::read(&text, password)?;
        let repository = context.repository()?;
        let version = repository.catalog().version(&self.reference)?;
        repository.sign(&version, &key)?;
        match context.format {
            Format::Json => print_json(&json!({
                "image": version.id.image,
                "version": version.id.version,
                "digest": version.facts.content,
                "key_id": key.id(),
            })),
            Format::Text => print_line(&format!("{} signed by {}", version.id, key.id())),
        }
    }
}

/// Verify a version's signatures. Succeeds where one of the keys has signed it.
///
/// Keys are those given, or those that the settings name in `require_signature_by`.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The version.
    reference: Reference,
    /// A public key to believe: its file, or its line. May come several times.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// Also write the description and its signatures into this folder, for `minisign -V`.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
}

impl Verify {
    pub fn run(self, context: &Context) -> Result<()> {
        let keys = match self.keys.is_empty() {
            true => context.trusted()?,
            false => self.keys.iter().map(|key| read_key(key)).collect::<Result<Vec<_>>>()?,
        };
        let repository = context.repository()?;
        let version = repository.catalog().version(&self.reference)?;
        if let Some(folder) = &self.export {
            let failed = |error| Error::io("write to", folder.display().to_string(), error);
            std::fs::create_dir_all(folder).map_err(failed)?;
            let text = repository.description(&version)?;
            std::fs::write(folder.join("description.toml"), text).map_err(failed)?;
            for document in repository.catalog().documents(version.facts.content)? {
                if let Some(id) = document.name.strip_prefix(SIGNATURE_PREFIX) {
                    let bytes = repository.chunks().document(document.digest)?;
                    let name = format!("{DESCRIPTION}.{id}.minisig");
                    std::fs::write(folder.join(name), bytes).map_err(failed)?;
                }
            }
        }
        let checked = repository.verify(&version, &keys)?;
        let passed = checked.iter().filter(|signature| signature.verdict == Verdict::Good).count();
        if context.format == Format::Json {
            let signatures: Vec<_> = checked
                .iter()
                .map(|signature| {
                    let (verdict, reason) = match &signature.verdict {
                        Verdict::Good => ("good", None),
                        Verdict::UnknownKey => ("unknown key", None),
                        Verdict::Bad(reason) => ("bad", Some(reason)),
                    };
                    json!({
                        "key_id": signature.key_id,
                        "verdict": verdict,
                        "reason": reason,
                        "comment": signature.comment,
                    })
                })
                .collect();
            print_json(&json!({
                "image": version.id.image,
                "version": version.id.version,
                "digest": version.facts.content,
                "passed": passed,
                "failed": checked.len() - passed,
                "signatures": signatures,
            }))?;
        } else {
            for signature in &checked {
                let comment = match signature.verdict {
                    Verdict::Good => format!(" ({})", signature.comment),
                    _ => String::new(),
                };
                print_line(&format!("{}: {}{comment}", version.id, signature.told()))?;
            }
        }
        if passed > 0 {
            return Ok(());
        }
        let error = Error::new(Kind::Refused, "verify", version.id.to_string());
        Err(match (checked.is_empty(), keys.is_empty()) {
            (true, _) => error.because("it has no signature").hint("`larder sign` signs"),
            (false, true) => error
                .because("no key is named")
                .hint("`--key FILE` names one, or `require_signature_by` in the settings"),
            (false, false) => error.because("none of the keys has signed it"),
        })
    }
}

/// A public key: its line, or the file that holds it.
pub fn read_key(text: &str) -> Result<TrustedKey> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    match std::fs::read_to_string(text) {
        Ok(file) => file.parse(),
        Err(error) => Err(Error::io("read the public key", text, error)),
    }
}
