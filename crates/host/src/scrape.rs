//! Answers `GET /metrics` over HTTP, on a loopback address or a Unix socket, and nothing else.
//!
//! One request a connection, one connection at a time: who scrapes comes every few seconds.
//!
//! **Failure**: a request that is not ended within `REQUEST_LIMIT`, is longer than
//! `REQUEST_LEN_MAX`, or is no HTTP gets an error or nothing, and the next one is answered.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use attach::nbd::Address;
use env::{Clock, SystemClock};
use model::{Error, Kind, Result};

/// The longest request, in bytes.
const REQUEST_LEN_MAX: usize = 8 << 10;
/// How long a client may take to send its request, and to take each part of the answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long accepting rests after a failure, for example without file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// A server of metrics; ends when dropped.
pub struct ScrapeServer {
    address: Address,
    listener: Arc<Listener>,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

trait Stream: Read + Write {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Stream>> {
        let limit = Some(REQUEST_LIMIT);
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_read_timeout(limit)?;
                stream.set_write_timeout(limit)?;
                Ok(Box::new(stream))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_read_timeout(limit)?;
                stream.set_write_timeout(limit)?;
                Ok(Box::new(stream))
            }
        }
    }

    /// Wakes whoever accepts.
    fn shut_down(&self) {
        let _ = match self {
            Listener::Tcp(listener) => rustix::net::shutdown(listener, rustix::net::Shutdown::Both),
            Listener::Unix(listener, _) => {
                rustix::net::shutdown(listener, rustix::net::Shutdown::Both)
            }
        };
    }
}

impl ScrapeServer {
    /// Listens and answers with what `text` tells.
    ///
    /// # Errors
    /// `Refused` where the address is not loopback; what the system says.
    pub fn start(
        address: &Address,
        content_type: &'static str,
        text: impl Fn() -> String + Send + 'static,
    ) -> Result<Self> {
        let failed = |error| Error::io("serve metrics on", address.to_string(), error);
        let (listener, address) = match address {
            Address::Tcp(wanted) if !wanted.ip().is_loopback() => {
                return Err(Error::new(Kind::Refused, "serve metrics on", address.to_string())
                    .because("it is not a loopback address")
                    .hint("listen on 127.0.0.1, or on a Unix socket"));
            }
            Address::Tcp(wanted) => {
                let listener = TcpListener::bind(wanted).map_err(failed)?;
                let address = Address::Tcp(listener.local_addr().map_err(failed)?);
                (Listener::Tcp(listener), address)
            }
            Address::Unix(path) => {
                remove_dead_socket(path).map_err(failed)?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                (Listener::Unix(listener, path.clone()), address.clone())
            }
        };
        let (listener, is_stopped) = (Arc::new(listener), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::Builder::new().name("metrics".into());
        let thread = thread.spawn({
            let (listener, is_stopped) = (listener.clone(), is_stopped.clone());
            move || serve(&listener, &is_stopped, content_type, text)
        });
        let thread = Some(thread.map_err(|e| Error::io("start", "a thread for metrics", e))?);
        Ok(ScrapeServer { address, listener, is_stopped, thread })
    }

    /// Where it listens; with the actual port where port 0 was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for ScrapeServer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        self.listener.shut_down();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Listener::Unix(_, path) = &*self.listener {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_dead_socket(path: &std::path::Path) -> io::Result<()> {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Ok(()),
    }
}

fn serve(
    listener: &Listener,
    is_stopped: &AtomicBool,
    content_type: &str,
    text: impl Fn() -> String,
) {
    loop {
        let accepted = listener.accept();
        if is_stopped.load(Ordering::Acquire) {
            return;
        }
        let answered = accepted.map(|mut stream| answer(&mut *stream, content_type, &text));
        match answered {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a scrape was not answered"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the metrics' address");
                std::thread::park_timeout(ACCEPT_REST);
            }
        }
    }
}

fn answer(
    stream: &mut dyn Stream,
    content_type: &str,
    text: &impl Fn() -> String,
) -> io::Result<()> {
    let Some(line) = request_line(stream)? else { return Ok(()) };
    let mut words = line.split(' ');
    let (status, kind, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => ("200 OK", content_type, text()),
        (Some("GET"), Some(_)) => ("404 Not Found", "text/plain", "see /metrics\n".to_string()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET\n".to_string()),
    };
    let len = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )?;
    stream.flush()
}

/// Reads a request to the end of its head; its first line. None where it ends before.
fn request_line(stream: &mut dyn Stream) -> io::Result<Option<String>> {
    let deadline = SystemClock.monotonic() + REQUEST_LIMIT;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = stream.read(&mut part)?;
        request.extend_from_slice(&part[..len]);
        let is_over = request.len() > REQUEST_LEN_MAX || SystemClock.monotonic() > deadline;
        if len == 0 || is_over {
            return Ok(None);
        }
    }
    let text = String::from_utf8_lossy(&request);
    Ok(text.lines().next().map(str::to_string))
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;

    fn ask(address: &Address, request: &[u8]) -> String {
        let mut answer = String::new();
        let mut stream: Box<dyn Stream> = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).unwrap();
                (&stream).write_all(request).unwrap();
                // Who was turned away at once has the answer, and no connection any more.
                let _closed = stream.shutdown(Shutdown::Write);
                Box::new(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).unwrap();
                (&stream).write_all(request).unwrap();
                // Who was turned away at once has the answer, and no connection any more.
                let _closed = stream.shutdown(Shutdown::Write);
                Box::new(stream)
            }
        };
        // What was turned away may be cut off.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn metrics_are_told_on_tcp_and_on_a_socket_and_rubbish_is_turned_away() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Address::Unix(folder.path().join("metrics"));
        for address in ["127.0.0.1:0".parse().unwrap(), socket] {
            let server = ScrapeServer::start(&address, "text/plain", || "larder 1\n".into());
            let server = server.unwrap();
            let get = |path: &str| {
                ask(server.address(), format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            };
            assert!(
                get("/metrics")
                    .ends_with("Content-Length: 9\r\nConnection: close\r\n\r\nlarder 1\n")
            );
            assert!(get("/").starts_with("HTTP/1.1 404"));
            assert!(
                ask(server.address(), b"PUT /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405")
            );
            assert_eq!(ask(server.address(), b"rubbish"), "");
            assert_eq!(ask(server.address(), &[b'x'; REQUEST_LEN_MAX * 2]), "");
            assert!(get("/metrics").starts_with("HTTP/1.1 200"));
        }
        assert!(!folder.path().join("metrics").exists());
    }

    #[test]
    fn only_loopback_is_served() {
        let refused = ScrapeServer::start(&"192.0.2.1:0".parse().unwrap(), "", String::new);
        assert_eq!(refused.err().unwrap().kind(), Kind::Refused);
    }
}
