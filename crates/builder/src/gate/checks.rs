//! What is looked at in a guest that boots: each thing until it is so, or until the time is over.

use std::time::{Duration, Instant};

use guest::seed::Seed;
use model::Result;
use model::progress::Cancel;

use super::boot::{SCRIPTS, USER_DATA_FILE};
use super::plan::{SeedWord, Test};
use super::port::Port;
use super::report::Checked;
use super::tap;

/// What the shell says when it is there.
const READY: &str = "larder-test-shell\n";

/// The state of a socket that listens, in /proc/net/tcp.
const LISTENS: &str = "0A";

/// For how long a thing is looked at when the time of its test is over.
const LAST_LOOK: Duration = Duration::from_secs(15);

/// How much of what a script said is told where it fails, in bytes.
const SAID_MAX: usize = 2000;

/// A guest under test.
pub(crate) struct Checks<'a> {
    /// When it was started.
    pub began: Instant,
    /// Its console.
    pub console: Port,
    /// The port where root's shell is.
    pub shell: Port,
    /// Why there is no shell.
    pub no_shell: Option<String>,
    /// Whether the shell has said that it is there.
    pub is_open: bool,
    /// Whether the login prompt was seen.
    pub has_prompt: bool,
    /// Who it was told it is.
    pub seed: Option<Seed>,
    /// By what.
    pub seed_word: Option<SeedWord>,
    /// Ends it all.
    pub cancel: &'a Cancel,
}

/// What was found; why not, where it is not as it should be.
type Found = Result<std::result::Result<(), String>>;

