//! The handshake: options are answered until the client names an export.
//!
//! **Invariants**: an option is at most 64 KiB, and the whole handshake ends within a limit of time,
//! which the server sets and takes back.

use std::io;
use std::sync::Arc;

use super::receive::Receiver;
use super::server::Export;
use super::socket::Socket;
use super::wire::{self, Fields};

/// The longest option that is read.
const OPTION_LEN_MAX: usize = 64 * 1024;
/// The most metadata queries in one option.
const QUERY_COUNT_MAX: u32 = 64;
/// The block size that clients are told to prefer.
const PREFERRED_LEN: u32 = model::BLOCK_LEN as u32;

/// What the client chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// Which export.
    pub(super) export: usize,
    /// Bytes of it, as the client was told.
    pub(super) length: u64,
    /// Structured replies.
    pub(super) structured: bool,
    /// `base:allocation`.
    pub(super) allocation: bool,
}

/// Negotiates; `None` where the client ends it or breaks the protocol.
///
/// # Errors
/// The connection broke, or time is up.
pub(super) fn negotiate(
    exports: &[Export],
    socket: &Arc<Socket>,
    receiver: &mut Receiver,
) -> io::Result<Option<Choice>> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(wire::INIT_MAGIC.to_be_bytes());
    greeting.extend(wire::OPTION_MAGIC.to_be_bytes());
    greeting.extend((wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES).to_be_bytes());
    socket.send_all(&greeting)?;
    if !receiver.fill(socket, 4)? {
        return Ok(None);
    }
    let flags = Fields(receiver.take(4)).u32().unwrap_or(u32::MAX);
    if flags & !u32::from(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES) != 0 {
        tracing::debug!("an NBD client sent unknown flags {flags:#x}; closing");
        return Ok(None);
    }
    let has = |flag: u16| flags & u32::from(flag) != 0;
    let mut handshake = Handshake {
        exports,
        answer: Vec::new(),
        fixed: has(wire::FLAG_FIXED_NEWSTYLE),
        zeroes: !has(wire::FLAG_NO_ZEROES),
        structured: false,
        context_of: None,
    };
    loop {
        if !receiver.fill(socket, wire::OPTION_HEADER_LEN)? {
            return Ok(None);
        }
        let mut header = Fields(receiver.take(wire::OPTION_HEADER_LEN));
        let (Some(wire::OPTION_MAGIC), Some(option), Some(len)) =
            (header.u64(), header.u32(), header.u32())
        else {
            tracing::debug!("an NBD client sent something that is not an option; closing");
            return Ok(None);
        };
        let len = len as usize;
        let next = if len > OPTION_LEN_MAX {
            handshake.push(option, wire::REP_ERR_TOO_BIG, b"the option is too long");
            Next::Close
        } else if !receiver.fill(socket, len)? {
            return Ok(None);
        } else {
            handshake.option(option, receiver.take(len))
        };
        socket.send_all(&handshake.answer)?;
        handshake.answer.clear();
        match next {
            Next::Option => (),
            Next::Close => return Ok(None),
            Next::Transmission(choice) => return Ok(Some(choice)),
        }
    }
}

/// What follows an option.
enum Next {
    Option,
    Close,
    Transmission(Choice),
}

struct Handshake<'a> {
    exports: &'a [Export],
    /// Replies that were not sent.
    answer: Vec<u8>,
    fixed: bool,
    zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was chosen.
    context_of: Option<usize>,
}

