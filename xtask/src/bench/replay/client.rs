//! A client of the NBD protocol that keeps a set number of requests under way.
//!
//! It speaks simple replies only, so that both servers do the same work for it.
//!
//! **Source**: `doc/proto.md` of NetworkBlockDevice/nbd.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use model::{Error, Kind, Result};

use super::trace::Call;

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The option that names an export and ends the handshake.
const OPT_EXPORT_NAME: u32 = 1;
/// Fixed newstyle, and no zeros after the handshake.
const CLIENT_FLAGS: u32 = 3;

/// The longest request.
pub const REQUEST_LEN_MAX: u32 = 32 << 20;

/// A connection to a server's default export.
pub struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// What was asked and not yet answered, by the number in its request.
    under_way: Vec<(u64, Call)>,
    next: u64,
    read: blake3::Hasher,
}

impl Client {
    /// Connects.
    pub fn connect(socket: &Path) -> Result<Client> {
        let stream = UnixStream::connect(socket).and_then(|mut stream| {
            handshake(&mut stream)?;
            Ok(stream)
        });
        let stream = stream
            .map_err(|source| Error::io("connect to", socket.display().to_string(), source))?;
        Ok(Client {
            stream,
            buffer: vec![0; REQUEST_LEN_MAX as usize],
            under_way: Vec::new(),
            next: 0,
            read: blake3::Hasher::new(),
        })
    }

    /// Makes the calls in order, at most `depth` of them under way, and waits for all answers.
    /// Returns a digest of the first 512 bytes of each read, in the order of the answers: enough to
    /// see wrong bytes, and too little to be seen in the time.
    pub fn replay(mut self, calls: &[Call], depth: usize) -> Result<blake3::Hash> {
        let failed = |source| Error::io("replay", "a trace", source);
        for call in calls {
            while self.under_way.len() >= depth {
                self.receive().map_err(failed)?;
            }
            self.send(*call).map_err(failed)?;
        }
        while !self.under_way.is_empty() {
            self.receive().map_err(failed)?;
        }
        Ok(self.read.finalize())
    }

    /// Reads one range and waits for it.
    pub fn read_once(&mut self, offset: u64, len: u32) -> Result<()> {
        let answered = self.send(Call::Read { offset, len }).and_then(|()| self.receive());
        answered.map_err(|source| Error::io("read", "the first bytes", source))
    }

    /// Writes bytes and waits until that is answered.
    pub fn write_once(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        let call = Call::Write { offset, len: bytes.len() as u32 };
        let answered = self.send_as_is(call).and_then(|()| self.receive());
        answered.map_err(|source| Error::io("write", "some bytes", source))
    }

    fn send(&mut self, call: Call) -> io::Result<()> {
        if let Call::Write { len, .. } = call {
            // Bytes that differ from call to call, and are the same for every server.
            self.buffer[..len as usize].fill(self.next as u8 | 1);
        }
        self.send_as_is(call)
    }

    /// Sends a call; the bytes of a write are those in the buffer.
    fn send_as_is(&mut self, call: Call) -> io::Result<()> {
        let (command, offset, len) = match call {
            Call::Read { offset, len } => (0_u16, offset, len),
            Call::Write { offset, len } => (1, offset, len),
            Call::Flush => (3, 0, 0),
            Call::Discard { offset, len } => (4, offset, len),
            Call::Zeroes { offset, len } => (6, offset, len),
        };
        let mut request = Vec::with_capacity(28);
        request.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request.extend_from_slice(&0_u16.to_be_bytes());
        request.extend_from_slice(&command.to_be_bytes());
        request.extend_from_slice(&self.next.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&len.to_be_bytes());
        if command == 1 {
            request.extend_from_slice(&self.buffer[..len as usize]);
        }
        self.stream.write_all(&request)?;
        self.under_way.push((self.next, call));
        self.next += 1;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        let (magic, rest) = header.split_at(4);
        let (error, number) = rest.split_at(4);
        if magic != SIMPLE_REPLY_MAGIC.to_be_bytes() || error != [0; 4] {
            return Err(io::Error::other(format!("the server answered {header:?}")));
        }
        let asked = self.under_way.iter().position(|(asked, _)| asked.to_be_bytes() == *number);
        let Some(asked) = asked else {
            return Err(io::Error::other("an answer to nothing that was asked"));
        };
        if let (_, Call::Read { len, .. }) = self.under_way.remove(asked) {
            let bytes = &mut self.buffer[..len as usize];
            self.stream.read_exact(bytes)?;
            self.read.update(&bytes[..bytes.len().min(512)]);
        }
        Ok(())
    }
}

fn handshake(stream: &mut UnixStream) -> io::Result<()> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if greeting[..8] != INIT_MAGIC.to_be_bytes() || greeting[8..16] != OPTION_MAGIC.to_be_bytes() {
        return Err(io::Error::other("this is no NBD server"));
    }
    stream.write_all(&CLIENT_FLAGS.to_be_bytes())?;
    let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
    option.extend_from_slice(&OPT_EXPORT_NAME.to_be_bytes());
    option.extend_from_slice(&0_u32.to_be_bytes());
    stream.write_all(&option)?;
    // The export's length and flags.
    stream.read_exact(&mut [0; 10])
}

/// Fails unless every call is within what a request can say.
pub fn check(calls: &[Call], length: u64) -> Result<()> {
    let fits = |call: &Call| match *call {
        Call::Flush => true,
        Call::Read { offset, len } | Call::Write { offset, len } => {
            len <= REQUEST_LEN_MAX && offset.checked_add(len.into()).is_some_and(|e| e <= length)
        }
        Call::Zeroes { offset, len } | Call::Discard { offset, len } => {
            offset.checked_add(len.into()).is_some_and(|end| end <= length)
        }
    };
    match calls.iter().find(|call| !fits(call)) {
        None => Ok(()),
        Some(call) => Err(Error::new(Kind::Invalid, "replay", format!("{call:?}"))
            .because("it is beyond the disk or too long")),
    }
}
