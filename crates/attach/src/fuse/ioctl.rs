//! CLONE and COMMIT: the numbers and the structure of `include/larder.h`.
//!
//! ```text
//! struct larder_version   0: image, 256 bytes, NUL-terminated   256: version, 8 bytes, native order
//! ```
//!
//! Numbers have the kernel's usual layout, so that it copies the structure in and out by itself:
//! direction (2 bits), size (14), type (8), number (8).

use fuser::Errno;
use model::{ImageName, VersionId};

const IMAGE_LEN: usize = 256;
const STRUCTURE_LEN: usize = IMAGE_LEN + size_of::<u64>();
const WRITE: u32 = 1;
const READ: u32 = 2;

const fn number(direction: u32, command: u32) -> u32 {
    direction << 30 | (STRUCTURE_LEN as u32) << 16 | (b'L' as u32) << 8 | command
}

/// `_IOWR('L', 0x60, struct larder_version)`
pub(crate) const CLONE: u32 = number(READ | WRITE, 0x60);
/// `_IOR('L', 0x61, struct larder_version)`
pub(crate) const COMMIT: u32 = number(READ, 0x61);

/// What a caller asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Bind the mirror to a new image.
    Clone(ImageName),
    /// Make what was written a version.
    Commit,
}

impl Command {
    /// Reads a request.
    ///
    /// # Errors
    /// `ENOTTY` for numbers that are not ours, `EINVAL` for a name that is not well-formed.
    pub(crate) fn parse(number: u32, input: &[u8]) -> Result<Command, Errno> {
        match number {
            COMMIT => Ok(Command::Commit),
            CLONE => {
                let field = input.get(..IMAGE_LEN).ok_or(Errno::EINVAL)?;
                let len = field.iter().position(|byte| *byte == 0).ok_or(Errno::EINVAL)?;
                let text = std::str::from_utf8(&field[..len]).map_err(|_| Errno::EINVAL)?;
                ImageName::new(text).map(Command::Clone).map_err(|_| Errno::EINVAL)
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}

/// The structure that tells a version.
pub(crate) fn encode(version: &VersionId) -> Vec<u8> {
    let mut bytes = vec![0; STRUCTURE_LEN];
    let image = version.image.as_str().as_bytes();
    bytes[..image.len()].copy_from_slice(image);
    bytes[IMAGE_LEN..].copy_from_slice(&version.version.get().to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use model::VersionNumber;

    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_documentation() {
        assert_eq!((CLONE, COMMIT), (0xC108_4C60, 0x8108_4C61));
    }

    #[test]
    fn what_is_no_request_of_ours_is_refused() {
        let mut input = vec![0; STRUCTURE_LEN];
        assert_eq!(Command::parse(CLONE, &input), Err(Errno::EINVAL));
        input[..3].copy_from_slice(b"a/b");
        let image = ImageName::new("a/b").unwrap();
        assert_eq!(Command::parse(CLONE, &input), Ok(Command::Clone(image)));
        assert_eq!(Command::parse(CLONE, &input[..255]), Err(Errno::EINVAL));
        assert_eq!(Command::parse(CLONE, &[b'a'; STRUCTURE_LEN]), Err(Errno::EINVAL));
        assert_eq!(Command::parse(CLONE, &[0xff; STRUCTURE_LEN]), Err(Errno::EINVAL));
        assert_eq!(Command::parse(CLONE ^ 1 << 16, &input), Err(Errno::ENOTTY));
        assert_eq!(Command::parse(COMMIT, &[]), Ok(Command::Commit));
    }

    #[test]
    fn the_longest_name_leaves_room_for_its_end() {
        let image = ImageName::new(&"a".repeat(model::name::NAME_LEN_MAX)).unwrap();
        let bytes = encode(&VersionId { image, version: VersionNumber::FIRST });
        assert_eq!(bytes[model::name::NAME_LEN_MAX], 0);
        assert_eq!(bytes[IMAGE_LEN..], 1u64.to_ne_bytes());
    }
}
