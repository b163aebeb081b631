//! A guest's memory that is read from its file page by page.
//!
//! ```text
//! QEMU ── madvise(memory, huge pages) ──► refused: a page that is missing is read with its neighbours
//!                                         (taken, Linux reads the 4 MiB around it and lets the guest wait)
//! ```
//!
//! QEMU asks for huge pages for all memory and has no option against that. For a file that is mapped
//! privately they are of no use: what is written is copied in small pages.
//!
//! **Failure**: QEMU takes the refusal for a kernel without huge pages. Where the kernel has no
//! filters of system calls, memory is read in large pieces.
//!
//! **Source**: QEMU 7.2, softmmu/physmem.c; Linux 6.18, mm/filemap.c; `docs/benchmarks.md`, "Resume".

use rustix::mm::Advice;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};

/// A process that gets no huge pages for one piece of its memory, known by its length.
pub(crate) struct SmallPages(BpfProgram);

impl SmallPages {
    /// For memory of so many bytes; none where this processor's system calls are not known.
    pub(crate) fn of(memory_len: u64) -> Option<SmallPages> {
        match Self::filter(memory_len) {
            Ok(program) => Some(SmallPages(program)),
            Err(error) => {
                tracing::debug!(%error, "memory is read in large pieces");
                None
            }
        }
    }

    fn filter(memory_len: u64) -> Result<BpfProgram, Error> {
        let is =
            |argument, len, value| SeccompCondition::new(argument, len, SeccompCmpOp::Eq, value);
        let huge = Advice::LinuxHugepage as u64;
        let rule = SeccompRule::new(vec![
            is(1, SeccompCmpArgLen::Qword, memory_len)?,
            is(2, SeccompCmpArgLen::Dword, huge)?,
        ])?;
        let rules = [(libc::SYS_madvise, vec![rule])];
        let refuse = SeccompAction::Errno(libc::EINVAL as u32);
        let architecture = std::env::consts::ARCH.try_into()?;
        let filter = SeccompFilter::new(
            rules.into_iter().collect(),
            SeccompAction::Allow,
            refuse,
            architecture,
        )?;
        Ok(filter.try_into()?)
    }

    /// Holds for the calling thread from now on, and for what it starts. Makes two system calls and
    /// allocates nothing.
    pub(crate) fn begin(&self) {
        let _slower = apply_filter(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use rustix::mm::{MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    fn ask(len: usize) -> Result<(), Errno> {
        // SAFETY: the mapping is new, nobody else knows of it, and it goes before this returns.
        unsafe {
            let at = mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?;
            let asked = madvise(at, len, Advice::LinuxHugepage);
            munmap(at, len)?;
            asked
        }
    }

    #[test]
    fn memory_of_that_length_gets_no_huge_pages_and_other_memory_does() {
        let (memory, other) = (4 << 20, 2 << 20);
        // A filter is there for good: in a thread that ends.
        std::thread::spawn(move || {
            let kernel = ask(memory);
            SmallPages::of(memory as u64).unwrap().begin();
            assert_eq!(ask(memory), Err(Errno::INVAL));
            assert_eq!(ask(other), kernel);
        })
        .join()
        .unwrap();
    }
}
