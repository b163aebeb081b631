//! What a guest sees, connections one after the other, and servers that are killed.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use attach::vhost_user::VhostUserServer;
use model::Result;
use model::device::{Device, Extent, MemoryDevice};

use crate::Served;
use crate::client::{self, Guest, SLOT_LEN};

#[path = "../nbd/file_device.rs"]
mod file_device;

#[test]
fn a_guest_reads_how_long_the_disk_is_and_how_it_wants_to_be_used() {
    let served = Served::new(Arc::new(MemoryDevice::new(vec![0; 10 * 4096 + 511])));
    let mut guest = served.guest();
    let config = guest.config();
    let field = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!((field(0), field(4)), (80, 0));
    assert_eq!((field(20), config[24]), (512, 3));
    assert_eq!(config[16..20], [2, 0, 16, 63], "a shape that boot loaders divide by");
    assert!(guest.features & 1 << 9 != 0 && guest.features & 1 << 5 == 0);
    assert!(guest.features & 1 << 11 == 0, "a write-back cache that can be switched off");
}

#[test]
fn a_guest_is_told_that_its_disk_became_longer_and_uses_what_was_added() {
    let device = Arc::new(MemoryDevice::new(vec![3; 8 * 512]));
    let served = Served::new(device.clone());
    assert!(!served.server().announce_length(), "nobody is there to be told");
    let mut guest = served.guest();
    assert!(!served.server().announce_length(), "it gave no socket to be told by");
    let mut ear = guest.listen();
    assert_eq!(guest.call(client::READ, 8, &[0; 512]).0, 1);
    device.grow(16 * 512 + 100);
    assert!(served.server().announce_length());
    let mut message = [0_u8; 12];
    ear.read_exact(&mut message).unwrap();
    let word = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4), word(8)), (2, 1, 0), "a change of the configuration");
    assert_eq!(guest.config()[..8], 16u64.to_le_bytes());
    assert_eq!(guest.call(client::WRITE, 15, &[7; 512]).0, 0);
    assert_eq!(guest.call(client::READ, 15, &[0; 512]), (0, vec![7; 512]));
    assert_eq!(guest.call(client::READ, 16, &[0; 512]).0, 1);
    // Whoever does not listen holds nobody up, and the next guest is asked anew.
    while served.server().announce_length() {}
    assert_eq!(guest.call(client::READ, 0, &[0; 512]), (0, vec![3; 512]));
    guest.disconnect();
    let mut next = served.guest();
    assert!(!served.server().announce_length());
    assert_eq!(next.config()[..8], 16u64.to_le_bytes());
}

#[test]
fn a_read_only_disk_says_so_and_takes_no_write() {
    let device = Arc::new(MemoryDevice::read_only(vec![3; 4096]));
    let served = Served::new(device.clone());
    let mut guest = served.guest();
    assert!(guest.features & 1 << 5 != 0);
    assert_eq!(guest.call(client::WRITE, 0, &[1; 512]).0, 1);
    assert_eq!(guest.call(client::WRITE_ZEROES, 0, &client::range(0, 8, 0)).0, 1);
    assert_eq!(guest.call(client::DISCARD, 0, &client::range(0, 8, 0)).0, 1);
    assert_eq!(guest.call(client::FLUSH, 0, &[]).0, 0);
    assert_eq!(guest.call(client::READ, 0, &[0; 512]), (0, vec![3; 512]));
}

#[test]
fn a_second_guest_is_served_when_the_first_is_gone() {
    let served = Served::new(Arc::new(MemoryDevice::new(vec![3; 4096])));
    let mut first = served.guest();
    let path = served.path();
    let second = std::thread::spawn(move || {
        let mut guest = Guest::new();
        guest.connect(&path).unwrap();
        guest.call(client::READ, 0, &[0; 512])
    });
    assert_eq!(first.call(client::WRITE, 0, &[4; 512]).0, 0);
    assert!(!second.is_finished());
    first.disconnect();
    assert_eq!(second.join().unwrap(), (0, vec![4; 512]));
}

#[test]
fn a_stopped_server_has_answered_what_it_took_and_left_no_socket() {
    let device = Arc::new(MemoryDevice::new(vec![0; 64 << 12]));
    let served = Served::new(device.clone());
    let mut guest = served.guest();
    for slot in 0..64 {
        guest.put(Guest::data_at(slot), &[slot as u8; 4096]);
        guest.submit(slot, client::WRITE, u64::from(slot) * 8, 4096);
    }
    guest.kick();
    // It may stop before it has taken all of them.
    let taken = guest.stop() as usize;
    assert_eq!(guest.reap().len(), taken);
    let path = served.path();
    served.server.stop();
    assert!(!path.exists());
    for (at, block) in device.to_vec().chunks(4096).enumerate() {
        assert!(block == [if at < taken { at as u8 } else { 0 }; 4096], "block {at} of {taken}");
    }
}

/// A device that may wait wherever it can: what changes a part of a block is executed aside, and so
/// requests are answered in another order than they came in.
struct Waiting(file_device::FileDevice);

