//! Free memory, given back by the guest before it is saved.
//!
//! What a guest has freed keeps its old bytes, and they would be stored with it. A balloon takes the
//! free pages: QEMU punches them out of the file that is the memory, so they read as zeros, and stay
//! so when the balloon lets go of them. Then the balloon is unplugged: a guest that is resumed has
//! none, since it could punch holes into the file that its siblings read.
//!
//! **Failure**: a guest without a driver for it gives nothing; one that does not let go of the device
//! cannot be saved.

use std::time::{Duration, Instant};

use guest::Qmp;
use model::{Error, Kind, Result};
use serde_json::{Value, json};

const DEVICE: &str = "/machine/peripheral/balloon";

/// How long the guest may take for its first answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How long it may take to give its pages.
const GIVE_MAX: Duration = Duration::from_secs(30);

/// How long it may take to let go of the device.
const UNPLUG_MAX: Duration = Duration::from_secs(20);

/// How long nothing may change before it counts as all there is.
const QUIET: Duration = Duration::from_secs(4);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);

/// Free memory that the guest keeps, in bytes: what it needs while it gives the rest.
const KEPT: u64 = 2 << 20;

/// Takes the free memory of a guest of `memory_len` bytes, gives it back as zeros, and unplugs the
/// balloon. Bytes that were free.
pub(super) fn empty(qmp: &Qmp, memory_len: u64) -> Result<u64> {
    let free = free_memory(qmp)?;
    let given = match free {
        Some(free) if free > KEPT => inflate(qmp, memory_len, free - KEPT)?,
        Some(_) => 0,
        None => {
            tracing::warn!("the guest has no driver for a balloon: its free memory is stored");
            0
        }
    };
    qmp.execute("device_del", Some(json!({ "id": "balloon" })))?;
    wait_until(UNPLUG_MAX, || {
        let list = qmp.execute("qom-list", Some(json!({ "path": "/machine/peripheral" })))?;
        let has_balloon = |list: &Vec<Value>| list.iter().any(|item| item["name"] == "balloon");
        Ok(!list.as_array().is_some_and(has_balloon))
    })?
    .then_some(given)
    .ok_or_else(|| {
        Error::new(Kind::Unavailable, "unplug", "the guest's balloon")
            .because(format!("the guest still has it after {} s", UNPLUG_MAX.as_secs()))
            .hint("bake with `--keep-free-memory`: a guest without hot-plug cannot be grown either")
    })
}

/// Free bytes, as the guest tells; none where it does not answer.
fn free_memory(qmp: &Qmp) -> Result<Option<u64>> {
    let arguments =
        json!({ "path": DEVICE, "property": "guest-stats-polling-interval", "value": 1 });
    qmp.execute("qom-set", Some(arguments))?;
    let mut free = None;
    wait_until(ANSWER_MAX, || {
        let arguments = json!({ "path": DEVICE, "property": "guest-stats" });
        let answer = qmp.execute("qom-get", Some(arguments))?;
        let told = answer["stats"]["stat-free-memory"].as_u64();
        // QEMU says "unknown" as the greatest number.
        free = told.filter(|free| *free != u64::MAX && answer["last-update"] != 0);
        Ok(free.is_some())
    })?;
    let arguments =
        json!({ "path": DEVICE, "property": "guest-stats-polling-interval", "value": 0 });
    qmp.execute("qom-set", Some(arguments))?;
    Ok(free)
}

/// Takes up to `wanted` bytes, then lets go of them.
fn inflate(qmp: &Qmp, memory_len: u64, wanted: u64) -> Result<u64> {
    let size = |bytes: u64| qmp.execute("balloon", Some(json!({ "value": bytes })));
    let actual = || -> Result<u64> {
        let answer = qmp.execute("query-balloon", None)?;
        Ok(answer["actual"].as_u64().unwrap_or(memory_len).min(memory_len))
    };
    let target = memory_len.saturating_sub(wanted);
    size(target)?;
    let (mut least, mut changed) = (memory_len, Instant::now());
    wait_until(GIVE_MAX, || {
        let now = actual()?;
        if now < least {
            (least, changed) = (now, Instant::now());
        }
        Ok(now <= target || changed.elapsed() > QUIET)
    })?;
    size(memory_len)?;
    wait_until(GIVE_MAX, || Ok(actual()? >= memory_len))?;
    Ok(memory_len - least)
}

/// Looks until something is so, or the limit is over. True where it is.
fn wait_until(limit: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<bool> {
    let began = Instant::now();
    loop {
        if is_so()? {
            return Ok(true);
        }
        if began.elapsed() > limit {
            return Ok(false);
        }
        std::thread::park_timeout(LOOK);
    }
}
