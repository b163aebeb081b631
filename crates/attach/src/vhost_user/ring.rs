//! One queue: taking requests, giving answers, waiting.
//!
//! ```text
//! thread: take ─ begin ─ execute ─ answer ─ ... ─ nothing left: look on for a while ─ sleep (kick)
//!                   └── may wait: a side thread executes and answers
//! ```
//!
//! **Invariants**
//! - A request is taken by one thread, and answered once.
//! - After `stop` nothing of the ring is under way, and no thread of it touches the guest.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use super::chain::{Chain, Malformed};
use super::execute::{Disk, Outcome};
use super::inflight::InflightQueue;
use super::memory::Memory;
use super::request::{Command, Request};
use crate::aside::{Aside, Worker};

/// How many answers wait for one notification while there is more to do.
const BATCH_COUNT: u32 = 8;
/// How long a ring is looked at before its thread sleeps, where requests came that soon of late.
/// Source: a wake-up costs 5 to 50 µs.
const LOOK_ON: Duration = Duration::from_micros(30);
/// A read or write of at least this length is executed aside where others are under way with it, so
/// that more than one processor copies.
/// Source: 1 MiB at depth 4 beside qemu-storage-daemon, whose requests all have threads: 0.6 of its
/// speed on the ring's thread alone.
const LONG_LEN: u64 = 256 * 1024;
/// Looks between two readings of the clock.
const LOOK_COUNT: u32 = 16;

/// What all rings of a connection share.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) disk: Arc<Disk>,
    /// Exchanged when the front end says so; a request keeps what it began with.
    pub(super) memory: Arc<RwLock<Arc<Memory>>>,
    /// Gone when the connection ends.
    pub(super) aside: Arc<Mutex<Option<Aside<Side>>>>,
    pub(super) connection: Arc<UnixStream>,
}

impl Surroundings {
    fn memory(&self) -> Arc<Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hang_up(&self) {
        let _ = self.connection.shutdown(std::net::Shutdown::Both);
    }
}

/// Where a ring is, and how it is told of.
pub(super) struct Setup {
    pub(super) size: u16,
    pub(super) descriptors: GuestAddress,
    pub(super) available: GuestAddress,
    pub(super) used: GuestAddress,
    pub(super) base: u16,
    pub(super) event_index: bool,
    pub(super) kick: Arc<File>,
    /// The front end exchanges it while the ring runs.
    pub(super) call: Arc<Mutex<Option<File>>>,
    pub(super) inflight: Option<InflightQueue>,
}

/// A ring that runs.
pub(super) struct Ring {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    around: Surroundings,
    state: Mutex<State>,
    /// Nothing is under way any more.
    settled: Condvar,
    kick: Arc<File>,
    call: Arc<Mutex<Option<File>>>,
    stop: OwnedFd,
    is_stopping: AtomicBool,
    /// Requests of a server before this one, still to be done, the next one last.
    again: Mutex<Vec<u16>>,
}

struct State {
    queue: Queue,
    inflight: Option<InflightQueue>,
    outstanding_count: u32,
    /// Its descriptors are no chains: nothing more is taken.
    is_broken: bool,
}

/// A request that is under way; a ring waits for it however it ends.
pub(super) struct Underway {
    shared: Arc<Shared>,
    memory: Arc<Memory>,
    request: Request,
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.outstanding_count -= 1;
        if state.outstanding_count == 0 {
            self.shared.settled.notify_all();
        }
    }
}

/// Executes what may wait.
pub(super) struct Side {
    pub(super) disk: Arc<Disk>,
    pub(super) connection: Arc<UnixStream>,
}

impl Worker for Side {
    type Job = Underway;
    type Scratch = Vec<u8>;

    fn is_flush(&self, job: &Underway) -> bool {
        job.request.command == Command::Flush
    }

    fn scratch(&self) -> Vec<u8> {
        Vec::new()
    }

    fn execute(&self, job: Underway, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        let outcome = self.disk.execute(&job.memory, &job.request, buffer);
        job.shared.answer(&job.memory, &job.request, outcome);
        job.shared.notify(&job.memory);
        Ok(())
    }

    fn abandon(&self) {
        let _ = self.connection.shutdown(std::net::Shutdown::Both);
    }
}