impl Device for Waiting {
    fn length(&self) -> u64 {
        self.0.length()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read(offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if !bytes.len().is_multiple_of(4096) {
            // As long as a fetch from near by.
            std::thread::park_timeout(std::time::Duration::from_micros(300));
        }
        self.0.write(offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.0.write_zeroes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.0.prefetch(offset, len)
    }

    fn may_wait(&self, _offset: u64, _len: u64) -> bool {
        true
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.0.extents(offset, len, max)
    }
}

const SOCKET: &str = "LARDER_TEST_SOCKET";

/// Not a test: what `a_killed_server_loses_nothing` starts and kills.
#[test]
#[ignore = "a server for another test"]
fn server_to_be_killed() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let socket = Path::new(&socket);
    let disk = socket.with_file_name("disk");
    let file = std::fs::File::options().read(true).write(true).open(disk).unwrap();
    let device = Arc::new(Waiting(file_device::FileDevice::new(file)));
    let _server = VhostUserServer::start(socket, "disk", device).unwrap();
    loop {
        std::thread::park();
    }
}

/// A server in a process of its own, which ends with this value.
struct Killable(Child);

impl Killable {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_server(socket: &Path) -> Killable {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::server_to_be_killed", "--ignored"])
        .env(SOCKET, socket)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begin = std::time::Instant::now();
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(begin.elapsed().as_secs() < 20, "no server");
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
    Killable(child)
}

/// Every write that was offered is there in the end, though its server was killed again and again:
/// what was under way is done by the next server, and nothing older is done late.
#[test]
fn a_killed_server_loses_nothing() {
    const BLOCK_COUNT: usize = 512;
    // Of every block at least.
    const WRITTEN_LEN: usize = 3584;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vhost.sock");
    let disk = folder.path().join("disk");
    std::fs::write(&disk, vec![0; BLOCK_COUNT * 4096]).unwrap();
    let mut server = start_server(&socket);
    let mut guest = Guest::new();
    guest.connect(&socket).unwrap();
    let mut truth = vec![0u32; BLOCK_COUNT];
    // Which block each slot writes; a block has one write under way at most, as file systems do it.
    let mut slots = [usize::MAX; 32];
    let mut random = 1u64;
    let (mut stamp, mut answered, mut kills) = (0u32, 0, 0);
    let mut idle: Vec<u16> = (0..slots.len() as u16).collect();
    while answered < 30_000 {
        while let Some(slot) = idle.pop() {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut block = (random >> 33) as usize % BLOCK_COUNT;
            while slots.contains(&block) {
                block = (block + 1) % BLOCK_COUNT;
            }
            stamp += 1;
            slots[usize::from(slot)] = block;
            truth[block] = stamp;
            guest.put(Guest::data_at(slot), &stamp.to_le_bytes().repeat(1024));
            // A part of a block is written aside, a whole one on the ring's thread.
            let len = if stamp.is_multiple_of(4) { WRITTEN_LEN } else { 4096 };
            guest.submit(slot, client::WRITE, block as u64 * 8, len);
        }
        guest.kick();
        if answered > (kills + 1) * 3_000 {
            kills += 1;
            server.kill();
            server = start_server(&socket);
            guest.connect(&socket).unwrap();
        }
        let answers = guest.wait(20);
        assert!(!answers.is_empty(), "a request was lost after {kills} kills");
        for (slot, status) in answers {
            assert_eq!(status, 0);
            let block = std::mem::replace(&mut slots[usize::from(slot)], usize::MAX);
            assert!(block != usize::MAX, "a request was answered twice");
            idle.push(slot);
            answered += 1;
        }
    }
    while idle.len() < slots.len() {
        let answers = guest.wait(20);
        assert!(!answers.is_empty());
        idle.extend(answers.iter().map(|(slot, _)| slot));
    }
    assert!(kills >= 8);
    server.kill();
    let bytes = std::fs::read(&disk).unwrap();
    for (block, stamp) in truth.iter().enumerate() {
        let found = &bytes[block * 4096..][..WRITTEN_LEN];
        assert!(found == stamp.to_le_bytes().repeat(WRITTEN_LEN / 4), "block {block}");
    }
}

/// Many long and short requests at once, with long data in one piece.
#[test]
fn requests_that_are_under_way_together_are_all_answered() {
    let device = Arc::new(MemoryDevice::new((0..64 << 20).map(|at| (at >> 12) as u8).collect()));
    let served = Served::new(device);
    let mut guest = served.guest();
    let mut random = 7u64;
    let mut asked = vec![(0u64, 0usize); 64];
    let mut checked = 0;
    let asked = std::cell::RefCell::new(&mut asked);
    guest.stream(
        32,
        2000,
        |guest, slot| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let len = if random >> 60 == 0 { SLOT_LEN } else { 4096 };
            let sector = (random >> 20) % (63 << 11);
            asked.borrow_mut()[usize::from(slot)] = (sector, len);
            guest.submit(slot, client::READ, sector, len);
        },
        |guest, slot, status| {
            let (sector, len) = asked.borrow()[usize::from(slot)];
            assert_eq!(status, 0);
            let got = guest.get(Guest::data_at(slot), len);
            let start = sector as usize * 512;
            assert!(got.iter().enumerate().all(|(at, byte)| *byte == ((start + at) >> 12) as u8));
            checked += 1;
        },
    );
    assert_eq!(checked, 2000);
}
