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

/// What a front end may say that a server before this one had under way.
fn inflight_bytes() -> impl Strategy<Value = Vec<(u16, u8, u64)>> {
    let entry =
        (0..client::QUEUE_SIZE, prop_oneof![3 => Just(1u8), 1 => any::<u8>()], any::<u64>());
    proptest::collection::vec(entry, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// An in-flight region of any content: no request of it does what no guest asked for, and the
    /// next guest is served.
    #[test]
    fn no_inflight_region_ends_the_server(
        head in (any::<u64>(), prop_oneof![4 => Just(1u16), 1 => any::<u16>()], any::<u16>(), any::<u16>(), any::<u16>()),
        entries in inflight_bytes(),
        chains in proptest::collection::vec(descriptor(), 0..8),
    ) {
        let served = Served::new(Arc::new(MemoryDevice::new(vec![7; LENGTH])));
        let mut guest = Guest::new();
        guest.connect(&served.path()).unwrap();
        guest.disconnect();
        let (features, version, count, last, used) = head;
        let mut bytes = features.to_le_bytes().to_vec();
        for field in [version, count, last, used] {
            bytes.extend(field.to_le_bytes());
        }
        guest.put_inflight(0, &bytes);
        for (index, is_under_way, counter) in &entries {
            let at = 16 + 16 * u64::from(*index);
            guest.put_inflight(at, &[*is_under_way]);
            guest.put_inflight(at + 8, &counter.to_le_bytes());
        }
        for (index, (address, len, flags, next)) in chains.iter().enumerate() {
            guest.descriptor(index as u16, *address, *len, *flags, *next);
        }
        if guest.connect(&served.path()).is_ok() {
            guest.kick_anyway();
            guest.stop();
        }
        guest.disconnect();
        let mut next = served.guest();
        prop_assert_eq!(next.call(client::READ, 0, &[0; 512]).0, 0);
    }

    /// Messages in any order, of any content behind sensible headers, after a handshake.
    #[test]
    fn no_sequence_of_messages_ends_the_server(
        messages in proptest::collection::vec(
            (1..46u32, proptest::collection::vec(small_field(), 0..10), any::<bool>()), 1..20),
    ) {
        let served = Served::new(Arc::new(MemoryDevice::new(vec![7; LENGTH])));
        let mut stream = UnixStream::connect(served.path()).unwrap();
        stream.set_write_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        for (request, fields, needs_reply) in &messages {
            let body: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
            let flags = 1 | u32::from(*needs_reply) << 3;
            let header = [*request, flags, body.len() as u32].map(u32::to_le_bytes).concat();
            if stream.write_all(&[header, body].concat()).is_err() {
                break;
            }
        }
        drop(stream);
        let mut next = served.guest();
        prop_assert_eq!(next.call(client::READ, 0, &[0; 512]).0, 0);
    }
}

/// Numbers that are indices, sizes, flags, or anything.
fn small_field() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..4u64,
        2 => (0..16u32).prop_map(|shift| 1 << shift),
        2 => (0..4096u64).prop_map(|at| client::BASE + at * 16),
        1 => (0..64u32).prop_map(|shift| 1 << shift),
        1 => any::<u64>(),
    ]
}

/// Regions that are no files that can be mapped, too short, or could be cut while they are mapped: an
/// error for that message, and the memory before stays.
#[test]
fn a_region_that_is_too_short_or_can_be_cut_is_refused() {
    let served = Served::new(Arc::new(MemoryDevice::new(vec![7; LENGTH])));
    for (len, claimed, is_sealed) in [(1 << 20, 1 << 20, false), (100, 1 << 20, true), (0, 0, true)]
    {
        let mut guest = Guest::new();
        guest.give_inflight(len, claimed, is_sealed);
        assert!(guest.connect(&served.path()).is_err(), "{len} {claimed} {is_sealed}");
        guest.disconnect();
    }
    let mut guest = Guest::new();
    guest.give_inflight(1 << 20, 1 << 20, true);
    guest.connect(&served.path()).unwrap();
    assert_eq!(guest.call(client::READ, 0, &[0; 512]), (0, vec![7; 512]));
}

/// A hostile guest at one disk's door never gets or changes a byte of another disk of the process.
#[test]
fn a_hostile_guest_sees_nothing_of_another_disk() {
    let other = Arc::new(MemoryDevice::new(vec![0xa5; LENGTH]));
    let theirs = Served::new(other.clone());
    let served = Served::new(Arc::new(MemoryDevice::new(vec![7; LENGTH])));
    let mut guest = served.guest();
    let mut neighbour = theirs.guest();
    for round in 0..400u64 {
        let sector = (1u64 << 55).wrapping_sub(round * 7).wrapping_mul(round | 1);
        let kind = [client::READ, client::WRITE, client::WRITE_ZEROES, client::DISCARD]
            [round as usize % 4];
        let data = match kind {
            client::READ | client::WRITE => vec![0x11; 512 * (1 + round as usize % 9)],
            _ => client::range(sector, (round as u32).wrapping_mul(0x1000_0001), 0).to_vec(),
        };
        let (_, found) = guest.call(kind, sector, &data);
        assert!(kind != client::READ || !found.contains(&0xa5), "round {round}");
        let answer = neighbour.call(client::READ, round % 500, &[0; 512]);
        assert_eq!(answer, (0, vec![0xa5; 512]));
    }
    assert!(other.to_vec() == vec![0xa5; LENGTH]);
}
