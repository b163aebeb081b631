//! The messages of one connection: the guest's memory, its rings, its configuration.
//!
//! ```text
//! features ── memory ── (in-flight region) ── size, base, addresses, call, kick ── ring runs
//!                                              └──────── get base: ring stops ────────┘
//! ```

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::config::{self, EVENT_IDX, PROTOCOL_FEATURES, QUEUE_COUNT_MAX, QUEUE_SIZE_MAX};
use super::execute::Disk;
use super::inflight::Inflight;
use super::memory::{Memory, REGION_COUNT_MAX};
use super::ring::{self, Ring, Setup, Side, Surroundings};
use crate::aside::Aside;

/// What a front end said of a ring, and the ring while it runs.
#[derive(Default)]
struct Slot {
    size: u16,
    base: u16,
    /// Descriptors, used, available: where the front end sees them.
    addresses: Option<[u64; 3]>,
    kick: Option<Arc<File>>,
    call: Arc<Mutex<Option<File>>>,
    is_enabled: bool,
    ring: Option<Ring>,
}

/// One connection.
pub(super) struct Session {
    around: Surroundings,
    features: u64,
    inflight: Option<Inflight>,
    slots: Vec<Slot>,
}

impl Session {
    pub(super) fn new(disk: Arc<Disk>, connection: Arc<UnixStream>) -> Self {
        let side = Side { disk: disk.clone(), connection: connection.clone() };
        let around = Surroundings {
            disk,
            memory: Arc::new(RwLock::new(Arc::new(Memory::none()))),
            aside: Arc::new(Mutex::new(Some(Aside::new(Arc::new(side))))),
            connection,
        };
        let slots = (0..QUEUE_COUNT_MAX).map(|_| Slot::default()).collect();
        Session { around, features: 0, inflight: None, slots }
    }

    fn slot(&mut self, index: u32) -> Result<&mut Slot> {
        self.slots.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn memory(&self) -> Arc<Memory> {
        self.around.memory.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rings that run take it for their next requests.
    fn set_memory(&self, memory: Memory) {
        *self.around.memory.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(memory);
    }

    fn stop_all(&mut self) {
        for slot in &mut self.slots {
            slot.stop();
        }
    }

    /// Starts a ring of which everything is known.
    fn start(&mut self, index: u32) -> Result<()> {
        let memory = self.memory();
        let inflight = self.inflight.clone();
        let (around, features) = (self.around.clone(), self.features);
        let slot = self.slot(index)?;
        let Some(kick) = slot.kick.clone().filter(|_| slot.is_enabled && slot.ring.is_none())
        else {
            return Ok(());
        };
        let addresses = slot.addresses.ok_or(Error::InvalidParam)?;
        let [descriptors, used, available] = addresses.map(|at| memory.guest_address(at));
        let inflight = match inflight {
            Some(region) => {
                Some(region.queue(index as usize, slot.size).ok_or(Error::InvalidParam)?)
            }
            None => None,
        };
        let setup = Setup {
            size: slot.size,
            descriptors: descriptors.ok_or(Error::InvalidParam)?,
            available: available.ok_or(Error::InvalidParam)?,
            used: used.ok_or(Error::InvalidParam)?,
            base: slot.base,
            event_index: features & EVENT_IDX != 0,
            kick,
            call: slot.call.clone(),
            inflight,
        };
        slot.ring = Some(Ring::start(setup, around).ok_or(Error::InvalidParam)?);
        Ok(())
    }
}

impl Drop for Session {
    /// Ends with nothing under way. The side threads are joined here, and not by whichever of them
    /// happens to hold the last request.
    fn drop(&mut self) {
        self.stop_all();
        let aside = self.around.aside.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(aside);
    }
}

impl Slot {
    fn stop(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.base = ring.stop();
        }
    }
}

fn unsupported<T>() -> Result<T> {
    Err(Error::ReqHandlerError(io::ErrorKind::Unsupported.into()))
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.stop_all();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(config::features(self.around.disk.device()))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !config::features(self.around.disk.device()) != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.features = features;
        if features & PROTOCOL_FEATURES == 0 {
            for slot in &mut self.slots {
                slot.is_enabled = true;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mut memory = Memory::none();
        for (region, file) in regions.iter().zip(files) {
            memory = memory.with(region, file).ok_or(Error::InvalidParam)?;
        }
        self.set_memory(memory);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let slot = self.slot(index)?;
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if !size.is_power_of_two() || size > QUEUE_SIZE_MAX || slot.ring.is_some() {
            return Err(Error::InvalidParam);
        }
        slot.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.slot(index)?.addresses = Some([descriptor, used, available]);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.slot(index)?.base = base as u16;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let slot = self.slot(index)?;
        slot.stop();
        slot.kick = None;
        Ok(VhostUserVringState::new(index, u32::from(slot.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let Some(kick) = fd else {
            // It asks to be polled for ever.
            return unsupported();
        };
        let slot = self.slot(index.into())?;
        slot.stop();
        slot.kick = Some(Arc::new(kick));
        self.start(index.into())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        if let Some(file) = &fd {
            ring::set_non_blocking(file).ok_or(Error::InvalidParam)?;
        }
        let slot = self.slot(index.into())?;
        *slot.call.lock().unwrap_or_else(PoisonError::into_inner) = fd;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.slot(index.into()).map(|_| ())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(config::protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        match features & !config::protocol_features().bits() {
            0 => Ok(()),
            _ => Err(Error::FeatureMismatch),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUE_COUNT_MAX as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let slot = self.slot(index)?;
        slot.is_enabled = enable;
        if enable {
            return self.start(index);
        }
        slot.stop();
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let bytes = config::bytes(self.around.disk.device());
        let end = offset.checked_add(size).ok_or(Error::InvalidParam)? as usize;
        bytes.get(offset as usize..end).map(<[u8]>::to_vec).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported()
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queue_count, queue_size) = (wanted.num_queues, wanted.queue_size);
        let (file, len) = Inflight::create(queue_count, queue_size).ok_or(Error::InvalidParam)?;
        // The front end keeps it from now on, and may or may not give it back before it starts.
        let ours = file.try_clone().map_err(Error::ReqHandlerError)?;
        self.inflight = Inflight::open(ours, 0, len, queue_count, queue_size);
        Ok((VhostUserInflight::new(len, 0, queue_count, queue_size), file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        let region = Inflight::open(
            file,
            given.mmap_offset,
            given.mmap_size,
            given.num_queues,
            given.queue_size,
        );
        self.inflight = Some(region.ok_or(Error::InvalidParam)?);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGION_COUNT_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let memory = self.memory().with(region, file).ok_or(Error::InvalidParam)?;
        self.set_memory(memory);
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self.memory().without(region.guest_phys_addr, region.memory_size);
        self.set_memory(memory.ok_or(Error::InvalidParam)?);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unsupported()
    }
}
