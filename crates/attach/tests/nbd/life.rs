//! Starting, stopping, and what one connection's end does to others.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use attach::nbd::{Address, NbdServer};
use model::Kind;
use model::device::{Device, Extent, MemoryDevice};

use crate::raw_client::{self as raw, RawClient};
use crate::{Served, export};

fn device() -> Arc<dyn Device> {
    Arc::new(MemoryDevice::new(vec![5; 1 << 20]))
}

#[test]
fn stopping_ends_connections_and_removes_the_socket() {
    let Served { server, _folder } = Served::unix(device());
    let Address::Unix(path) = server.address().clone() else { panic!() };
    let mut idle = RawClient::transmitting(&server, true);
    let mut shaking = RawClient::connect(&server);
    server.stop();
    assert!(idle.is_closed() && shaking.is_closed());
    assert!(!path.exists());
    // The place is free for the next one.
    NbdServer::start(&Address::Unix(path), vec![export("disk", device())]).unwrap().stop();
}

#[test]
fn a_client_that_takes_nothing_does_not_keep_the_server_from_stopping() {
    let served = Served::unix(Arc::new(MemoryDevice::new(vec![5; 8 << 20])));
    let mut client = RawClient::transmitting(&served.server, true);
    for cookie in 0..4 {
        client.request(raw::READ, 0, cookie, 0, 8 << 20);
    }
    // One byte of the first reply: the server is now blocked in the middle of it.
    client.take(1);
    served.server.stop();
}

#[test]
fn a_dead_servers_socket_is_replaced_and_a_living_ones_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    let address = Address::Unix(path.clone());
    let start = || NbdServer::start(&address, vec![export("disk", device())]);
    // Dropping a listener leaves its file.
    drop(UnixListener::bind(&path).unwrap());
    let server = start().unwrap();
    RawClient::transmitting(&server, true);

    let error = start().err().unwrap();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("in use"), "{error}");
    RawClient::transmitting(&server, true);
    server.stop();

    std::fs::write(&path, "precious").unwrap();
    assert_eq!(start().err().unwrap().kind(), Kind::Refused);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_socket_file_that_became_anothers_is_left_alone() {
    let Served { server, _folder } = Served::unix(device());
    let Address::Unix(path) = server.address().clone() else { panic!() };
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    server.stop();
    assert!(path.exists());
}

#[test]
fn only_loopback_is_served_over_tcp() {
    let error = |text: &str| {
        let exports = vec![export("disk", device())];
        NbdServer::start(&text.parse().unwrap(), exports).err().unwrap()
    };
    assert_eq!(error("0.0.0.0:0").kind(), Kind::Refused);
    assert!(error("[::]:0").hint_text().is_some());

    let served = Served::tcp(device());
    assert_ne!(served.server.address().to_string(), "tcp:127.0.0.1:0");
    assert_eq!(error(&served.server.address().to_string()).kind(), Kind::Refused);
}

#[test]
fn exports_need_names_of_their_own() {
    let address: Address = "127.0.0.1:0".parse().unwrap();
    let long = "x".repeat(1025);
    for exports in [vec![], vec!["a", "a"], vec!["a\0b"], vec![long.as_str()]] {
        let exports = exports.into_iter().map(|name| export(name, device())).collect();
        let error = NbdServer::start(&address, exports).err().unwrap();
        assert_eq!(error.kind(), Kind::Invalid);
    }
}

#[test]
fn there_are_at_most_64_connections() {
    let served = Served::unix(device());
    let mut clients: Vec<_> =
        (0..64).map(|_| RawClient::transmitting(&served.server, true)).collect();
    let Address::Unix(path) = served.server.address() else { panic!() };
    let mut refused = std::os::unix::net::UnixStream::connect(path).unwrap();
    assert_eq!(std::io::Read::read(&mut refused, &mut [0]).unwrap(), 0);
    // An ended connection makes room.
    let mut last = clients.pop().unwrap();
    last.request(raw::DISC, 0, 0, 0, 0);
    assert!(last.is_closed());
    crate::wait_until(|| {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        std::io::Read::read(&mut stream, &mut [0]).is_ok_and(|count| count == 1)
    });
}

/// Panics on some requests.
struct Panics(MemoryDevice);

impl Device for Panics {
    fn length(&self) -> u64 {
        self.0.length()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> model::Result<()> {
        assert!(offset != 4096, "a mistake in a device");
        self.0.read(offset, buffer)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> model::Result<()> {
        self.0.write(offset, bytes)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> model::Result<()> {
        self.0.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> model::Result<()> {
        self.0.discard(offset, len)
    }
    fn flush(&self) -> model::Result<()> {
        panic!("a mistake in a device")
    }
    fn prefetch(&self, offset: u64, len: u64) -> model::Result<()> {
        self.0.prefetch(offset, len)
    }
    fn extents(&self, offset: u64, len: u64, max: usize) -> model::Result<Vec<Extent>> {
        self.0.extents(offset, len, max)
    }
}

#[test]
fn a_panic_ends_one_connection() {
    let served = Served::unix(Arc::new(Panics(MemoryDevice::new(vec![5; 8192]))));
    let mut witness = RawClient::transmitting(&served.server, true);
    let mut client = RawClient::transmitting(&served.server, true);
    client.request(raw::READ, 0, 1, 4096, 512);
    assert!(client.is_closed());
    // This one happens on a side thread.
    let mut client = RawClient::transmitting(&served.server, false);
    client.request(raw::FLUSH, 0, 1, 0, 0);
    assert!(client.is_closed());
    assert_eq!(witness.call(raw::READ, 0, 0, 4096, &[]).data, vec![5; 4096]);
    RawClient::transmitting(&served.server, true);
}
