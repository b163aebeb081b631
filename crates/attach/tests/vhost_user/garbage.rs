//! Hostile guests: whatever stands in their memory, the server lives and no byte goes astray.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use model::device::MemoryDevice;
use proptest::prelude::*;

use crate::Served;
use crate::client::{self, Guest};

const LENGTH: usize = 64 * 4096;

/// Addresses that are near to something, or anything.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..66u64 << 20).prop_map(|at| client::BASE + at),
        1 => (0..0x9000u64).prop_map(|at| client::BASE + at),
        1 => (0..64u64).prop_map(|less| client::BASE - less),
        1 => (0..64u64).prop_map(|less| u64::MAX - less),
        1 => any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let len = prop_oneof![4 => 0..70u32, 4 => 0..9000u32, 1 => any::<u32>()];
    let next = prop_oneof![4 => 0..8u16, 1 => any::<u16>()];
    (address(), len, 0..8u16, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Descriptors, tables and headers of any bytes, claims of any count: the next guest is served.
    #[test]
    fn no_ring_ends_the_server(
        descriptors in proptest::collection::vec(descriptor(), 8),
        headers in proptest::collection::vec((0..16u32, any::<u64>()), 4),
        heads in proptest::collection::vec(prop_oneof![6 => 0..8u16, 1 => any::<u16>()], 1..6),
        claim in proptest::option::weighted(0.2, any::<u16>()),
    ) {
        let device = Arc::new(MemoryDevice::new(vec![7; LENGTH]));
        let served = Served::new(device);
        let mut guest = served.guest();
        // Anything in memory may be met as a table, or as a header.
        for at in 0..4096u64 {
            let (kind, sector) = headers[at as usize % headers.len()];
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            bytes[8..].copy_from_slice(&(sector % 600).to_le_bytes());
            guest.put(Guest::data_at(0) + at * 16, &bytes);
        }
        for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
            guest.descriptor(index as u16, *address, *len, *flags, *next);
            let bytes = client::descriptor_bytes(*address, *len, *flags, *next);
            guest.put(Guest::data_at(1) + index as u64 * 16, &bytes);
        }
        for head in &heads {
            guest.offer(*head);
        }
        if let Some(index) = claim {
            guest.claim(index);
        }
        guest.kick_anyway();
        guest.stop();
        guest.disconnect();
        let mut next = served.guest();
        prop_assert_eq!(next.call(client::READ, 0, &[0; 512]).0, 0);
    }

    /// Messages of any bytes end their connection at most.
    #[test]
    fn no_message_ends_the_server(
        request in 0..50u32,
        flags in prop_oneof![Just(1u32), Just(9), any::<u32>()],
        len in prop_oneof![4 => 0..80u32, 1 => any::<u32>()],
        body in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let served = Served::new(Arc::new(MemoryDevice::new(vec![7; LENGTH])));
        let mut stream = UnixStream::connect(served.path()).unwrap();
        let header = [request, flags, len].map(u32::to_le_bytes).concat();
        let _ = stream.write_all(&header);
        let _ = stream.write_all(&body);
        drop(stream);
        let mut next = served.guest();
        prop_assert_eq!(next.call(client::READ, 0, &[0; 512]).0, 0);
    }
}

/// A request's data that is partly outside of the guest's memory reads nothing and writes nothing.
#[test]
fn a_buffer_outside_of_the_memory_stops_the_ring_until_it_is_reset() {
    let device = Arc::new(MemoryDevice::new(vec![7; LENGTH]));
    let served = Served::new(device.clone());
    let mut guest = served.guest();
    guest.submit(0, client::WRITE, 0, 4096);
    let end = client::BASE + Guest::data_at(client::SLOT_COUNT);
    guest.descriptor(1, end - 512, 4096, client::NEXT, 2);
    guest.kick_anyway();
    assert_eq!(guest.wait(1), []);
    guest.stop();
    assert!(device.to_vec() == vec![7; LENGTH]);
    let mut next = Guest::new();
    guest.disconnect();
    next.connect(&served.path()).unwrap();
    assert_eq!(next.call(client::READ, 0, &[0; 512]).0, 0);
}

/// A loop among descriptors is found out, not followed.
#[test]
fn a_loop_of_descriptors_ends() {
    let served = Served::new(Arc::new(MemoryDevice::new(vec![7; LENGTH])));
    let mut guest = served.guest();
    guest.descriptor(0, client::BASE + 0x9000, 16, client::NEXT, 0);
    guest.offer(0);
    guest.kick_anyway();
    guest.stop();
    guest.disconnect();
    assert_eq!(served.guest().call(client::READ, 0, &[0; 512]).0, 0);
}
