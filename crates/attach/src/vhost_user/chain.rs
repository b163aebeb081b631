//! Descriptors to segments.
//!
//! **Invariants**: a walk ends after at most [`SEGMENT_COUNT_MAX`] descriptors, whatever they say.
//! Every segment is wholly in the guest's memory; what the guest may not have changed by us stands
//! before what it may.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress};

use super::memory::{Memory, Segment};

/// The most descriptors of one request.
pub(super) const SEGMENT_COUNT_MAX: usize = 1024;
/// Bytes of a descriptor.
const DESCRIPTOR_LEN: u32 = 16;

/// The descriptors are no chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// What a request is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// What the guest gives.
    pub(super) readable: Vec<Segment>,
    /// Where the guest takes.
    pub(super) writable: Vec<Segment>,
}

impl Chain {
    /// Follows a chain from its head.
    pub(super) fn walk(
        &mut self,
        memory: &Memory,
        table: GuestAddress,
        table_len: u16,
        head: u16,
    ) -> Result<(), Malformed> {
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut table_len, mut index) = (table, u32::from(table_len), u32::from(head));
        let mut is_indirect = false;
        for _ in 0..SEGMENT_COUNT_MAX {
            let descriptor = read(memory, table, table_len, index)?;
            if descriptor.refers_to_indirect_table() {
                let len = descriptor.len();
                if is_indirect || descriptor.has_next() {
                    return Err(Malformed("an indirect table in a chain or in another"));
                }
                if len == 0 || !len.is_multiple_of(DESCRIPTOR_LEN) {
                    return Err(Malformed("an indirect table of a length that none has"));
                }
                (table, table_len, index) = (descriptor.addr(), len / DESCRIPTOR_LEN, 0);
                is_indirect = true;
                continue;
            }
            self.add(memory, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = u32::from(descriptor.next());
        }
        Err(Malformed("a loop, or more descriptors than any request has"))
    }

    fn add(&mut self, memory: &Memory, descriptor: &Descriptor) -> Result<(), Malformed> {
        let segment = Segment { address: descriptor.addr(), len: descriptor.len() };
        if segment.len == 0 {
            return Ok(());
        }
        if !memory.holds(segment) {
            return Err(Malformed("a buffer outside of the guest's memory"));
        }
        if descriptor.is_write_only() {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(Malformed("a readable buffer behind a writable one"));
        }
        Ok(())
    }
}

fn read(
    memory: &Memory,
    table: GuestAddress,
    table_len: u32,
    index: u32,
) -> Result<Descriptor, Malformed> {
    if index >= table_len {
        return Err(Malformed("a descriptor behind the end of its table"));
    }
    let address = table.checked_add(u64::from(index * DESCRIPTOR_LEN));
    let descriptor = address.and_then(|address| memory.map().read_obj(address).ok());
    descriptor.ok_or(Malformed("a descriptor outside of the guest's memory"))
}
