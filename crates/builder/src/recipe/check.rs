//! What types cannot say of a recipe: that its stages are a chain, that its words have a meaning.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::name::LabelKey;
use model::{ImageName, Reference, Result};
use toml::Spanned;

use super::read::nearest;
use super::{Boot, DISTRIBUTIONS, Family, Place, Recipe, SEEDS, Stage, Test};

const OPERATION: &str = "check the recipe";
const MIB: u64 = 1 << 20;

/// Smaller disks hold no system.
const DISK_LEN_MIN: u64 = 16 * MIB;

/// No step runs longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

const ARCHITECTURES: [&str; 3] = ["amd64", "i386", "arm64"];

/// Checks a recipe.
pub(super) fn check(recipe: &Recipe, place: &Place) -> Result<()> {
    let at = |span: &Spanned<String>, reason: String| {
        Err(place.error(OPERATION, span.span().start, reason))
    };
    if let Err(error) = ImageName::new(recipe.name.get_ref()) {
        return at(&recipe.name, error.to_string());
    }
    for (key, value) in &recipe.labels {
        if let Err(error) = LabelKey::new(key) {
            return at(value, error.to_string());
        }
    }
    one_of(place, "distribution", &recipe.distribution.id, &DISTRIBUTIONS)?;
    one_of(place, "architecture", &recipe.distribution.arch, &ARCHITECTURES)?;
    let release = &recipe.distribution.release;
    if !is_word(release.get_ref()) {
        return at(release, format!("`{}` is no release's code name", release.get_ref()));
    }
    let family = recipe.distribution.family();
    if family == Family::Rpm {
        check_rpm(recipe, place)?;
    }
    for archive in &recipe.archive {
        if let Some(url) = &archive.url
            && (!url.get_ref().contains(':') || url.get_ref().contains(char::is_whitespace))
        {
            return at(url, format!("`{}` is no address", url.get_ref()));
        }
    }
    chain(recipe, place)?;
    recipe.stage.iter().try_for_each(|stage| check_stage(stage, family, place))?;
    check_disk(recipe, place)?;
    recipe.test.iter().try_for_each(|test| check_test(recipe, test, place))?;
    check_names_of_tests(recipe, place)?;
    if let Some(contextualization) = &recipe.contextualization {
        for word in &contextualization.seeds {
            one_of(place, "seed", word, &SEEDS)?;
        }
    }
    for word in [&recipe.system.hostname, &recipe.system.timezone].into_iter().flatten() {
        if word.get_ref().is_empty() || word.get_ref().contains(['\n', ' ']) {
            return at(word, format!("`{}` is no name", word.get_ref()));
        }
    }
    Ok(())
}

