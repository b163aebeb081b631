//! The images that Larder is compared with others' tools on, and what is in them.

use std::path::Path;
use std::time::Instant;

use model::{BLOCK_LEN, Result};

use super::blocks::{self, Seen};
use super::rows::Row;
use super::{Bench, Session, inputs};

pub const BENCH: Bench = Bench {
    name: "corpus",
    about: "Eight Debian images are built, and what is in them: data, blocks, blocks seen before.",
    in_tests: true,
    tools: &["mmdebstrap"],
    run,
};

fn run(session: &mut Session) -> Result<()> {
    let began = Instant::now();
    let images = inputs::corpus(session)?;
    println!("{} images ready after {:.1} s", images.len(), began.elapsed().as_secs_f64());
    let mut seen = Seen::default();
    let mut sum = [0.0; 2];
    for image in &images {
        let before = seen.count();
        let mut block_count = 0;
        blocks::for_each(&image.path, |_, block| {
            block_count += 1;
            seen.is_new(block);
            Ok(())
        })?;
        let data_mb = megabytes(block_count);
        let new_mb = megabytes(seen.count() - before);
        sum[0] += data_mb;
        sum[1] += new_mb;
        let columns = vec![
            ("length_mb", length(&image.path)? as f64 / 1e6),
            ("data_mb", data_mb),
            ("new_mb", new_mb),
            ("sum_of_data_mb", sum[0]),
            ("sum_of_new_mb", sum[1]),
        ];
        session.rows.add(Row { contender: image.name.clone(), round: 0, columns });
    }
    session.notes.push(
        "Blocks of 4 KiB that are not all zeros; new are those that no image before had, nor the \
         same image before. Millions of bytes."
            .to_owned(),
    );
    Ok(())
}

fn megabytes(block_count: usize) -> f64 {
    (block_count * BLOCK_LEN) as f64 / 1e6
}

fn length(disk: &Path) -> Result<u64> {
    Ok(inputs::size_of(disk)?.0)
}
