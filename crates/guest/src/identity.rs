//! What makes one copy of a machine another: given to a resumed guest, and confirmed by it.
//!
//! ```text
//!   Identity --entropy, machine id, host name--> helper   first, all at once
//!            --clock-------------------------->           then the time, which goes old quickly
//!            --keys, seed--------------------->           then SSH host keys, from new entropy
//!   Confirmed <------------------report-------            last: what the guest says it is
//! ```
//!
//! **Invariants**
//! - New entropy is in the guest's pool before a key is made from it.
//! - Success means that the guest said back the same machine id and host name, and a time within the
//!   measured error of the host's.
//!
//! **Not here**: MAC addresses (a network card is added by [`growth`](crate::growth)), VMGenID (QEMU
//! gives each process a new one), the disk's and file systems' UUIDs (they stay those of the image).

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use env::{Clock, Entropy};
use model::{Error, Kind, Result};

use crate::helper::Helper;

/// How many random bytes a guest is given.
const ENTROPY_LEN: usize = 64;

/// The folder in which cloud-init looks for a seed.
const SEED_FOLDER: &str = "/var/lib/cloud/seed/nocloud";

/// The longest host name, as the kernel has it.
const HOST_NAME_LEN_MAX: usize = 64;

/// What is to be a machine's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// 32 hexadecimal digits.
    pub machine_id: String,
    /// The host name.
    pub host_name: String,
    /// Random bytes for the guest's pool.
    pub entropy: Vec<u8>,
    /// Public keys of those who may log in as a user, each line one.
    pub authorized_keys: Vec<AuthorizedKeys>,
    /// What cloud-init, or a shell where it begins with `#!`, is to do.
    pub user_data: Option<Vec<u8>>,
    /// More of cloud-init's meta-data, in YAML, beside the instance id and the host name.
    pub meta_data: Option<String>,
}

/// Public keys of those who may log in as a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedKeys {
    /// A user that the guest has.
    pub user: String,
    /// The keys, in the form of `authorized_keys`.
    pub keys: String,
}

/// An identity that the guest confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The machine id that it says it has.
    pub machine_id: String,
    /// The host name that it says it has.
    pub host_name: String,
    /// Its new Ed25519 host key, in public; none where it has no SSH.
    pub ssh_host_key: Option<String>,
    /// By how much its clock may differ from the host's.
    pub clock_error_max: Duration,
    /// What took the user-data: `cloud-init` or `script`.
    pub user_data_taken_by: Option<String>,
    /// How long it all took.
    pub took: Duration,
}

impl Identity {
    /// A new identity; nobody may log in who could not before.
    ///
    /// # Errors
    /// `Invalid`: not a host name.
    pub fn new(host_name: &str, entropy: &dyn Entropy) -> Result<Self> {
        check_host_name(host_name)?;
        let mut id = [0; 16];
        entropy.fill(&mut id);
        // A UUID of version 4, as systemd wants a machine id to be.
        id[6] = (id[6] & 0x0f) | 0x40;
        id[8] = (id[8] & 0x3f) | 0x80;
        let mut bytes = vec![0; ENTROPY_LEN];
        entropy.fill(&mut bytes);
        Ok(Identity {
            machine_id: hexadecimal(&id),
            host_name: host_name.to_owned(),
            entropy: bytes,
            authorized_keys: Vec::new(),
            user_data: None,
            meta_data: None,
        })
    }

    /// cloud-init's meta-data for this machine.
    pub fn full_meta_data(&self) -> String {
        let rest = self.meta_data.as_deref().unwrap_or_default();
        meta_data(&self.machine_id, &self.host_name, rest)
    }

