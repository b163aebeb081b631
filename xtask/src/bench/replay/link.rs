//! The same trace against a repository behind a link: what a guest waits for, and what is fetched.
//!
//! ```text
//!   guest --NBD--> larder attach, nothing present --> packs behind 1 Gbit/s and 1 or 20 ms
//! ```
//!
//! The link is the store's decorator (`LARDER_LINK`): it waits as long as a link would take, which is
//! a model, not a network. The catalog answers at its own speed.
//!
//! The goals are those for reads that come one by one. What such a guest waits for is the time of the
//! replay less that of a replay by a mirror whose base is there: `waiting_seconds`. How long reads
//! waited by the mirror's own report stands beside it.

use std::cell::RefCell;
use std::time::Instant;

use model::Result;

use super::{Client, Columns, Place, Way, rest};
use crate::bench::rows::Contender;
use crate::bench::{Session, Size, inputs};
use crate::demo::larder::Larder;

/// A link, and how long a boot may wait over it.
struct Link {
    name: &'static str,
    speed: &'static str,
    /// Seconds with the boot working set known.
    known_max: f64,
    /// Seconds with nothing known.
    unknown_max: f64,
}

const LINKS: &[Link] = &[
    Link { name: "1 ms", speed: "rate=125MB,delay=1ms", known_max: 0.15, unknown_max: 0.6 },
    Link { name: "20 ms", speed: "rate=125MB,delay=20ms", known_max: 1.0, unknown_max: 8.0 },
];

const DEPTHS: &[(usize, &str)] = &[(1, "one by one"), (4, "4 under way")];

/// The base of comparison: the base is there, so nothing is fetched.
const PRESENT: &str = "base present";

/// Of what is fetched with the set known, as a multiple of what the set takes.
const FETCHED_MAX: f64 = 1.2;

/// Measures both links, without the set and with it; the set must be recorded already for the latter.
pub(super) fn run(session: &mut Session, place: &Place, known: bool) -> Result<()> {
    let rounds = if session.size == Size::Full { 9 } else { 1 };
    let digests = RefCell::new(Vec::new());
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for (depth, under_way) in DEPTHS {
        if !known {
            let way = Way { name: PRESENT, depth: *depth, cold: false, known: true, set: false };
            let digests = &digests;
            let measure = move || place.on_mirror(way, digests);
            contenders.push((format!("{PRESENT}, {under_way}"), Box::new(measure)));
        }
        for link in LINKS {
            let larder = place.larder.over_link(link.speed);
            let digests = &digests;
            let measure = move || over(place, &larder, *depth, digests);
            contenders.push((name_of(link, known, under_way), Box::new(measure)));
        }
    }
    for link in LINKS {
        let larder = place.larder.over_link(link.speed);
        let measure = move || first_byte(place, &larder);
        let name = format!("first byte, {}, {}", link.name, knowledge(known));
        contenders.push((name, Box::new(measure)));
    }
    if !known {
        // So that the base is there for whoever is measured first.
        place.larder.attach("image", "fresh", &place.sockets.path().join("mirror"))?.detach()?;
    }
    session.rows.alternate(rounds, &mut contenders)
}

fn knowledge(known: bool) -> &'static str {
    if known { "set known" } else { "nothing known" }
}

fn name_of(link: &Link, known: bool, under_way: &str) -> String {
    format!("{}, {}, {under_way}", link.name, knowledge(known))
}

/// One replay by a fresh mirror over a link.
fn over(
    place: &Place,
    larder: &Larder,
    depth: usize,
    digests: &RefCell<Vec<blake3::Hash>>,
) -> Result<Columns> {
    let socket = place.sockets.path().join("mirror");
    inputs::remove(&place.state)?;
    rest(false)?;
    let began = Instant::now();
    let attached = larder.attach("image", "fresh", &socket)?;
    let start = began.elapsed().as_secs_f64();
    let mut columns = place.replay(&socket, depth, digests)?;
    columns.push(("start_seconds", start));
    let fetched = larder.mirror("fresh")?.number("fetched_bytes")?;
    columns.push(("fetched_mib", fetched as f64 / f64::from(1 << 20)));
    attached.detach()?;
    let report = larder.json(&["report", "fresh"])?;
    columns.push(("reported_seconds", report.fraction("waited_ms")? / 1000.0));
    Ok(columns)
}

/// From the command to the first block of the disk that is no hole.
fn first_byte(place: &Place, larder: &Larder) -> Result<Columns> {
    let socket = place.sockets.path().join("mirror");
    inputs::remove(&place.state)?;
    rest(false)?;
    let began = Instant::now();
    let attached = larder.attach("image", "fresh", &socket)?;
    let mut client = Client::connect(&socket)?;
    client.read_once(0, 4096)?;
    let seconds = began.elapsed().as_secs_f64();
    drop(client);
    attached.detach()?;
    Ok(vec![("first_byte_seconds", seconds)])
}

/// What was found, beside the goals.
pub(super) fn say(session: &mut Session, set_bytes: Option<u64>) {
    let median = |who: &str, column| session.rows.median(who, column);
    let mut text = String::from(
        "Over a link of 1 Gbit/s, modelled by waits. A guest's total waiting is the time of the replay \
         beyond that with the base present; in brackets what the mirror's report counts, which also \
         has what the bytes of present blocks take.\n\n\
         | link | known | total waiting, one by one | goal | 4 under way | fetched | attach to first byte |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for link in LINKS {
        for known in [true, false] {
            let waiting = |under_way: &str| {
                let all = median(&name_of(link, known, under_way), "replay_seconds")?;
                Some(all - median(&format!("{PRESENT}, {under_way}"), "replay_seconds")?)
            };
            let name = name_of(link, known, "one by one");
            let number = |value: Option<f64>| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3} s"))
            };
            let goal = if known { link.known_max } else { link.unknown_max };
            text += &format!(
                "| {} | {} | {} ({}) | {goal} s | {} | {:.1} MiB | {} |\n",
                link.name,
                if known { "the set" } else { "nothing" },
                number(waiting("one by one")),
                number(median(&name, "reported_seconds")),
                number(waiting("4 under way")),
                median(&name, "fetched_mib").unwrap_or_default(),
                number(median(
                    &format!("first byte, {}, {}", link.name, knowledge(known)),
                    "first_byte_seconds"
                )),
            );
        }
    }
    if let Some(set) = set_bytes {
        let set = set as f64 / f64::from(1 << 20);
        let fetched = median(&name_of(&LINKS[0], true, "one by one"), "fetched_mib");
        let times = fetched.unwrap_or_default() / set;
        text += &format!(
            "\nThe set takes {set:.1} MiB in packs; {times:.2} times that is fetched with it known \
             (goal: {FETCHED_MAX} at most).\n"
        );
    }
    session.notes.push(text);
}
