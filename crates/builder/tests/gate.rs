//! What becomes of what was built: tested, tagged, described, signed. Offline; a guest that boots is in
//! `debian.rs`.

#[allow(dead_code, reason = "what the other tests need is there too")]
mod support;

use builder::gate::{CONSOLE, Gate, PLAN, RESULTS};
use builder::{BuildRequest, Built};
use catalog::VersionRecord;
use format::decode_description;
use model::{Kind, Result, TagName};
use repository::Verdict;
use repository::signing::NewKey;
use support::{Kitchen, small_kernel};

const CORE: &str = "disk.size = \"64M\"\n[[stage]]\nname = \"core\"\npackages = [\"tiny\"]\n";

/// A disk with a loader and a kernel that is none: it never boots.
const DEAD: &str = "disk = { size = \"64M\", boot = \"bios\", boot_size = \"17M\" }\n\
                    [[stage]]\nname = \"core\"\npackages = [\"kernel\"]\n";

fn build(kitchen: &Kitchen, tag: &str) -> Result<Built> {
    builder::build(
        &kitchen.repository,
        &BuildRequest {
            recipe: kitchen.path("recipe.toml"),
            tag: Some(TagName::new(tag).unwrap()),
            locked: false,
            update: false,
            shell_on_failure: false,
            state: kitchen.path("state"),
            tell: &|_| (),
            cancel: &kitchen.cancel,
        },
    )
}

fn version(kitchen: &Kitchen, reference: &str) -> Result<VersionRecord> {
    kitchen.repository.catalog().version(&reference.parse().unwrap())
}

fn key(kitchen: &Kitchen) -> NewKey {
    let key = NewKey::generate(None).unwrap();
    kitchen.write("lab.key", &key.secret);
    key
}

#[test]
fn a_version_that_fails_its_tests_has_no_tag_and_no_signature_and_keeps_what_was_found() {
    let kitchen = Kitchen::new();
    key(&kitchen);
    let test = "[[test]]\nname = \"boots\"\nlogin = true\nunits = [\"ssh\"]\ntimeout = \"4s\"\n";
    kitchen.recipe(&format!("{DEAD}{test}[sign]\nkey = \"lab.key\"\n"));
    let built = build(&kitchen, "good").unwrap();
    kitchen.nothing_is_left();
    let report = built.tests.unwrap();
    assert_eq!((report.passed(), report.failed()), (0, 1));
    let failed: Vec<_> = report.outcomes[0].checks.iter().map(|check| check.passed).collect();
    assert_eq!(failed, [false, false]);
    assert_eq!(built.signed_by, None);
    assert_eq!(version(&kitchen, "out:good").unwrap_err().kind(), Kind::NotFound);
    let made = version(&kitchen, "out").unwrap();
    let content = made.facts.content;
    for name in [PLAN, RESULTS, &format!("{CONSOLE}bios")] {
        assert!(kitchen.repository.document(content, name).unwrap().is_some(), "{name}");
    }
    let text = kitchen.repository.description(&made).unwrap();
    assert!(text.contains("[[test]]\nname = \"bios: boots\"\npassed = false\n"), "{text}");
    assert!(kitchen.repository.verify(&made, &[]).unwrap().is_empty());
    let gate = Gate {
        repository: &kitchen.repository,
        version: &made,
        state: &kitchen.path("state"),
        tell: &|_| (),
        cancel: &kitchen.cancel,
    };
    assert_eq!(gate.last_report().unwrap(), Some(report.clone()));
    // They are asked for again as they were; what failed is tested anew by the next build.
    let plan = gate.plan().unwrap();
    assert_eq!(plan.tests[0].units, ["ssh"]);
    let began = std::time::Instant::now();
    let again = build(&kitchen, "good").unwrap();
    assert!(!again.is_new && again.tests.unwrap().failed() == 1);
    assert!(began.elapsed().as_secs() >= 4, "it was booted again");
    kitchen.nothing_is_left();
}

#[test]
fn a_version_that_passes_its_tests_is_tagged_and_signed_and_not_booted_again() {
    let kitchen = Kitchen::new();
    key(&kitchen);
    let test = "[[test]]\nname = \"boots\"\nlogin = true\ntimeout = \"60s\"\n";
    let stage = "[[stage]]\nname = \"core\"\npackages = [\"small\"]\n[sign]\nkey = \"lab.key\"\n";
    let bios = "disk = { size = \"64M\", boot = \"bios\", boot_size = \"17M\" }\n";
    for (boot, disk) in [("direct", "disk.size = \"64M\"\n"), ("bios", bios)] {
        kitchen.recipe(&format!("{disk}{stage}{test}"));
        let built = build(&kitchen, boot).unwrap();
        kitchen.nothing_is_left();
        let report = built.tests.unwrap();
        assert_eq!((report.passed(), report.failed()), (1, 0), "{report:#?}");
        assert_eq!(report.outcomes[0].boot, boot);
        assert!(built.signed_by.is_some());
        let made = version(&kitchen, &format!("out:{boot}")).unwrap();
        let name = format!("{CONSOLE}{boot}");
        let kept = || kitchen.repository.document(made.facts.content, &name).unwrap().unwrap();
        let said = String::from_utf8(kept()).unwrap();
        assert!(said.contains("root=") && said.contains(small_kernel::PROMPT), "{said}");
        // Another boot would leave another log.
        kitchen.repository.keep_document(made.facts.content, &name, b"as it was".into()).unwrap();
        assert_eq!(build(&kitchen, boot).unwrap().tests.unwrap(), report);
        assert_eq!(kept(), b"as it was");
    }
}

