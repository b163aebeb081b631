//! A mirror on a mount is the same disk as its model, whatever is done to it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use model::device::{Device, MemoryDevice};
use proptest::prelude::*;
use rustix::fs::{FallocateFlags, OFlags};

use crate::mounted::{Mounted, pattern};

const LENGTH: usize = (1 << 20) + 1234;

#[derive(Clone, Copy, Debug)]
enum Step {
    Read { offset: usize, len: usize, direct: bool },
    Write { offset: usize, len: usize, seed: u64, direct: bool },
    Zero { offset: usize, len: usize, punch: bool },
    Sync,
    Reopen,
}

fn range() -> impl Strategy<Value = (usize, usize)> {
    let len = prop_oneof![1..600usize, 1..20_000usize, 1..400_000usize];
    (0..LENGTH, len).prop_map(|(offset, len)| (offset, len.min(LENGTH - offset)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (range(), any::<bool>())
            .prop_map(|((offset, len), direct)| Step::Read { offset, len, direct }),
        4 => (range(), any::<u64>(), any::<bool>())
            .prop_map(|((offset, len), seed, direct)| Step::Write { offset, len, seed, direct }),
        2 => (range(), any::<bool>())
            .prop_map(|((offset, len), punch)| Step::Zero { offset, len, punch }),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ]
}

struct Opened {
    cached: File,
    direct: File,
}

impl Opened {
    fn new(mounted: &Mounted) -> Opened {
        let open = |flags: OFlags| {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).custom_flags(flags.bits() as i32);
            options.open(mounted.mirror()).unwrap()
        };
        Opened { cached: open(OFlags::empty()), direct: open(OFlags::DIRECT) }
    }

    fn file(&self, direct: bool) -> &File {
        if direct { &self.direct } else { &self.cached }
    }
}

fn check(mounted: &Mounted, model: &MemoryDevice, steps: &[Step]) {
    let mut opened = Opened::new(mounted);
    for step in steps {
        match *step {
            Step::Read { offset, len, direct } => {
                let (mut found, mut expected) = (vec![0; len], vec![0; len]);
                opened.file(direct).read_exact_at(&mut found, offset as u64).unwrap();
                model.read(offset as u64, &mut expected).unwrap();
                assert!(found == expected, "{step:?}");
            }
            Step::Write { offset, len, seed, direct } => {
                let bytes = pattern(len, seed);
                opened.file(direct).write_all_at(&bytes, offset as u64).unwrap();
                model.write(offset as u64, &bytes).unwrap();
            }
            Step::Zero { offset, len, punch } => {
                let mode = if punch {
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
                } else {
                    FallocateFlags::ZERO_RANGE
                };
                rustix::fs::fallocate(&opened.cached, mode, offset as u64, len as u64).unwrap();
                model.write_zeroes(offset as u64, len as u64).unwrap();
            }
            Step::Sync => opened.cached.sync_all().unwrap(),
            Step::Reopen => opened = Opened::new(mounted),
        }
    }
    assert!(mounted.mirror_bytes() == model.to_vec(), "the device");
    assert!(std::fs::read(mounted.mirror()).unwrap() == model.to_vec(), "the file");
}

#[test]
fn a_mirror_on_a_mount_equals_its_model() {
    // One mount for all cases: what one leaves behind is where the next begins.
    let bytes = pattern(LENGTH, 21);
    let mounted = Mounted::with(bytes.clone());
    let model = MemoryDevice::new(bytes);
    let config = ProptestConfig { cases: 48, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..40))| {
        check(&mounted, &model, &steps);
    });
}
