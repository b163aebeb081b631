//! Clients that break the protocol: they lose their connection, and nobody else notices.

use std::io::Write;
use std::sync::Arc;

use model::device::MemoryDevice;
use proptest::prelude::*;

use crate::Served;
use crate::raw_client::{self as raw, RawClient};

fn served() -> Served {
    Served::unix(Arc::new(MemoryDevice::new(vec![5; 1 << 20])))
}

/// A fresh connection is served as if nothing had happened.
fn assert_serves(served: &Served) {
    let reply = RawClient::transmitting(&served.server, true).call(raw::READ, 0, 0, 512, &[]);
    assert_eq!((reply.error, reply.data), (0, vec![5; 512]));
}

/// Bytes that get past the first checks more often than bytes at random.
fn option_bytes() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        any::<Vec<u8>>(),
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(4), any::<u8>()], 0..40),
    ];
    let magic = prop_oneof![9 => Just(*b"IHAVEOPT"), 1 => any::<[u8; 8]>()];
    let wrong_len = prop_oneof![5 => Just(None), 1 => any::<u32>().prop_map(Some)];
    (magic, 0..14u32, wrong_len, data).prop_map(|(magic, option, wrong_len, data)| {
        let len = wrong_len.unwrap_or(data.len() as u32);
        [&magic[..], &option.to_be_bytes(), &len.to_be_bytes(), &data].concat()
    })
}