impl Handshake<'_> {
    /// Answers one option.
    fn option(&mut self, option: u32, data: &[u8]) -> Next {
        match option {
            wire::OPT_EXPORT_NAME => return self.export_name(data),
            _ if !self.fixed => return Next::Close,
            wire::OPT_ABORT => {
                self.push(option, wire::REP_ACK, &[]);
                return Next::Close;
            }
            wire::OPT_INFO | wire::OPT_GO => return self.info(option, data),
            wire::OPT_LIST if data.is_empty() => self.list(),
            wire::OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.push(option, wire::REP_ACK, &[]);
            }
            wire::OPT_LIST | wire::OPT_STRUCTURED_REPLY => self.invalid(option),
            wire::OPT_LIST_META_CONTEXT | wire::OPT_SET_META_CONTEXT => {
                self.meta_context(option, data);
            }
            _ => self.push(option, wire::REP_ERR_UNSUP, b"the option is not known here"),
        }
        Next::Option
    }

    /// Adds a reply to an option.
    fn push(&mut self, option: u32, reply: u32, data: &[u8]) {
        self.answer.extend(wire::OPTION_REPLY_MAGIC.to_be_bytes());
        self.answer.extend(option.to_be_bytes());
        self.answer.extend(reply.to_be_bytes());
        self.answer.extend((data.len() as u32).to_be_bytes());
        self.answer.extend(data);
    }

    fn invalid(&mut self, option: u32) {
        self.push(option, wire::REP_ERR_INVALID, b"the option's data is malformed");
    }

    /// The export of that name; the empty name is the first one.
    fn find(&self, name: &str) -> Option<usize> {
        let named = self.exports.iter().position(|export| export.name == name);
        named.or((name.is_empty() && !self.exports.is_empty()).then_some(0))
    }

    fn choice(&self, export: usize) -> Choice {
        Choice {
            export,
            length: self.exports[export].device.length(),
            structured: self.structured,
            allocation: self.structured && self.context_of == Some(export),
        }
    }

    fn transmission_flags(&self, export: usize) -> u16 {
        let mut flags = wire::FLAG_HAS_FLAGS
            | wire::FLAG_SEND_FLUSH
            | wire::FLAG_CAN_MULTI_CONN
            | wire::FLAG_SEND_CACHE;
        if self.structured {
            flags |= wire::FLAG_SEND_DF;
        }
        if self.exports[export].device.is_read_only() {
            return flags | wire::FLAG_READ_ONLY;
        }
        flags
            | wire::FLAG_SEND_FUA
            | wire::FLAG_SEND_TRIM
            | wire::FLAG_SEND_WRITE_ZEROES
            | wire::FLAG_SEND_FAST_ZERO
    }

    /// The old way to choose an export: it has no error but to close.
    fn export_name(&mut self, data: &[u8]) -> Next {
        let found = std::str::from_utf8(data).ok().and_then(|name| self.find(name));
        let Some(export) = found else {
            tracing::debug!("an NBD client asked for an export that is not here; closing");
            return Next::Close;
        };
        let choice = self.choice(export);
        let flags = self.transmission_flags(export);
        self.answer.extend(choice.length.to_be_bytes());
        self.answer.extend(flags.to_be_bytes());
        if self.zeroes {
            self.answer.extend([0; 124]);
        }
        Next::Transmission(choice)
    }

    fn list(&mut self) {
        for export in self.exports {
            let mut data = (export.name.len() as u32).to_be_bytes().to_vec();
            data.extend(export.name.as_bytes());
            data.extend(export.description.as_bytes());
            self.push(wire::OPT_LIST, wire::REP_SERVER, &data);
        }
        self.push(wire::OPT_LIST, wire::REP_ACK, &[]);
    }

    /// Answers INFO and GO; after a GO that succeeds, transmission begins.
    fn info(&mut self, option: u32, data: &[u8]) -> Next {
        let Some((name, wanted)) = parse_info(data) else {
            self.invalid(option);
            return Next::Option;
        };
        let Some(export) = self.find(name) else {
            self.push(option, wire::REP_ERR_UNKNOWN, b"there is no export of that name");
            return Next::Option;
        };
        let choice = self.choice(export);
        let mut info = wire::INFO_EXPORT.to_be_bytes().to_vec();
        info.extend(choice.length.to_be_bytes());
        info.extend(self.transmission_flags(export).to_be_bytes());
        self.push(option, wire::REP_INFO, &info);

        let mut info = wire::INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for len in [1, PREFERRED_LEN, wire::REQUEST_LEN_MAX] {
            info.extend(len.to_be_bytes());
        }
        self.push(option, wire::REP_INFO, &info);

        let chosen = &self.exports[export];
        for (kind, text) in
            [(wire::INFO_NAME, &chosen.name), (wire::INFO_DESCRIPTION, &chosen.description)]
        {
            if wanted.contains(&kind) {
                let info = [&kind.to_be_bytes()[..], text.as_bytes()].concat();
                self.push(option, wire::REP_INFO, &info);
            }
        }
        self.push(option, wire::REP_ACK, &[]);
        if option == wire::OPT_GO { Next::Transmission(choice) } else { Next::Option }
    }

    /// Lists or sets metadata contexts. Setting replaces what was set, even where it fails.
    fn meta_context(&mut self, option: u32, data: &[u8]) {
        let set = option == wire::OPT_SET_META_CONTEXT;
        if set {
            self.context_of = None;
        }
        if !self.structured {
            let message = b"ask for structured replies first";
            return self.push(option, wire::REP_ERR_INVALID, message);
        }
        let Some((name, queries)) = parse_queries(data) else {
            return self.invalid(option);
        };
        let Some(export) = self.find(name) else {
            let message = b"there is no export of that name";
            return self.push(option, wire::REP_ERR_UNKNOWN, message);
        };
        let all = !set && (queries.is_empty() || queries.contains(&"base:"));
        if all || queries.contains(&wire::CONTEXT_NAME) {
            let id = if set { wire::CONTEXT_ID } else { 0 };
            let data = [&id.to_be_bytes()[..], wire::CONTEXT_NAME.as_bytes()].concat();
            self.push(option, wire::REP_META_CONTEXT, &data);
            if set {
                self.context_of = Some(export);
            }
        }
        self.push(option, wire::REP_ACK, &[]);
    }
}

/// The data of INFO and GO: a name and the kinds of information that the client wants.
fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
    fields.is_empty().then_some((name, wanted))
}

/// The data of the metadata options: a name and queries.
fn parse_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32().filter(|count| *count <= QUERY_COUNT_MAX)?;
    let queries = (0..count).map(|_| fields.string()).collect::<Option<Vec<_>>>()?;
    fields.is_empty().then_some((name, queries))
}

/// Bytes that a receive buffer must be able to hold for a handshake.
pub(super) const RECEIVE_LEN_MAX: usize = OPTION_LEN_MAX;
