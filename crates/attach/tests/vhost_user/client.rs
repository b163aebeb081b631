//! A guest of our own: memory, one ring, and the front end's side of the socket.
//!
//! The memory outlives connections, as a guest outlives the server of its disk.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, SealFlags};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion,
};
use vmm_sys_util::eventfd::EventFd;

pub const READ: u32 = 0;
pub const WRITE: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const NEXT: u16 = 1;
pub const WRITABLE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Entries of the ring; a request takes three.
pub const QUEUE_SIZE: u16 = 256;
/// Requests that may be under way at once.
pub const SLOT_COUNT: u16 = 64;
/// Bytes of data of one request.
pub const SLOT_LEN: usize = 1 << 20;
/// Where the guest's memory begins, by its own address.
pub const BASE: u64 = 1 << 30;
const MEMORY_LEN: usize = DATA as usize + SLOT_COUNT as usize * SLOT_LEN;

const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x4000;
const HEADERS: u64 = 0x8000;
const DATA: u64 = 0x10_0000;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;

pub struct Guest {
    memory: GuestMemoryMmap,
    file: File,
    available: u16,
    kicked: u16,
    used: u16,
    inflight: Option<(VhostUserInflight, File)>,
    kick: EventFd,
    call: EventFd,
    frontend: Option<Frontend>,
    pub features: u64,
}

