//! Features, and what the guest reads about the disk.

use model::BLOCK_LEN;
use model::device::Device;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::request::SECTOR_LEN;

/// The most queues of one guest; each has a thread while it runs.
pub(super) const QUEUE_COUNT_MAX: usize = 16;
/// The most entries of a queue.
pub(super) const QUEUE_SIZE_MAX: u16 = 1024;
/// The bit by which a front end says that it speaks of protocol features at all.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;
/// The bit of `VIRTIO_F_EVENT_IDX`.
pub(super) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// The most segments of a request's data: with header and status they fit the 128 entries that
/// QEMU's queues have.
const DATA_SEGMENT_COUNT_MAX: u32 = 126;
/// The longest segment.
const SEGMENT_LEN_MAX: u32 = 1 << 20;
/// The most ranges of one discard, and of one write of zeros.
pub(super) const RANGE_COUNT_MAX: u32 = 64;
/// The most sectors of such a range: 1 GiB.
pub(super) const RANGE_SECTOR_COUNT_MAX: u32 = 1 << 21;
/// Bytes of the block that the store works in, as a power of two of the sector.
const PHYSICAL_BLOCK_EXPONENT: u8 = (BLOCK_LEN as u64 / SECTOR_LEN).trailing_zeros() as u8;
/// The shape that firmware and old boot loaders divide sector numbers by, as QEMU makes it up: heads,
/// sectors of a track, and the most cylinders. Without one syslinux, for example, does not start.
const HEAD_COUNT: u32 = 16;
const TRACK_SECTOR_COUNT: u32 = 63;
const CYLINDER_COUNT_MAX: u64 = 16383;
/// Bytes of what a guest may read; what is not said is 0.
const CONFIG_LEN: usize = 256;

/// What we offer for a device.
pub(super) fn features(device: &dyn Device) -> u64 {
    let always = [
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_GEOMETRY,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ,
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
    ];
    let depends: &[u32] = match device.is_read_only() {
        true => &[VIRTIO_BLK_F_RO],
        false => &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES],
    };
    let bits = always.iter().chain(depends).fold(0, |bits, bit| bits | 1 << bit);
    bits | PROTOCOL_FEATURES
}

/// What we offer of the protocol.
pub(super) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::BACKEND_REQ
}

/// Whole sectors of a device; what is left over at its end is not shown to a guest.
pub(super) fn sector_count(device: &dyn Device) -> u64 {
    device.length() / SECTOR_LEN
}

/// `struct virtio_blk_config`, little-endian.
pub(super) fn bytes(device: &dyn Device) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sector_count(device).to_le_bytes());
    put(8, &SEGMENT_LEN_MAX.to_le_bytes());
    put(12, &DATA_SEGMENT_COUNT_MAX.to_le_bytes());
    let cylinders = sector_count(device) / u64::from(HEAD_COUNT * TRACK_SECTOR_COUNT);
    put(16, &(cylinders.clamp(2, CYLINDER_COUNT_MAX) as u16).to_le_bytes());
    put(18, &[HEAD_COUNT as u8, TRACK_SECTOR_COUNT as u8]);
    put(20, &(SECTOR_LEN as u32).to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXPONENT]);
    let blocks = 1u16 << PHYSICAL_BLOCK_EXPONENT;
    put(26, &blocks.to_le_bytes());
    put(34, &(QUEUE_COUNT_MAX as u16).to_le_bytes());
    if !device.is_read_only() {
        put(36, &RANGE_SECTOR_COUNT_MAX.to_le_bytes());
        put(40, &RANGE_COUNT_MAX.to_le_bytes());
        put(44, &u32::from(blocks).to_le_bytes());
        put(48, &RANGE_SECTOR_COUNT_MAX.to_le_bytes());
        put(52, &RANGE_COUNT_MAX.to_le_bytes());
        put(56, &[1]);
    }
    config
}
