//! An archive behind HTTP that breaks off in the middle of packages.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// How often a package breaks off where it always does.
pub const ALWAYS: usize = usize::MAX;

/// A server; dropped, it ends.
pub struct Server {
    port: u16,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    folder: PathBuf,
    breaks: AtomicUsize,
    broken: AtomicUsize,
    over: AtomicBool,
}

impl Server {
    /// Serves a folder.
    pub fn start(folder: &Path) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            folder: folder.to_path_buf(),
            breaks: AtomicUsize::new(0),
            broken: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let serving = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.over.load(Ordering::SeqCst) {
                    return;
                }
                // A client may go at any time; it asks once per connection.
                let _ = stream.and_then(|stream| serving.answer(stream));
            }
        });
        Server { port, state, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next so many answers with a package end after half of it.
    pub fn break_off(&self, count: usize) {
        self.state.breaks.store(count, Ordering::SeqCst);
    }

    /// How many have.
    pub fn broken(&self) -> usize {
        self.state.broken.load(Ordering::SeqCst)
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let path = first.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
        let Ok(bytes) = std::fs::read(self.folder.join(path)) else {
            let head = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return stream.write_all(head.as_bytes());
        };
        let breaks = self.breaks.load(Ordering::SeqCst);
        let len = match (path.ends_with(".deb") || path.ends_with(".rpm")) && breaks > 0 {
            true => {
                self.broken.fetch_add(1, Ordering::SeqCst);
                self.breaks
                    .store(if breaks == ALWAYS { ALWAYS } else { breaks - 1 }, Ordering::SeqCst);
                bytes.len() / 2
            }
            false => bytes.len(),
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            bytes.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&bytes[..len])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        // Until the client has gone: what is unread would break the connection, and its last bytes.
        stream.read_to_end(&mut Vec::new()).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