impl Ring {
    /// Starts a ring. What a server before this one had under way is done first. `None` where the
    /// ring is not in the guest's memory, or the system gives no thread.
    pub(super) fn start(setup: Setup, around: Surroundings) -> Option<Ring> {
        let memory = around.memory();
        let mut queue = Queue::new(setup.size).ok()?;
        queue.try_set_desc_table_address(setup.descriptors).ok()?;
        queue.try_set_avail_ring_address(setup.available).ok()?;
        queue.try_set_used_ring_address(setup.used).ok()?;
        queue.set_event_idx(setup.event_index);
        queue.set_ready(true);
        if !queue.is_valid(memory.map()) {
            return None;
        }
        let used_index = queue.used_idx(memory.map(), Ordering::Acquire).ok()?.0;
        queue.set_next_used(used_index);
        let mut inflight = setup.inflight;
        let mut again = inflight.as_mut().map_or_else(Vec::new, |it| it.recover(used_index));
        let next = match inflight {
            Some(_) => used_index.wrapping_add(again.len() as u16),
            None => setup.base,
        };
        queue.set_next_avail(next);
        again.reverse();
        // Both are the front end's: were they blocking, it could keep a thread for ever.
        set_non_blocking(&setup.kick)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let state = State { queue, inflight, outstanding_count: 0, is_broken: false };
        let shared = Arc::new(Shared {
            around,
            state: Mutex::new(state),
            settled: Condvar::new(),
            kick: setup.kick,
            call: setup.call,
            stop: rustix::event::eventfd(0, flags).ok()?,
            is_stopping: AtomicBool::new(false),
            again: Mutex::new(again),
        });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new().name("vhost-ring".into());
        let thread = thread.spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| for_thread.run())).is_err() {
                tracing::error!("a panic in a ring of a guest; closing its connection");
                for_thread.around.hang_up();
            }
        });
        Some(Ring { shared, thread: Some(thread.ok()?) })
    }

    /// Takes nothing more, and waits for what is under way. The index of the next request.
    pub(super) fn stop(mut self) -> u16 {
        self.end();
        self.shared.lock().queue.next_avail()
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.is_stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        // Panics are caught inside.
        let _ = thread.join();
        let state = self.shared.lock();
        let settled = self.shared.settled.wait_while(state, |state| state.outstanding_count > 0);
        drop(settled.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sets a file descriptor so that nobody waits in it.
pub(super) fn set_non_blocking(file: &File) -> Option<()> {
    let flags = rustix::fs::fcntl_getfl(file).ok()?;
    rustix::fs::fcntl_setfl(file, flags | rustix::fs::OFlags::NONBLOCK).ok()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    fn run(self: &Arc<Self>) {
        let mut chain = Chain::default();
        let mut buffer = Vec::new();
        let mut patience = Patience::default();
        // The server before this one may have answered and not told.
        self.call();
        while !self.is_stopping() {
            let memory = self.around.memory();
            self.serve(&memory, &mut chain, &mut buffer);
            if !self.idle(&memory, &mut patience) {
                return;
            }
        }
    }

    /// Serves what there is.
    fn serve(self: &Arc<Self>, memory: &Arc<Memory>, chain: &mut Chain, buffer: &mut Vec<u8>) {
        let disk = &self.around.disk;
        let mut answered_count = 0;
        while !self.is_stopping() {
            let Some(job) = self.take(memory, chain) else {
                break;
            };
            let is_long = job.request.len() >= LONG_LEN && self.has_company(memory);
            if is_long || disk.may_wait(&job.request) {
                let mut aside = self.around.aside.lock().unwrap_or_else(PoisonError::into_inner);
                match aside.as_mut().map(|aside| aside.submit(job)) {
                    Some(Ok(())) => continue,
                    _ => return self.around.hang_up(),
                }
            }
            let outcome = disk.execute(memory, &job.request, buffer);
            self.answer(memory, &job.request, outcome);
            answered_count += 1;
            if answered_count == BATCH_COUNT {
                self.notify(memory);
                answered_count = 0;
            }
        }
        if answered_count > 0 {
            self.notify(memory);
        }
    }

    /// Takes the next request, and notes that it is under way.
    fn take(self: &Arc<Self>, memory: &Arc<Memory>, chain: &mut Chain) -> Option<Underway> {
        let mut state = self.lock();
        if state.is_broken {
            return None;
        }
        let again = self.again.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let head = match again {
            Some(head) => head,
            None => match state.queue.iter(memory.map()) {
                Ok(mut available) => available.next()?.head_index(),
                Err(_) => return state.give_up(&Malformed("more requests than the ring holds")),
            },
        };
        let (table, size) = (GuestAddress(state.queue.desc_table()), state.queue.size());
        let request = chain
            .walk(memory, table, size, head)
            .and_then(|()| Request::parse(memory, head, chain));
        match request {
            Ok(request) => {
                if let Some(inflight) = &mut state.inflight {
                    inflight.begin(head);
                }
                state.outstanding_count += 1;
                Some(Underway { shared: self.clone(), memory: memory.clone(), request })
            }
            Err(malformed) => state.give_up(&malformed),
        }
    }

    /// Puts a request into the used ring.
    fn answer(&self, memory: &Memory, request: &Request, outcome: Outcome) {
        let has_status = memory.write(request.status, &[outcome.status as u8]);
        let mut state = self.lock();
        if let Some(inflight) = &mut state.inflight {
            inflight.ending(request.head);
        }
        // The status is not counted where data would stand between it and what was filled; it does
        // no harm to count it where nothing was.
        let len = outcome.filled.saturating_add(u32::from(has_status));
        if state.queue.add_used(memory.map(), request.head, len).is_err() {
            let _: Option<()> = state.give_up(&Malformed("a used ring outside of the memory"));
            return;
        }
        let used_index = state.queue.next_used();
        if let Some(inflight) = &mut state.inflight {
            inflight.end(request.head, used_index);
        }
    }

    /// Tells the guest of answers, where it wants to be told.
    fn notify(&self, memory: &Memory) {
        let wanted = self.lock().queue.needs_notification(memory.map()).unwrap_or(true);
        if wanted {
            self.call();
        }
    }

    fn call(&self) {
        let call = self.call.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut file) = call.as_ref() {
            // Full means that it is told already.
            let _ = file.write(&1u64.to_ne_bytes());
        }
    }

    /// Waits until there is more to do. False when the ring stops.
    fn idle(&self, memory: &Memory, patience: &mut Patience) -> bool {
        if self.lock().is_broken {
            return self.sleep(false);
        }
        if patience.looks_on() {
            let begin = Instant::now();
            while begin.elapsed() < LOOK_ON {
                for _ in 0..LOOK_COUNT {
                    if self.has_more(memory) || self.is_stopping() {
                        patience.was_right();
                        return true;
                    }
                    std::hint::spin_loop();
                }
            }
            patience.was_wrong();
        }
        match self.lock().queue.enable_notification(memory.map()) {
            Ok(true) => return true,
            Ok(false) => (),
            Err(_) => {
                let _: Option<()> = self.lock().give_up(&Malformed("a ring outside of the memory"));
            }
        }
        let begin = Instant::now();
        let goes_on = self.sleep(true);
        patience.slept(begin.elapsed());
        goes_on
    }

    /// True when a request that was just taken is not the only one.
    fn has_company(&self, memory: &Memory) -> bool {
        self.lock().outstanding_count > 1 || self.has_more(memory)
    }

    fn has_more(&self, memory: &Memory) -> bool {
        let state = self.lock();
        let available = state.queue.avail_idx(memory.map(), Ordering::Acquire);
        available.is_ok_and(|index| index.0 != state.queue.next_avail())
    }

    /// Sleeps until somebody kicks or stops. False when the ring stops.
    fn sleep(&self, takes_kicks: bool) -> bool {
        let mut files =
            [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(&*self.kick, PollFlags::IN)];
        let count = if takes_kicks { 2 } else { 1 };
        let polled = rustix::event::poll(&mut files[..count], None);
        if polled.is_err_and(|error| error != rustix::io::Errno::INTR) {
            self.around.hang_up();
            return false;
        }
        let kicked = files[1].revents();
        if takes_kicks && kicked.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            self.around.hang_up();
            return false;
        }
        if takes_kicks && kicked.contains(PollFlags::IN) {
            let _ = (&*self.kick).read(&mut [0; 8]);
        }
        !self.is_stopping()
    }
}

impl State {
    /// Stops taking requests, for what the guest says of them makes no sense.
    fn give_up<T>(&mut self, malformed: &Malformed) -> Option<T> {
        if !self.is_broken {
            tracing::warn!("a guest's ring stops until it is reset: {}", malformed.0);
        }
        self.is_broken = true;
        None
    }
}

/// Whether it is worth to look on before sleeping: as long as requests come soon.
#[derive(Debug, Default)]
struct Patience {
    credit: u8,
}

impl Patience {
    const CREDIT_MAX: u8 = 8;

    fn looks_on(&self) -> bool {
        self.credit > 0
    }

    fn was_right(&mut self) {
        self.credit = (self.credit + 1).min(Self::CREDIT_MAX);
    }

    fn was_wrong(&mut self) {
        self.credit -= 1;
    }

    /// A sleep that was as short as a look had been better spent looking.
    fn slept(&mut self, time: Duration) {
        if time < 2 * LOOK_ON {
            self.credit = (self.credit + 2).min(Self::CREDIT_MAX);
        }
    }
}
