//! What scripts say: the Test Anything Protocol.
//!
//! **Invariants**: any text is read; a text passes only if its plan is there and complete.
//!
//! **Source**: TAP 12 and 13, <https://testanything.org/tap-specification.html>; YAML blocks and subtests
//! are indented, and passed over.

/// Says why a text does not pass; `None` where it does.
pub(crate) fn failure(text: &str) -> Option<String> {
    let mut plan: Option<u64> = None;
    let mut seen = 0u64;
    let mut failed: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        if let Some(why) = line.strip_prefix("Bail out!") {
            return Some(format!("it gave up: {}", why.trim()));
        }
        if let Some(count) = line.strip_prefix("1..") {
            let count = count.split([' ', '#']).next().unwrap_or_default();
            match (plan, count.parse()) {
                (None, Ok(count)) => plan = Some(count),
                _ => return Some(format!("its plan is none: `{line}`")),
            }
            continue;
        }
        let is_word = |rest: &&str| rest.is_empty() || rest.starts_with([' ', '\t']);
        let (is_ok, rest) = match line.strip_prefix("not ok").filter(is_word) {
            Some(rest) => (false, rest),
            None => match line.strip_prefix("ok").filter(is_word) {
                Some(rest) => (true, rest),
                None => continue,
            },
        };
        seen += 1;
        let number = rest.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        if number.is_some_and(|number| number != seen) {
            return Some(format!("after {} tests it says `{line}`", seen - 1));
        }
        let directive = rest.rsplit_once('#').map(|(_, text)| text.trim().to_ascii_lowercase());
        let is_excused =
            directive.is_some_and(|text| text.starts_with("todo") || text.starts_with("skip"));
        if !is_ok && !is_excused {
            failed.push(line);
        }
    }
    let Some(plan) = plan else { return Some("it printed no plan (`1..N`)".into()) };
    if seen != plan {
        return Some(format!("it planned {plan} tests and made {seen}"));
    }
    (!failed.is_empty()).then(|| failed.join("; "))
}

#[cfg(test)]
mod tests {
    use super::failure;

    #[test]
    fn only_a_complete_plan_passes() {
        for good in [
            "1..2\nok 1 - a\nok 2 - b\n",
            "TAP version 13\nok\nok - b\n1..2\n",
            "1..1\n# remark\nnot ok 1 - a # TODO later\n",
            "1..1\nok 1 # SKIP no network\n",
            "1..0 # SKIP nothing here\n",
            "1..1\nok 1\n  ---\n  not ok 2\n  ...\n",
        ] {
            assert_eq!(failure(good), None, "{good}");
        }
        for (bad, with) in [
            ("", "no plan"),
            ("ok 1\n", "no plan"),
            ("1..2\nok 1\n", "planned 2 tests and made 1"),
            ("1..1\nok 1\nok 2\n", "planned 1 tests and made 2"),
            ("1..1\nnot ok 1 - web\n", "not ok 1 - web"),
            ("1..2\nok 1\nok 1\n", "after 1 tests"),
            ("1..1\n1..1\nok 1\n", "its plan is none"),
            ("1..x\n", "its plan is none"),
            ("1..2\nok 1\nBail out! no disk\n", "it gave up: no disk"),
            ("1..1\nokay 1\n", "made 0"),
        ] {
            assert!(
                failure(bad).is_some_and(|why| why.contains(with)),
                "{bad:?}: {:?}",
                failure(bad)
            );
        }
    }
}
