//! Packs, entries and hooks: found, moved, removed.

use std::time::Duration;

use model::digest::{DIGEST_LEN, Hook};
use model::{Kind, Realm};

use crate::catalog::Catalog;
use crate::records::{CatalogStatistics, Doomed, NewPack, PackId};

use super::examples::{LONG, digests, doomed, kind, name, pack, publication, publish};

/// Condemned, then removed: unless it was claimed, published or spared in between, or a lease is alive
/// that had begun before.
pub fn packs_are_removed_in_two_steps(catalog: &dyn Catalog) {
    let realm = Realm::default_realm();
    let add = |number| {
        let lease = catalog.begin_lease(LONG).unwrap();
        let id = catalog.add_pack(lease, &pack(number)).unwrap();
        catalog.publish(lease, &publication("a")).unwrap();
        id
    };
    let [plain, claimed, spared, fresh] = [1, 2, 3, 4].map(add);
    let writer = catalog.begin_lease(LONG).unwrap();
    let own = catalog.add_pack(writer, &pack(5)).unwrap();
    let collect = catalog.begin_collect(LONG).unwrap();
    let all = [plain, claimed, spared, own, PackId(i64::MAX)];
    let mark = catalog.condemn(collect, &all).unwrap();
    let condemned = |id| catalog.pack(id).unwrap().condemned;
    assert_eq!([plain, claimed, spared].map(condemned), [Some(mark); 3]);
    assert_eq!([own, fresh].map(condemned), [None, None], "a live lease's, and one not named");
    assert!(catalog.packs_with_hooks(&realm, &pack(1).hooks, 9).unwrap().is_empty());
    assert!(catalog.locate(&realm, &digests(&pack(1))).unwrap().iter().all(Option::is_some));
    // A writer that had begun holds everything up, one that begins now does not.
    let late = catalog.begin_lease(LONG).unwrap();
    assert_eq!(catalog.leases_before(mark).unwrap(), 1);
    let doomed: Vec<Doomed> = [(plain, 1), (claimed, 2), (spared, 3), (fresh, 4), (own, 5)]
        .map(|(id, number)| doomed(id, &pack(number)))
        .to_vec();
    assert!(catalog.remove_condemned(collect, &doomed).unwrap().is_empty());
    catalog.claim(writer, &realm, &digests(&pack(2))[1..]).unwrap();
    catalog.spare(collect, &[spared, own]).unwrap();
    assert_eq!(catalog.pack(own).unwrap().lease, Some(writer), "not condemned, so not touched");
    catalog.publish(writer, &publication("a")).unwrap();
    assert_eq!(catalog.leases_before(mark).unwrap(), 0);
    assert_eq!(catalog.remove_condemned(collect, &doomed).unwrap(), [pack(1).name]);
    assert_eq!(kind(catalog.pack(plain)), Kind::NotFound);
    assert!(catalog.locate(&realm, &digests(&pack(1))).unwrap().iter().all(Option::is_none));
    for number in 2..=5 {
        let places = catalog.locate(&realm, &digests(&pack(number))).unwrap();
        assert!(places.iter().all(Option::is_some), "pack {number}");
    }
    // Condemned again later, the mark is a later one.
    assert!(catalog.condemn(collect, &[claimed]).unwrap() > mark);
    catalog.abandon_lease(late).unwrap();
    catalog.compact().unwrap();
    assert!(catalog.locate(&realm, &digests(&pack(2))).unwrap().iter().all(Option::is_some));
}

