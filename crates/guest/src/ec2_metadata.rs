//! EC2's metadata, served to one guest at 169.254.169.254 by QEMU's own network.
//!
//! ```text
//!   guest --http--> QEMU (user network, 169.254.0.0/16) --one process a connection--> serve.sh: files
//! ```
//!
//! **Invariants**
//! - Nothing listens on the host: QEMU starts the server for each connection of this guest, and ends with it.
//! - The guest reaches nothing else.
//!
//! **Source**: EC2, "Instance metadata categories", with the token of its version 2; cloud-init, its
//! data source "Ec2", which knows an EC2 by a UUID that begins with `ec2`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use model::{Error, Kind, Result};

use crate::seed::Seed;

/// Answers one request on its standard input from files whose names are paths with `_` for `/`.
const SERVER: &str = include_str!("ec2_metadata.sh");

/// Writes what is served into a folder, and returns arguments for QEMU: a network card in a network
/// of its own, and a machine that says that it is EC2's. The guest must have no other network.
///
/// # Errors
/// As [`Seed::check`]; `Invalid` for a folder with quotes, commas or what is not UTF-8.
pub fn arguments(seed: &Seed, folder: &Path) -> Result<Vec<OsString>> {
    seed.check()?;
    let failed = |error| Error::io("write", folder.display().to_string(), error);
    let name = folder.to_str().filter(|name| !name.contains(['\'', ',', '"', '\\', '\n']));
    let Some(name) = name else {
        return Err(Error::new(Kind::Invalid, "serve from", folder.display().to_string())
            .because("QEMU takes no quotes and commas there"));
    };
    let mut files = vec![
        ("meta-data".to_owned(), "hostname\ninstance-id\nlocal-hostname\n".to_owned().into_bytes()),
        ("meta-data_instance-id".into(), format!("i-{}", seed.instance_id).into_bytes()),
        ("meta-data_hostname".into(), seed.host_name.clone().into_bytes()),
        ("meta-data_local-hostname".into(), seed.host_name.clone().into_bytes()),
        ("user-data".into(), seed.user_data()),
        // cloud-init asks for it again and again while it is not there.
        ("dynamic_instance-identity".into(), b"document\n".to_vec()),
        (
            "dynamic_instance-identity_document".into(),
            format!("{{\"instanceId\": \"i-{}\"}}", seed.instance_id).into_bytes(),
        ),
    ];
    if !seed.ssh_keys.is_empty() {
        files[0].1.extend(b"public-keys/\n");
        let keys = (0..seed.ssh_keys.len()).map(|index| format!("{index}=key{index}\n"));
        files.push(("meta-data_public-keys".into(), keys.collect::<String>().into_bytes()));
        for (index, key) in seed.ssh_keys.iter().enumerate() {
            let name = format!("meta-data_public-keys_{index}");
            files.push((name.clone(), b"openssh-key".to_vec()));
            files.push((format!("{name}_openssh-key"), key.clone().into_bytes()));
        }
    }
    fs::create_dir_all(folder).map_err(failed)?;
    for (file, bytes) in &files {
        fs::write(folder.join(file), bytes).map_err(failed)?;
    }
    fs::write(folder.join("serve.sh"), SERVER).map_err(failed)?;
    let uuid = "ec2e1916-9099-7caf-fd21-012345abcdef";
    let serve = format!("/bin/sh '{name}/serve.sh' '{name}'");
    let words = [
        "-smbios".to_owned(),
        format!("type=1,uuid={uuid},serial={uuid}"),
        "-netdev".into(),
        format!(
            "user,id=ec2,net=169.254.0.0/16,restrict=on,guestfwd=tcp:169.254.169.254:80-cmd:{serve}"
        ),
        "-device".into(),
        "virtio-net-pci,netdev=ec2,romfile=".into(),
    ];
    Ok(words.into_iter().map(OsString::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn ask(folder: &Path, request: &str) -> String {
        let mut child = Command::new("/bin/sh")
            .arg(folder.join("serve.sh"))
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n");
        child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    }

    #[test]
    fn requests_are_answered_from_the_seed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let seed = Seed {
            instance_id: "1".into(),
            host_name: "web".into(),
            ssh_keys: vec!["ssh-ed25519 AAAA me".into()],
            ..Seed::default()
        };
        let arguments = arguments(&seed, folder.path()).unwrap();
        assert!(arguments[3].to_str().unwrap().contains("guestfwd=tcp:169.254.169.254:80-cmd:"));
        for (request, answer) in [
            ("GET /latest/meta-data/instance-id", "i-1"),
            ("GET /2009-04-04/meta-data/local-hostname", "web"),
            ("GET /2009-04-04/meta-data/public-keys/", "0=key0\n"),
            ("GET /2009-04-04/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA me"),
            ("GET /latest/user-data", "#cloud-config\n{}\n"),
            ("GET /2021-03-23/dynamic/instance-identity/document", "{\"instanceId\": \"i-1\"}"),
            ("PUT /latest/api/token", "token"),
        ] {
            let said = ask(folder.path(), request);
            assert!(said.starts_with("HTTP/1.1 200 "), "{request}: {said}");
            assert!(said.ends_with(&format!("\r\n\r\n{answer}")), "{request}: {said}");
        }
        for request in ["GET /latest/../serve.sh", "GET /latest/serve.sh", "GET /", "nonsense"] {
            let said = ask(folder.path(), request);
            assert!(said.starts_with("HTTP/1.1 404 "), "{request}: {said}");
        }
        assert!(super::arguments(&seed, &folder.path().join("a,b")).is_err());
    }
}
