//! A client that says exactly what a test wants said.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use attach::nbd::{Address, NbdServer};

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

/// A connection of bytes.
pub struct RawClient {
    pub stream: Box<dyn Read + Send>,
    pub sender: Box<dyn Write + Send>,
    /// Structured replies were negotiated.
    pub structured: bool,
}

/// What a reply says.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    /// 0 is success.
    pub error: u32,
    /// Bytes that were read, or descriptors.
    pub data: Vec<u8>,
}

impl RawClient {
    /// Connects, and takes the greeting.
    pub fn connect(server: &NbdServer) -> RawClient {
        RawClient::connect_to(server.address())
    }

    fn connect_to(address: &Address) -> RawClient {
        let limit = Some(Duration::from_secs(20));
        let (stream, sender): (Box<dyn Read + Send>, Box<dyn Write + Send>) = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(limit).unwrap();
                (Box::new(stream.try_clone().unwrap()), Box::new(stream))
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(limit).unwrap();
                (Box::new(stream.try_clone().unwrap()), Box::new(stream))
            }
        };
        let mut client = RawClient { stream, sender, structured: false };
        assert_eq!(&client.take(16), b"NBDMAGICIHAVEOPT");
        assert_eq!(client.take(2), [0, 3]);
        client
    }

    /// Connects and goes through the handshake.
    pub fn transmitting(server: &NbdServer, structured: bool) -> RawClient {
        RawClient::transmitting_at(server.address(), structured)
    }

    /// The same where the server is known by its address alone.
    pub fn transmitting_at(address: &Address, structured: bool) -> RawClient {
        let mut client = RawClient::connect_to(address);
        client.send(&3u32.to_be_bytes());
        if structured {
            client.option(8, &[]);
            assert_eq!(client.option_reply(), (8, 1, vec![]));
            let context = b"base:allocation";
            let data = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15][..], context].concat();
            client.option(10, &data);
            assert_eq!(client.option_reply(), (10, 4, [&[0, 0, 0, 1][..], context].concat()));
            assert_eq!(client.option_reply().1, 1);
        }
        client.option(7, &[0; 6]);
        assert_eq!(client.option_reply().1, 3);
        assert_eq!(client.option_reply().1, 3);
        assert_eq!(client.option_reply(), (7, 1, vec![]));
        client.structured = structured;
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.sender.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// True when the server closed the connection without another byte.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
    }

    /// Option, reply type, data.
    pub fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        assert_eq!(self.take(8), 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let (option, reply, len) = (self.u32(), self.u32(), self.u32());
        (option, reply, self.take(len as usize))
    }

    pub fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u32) {
        let bytes = request(command, flags, cookie, offset, len);
        self.send(&bytes);
    }

    /// The next reply; `read_len` is what a successful simple reply to it carries.
    pub fn reply(&mut self, read_len: impl Fn(u64) -> usize) -> Reply {
        let mut reply = Reply { cookie: 0, error: 0, data: Vec::new() };
        loop {
            match self.u32() {
                0x6744_6698 => {
                    reply.error = self.u32();
                    reply.cookie = self.u64();
                    if reply.error == 0 && !self.structured {
                        reply.data = self.take(read_len(reply.cookie));
                    }
                    return reply;
                }
                0x668e_33ef => {
                    assert!(self.structured);
                    let (flags, kind) = (self.u16(), self.u16());
                    reply.cookie = self.u64();
                    let len = self.u32() as usize;
                    let payload = self.take(len);
                    match kind {
                        0 => assert!(payload.is_empty()),
                        1 => reply.data.extend(&payload[8..]),
                        5 => reply.data.extend(&payload[4..]),
                        0x8001 => {
                            reply.error = u32::from_be_bytes(payload[..4].try_into().unwrap());
                            let message_len = u16::from_be_bytes([payload[4], payload[5]]);
                            assert_eq!(usize::from(message_len) + 6, payload.len());
                        }
                        other => panic!("chunk of type {other}"),
                    }
                    if flags & 1 != 0 {
                        return reply;
                    }
                }
                other => panic!("{other:#x} is not the magic of a reply"),
            }
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// A request and its reply.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> Reply {
        let mut bytes = request(command, flags, 7, offset, len);
        bytes.extend(data);
        self.send(&bytes);
        let reply = self.reply(|_| if command == READ { len as usize } else { 0 });
        assert_eq!(reply.cookie, 7);
        reply
    }
}

/// The bytes of a request.
pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}
