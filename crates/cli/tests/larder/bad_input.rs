//! Bad input: one line that names the thing and the reason, exit code 1, nothing left behind.

use std::fmt::Write as _;

use serde_json::Value;

use crate::harness::{Failure, Larder, Random, files_below};
use crate::texts;

/// Gathers errors for their golden file.
struct Errors<'a> {
    larder: &'a Larder,
    text: String,
}

impl Errors<'_> {
    /// Runs a command that must fail and leave everything as it is.
    fn add(&mut self, line: &str) -> Failure {
        let before = (self.larder.inventory(), self.names());
        let failure = self.larder.fails(line);
        assert_eq!(before, (self.larder.inventory(), self.names()), "larder {line}");
        self.note(&format!("larder {line}"), &failure);
        failure
    }

    fn note(&mut self, line: &str, failure: &Failure) {
        // Process numbers and the folder are others in each run.
        let folder = self.larder.path("");
        let folder = folder.to_str().unwrap().trim_end_matches('/');
        let mut message = failure.message.replace(folder, "FOLDER");
        if let Some((before, after)) = message.split_once("process ") {
            let after = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
            message = format!("{before}process PID{after}");
        }
        if let Some((before, _)) = message.split_once(" at path ") {
            // A file of a name that was drawn.
            message = before.to_string();
        }
        writeln!(self.text, "$ {line}\nlarder: {message}").unwrap();
        if let Some(hint) = &failure.hint {
            writeln!(self.text, "hint: {}", hint.replace(folder, "FOLDER")).unwrap();
        }
    }

    /// Every file that a user or larder has in the folder, but for the catalog's own and for what was
    /// fetched, which is a cache.
    fn names(&self) -> Vec<String> {
        let files = files_below(&self.larder.path(""));
        let names = files.iter().map(|file| file.display().to_string());
        names
            .filter(|name| {
                !["catalog.sqlite", "state/bases", "state/room", "state/chunks"]
                    .iter()
                    .any(|kept| name.contains(kept))
            })
            .collect()
    }
}

/// Overwrites bytes of a file.
fn patch(larder: &Larder, from: &str, to: &str, offset: usize, bytes: &[u8]) {
    let mut file = larder.read(from);
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    larder.write(to, &file);
}

fn hostile_disks(larder: &Larder) {
    larder.write("good.raw", &Random::new(1).bytes(1 << 20));
    larder.shell("qemu-img convert -O qcow2 good.raw good.qcow2");
    larder.shell("qemu-img create -q -f qcow2 -b good.raw -F raw backed.qcow2");
    larder.shell(
        "qemu-img create -q -f qcow2 -o data_file=outside.raw,data_file_raw=on external.qcow2 1M",
    );
    larder.shell("head -c 600000 good.qcow2 > truncated.qcow2");
    larder.shell("head -c 20 good.qcow2 > stub.qcow2");
    patch(larder, "good.qcow2", "version9.qcow2", 4, &9_u32.to_be_bytes());
    // The header's fields: cluster bits at 20, length at 24, encryption at 32, L1 entries at 36,
    // L1 offset at 40, incompatible features at 72.
    patch(larder, "good.qcow2", "clusters.qcow2", 20, &60_u32.to_be_bytes());
    patch(larder, "good.qcow2", "endless.qcow2", 24, &u64::MAX.to_be_bytes());
    patch(larder, "good.qcow2", "encrypted.qcow2", 32, &2_u32.to_be_bytes());
    patch(larder, "good.qcow2", "table-len.qcow2", 36, &u32::MAX.to_be_bytes());
    patch(larder, "good.qcow2", "table-place.qcow2", 40, &(1_u64 << 50).to_be_bytes());
    patch(larder, "good.qcow2", "features.qcow2", 72, &(1_u64 << 20).to_be_bytes());
    // Where the L1 table lies, and an L2 table that lies in nowhere.
    let bytes = larder.read("good.qcow2");
    let table = u64::from_be_bytes(bytes[40..48].try_into().unwrap()) as usize;
    patch(larder, "good.qcow2", "entry.qcow2", table, &((1 << 63) | (1_u64 << 45)).to_be_bytes());
}

