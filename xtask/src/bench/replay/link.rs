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
//! replay less that of a replay by a mirror whose base is there. How long reads waited by the mirror's
//! own report stands beside it. Two boots: one whose kernel and initrd come from the disk, and one
//! that gets them from the host.

use std::cell::RefCell;
use std::time::Instant;

use model::Result;

use super::{Boot, Client, Columns, Place, Way, boot_trace, rest};
use crate::bench::rows::Contender;
use crate::bench::{Session, Size, inputs};

/// A link, and how long a boot may wait over it.
struct Link {
    name: &'static str,
    speed: &'static str,
    rate_bytes_per_second: f64,
    /// Seconds with the boot working set known.
    known_max: f64,
    /// Seconds with nothing known.
    unknown_max: f64,
}

const LINKS: &[Link] = &[
    Link {
        name: "1 ms",
        speed: "rate=125MB,delay=1ms",
        rate_bytes_per_second: 125e6,
        known_max: 0.15,
        unknown_max: 0.6,
    },
    Link {
        name: "20 ms",
        speed: "rate=125MB,delay=20ms",
        rate_bytes_per_second: 125e6,
        known_max: 1.0,
        unknown_max: 8.0,
    },
];

const DEPTHS: &[(usize, &str)] = &[(1, "one by one"), (4, "4 under way")];

const FIRST_BYTE: &str = "first byte";

/// Of what is fetched with the set known, as a multiple of what the set takes.
const FETCHED_MAX: f64 = 1.2;

const MIB: f64 = 1024.0 * 1024.0;

/// A boot, in a repository that knows its set and in one that does not.
struct Booted {
    name: &'static str,
    known: Place,
    unknown: Place,
}

impl Booted {
    fn new(
        session: &Session,
        name: &'static str,
        like: &Place,
        calls: Vec<super::Call>,
    ) -> Result<Self> {
        let known = Place::new(
            session,
            &format!("{}-known", name.replace(' ', "-")),
            &like.disk,
            calls.clone(),
        )?;
        known.record_set()?;
        let unknown =
            Place::new(session, &format!("{}-unknown", name.replace(' ', "-")), &like.disk, calls)?;
        Ok(Booted { name, known, unknown })
    }

    fn contender(&self, link: &Link, known: bool, what: &str) -> String {
        let knowledge = if known { "set known" } else { "nothing known" };
        format!("{}, {}, {knowledge}, {what}", self.name, link.name)
    }

    fn present(&self, under_way: &str) -> String {
        format!("{}, base present, {under_way}", self.name)
    }
}

/// Measures all boots over all links, and says what was found. `like` has the disk and the trace.
pub(super) fn run(session: &mut Session, like: &Place) -> Result<()> {
    let mut boots = vec![Booted::new(session, "whole boot", like, like.calls.clone())?];
    if session.size == Size::Full {
        let calls = boot_trace(session, &like.disk, Boot::KernelGiven)?;
        boots.insert(0, Booted::new(session, "kernel given", like, calls)?);
    }
    boots.iter().try_for_each(|booted| measure(session, booted))?;
    boots.iter().try_for_each(|booted| say(session, booted))
}

fn measure(session: &mut Session, booted: &Booted) -> Result<()> {
    let rounds = if session.size == Size::Full { 9 } else { 1 };
    let digests = RefCell::new(Vec::new());
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    let cases = || LINKS.iter().flat_map(|link| [(link, true), (link, false)]);
    for (depth, under_way) in DEPTHS {
        let way = Way { name: "", depth: *depth, cold: false, known: true, set: false };
        let digests = &digests;
        let present = move || {
            // Whoever was measured before has left a base of the same trace, or none at all.
            let socket = booted.known.sockets.path().join("mirror");
            let attached = booted.known.larder.attach("image", "fresh", &socket)?;
            Client::connect(&socket)?.replay(&booted.known.calls, 1)?;
            attached.detach()?;
            booted.known.on_mirror(way, digests)
        };
        contenders.push((booted.present(under_way), Box::new(present)));
        for (link, known) in cases() {
            let over = move || booted.over(link, known, *depth, digests);
            contenders.push((booted.contender(link, known, under_way), Box::new(over)));
        }
    }
    for (link, known) in cases() {
        let first = move || booted.first_byte(link, known);
        contenders.push((booted.contender(link, known, FIRST_BYTE), Box::new(first)));
    }
    session.rows.alternate(rounds, &mut contenders)
}

