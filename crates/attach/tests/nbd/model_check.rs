//! The door against a vector of bytes: any sequence of requests gives what the protocol says.

use std::sync::Arc;

use model::device::{Device, MemoryDevice};
use proptest::prelude::*;

use crate::Served;
use crate::raw_client::{self as raw, RawClient, Reply};

const LENGTH: usize = 5 * 4096 + 100;
const FUA: u16 = 1;
const INVALID: u32 = 22;
const NO_SPACE: u32 = 28;

#[derive(Clone, Debug)]
struct Asked {
    command: u16,
    flags: u16,
    offset: u64,
    len: u32,
    byte: u8,
}

fn asked() -> impl Strategy<Value = Asked> {
    let offset = prop_oneof![
        8 => 0..LENGTH as u64 + 50,
        2 => (0..6u64).prop_map(|block| block * 4096),
        1 => (0..200u64).prop_map(|less| u64::MAX - less),
    ];
    let len = prop_oneof![
        4 => 0..9000u32,
        2 => (0..5u32).prop_map(|blocks| blocks * 4096),
        1 => Just(33 << 20),
        1 => Just(u32::MAX),
    ];
    (0..10u16, 0..4u16, offset, len, any::<u8>()).prop_map(|(command, flags, offset, len, byte)| {
        Asked {
            command,
            flags: if flags == 3 { 1 << (byte % 8) } else { flags & FUA },
            offset,
            // A write that is too long costs the connection: `garbage` looks at that.
            len: if command == raw::WRITE { len.min(9000) } else { len },
            byte,
        }
    })
}

/// What the reply must be; changes `bytes` as the device must.
fn expected(asked: &Asked, bytes: &mut [u8], structured: bool) -> Reply {
    let answer = |error, data| Reply { cookie: 7, error, data };
    let error = |error| answer(error, Vec::new());
    let known = match asked.command {
        raw::READ if structured => 1 << 2,
        raw::BLOCK_STATUS if structured => 1 << 3,
        raw::WRITE_ZEROES => (1 << 1) | (1 << 4),
        raw::READ | raw::WRITE | raw::FLUSH | raw::TRIM | raw::CACHE => 0,
        _ => return error(INVALID),
    };
    if asked.flags & !(known | FUA) != 0 {
        return error(INVALID);
    }
    let (start, end) = (asked.offset, asked.offset.checked_add(asked.len.into()));
    let Some(end) = end.filter(|end| *end <= LENGTH as u64) else {
        let grows = [raw::WRITE, raw::WRITE_ZEROES].contains(&asked.command);
        return error(if grows { NO_SPACE } else { INVALID });
    };
    let range = &mut bytes[start as usize..end as usize];
    match asked.command {
        raw::READ => return answer(0, range.to_vec()),
        raw::WRITE => range.fill(asked.byte),
        raw::WRITE_ZEROES => range.fill(0),
        raw::TRIM => {
            let (first, last) = (start.next_multiple_of(4096), end / 4096 * 4096);
            if first < last {
                bytes[first as usize..last as usize].fill(0);
            }
        }
        raw::FLUSH if start != 0 || end != 0 => return error(INVALID),
        raw::BLOCK_STATUS if range.is_empty() => return error(INVALID),
        raw::BLOCK_STATUS => {
            let device = MemoryDevice::new(bytes.to_vec());
            let max = if asked.flags & 8 != 0 { 1 } else { 99 };
            let extents = device.extents(start, asked.len.into(), max).unwrap();
            let descriptor = |extent: &model::device::Extent| {
                let state = if extent.kind == model::device::ExtentKind::Hole { 3u32 } else { 0 };
                [(extent.len as u32).to_be_bytes(), state.to_be_bytes()].concat()
            };
            return answer(0, extents.iter().flat_map(descriptor).collect());
        }
        _ => (),
    }
    error(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_requests_give_what_the_protocol_says(
        requests in proptest::collection::vec(asked(), 1..60),
        structured in any::<bool>(),
        tcp in any::<bool>(),
    ) {
        let device = Arc::new(MemoryDevice::new(vec![1; LENGTH]));
        let served =
            if tcp { Served::tcp(device.clone()) } else { Served::unix(device.clone()) };
        let mut bytes = vec![1; LENGTH];
        let mut client = RawClient::transmitting(&served.server, structured);
        for asked in &requests {
            let payload_len = if asked.command == raw::WRITE { asked.len } else { 0 };
            let payload = vec![asked.byte; payload_len as usize];
            // Command 2 disconnects.
            let command = if asked.command == raw::DISC { 11 } else { asked.command };
            let asked = Asked { command, ..asked.clone() };
            let reply = client.call(command, asked.flags, asked.offset, asked.len, &payload);
            prop_assert_eq!(reply, expected(&asked, &mut bytes, structured), "{:?}", asked);
        }
        prop_assert!(device.to_vec() == bytes);
    }
}

/// Requests that were sent together, in one go, are all answered, each once.
#[test]
fn pipelined_requests_are_all_answered() {
    for structured in [false, true] {
        let device = Arc::new(MemoryDevice::new((0..8 << 20).map(|i| (i >> 9) as u8).collect()));
        let served = Served::unix(device.clone());
        let mut client = RawClient::transmitting(&served.server, structured);
        let mut bytes = Vec::new();
        for cookie in 0..300u64 {
            bytes.extend(raw::request(raw::READ, 0, cookie, cookie * 512, 4096));
            if cookie % 50 == 0 {
                bytes.extend(raw::request(raw::FLUSH, 0, 1000 + cookie, 0, 0));
                bytes.extend(raw::request(raw::WRITE, FUA, 2000 + cookie, 4 << 20, 70_000));
                bytes.extend(vec![9; 70_000]);
                bytes.extend(raw::request(raw::READ, 0, 3000 + cookie, 100, 3 << 20));
            }
        }
        bytes.extend(raw::request(raw::DISC, 0, 0, 0, 0));
        let mut seen = std::collections::BTreeSet::new();
        // Sending and taking at the same time, as clients do: neither side may have to wait for
        // the other to take everything first.
        let mut sender = std::mem::replace(&mut client.sender, Box::new(std::io::sink()));
        let sending = std::thread::spawn(move || std::io::Write::write_all(&mut sender, &bytes));
        for _ in 0..300 + 3 * 6 {
            let reply = client.reply(|cookie| match cookie {
                0..1000 => 4096,
                3000.. => 3 << 20,
                _ => 0,
            });
            assert_eq!(reply.error, 0);
            let start = match reply.cookie {
                0..1000 => reply.cookie as usize * 512,
                _ => 100,
            };
            for (at, byte) in reply.data.iter().enumerate() {
                assert_eq!(*byte, ((start + at) >> 9) as u8);
            }
            assert!(seen.insert(reply.cookie), "{} was answered twice", reply.cookie);
        }
        sending.join().unwrap().unwrap();
        assert!(client.is_closed());
    }
}
