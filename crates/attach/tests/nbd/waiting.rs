//! Requests that wait for a fetch or a flush do not hold up the others; errors find their numbers.

use std::sync::{Arc, Condvar, Mutex};

use model::device::{Device, Extent, MemoryDevice};
use model::{Error, Kind, Result};

use crate::Served;
use crate::raw_client::{self as raw, RawClient};

/// The second MiB is far away: reading it waits until the gate opens. So does a flush. From the
/// third on every call fails.
struct Far {
    near: MemoryDevice,
    kind: Kind,
    open: Mutex<bool>,
    opened: Condvar,
}

const MIB: u64 = 1 << 20;

impl Far {
    fn new(kind: Kind) -> Arc<Self> {
        let near = MemoryDevice::new(vec![5; 4 << 20]);
        Arc::new(Far { near, kind, open: Mutex::new(false), opened: Condvar::new() })
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
    }

    fn pass(&self, offset: u64, len: u64) -> Result<()> {
        if offset + len > 2 * MIB {
            return Err(Error::new(self.kind, "touch", "the far end").because("it fails"));
        }
        if self.may_wait(offset, len) {
            self.wait();
        }
        Ok(())
    }
}

/// Opens the gate when a test ends, however it ends: a server that stops waits for the device.
struct OpensAtEnd(Arc<Far>);

impl Drop for OpensAtEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl Device for Far {
    fn length(&self) -> u64 {
        self.near.length()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.pass(offset, buffer.len() as u64)?;
        self.near.read(offset, buffer)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if !bytes.len().is_multiple_of(4096) || offset >= 2 * MIB {
            self.pass(offset, bytes.len() as u64)?;
        }
        self.near.write(offset, bytes)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.near.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.near.discard(offset, len)
    }
    fn flush(&self) -> Result<()> {
        self.wait();
        Ok(())
    }
    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.pass(offset, len)
    }
    fn may_wait(&self, offset: u64, len: u64) -> bool {
        offset < 2 * MIB && offset + len > MIB
    }
    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.near.extents(offset, len, max)
    }
}

#[test]
fn near_requests_pass_those_that_wait() {
    for structured in [false, true] {
        let device = Far::new(Kind::Unavailable);
        let served = Served::unix(device.clone());
        let gate = OpensAtEnd(device);
        let mut client = RawClient::transmitting(&served.server, structured);
        let slow: [(u16, u16, u64, u32); 6] = [
            (raw::READ, 0, MIB, 4096),
            (raw::FLUSH, 0, 0, 0),
            (raw::CACHE, 0, MIB, 4096),
            (raw::WRITE_ZEROES, 1, 0, 4096),
            (raw::WRITE, 0, MIB + 1, 100),
            // Its bytes are written at once; what waits is the flush.
            (raw::WRITE, 1, 8192, 4096),
        ];
        for (cookie, (command, flags, offset, len)) in slow.into_iter().enumerate() {
            client.request(command, flags, cookie as u64, offset, len);
            if command == raw::WRITE {
                client.send(&vec![6; len as usize]);
            }
        }
        // None of them can be answered before the gate opens, and these are.
        assert_eq!(client.call(raw::READ, 0, 4096, 512, &[]).data, [5; 512]);
        assert_eq!(client.call(raw::WRITE, 0, 0, 4096, &[7; 4096]).error, 0);
        assert_eq!(client.call(raw::WRITE_ZEROES, 1 << 4, MIB + 1, 100, &[]).error, 95);
        gate.0.open();
        let mut seen = [false; 6];
        for _ in slow {
            let reply = client.reply(|cookie| if cookie == 0 { 4096 } else { 0 });
            assert_eq!(reply.error, 0);
            assert!(!std::mem::replace(&mut seen[reply.cookie as usize], true));
        }
        assert_eq!(client.call(raw::READ, 0, MIB + 1, 100, &[]).data, [6; 100]);
    }
}

#[test]
fn what_waits_is_answered_before_a_disconnect_and_never_lost_in_a_crowd() {
    let device = Far::new(Kind::Unavailable);
    let served = Served::tcp(device.clone());
    let gate = OpensAtEnd(device);
    let mut client = RawClient::transmitting(&served.server, true);
    for cookie in 0..200 {
        client.request(raw::READ, 0, cookie, MIB, 4096);
    }
    client.request(raw::DISC, 0, 0, 0, 0);
    gate.0.open();
    let mut seen: Vec<u64> = (0..200).map(|_| client.reply(|_| 4096).cookie).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
    assert!(client.is_closed());
}

#[test]
fn a_client_that_leaves_while_its_requests_wait_leaves_nothing_behind() {
    let device = Far::new(Kind::Unavailable);
    let served = Served::unix(device.clone());
    let gate = OpensAtEnd(device);
    let mut client = RawClient::transmitting(&served.server, true);
    for cookie in 0..20 {
        client.request(raw::READ, 0, cookie, MIB, 4096);
    }
    drop(client);
    gate.0.open();
    served.server.stop();
    // The server's threads are joined: nobody else holds the device.
    assert_eq!(Arc::strong_count(&gate.0), 1);
}

#[test]
fn a_devices_error_has_the_number_that_says_what_to_do() {
    for (kind, number) in [
        (Kind::Full, 28),
        (Kind::Refused, 1),
        (Kind::Invalid, 22),
        (Kind::Corrupt, 5),
        (Kind::Unavailable, 5),
        (Kind::Bug, 5),
    ] {
        let served = Served::unix(Far::new(kind));
        for structured in [false, true] {
            let mut client = RawClient::transmitting(&served.server, structured);
            assert_eq!(client.call(raw::READ, 0, 2 * MIB, 4096, &[]).error, number);
            assert_eq!(client.call(raw::WRITE, 0, 2 * MIB, 4096, &[1; 4096]).error, number);
            // The connection goes on.
            assert_eq!(client.call(raw::READ, 0, 0, 4096, &[]).data, [5; 4096]);
        }
    }
}

#[test]
fn a_long_read_that_fails_late_says_so_or_closes() {
    let device = Far::new(Kind::Corrupt);
    device.open();
    let served = Served::unix(device);
    let mut client = RawClient::transmitting(&served.server, true);
    client.request(raw::READ, 0, 9, MIB - 4096, (2 << 20) + 4096);
    let reply = client.reply(|_| 0);
    assert_eq!((reply.error, reply.data), (5, vec![5; 1 << 20]));
    assert_eq!(client.call(raw::READ, 0, 0, 4096, &[]).data, [5; 4096]);

    // Without chunks there is no way to say it: the header has left.
    let mut client = RawClient::transmitting(&served.server, false);
    client.request(raw::READ, 0, 9, 1, (3 << 20) - 1);
    let header = client.take(16);
    assert_eq!(header[4..8], [0; 4]);
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut client.stream, &mut rest).unwrap();
    assert!(rest.len() < (3 << 20) - 1);
}