#[test]
fn ctrl_c_ends_at_once_what_waits_at_stdin() {
    let larder = Larder::new();
    larder.json("create disk --length 1MiB");
    for line in ["import - other", "append disk -"] {
        let mut command = larder.command(line);
        command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut process = crate::harness::Process::start(&mut command);
        let pipe = process.child.stdin.take().unwrap();
        // It listens to signals once it has a pipe of its own to hear of them.
        let status = format!("/proc/{}/status", process.child.id());
        let listens = || {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
            u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << 1 != 0
        };
        assert!(process.runs_until(listens), "{line}");
        process.signal(rustix::process::Signal::INT);
        assert!(process.ends_within(crate::harness::LIMIT), "{line}");
        assert_eq!(process.child.wait().unwrap().code(), Some(1), "{line}");
        drop(pipe);
    }
    assert_eq!(larder.json("list")["images"].as_array().unwrap().len(), 1);
}

#[test]
fn every_error_is_one_line_with_its_reason_and_leaves_nothing() {
    let larder = Larder::new();
    hostile_disks(&larder);
    let mut errors = Errors { larder: &larder, text: String::new() };

    // There is no repository yet.
    for line in ["list", "show a", "stats", "export a out.raw", "remove a", "label a k=v"] {
        let failure = errors.add(line);
        assert!(failure.message.contains("repo"), "{failure:?}");
    }
    errors.add("import missing.raw a");
    assert!(!larder.path("repo").exists(), "a file that cannot be read makes no repository");
    let failure = errors.add("--repo http://example.test/ list");
    assert!(failure.message.contains("http://example.test/"), "{failure:?}");

    larder.json("import good.raw debian --tag stable");
    larder.json("import good.raw debian");
    for name in [
        "missing.raw",
        "truncated.qcow2",
        "version9.qcow2",
        "clusters.qcow2",
        "endless.qcow2",
        "encrypted.qcow2",
        "table-len.qcow2",
        "table-place.qcow2",
        "features.qcow2",
        "entry.qcow2",
        "backed.qcow2",
        "external.qcow2",
        "home",
    ] {
        std::fs::create_dir_all(larder.path("home")).unwrap();
        let failure = errors.add(&format!("import {name} new"));
        assert!(failure.message.contains(name), "{name}: {failure:?}");
        if name == "backed.qcow2" {
            assert!(failure.hint.unwrap().contains("--allow-backing"));
        }
    }
    errors.add("import good.raw new --input-format qcow2");
    errors.add("import stub.qcow2 new --input-format qcow2");

    // Names.
    let failure = errors.add("show debain");
    assert!(failure.hint.unwrap().contains("debian"));
    for line in [
        "show debian@3",
        "show debian:stabel",
        "export debian:x out.raw",
        "clone nothing a",
        "clone debian debian",
        "create debian --length 1M",
        "create a --length 999999999G",
        "tag nothing t",
        "label nothing k=v",
        "remove nothing",
        "remove debian",
        "remove debian@9",
        "export debian no/such/folder/out.raw",
        "export debian home",
    ] {
        errors.add(line);
    }
    errors.add("attach nothing --mirror m --nbd ./s");
    errors.add("attach debian --mirror m");
    errors.add("attach debian --mirror m --nbd no/such/folder/s");
    errors.add("attach debian --mirror m --fuse no/such/folder");
    errors.add("attach debian --mirror m --nbd 192.0.2.1:10809");
    errors.add("attach nothing --mirror m --nbd ./s --detach");
    errors.add("detach m");
    errors.add("commit m");
    errors.add("run nothing");
    errors.add("run debian --memory 1");

    // A mirror has one owner, and stands on one version.
    let served = larder.attach("debian@1 --mirror m --nbd ./s");
    let second = errors.add("attach debian@1 --mirror m --nbd ./t");
    assert!(second.message.contains(&served.process.child.id().to_string()), "{second:?}");
    errors.add("attach debian@1 --mirror other --nbd ./s");
    served.stop();
    errors.add("attach debian@2 --mirror m --nbd ./s");
    errors.add("commit m --to debian");
    errors.add("detach n");
    texts::check("errors.txt", &errors.text);
}

