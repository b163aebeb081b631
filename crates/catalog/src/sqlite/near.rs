//! Names that come near to one that was not found.

/// How many near names a hint tells.
const NEAR_COUNT_MAX: usize = 3;

/// The names that may have been meant, nearest first: those that differ in few letters, and those of
/// which the wanted one is a part or which are a part of it.
pub(super) fn near<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    // A third of the letters may be wrong, but never so many that everything comes near.
    let distance_max = (wanted.len() / 3).clamp(1, 3);
    let mut found: Vec<(usize, &str)> = names
        .into_iter()
        .filter_map(|name| {
            let distance = distance(wanted.as_bytes(), name.as_bytes(), distance_max);
            let part = wanted.len() >= 3 && name.contains(wanted)
                || name.len() >= 3 && wanted.contains(name);
            distance.or(part.then_some(distance_max + 1)).map(|rank| (rank, name))
        })
        .collect();
    found.sort_unstable();
    found.truncate(NEAR_COUNT_MAX);
    found.into_iter().map(|(_, name)| name).collect()
}

/// The hint that tells near names; `None` if there are none.
pub(super) fn hint<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names = near(wanted, names);
    (!names.is_empty()).then(|| format!("did you mean {}?", names.join(", ")))
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour to get from
/// one text to the other; `None` if more than `max`.
fn distance(from: &[u8], to: &[u8], max: usize) -> Option<usize> {
    if from.len().abs_diff(to.len()) > max {
        return None;
    }
    let width = to.len() + 1;
    let mut before: Vec<usize> = vec![0; width];
    let mut last: Vec<usize> = (0..width).collect();
    for (row, &a) in from.iter().enumerate() {
        let mut this = vec![row + 1; width];
        for (column, &b) in to.iter().enumerate() {
            let mut best = last[column] + usize::from(a != b);
            best = best.min(last[column + 1] + 1).min(this[column] + 1);
            if row > 0 && column > 0 && a == to[column - 1] && from[row - 1] == b {
                best = best.min(before[column - 1] + 1);
            }
            this[column + 1] = best;
        }
        before = std::mem::replace(&mut last, this);
    }
    Some(last[to.len()]).filter(|&distance| distance <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_near_and_another_word_is_not() {
        let names = ["debian", "debian-nginx", "alpine", "web", "team/debian"];
        let check = |wanted: &str, expected: &[&str]| {
            assert_eq!(near(wanted, names), expected, "{wanted}");
        };
        check("debain", &["debian"]);
        check("debia", &["debian", "debian-nginx", "team/debian"]);
        check("debiannginx", &["debian-nginx", "debian"]);
        check("alpin", &["alpine"]);
        check("wbe", &["web"]);
        check("fedora", &[]);
        check("x", &[]);
    }
}
