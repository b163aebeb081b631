//! Has a long file written to the disk while it is being made, so that the sync in the end is short.
//!
//! **Failure**: what a sync on the way fails with is kept and returned in the end: the kernel tells of
//! an error once.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes that may wait before the next sync on the way.
const UNSYNCED_MAX: u64 = 16 << 20;

/// Syncs on the way. Nothing happens, and no thread is started, for a short file.
#[derive(Debug, Default)]
pub(super) struct EarlySync {
    unsynced_len: u64,
    thread: Option<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
}

impl EarlySync {
    /// Takes note of bytes that were written to the file. Never waits for the disk.
    pub(super) fn wrote(&mut self, file: &File, len: usize) -> io::Result<()> {
        self.unsynced_len += len as u64;
        if self.unsynced_len < UNSYNCED_MAX {
            return Ok(());
        }
        self.unsynced_len = 0;
        let (ask, _) = match &mut self.thread {
            Some(thread) => thread,
            none => none.insert(start(file.try_clone()?)?),
        };
        // Full: it is at it, and one more is to come. Closed: it has failed, which `end` returns.
        let _ = ask.try_send(());
        Ok(())
    }

    /// Waits for a sync under way. What was written since is not synced.
    pub(super) fn end(&mut self) -> io::Result<()> {
        let Some((ask, thread)) = self.thread.take() else { return Ok(()) };
        drop(ask);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs ended early")))
    }
}

fn start(file: File) -> io::Result<(SyncSender<()>, JoinHandle<io::Result<()>>)> {
    let (ask, asked) = sync_channel(1);
    let sync = move || asked.iter().try_for_each(|()| file.sync_data());
    Ok((ask, std::thread::Builder::new().spawn(sync)?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_sync_that_fails_on_the_way_is_told_in_the_end() {
        // A pipe cannot be synced.
        let (_reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let mut early = EarlySync::default();
        early.wrote(&file, UNSYNCED_MAX as usize - 1).unwrap();
        assert!(early.thread.is_none());
        early.wrote(&file, 1).unwrap();
        assert!(early.end().is_err());
        assert!(early.end().is_ok());
    }

    #[test]
    fn a_long_file_is_synced_while_it_grows() {
        let mut file = tempfile::tempfile().unwrap();
        let mut early = EarlySync::default();
        for _ in 0..5 {
            file.write_all(b"x").unwrap();
            early.wrote(&file, UNSYNCED_MAX as usize).unwrap();
        }
        assert!(early.thread.is_some());
        early.end().unwrap();
    }
}
