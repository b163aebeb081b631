//! Messages that no kernel sends, on a socket in place of the device.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use proptest::prelude::*;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::core::Core;
use super::door::{Door, Owner};
use super::tree::MemoryTree;
use model::{ImageName, MirrorName};

const LOOKUP: u32 = 1;
const WRITE: u32 = 16;
const SETXATTR: u32 = 21;
const INIT: u32 = 26;
const DESTROY: u32 = 38;
const IOCTL: u32 = 39;
const BATCH_FORGET: u32 = 42;

/// The kernel's end of a mount that is none.
struct Kernel {
    socket: OwnedFd,
    next: u64,
}

impl Kernel {
    fn start() -> Kernel {
        let tree = MemoryTree::default();
        let image = ImageName::new("debian").unwrap();
        tree.add_version(&image, vec![1; 10_000]);
        tree.add_mirror(&MirrorName::new("web").unwrap(), &image, vec![1; 10_000]);
        let (socket, device) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let limit = Some(Duration::from_secs(20));
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            limit,
        )
        .unwrap();
        let owner = Owner { uid: 0, gid: 0, version_mode: 0o440 };
        let (door, _dropped) = Door::new(Core::new(Arc::new(tree)), owner);
        // The handshake is the first thing that the session wants.
        let mut kernel = Kernel { socket, next: 1 };
        let mut hello = Vec::new();
        for field in [7u32, 38, 1 << 20, u32::MAX] {
            hello.extend(field.to_le_bytes());
        }
        hello.extend([0; 48]);
        kernel.send(INIT, 0, &hello);
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(1);
        let session = Session::from_fd(door, device, SessionACL::All, config).unwrap();
        // It ends when the socket does.
        let _running = std::thread::spawn(move || session.run());
        assert!(kernel.receive().is_some());
        kernel
    }

    fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        let unique = self.next;
        self.next += 1;
        let mut bytes = (40 + body.len() as u32).to_le_bytes().to_vec();
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(unique.to_le_bytes());
        bytes.extend(node.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(body);
        rustix::net::send(&self.socket, &bytes, SendFlags::NOSIGNAL).unwrap();
        unique
    }

    /// The next answer: which, and its error.
    fn receive(&mut self) -> Option<(u64, i32)> {
        let mut bytes = vec![0; 1 << 20];
        let (_, len) = rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::empty()).ok()?;
        if len < 16 {
            return None;
        }
        let unique = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        Some((unique, i32::from_le_bytes(bytes[4..8].try_into().unwrap())))
    }
}

fn field() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..6u64,
        2 => 0..20_000u64,
        1 => (0..64u32).prop_map(|shift| 1 << shift),
        1 => any::<u64>(),
    ]
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let fields = proptest::collection::vec(field(), 0..9)
        .prop_map(|fields| fields.iter().flat_map(|field| field.to_le_bytes()).collect());
    let names = proptest::sample::select(vec!["mirrors", "web", "debian", "1", "", "..", "x/y"])
        .prop_map(|name| [name.as_bytes(), &[0]].concat());
    prop_oneof![6 => fields, 2 => names, 1 => proptest::collection::vec(any::<u8>(), 0..300)]
}

/// A length inside of a message says what follows, as a kernel's does; `fuser` relies on that.
fn consistent(opcode: u32, mut body: Vec<u8>) -> Vec<u8> {
    // Bytes of the fixed part, where its length is, and bytes of what it counts.
    let (fixed_len, at, unit) = match opcode {
        SETXATTR => (8, 0, 1),
        WRITE => (40, 16, 1),
        IOCTL => (32, 24, 1),
        BATCH_FORGET => (8, 0, 16),
        _ => return body,
    };
    if body.len() < fixed_len {
        body.resize(fixed_len, 0);
    }
    let count = ((body.len() - fixed_len) / unit) as u32;
    body[at..at + 4].copy_from_slice(&count.to_le_bytes());
    if opcode == SETXATTR {
        // The name comes first.
        body.splice(fixed_len..fixed_len, *b"name\0");
    }
    body
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Operations of any number on any node, with bodies of any content: the next one is answered.
    #[test]
    fn no_message_ends_the_session(
        messages in proptest::collection::vec((1..54u32, field(), body()), 1..30),
    ) {
        let mut kernel = Kernel::start();
        for (opcode, node, body) in &messages {
            if ![INIT, DESTROY].contains(opcode) {
                kernel.send(*opcode, *node, &consistent(*opcode, body.clone()));
            }
        }
        let last = kernel.send(LOOKUP, 1, b"mirrors\0");
        loop {
            let answer = kernel.receive();
            prop_assert!(answer.is_some(), "the session has ended after {messages:?}");
            let (unique, error) = answer.unwrap();
            if unique == last {
                prop_assert_eq!(error, 0);
                break;
            }
        }
    }
}
