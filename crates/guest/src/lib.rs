//! Guests: QEMU, its console, its accelerators.