impl Guest {
    pub fn new() -> Guest {
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY_LEN as u64).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let mapping = MmapRegion::from_file(offset, MEMORY_LEN).unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(BASE)).unwrap();
        let event = || EventFd::new(0x800).unwrap();
        Guest {
            memory: GuestMemoryMmap::from_regions(vec![region]).unwrap(),
            file,
            available: 0,
            kicked: 0,
            used: 0,
            inflight: None,
            kick: event(),
            call: event(),
            frontend: None,
            features: 0,
        }
    }

    /// Connects, and starts the ring where it stands.
    pub fn connect(&mut self, path: &Path) -> Result<(), vhost::Error> {
        self.frontend = None;
        let mut frontend = Frontend::connect(path, 1)?;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        self.features = offered;
        frontend.set_features(offered)?;
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let wanted = wanted & frontend.get_protocol_features()?;
        frontend.set_protocol_features(wanted)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if wanted.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            if self.inflight.is_none() {
                let asked = VhostUserInflight::new(0, 0, 1, QUEUE_SIZE);
                self.inflight = Some(frontend.get_inflight_fd(&asked)?);
            }
            let (region, file) = self.inflight.as_ref().unwrap();
            frontend.set_inflight_fd(region, file.as_raw_fd())?;
        }
        let user = self.memory.get_host_address(GuestAddress(BASE)).unwrap() as u64;
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: MEMORY_LEN as u64,
            userspace_addr: user,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }])?;
        frontend.set_vring_num(0, QUEUE_SIZE)?;
        // A server that does not keep the in-flight region goes on from here.
        frontend.set_vring_base(0, self.load(USED + 2))?;
        frontend.set_vring_addr(
            0,
            &VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
                flags: 0,
                desc_table_addr: user,
                used_ring_addr: user + USED,
                avail_ring_addr: user + AVAILABLE,
                log_addr: None,
            },
        )?;
        frontend.set_vring_call(0, &self.call)?;
        frontend.set_vring_kick(0, &self.kick)?;
        if offered & PROTOCOL_FEATURES != 0 {
            frontend.set_vring_enable(0, true)?;
        }
        self.frontend = Some(frontend);
        Ok(())
    }

    /// Writes into the in-flight region, as a front end that keeps it may.
    pub fn put_inflight(&self, at: u64, bytes: &[u8]) {
        let (_, file) = self.inflight.as_ref().unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    /// Takes a file for the in-flight region that no server has made.
    pub fn give_inflight(&mut self, len: u64, claimed_len: u64, is_sealed: bool) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("inflight", flags).unwrap());
        file.set_len(len).unwrap();
        if is_sealed {
            rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        }
        self.inflight = Some((VhostUserInflight::new(claimed_len, 0, 1, QUEUE_SIZE), file));
    }

    /// What the disk says of itself.
    pub fn config(&mut self) -> Vec<u8> {
        let frontend = self.frontend.as_mut().unwrap();
        let flags = VhostUserConfigFlags::empty();
        frontend.get_config(0, 60, flags, &[0; 60]).unwrap().1
    }

    /// Stops the ring; the index of the next request.
    pub fn stop(&mut self) -> u32 {
        self.frontend.as_ref().unwrap().get_vring_base(0).unwrap()
    }

    pub fn disconnect(&mut self) {
        self.frontend = None;
    }

    fn store(&self, at: u64, value: u16) {
        self.memory.store(value, GuestAddress(BASE + at), Ordering::Release).unwrap();
    }

    fn load(&self, at: u64) -> u16 {
        self.memory.load(GuestAddress(BASE + at), Ordering::Acquire).unwrap()
    }

    /// Puts bytes anywhere into the guest's memory.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(BASE + at)).unwrap();
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(BASE + at)).unwrap();
        bytes
    }

    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.put(u64::from(index) * 16, &descriptor_bytes(address, len, flags, next));
    }

    /// Makes a chain available, without a kick.
    pub fn offer(&mut self, head: u16) {
        self.store(AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE), head);
        self.available = self.available.wrapping_add(1);
        self.store(AVAILABLE + 2, self.available);
    }

    /// Claims more or fewer requests than were offered.
    pub fn claim(&mut self, index: u16) {
        self.available = index;
        self.store(AVAILABLE + 2, index);
    }

    /// Kicks where the server wants to be.
    pub fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let (new, old) = (self.available, self.kicked);
        self.kicked = new;
        let event = self.load(USED + 4 + 8 * u64::from(QUEUE_SIZE));
        let wanted = new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        if self.features & EVENT_IDX == 0 || wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// Kicks whatever the server wants.
    pub fn kick_anyway(&mut self) {
        self.kicked = self.available;
        self.kick.write(1).unwrap();
    }

    pub fn data_at(slot: u16) -> u64 {
        DATA + u64::from(slot) * SLOT_LEN as u64
    }

    /// Offers a request, whose data stands in its slot.
    pub fn submit(&mut self, slot: u16, kind: u32, sector: u64, len: usize) {
        let (head, header) = (slot * 3, HEADERS + u64::from(slot) * 64);
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(header, &bytes);
        self.put(header + 32, &[0xff]);
        let next = if len == 0 { head + 2 } else { head + 1 };
        self.descriptor(head, BASE + header, 16, NEXT, next);
        let takes = if kind == READ || kind == GET_ID { WRITABLE } else { 0 };
        self.descriptor(head + 1, BASE + Self::data_at(slot), len as u32, NEXT | takes, head + 2);
        self.descriptor(head + 2, BASE + header + 32, 1, WRITABLE, 0);
        self.offer(head);
    }

    /// The answers since the last call: slot and status.
    pub fn reap(&mut self) -> Vec<(u16, u8)> {
        let mut answers = Vec::new();
        while self.load(USED + 2) != self.used {
            let at = USED + 4 + 8 * u64::from(self.used % QUEUE_SIZE);
            let id: u32 = self.memory.load(GuestAddress(BASE + at), Ordering::Acquire).unwrap();
            let slot = (id / 3) as u16;
            let status: u8 = self
                .memory
                .load(GuestAddress(BASE + HEADERS + u64::from(slot) * 64 + 32), Ordering::Acquire)
                .unwrap();
            answers.push((slot, status));
            self.used = self.used.wrapping_add(1);
        }
        answers
    }

    /// Waits for answers; none where the server goes away, or nothing comes within the time.
    pub fn wait(&mut self, seconds: i64) -> Vec<(u16, u8)> {
        loop {
            let answers = self.reap();
            if !answers.is_empty() {
                return answers;
            }
            self.store(AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE), self.used);
            fence(Ordering::SeqCst);
            if self.load(USED + 2) != self.used {
                continue;
            }
            let frontend = self.frontend.as_ref().unwrap();
            // SAFETY: the front end keeps its socket open while it is borrowed.
            let socket = unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
            // SAFETY: as above, for the eventfd.
            let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
            let mut files =
                [PollFd::new(&call, PollFlags::IN), PollFd::new(&socket, PollFlags::HUP)];
            let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
            if rustix::event::poll(&mut files, Some(&limit)).unwrap() == 0 {
                return Vec::new();
            }
            if files[0].revents().contains(PollFlags::IN) {
                let _ = self.call.read();
            } else {
                return self.reap();
            }
        }
    }

    /// One request, with its data, to its end: status and data.
    pub fn call(&mut self, kind: u32, sector: u64, data: &[u8]) -> (u8, Vec<u8>) {
        self.put(Self::data_at(0), data);
        self.submit(0, kind, sector, data.len());
        self.kick();
        let answers = self.wait(20);
        assert_eq!(answers.len(), 1, "one answer to one request");
        assert_eq!(answers[0].0, 0);
        (answers[0].1, self.get(Self::data_at(0), data.len()))
    }

    /// Keeps `depth` requests under way until `total` are done: `next` offers one in a slot, `done`
    /// gets its status.
    pub fn stream(
        &mut self,
        depth: u16,
        total: u64,
        mut next: impl FnMut(&mut Guest, u16),
        mut done: impl FnMut(&mut Guest, u16, u8),
    ) {
        let (mut begun, mut ended) = (0, 0);
        while begun < total.min(depth.into()) {
            next(self, begun as u16);
            begun += 1;
        }
        self.kick();
        while ended < total {
            let answers = self.wait(60);
            assert!(!answers.is_empty(), "no answer");
            for (slot, status) in answers {
                done(self, slot, status);
                ended += 1;
                if begun < total {
                    next(self, slot);
                    begun += 1;
                }
            }
            self.kick();
        }
    }
}

pub fn descriptor_bytes(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// One range of a discard or a write of zeros.
pub fn range(sector: u64, count: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}