#[test]
fn what_was_built_is_described_and_signed() {
    let kitchen = Kitchen::new();
    let key = key(&kitchen);
    let stage = "[[stage]]\nname = \"upper\"\nparent = \"core\"\npackages = [\"more\"]\n";
    kitchen.recipe(&format!("{CORE}{stage}[sign]\nkey = \"lab.key\"\n"));
    let built = build(&kitchen, "good").unwrap();
    assert_eq!(built.signed_by.as_deref(), Some(key.id.as_str()));
    let made = version(&kitchen, "out:good").unwrap();
    let trusted = [key.public.parse().unwrap()];
    let verified = || kitchen.repository.verify(&made, &trusted).unwrap()[0].clone();
    let signature = verified();
    assert_eq!(signature.verdict, Verdict::Good);
    let text = kitchen.repository.description(&made).unwrap();
    let described = decode_description(text.as_bytes()).unwrap();
    let names: Vec<_> = described.packages.iter().map(|package| package.name.as_str()).collect();
    assert!(names.contains(&"tiny") && names.contains(&"more"), "{names:?}");
    assert!(described.packages.iter().all(|package| package.digest.len() == 7 + 64));
    let stages: Vec<_> = described.build.unwrap().stages;
    assert_eq!(stages[1].key, built.stages[1].key);

    // Nothing changed: the signature is the one that was there.
    build(&kitchen, "good").unwrap();
    assert_eq!(verified(), signature);
    // What stands on it knows its packages.
    kitchen.recipe("[[stage]]\nname = \"top\"\nparent = \"out\"\nrun = [\"echo x > /etc/x\"]\n");
    build(&kitchen, "top").unwrap();
    let top = kitchen.repository.description(&version(&kitchen, "out:top").unwrap()).unwrap();
    assert_eq!(decode_description(top.as_bytes()).unwrap().packages, described.packages);
    // A description that was changed behind the signature is found out.
    let forged = text.replace("name = \"tiny\"", "name = \"tine\"").into_bytes();
    kitchen.repository.keep_document(made.facts.content, "description", forged).unwrap();
    assert!(matches!(verified().verdict, Verdict::Bad(_)));
}

#[test]
fn a_key_that_cannot_be_read_is_told_before_anything_is_built() {
    let kitchen = Kitchen::new();
    kitchen.recipe(&format!("{CORE}[sign]\nkey = \"none.key\"\n"));
    assert_eq!(kitchen.fails().kind(), Kind::NotFound);
    kitchen.write("none.key", "nonsense\n");
    kitchen.fails();
    assert!(kitchen.repository.catalog().images(&Default::default()).unwrap().is_empty());
}

#[test]
fn an_image_that_cannot_read_its_seed_is_refused_and_one_that_can_is_told_where_to_look() {
    let kitchen = Kitchen::new();
    let seeds = "[contextualization]\nseeds = [\"nocloud\", \"ec2\"]\n";
    kitchen.recipe(&format!("{CORE}{seeds}"));
    let error = kitchen.fails();
    assert!(error.to_string().contains("the image has nothing that reads `nocloud`"), "{error}");
    assert!(error.to_string().contains("line 7, column 10"), "{error}");
    let has = "files = [{ to = \"/usr/bin/cloud-init\", content = \"\" }]\n";
    kitchen.recipe(&format!("{CORE}{has}{seeds}"));
    let built = build(&kitchen, "good").unwrap();
    let made = version(&kitchen, "out:good").unwrap();
    assert_eq!(made.labels.values().next().map(String::as_str), Some("nocloud ec2"));
    assert!(built.is_new);
    let told = kitchen.ask("out", "cat /etc/cloud/cloud.cfg.d/95_larder.cfg");
    assert!(told.ends_with("datasource_list: [NoCloud, Ec2, None]\n"), "{told}");
}

#[test]
fn more_partitions_are_empty_file_systems_behind_the_systems() {
    let kitchen = Kitchen::new();
    let disk = "disk = { size = \"96M\", boot = \"bios\", boot_size = \"17M\", partitions = \
                [{ name = \"data\", size = \"32M\", mount = \"/srv/data\" }] }\n";
    kitchen.recipe(&format!(
        "{disk}[[stage]]\nname = \"core\"\npackages = [\"kernel\"]\n\
         [[stage]]\nname = \"b\"\nparent = \"core\"\nrun = [\"ls -d /srv/data > /etc/step\"]\n"
    ));
    kitchen.build();
    // 1 MiB table, 17 MiB boot, 45 MiB system, 32 MiB data, 1 MiB table.
    let inside = |offset: u64, question: &str| {
        kitchen.ask("out", "quit");
        let name = format!("{}?offset={}", kitchen.path("exported.raw").display(), offset << 20);
        let output =
            std::process::Command::new("debugfs").args(["-R", question, &name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(inside(18, "cat /etc/step"), "/srv/data\n");
    let table = inside(18, "cat /etc/fstab");
    assert!(table.lines().nth(1).is_some_and(|line| line.contains(" /srv/data ext4 ")), "{table}");
    assert!(inside(63, "ls /").contains("lost+found"));
    let id = inside(63, "stats -h");
    let id = id.lines().find_map(|line| line.strip_prefix("Filesystem UUID:")).unwrap().trim();
    assert!(table.contains(&format!("UUID={id} /srv/data")), "{table} {id}");
}
