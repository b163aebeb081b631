//! How much a thread matters beside others.
//!
//! **Failure**: a system that does not let a thread step back leaves it as it was: slower for others,
//! wrong for nobody.
//!
//! **Source**: sched(7), `SCHED_IDLE`; ioprio_set(2).

use std::io;

/// `IOPRIO_WHO_PROCESS`: with 0 behind it, the calling thread.
const WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE`, where the class stands in a priority.
const CLASS_IDLE: libc::c_int = 3 << 13;

/// Makes the calling thread, and threads that it makes from now on, step back: it gets a processor
/// where nobody else wants one, and the disk where its scheduler knows of idle readers and writers.
/// It cannot be taken back.
///
/// # Errors
/// What the system says; half of it may have been done.
pub fn step_back() -> io::Result<()> {
    let only = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a value that outlives the call, which only reads it; 0 means the
    // calling thread.
    let processor = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const only) };
    let processor = check(processor.into());
    // SAFETY: three numbers, no memory of ours is touched; 0 means the calling thread.
    let disk = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    processor.and(check(disk))
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy and the class of disk use of a thread.
    fn of_thread() -> (i32, i64) {
        // SAFETY: two calls that take numbers and return numbers; 0 means the calling thread.
        unsafe { (libc::sched_getscheduler(0), libc::syscall(libc::SYS_ioprio_get, 1, 0) >> 13) }
    }

    #[test]
    fn a_thread_that_steps_back_is_idle_and_others_are_not() {
        let before = of_thread();
        let idle = std::thread::spawn(|| {
            step_back().unwrap();
            let child = std::thread::spawn(of_thread).join().unwrap();
            assert_eq!(child, of_thread());
            child
        });
        assert_eq!(idle.join().unwrap(), (libc::SCHED_IDLE, 3));
        assert_eq!(of_thread(), before);
        assert_ne!(before.0, libc::SCHED_IDLE);
    }
}
