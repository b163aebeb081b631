//! Who a guest is to be, and whether it boots: `larder run` with a seed, `larder test`. Guests are a
//! sector long; real ones are tested by `recipes/debian-12/cloud.toml`.

use std::fs::File;
use std::process::Stdio;

use crate::harness::{LIMIT, Larder, Process};

/// A disk that reads the volume name of the second disk, says it on the serial port, and resets the
/// machine.
///
/// ```text
///   xor ax, ax ; mov ds, ax ; mov ah, 0x42 ; mov dl, 0x81 ; mov si, packet ; int 0x13
///   mov dx, 0x3f8 ; mov si, 0x8028 ; mov cx, 32 ; say: lodsb ; out dx, al ; loop say
///   mov al, 0xfe ; out 0x64, al ; hang: jmp hang
///   packet: one sector, to 0:0x8000, from 64
/// ```
fn reading_disk() -> Vec<u8> {
    const CODE: [u8; 48] = [
        0x31, 0xc0, 0x8e, 0xd8, 0xb4, 0x42, 0xb2, 0x81, 0xbe, 0x20, 0x7c, 0xcd, 0x13, // read
        0xba, 0xf8, 0x03, 0xbe, 0x28, 0x80, 0xb9, 0x20, 0x00, 0xac, 0xee, 0xe2, 0xfc, // say
        0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe, // reset
        0x10, 0, 1, 0, 0x00, 0x80, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, // packet
    ];
    disk(&CODE)
}

/// A disk that says a text on the serial port, and hangs.
///
/// ```text
///   xor ax, ax ; mov ds, ax ; mov dx, 0x3f8 ; mov si, text
///   say: lodsb ; test al, al ; jz hang ; out dx, al ; jmp say ; hang: jmp hang
/// ```
fn saying_disk(text: &str) -> Vec<u8> {
    const CODE: [u8; 20] = [
        0x31, 0xc0, 0x8e, 0xd8, 0xba, 0xf8, 0x03, 0xbe, 0x14, 0x7c, // set up
        0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // say
        0xeb, 0xfe, // hang
    ];
    disk(&[&CODE, text.as_bytes()].concat())
}

fn disk(code: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..code.len()].copy_from_slice(code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

fn with(disk: &[u8]) -> Larder {
    let larder = Larder::new();
    larder.write("disk.raw", disk);
    larder.json("import disk.raw guest");
    larder.write("me.pub", b"ssh-ed25519 AAAA me@here\n");
    larder.write("do.sh", b"#!/bin/sh\necho hello\n");
    larder
}

#[test]
fn a_guest_finds_its_seed_on_its_second_disk() {
    let larder = with(&reading_disk());
    let said = |line: &str| {
        let file = File::create(larder.path("said")).unwrap();
        let mut command =
            larder.command(&format!("run guest --memory 32M --accel tcg --ssh-key me.pub {line}"));
        let mut guest = Process::start(command.stdin(Stdio::null()).stdout(file));
        assert!(guest.ends_within(LIMIT));
        assert_eq!(guest.child.wait().unwrap().code(), Some(0), "{line}");
        String::from_utf8_lossy(&larder.read("said")).into_owned()
    };
    for (line, name) in
        [("--user-data do.sh", "cidata  "), ("--hostname web --seed configdrive", "config-2  ")]
    {
        let text = said(line);
        assert!(text.contains(name), "{line}: {text:?}");
    }
    assert!(!said("--seed credentials").contains("cidata"));
    larder.run("label guest contextualization=configdrive");
    assert!(said("").contains("config-2  "));
}

#[test]
fn what_no_seed_takes_is_refused() {
    let larder = with(&reading_disk());
    let refused = |line: &str, with: &str| {
        let failure = larder.fails(&format!("run guest --accel tcg {line}"));
        assert!(failure.message.contains(with), "{line}: {failure:?}");
        assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
    };
    larder.write("secret", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n");
    larder.write("empty", b"# nothing\n");
    refused("--hostname a_b", "host name");
    refused("--ssh-key do.sh", "it is no file of public keys");
    refused("--ssh-key empty", "it is no file of public keys");
    refused("--ssh-key secret", "it is a secret key");
    refused("--ssh-key missing", "missing");
    refused("--seed credentials --user-data do.sh", "only the disk of a seed holds them");
    refused("--seed configdrive --meta-data do.sh", "only NoCloud takes more of it");
    refused("--seed none --hostname web", "`--seed none` gives it nothing");
}

#[test]
fn a_version_without_tests_is_tested_for_its_prompt() {
    let larder = with(&saying_disk("guest login: "));
    let failure = larder.fails("test guest --last");
    assert!(failure.message.ends_with("it was not tested"), "{failure:?}");
    let told = larder.json("test guest --export out");
    assert_eq!((&told["passed"], &told["failed"]), (&1.into(), &0.into()));
    assert_eq!(told["tests"][0]["checks"][0]["what"], "login prompt");
    assert_eq!(told["tests"][0]["boot"], "bios");
    let console = String::from_utf8(larder.read("out/console-bios.log")).unwrap();
    assert!(console.contains("guest login: "), "{console}");
    let last = larder.json("test guest --last");
    assert_eq!(last["tests"], told["tests"]);

    // By tests that it cannot pass: an error, kept too; and these are its tests from now on.
    larder.write(
        "recipe.toml",
        b"name = \"guest\"\n[distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n\
          [[stage]]\nname = \"x\"\nparent = \"guest\"\n\
          [[test]]\nname = \"serves\"\nlogin = true\nports = [80]\ntimeout = \"20s\"\n",
    );
    let outcome = larder.attempt("test guest --recipe recipe.toml --quiet");
    assert_eq!(outcome.code, Some(1));
    let first = "1 of 1 failed; first `serves` (bios): port 80: nobody can look into the guest";
    assert!(outcome.stderr.contains(first), "{outcome:?}");
    let outcome = larder.attempt("test guest --last --format json");
    assert_eq!(outcome.code, Some(1));
    let kept: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!((&kept["passed"], &kept["failed"]), (&0.into(), &1.into()));
    assert_eq!(kept["tests"][0]["checks"][0]["passed"], true);
    assert_eq!(larder.json("mirrors")["mirrors"], serde_json::json!([]));
}
