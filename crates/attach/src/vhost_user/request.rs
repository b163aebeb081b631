//! Segments to a request.

use vm_memory::{Address, GuestAddress};

use super::chain::{Chain, Malformed};
use super::memory::{Memory, Segment};

/// Bytes of a sector, the unit of all offsets in the protocol.
pub(super) const SECTOR_LEN: u64 = 512;
/// Bytes of a request's header.
const HEADER_LEN: usize = 16;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `VIRTIO_BLK_T_IN`.
    Read,
    /// `VIRTIO_BLK_T_OUT`.
    Write,
    /// `VIRTIO_BLK_T_FLUSH`.
    Flush,
    /// `VIRTIO_BLK_T_GET_ID`.
    GetId,
    /// `VIRTIO_BLK_T_DISCARD`.
    Discard,
    /// `VIRTIO_BLK_T_WRITE_ZEROES`.
    WriteZeroes,
    /// Any other.
    Unknown,
}

impl Command {
    fn parse(number: u32) -> Self {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            4 => Command::Flush,
            8 => Command::GetId,
            11 => Command::Discard,
            13 => Command::WriteZeroes,
            _ => Command::Unknown,
        }
    }
}

/// One request of a guest.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The descriptor under which it is answered.
    pub(super) head: u16,
    /// What is to be done.
    pub(super) command: Command,
    /// Where, in sectors.
    pub(super) sector: u64,
    /// What the guest gives or takes.
    pub(super) data: Vec<Segment>,
    /// Where the answer goes.
    pub(super) status: GuestAddress,
}

impl Request {
    /// Takes a chain apart. Its vectors are given back empty.
    pub(super) fn parse(
        memory: &Memory,
        head: u16,
        chain: &mut Chain,
    ) -> Result<Request, Malformed> {
        let status = take_status(&mut chain.writable)?;
        let mut header = [0; HEADER_LEN];
        take_header(memory, &mut chain.readable, &mut header)?;
        let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let command = Command::parse(field(0));
        let sector = u64::from(field(8)) | u64::from(field(12)) << 32;
        let data = match command {
            Command::Read | Command::GetId => std::mem::take(&mut chain.writable),
            _ => std::mem::take(&mut chain.readable),
        };
        Ok(Request { head, command, sector, data, status })
    }

    /// Bytes of the data.
    pub(super) fn len(&self) -> u64 {
        self.data.iter().map(|segment| u64::from(segment.len)).sum()
    }
}

/// Takes the last byte that the guest lets us write.
fn take_status(writable: &mut Vec<Segment>) -> Result<GuestAddress, Malformed> {
    let last = writable.last_mut().ok_or(Malformed("no byte for the status"))?;
    last.len -= 1;
    // In range: the segment is in the guest's memory.
    let status = GuestAddress(last.address.raw_value() + u64::from(last.len));
    if last.len == 0 {
        writable.pop();
    }
    Ok(status)
}

/// Takes the header from the front.
fn take_header(
    memory: &Memory,
    readable: &mut Vec<Segment>,
    header: &mut [u8; HEADER_LEN],
) -> Result<(), Malformed> {
    let mut have = 0;
    let mut used = 0;
    while have < HEADER_LEN {
        let segment = readable.get_mut(used).ok_or(Malformed("no whole header"))?;
        let len = (segment.len as usize).min(HEADER_LEN - have);
        if !memory.read(segment.address, &mut header[have..have + len]) {
            return Err(Malformed("a header outside of the guest's memory"));
        }
        have += len;
        segment.len -= len as u32;
        segment.address = GuestAddress(segment.address.raw_value() + len as u64);
        if segment.len == 0 {
            used += 1;
        }
    }
    readable.drain(..used);
    Ok(())
}
