//! A mirror beside a vector of bytes, through a random life: requests, commits, restarts, kills.

use crate::harness::{Larder, Random, Served};
use crate::nbd_client::NbdClient;

/// Off every boundary: no multiple of 512, nor of a block.
const LEN: usize = (3 << 20) + 1234;

struct Life {
    larder: Larder,
    random: Random,
    model: Vec<u8>,
    /// What was committed: reference, and the model at that time.
    committed: Vec<(String, Vec<u8>)>,
    base: String,
    served: Option<(Served, NbdClient)>,
}

impl Life {
    fn begin(seed: u64) -> Life {
        let larder = Larder::new();
        let mut random = Random::for_test(seed);
        let mut model = random.bytes(LEN);
        model[500_000..1_500_000].fill(0);
        larder.write("disk.raw", &model);
        larder.json("import disk.raw disk");
        let base = "disk@1".to_string();
        let committed = vec![(base.clone(), model.clone())];
        let mut life = Life { larder, random, model, committed, base, served: None };
        life.attach();
        life
    }

    fn attach(&mut self) {
        let served = self.larder.attach(&format!("{} --mirror m --nbd ./s", self.base));
        let client = NbdClient::connect(&self.larder.path("s"), "m");
        self.served = Some((served, client));
    }

    fn client(&mut self) -> &mut NbdClient {
        &mut self.served.as_mut().unwrap().1
    }

    /// A range, now and then on boundaries, now and then at the end.
    fn range(&mut self) -> (usize, usize) {
        let random = &mut self.random;
        let mut offset = random.below(LEN as u64 - 1);
        let len_max = [10, 600, 5000, 200_000][random.below(4) as usize];
        let mut len = 1 + random.below(len_max);
        match random.below(4) {
            0 => (offset, len) = (offset / 4096 * 4096, len.next_multiple_of(4096)),
            1 => (offset, len) = (offset / 512 * 512, len.next_multiple_of(512)),
            2 => offset = (LEN as u64).saturating_sub(len),
            _ => {}
        }
        let offset = offset as usize;
        (offset, (len as usize).min(LEN - offset))
    }

    fn step(&mut self) {
        let (offset, len) = self.range();
        let end = offset + len;
        match self.random.below(100) {
            0..30 => {
                let found = self.client().read(offset as u64, len);
                assert!(found == self.model[offset..end], "read {offset}+{len}");
            }
            30..62 => {
                let data = self.random.bytes(len);
                match self.random.below(8) {
                    0 => self.client().write_through(offset as u64, &data),
                    _ => self.client().write(offset as u64, &data),
                }
                self.model[offset..end].copy_from_slice(&data);
            }
            62..72 => {
                self.client().write_zeroes(offset as u64, len as u32);
                self.model[offset..end].fill(0);
            }
            72..82 => {
                self.client().trim(offset as u64, len as u32);
                // A trimmed byte is what it was, or zero; then it stays that.
                let found = self.client().read(offset as u64, len);
                for (found, known) in found.iter().zip(&mut self.model[offset..end]) {
                    assert!(*found == *known || *found == 0, "trim {offset}+{len}");
                    *known = *found;
                }
            }
            82..92 => self.client().flush(),
            92..95 => self.commit(),
            95..98 => {
                let (served, client) = self.served.take().unwrap();
                drop(client);
                served.stop();
                if self.random.below(3) == 0 {
                    self.commit();
                }
                self.attach();
            }
            _ => {
                self.client().flush();
                self.served.take().unwrap().0.kill();
                self.attach();
            }
        }
    }

    fn commit(&mut self) {
        let name = format!("copy-{}", self.committed.len());
        let line = match self.random.below(4) {
            0 => format!("commit m --to {name}"),
            _ => "commit m".to_string(),
        };
        let commit = self.larder.json(&line);
        self.base = format!("{}@{}", commit["image"].as_str().unwrap(), commit["version"]);
        self.committed.push((self.base.clone(), self.model.clone()));
    }

    fn end(mut self) {
        assert_eq!(self.client().length, LEN as u64);
        assert!(self.client().read_all() == self.model);
        self.commit();
        for (reference, model) in &self.committed {
            self.larder.json(&format!("export {reference} out.raw"));
            assert!(self.larder.read("out.raw") == *model, "{reference}");
        }
        self.served.take().unwrap().0.stop();
    }
}

#[test]
fn a_mirror_equals_a_vector_of_bytes_through_commits_restarts_and_kills() {
    for seed in 1..=3 {
        let mut life = Life::begin(seed);
        for _ in 0..300 {
            life.step();
        }
        assert!(life.committed.len() > 3, "only {} commits", life.committed.len());
        life.end();
    }
}
