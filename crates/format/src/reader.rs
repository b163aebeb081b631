//! Reads fields one behind the other, checking every bound.

use crate::error::FormatError;

/// Bytes of one structure and how far they are read.
pub struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader { what, bytes, offset: 0 }
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let end = self.offset.checked_add(len);
        let taken = end
            .and_then(|end| self.bytes.get(self.offset..end))
            .ok_or(FormatError::Truncated { what: self.what, offset: self.offset })?;
        self.offset += len;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of 7 bits a byte, lowest first; at most 32 bits, in the fewest bytes.
    pub fn varint(&mut self) -> Result<u32, FormatError> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let is_shortest = byte != 0 || shift == 0;
                return u32::try_from(value)
                    .ok()
                    .filter(|_| is_shortest)
                    .ok_or(self.unsound("number", value));
            }
        }
        Err(self.unsound("number", value))
    }

    /// The format number, which must be the one that is known.
    pub fn format(&mut self, known: u32) -> Result<(), FormatError> {
        match self.u32()? {
            found if found == known => Ok(()),
            found => Err(FormatError::NewerFormat { what: self.what, found, known }),
        }
    }

    /// Fails unless all bytes were read.
    pub fn end(&self) -> Result<(), FormatError> {
        match self.remaining() {
            0 => Ok(()),
            rest => Err(self.unsound("end", rest as u64)),
        }
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    pub fn unsound(&self, field: &'static str, value: u64) -> FormatError {
        FormatError::Unsound { what: self.what, field, value }
    }
}

/// Writes a number as [`Reader::varint`] reads it.
pub fn put_varint(to: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}
