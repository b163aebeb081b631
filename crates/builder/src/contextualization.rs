//! What machines made of an image learn who they are from: checked, and told to cloud-init.
//!
//! **Source**: cloud-init, "Data sources" and ds-identify; systemd 252, whose tmpfiles take credentials.

use model::Result;

use crate::recipe::{Place, Recipe};
use crate::tree::Tree;

/// Where cloud-init looks; a list of one is taken without a look at what is there.
const SETTINGS: &str = "/etc/cloud/cloud.cfg.d/95_larder.cfg";

/// The seeds that cloud-init reads, by its names for them.
const DATA_SOURCES: [(&str, &str); 3] =
    [("nocloud", "NoCloud"), ("configdrive", "ConfigDrive"), ("ec2", "Ec2")];

/// Where a program of systemd or of cloud-init may be.
const CLOUD_INIT: [&str; 2] = ["/usr/bin/cloud-init", "/usr/local/bin/cloud-init"];
const CREDENTIALS: [&str; 2] =
    ["/usr/lib/tmpfiles.d/provision.conf", "/lib/tmpfiles.d/provision.conf"];

/// Settles an image whose recipe says what it learns who it is from.
///
/// # Errors
/// `Invalid`, with the line, where the image has nothing that reads it.
pub(crate) fn settle(tree: &Tree, recipe: &Recipe, place: &Place) -> Result<()> {
    let Some(contextualization) = &recipe.contextualization else { return Ok(()) };
    let mut sources = Vec::new();
    for seed in &contextualization.seeds {
        let word = seed.get_ref().as_str();
        let source = DATA_SOURCES.iter().find(|(known, _)| *known == word);
        let (paths, hint) = match source {
            Some(_) => (CLOUD_INIT, "add `cloud-init` to the packages of a stage"),
            None => (CREDENTIALS, "credentials need systemd 252 or newer"),
        };
        if !paths.iter().any(|path| tree.exists(path)) {
            let reason = format!("the image has nothing that reads `{word}`");
            return Err(place.error("build", seed.span().start, reason).hint(hint));
        }
        sources.extend(source.map(|(_, name)| *name));
    }
    if sources.is_empty() {
        return Ok(());
    }
    let text =
        format!("# As the image's recipe says.\ndatasource_list: [{}, None]\n", sources.join(", "));
    tree.write(SETTINGS, text.as_bytes(), 0o644, (0, 0))
}
