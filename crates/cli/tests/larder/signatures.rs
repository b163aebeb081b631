//! Who vouches for a version: keys, signatures, and hosts that ask for them.

use std::process::Command;

use crate::harness::Larder;

/// A repository with an image, and two keys.
fn signed() -> Larder {
    let larder = Larder::new();
    larder.write("disk", &vec![7; 300_000]);
    larder.run("import disk web");
    larder.run("key generate mine --no-password");
    larder.run("key generate other --no-password");
    larder.run("sign web --key mine.key");
    larder
}

/// Says in the settings whose signature this host asks for.
fn require(larder: &Larder, public_key_file: &str) {
    std::fs::create_dir_all(larder.path("home/.config/larder")).unwrap();
    let path = larder.path(public_key_file);
    let text = format!("require_signature_by = [{:?}]\n", path.display().to_string());
    larder.write("home/.config/larder/settings.toml", text.as_bytes());
}

#[test]
fn a_signature_is_verified_here_and_by_minisign_and_clones_have_it() {
    let larder = signed();
    larder.run("clone web copy");
    let told = larder.json("verify copy --key mine.pub --export out");
    assert_eq!((told["passed"].as_u64(), told["failed"].as_u64()), (Some(1), Some(0)));
    let signature = &told["signatures"][0];
    assert_eq!(signature["verdict"], "good");
    assert!(signature["comment"].as_str().unwrap().starts_with("web@1 signed 20"), "{told}");
    let id = signature["key_id"].as_str().unwrap();
    assert_eq!(larder.json("show copy")["signed_by"][0], id);
    let described = larder.run("show copy --description");
    let digest = larder.json("show web")["digest"].as_str().unwrap().to_string();
    assert!(described.contains(&format!("content = \"{digest}\"")), "{described}");
    let verified = |text: &str| {
        larder.write("out/description.toml", text.as_bytes());
        let mut minisign = Command::new("minisign");
        minisign.args(["-Vq", "-p", "mine.pub", "-m", "out/description.toml", "-x"]);
        minisign.arg(format!("out/description.{id}.minisig"));
        minisign.current_dir(larder.path("")).status().unwrap().success()
    };
    let text = String::from_utf8(larder.read("out/description.toml")).unwrap();
    assert!(verified(&text));
    assert!(!verified(&text.replace("length = 300000", "length = 300001")));
}

#[test]
fn keys_of_minisign_sign_here_and_passwords_are_asked_for() {
    let larder = signed();
    larder.write("password", b"secret\n");
    let made = larder.json("key generate locked --password-file password");
    assert_eq!(made["key_id"].as_str().unwrap().len(), 16);
    let failure = larder.fails("sign web --key locked.key");
    assert!(failure.hint.unwrap().contains("--password-file"));
    larder.run("sign web --key locked.key --password-file password");
    larder.write("wrong", b"guess\n");
    larder.fails("sign web --key locked.key --password-file wrong");
    let made = Command::new("minisign")
        .args(["-GW", "-p", "theirs.pub", "-s", "theirs.key"])
        .current_dir(larder.path(""))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    larder.run("sign web --key theirs.key");
    let told = larder.json("verify web --key theirs.pub --key locked.pub");
    assert_eq!((told["passed"].as_u64(), told["failed"].as_u64()), (Some(2), Some(1)));
    larder.fails("key generate mine --no-password");
    larder.fails("sign web --key mine.pub");
}

#[test]
fn a_host_that_asks_for_a_signature_serves_nothing_without_one() {
    let larder = signed();
    larder.write("disk", &vec![8; 300_000]);
    larder.run("import disk unsigned");
    require(&larder, "mine.pub");
    larder.attach("web --mirror good --nbd ./socket").stop();
    let failure = larder.fails("attach unsigned --mirror bad --nbd ./socket");
    assert!(failure.message.contains("it has no signature"), "{failure:?}");
    assert!(larder.json("mirrors")["mirrors"].as_array().unwrap().len() == 1);
    // What a guest changed under a mirror that was let in may be served on.
    larder.run("commit good");
    larder.attach("web --mirror good --nbd ./socket").stop();
    require(&larder, "other.pub");
    let failure = larder.fails("attach web@1 --mirror late --nbd ./socket");
    assert!(failure.message.contains("by a key that is not named"), "{failure:?}");
    let outcome = larder.attempt("verify web@1");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("none of the keys has signed it"), "{}", outcome.stderr);
    larder.write("home/.config/larder/settings.toml", b"require_signature_by = [\"nonsense\"]\n");
    larder.fails("attach web@1 --mirror late --nbd ./socket");
}

#[test]
fn signatures_outlive_a_collect_and_the_loss_of_the_catalog() {
    let larder = signed();
    larder.run("create gone --length 4096");
    larder.run("remove gone");
    larder.run("collect --apply");
    larder.run("verify web --key mine.pub");
    assert_eq!(larder.json("scrub")["missing"], 0);
    // The export is older than the signature unless it is written anew.
    std::fs::remove_file(larder.path("repo/catalog.export")).unwrap();
    larder.run("tag web stable");
    std::fs::remove_file(larder.path("repo/catalog.sqlite")).unwrap();
    larder.run("scrub --rebuild");
    larder.run("verify web:stable --key mine.pub");
}
