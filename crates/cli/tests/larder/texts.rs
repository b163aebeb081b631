//! Texts that people read, beside golden files.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::harness::Larder;

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Compares a text with its golden file; with `LARDER_GOLDEN=write` the file becomes the text.
pub fn check(name: &str, text: &str) {
    let path = golden_folder().join(name);
    if std::env::var_os("LARDER_GOLDEN").is_some_and(|word| word == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (index, (line, golden)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(line, golden, "{name}, line {}", index + 1);
    }
    let lens = (text.lines().count(), expected.lines().count());
    assert_eq!(lens.0, lens.1, "{name}: one has more lines");
}

const COMMANDS: &[&str] = &[
    "import",
    "export",
    "create",
    "write",
    "append",
    "read",
    "list",
    "show",
    "key",
    "sign",
    "verify",
    "diff",
    "label",
    "tag",
    "clone",
    "remove",
    "attach",
    "detach",
    "mirrors",
    "commit",
    "resize",
    "run",
    "bake",
    "resume",
    "build",
    "test",
    "recipe",
    "stages",
    "suspend",
    "host",
    "scrub",
    "boot-set",
    "pin",
    "unpin",
    "report",
    "collect",
    "stats",
    "settings",
    "completions",
    "man",
];

#[test]
fn the_help_of_every_command_is_as_it_was_read() {
    let larder = Larder::new();
    let help = |line: &str| {
        let mut command = larder.command(line);
        command.env_remove("LARDER_REPO").env_remove("LARDER_STATE").env_remove("COLUMNS");
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "larder {line}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.trim_end().to_string() + "\n").collect::<String>()
    };
    let top = help("--help");
    check("help/larder.txt", &top);
    for command in COMMANDS.iter() {
        let text = help(&format!("{command} --help"));
        check(&format!("help/{command}.txt"), &text);
        assert!(top.contains(&format!("\n  {command} ")), "{command} is not in the help");
    }
    check("help/host-run.txt", &help("host run --help"));
    check("help/key-generate.txt", &help("key generate --help"));
    let listed = top.lines().skip_while(|line| *line != "Commands:").skip(1);
    assert_eq!(listed.take_while(|line| !line.is_empty()).count(), COMMANDS.len(), "{top}");
    let described = |pages: &str| larder.path(pages).join("larder-commit.1").exists();
    larder.run("man pages");
    assert!(described("pages"));
}

#[test]
fn what_is_misused_gets_usage_on_stderr_and_code_2() {
    let larder = Larder::new();
    let mut text = String::new();
    for line in [
        "",
        "imprt a b",
        "import",
        "import a.raw",
        "import a.raw Bad",
        "import a.raw a --tag x/y",
        "import a.raw a --input-format floppy",
        "show a@0",
        "show a@one",
        "show a:",
        "show @1",
        "list --label colour",
        "create a",
        "create a --length 1.5G",
        "export a out --output-format vdi",
        "write a x.raw",
        "write a x.raw --offset -1",
        "write a x.raw --offset 99999999999999999999",
        "write a@1 x.raw --offset 0",
        "append a",
        "read a --offset 0",
        "read a --offset 0 --length -5",
        "attach a --nbd ./s",
        "attach a --mirror M --nbd ./s",
        "attach a --mirror m --nbd nowhere",
        "commit m --to 12",
        "commit ../m",
        "attach a --mirror m --nbd ./s --fetch-timeout soon",
        "run a --cpus 0",
        "host",
        "host run --metrics nowhere",
        "host run --log loud",
        "run a --accel warp",
        "completions basic",
        "--format yaml list",
    ] {
        let outcome = larder.attempt(line);
        assert_eq!(outcome.code, Some(2), "larder {line}: {outcome:?}");
        assert!(outcome.stdout.is_empty(), "larder {line}");
        writeln!(text, "$ larder {line}").unwrap();
        // The first line says what is wrong; the rest is usage, which the helps show.
        match line {
            "" | "host" => writeln!(text, "(the help)").unwrap(),
            _ => writeln!(text, "{}", outcome.stderr.lines().next().unwrap()).unwrap(),
        }
        assert!(!larder.path("repo").exists(), "larder {line} made a repository");
        assert!(!larder.path("state").exists(), "larder {line} made a state folder");
    }
    check("misuse.txt", &text);
}