impl Checks<'_> {
    /// Makes the checks of a test.
    ///
    /// # Errors
    /// `Cancelled`.
    pub(crate) fn of(&mut self, index: usize, test: &Test) -> Result<Vec<Checked>> {
        let limit = Duration::from_secs(test.timeout_seconds);
        // The first test waits for the boot, and so its time begins there.
        let whole = (self.began + limit).max(Instant::now() + limit / 4);
        // What is looked at after something that never came is looked at all the same.
        let deadline = || whole.max(Instant::now() + LAST_LOOK);
        let mut all = Vec::new();
        let mut add = |what: String, found: std::result::Result<(), String>| {
            let reason = found.err();
            all.push(Checked {
                what,
                passed: reason.is_none(),
                reason: reason.unwrap_or_default(),
            });
        };
        if test.login {
            add("login prompt".into(), self.prompt(deadline())?);
        }
        if test.seed.is_some() {
            let word = test.seed.map_or("", SeedWord::as_str);
            add(format!("seed {word}"), self.contextualized(deadline())?);
        }
        for unit in &test.units {
            add(format!("unit {unit}"), self.unit(unit, deadline())?);
        }
        for port in &test.ports {
            add(format!("port {port}"), self.listens(*port, deadline())?);
        }
        if test.script.is_some() {
            add("script".into(), self.script(index, deadline())?);
        }
        Ok(all)
    }

    fn prompt(&mut self, deadline: Instant) -> Found {
        if self.has_prompt {
            return Ok(Ok(()));
        }
        let seen = self.console.wait_for("login: ", deadline, self.cancel)?;
        self.has_prompt = seen.is_ok();
        Ok(seen.map(drop).map_err(|not_seen| not_seen.0))
    }

    /// Runs a command; what it printed and its code, or why that is not known.
    fn ask(
        &mut self,
        command: &str,
        deadline: Instant,
    ) -> Result<std::result::Result<(String, i32), String>> {
        if let Some(why) = &self.no_shell {
            return Ok(Err(format!("nobody can look into the guest: {why}")));
        }
        if !self.is_open {
            if self.shell.wait_for(READY, deadline, self.cancel)?.is_err() {
                // The console tells more than a port at which nothing was said.
                let seen = self.console.wait_for("\0", Instant::now(), self.cancel)?;
                let why = seen.err().map_or(String::new(), |not_seen| not_seen.0);
                return Ok(Err(format!("no shell: {why}")));
            }
            self.is_open = true;
        }
        Ok(self.shell.run(command, deadline, self.cancel)?.map_err(|not_seen| not_seen.0))
    }

    /// Asks again and again until the answer is right, or the time is over.
    fn until(
        &mut self,
        command: &str,
        deadline: Instant,
        judge: &dyn Fn(&str, i32) -> std::result::Result<(), String>,
    ) -> Found {
        loop {
            let (printed, code) = match self.ask(command, deadline)? {
                Ok(answer) => answer,
                Err(why) => return Ok(Err(why)),
            };
            match judge(&printed, code) {
                Ok(()) => return Ok(Ok(())),
                Err(why) if Instant::now() >= deadline => return Ok(Err(why)),
                Err(why) => {
                    // The guest waits, not we: it may be slow.
                    if self.ask("sleep 1", deadline)?.is_err() {
                        return Ok(Err(why));
                    }
                }
            }
        }
    }

    fn unit(&mut self, unit: &str, deadline: Instant) -> Found {
        let found =
            self.until(&format!("systemctl is-active '{unit}'"), deadline, &|printed, _| {
                match printed.trim() {
                    "active" => Ok(()),
                    other => Err(format!("it is {other}")),
                }
            })?;
        let Err(why) = found else { return Ok(Ok(())) };
        let command = format!("journalctl --no-pager -q -o cat -n 5 -u '{unit}'");
        let last = self.ask(&command, Instant::now() + Duration::from_secs(20))?;
        let last = last.map_or(String::new(), |(printed, _)| printed);
        Ok(Err(format!("{why}; it last said: {}", last.trim().replace('\n', " | "))))
    }

    fn listens(&mut self, port: u16, deadline: Instant) -> Found {
        self.until("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null", deadline, &|printed, _| {
            match listening(printed).contains(&port) {
                true => Ok(()),
                false => Err(format!("nobody listens there, but at {:?}", listening(printed))),
            }
        })
    }

    fn script(&mut self, index: usize, deadline: Instant) -> Found {
        let path = format!("{SCRIPTS}{index}");
        // Without a first line that names another, it is the shell's.
        let command = format!(
            "cd /; if [ \"$(head -c 2 {path})\" = '#!' ]; then {path}; else /bin/sh {path}; fi \
             </dev/null 2>&1"
        );
        let (printed, code) = match self.ask(&command, deadline)? {
            Ok(answer) => answer,
            Err(why) => return Ok(Err(why)),
        };
        let why = match (tap::failure(&printed), code) {
            (Some(why), _) => why,
            (None, 0) => return Ok(Ok(())),
            (None, code) => format!("it ended with {code}"),
        };
        let from = printed.ceil_char_boundary(printed.len().saturating_sub(SAID_MAX));
        Ok(Err(format!("{why}; it said: {}", printed[from..].trim().replace('\n', " | "))))
    }

    /// Whether name, key and user-data have arrived.
    fn contextualized(&mut self, deadline: Instant) -> Found {
        let Some(seed) = self.seed.clone() else { return Ok(Err("there is no seed".into())) };
        if self.seed_word != Some(SeedWord::Credentials) {
            // Returns at once where it is done, or is not there.
            if let Err(why) = self.ask("cloud-init status --wait >/dev/null 2>&1", deadline)? {
                return Ok(Err(format!("cloud-init did not end: {why}")));
            }
        }
        let word = seed.host_name.trim_start_matches("test-").to_owned();
        let command = format!(
            "hostname; grep -shc {word} /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys | \
             sort -n | tail -n 1; cat {USER_DATA_FILE} 2>/dev/null; echo; cloud-init status --long 2>&1 | tail -n 3"
        );
        let has_data = self.seed_word != Some(SeedWord::Credentials);
        self.until(&command, deadline, &|printed, _| {
            let mut lines = printed.lines();
            let (name, keys) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            let data = lines.next().unwrap_or_default();
            let name = name.split('.').next().unwrap_or_default();
            let missing = match () {
                () if name != seed.host_name => "its name is another",
                () if keys != "1" => "the key is in no authorized_keys",
                () if has_data && data != word => "the user-data were not carried out",
                () => return Ok(()),
            };
            Err(format!("{missing}: {}", printed.trim().replace('\n', " | ")))
        })
    }
}

/// The ports at which somebody listens, by /proc/net/tcp.
fn listening(text: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _, state) = (words.next()?, words.next()?, words.next()?);
        let (_, port) = local.rsplit_once(':')?;
        (state == LISTENS).then(|| u16::from_str_radix(port, 16).ok())?
    };
    let mut ports: Vec<u16> = text.lines().filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::listening;

    #[test]
    fn ports_are_those_that_are_listened_at() {
        let text = "  sl  local_address rem_address   st tx_queue\n\
            0: 00000000:0016 00000000:0000 0A 00000000:00000000\n\
            1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000\n\
            2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0\n\
            nonsense\n";
        assert_eq!(listening(text), [22, 80]);
    }
}
