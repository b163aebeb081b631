//! `larder build`: killed in the middle, entered where a step fails, errors as a user meets them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{LIMIT, Larder, Process};

/// The archive of tiny packages that the builder's tests use, made once.
pub fn archive() -> PathBuf {
    let script = include_str!("../../../builder/tests/support/archive.sh");
    let name = blake3::hash(script.as_bytes()).to_hex();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("archive-{}", &name[..12]));
    if !folder.exists() {
        let new = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = Command::new("bash");
        let made = command.args(["-c", script, "archive"]).arg(new.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Another test may have been quicker.
        let _quicker = std::fs::rename(new.path(), &folder);
    }
    folder
}

/// Writes `out.toml`: a core, and what is said of the stage upon it.
fn write_recipe(larder: &Larder, top: &str) {
    let archive = archive();
    let archive = archive.display();
    let text = format!(
        "name = \"out\"\ndisk.size = \"64M\"\n\
         [distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n\
         [[archive]]\nurl = \"file://{archive}\"\nsigned_by = \"{archive}/keys.gpg\"\n\
         [[stage]]\nname = \"core\"\npackages = [\"tiny\"]\n\
         [[stage]]\nname = \"top\"\nparent = \"core\"\n{top}\n"
    );
    larder.write("out.toml", text.as_bytes());
}

/// What of a build there is on this machine: mounts, loop devices, processes, folders for work.
fn left(larder: &Larder) -> Vec<String> {
    let home = larder.path("").display().to_string();
    let home = home.trim_end_matches('/');
    let mut left = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    left.extend(mounts.lines().filter(|line| line.contains(home)).map(str::to_owned));
    for device in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let file = device.path().join("loop/backing_file");
        let file = std::fs::read_to_string(file).unwrap_or_default();
        left.extend(file.contains(home).then(|| format!("loop device of {file}")));
    }
    left.extend(processes(home));
    for entry in std::fs::read_dir(larder.path("state/build")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        left.extend(name.starts_with("work-").then_some(name));
    }
    left
}

fn processes(home: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        found.extend(line.contains(home).then(|| format!("process {line}")));
    }
    found
}