fn one_of(place: &Place, what: &str, word: &Spanned<String>, known: &[&str]) -> Result<()> {
    if known.contains(&word.get_ref().as_str()) {
        return Ok(());
    }
    let error = place.error(
        OPERATION,
        word.span().start,
        format!("`{}` is no {what} that can be built", word.get_ref()),
    );
    let all = known.join(", ");
    Err(match nearest(word.get_ref(), known.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`? Known: {all}")),
        None => error.hint(format!("known: {all}")),
    })
}

/// What can be said of releases and archives only where packages are rpm.
fn check_rpm(recipe: &Recipe, place: &Place) -> Result<()> {
    let wrong = |span: &Spanned<String>, reason: String, hint: &str| {
        Err(place.error(OPERATION, span.span().start, reason).hint(hint))
    };
    let distribution = &recipe.distribution;
    let (id, release) = (distribution.id.get_ref(), distribution.release.get_ref());
    let Some(number) = distribution.number() else {
        let reason = format!("`{release}` is no release of {id}");
        return wrong(&distribution.release, reason, "write its number: `9`, `43`");
    };
    // Since these the database of packages is SQLite's; an rpm that writes the older one is gone.
    let oldest = if id == "fedora" { 33 } else { 9 };
    if number < oldest {
        let reason =
            format!("{id} {release} keeps its packages in a database that cannot be written here");
        return wrong(&distribution.release, reason, &format!("the oldest is {oldest}"));
    }
    if distribution.arch.get_ref() == "i386" {
        return wrong(&distribution.arch, format!("{id} has no release for i386"), "write `amd64`");
    }
    for archive in &recipe.archive {
        if let (Some(url), None) = (&archive.url, &archive.signed_by) {
            let reason = "it is not said with which keys its packages are signed";
            return wrong(url, reason.into(), "`signed_by` names the file with an archive's keys");
        }
        if let (Some(suite), Some(url)) = (&archive.suite, &archive.url) {
            let reason = format!("an archive of rpm packages has no suite `{suite}`");
            return wrong(url, reason, "put it into `url`, which may have `$releasever` in it");
        }
    }
    Ok(())
}

/// Checks that the stages are one chain that ends with the last.
fn chain(recipe: &Recipe, place: &Place) -> Result<()> {
    let Some(last) = recipe.stage.last() else {
        return Err(place.error(OPERATION, 0, "it has no stage").hint("add a `[[stage]]`"));
    };
    let mut names = BTreeMap::new();
    for stage in &recipe.stage {
        let name = stage.name.get_ref();
        if !is_word(name) {
            let reason = format!("a stage cannot be called `{name}`");
            return Err(place.error(OPERATION, stage.name.span().start, reason));
        }
        if names.insert(name.as_str(), stage).is_some() {
            let reason = format!("there are two stages `{name}`");
            return Err(place.error(OPERATION, stage.name.span().start, reason));
        }
    }
    for stage in &recipe.stage {
        if let Some(parent) = &stage.parent
            && !names.contains_key(parent.get_ref().as_str())
            && let Err(error) = parent.get_ref().parse::<Reference>()
        {
            let reason = format!("the parent is neither a stage nor a version: {error}");
            return Err(place.error(OPERATION, parent.span().start, reason));
        }
    }
    cycles(recipe, &names, place)?;
    let mut used = BTreeSet::from([last.name.get_ref().as_str()]);
    let mut at = last;
    while let Some(above) = parent_stage(at, &names) {
        used.insert(above.name.get_ref());
        at = above;
    }
    for (index, stage) in recipe.stage.iter().enumerate() {
        let name = stage.name.get_ref().as_str();
        if !used.contains(name) {
            let reason = format!("nothing stands on the stage `{name}`, and it is not the last");
            return Err(place.error(OPERATION, stage.name.span().start, reason));
        }
        let stands_on = recipe.stage[..index].last().map(|stage| stage.name.get_ref());
        let says = parent_stage(stage, &names).map(|stage| stage.name.get_ref());
        if stands_on != says {
            let reason = format!("the stage `{name}` does not follow its parent");
            return Err(place
                .error(OPERATION, stage.name.span().start, reason)
                .hint("put each stage behind its parent; only the first has none"));
        }
    }
    Ok(())
}

fn parent_stage<'a>(stage: &Stage, names: &BTreeMap<&str, &'a Stage>) -> Option<&'a Stage> {
    names.get(stage.parent.as_ref()?.get_ref().as_str()).copied()
}

fn cycles(recipe: &Recipe, names: &BTreeMap<&str, &Stage>, place: &Place) -> Result<()> {
    for stage in &recipe.stage {
        let mut path = vec![stage.name.get_ref().as_str()];
        let mut at = stage;
        while let Some(above) = parent_stage(at, names) {
            let name = above.name.get_ref().as_str();
            let met = path.contains(&name);
            path.push(name);
            if met {
                let reason = format!("stages stand on each other: {}", path.join(" on "));
                return Err(place.error(OPERATION, stage.name.span().start, reason));
            }
            at = above;
        }
    }
    Ok(())
}

fn check_stage(stage: &Stage, family: Family, place: &Place) -> Result<()> {
    let is_rpm = family == Family::Rpm;
    let is_case = |c: char| c.is_ascii_lowercase() || is_rpm && c.is_ascii_uppercase();
    let fits = |c: char| is_case(c) || c.is_ascii_digit() || "+-.:_".contains(c);
    let groups = stage.packages.iter().filter(|name| is_rpm && name.get_ref().starts_with('@'));
    let groups: Vec<_> = groups.collect();
    for package in stage.packages.iter().chain(&stage.exclude_packages) {
        let name = match groups.iter().any(|group| group.span() == package.span()) {
            true => &package.get_ref()[1..],
            false => package.get_ref(),
        };
        let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || !name.chars().all(fits) || name.ends_with(['-', '+']) && name.len() < 3 {
            let reason = format!("`{name}` is no package's name");
            return Err(place.error(OPERATION, package.span().start, reason));
        }
    }
    for file in &stage.files {
        let (start, file) = (file.span().start, file.get_ref());
        let wrong = if !is_inside(&file.to) {
            Some(format!("`{}` is no absolute path without `..`", file.to))
        } else if file.contents().is_none() {
            Some(format!("`{}` needs `from` or `content`, and not both", file.to))
        } else if file.mode_bits().is_none() {
            Some(format!("`{}` are no permissions in octal", file.mode))
        } else {
            None
        };
        if let Some(reason) = wrong {
            return Err(place.error(OPERATION, start, reason));
        }
    }
    for user in &stage.users {
        let (start, user) = (user.span().start, user.get_ref());
        let texts =
            [Some(&user.name), user.home.as_ref(), Some(&user.shell), user.password.as_ref()];
        let breaks = texts.into_iter().flatten().any(|text| text.contains([':', '\n']));
        if !is_word(&user.name) || breaks || user.home.as_ref().is_some_and(|home| !is_inside(home))
        {
            let reason = format!("the user `{}` cannot be written to /etc/passwd", user.name);
            return Err(place.error(OPERATION, start, reason));
        }
    }
    for step in &stage.run {
        let (start, step) = (step.span().start, step.get_ref());
        if step.command.is_some() == step.script.is_some() {
            let reason = "a step needs `command` or `script`, and not both";
            return Err(place.error(OPERATION, start, reason));
        }
        if duration(&step.timeout).is_none_or(|limit| limit.is_zero() || limit > TIMEOUT_MAX) {
            let reason = format!("`{}` is no time limit", step.timeout);
            return Err(place.error(OPERATION, start, reason).hint("write `30s`, `10m` or `2h`"));
        }
    }
    for path in &stage.keep {
        if !is_inside(path.get_ref()) {
            let reason = format!("`{}` is no absolute path without `..`", path.get_ref());
            return Err(place.error(OPERATION, path.span().start, reason));
        }
    }
    Ok(())
}

fn check_names_of_tests(recipe: &Recipe, place: &Place) -> Result<()> {
    let mut names = BTreeSet::new();
    for test in &recipe.test {
        let name = test.name.get_ref();
        if !names.insert(name) {
            let reason = format!("there are two tests `{name}`");
            return Err(place.error(OPERATION, test.name.span().start, reason));
        }
    }
    Ok(())
}

fn check_test(recipe: &Recipe, test: &Test, place: &Place) -> Result<()> {
    let wrong = |span: &Spanned<String>, reason: String| {
        Err(place.error(OPERATION, span.span().start, reason))
    };
    let name = test.name.get_ref();
    if !crate::gate::is_test_name(name) {
        return wrong(&test.name, format!("a test cannot be called `{name}`"));
    }
    let has_script = test.command.is_some() || test.script.is_some();
    let looks = test.login || has_script || test.seed.is_some();
    if !looks && test.units.is_empty() && test.ports.is_empty() {
        let error = place.error(
            OPERATION,
            test.name.span().start,
            format!("the test `{name}` looks at nothing"),
        );
        return Err(error.hint("give it `login`, `units`, `ports`, `command`, `script` or `seed`"));
    }
    if let (Some(_), Some(script)) = (&test.command, &test.script) {
        return wrong(script, "a test has `command` or `script`, and not both".into());
    }
    if let Some(unit) = test.units.iter().find(|unit| !crate::gate::is_unit(unit.get_ref())) {
        return wrong(unit, format!("`{}` is no unit's name", unit.get_ref()));
    }
    if test.ports.contains(&0) {
        return wrong(&test.name, "nobody listens at port 0".into());
    }
    if let Some(seed) = &test.seed {
        one_of(place, "seed", seed, &SEEDS)?;
        let known = recipe.contextualization.as_ref().map(|known| &known.seeds);
        let is_known =
            known.is_none_or(|known| known.iter().any(|word| word.get_ref() == seed.get_ref()));
        if !is_known {
            let reason = format!("`{}` is not in `[contextualization]`", seed.get_ref());
            return wrong(seed, reason);
        }
    }
    let limit = duration(test.timeout.get_ref());
    if limit.is_none_or(|limit| limit.is_zero() || limit > TIMEOUT_MAX) {
        let reason = format!("`{}` is no time limit", test.timeout.get_ref());
        let error = place.error(OPERATION, test.timeout.span().start, reason);
        return Err(error.hint("write `30s`, `10m` or `2h`"));
    }
    if recipe.distribution.arch.get_ref() == "arm64" {
        return wrong(&test.name, "an arm64 image cannot be run here".into());
    }
    Ok(())
}

fn check_disk(recipe: &Recipe, place: &Place) -> Result<()> {
    let stands_on_version = recipe.stage.first().is_some_and(|stage| stage.parent.is_some());
    if let (Some(disk), true) = (&recipe.disk, stands_on_version) {
        let reason = "the disk is that of the version that the first stage stands on";
        return Err(place.error(OPERATION, disk.span().start, reason));
    }
    let disk = recipe.disk_or_default();
    let start = recipe.disk.as_ref().map_or(0, |disk| disk.span().start);
    let arch = recipe.distribution.arch.get_ref().as_str();
    let boots: &[Boot] = match arch {
        "i386" => &[Boot::Direct, Boot::Bios],
        "arm64" => &[Boot::Direct],
        _ => &[Boot::Direct, Boot::Bios, Boot::Uefi],
    };
    if !boots.contains(&disk.boot) {
        let error =
            place.error(OPERATION, start, format!("no loader for {arch} is known for this `boot`"));
        let hint = if arch == "i386" { "`boot = \"bios\"` or" } else { "say" };
        return Err(error.hint(format!("{hint} `boot = \"direct\"`")));
    }
    let read = |text: &Spanned<String>| {
        len(text.get_ref()).filter(|len| len.is_multiple_of(MIB)).ok_or_else(|| {
            let reason = format!("`{}` is no size in whole MiB", text.get_ref());
            place.error(OPERATION, text.span().start, reason).hint("write `512M` or `2G`")
        })
    };
    let (whole, boot) = (read(&disk.size)?, read(&disk.boot_size)?);
    let needed =
        if disk.boot == Boot::Direct { DISK_LEN_MIN } else { boot.saturating_add(DISK_LEN_MIN) };
    let mut needed = needed;
    for partition in &disk.partitions {
        let (name, mount) = (&partition.name, &partition.mount);
        let wrong = |span: &Spanned<String>, reason: String| {
            Err(place.error(OPERATION, span.span().start, reason))
        };
        if disk.boot == Boot::Direct {
            let reason = "a disk with `boot = \"direct\"` has no partitions";
            return wrong(name, reason.into());
        }
        let twice = disk.partitions.iter().filter(|other| other.name.get_ref() == name.get_ref());
        let is_taken = ["boot", "root"].contains(&name.get_ref().as_str()) || twice.count() > 1;
        if !is_word(name.get_ref()) || name.get_ref().len() > 36 || is_taken {
            return wrong(name, format!("a partition cannot be called `{}`", name.get_ref()));
        }
        if !is_inside(mount.get_ref()) || mount.get_ref().contains([' ', '\t', '\\']) {
            return wrong(mount, format!("nothing is mounted at `{}`", mount.get_ref()));
        }
        let len = read(&partition.size)?;
        if len < DISK_LEN_MIN {
            let reason = format!("a partition of `{}` cannot be made", partition.size.get_ref());
            return wrong(&partition.size, reason);
        }
        needed = needed.saturating_add(len);
    }
    if whole < needed || whole > model::block::LENGTH_MAX {
        let reason = format!("a disk of `{}` cannot be made", disk.size.get_ref());
        return Err(place.error(OPERATION, disk.size.span().start, reason));
    }
    Ok(())
}

