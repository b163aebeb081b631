//! An NBD client that says when what was sent, and lets requests be on their way.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::LIMIT;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FLAG_FUA: u16 = 1;

/// A connection to an export, past its handshake.
pub struct NbdClient {
    stream: UnixStream,
    pub length: u64,
    next_cookie: u64,
}

/// The answer to a request: which, and its error number (0 is success).
pub struct Answer {
    pub cookie: u64,
    pub error: u32,
}

impl NbdClient {
    pub fn connect(socket: &Path, export: &str) -> NbdClient {
        NbdClient::try_connect(socket, export).unwrap()
    }

    pub fn try_connect(socket: &Path, export: &str) -> io::Result<NbdClient> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no padding; then the option EXPORT_NAME.
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello)?;
        let mut reply = [0; 10];
        stream.read_exact(&mut reply)?;
        let length = u64::from_be_bytes(reply[..8].try_into().unwrap());
        Ok(NbdClient { stream, length, next_cookie: 1 })
    }

    /// Waits for answers however long they take.
    pub fn wait_for_ever(&mut self) {
        self.stream.set_read_timeout(None).unwrap();
    }

    fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)?;
        Ok(cookie)
    }

    /// Sends a write, and does not wait.
    pub fn send_write(&mut self, offset: u64, data: &[u8]) -> io::Result<u64> {
        self.send(WRITE, 0, offset, data.len() as u32, data)
    }

    /// Sends a read, and does not wait.
    pub fn send_read(&mut self, offset: u64, len: usize) -> io::Result<u64> {
        self.send(READ, 0, offset, len as u32, &[])
    }

    /// The bytes that follow the answer to a read that went well.
    pub fn payload(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads; the error number where it failed.
    pub fn try_read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        match self.call(READ, 0, offset, len as u32, &[]) {
            0 => Ok(self.payload(len)),
            error => Err(error),
        }
    }

    /// Sends a flush, and does not wait.
    pub fn send_flush(&mut self) -> io::Result<u64> {
        self.send(FLUSH, 0, 0, 0, &[])
    }

    /// The next answer to a request that is no read.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes(), "the magic of a simple reply");
        Ok(Answer {
            error: u32::from_be_bytes(header[4..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(header[8..].try_into().unwrap()),
        })
    }

    fn call(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u32 {
        let cookie = self.send(command, flags, offset, len, data).unwrap();
        let answer = self.answer().unwrap();
        assert_eq!(answer.cookie, cookie);
        answer.error
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.call(READ, 0, offset, len as u32, &[]), 0, "read {offset}+{len}");
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn read_all(&mut self) -> Vec<u8> {
        const STEP: u64 = 1 << 20;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < self.length {
            let offset = bytes.len() as u64;
            bytes.extend(self.read(offset, STEP.min(self.length - offset) as usize));
        }
        bytes
    }

    /// Writes; the error number.
    pub fn try_write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.call(WRITE, 0, offset, data.len() as u32, data)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.try_write(offset, data), 0, "write {offset}+{}", data.len());
    }

    pub fn write_through(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.call(WRITE, FLAG_FUA, offset, data.len() as u32, data), 0);
    }

    pub fn flush(&mut self) {
        assert_eq!(self.call(FLUSH, 0, 0, 0, &[]), 0);
    }

    pub fn trim(&mut self, offset: u64, len: u32) {
        assert_eq!(self.call(TRIM, 0, offset, len, &[]), 0);
    }

    pub fn write_zeroes(&mut self, offset: u64, len: u32) {
        assert_eq!(self.call(WRITE_ZEROES, 0, offset, len, &[]), 0);
    }
}