fn log(larder: &Larder, stage: &str) -> String {
    let path = larder.path(format!("state/build/logs/out-{stage}.log"));
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Kills a build once a log says this; everything that it has started must end by itself.
fn kill_when(larder: &Larder, stage: &str, says: &str) {
    let mut command = larder.command("build out.toml");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut build = Process::start(&mut command);
    assert!(build.runs_until(|| log(larder, stage).contains(says)), "{}", log(larder, stage));
    build.kill();
    let home = larder.path("").display().to_string();
    let began = std::time::Instant::now();
    loop {
        let alive = processes(home.trim_end_matches('/'));
        if alive.is_empty() {
            return;
        }
        assert!(began.elapsed() < LIMIT, "{alive:#?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_build_that_was_killed_is_cleared_up_by_the_next_which_goes_on() {
    let larder = Larder::new();
    write_recipe(&larder, "run = [\"echo in the step; sleep 1000 & sleep 1000\"]");
    // While a first stage is unpacked, in a step of a stage upon it, and there again.
    kill_when(&larder, "core", "unpacking");
    kill_when(&larder, "top", "in the step");
    assert!(!left(&larder).is_empty(), "a killed build has left something, or this tests nothing");
    kill_when(&larder, "top", "in the step");
    write_recipe(&larder, "run = [\"true\"]");
    let built = larder.json("build out.toml");
    assert_eq!(built["stages"][0]["cached"], true, "{built}");
    assert_eq!(left(&larder), [""; 0]);
    // The holds are gone too: all can be collected.
    larder.run("remove out");
    for stage in larder.json("stages list")["stages"].as_array().unwrap() {
        larder.run(&format!("stages evict {} --apply", stage["key"].as_str().unwrap()));
    }
    larder.run("collect --apply --quiet --lease-seconds 1");
    assert_eq!(larder.json("stats")["data_bytes"], 0);
}

#[test]
fn a_stage_that_failed_can_be_entered_and_the_mended_recipe_goes_on_there() {
    let larder = Larder::new();
    write_recipe(&larder, "run = [\"echo made by the step > /made; exit 3\"]");
    let outcome = larder.run_with_input(
        "build --shell-on-failure out.toml",
        b"cat /made; ls /usr/share/tiny; mount -t tmpfs none /mnt || echo contained\nexit\n",
    );
    let said = format!("{}{}", String::from_utf8_lossy(&outcome.stdout), outcome.stderr);
    for expected in ["made by the step", "version", "contained", "ended with exit status: 3"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert_eq!(outcome.code, Some(1));
    assert_eq!(left(&larder), [""; 0]);
    write_recipe(&larder, "run = [\"! test -e /made\"]");
    assert_eq!(larder.json("build out.toml")["stages"][0]["cached"], true);
}

#[test]
fn what_is_wrong_with_a_build_is_told_in_a_line_with_its_place() {
    let larder = Larder::new();
    write_recipe(&larder, "packges = []");
    let failure = larder.fails("build --quiet out.toml");
    assert_eq!(
        failure.message,
        "read the recipe out.toml: line 15, column 1: unknown key `packges`"
    );
    assert_eq!(failure.hint.unwrap(), "did you mean `packages`?");

    write_recipe(
        &larder,
        "[[stage]]\nname = \"b\"\nparent = \"c\"\n[[stage]]\nname = \"c\"\nparent = \"b\"",
    );
    let failure = larder.fails("build --quiet out.toml");
    assert!(failure.message.contains("line 16, column 8: stages stand on each other: b on c on b"));

    write_recipe(&larder, "");
    larder.run("build out.toml");
    write_recipe(&larder, "packages = [\"more\"]");
    let failure = larder.fails("build --quiet --locked out.toml");
    assert!(failure.message.ends_with("the lock is not for what stage `top` asks"), "{failure:?}");
    assert!(failure.hint.unwrap().contains("without `--locked`"));

    write_recipe(&larder, "packages = [\"nosuch\"]");
    let failure = larder.fails("build --quiet out.toml");
    assert!(
        failure
            .message
            .contains("line 15, stage `top`: there is no package `nosuch` in the archives"),
        "{failure:?}"
    );

    write_recipe(&larder, "run = [\"echo last words; false\"]");
    let failure = larder.fails("build --quiet out.toml");
    assert!(
        failure.message.ends_with(
            "line 15, stage `top`: the step `echo last words; false` ended with exit status: 1: last words"
        ),
        "{failure:?}"
    );
    assert!(failure.hint.unwrap().contains("--shell-on-failure"));
    assert_eq!(left(&larder), [""; 0]);
}

#[test]
fn stages_are_pinned_and_evicted_to_a_limit_and_images_stay() {
    let larder = Larder::new();
    write_recipe(&larder, "files = [{ to = \"/etc/motd\", content = \"one\" }]");
    larder.run("build out.toml");
    write_recipe(&larder, "files = [{ to = \"/etc/motd\", content = \"two\" }]");
    larder.run("build out.toml");
    let stages = larder.json("stages list")["stages"].as_array().unwrap().clone();
    let names: Vec<_> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let core = stages.iter().find(|stage| stage["name"] == "core").unwrap();
    let core_key = core["key"].as_str().unwrap();
    larder.run(&format!("stages pin {}", &core_key[..10]));
    let failure = larder.fails(&format!("stages evict {core_key} --apply"));
    assert!(failure.message.ends_with("it is pinned"), "{failure:?}");
    assert!(failure.hint.unwrap().starts_with("larder stages unpin"));

    // A plan changes nothing; the older of the two goes first; the pinned one stays.
    let limit = stages.iter().map(|stage| stage["stored_bytes"].as_u64().unwrap()).sum::<u64>() - 1;
    let plan = larder.json(&format!("stages evict --max {limit}"));
    assert_eq!(plan["stages"].as_array().unwrap().len(), 1);
    assert_eq!(larder.json("stages list")["stages"].as_array().unwrap().len(), 3);
    let gone = larder.json(&format!("stages evict --max {limit} --apply"));
    assert_eq!(gone["stages"], plan["stages"]);
    assert_ne!(gone["stages"][0]["key"], stages[0]["key"], "the one used last stays");
    larder.run("stages evict --max 0 --apply");
    let rest = larder.json("stages list");
    assert_eq!(rest["stages"].as_array().unwrap().len(), 1);
    assert_eq!(rest["stages"][0]["key"], core_key);

    // Images do not need them, and the next build makes them again.
    larder.run("collect --apply --quiet --lease-seconds 1");
    larder.run("export out@1 one.raw");
    assert_eq!(larder.shell("debugfs -R 'cat /etc/motd' one.raw 2>/dev/null"), "one");
    let again = larder.json("build out.toml");
    assert_eq!(again["stages"][0]["cached"], true);
    assert_eq!(again["stages"][1]["cached"], false);
    assert_eq!(again["stages"][1]["why"], "it was not built before, or is no longer kept");
    larder.run(&format!("stages unpin {core_key}"));
    larder.run(&format!("stages evict {core_key} --apply"));
}
