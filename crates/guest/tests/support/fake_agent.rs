//! An agent at a real socket that plays the part of QEMU's in a guest.
//!
//! It knows `guest-sync-delimited`, freeze and thaw, and refuses a freeze of what is frozen. It leaves
//! out: file systems (nothing stands still), other commands, the virtio-serial port between QEMU and
//! the guest (so a message that is sent before it runs is lost), and the agent's own time limits.
#![allow(dead_code, reason = "each test uses a part")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::{Value, json};

/// What it does when it is asked to freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFreeze {
    /// It freezes two file systems.
    Freeze,
    /// It says that it may not.
    Refuse,
    /// It freezes them and says nothing.
    FreezeSilently,
}

/// The commands that it is given come out here.
pub struct FakeAgent {
    pub commands: Receiver<String>,
}

impl FakeAgent {
    /// Serves one connection after the other, as QEMU does.
    pub fn listen(listener: UnixListener, on_freeze: OnFreeze) -> FakeAgent {
        let (sender, commands) = channel();
        std::thread::spawn(move || {
            let mut is_frozen = false;
            for stream in listener.incoming() {
                serve(stream.unwrap(), on_freeze, &mut is_frozen, &sender);
            }
        });
        FakeAgent { commands }
    }

    /// The next command.
    pub fn next(&self) -> String {
        self.commands.recv_timeout(std::time::Duration::from_secs(60)).unwrap()
    }
}

fn serve(
    mut stream: UnixStream,
    on_freeze: OnFreeze,
    is_frozen: &mut bool,
    commands: &Sender<String>,
) {
    // Something that was meant for whoever spoke before.
    let _ = stream.write_all(b"{\"return\": 17}\nrubbish\n");
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = Vec::new();
        match reader.read_until(b'\n', &mut line) {
            Ok(count) if count > 0 => {}
            _ => return,
        }
        let start = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
        let request: Value = serde_json::from_slice(&line[start..]).unwrap();
        let command = request["execute"].as_str().unwrap().to_string();
        let error = |reason: &str| Some(json!({"error": {"class": "Generic", "desc": reason}}));
        let (prefix, answer) = match command.as_str() {
            "guest-sync-delimited" => {
                (&[0xff][..], Some(json!({"return": request["arguments"]["id"]})))
            }
            "guest-fsfreeze-freeze" if *is_frozen => (&[][..], error("it is frozen")),
            "guest-fsfreeze-freeze" => {
                *is_frozen = on_freeze != OnFreeze::Refuse;
                let answer = match on_freeze {
                    OnFreeze::Freeze => Some(json!({"return": 2})),
                    OnFreeze::Refuse => error("the command is disabled"),
                    OnFreeze::FreezeSilently => None,
                };
                (&[][..], answer)
            }
            "guest-fsfreeze-thaw" => {
                let count = if std::mem::take(is_frozen) { 2 } else { 0 };
                (&[][..], Some(json!({"return": count})))
            }
            _ => (&[][..], error("unknown")),
        };
        // Whoever listens for commands may be gone.
        let _ = commands.send(command);
        if let Some(answer) = answer {
            let mut bytes = prefix.to_vec();
            bytes.extend(format!("{answer}\n").as_bytes());
            let _ = stream.write_all(&bytes);
        }
    }
}
