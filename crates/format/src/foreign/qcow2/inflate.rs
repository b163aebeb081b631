//! Compressed clusters. What is behind a stream's end in its last sector belongs to others and is
//! ignored; a stream that does not fill its cluster is an error.

use std::fmt;

use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;

/// A frame may ask for a window of up to 8 MiB; clusters have at most 2.
const WINDOW_LOG_MAX: u32 = 23;

/// Unpacks clusters, one after the other.
pub(super) enum Unpacker {
    /// Raw deflate.
    Deflate(Box<DecompressorOxide>),
    /// zstd frames.
    Zstd(Decoder<'static>),
}

impl Unpacker {
    /// An unpacker for `compression`.
    pub(super) fn new(compression: Compression) -> std::io::Result<Self> {
        Ok(match compression {
            Compression::Deflate => Unpacker::Deflate(Box::default()),
            Compression::Zstd => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
                Unpacker::Zstd(decoder)
            }
        })
    }

    /// Unpacks `packed` into `cluster`; false where it does not give a cluster's worth of bytes.
    pub(super) fn unpack(&mut self, packed: &[u8], cluster: &mut [u8]) -> bool {
        match self {
            Unpacker::Deflate(state) => {
                state.init();
                let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                let (_, _, len) = decompress(state, packed, cluster, 0, flags);
                len == cluster.len()
            }
            Unpacker::Zstd(decoder) => unpack_zstd(decoder, packed, cluster).unwrap_or(false),
        }
    }
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unpacker::Deflate(_) => "Deflate",
            Unpacker::Zstd(_) => "Zstd",
        })
    }
}

fn unpack_zstd(
    decoder: &mut Decoder<'_>,
    packed: &[u8],
    cluster: &mut [u8],
) -> std::io::Result<bool> {
    decoder.reinit()?;
    let mut input = InBuffer::around(packed);
    let mut output = OutBuffer::around(cluster);
    loop {
        let before = (input.pos(), output.pos());
        decoder.run(&mut input, &mut output)?;
        if output.pos() == output.capacity() {
            return Ok(true);
        }
        if (input.pos(), output.pos()) == before {
            return Ok(false);
        }
    }
}
