//! Where a server listens, and how that is written.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use model::{Error, Kind, Result};

const FORMS: &str = "write a path with a `/` in it, unix:PATH, HOST:PORT or tcp:HOST:PORT";

/// Where a server listens.
///
/// As text: a path that has a `/` in it, `unix:PATH`, `HOST:PORT` or `tcp:HOST:PORT`. Host names are
/// resolved when the text is read. Port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port. Only loopback hosts are served: there is no TLS.
    Tcp(SocketAddr),
}

impl FromStr for Address {
    type Err = Error;

    /// # Errors
    /// `Invalid` where the text has none of the forms, or the host is not known.
    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Address::Unix(path.into()));
        }
        let host = text.strip_prefix("tcp:");
        if host.is_none() && text.contains('/') {
            return Ok(Address::Unix(text.into()));
        }
        let invalid = || Error::new(Kind::Invalid, "read the address", format!("`{text}`"));
        let mut found = host
            .unwrap_or(text)
            .to_socket_addrs()
            .map_err(|error| invalid().hint(FORMS).caused_by(error))?;
        let first = found.next().ok_or_else(|| invalid().because("the host has no address"))?;
        Ok(Address::Tcp(first))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl Address {
    /// The NBD URI of an export behind this address.
    pub(super) fn uri(&self, name: &str) -> String {
        let name = percent_encoded(name.as_bytes());
        match self {
            Address::Unix(path) => {
                let path = percent_encoded(path.as_os_str().as_encoded_bytes());
                format!("nbd+unix:///{name}?socket={path}")
            }
            Address::Tcp(address) => format!("nbd://{address}/{name}"),
        }
    }
}

/// Bytes with everything but letters, digits and `-._~/` as `%XX`.
fn percent_encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_host_and_port() {
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
        for (text, expected) in [
            ("/run/a.sock", Address::Unix("/run/a.sock".into())),
            ("./a:1", Address::Unix("./a:1".into())),
            ("unix:a.sock", Address::Unix("a.sock".into())),
            ("127.0.0.1:0", tcp("127.0.0.1:0")),
            ("tcp:[::1]:10809", tcp("[::1]:10809")),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), expected);
        }
        for text in ["", "unix:", "a.sock", "127.0.0.1", "127.0.0.1:66000", "tcp:/a:1"] {
            assert_eq!(text.parse::<Address>().unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn a_uri_escapes_what_would_end_it() {
        let address = Address::Unix("/tmp/a b?&.sock".into());
        assert_eq!(address.uri("web#1"), "nbd+unix:///web%231?socket=/tmp/a%20b%3F%26.sock");
        assert_eq!("127.0.0.1:9".parse::<Address>().unwrap().uri(""), "nbd://127.0.0.1:9/");
    }
}
