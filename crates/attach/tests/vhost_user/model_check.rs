//! The door against a vector of bytes: any sequence of requests gives what the protocol says.

use std::sync::Arc;

use model::device::MemoryDevice;
use proptest::prelude::*;

use crate::Served;
use crate::client::{self, Guest};

/// Not a whole number of sectors: the rest is not to be seen.
const LENGTH: usize = 64 * 4096 + 100;
const SECTOR_COUNT: u64 = 64 * 8;

#[derive(Clone, Debug)]
struct Asked {
    kind: u32,
    sector: u64,
    count: u32,
    flags: u32,
    byte: u8,
}

fn asked() -> impl Strategy<Value = Asked> {
    let kinds = [client::READ, client::WRITE, client::FLUSH, client::GET_ID, client::DISCARD];
    let kind = prop_oneof![
        9 => proptest::sample::select(kinds.to_vec()),
        2 => Just(client::WRITE_ZEROES),
        1 => 0..40u32,
    ];
    let sector = prop_oneof![
        9 => 0..SECTOR_COUNT + 2,
        1 => (0..200u64).prop_map(|less| u64::MAX - less),
        1 => (0..200u64).prop_map(|less| (1 << 55) - less),
    ];
    let flags = prop_oneof![4 => Just(0u32), 2 => Just(1), 1 => any::<u32>()];
    (kind, sector, 1..40u32, flags, any::<u8>())
        .prop_map(|(kind, sector, count, flags, byte)| Asked { kind, sector, count, flags, byte })
}

/// Status and data of the answer; changes `bytes` as the device must.
fn expected(asked: &Asked, given: &[u8], bytes: &mut [u8]) -> (u8, Vec<u8>) {
    let same = |status| (status, given.to_vec());
    let start = asked.sector.checked_mul(512);
    let range = start.and_then(|start| Some((start, start.checked_add(asked.count as u64 * 512)?)));
    let range = range.filter(|(_, end)| *end <= SECTOR_COUNT * 512);
    let is_clear = [client::DISCARD, client::WRITE_ZEROES].contains(&asked.kind);
    match asked.kind {
        client::FLUSH => return same(0),
        client::GET_ID => {
            let mut data = given.to_vec();
            data[..20].copy_from_slice(b"disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
            return (0, data);
        }
        kind if !is_clear && kind > 1 => return same(2),
        client::DISCARD if asked.flags != 0 => return same(2),
        client::WRITE_ZEROES if asked.flags & !1 != 0 => return same(2),
        _ => (),
    }
    let Some((start, end)) = range else {
        return same(1);
    };
    let part = &mut bytes[start as usize..end as usize];
    match asked.kind {
        client::READ => return (0, part.to_vec()),
        client::WRITE => part.copy_from_slice(given),
        client::WRITE_ZEROES => part.fill(0),
        _ => {
            let (first, last) = (start.next_multiple_of(4096), end / 4096 * 4096);
            if first < last {
                bytes[first as usize..last as usize].fill(0);
            }
        }
    }
    same(0)
}

fn given(asked: &Asked) -> Vec<u8> {
    match asked.kind {
        client::DISCARD | client::WRITE_ZEROES => {
            client::range(asked.sector, asked.count, asked.flags).to_vec()
        }
        client::FLUSH => Vec::new(),
        _ => vec![asked.byte; asked.count as usize * 512],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_requests_give_what_the_protocol_says(
        requests in proptest::collection::vec(asked(), 1..60),
        is_scattered in any::<bool>(),
    ) {
        let device = Arc::new(MemoryDevice::new(vec![1; LENGTH]));
        let served = Served::new(device.clone());
        let mut guest = served.guest();
        let mut bytes = vec![1; LENGTH];
        for asked in &requests {
            let given = given(asked);
            let answer = match is_scattered && !given.is_empty() {
                true => scattered(&mut guest, asked, &given),
                false => guest.call(asked.kind, asked.sector, &given),
            };
            prop_assert_eq!(answer, expected(asked, &given, &mut bytes), "{:?}", asked);
        }
        prop_assert!(device.to_vec() == bytes);
    }
}

/// The same request, with its data in pieces of odd lengths, by an indirect table.
fn scattered(guest: &mut Guest, asked: &Asked, given: &[u8]) -> (u8, Vec<u8>) {
    let data = Guest::data_at(0);
    // The table and the header are in slots that nobody else uses.
    let (table, header) = (Guest::data_at(1), Guest::data_at(2));
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&asked.kind.to_le_bytes());
    bytes[8..].copy_from_slice(&asked.sector.to_le_bytes());
    guest.put(header, &bytes);
    guest.put(header + 32, &[0xff]);
    let takes = matches!(asked.kind, client::READ | client::GET_ID | 2 | 3 | 5..=7);
    let takes = if takes { client::WRITABLE } else { 0 };
    let mut parts = vec![(client::BASE + header, 7, 0), (client::BASE + header + 7, 9, 0)];
    let mut at = 0;
    while at < given.len() {
        let len = (given.len() - at).min(1 + (at * 7 + 300) % 3000);
        // Every other piece lies elsewhere, so that pieces are no neighbours.
        let place = data + at as u64 + if parts.len() % 2 == 0 { 1 << 19 } else { 0 };
        guest.put(place, &given[at..at + len]);
        parts.push((client::BASE + place, len as u32, takes));
        at += len;
    }
    parts.push((client::BASE + header + 32, 1, client::WRITABLE));
    for (index, (address, len, flags)) in parts.iter().enumerate() {
        let next = if index + 1 < parts.len() { client::NEXT } else { 0 };
        let bytes = client::descriptor_bytes(*address, *len, flags | next, (index + 1) as u16);
        guest.put(table + index as u64 * 16, &bytes);
    }
    guest.descriptor(0, client::BASE + table, parts.len() as u32 * 16, client::INDIRECT, 0);
    guest.offer(0);
    guest.kick();
    assert_eq!(guest.wait(20).len(), 1);
    let taken = parts[2..parts.len() - 1]
        .iter()
        .flat_map(|(address, len, _)| guest.get(address - client::BASE, *len as usize))
        .collect();
    (guest.get(header + 32, 1)[0], taken)
}
