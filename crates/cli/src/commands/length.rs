//! Lengths as people type them.

use std::str::FromStr;

/// A length: bytes, or a number with K, M, G, T, KiB, MiB, GiB, TiB (all powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length(pub u64);

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(format!("`{unit}` is no unit; use B, KiB, MiB, GiB or TiB")),
        };
        let number: u64 = number.parse().map_err(|_| format!("`{text}` is no length"))?;
        number.checked_mul(1 << shift).map(Length).ok_or_else(|| format!("`{text}` is too long"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_people_type_them() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("20GiB", 20 << 30), ("1k", 1024)] {
            assert_eq!(text.parse(), Ok(Length(bytes)));
        }
        for bad in ["", "GiB", "1.5G", "-1", "1GB", "99999999999T"] {
            assert!(bad.parse::<Length>().is_err(), "{bad}");
        }
    }
}
