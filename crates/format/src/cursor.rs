//! A cursor over bytes from outside: every read is checked, every error says where.

use crate::FormatError;

/// Reads little-endian fields one behind the other.
pub(crate) struct Cursor<'a> {
    what: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte of the structure that errors call `what`.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Cursor { what, bytes, offset: 0 }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset as u64
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let end = self.offset.checked_add(len).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(FormatError::Truncated {
                what: self.what,
                offset: self.bytes.len() as u64,
            });
        };
        let taken = &self.bytes[self.offset..end];
        self.offset = end;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number in groups of seven bits, lowest first, a set high bit where more follow; at most
    /// five bytes, and only the shortest form.
    pub fn varint(&mut self, field: &'static str) -> Result<u32, FormatError> {
        let start = self.offset();
        let mut value = 0u64;
        for position in 0..5 {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte & 0x80 == 0 {
                let overlong = byte == 0 && position > 0;
                return u32::try_from(value)
                    .ok()
                    .filter(|_| !overlong)
                    .ok_or(FormatError::Unsound { what: self.what, field, offset: start, value });
            }
        }
        Err(FormatError::Unsound { what: self.what, field, offset: start, value })
    }

    /// Checks four magic bytes and the format number behind them.
    pub fn preamble(&mut self, magic: [u8; 4], known: u32) -> Result<(), FormatError> {
        if self.array::<4>()? != magic {
            return Err(FormatError::Magic { what: self.what });
        }
        self.format(known)
    }

    /// Checks a format number: numbers start at 1.
    pub fn format(&mut self, known: u32) -> Result<(), FormatError> {
        let found = self.u32()?;
        match found {
            0 => Err(self.unsound_before(4, "format number", 0)),
            _ if found > known => Err(FormatError::NewerFormat { what: self.what, found, known }),
            _ => Ok(()),
        }
    }

    /// An error about the field of `len` bytes that was read last.
    pub fn unsound_before(&self, len: usize, field: &'static str, value: u64) -> FormatError {
        let offset = self.offset.saturating_sub(len) as u64;
        FormatError::Unsound { what: self.what, field, offset, value }
    }

    /// Checks that nothing follows.
    pub fn end(&self) -> Result<(), FormatError> {
        match self.remaining() {
            0 => Ok(()),
            _ => Err(FormatError::Trailing { what: self.what, offset: self.offset() }),
        }
    }
}

/// Appends a number as [`Cursor::varint`] reads it.
pub(crate) fn push_varint(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Option<u32>) {
        assert_eq!(Cursor::new("test", bytes).varint("n").ok(), expected, "{bytes:x?}");
    }

    #[test]
    fn a_varint_reads_back_and_has_one_form() {
        for value in [0, 1, 127, 128, 300, 16_383, 16_384, u32::MAX - 1, u32::MAX] {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, value);
            check(&bytes, Some(value));
        }
        check(&[0x80, 0], None);
        check(&[0xff, 0xff, 0xff, 0xff, 0x1f], None);
        check(&[0x80, 0x80, 0x80, 0x80, 0x80, 1], None);
        check(&[0x80], None);
    }
}
