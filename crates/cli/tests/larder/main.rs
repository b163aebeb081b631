//! The `larder` binary, from its command line to real clients at its doors.
//!
//! | Module | Shows |
//! |---|---|
//! | [`round_trips`] | what goes in comes out, byte for byte; what every command prints for programs |
//! | [`bad_input`] | one line that names the thing and the reason, and nothing left behind |
//! | [`texts`] | errors and helps as golden files |
//! | [`every_step`] | `kill -9` at each call to the system, one after the other |
//! | [`full_disks`] | no space left in the middle |
//! | [`doors`] | real clients at NBD and FUSE |
//! | [`blobs`] | write, append and read of byte ranges |
//! | [`commits`] | changes become versions, served or not |
//! | [`differences`] | what `larder diff` tells |
//! | [`daemon`] | `larder host run`, and what goes through it |
//! | [`outages`] | a repository that goes away and comes back |
//! | [`builds`] | `larder build`: killed, entered, wrong |
//! | [`rootless`] | `larder build` as an ordinary user |
//! | [`soak`] | `fio --verify` while daemons are killed and the repository goes away |
//! | [`linux_guest`] | the same inside of a Linux guest, at the vhost-user and NBD doors |
//! | [`survival`] | `kill -9` of attach, import and commit |
//! | [`collects`] | bytes given back, beside others and after kills |
//! | [`random_lives`] | a mirror beside a vector of bytes |
//! | [`signatures`] | keys, signatures, hosts that ask for them |
//! | [`scrubs`] | damage found, repaired, a lost catalog made anew |
//! | [`together`] | several larders at once |
//! | [`guests`] | `larder run` |
//! | [`seeds`] | who a guest is to be, and whether it boots: `larder run`, `larder test` |
//! | [`quiet_commits`] | a guest that stands still for a commit |
//! | [`resizes`] | disks that grow |
//! | [`machines`] | `larder bake`, `larder resume` |
//! | [`real_machines`] | the same with a real Debian, where `cargo xtask images` has made one |
//! | [`many_images`] | thousands of images in the catalog |
//! | [`memory`] | an import's memory does not follow the length of the disk |
//!
//! `LARDER_GOLDEN=write` writes the golden files anew.

mod harness;
mod nbd_client;

mod bad_input;
mod blobs;
mod builds;
mod caches;
mod collects;
mod commits;
mod daemon;
mod differences;
mod doors;
mod every_step;
mod full_disks;
mod guests;
mod linux_guest;
mod machines;
mod machines_killed;
mod machines_many;
mod machines_refused;
mod many_images;
mod memory;
mod outages;
mod quiet_commits;
mod random_lives;
mod real_machines;
mod resizes;
mod rootless;
mod round_trips;
mod scrubs;
mod seeds;
mod signatures;
mod soak;
mod survival;
mod texts;
mod together;
