//! The text in what a console sends: escape sequences, carriage returns and other controls removed.
//!
//! **Invariants**: total over bytes; keeps a few bytes of state, whatever the guest sends.
//!
//! **Source**: ECMA-48, sections 5.3 to 5.6 (shape of control sequences and control strings).

/// Where in a control sequence the stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After `ESC [`: until a final byte.
    Sequence,
    /// After `ESC ]`, `ESC P` and their like: until BEL or `ESC \`.
    ControlString,
    /// After ESC inside a control string.
    StringEscape,
}

/// Turns a console's bytes into text, piece by piece.
#[derive(Debug, Default)]
pub struct Screen {
    state: State,
    /// The start of a UTF-8 character whose rest has not come yet: at most three bytes.
    partial: Vec<u8>,
}

impl Screen {
    /// Appends the text in `bytes` to `out`. Bytes that are not UTF-8 become U+FFFD.
    pub fn feed(&mut self, bytes: &[u8], out: &mut String) {
        let mut plain = std::mem::take(&mut self.partial);
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (State::Text, 0x1b) => State::Escape,
                (State::Text, b'\n' | b'\t' | 0x20..=0x7e | 0x80..) => {
                    plain.push(byte);
                    State::Text
                }
                (State::Text, _) => State::Text,
                (State::Escape, b'[') => State::Sequence,
                (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::ControlString,
                // Intermediate bytes: the sequence goes on.
                (State::Escape, 0x20..=0x2f) => State::Escape,
                (State::Escape, _) => State::Text,
                (State::Sequence, 0x40..=0x7e | b'\n') => State::Text,
                (State::Sequence, _) => State::Sequence,
                (State::ControlString, 0x07 | b'\n') => State::Text,
                (State::ControlString, 0x1b) => State::StringEscape,
                (State::ControlString, _) => State::ControlString,
                (State::StringEscape, b'\\') => State::Text,
                (State::StringEscape, _) => State::ControlString,
            };
        }
        let whole = whole_len(&plain);
        out.push_str(&String::from_utf8_lossy(&plain[..whole]));
        self.partial = plain.split_off(whole);
    }
}

/// How many bytes come before a character that is cut off at the end.
fn whole_len(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(error) => {
            let mut end = error.valid_up_to();
            let mut error = error;
            // Skip what is wrong in the middle; only an unfinished end is kept back.
            while let Some(wrong) = error.error_len() {
                end += wrong;
                match std::str::from_utf8(&bytes[end..]) {
                    Ok(_) => return bytes.len(),
                    Err(next) => {
                        end += next.valid_up_to();
                        error = next;
                    }
                }
            }
            end
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(pieces: &[&[u8]], expected: &str) {
        let mut screen = Screen::default();
        let mut text = String::new();
        for piece in pieces {
            screen.feed(piece, &mut text);
        }
        assert_eq!(text, expected);
    }

    #[test]
    fn colours_titles_and_carriage_returns_leave_no_trace() {
        check(&[b"[\x1b[0;32m  OK  \x1b[0m] Started\r\n"], "[  OK  ] Started\n");
        check(&[b"\x1b]0;root@host\x07# "], "# ");
        check(&[b"\x1bPx\x1b\\y\x1b(Bz"], "yz");
        check(&[b"a\x1b", b"[", b"1", b"mb"], "ab");
    }

    #[test]
    fn a_character_cut_in_two_arrives_whole() {
        check(&[b"caf\xc3", b"\xa9\n"], "caf\u{e9}\n");
        check(&[b"\xff\xe2\x82", b"\xac"], "\u{fffd}\u{20ac}");
        check(&[b"\xe2\x82", b"x"], "\u{fffd}x");
    }

    proptest! {
        #[test]
        fn any_bytes_give_text_that_does_not_depend_on_how_they_are_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..200,
        ) {
            let cut = cut.min(bytes.len());
            let mut whole = String::new();
            Screen::default().feed(&bytes, &mut whole);
            let mut pieces = String::new();
            let mut screen = Screen::default();
            screen.feed(&bytes[..cut], &mut pieces);
            screen.feed(&bytes[cut..], &mut pieces);
            prop_assert_eq!(&whole, &pieces);
            prop_assert!(screen.partial.len() < 4);
        }
    }
}