impl Booted {
    fn place(&self, known: bool) -> &Place {
        if known { &self.known } else { &self.unknown }
    }

    /// One replay by a fresh mirror over a link.
    fn over(
        &self,
        link: &Link,
        known: bool,
        depth: usize,
        digests: &RefCell<Vec<blake3::Hash>>,
    ) -> Result<Columns> {
        let place = self.place(known);
        let larder = place.larder.over_link(link.speed);
        let socket = place.sockets.path().join("mirror");
        inputs::remove(&place.state)?;
        rest(false)?;
        let began = Instant::now();
        let attached = larder.attach("image", "fresh", &socket)?;
        let start = began.elapsed().as_secs_f64();
        let mut columns = place.replay(&socket, depth, digests)?;
        columns.push(("start_seconds", start));
        let fetched = larder.mirror("fresh")?.number("fetched_bytes")?;
        columns.push(("fetched_mib", fetched as f64 / MIB));
        attached.detach()?;
        let report = larder.json(&["report", "fresh"])?;
        columns.push(("reported_seconds", report.fraction("waited_ms")? / 1000.0));
        Ok(columns)
    }

    /// From the command to the answer of the first read.
    fn first_byte(&self, link: &Link, known: bool) -> Result<Columns> {
        let place = self.place(known);
        let larder = place.larder.over_link(link.speed);
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
}

/// What was found, beside the goals.
fn say(session: &mut Session, booted: &Booted) -> Result<()> {
    let set = booted.known.larder.json(&["boot-set", "show", "image"])?;
    let set_mib = set.number("stored_bytes")? as f64 / MIB;
    let median = |who: &str, column| session.rows.median(who, column);
    let mut text = format!(
        "{}: {}. Its set takes {set_mib:.1} MiB. Over a link of 1 Gbit/s, modelled by waits. Total \
         waiting is the time of the replay beyond that with the base present; beside it what the \
         mirror's report counts, and what the bytes that were fetched take on the link alone.\n\n\
         | link | known | waiting, one by one | goal | reported | the link alone | 4 under way | fetched | attach to first byte |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        booted.name,
        super::trace::summary(&booted.known.calls),
    );
    for (link, known) in LINKS.iter().flat_map(|link| [(link, true), (link, false)]) {
        let waiting = |under_way: &str| {
            let all = median(&booted.contender(link, known, under_way), "replay_seconds")?;
            Some(all - median(&booted.present(under_way), "replay_seconds")?)
        };
        let seconds = |value: Option<f64>| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3} s"))
        };
        let name = booted.contender(link, known, "one by one");
        let fetched = median(&name, "fetched_mib").unwrap_or_default();
        let first = booted.contender(link, known, FIRST_BYTE);
        text += &format!(
            "| {} | {} | {} | {} s | {} | {} | {} | {fetched:.1} MiB | {} |\n",
            link.name,
            if known { "the set" } else { "nothing" },
            seconds(waiting("one by one")),
            if known { link.known_max } else { link.unknown_max },
            seconds(median(&name, "reported_seconds")),
            seconds(Some(fetched * MIB / link.rate_bytes_per_second)),
            seconds(waiting("4 under way")),
            seconds(median(&first, "first_byte_seconds")),
        );
    }
    let fetched = median(&booted.contender(&LINKS[0], true, "one by one"), "fetched_mib");
    text += &format!(
        "\nWith the set known {:.2} times its bytes are fetched (goal: {FETCHED_MAX} at most).\n",
        fetched.unwrap_or_default() / set_mib
    );
    session.notes.push(text);
    Ok(())
}