/// What a dead writer has left can be condemned; what comes again in a new pack is claimed.
pub fn entries_that_come_again_bring_their_pack_back(catalog: &dyn Catalog) {
    let dead = catalog.begin_lease(Duration::ZERO).unwrap();
    assert_eq!(kind(catalog.add_pack(dead, &pack(1))), Kind::Stale);
    let writer = catalog.begin_lease(LONG).unwrap();
    let left = catalog.add_pack(writer, &pack(1)).unwrap();
    catalog.renew_lease(writer, Duration::ZERO).unwrap();
    let collect = catalog.begin_collect(LONG).unwrap();
    catalog.condemn(collect, &[left]).unwrap();
    let again = catalog.begin_lease(LONG).unwrap();
    let same = NewPack { name: pack(9).name, ..pack(1) };
    catalog.add_pack(again, &same).unwrap();
    let record = catalog.pack(left).unwrap();
    assert_eq!((record.condemned, record.lease), (None, None));
    assert!(catalog.remove_condemned(collect, &[doomed(left, &pack(1))]).unwrap().is_empty());
}

/// There is one collect at a time; one that died is followed by the next.
pub fn collects_take_turns(catalog: &dyn Catalog) {
    let first = catalog.begin_collect(LONG).unwrap();
    assert_eq!(kind(catalog.begin_collect(LONG)), Kind::Refused);
    catalog.renew_lease(first, Duration::ZERO).unwrap();
    let second = catalog.begin_collect(LONG).unwrap();
    assert_eq!(kind(catalog.condemn(first, &[])), Kind::Stale);
    assert_eq!(kind(catalog.spare(first, &[])), Kind::Stale);
    assert_eq!(kind(catalog.remove_condemned(first, &[])), Kind::Stale);
    assert!(catalog.abandon_lease(second).unwrap().is_empty());
    catalog.begin_collect(LONG).unwrap();
}

