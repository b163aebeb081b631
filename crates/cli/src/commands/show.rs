use model::{BLOCK_LEN, Reference, Result};
use repository::signing::SIGNATURE_PREFIX;
use serde_json::json;

use crate::arguments::Format;
use crate::context::Context;
use crate::output::{human_len, print_facts, print_json, print_line};

/// Show one version: what it is, where it came from, what it is called.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The version.
    reference: Reference,
    /// Print its description: the text that signatures sign.
    #[arg(long)]
    description: bool,
}

impl Show {
    pub fn run(self, context: &Context) -> Result<()> {
        let repository = context.repository()?;
        let version = repository.catalog().version(&self.reference)?;
        if self.description {
            return print_line(repository.description(&version)?.trim_end());
        }
        let facts = &version.facts;
        let documents = repository.catalog().documents(facts.content)?;
        let signed_by: Vec<&str> = documents
            .iter()
            .filter_map(|document| document.name.strip_prefix(SIGNATURE_PREFIX))
            .collect();
        let data_len = facts.data_len.min(facts.length.next_multiple_of(BLOCK_LEN as u64));
        let kind = facts.kind.word();
        if context.format == Format::Json {
            let labels: serde_json::Map<_, _> =
                version.labels.iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
            return print_json(&json!({
                "image": version.id.image,
                "version": version.id.version,
                "latest": version.latest,
                "kind": kind,
                "digest": facts.content,
                "layout": facts.layout,
                "length_bytes": facts.length,
                "data_bytes": data_len,
                "parent": facts.parent.as_ref().map(ToString::to_string),
                "origin": facts.origin,
                "created": version.created.to_rfc3339(),
                "tags": version.tags,
                "labels": labels,
                "signed_by": signed_by,
                "attach_count": version.attach_count,
            }));
        }
        let none = || "none".to_string();
        let joined = |parts: Vec<String>| if parts.is_empty() { none() } else { parts.join(" ") };
        print_facts(&[
            ("version", version.id.to_string()),
            ("latest", version.latest.to_string()),
            ("kind", kind.to_string()),
            ("digest", facts.content.to_string()),
            ("length", human_len(facts.length)),
            ("data", human_len(data_len)),
            ("parent", facts.parent.as_ref().map_or_else(none, ToString::to_string)),
            ("origin", facts.origin.clone()),
            ("created", version.created.to_rfc3339()),
            ("tags", joined(version.tags.iter().map(ToString::to_string).collect())),
            ("labels", joined(version.labels.iter().map(|(k, v)| format!("{k}={v}")).collect())),
            ("signed by", joined(signed_by.iter().map(ToString::to_string).collect())),
            ("attached", format!("{} times", version.attach_count)),
        ])
    }
}
