//! Progress on stderr: a bar with rate and time left for people, JSON lines for programs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use env::{Clock, SystemClock};
use indicatif::{ProgressDrawTarget, ProgressStyle};
use model::progress::Progress;

use crate::arguments::Format;

const JSON_INTERVAL: Duration = Duration::from_millis(500);

/// Shows how far long work has come. Cleared when dropped.
pub struct ProgressBar {
    bar: indicatif::ProgressBar,
    json: Option<JsonLines>,
}

struct JsonLines {
    what: String,
    total: AtomicU64,
    done: AtomicU64,
    start: Duration,
    last: Mutex<Duration>,
}

impl ProgressBar {
    /// A bar that says what is done. Silent where quiet is wanted or stderr is no terminal.
    pub fn new(what: &str, format: Format, quiet: bool) -> Self {
        let json = (format == Format::Json && !quiet).then(|| JsonLines {
            what: what.to_string(),
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            start: SystemClock.monotonic(),
            last: Mutex::new(SystemClock.monotonic()),
        });
        let target = match quiet || json.is_some() {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr_with_hz(10),
        };
        let bar = indicatif::ProgressBar::with_draw_target(None, target);
        let template = "{msg} {wide_bar:.cyan/blue} {binary_bytes}/{binary_total_bytes} \
                        {binary_bytes_per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_message(what.to_string());
        ProgressBar { bar, json }
    }
}

impl Progress for ProgressBar {
    fn expect(&self, total_bytes: Option<u64>) {
        if let Some(total) = total_bytes {
            self.bar.set_length(total);
            if let Some(json) = &self.json {
                json.total.store(total, Ordering::Relaxed);
            }
        } else if let Ok(style) =
            ProgressStyle::with_template("{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}")
        {
            self.bar.set_style(style);
        }
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if let Some(json) = &self.json {
            json.advance(bytes);
        }
    }
}

impl JsonLines {
    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let now = SystemClock.monotonic();
        let Ok(mut last) = self.last.try_lock() else { return };
        if now.saturating_sub(*last) < JSON_INTERVAL {
            return;
        }
        *last = now;
        let seconds = now.saturating_sub(self.start).as_secs_f64();
        let line = serde_json::json!({
            "event": "progress",
            "what": self.what,
            "done_bytes": done,
            "total_bytes": match self.total.load(Ordering::Relaxed) { 0 => None, total => Some(total) },
            "bytes_per_second": (done as f64 / seconds.max(0.001)) as u64,
        });
        anstream::eprintln!("{line}");
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