    /// Gives a guest this identity and returns when it has confirmed it. RSA host keys and what
    /// cloud-init does follow.
    ///
    /// # Errors
    /// `Unavailable`: the guest's helper did not answer within `limit`. `Invalid`: the guest refused a
    /// part, with its words, or says that it is another than it was told to be. After either the
    /// guest may have a part of its new identity: end it.
    pub fn give(
        &self,
        helper: &mut Helper,
        clock: &dyn Clock,
        limit: Duration,
    ) -> Result<Confirmed> {
        check_host_name(&self.host_name)?;
        let began = Instant::now();
        let deadline = began + limit;
        let left = || deadline.saturating_duration_since(Instant::now());
        // Sent together: the guest does one after the other without waiting for us.
        let entropy = hexadecimal(&self.entropy);
        let parts = [
            helper.send("entropy", &[&entropy], deadline)?,
            helper.send("machine-id", &[&self.machine_id], deadline)?,
            helper.send("host-name", &[&self.host_name], deadline)?,
        ];
        for sent in parts {
            helper.answer(sent, deadline)?;
        }
        let clock_set = helper.set_clock(clock, left())?;
        let keys = helper.ask("ssh-keys", &[], left())?;
        for AuthorizedKeys { user, keys } in &self.authorized_keys {
            let sent = helper.send_authorize(user, keys, deadline)?;
            helper.answer(sent, deadline)?;
        }
        let user_data_taken_by = self.give_seed(helper, deadline)?;
        helper.ask("settle", &[], left())?;
        let report = helper.report(left())?;
        for (what, wanted, said) in [
            ("machine id", &self.machine_id, &report.machine_id),
            ("host name", &self.host_name, &report.host_name),
        ] {
            if wanted != said {
                return Err(Error::new(Kind::Invalid, "give the guest", format!("its {what}"))
                    .because(format!("it says {said:?} instead of {wanted:?}")));
            }
        }
        Ok(Confirmed {
            machine_id: report.machine_id,
            host_name: report.host_name,
            ssh_host_key: Some(keys).filter(|key| key.starts_with("ssh-")),
            clock_error_max: clock_set.error_max,
            user_data_taken_by,
            took: began.elapsed(),
        })
    }

    fn give_seed(&self, helper: &mut Helper, deadline: Instant) -> Result<Option<String>> {
        let Some(user_data) = &self.user_data else { return Ok(None) };
        let meta_data = self.full_meta_data();
        for (name, bytes) in [("meta-data", meta_data.as_bytes()), ("user-data", user_data)] {
            let path = format!("{SEED_FOLDER}/{name}");
            let sent = helper.send_put(&path, 0o600, bytes, deadline)?;
            helper.answer(sent, deadline)?;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        helper.ask("user-data", &[], left).map(Some)
    }
}

/// Meta-data for cloud-init: instance id and host name, then the user's own lines, of which those that
/// name the same two take their place.
pub(crate) fn meta_data(instance_id: &str, host_name: &str, rest: &str) -> String {
    let has = |name: &str| rest.lines().any(|line| line.starts_with(&format!("{name}:")));
    let mut text = String::new();
    if !has("instance-id") {
        let _ = writeln!(text, "instance-id: {instance_id}");
    }
    if !has("local-hostname") {
        let _ = writeln!(text, "local-hostname: {host_name}");
    }
    text + rest
}

/// Checks that a text is a host name: labels of letters, digits and hyphens.
///
/// # Errors
/// `Invalid`: it is not.
pub fn check_host_name(name: &str) -> Result<()> {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= HOST_NAME_LEN_MAX && name.split('.').all(is_label) {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, "use the host name", format!("{name:?}"))
        .because("it has letters, digits, hyphens and dots, and at most 64 of them"))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use env::{SeededEntropy, SystemEntropy};

    #[test]
    fn two_identities_differ_in_everything() {
        let entropy = SystemEntropy;
        let one = Identity::new("a", &entropy).unwrap();
        let other = Identity::new("b", &entropy).unwrap();
        assert_ne!(one.machine_id, other.machine_id);
        assert_ne!(one.entropy, other.entropy);
        assert_eq!((one.machine_id.len(), one.entropy.len()), (32, ENTROPY_LEN));
        assert_eq!(&one.machine_id[12..13], "4");
    }

    #[test]
    fn host_names_are_checked() {
        for name in ["a", "web-1.example.org", "X9"] {
            check_host_name(name).unwrap();
        }
        for name in ["", "-a", "a-", "a..b", "a b", "a_b", "ä", &"a".repeat(65)] {
            assert_eq!(check_host_name(name).unwrap_err().kind(), Kind::Invalid, "{name}");
        }
        assert!(Identity::new("a\nb", &SeededEntropy::new(1)).is_err());
    }

    #[test]
    fn what_the_user_says_of_the_instance_takes_the_place_of_ours() {
        assert_eq!(meta_data("id", "x", ""), "instance-id: id\nlocal-hostname: x\n");
        let rest = "local-hostname: y\nregion: z\n";
        assert_eq!(meta_data("id", "x", rest), format!("instance-id: id\n{rest}"));
    }
}