#[test]
fn a_repository_of_a_newer_format_and_a_folder_that_is_none_are_refused() {
    let larder = Larder::new();
    larder.write("good.raw", &[1; 10_000]);
    larder.json("import good.raw a");
    let mut errors = Errors { larder: &larder, text: String::new() };
    let settings = String::from_utf8(larder.read("repo/repository.toml")).unwrap();
    let newer: String = settings
        .lines()
        .map(|line| match line.split_once('=') {
            Some((key, _)) if key.trim() == "format" => "format = 99\n".to_string(),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(newer, settings);
    let refused = |errors: &mut Errors, text: &str| {
        for line in
            ["list", "import good.raw a", "export a out.raw", "attach a --mirror m --nbd ./s"]
        {
            larder.write("repo/repository.toml", text.as_bytes());
            let failure = larder.fails(line);
            errors.note(&format!("larder {line}"), &failure);
            assert!(failure.message.contains("repo"), "{failure:?}");
            larder.write("repo/repository.toml", settings.as_bytes());
            assert_eq!(larder.json("list")["images"][0]["versions"], serde_json::json!([1]));
        }
    };
    refused(&mut errors, &newer);
    refused(&mut errors, "format = \"no\nsuch");
    std::fs::create_dir(larder.path("photos")).unwrap();
    larder.write("photos/cat.jpg", b"miau");
    errors.add("--repo photos list");
    errors.add("--repo photos import good.raw a");
    assert_eq!(std::fs::read_dir(larder.path("photos")).unwrap().count(), 1);
    errors.add("--repo good.raw list");
    errors.add("--repo good.raw import good.raw a");
    std::fs::create_dir_all(larder.path("home/.config/larder")).unwrap();
    larder.write("home/.config/larder/settings.toml", b"repo = 3\ncolour = 'red'\n");
    errors.add_settings();
    texts::check("repository-errors.txt", &errors.text);
}

impl Errors<'_> {
    /// A settings file that is not well-formed stops every command.
    fn add_settings(&mut self) {
        let failure = self.larder.fails("list");
        assert!(failure.message.contains("settings.toml"), "{failure:?}");
        self.note("larder list", &failure);
    }
}

#[test]
fn damaged_bytes_in_the_repository_are_told_not_served() {
    let larder = Larder::new();
    let bytes = Random::new(3).bytes(2 << 20);
    larder.write("good.raw", &bytes);
    larder.json("import good.raw a");
    let pack = files_below(&larder.path("repo/packs")).remove(0);
    let mut damaged = std::fs::read(&pack).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&pack, &damaged).unwrap();
    let failure = larder.fails("export a out.raw");
    assert!(!failure.message.is_empty());
    assert!(!larder.path("out.raw").exists(), "a file appears only when it is whole");
    let names = std::fs::read_dir(larder.path("")).unwrap();
    let rest: Vec<_> = names.flatten().map(|entry| entry.file_name()).collect();
    assert!(rest.iter().all(|name| name == "good.raw" || name == "repo"), "{rest:?}");
    std::fs::remove_file(&pack).unwrap();
    larder.fails("export a out.raw");
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_refused() {
    let larder = Larder::new();
    larder.write("a.raw", &Random::new(4).bytes(1 << 20));
    larder.json("import a.raw first");
    let before = larder.inventory();
    larder.write("b.raw", &Random::new(5).bytes(64 << 20));
    let mut command = larder.command("import b.raw second --quiet --format json");
    let mut import = crate::harness::Process::start(
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(larder.path("stderr")).unwrap()),
    );
    let position = format!("/proc/{}/io", import.child.id());
    let has_begun = || {
        let text = std::fs::read_to_string(&position).unwrap_or_default();
        let read = text.lines().find_map(|line| line.strip_prefix("rchar: "));
        read.and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count > 8 << 20)
    };
    assert!(import.runs_until(has_begun), "it ended before it was cut");
    let file = std::fs::OpenOptions::new().write(true).open(larder.path("b.raw")).unwrap();
    file.set_len(4096).unwrap();
    assert_eq!(import.child.wait().unwrap().code(), Some(1));
    let stderr = String::from_utf8(larder.read("stderr")).unwrap();
    assert!(stderr.starts_with("larder: ") && stderr.contains("b.raw"), "{stderr}");
    assert_eq!(larder.inventory(), before);
    assert_eq!(larder.json("list")["images"].as_array().map(Vec::len), Some(1));
    let absent: Value = larder.json("list --search second");
    assert_eq!(absent["images"], serde_json::json!([]));
}

#[test]
fn ctrl_c_in_an_import_leaves_nothing() {
    let larder = Larder::new();
    larder.write("a.raw", &[1; 5000]);
    larder.json("import a.raw first");
    let before = larder.inventory();
    let mut command = larder.command("import - second --quiet");
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    command.stderr(std::fs::File::create(larder.path("stderr")).unwrap());
    let mut import = crate::harness::Process::start(&mut command);
    let mut stdin = import.child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &Random::new(1).bytes(40 << 20)).unwrap();
    import.signal(rustix::process::Signal::INT);
    // It looks at each window; this makes one more, or finds it gone.
    let _gone = std::io::Write::write_all(&mut stdin, &Random::new(2).bytes(40 << 20));
    drop(stdin);
    assert_eq!(import.child.wait().unwrap().code(), Some(1));
    let stderr = String::from_utf8(larder.read("stderr")).unwrap();
    assert!(stderr.starts_with("larder: ") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(larder.inventory(), before);
}
