//! What a guest asked of its disk, in order.
//!
//! As text, a call in each line:
//!
//! ```text
//! r OFFSET LEN    read            w OFFSET LEN    write
//! z OFFSET LEN    write zeros     d OFFSET LEN    discard
//! f               flush
//! ```

use std::fmt::Write;

use model::{Error, Kind, Result};

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Read { offset: u64, len: u32 },
    Write { offset: u64, len: u32 },
    Zeroes { offset: u64, len: u32 },
    Discard { offset: u64, len: u32 },
    Flush,
}

/// Writes calls as text.
pub fn to_text(calls: &[Call]) -> String {
    let mut text = String::new();
    for call in calls {
        let (letter, offset, len) = match *call {
            Call::Read { offset, len } => ('r', offset, len),
            Call::Write { offset, len } => ('w', offset, len),
            Call::Zeroes { offset, len } => ('z', offset, len),
            Call::Discard { offset, len } => ('d', offset, len),
            Call::Flush => {
                text.push_str("f\n");
                continue;
            }
        };
        let _ = writeln!(text, "{letter} {offset} {len}");
    }
    text
}

/// Reads calls from text.
pub fn from_text(text: &str) -> Result<Vec<Call>> {
    let parsed = text.lines().enumerate().map(|(number, line)| {
        parse(line).ok_or_else(|| {
            Error::new(Kind::Invalid, "read the trace", format!("line {}", number + 1))
                .because(format!("{line:?} is no call"))
        })
    });
    parsed.collect()
}

fn parse(line: &str) -> Option<Call> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["f"] => Some(Call::Flush),
        [letter, offset, len] => {
            let (offset, len) = (offset.parse().ok()?, len.parse().ok()?);
            match letter {
                "r" => Some(Call::Read { offset, len }),
                "w" => Some(Call::Write { offset, len }),
                "z" => Some(Call::Zeroes { offset, len }),
                "d" => Some(Call::Discard { offset, len }),
                _ => None,
            }
        }
        _ => None,
    }
}

/// How many calls of each kind, and how many bytes, in a sentence.
pub fn summary(calls: &[Call]) -> String {
    let sum = |bytes: &dyn Fn(&Call) -> Option<u64>| {
        let found: Vec<u64> = calls.iter().filter_map(bytes).collect();
        (found.len(), found.iter().sum::<u64>())
    };
    let reads = sum(&|call| match call {
        Call::Read { len, .. } => Some(u64::from(*len)),
        _ => None,
    });
    let writes = sum(&|call| match call {
        Call::Write { len, .. } => Some(u64::from(*len)),
        _ => None,
    });
    let others = sum(&|call| match call {
        Call::Zeroes { len, .. } | Call::Discard { len, .. } => Some(u64::from(*len)),
        _ => None,
    });
    let flushes = calls.iter().filter(|call| **call == Call::Flush).count();
    format!(
        "{} reads of {} bytes, {} writes of {} bytes, {} zeroings and discards of {} bytes, {} flushes",
        reads.0, reads.1, writes.0, writes.1, others.0, others.1, flushes
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_same_calls_again() {
        let calls = [
            Call::Read { offset: 1 << 40, len: 512 },
            Call::Write { offset: 0, len: u32::MAX },
            Call::Zeroes { offset: 4096, len: 1 },
            Call::Discard { offset: 4096, len: 1 },
            Call::Flush,
        ];
        assert_eq!(from_text(&to_text(&calls)).unwrap(), calls);
        for wrong in ["x 1 2", "r 1", "r 1 2 3", "f 1", "r -1 2", ""] {
            assert!(from_text(&format!("f\n{wrong}\nf\n")).is_err(), "{wrong:?}");
        }
    }
}
