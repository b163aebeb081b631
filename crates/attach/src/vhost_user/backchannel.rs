//! Telling the front end that the disk has become longer.
//!
//! The front end gives a second socket for what the back end has to say, with a message of its own on
//! the first one. The library keeps that socket and has no word for "the configuration changed", so
//! the message is looked at before the library takes it, which gives us a copy of the descriptor.
//!
//! **Failure**: a front end that gave no socket, or does not read it, learns of the length when it
//! connects again.
//!
//! **Source**: `docs/interop/vhost-user.rst` of QEMU: header, `VHOST_USER_SET_BACKEND_REQ_FD`,
//! `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use vhost::vhost_user::message::{BackendReq, FrontendReq};

/// Bytes of a message's header: request, flags, size; 4 each, in the machine's order.
const HEADER_LEN: usize = 12;
/// The version of the protocol, in a header's flags.
const VERSION: u32 = 1;

/// The front end's ear.
pub(super) struct Backchannel(UnixStream);

impl Backchannel {
    /// Waits for the next message on a connection, and takes a copy of the socket that it brings if it
    /// is the one that brings it. The message stays where it is.
    pub(super) fn look(connection: &UnixStream) -> io::Result<Option<Backchannel>> {
        let mut header = [0; HEADER_LEN];
        let whole = RecvFlags::PEEK | RecvFlags::WAITALL;
        let (len, _) = rustix::net::recv(connection, &mut header, whole)?;
        let request = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        if len < HEADER_LEN || request != u32::from(FrontendReq::SET_BACKEND_REQ_FD) {
            return Ok(None);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        let mut into = [IoSliceMut::new(&mut header)];
        rustix::net::recvmsg(connection, &mut into, &mut ancillary, flags)?;
        let mut brought: Vec<OwnedFd> = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                brought.extend(descriptors);
            }
        }
        let Some(socket) = brought.pop() else { return Ok(None) };
        // Nobody who does not listen may hold us up.
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Some(Backchannel(socket)))
    }

    /// Says that what the guest may read about the disk has changed.
    pub(super) fn announce(&self) -> io::Result<()> {
        let words = [u32::from(BackendReq::CONFIG_CHANGE_MSG), VERSION, 0];
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        match (&self.0).write(&message)? {
            HEADER_LEN => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}