fn request_bytes() -> impl Strategy<Value = Vec<u8>> {
    let magic = prop_oneof![19 => Just(0x2560_9513_u32), 1 => any::<u32>()];
    let numbers = (0..9u16, any::<u16>(), any::<u64>(), any::<u64>(), any::<u32>());
    (magic, numbers, any::<Vec<u8>>()).prop_map(
        |(magic, (command, flags, cookie, offset, len), data)| {
            let mut bytes =
                raw::request(command, flags & 0x1f, cookie, offset % (1 << 21), len % (1 << 22));
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            bytes.extend(data);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_handshake_ends_the_server(
        flags in prop_oneof![9 => 0..4u32, 1 => any::<u32>()],
        options in proptest::collection::vec(option_bytes(), 0..8),
    ) {
        let served = served();
        let mut client = RawClient::connect(&served.server);
        // The server may close in the middle of it.
        let _ = client.sender.write_all(&flags.to_be_bytes());
        let _ = client.sender.write_all(&options.concat());
        drop(client);
        assert_serves(&served);
    }

    #[test]
    fn no_transmission_ends_the_server(
        structured in any::<bool>(),
        requests in proptest::collection::vec(request_bytes(), 0..12),
    ) {
        let served = served();
        let mut client = RawClient::transmitting(&served.server, structured);
        let _ = client.sender.write_all(&requests.concat());
        drop(client);
        assert_serves(&served);
    }
}

#[test]
fn options_are_refused_one_by_one() {
    let served = served();
    let mut client = RawClient::connect(&served.server);
    client.send(&3u32.to_be_bytes());
    let unsupported = 0x8000_0001;
    let invalid = 0x8000_0003;
    let unknown = 0x8000_0006;
    let asked: [(u32, &[u8], u32); 9] = [
        (5, &[], unsupported),
        (77, b"data", unsupported),
        (3, b"data", invalid),
        (8, b"data", invalid),
        (7, b"\0\0\0\x05other\0\0", unknown),
        (6, b"\0\0\0\x05oth", invalid),
        (6, b"\0\0\0\0\0\x01", invalid),
        // Metadata before structured replies.
        (10, b"\0\0\0\0\0\0\0\0", invalid),
        (9, b"\0\0\0\0\0\0\0\0", invalid),
    ];
    for (option, data, error) in asked {
        client.option(option, data);
        let reply = client.option_reply();
        assert_eq!((reply.0, reply.1), (option, error), "option {option}");
    }
    client.option(2, &[]);
    assert_eq!(client.option_reply(), (2, 1, vec![]));
    assert!(client.is_closed());
}

#[test]
fn a_context_that_was_set_for_another_export_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let address = attach::nbd::Address::Unix(folder.path().join("nbd.sock"));
    let device = || Arc::new(MemoryDevice::new(vec![5; 4096]));
    let exports = vec![crate::export("a", device()), crate::export("b", device())];
    let server = attach::nbd::NbdServer::start(&address, exports).unwrap();
    let mut client = RawClient::connect(&server);
    client.send(&3u32.to_be_bytes());
    client.option(8, &[]);
    assert_eq!(client.option_reply().1, 1);
    client.option(10, b"\0\0\0\x01b\0\0\0\x01\0\0\0\x0fbase:allocation");
    assert_eq!(client.option_reply().1, 4);
    assert_eq!(client.option_reply().1, 1);
    client.option(7, b"\0\0\0\x01a\0\0");
    while client.option_reply().1 != 1 {}
    client.structured = true;
    assert_eq!(client.call(raw::BLOCK_STATUS, 0, 0, 4096, &[]).error, 22);
}

#[test]
fn the_oldest_client_that_is_understood_gets_124_zeroes() {
    let served = served();
    let mut client = RawClient::connect(&served.server);
    client.send(&0u32.to_be_bytes());
    client.option(1, b"disk");
    assert_eq!(client.take(8), (1u64 << 20).to_be_bytes());
    client.take(2);
    assert_eq!(client.take(124), [0; 124]);
    assert_eq!(client.call(raw::READ, 0, 512, 10, &[]).data, [5; 10]);
}

#[test]
fn too_long_a_write_and_a_wrong_magic_close_the_connection() {
    let served = served();
    let mut client = RawClient::transmitting(&served.server, true);
    client.request(raw::WRITE, 0, 1, 0, (32 << 20) + 1);
    assert!(client.is_closed());
    let mut client = RawClient::transmitting(&served.server, true);
    client.send(&[7; 28]);
    assert!(client.is_closed());
    let mut client = RawClient::connect(&served.server);
    client.send(&3u32.to_be_bytes());
    client.send(&[&b"IHAVEOPT"[..], &[0, 0, 0, 3, 0xff, 0, 0, 0]].concat());
    assert_eq!(client.option_reply().1, 0x8000_0009);
    assert!(client.is_closed());
    assert_serves(&served);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Requests on one export of a server, with any numbers: no byte of its other export is seen or
    /// changed.
    #[test]
    fn no_request_reaches_another_export(
        requests in proptest::collection::vec(
            (0..9u16, any::<u16>(), prop_oneof![3 => 0..30_000u64, 1 => any::<u64>()], any::<u32>()),
            1..40),
    ) {
        const FOREIGN: u8 = 0xa5;
        let folder = tempfile::tempdir().unwrap();
        let address = attach::nbd::Address::Unix(folder.path().join("nbd.sock"));
        let other = Arc::new(MemoryDevice::new(vec![FOREIGN; 20_000]));
        let own = crate::export("a", Arc::new(MemoryDevice::new(vec![5; 20_000])));
        let exports = vec![own, crate::export("b", other.clone())];
        let server = attach::nbd::NbdServer::start(&address, exports).unwrap();
        let mut client = RawClient::transmitting(&server, true);
        for (command, flags, offset, len) in requests {
            // Command 2 disconnects, and too long a write costs the connection.
            let command = if command == raw::DISC { 10 } else { command };
            let len = if command == raw::WRITE { len % 30_000 } else { len };
            let payload = vec![9; if command == raw::WRITE { len as usize } else { 0 }];
            let reply = client.call(command, flags & 0x1f, offset, len, &payload);
            prop_assert!(command != raw::READ || !reply.data.contains(&FOREIGN));
        }
        prop_assert!(other.to_vec() == vec![FOREIGN; 20_000]);
    }
}