/// Copies take the places of known entries; what is not known yet comes in as well.
pub fn entries_move(catalog: &dyn Catalog) {
    let realm = Realm::default_realm();
    let lease = catalog.begin_lease(LONG).unwrap();
    let old = catalog.add_pack(lease, &pack(1)).unwrap();
    catalog.publish(lease, &publication("a")).unwrap();
    let collect = catalog.begin_collect(LONG).unwrap();
    let mut copy = NewPack { entries: pack(2).entries[..2].to_vec(), ..pack(2) };
    copy.entries[0].digest = pack(1).entries[0].digest;
    let new = catalog.move_entries(collect, &copy).unwrap();
    assert_eq!(catalog.pack(new).unwrap().lease, None);
    let asked = [copy.entries[0].digest, copy.entries[1].digest, pack(1).entries[1].digest];
    let places = catalog.locate(&realm, &asked).unwrap();
    let packs: Vec<PackId> = places.iter().map(|place| place.as_ref().unwrap().pack).collect();
    assert_eq!(packs, [new, new, old]);
    assert_eq!(places[0].as_ref().unwrap().entry, copy.entries[0]);
    catalog.condemn(collect, &[old]).unwrap();
    catalog.remove_condemned(collect, &[doomed(old, &pack(1))]).unwrap();
    let places = catalog.locate(&realm, &asked).unwrap();
    assert_eq!(places.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
    let all = catalog.entries(None, 1).unwrap();
    let rest = catalog.entries(Some((&all[0].0, all[0].1.entry.digest)), 9).unwrap();
    let listed: Vec<_> = all.into_iter().chain(rest).map(|(_, place)| place.entry.digest).collect();
    let mut expected = digests(&copy);
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

/// Known entries stay where they are; lookups come in the order asked, repetitions included.
pub fn entries_keep_their_first_place(catalog: &dyn Catalog) {
    let lease = catalog.begin_lease(LONG).unwrap();
    let (first, mut second) = (pack(1), pack(2));
    let first_id = catalog.add_pack(lease, &first).unwrap();
    second.entries[0].digest = first.entries[0].digest;
    let second_id = catalog.add_pack(lease, &second).unwrap();
    let asked = [
        second.entries[1].digest,
        [0xee; DIGEST_LEN],
        first.entries[0].digest,
        second.entries[1].digest,
    ];
    let found = catalog.locate(&Realm::default_realm(), &asked).unwrap();
    assert!(found[1].is_none());
    for (index, pack, id, entry) in [
        (0, &second, second_id, second.entries[1]),
        (2, &first, first_id, first.entries[0]),
        (3, &second, second_id, second.entries[1]),
    ] {
        let place = found[index].as_ref().expect("known");
        assert_eq!((place.pack, &place.pack_name, place.entry), (id, &pack.name, entry));
    }
    assert!(catalog.locate(&Realm::default_realm(), &[]).unwrap().is_empty());
    assert_eq!(kind(catalog.add_pack(lease, &first)), Kind::Exists);
    let nameless = NewPack { name: "x".to_string(), ..pack(3) };
    assert_eq!(kind(catalog.add_pack(lease, &nameless)), Kind::Invalid);
    let empty = NewPack { entries: Vec::new(), hooks: Vec::new(), ..pack(4) };
    catalog.add_pack(lease, &empty).unwrap();
}

/// Each pack once, newest first, and for each hook no more than asked.
pub fn hooks_lead_to_the_newest_packs(catalog: &dyn Catalog) {
    let lease = catalog.begin_lease(LONG).unwrap();
    let (common, high) = (Hook(0x40), Hook(u64::MAX));
    let ids: Vec<PackId> = (1..=5)
        .map(|number| {
            let rare = Hook(0x80 * u64::from(number));
            let hooks = if number == 1 { vec![common, rare, high] } else { vec![rare, common] };
            catalog.add_pack(lease, &NewPack { hooks, ..pack(number) }).unwrap()
        })
        .collect();
    assert!(ids.is_sorted());
    let realm = Realm::default_realm();
    let ask = |hooks: &[Hook], max| catalog.packs_with_hooks(&realm, hooks, max).unwrap();
    assert_eq!(ask(&[common], 3), [ids[4], ids[3], ids[2]]);
    assert_eq!(ask(&[common, high], 2), [ids[4], ids[3], ids[0]]);
    assert_eq!(ask(&[Hook(0x100), Hook(0x200), Hook(0x100)], 9), [ids[3], ids[1]]);
    assert_eq!(ask(&[common], usize::MAX).len(), 5);
    assert!(
        ask(&[common], 0).is_empty() && ask(&[Hook(0)], 9).is_empty() && ask(&[], 9).is_empty()
    );
}

/// The same digests and hooks lead to each realm's own packs.
pub fn nothing_crosses_realms(catalog: &dyn Catalog) {
    let realms = ["", "team-a", "team-b"].map(|prefix| Realm::new(prefix).expect("well-formed"));
    let lease = catalog.begin_lease(LONG).unwrap();
    let shared = pack(1);
    let ids = [1, 2].map(|index| {
        let own = NewPack {
            name: pack(index).name,
            realm: realms[usize::from(index)].clone(),
            ..pack(1)
        };
        catalog.add_pack(lease, &own).unwrap()
    });
    for (realm, expected) in realms.iter().zip([None, Some(ids[0]), Some(ids[1])]) {
        let found = catalog.locate(realm, &digests(&shared)).unwrap();
        let packs: Vec<_> = found.iter().map(|place| place.as_ref().map(|p| p.pack)).collect();
        assert_eq!(packs, vec![expected; shared.entries.len()], "{realm:?}");
        let hooked = catalog.packs_with_hooks(realm, &shared.hooks, 9).unwrap();
        assert_eq!(hooked, Vec::from_iter(expected), "{realm:?}");
    }
}

/// Packs are listed by number with what is known of them.
pub fn entries_are_forgotten(catalog: &dyn Catalog) {
    let lease = catalog.begin_lease(LONG).unwrap();
    let one = pack(1);
    catalog.add_pack(lease, &one).unwrap();
    let realm = Realm::default_realm();
    catalog.forget_entries(lease, &realm, &digests(&one)[..2]).unwrap();
    let places = catalog.locate(&realm, &digests(&one)).unwrap();
    assert_eq!(places.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(catalog.packs().unwrap().len(), 1, "the pack stays");
    let again = NewPack { name: pack(2).name, ..one.clone() };
    let again_id = catalog.add_pack(lease, &again).unwrap();
    let places = catalog.locate(&realm, &digests(&one)).unwrap();
    let packs: Vec<_> = places.into_iter().map(|place| place.unwrap().pack == again_id).collect();
    assert_eq!(packs, [true, true, false], "a writer brings them again");
    catalog.abandon_lease(lease).unwrap();
    assert_eq!(kind(catalog.forget_entries(lease, &realm, &[])), Kind::Stale);
}

pub(super) fn packs_are_found_by_number(catalog: &dyn Catalog) {
    assert_eq!(kind(catalog.pack(PackId(1))), Kind::NotFound);
    let lease = catalog.begin_lease(LONG).unwrap();
    let ids = [1, 2].map(|number| catalog.add_pack(lease, &pack(number)).unwrap());
    let packs = catalog.packs().unwrap();
    assert_eq!(packs.iter().map(|pack| pack.id).collect::<Vec<_>>(), ids);
    for (record, number) in packs.iter().zip([1, 2]) {
        assert_eq!(
            (&record.name, record.stored_len),
            (&pack(number).name, pack(number).stored_len)
        );
        assert_eq!(&catalog.pack(record.id).unwrap(), record);
    }
}

/// Counts and sums follow what is published, added, removed.
pub fn statistics_add_up(catalog: &dyn Catalog) {
    // What the catalog itself takes is the engine's affair.
    let counted = || CatalogStatistics { catalog_len: 0, ..catalog.statistics().unwrap() };
    assert_eq!(counted(), CatalogStatistics::default());
    let lease = catalog.begin_lease(LONG).unwrap();
    let packs = [pack(1), pack(2)];
    for pack in &packs {
        catalog.add_pack(lease, pack).unwrap();
    }
    catalog.publish(lease, &publication("a")).unwrap();
    publish(catalog, "a");
    publish(catalog, "b");
    let one = publication("a").facts;
    let sum = |of: fn(&NewPack) -> u64| packs.iter().map(of).sum::<u64>();
    let mut expected = CatalogStatistics {
        image_count: 2,
        version_count: 3,
        logical_len: 3 * one.length,
        data_len: 3 * one.data_len,
        unique_len: sum(|pack| pack.data_len),
        unique_stored_len: sum(|pack| pack.data_stored_len),
        pack_count: 2,
        pack_len: sum(|pack| pack.stored_len),
        entry_count: sum(|pack| pack.entries.len() as u64),
        hook_count: sum(|pack| pack.hooks.len() as u64),
        boot_set_len: 0,
        catalog_len: 0,
    };
    assert_eq!(counted(), expected);
    let mut third = pack(3);
    third.entries.truncate(3);
    for (entry, kind) in third.entries.iter_mut().zip([6, 7, 2]) {
        entry.kind = kind;
    }
    let lease = catalog.begin_lease(LONG).unwrap();
    catalog.add_pack(lease, &third).unwrap();
    catalog.abandon_lease(lease).unwrap();
    assert_eq!(counted(), expected, "what is abandoned is not counted");
    let lease = catalog.begin_lease(LONG).unwrap();
    catalog.add_pack(lease, &third).unwrap();
    expected.boot_set_len = third.entries[..2].iter().map(|e| u64::from(e.stored_len)).sum();
    expected.pack_count += 1;
    expected.pack_len += third.stored_len;
    expected.unique_len += third.data_len;
    expected.unique_stored_len += third.data_stored_len;
    expected.entry_count += third.entries.len() as u64;
    expected.hook_count += third.hooks.len() as u64;
    assert_eq!(counted(), expected);
    catalog.remove_image(&name("b")).unwrap();
    expected.image_count = 1;
    expected.version_count = 2;
    expected.logical_len = 2 * one.length;
    expected.data_len = 2 * one.data_len;
    assert_eq!(counted(), expected);
}