/// Letters, digits and a few signs, and no sign in front.
fn is_word(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    text.len() <= 64 && text.chars().all(fits) && text.starts_with(|c: char| c.is_alphanumeric())
}

/// An absolute path that stays where it is.
fn is_inside(path: &str) -> bool {
    path.starts_with('/')
        && path.len() > 1
        && !path.contains(['\0', '\n'])
        && path.split('/').all(|part| part != "..")
}

/// A time as `90s`, `10m`, `2h`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?))
}

/// A size as `512M` or `2G`, in bytes.
pub(crate) fn len(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor = match unit {
        "M" | "MiB" => MIB,
        "G" | "GiB" => MIB << 10,
        "T" | "TiB" => MIB << 20,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "name = \"x\"\n[distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n";

    fn check_text(rest: &str) -> String {
        match Recipe::read(Place::new("r.toml", format!("{HEAD}{rest}"))) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    fn refused(rest: &str, with: &str) {
        let error = check_text(rest);
        assert!(error.contains(with), "{rest}\n{error}");
    }

    #[test]
    fn a_chain_of_stages_is_taken() {
        assert_eq!(check_text("[[stage]]\nname=\"a\"\n[[stage]]\nname=\"b\"\nparent=\"a\"\n"), "");
        assert_eq!(check_text("[[stage]]\nname=\"a\"\nparent=\"core:stable\"\n"), "");
    }

    #[test]
    fn stages_that_are_no_chain_are_refused_with_their_line() {
        refused("", "it has no stage");
        refused(
            "[[stage]]\nname=\"a\"\nparent=\"a\"\n",
            "line 6, column 6: stages stand on each other: a on a",
        );
        refused(
            "[[stage]]\nname=\"a\"\nparent=\"b\"\n[[stage]]\nname=\"b\"\nparent=\"a\"\n",
            "line 6, column 6: stages stand on each other: a on b on a",
        );
        refused(
            "[[stage]]\nname=\"a\"\n[[stage]]\nname=\"a\"\n",
            "line 8, column 6: there are two",
        );
        refused(
            "[[stage]]\nname=\"a\"\n[[stage]]\nname=\"b\"\n",
            "nothing stands on the stage `a`",
        );
        refused(
            "[[stage]]\nname=\"b\"\nparent=\"a\"\n[[stage]]\nname=\"a\"\n[[stage]]\nname=\"c\"\nparent=\"b\"\n",
            "does not follow its parent",
        );
        refused(
            "[[stage]]\nname=\"a\"\nparent=\"No Such\"\n",
            "line 7, column 8: the parent is neither",
        );
    }

    #[test]
    fn words_without_a_meaning_are_refused() {
        let stage = "[[stage]]\nname=\"a\"\n";
        refused(&format!("{stage}packages=[\"a b\"]\n"), "is no package's name");
        refused(&format!("{stage}packages=[\"--help\"]\n"), "is no package's name");
        refused(&format!("{stage}run=[{{command=\"x\", timeout=\"soon\"}}]\n"), "no time limit");
        refused(&format!("{stage}run=[{{timeout=\"1s\"}}]\n"), "needs `command` or `script`");
        refused(&format!("{stage}files=[{{to=\"/../x\", content=\"\"}}]\n"), "without `..`");
        refused(&format!("{stage}files=[{{to=\"/x\"}}]\n"), "needs `from` or `content`");
        refused(&format!("{stage}files=[{{to=\"/x\",content=\"\",mode=\"9\"}}]\n"), "octal");
        refused(&format!("{stage}users=[{{name=\"a:b\"}}]\n"), "cannot be written");
        refused(&format!("{stage}[disk]\nsize=\"1M\"\n"), "cannot be made");
        refused(&format!("{stage}[disk]\nsize=\"big\"\n"), "no size in whole MiB");
        refused(&format!("{stage}parent=\"core\"\n[disk]\nsize=\"1G\"\n"), "the disk is that of");
        refused(&format!("{stage}[disk]\nboot=\"floppy\"\n"), "unknown variant");
        let of = |arch: &str, boot: &str| {
            check_text(&format!("arch=\"{arch}\"\n{stage}[disk]\nboot=\"{boot}\"\n"))
        };
        for (arch, boot) in [("i386", "bios"), ("i386", "direct"), ("arm64", "direct")] {
            assert_eq!(of(arch, boot), "", "{arch} {boot}");
        }
        for (arch, boot) in [("i386", "uefi"), ("arm64", "bios"), ("arm64", "uefi")] {
            assert!(of(arch, boot).contains("line 8, column 1: no loader for"), "{arch} {boot}");
        }
    }

    #[test]
    fn tests_seeds_and_partitions_that_cannot_be_are_told_with_their_line() {
        let stage = "[[stage]]\nname=\"a\"\n";
        let test = |lines: &str| format!("{stage}[[test]]\nname=\"t\"\n{lines}\n");
        assert_eq!(check_text(&test("login=true\nunits=[\"a@b.service\"]\nports=[22]")), "");
        refused(&test(""), "line 8, column 6: the test `t` looks at nothing");
        refused(&test("login=true\n[[test]]\nname=\"t\"\nlogin=true"), "two tests `t`");
        refused(&test("unit=[]"), "line 9, column 1: unknown key `unit`");
        refused(&test("units=[\"a;b\"]"), "line 9, column 8: `a;b` is no unit's name");
        refused(&test("ports=[0]"), "port 0");
        refused(&test("ports=[65536]"), "line 9, column 8");
        refused(&test("command=\"x\"\nscript=\"y\""), "`command` or `script`, and not both");
        refused(&test("seed=\"cloud\""), "line 9, column 6: `cloud` is no seed");
        refused(
            &test("login=true\ntimeout=\"soon\""),
            "line 10, column 9: `soon` is no time limit",
        );
        let only = "[contextualization]\nseeds=[\"nocloud\"]";
        refused(&test(&format!("seed=\"ec2\"\n{only}")), "not in `[contextualization]`");
        refused(&format!("{stage}[contextualization]\nseeds=[\"floppy\"]\n"), "is no seed");
        refused(&format!("{stage}[sign]\n"), "missing field `key`");
        let disk = |boot: &str, rest: &str| {
            format!("{stage}[disk]\nboot=\"{boot}\"\npartitions=[{{{rest}}}]\n")
        };
        let data = "name=\"data\",size=\"64M\",mount=\"/srv\"";
        assert_eq!(check_text(&disk("bios", data)), "");
        refused(&disk("direct", data), "has no partitions");
        refused(&disk("bios", &data.replace("data", "root")), "cannot be called `root`");
        refused(&disk("bios", &data.replace("/srv", "srv")), "nothing is mounted at `srv`");
        refused(&disk("bios", &data.replace("64M", "9G")), "a disk of `2G` cannot be made");
    }

    #[test]
    fn sizes_and_times_are_read() {
        assert_eq!(len("2G"), Some(2 << 30));
        assert_eq!(len("99999999999G"), None);
        assert_eq!(duration("10m"), Some(Duration::from_secs(600)));
        for bad in ["", "10", "m", "1d", "-1s", "18446744073709551615h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_distribution_that_cannot_be_built_is_told_with_those_that_can() {
        let of = |distribution: &str, rest: &str| {
            let text = format!(
                "name = \"x\"\n[distribution]\n{distribution}\n{rest}[[stage]]\nname = \"a\"\n"
            );
            let error = Recipe::read(Place::new("r", text)).unwrap_err();
            (error.to_string(), error.hint_text().unwrap_or_default().to_owned())
        };
        let (error, hint) = of("id = \"fedorra\"\nrelease = \"43\"", "");
        assert!(
            error.ends_with("line 3, column 6: `fedorra` is no distribution that can be built"),
            "{error}"
        );
        assert_eq!(
            hint,
            "did you mean `fedora`? Known: debian, ubuntu, fedora, centos, rocky, alma"
        );
        let (_, hint) = of("id = \"gentoo-hardened\"\nrelease = \"1\"", "");
        assert_eq!(hint, "known: debian, ubuntu, fedora, centos, rocky, alma");
        for (distribution, rest, expected) in [
            (
                "id = \"rocky\"\nrelease = \"8\"",
                "",
                "line 4, column 11: rocky 8 keeps its packages",
            ),
            ("id = \"fedora\"\nrelease = \"rawhide\"", "", "`rawhide` is no release of fedora"),
            ("id = \"alma\"\nrelease = \"9\"\narch = \"i386\"", "", "alma has no release for i386"),
            (
                "id = \"alma\"\nrelease = \"9\"",
                "[[archive]]\nurl = \"file:///x\"\n",
                "with which keys its packages are signed",
            ),
            (
                "id = \"alma\"\nrelease = \"9\"",
                "[[archive]]\nurl = \"file:///x\"\nsuite = \"a\"\nsigned_by = \"k\"\n",
                "has no suite `a`",
            ),
        ] {
            let (error, hint) = of(distribution, rest);
            assert!(error.contains(expected) && !hint.is_empty(), "{error}");
        }
    }

    #[test]
    fn names_of_rpms_have_capitals_and_groups_begin_with_a_sign() {
        let of = |id: &str, package: &str| {
            let text = format!(
                "name = \"x\"\n[distribution]\nid = \"{id}\"\nrelease = \"43\"\n[[stage]]\nname = \"a\"\npackages = [\"{package}\"]\n"
            );
            Recipe::read(Place::new("r", text)).is_ok()
        };
        assert!(of("fedora", "NetworkManager") && of("fedora", "@core"));
        assert!(!of("debian", "NetworkManager") && !of("debian", "@core") && !of("fedora", "@"));
    }
}
