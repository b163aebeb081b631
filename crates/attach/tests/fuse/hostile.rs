//! Programs that ask for what cannot be: they get an error, and no byte of another mirror changes or
//! is seen.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use proptest::prelude::*;
use rustix::fs::{FallocateFlags, OFlags};

use crate::mounted::{Mounted, image, mirror, pattern};

const LENGTH: usize = (64 << 10) + 777;
/// Stands in the other mirror alone.
const FOREIGN: u8 = 0xa5;

#[derive(Clone, Debug)]
enum Ask {
    Read { offset: u64, len: usize, direct: bool },
    Write { offset: u64, len: usize, byte: u8, direct: bool },
    Allocate { mode: u32, offset: u64, len: u64 },
    Seek { offset: u64, data: bool },
    Truncate { len: u64 },
    Open { flags: u32 },
    Names { name: String },
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..LENGTH as u64 + 9000,
        2 => (0..40u64).prop_map(|block| block * 512),
        1 => (0..64u32).prop_map(|shift| 1 << shift),
        1 => (0..9000u64).prop_map(|less| i64::MAX as u64 - less),
        1 => any::<u64>(),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let len = || prop_oneof![4 => 0..9000usize, 1 => 0..300_000usize, 1 => Just(2 << 20)];
    // The foreign byte itself is never written.
    let byte = 0..FOREIGN;
    prop_oneof![
        4 => (offset(), len(), any::<bool>())
            .prop_map(|(offset, len, direct)| Ask::Read { offset, len, direct }),
        4 => (offset(), len(), byte, any::<bool>())
            .prop_map(|(offset, len, byte, direct)| Ask::Write { offset, len, byte, direct }),
        2 => (0..0x80u32, offset(), offset())
            .prop_map(|(mode, offset, len)| Ask::Allocate { mode, offset, len }),
        1 => (offset(), any::<bool>()).prop_map(|(offset, data)| Ask::Seek { offset, data }),
        1 => offset().prop_map(|len| Ask::Truncate { len }),
        1 => any::<u32>().prop_map(|flags| Ask::Open { flags }),
        1 => "[a-z0-9.@/-]{1,300}".prop_map(|name| Ask::Names { name }),
    ]
}

/// What the disk holds is changed as far as the door says that it was.
fn put(mounted: &Mounted, files: &[File; 2], model: &mut [u8], ask: &Ask) {
    let file = |direct: bool| &files[usize::from(direct)];
    match *ask {
        Ask::Read { offset, len, direct } => {
            let mut found = vec![0; len];
            let Ok(count) = rustix::io::pread(file(direct), &mut found, offset) else { return };
            let at = (offset as usize).min(LENGTH);
            let expected = &model[at..LENGTH.min(at.saturating_add(len))];
            assert!(found[..count] == *expected, "{ask:?}");
        }
        Ask::Write { offset, len, byte, direct } => {
            let bytes = vec![byte; len];
            let Ok(count) = rustix::io::pwrite(file(direct), &bytes, offset) else { return };
            assert!(offset as usize + count <= LENGTH || count == 0, "{ask:?} gave {count}");
            model[offset as usize..][..count].fill(byte);
        }
        Ask::Allocate { mode, offset, len } => {
            let mode = FallocateFlags::from_bits_retain(mode);
            if rustix::fs::fallocate(file(false), mode, offset, len).is_err() {
                return;
            }
            if mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
                let end = (offset + len).min(LENGTH as u64) as usize;
                model[(offset as usize).min(end)..end].fill(0);
            }
        }
        Ask::Seek { offset, data } => {
            let to = if data {
                rustix::fs::SeekFrom::Data(offset)
            } else {
                rustix::fs::SeekFrom::Hole(offset)
            };
            if let Ok(found) = rustix::fs::seek(file(false), to) {
                assert!((offset..=LENGTH as u64).contains(&found), "{ask:?} gave {found}");
            }
        }
        Ask::Truncate { len } => {
            let done = rustix::fs::ftruncate(file(false), len);
            assert!(done.is_err() || len == LENGTH as u64, "{ask:?}");
        }
        Ask::Open { flags } => {
            // Temporary files are made elsewhere by this flag, and pipes would wait.
            let flags = flags & !(OFlags::TMPFILE | OFlags::PATH | OFlags::NOCTTY).bits();
            let _opened =
                OpenOptions::new().read(true).custom_flags(flags as i32).open(mounted.mirror());
        }
        Ask::Names { ref name } => {
            let path = mounted.path("mirrors").join(name.trim_matches('/'));
            let real = mounted.mirror();
            // Whatever it names, nothing is made, renamed or removed.
            assert!(std::fs::create_dir(&path).is_err());
            assert!(std::fs::rename(&real, &path).is_err() || path == real);
            assert!(std::os::unix::fs::symlink(&real, &path).is_err());
            assert!(std::fs::hard_link(&real, &path).is_err());
            assert!(std::fs::remove_file(&path).is_err());
        }
    }
}

#[test]
fn nothing_that_a_program_asks_for_ends_the_server_or_reaches_another_mirror() {
    let tree = attach::fuse::MemoryTree::default();
    let bytes: Vec<u8> = pattern(LENGTH, 3).iter().map(|byte| byte % FOREIGN).collect();
    tree.add_version(&image("debian"), bytes.clone());
    tree.add_mirror(&mirror("web"), &image("debian"), bytes.clone());
    tree.add_mirror(&mirror("other"), &image("debian"), vec![FOREIGN; LENGTH]);
    let mounted = Mounted::new(tree);
    // What one case leaves behind is where the next begins.
    let model = std::cell::RefCell::new(bytes);
    let open = |flags: OFlags| {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).custom_flags(flags.bits() as i32);
        options.open(mounted.mirror()).unwrap()
    };
    let files = [open(OFlags::empty()), open(OFlags::DIRECT)];
    let config = ProptestConfig { cases: 64, ..ProptestConfig::default() };
    proptest!(config, |(asked in prop::collection::vec(ask(), 1..30))| {
        let mut model = model.borrow_mut();
        for ask in &asked {
            put(&mounted, &files, &mut model, ask);
        }
        prop_assert!(mounted.mirror_bytes() == *model);
        prop_assert!(std::fs::read(mounted.mirror()).unwrap() == *model);
    });
    let other = mounted.tree.mirror_bytes(&mirror("other")).unwrap();
    assert!(other == vec![FOREIGN; LENGTH]);
}
