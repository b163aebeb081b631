//! The promises of [`crate::Catalog`] as a test suite: every engine's tests call it.
//!
//! [`check`] runs all of it. Each promise is a function of its own, which takes an empty catalog and
//! panics where the promise is broken. Expiry of leases is tested with leases that live for no time,
//! so that no engine needs a clock of the suite's.

use std::collections::BTreeMap;
use std::time::Duration;

use model::digest::{DIGEST_LEN, Hook};
use model::name::LabelKey;
use model::{
    ContentDigest, ImageName, Kind, LayoutDigest, Realm, Reference, TagName, VersionId,
    VersionKind, VersionNumber,
};

use crate::catalog::Catalog;
use crate::records::{
    BootSetRecord, CatalogStatistics, Condition, DocumentRecord, Doomed, EntryDigest, EntryRecord,
    ImageFilter, LeaseId, NewPack, PackId, Publication, Revision, VersionFacts,
};

/// Longer than any test of the suite.
const LONG: Duration = Duration::from_secs(3600);

type Promise = fn(&dyn Catalog);

/// All promises, by name.
pub const PROMISES: &[(&str, Promise)] = &[
    ("a version is what was published", a_version_is_what_was_published),
    ("numbers ascend and are never reused", numbers_ascend_and_are_never_reused),
    ("a clone is a new image", a_clone_is_a_new_image),
    ("an image that must be new", an_image_that_must_be_new_is_refused_when_it_exists),
    ("tags move", tags_move),
    ("labels are set and taken away", labels_are_set_and_taken_away),
    ("documents stay with their content", documents_stay_with_their_content),
    ("the list shows the latest", the_list_shows_the_latest_version),
    ("the list is filtered", the_list_is_filtered),
    ("what is removed is gone", what_is_removed_is_gone),
    ("machines keep their disks", machines_keep_their_disks),
    ("attaches are counted", attaches_are_counted),
    ("hints tell near names", hints_tell_near_names),
    ("a dead lease makes stale", a_dead_lease_makes_stale),
    ("a base that has changed makes stale", a_base_that_has_changed_makes_stale),
    ("a latest that has changed makes stale", a_latest_that_has_changed_makes_stale),
    ("abandoned packs are gone", abandoned_packs_are_gone),
    ("abandon spares what was claimed", abandon_spares_what_others_have_claimed),
    ("abandon spares first places", abandon_spares_what_holds_the_entries_of_others),
    ("packs are removed in two steps", packs_are_removed_in_two_steps),
    ("entries that come again", entries_that_come_again_bring_their_pack_back),
    ("collects take turns", collects_take_turns),
    ("entries move", entries_move),
    ("holds and versions are roots", holds_and_versions_are_roots),
    ("working sets go with their content", working_sets_go_with_their_content),
    ("entries keep their first place", entries_keep_their_first_place),
    ("hooks lead to the newest packs", hooks_lead_to_the_newest_packs),
    ("nothing crosses realms", nothing_crosses_realms),
    ("entries are forgotten", entries_are_forgotten),
    ("records are replaced", records_are_replaced),
    ("names go out and come in", names_go_out_and_come_in),
    ("packs are found by number", packs_are_found_by_number),
    ("statistics add up", statistics_add_up),
];

/// Panics where an engine breaks a promise. `make` makes an empty catalog.
pub fn check(make: &dyn Fn() -> Box<dyn Catalog>) {
    for (_, promise) in PROMISES {
        promise(make().as_ref());
    }
}

/// What was published is found, by number, by tag and as the latest, with every fact.
pub fn a_version_is_what_was_published(catalog: &dyn Catalog) {
    let lease = catalog.begin_lease(LONG).unwrap();
    let mut publication = publication("team/debian");
    publication.facts = VersionFacts {
        kind: VersionKind::Machine,
        length: 1 << 40,
        data_len: 4096 * 7,
        content: ContentDigest([3; DIGEST_LEN]),
        layout: LayoutDigest([4; DIGEST_LEN]),
        parent: Some(id("elsewhere", 5)),
        origin: "import 'disk\"; é".to_string(),
    };
    publication.tag = Some(tag("stable"));
    let record = catalog.publish(lease, &publication).unwrap();
    assert_eq!(record.id, id("team/debian", 1));
    assert_eq!(record.facts, publication.facts);
    assert_eq!(record.tags, [tag("stable")]);
    assert_eq!(record.labels, BTreeMap::new());
    assert_eq!((record.attach_count, record.latest), (0, VersionNumber::FIRST));
    for text in ["team/debian", "team/debian@1", "team/debian:stable"] {
        assert_eq!(catalog.version(&reference(text)).unwrap(), record, "{text}");
    }
    assert_eq!(catalog.versions(&name("team/debian")).unwrap(), std::slice::from_ref(&record));
    let [image] = &catalog.images(&ImageFilter::default()).unwrap()[..] else {
        panic!("one image")
    };
    assert_eq!((&image.name, image.length), (&record.id.image, 1 << 40));
    assert_eq!(image.versions, [VersionNumber::FIRST]);
    assert_eq!(image.tags, BTreeMap::from([(tag("stable"), VersionNumber::FIRST)]));
    assert_eq!(image.created, record.created);
}

/// Numbers go up by one for each image alone, also after removals.
pub fn numbers_ascend_and_are_never_reused(catalog: &dyn Catalog) {
    for number in 1..=3 {
        assert_eq!(publish(catalog, "a"), id("a", number));
        assert_eq!(publish(catalog, "b"), id("b", number));
    }
    catalog.remove_version(&id("a", 3)).unwrap();
    assert_eq!(catalog.version(&reference("a")).unwrap().id, id("a", 2));
    assert_eq!(publish(catalog, "a"), id("a", 4));
    let removed = catalog.remove_image(&name("a")).unwrap();
    assert_eq!(removed, [id("a", 1), id("a", 2), id("a", 4)]);
    assert_eq!(publish(catalog, "a"), id("a", 5));
    catalog.remove_version(&id("a", 5)).unwrap();
    let cloned = catalog.clone_version(&id("b", 1), &name("a")).unwrap();
    assert_eq!(cloned.id, id("a", 6));
    let latest: Vec<_> =
        catalog.versions(&name("b")).unwrap().iter().map(|v| v.latest.get()).collect();
    assert_eq!(latest, [3, 3, 3]);
}

/// A clone has its source's facts, the source as parent, and no tags nor labels.
pub fn a_clone_is_a_new_image(catalog: &dyn Catalog) {
    publish(catalog, "a");
    catalog.set_tag(&id("a", 1), &tag("t")).unwrap();
    catalog.set_label(&name("a"), &key("k"), Some("v")).unwrap();
    let clone = catalog.clone_version(&id("a", 1), &name("b")).unwrap();
    let source = catalog.version(&reference("a")).unwrap();
    assert_eq!(clone.id, id("b", 1));
    assert_eq!(clone.facts.parent, Some(id("a", 1)));
    assert_eq!(
        (clone.facts.content, clone.facts.layout),
        (source.facts.content, source.facts.layout)
    );
    assert_eq!(
        (clone.facts.length, clone.facts.data_len),
        (source.facts.length, source.facts.data_len)
    );
    assert!(clone.tags.is_empty() && clone.labels.is_empty());
    assert_eq!(kind(catalog.clone_version(&id("a", 1), &name("b"))), Kind::Exists);
    assert_eq!(kind(catalog.clone_version(&id("a", 2), &name("c"))), Kind::NotFound);
    assert_eq!(kind(catalog.version(&reference("c"))), Kind::NotFound);
    // Lineage outlives what it speaks of.
    catalog.remove_image(&name("a")).unwrap();
    assert_eq!(catalog.version(&reference("b")).unwrap(), clone);
}

/// Nothing has happened after the refusal, and the lease can still publish elsewhere.
pub fn an_image_that_must_be_new_is_refused_when_it_exists(catalog: &dyn Catalog) {
    publish(catalog, "a");
    let lease = catalog.begin_lease(LONG).unwrap();
    let mut wanted = Publication { condition: Condition::NewImage, ..publication("a") };
    assert_eq!(kind(catalog.publish(lease, &wanted)), Kind::Exists);
    assert_eq!(catalog.versions(&name("a")).unwrap().len(), 1);
    wanted.image = name("b");
    assert_eq!(catalog.publish(lease, &wanted).unwrap().id, id("b", 1));
}

/// A tag is on one version of an image at a time; two images have tags of the same name.
pub fn tags_move(catalog: &dyn Catalog) {
    for _ in 0..3 {
        publish(catalog, "a");
    }
    publish(catalog, "b");
    catalog.set_tag(&id("a", 1), &tag("stable")).unwrap();
    catalog.set_tag(&id("b", 1), &tag("stable")).unwrap();
    catalog.set_tag(&id("a", 1), &tag("old")).unwrap();
    assert_eq!(catalog.version(&reference("a:stable")).unwrap().tags, [tag("old"), tag("stable")]);
    catalog.set_tag(&id("a", 2), &tag("stable")).unwrap();
    assert_eq!(catalog.version(&reference("a:stable")).unwrap().id, id("a", 2));
    assert_eq!(catalog.version(&reference("a@1")).unwrap().tags, [tag("old")]);
    assert_eq!(catalog.version(&reference("b:stable")).unwrap().id, id("b", 1));
    let lease = catalog.begin_lease(LONG).unwrap();
    let tagged = Publication { tag: Some(tag("stable")), ..publication("a") };
    catalog.publish(lease, &tagged).unwrap();
    assert_eq!(catalog.version(&reference("a:stable")).unwrap().id, id("a", 4));
    assert_eq!(kind(catalog.set_tag(&id("a", 9), &tag("x"))), Kind::NotFound);
    assert_eq!(kind(catalog.version(&reference("a:x"))), Kind::NotFound);
}

/// Labels belong to the image: every version shows them.
pub fn labels_are_set_and_taken_away(catalog: &dyn Catalog) {
    publish(catalog, "a");
    publish(catalog, "a");
    let (image, key) = (name("a"), key("os"));
    for value in ["debian", "Größe \"1\"\n\\", ""] {
        catalog.set_label(&image, &key, Some(value)).unwrap();
        for version in catalog.versions(&image).unwrap() {
            assert_eq!(version.labels, BTreeMap::from([(key.clone(), value.to_string())]));
        }
    }
    catalog.set_label(&image, &key, None).unwrap();
    catalog.set_label(&image, &key, None).unwrap();
    assert!(catalog.version(&reference("a")).unwrap().labels.is_empty());
    assert_eq!(kind(catalog.set_label(&name("b"), &key, Some("x"))), Kind::NotFound);
}

/// A list shows the length and age of the latest version, whichever that is.
pub fn the_list_shows_the_latest_version(catalog: &dyn Catalog) {
    for length in [3 << 30, 5 << 30, 1 << 30] {
        let lease = catalog.begin_lease(LONG).unwrap();
        let mut sized = publication("a");
        sized.facts.length = length;
        catalog.publish(lease, &sized).unwrap();
    }
    for length in [1 << 30, 5 << 30, 3 << 30] {
        let latest = catalog.version(&reference("a")).unwrap();
        let [image] = &catalog.images(&ImageFilter::default()).unwrap()[..] else {
            panic!("one image")
        };
        assert_eq!((image.length, image.created), (length, latest.created));
        assert_eq!(image.versions.last(), Some(&latest.id.version));
        catalog.remove_version(&latest.id).unwrap();
    }
}

/// Images come by name; labels must all match, text may occur anywhere, in any case.
pub fn the_list_is_filtered(catalog: &dyn Catalog) {
    for image in ["web", "database", "alpine"] {
        publish(catalog, image);
    }
    let lease = catalog.begin_lease(LONG).unwrap();
    let mut from_disk = publication("web");
    from_disk.facts.origin = "import Über.qcow2".to_string();
    catalog.publish(lease, &from_disk).unwrap();
    publish(catalog, "web");
    catalog.set_label(&name("web"), &key("os"), Some("Debian")).unwrap();
    catalog.set_label(&name("web"), &key("tier"), Some("front")).unwrap();
    catalog.set_label(&name("database"), &key("os"), Some("Debian")).unwrap();
    catalog.set_tag(&id("alpine", 1), &tag("stable")).unwrap();

    let list = |filter: ImageFilter| -> Vec<String> {
        catalog.images(&filter).unwrap().iter().map(|image| image.name.to_string()).collect()
    };
    assert_eq!(list(ImageFilter::default()), ["alpine", "database", "web"]);
    let labelled = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| (key(k), v.to_string())).collect();
        list(ImageFilter { labels, search: None })
    };
    assert_eq!(labelled(&[("os", "Debian")]), ["database", "web"]);
    assert_eq!(labelled(&[("os", "Debian"), ("tier", "front")]), ["web"]);
    assert!(labelled(&[("os", "debian")]).is_empty());
    let search =
        |text: &str| list(ImageFilter { labels: Vec::new(), search: Some(text.to_string()) });
    assert_eq!(search("ATA"), ["database"]);
    assert_eq!(search("table"), ["alpine"]);
    assert_eq!(search("debian"), ["database", "web"]);
    assert_eq!(search("über.QCOW"), ["web"]);
    assert!(search("%").is_empty() && search("_x").is_empty());
    let both = ImageFilter {
        labels: vec![(key("tier"), "front".to_string())],
        search: Some("debian".to_string()),
    };
    assert_eq!(list(both), ["web"]);
}

/// A version goes with its tags; the last one takes the image and its labels along.
pub fn what_is_removed_is_gone(catalog: &dyn Catalog) {
    publish(catalog, "a");
    publish(catalog, "a");
    catalog.set_tag(&id("a", 2), &tag("t")).unwrap();
    catalog.set_label(&name("a"), &key("k"), Some("v")).unwrap();
    catalog.remove_version(&id("a", 2)).unwrap();
    assert_eq!(kind(catalog.version(&reference("a:t"))), Kind::NotFound);
    assert_eq!(kind(catalog.version(&reference("a@2"))), Kind::NotFound);
    assert_eq!(kind(catalog.remove_version(&id("a", 2))), Kind::NotFound);
    catalog.remove_version(&id("a", 1)).unwrap();
    assert_eq!(kind(catalog.versions(&name("a"))), Kind::NotFound);
    assert_eq!(kind(catalog.remove_image(&name("a"))), Kind::NotFound);
    assert_eq!(kind(catalog.set_label(&name("a"), &key("k"), Some("v"))), Kind::NotFound);
    assert!(catalog.images(&ImageFilter::default()).unwrap().is_empty());
    // A new image of the name has nothing of the old one but its numbers.
    publish(catalog, "a");
    let anew = catalog.version(&reference("a")).unwrap();
    assert!(anew.labels.is_empty() && anew.tags.is_empty());
}

/// A machine and its disk come to be together or not at all; the disk goes after the machine.
pub fn machines_keep_their_disks(catalog: &dyn Catalog) {
    let machine = |image: &str| {
        let mut machine = publication(image);
        machine.facts.kind = VersionKind::Machine;
        machine
    };
    let disk = publication("m/disk");
    let lease = catalog.begin_lease(LONG).unwrap();
    let mut refused = machine("m");
    refused.condition = Condition::LatestIs(VersionNumber::FIRST);
    assert_eq!(kind(catalog.publish_machine(lease, &disk, &refused)), Kind::Stale);
    assert_eq!(catalog.images(&ImageFilter::default()).unwrap(), []);
    let [on, booted] = catalog.publish_machine(lease, &disk, &machine("m")).unwrap();
    assert_eq!((on.id, booted.id), (id("m/disk", 1), id("m", 1)));
    assert_eq!(booted.facts.parent, Some(id("m/disk", 1)));
    assert_eq!(kind(catalog.publish(lease, &disk)), Kind::Stale, "the lease has ended");
    let lease = catalog.begin_lease(Duration::ZERO).unwrap();
    assert_eq!(kind(catalog.publish_machine(lease, &disk, &machine("m"))), Kind::Stale);

    let cloned = catalog.clone_version(&id("m", 1), &name("copy")).unwrap();
    assert_eq!(cloned.facts.parent, Some(id("m/disk", 1)));
    let refusal = catalog.remove_version(&id("m/disk", 1)).unwrap_err();
    assert_eq!(refusal.kind(), Kind::Refused);
    assert!(refusal.to_string().contains("copy@1"), "{refusal}");
    assert_eq!(kind(catalog.remove_image(&name("m/disk"))), Kind::Refused);
    catalog.remove_version(&id("copy", 1)).unwrap();
    assert_eq!(kind(catalog.remove_version(&id("m/disk", 1))), Kind::Refused);
    catalog.remove_image(&name("m")).unwrap();
    catalog.remove_version(&id("m/disk", 1)).unwrap();
    // A disk that was made from another may well outlive it.
    let lease = catalog.begin_lease(LONG).unwrap();
    let mut child = publication("child");
    child.facts.parent = Some(publish(catalog, "base"));
    catalog.publish(lease, &child).unwrap();
    catalog.remove_image(&name("base")).unwrap();
}

/// Counts belong to the version.
pub fn attaches_are_counted(catalog: &dyn Catalog) {
    publish(catalog, "a");
    publish(catalog, "a");
    for _ in 0..3 {
        catalog.count_attach(&id("a", 1)).unwrap();
    }
    let counts: Vec<u64> =
        catalog.versions(&name("a")).unwrap().iter().map(|version| version.attach_count).collect();
    assert_eq!(counts, [3, 0]);
    assert_eq!(kind(catalog.count_attach(&id("a", 3))), Kind::NotFound);
}

/// Who mistypes is told what there is.
pub fn hints_tell_near_names(catalog: &dyn Catalog) {
    let hint = |text: &str| {
        let error = catalog.version(&reference(text)).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{text}");
        error.hint_text().expect("a hint").to_string()
    };
    assert!(hint("debian").contains("larder import"), "{}", hint("debian"));
    publish(catalog, "debian");
    publish(catalog, "debian");
    publish(catalog, "debian-nginx");
    catalog.set_tag(&id("debian", 1), &tag("stable")).unwrap();
    assert!(hint("debain").contains("debian"), "{}", hint("debain"));
    assert!(hint("nginx").contains("debian-nginx"), "{}", hint("nginx"));
    assert!(hint("debian:stabel").contains("stable"), "{}", hint("debian:stabel"));
    assert!(hint("debian@7").contains("1-2"), "{}", hint("debian@7"));
}

/// An expired lease, an ended one and one that never was are alike.
pub fn a_dead_lease_makes_stale(catalog: &dyn Catalog) {
    let expired = catalog.begin_lease(Duration::ZERO).unwrap();
    let published = catalog.begin_lease(LONG).unwrap();
    catalog.publish(published, &publication("a")).unwrap();
    let abandoned = catalog.begin_lease(LONG).unwrap();
    assert!(catalog.abandon_lease(abandoned).unwrap().is_empty());
    for lease in [expired, published, abandoned, LeaseId(i64::MAX), LeaseId(-1)] {
        assert_eq!(kind(catalog.publish(lease, &publication("a"))), Kind::Stale, "{lease:?}");
        assert_eq!(kind(catalog.renew_lease(lease, LONG)), Kind::Stale, "{lease:?}");
        assert_eq!(kind(catalog.add_pack(lease, &pack(1))), Kind::Stale, "{lease:?}");
        assert!(catalog.abandon_lease(lease).unwrap().is_empty());
    }
    assert_eq!(catalog.versions(&name("a")).unwrap().len(), 1);
    assert!(catalog.packs().unwrap().is_empty());
    let renewed = catalog.begin_lease(LONG).unwrap();
    catalog.renew_lease(renewed, Duration::ZERO).unwrap();
    assert_eq!(kind(catalog.renew_lease(renewed, LONG)), Kind::Stale);
    let mut leases = vec![expired, published, abandoned, renewed];
    leases.dedup();
    assert!(leases.is_sorted() && leases.len() == 4, "never reused: {leases:?}");
}

/// Parts of a layout are kept only while a version has that layout: nothing else protects them.
pub fn a_base_that_has_changed_makes_stale(catalog: &dyn Catalog) {
    let base = publish(catalog, "base");
    let layout = catalog.version(&reference("base")).unwrap().facts.layout;
    let content = catalog.version(&reference("base")).unwrap().facts.content;
    let lease = catalog.begin_lease(LONG).unwrap();
    let upon = |version: &VersionId, layout| Publication {
        based_on: Some((version.clone(), layout)),
        ..publication("a")
    };
    let other = LayoutDigest([0xab; DIGEST_LEN]);
    assert_eq!(kind(catalog.publish(lease, &upon(&base, other))), Kind::Stale);
    assert_eq!(kind(catalog.publish(lease, &upon(&id("base", 2), layout))), Kind::Stale);
    assert_eq!(kind(catalog.version(&reference("a"))), Kind::NotFound);
    assert_eq!(catalog.swap_layout(lease, content, layout, other).unwrap(), 1);
    assert_eq!(kind(catalog.publish(lease, &upon(&base, layout))), Kind::Stale);
    assert_eq!(catalog.publish(lease, &upon(&base, other)).unwrap().id, id("a", 1));
    catalog.remove_version(&base).unwrap();
    let lease = catalog.begin_lease(LONG).unwrap();
    assert_eq!(kind(catalog.publish(lease, &upon(&base, other))), Kind::Stale);
}

/// Who says which version must be the latest publishes upon that one or not at all.
pub fn a_latest_that_has_changed_makes_stale(catalog: &dyn Catalog) {
    let after = |number| Publication {
        condition: Condition::LatestIs(VersionNumber::new(number).unwrap()),
        ..publication("a")
    };
    let lease = catalog.begin_lease(LONG).unwrap();
    assert_eq!(kind(catalog.publish(lease, &after(1))), Kind::Stale);
    publish(catalog, "a");
    assert_eq!(catalog.publish(lease, &after(1)).unwrap().id, id("a", 2));
    let lease = catalog.begin_lease(LONG).unwrap();
    assert_eq!(kind(catalog.publish(lease, &after(1))), Kind::Stale);
    assert_eq!(catalog.publish(lease, &after(2)).unwrap().id, id("a", 3));
}

/// Entries and hooks go with their pack; the name may come again, the number may not.
pub fn abandoned_packs_are_gone(catalog: &dyn Catalog) {
    let lease = catalog.begin_lease(LONG).unwrap();
    let kept = catalog.add_pack(lease, &pack(1)).unwrap();
    catalog.publish(lease, &publication("a")).unwrap();
    let lease = catalog.begin_lease(LONG).unwrap();
    let (second, third) = (pack(2), pack(3));
    catalog.add_pack(lease, &second).unwrap();
    let last = catalog.add_pack(lease, &third).unwrap();
    let mut names = catalog.abandon_lease(lease).unwrap();
    names.sort();
    assert_eq!(names, [second.name.clone(), third.name.clone()]);
    assert!(catalog.abandon_lease(lease).unwrap().is_empty());
    let packs: Vec<PackId> = catalog.packs().unwrap().iter().map(|pack| pack.id).collect();
    assert_eq!(packs, [kept]);
    let realm = Realm::default_realm();
    for gone in [&second, &third] {
        assert_eq!(catalog.locate(&realm, &digests(gone)).unwrap(), vec![None; gone.entries.len()]);
        assert!(catalog.packs_with_hooks(&realm, &gone.hooks, 9).unwrap().is_empty());
    }
    assert!(catalog.locate(&realm, &digests(&pack(1))).unwrap().iter().all(Option::is_some));
    let lease = catalog.begin_lease(LONG).unwrap();
    assert!(catalog.add_pack(lease, &third).unwrap() > last);
}

/// A pack in which another writer has claimed an entry is no longer its putter's.
pub fn abandon_spares_what_others_have_claimed(catalog: &dyn Catalog) {
    let first = catalog.begin_lease(LONG).unwrap();
    let (used, unused) = (pack(1), pack(2));
    let kept = catalog.add_pack(first, &used).unwrap();
    catalog.add_pack(first, &unused).unwrap();
    let realm = Realm::default_realm();
    let other = catalog.begin_lease(LONG).unwrap();
    let places = catalog.claim(other, &realm, &digests(&used)[..1]).unwrap();
    assert_eq!(places[0].as_ref().unwrap().pack, kept);
    assert_eq!(catalog.abandon_lease(first).unwrap(), std::slice::from_ref(&unused.name));
    assert!(catalog.locate(&realm, &digests(&used)).unwrap().iter().all(Option::is_some));
    let gone = catalog.claim(other, &realm, &digests(&unused)).unwrap();
    assert!(gone.iter().all(Option::is_none));
    // Where nothing has to be written, a claim is a look-up.
    let expired = catalog.begin_lease(Duration::ZERO).unwrap();
    assert!(catalog.claim(expired, &realm, &digests(&used)).unwrap().iter().all(Option::is_some));
    let third = catalog.begin_lease(LONG).unwrap();
    catalog.add_pack(third, &pack(3)).unwrap();
    assert_eq!(kind(catalog.claim(expired, &realm, &digests(&pack(3)))), Kind::Stale);
    assert_eq!(catalog.claim(third, &realm, &digests(&pack(3))).unwrap().len(), 3);
    assert_eq!(catalog.abandon_lease(third).unwrap(), [pack(3).name]);
}

/// Two writers store the same chunk at the same time; the first gives up after the second has
/// published. The chunk's place is in the first one's pack, and stays.
pub fn abandon_spares_what_holds_the_entries_of_others(catalog: &dyn Catalog) {
    let (first, second) = (catalog.begin_lease(LONG).unwrap(), catalog.begin_lease(LONG).unwrap());
    let id = catalog.add_pack(first, &pack(1)).unwrap();
    let own = catalog.add_pack(first, &pack(2)).unwrap();
    let same = NewPack { name: pack(9).name, ..pack(1) };
    catalog.add_pack(second, &same).unwrap();
    catalog.publish(second, &publication("a")).unwrap();
    assert_eq!(catalog.abandon_lease(first).unwrap(), [pack(2).name]);
    assert!(catalog.pack(id).is_ok() && catalog.pack(own).is_err());
    let found = catalog.locate(&Realm::default_realm(), &digests(&same)).unwrap();
    assert!(found.iter().all(Option::is_some));
}

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

/// Holds keep layouts alive and follow them; what changed since a revision is found.
pub fn holds_and_versions_are_roots(catalog: &dyn Catalog) {
    let version = publish(catalog, "a");
    publish(catalog, "b");
    catalog.clone_version(&version, &name("c")).unwrap();
    let facts = catalog.hold(&version, "mirror web1", None).unwrap().facts;
    catalog.hold(&id("b", 1), "view", Some(LONG)).unwrap();
    assert_eq!(kind(catalog.hold(&id("b", 2), "x", None)), Kind::NotFound);
    let all = catalog.roots(Revision::default(), 100).unwrap();
    let named: Vec<_> =
        all.iter().map(|r| (r.version.to_string(), r.holder.as_deref().unwrap_or(""))).collect();
    let expected = [("a@1", ""), ("b@1", ""), ("c@1", ""), ("a@1", "mirror web1"), ("b@1", "view")];
    assert_eq!(named, expected.map(|(version, holder)| (version.to_string(), holder)));
    assert!(all.is_sorted_by_key(|root| root.revision));
    assert_eq!(catalog.roots(Revision::default(), 2).unwrap(), all[..2]);
    assert_eq!(catalog.roots(all[1].revision, 100).unwrap(), all[2..]);
    catalog.remove_image(&name("a")).unwrap();
    catalog.remove_image(&name("c")).unwrap();
    assert_eq!(catalog.layout_of(facts.content).unwrap(), Some(facts.layout));
    let collect = catalog.begin_collect(LONG).unwrap();
    let new = LayoutDigest([0xcd; DIGEST_LEN]);
    assert_eq!(catalog.swap_layout(collect, facts.content, new, facts.layout).unwrap(), 0);
    let swapped = catalog.swap_layout(collect, facts.content, facts.layout, new).unwrap();
    assert!(swapped >= 1);
    assert_eq!(catalog.layout_of(facts.content).unwrap(), Some(new));
    let since = catalog.roots(all[4].revision, 1).unwrap();
    assert_eq!(since.len() as u64, swapped, "all of one revision come together");
    let [held, _] = &catalog.holds().unwrap()[..] else { panic!("two holds") };
    assert_eq!((held.holder.as_str(), held.layout), ("mirror web1", new));
    catalog.renew_hold("view", Duration::ZERO).unwrap();
    assert_eq!(catalog.holds().unwrap().len(), 1);
    catalog.release("mirror web1").unwrap();
    catalog.release("mirror web1").unwrap();
    assert_eq!(kind(catalog.renew_hold("mirror web1", LONG)), Kind::NotFound);
    assert!(catalog.holds().unwrap().is_empty());
}

/// A content has working sets by name, and keeps them as long as a version or a hold has it.
pub fn working_sets_go_with_their_content(catalog: &dyn Catalog) {
    let version = publish(catalog, "a");
    let content = catalog.version(&reference("a")).unwrap().facts.content;
    let set = |name: &str, byte: u8, boots| BootSetRecord {
        content,
        name: name.to_string(),
        digest: [byte; DIGEST_LEN],
        boots,
    };
    let lease = catalog.begin_lease(LONG).unwrap();
    let pack = catalog.add_pack(lease, &pack(1)).unwrap();
    let unknown = BootSetRecord { content: ContentDigest([9; DIGEST_LEN]), ..set("boot", 1, 1) };
    assert_eq!(kind(catalog.set_boot_set(lease, &unknown)), Kind::NotFound);
    catalog.set_boot_set(lease, &set("run:make", 0xab, 1)).unwrap();
    assert_eq!(catalog.pack(pack).unwrap().lease, None);
    let before = catalog.roots(Revision::default(), 9).unwrap()[0].revision;
    catalog.set_boot_set(lease, &set("boot", 2, 1)).unwrap();
    catalog.set_boot_set(lease, &set("boot", 3, 2)).unwrap();
    let all = [set("boot", 3, 2), set("run:make", 0xab, 1)];
    assert_eq!(catalog.boot_sets(content).unwrap(), all);
    let [root] = &catalog.roots(before, 9).unwrap()[..] else { panic!("a root anew") };
    let mut kept = root.boot_sets.clone();
    kept.sort_unstable();
    assert_eq!(kept, all.map(|set| set.digest));
    catalog.clone_version(&version, &name("b")).unwrap();
    catalog.hold(&version, "mirror", None).unwrap();
    catalog.remove_image(&name("a")).unwrap();
    catalog.remove_version(&id("b", 1)).unwrap();
    assert_eq!(catalog.boot_sets(content).unwrap().len(), 2, "the hold has the content");
    catalog.release("mirror").unwrap();
    assert!(catalog.boot_sets(content).unwrap().is_empty());
}

fn documents_stay_with_their_content(catalog: &dyn Catalog) {
    let version = publish(catalog, "a");
    let content = catalog.version(&version.clone().into()).unwrap().facts.content;
    let document =
        |name: &str, byte: u8| DocumentRecord { content, name: name.into(), digest: [byte; 32] };
    let lease = catalog.begin_lease(LONG).unwrap();
    let unknown = DocumentRecord { content: ContentDigest([9; 32]), ..document("x", 1) };
    assert_eq!(kind(catalog.set_document(lease, &unknown)), Kind::NotFound);
    catalog.set_document(lease, &document("signature/b", 1)).unwrap();
    let before = catalog.roots(Revision::default(), 9).unwrap()[0].revision;
    catalog.set_document(lease, &document("description", 2)).unwrap();
    catalog.set_document(lease, &document("description", 3)).unwrap();
    let all = [document("description", 3), document("signature/b", 1)];
    assert_eq!(catalog.documents(content).unwrap(), all);
    let [root] = &catalog.roots(before, 9).unwrap()[..] else { panic!("a root anew") };
    let mut kept = root.documents.clone();
    kept.sort_unstable();
    assert_eq!(kept, [[1; 32], [3; 32]]);
    catalog.clone_version(&version, &name("b")).unwrap();
    catalog.remove_image(&name("a")).unwrap();
    catalog.remove_document(content, "signature/b").unwrap();
    catalog.remove_document(content, "signature/b").unwrap();
    assert_eq!(catalog.documents(content).unwrap(), [document("description", 3)]);
    catalog.remove_version(&id("b", 1)).unwrap();
    assert!(catalog.documents(content).unwrap().is_empty());
    catalog.abandon_lease(lease).unwrap();
    assert_eq!(kind(catalog.set_document(lease, &document("x", 1))), Kind::Stale);
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

fn records_are_replaced(catalog: &dyn Catalog) {
    let [old, new] = [[1; DIGEST_LEN], [2; DIGEST_LEN]];
    let lease = catalog.begin_lease(LONG).unwrap();
    let published = Publication { record: Some(old), ..publication("web") };
    let version = catalog.publish(lease, &published).unwrap().id;
    let met = catalog.roots(Revision::default(), 9).unwrap()[0].revision;
    let lease = catalog.begin_lease(LONG).unwrap();
    assert_eq!(kind(catalog.replace_record(lease, &version, new, old)), Kind::Stale);
    catalog.replace_record(lease, &version, old, new).unwrap();
    let roots = catalog.roots(met, 9).unwrap();
    assert_eq!(roots.iter().map(|root| root.record).collect::<Vec<_>>(), [Some(new)]);
    catalog.abandon_lease(lease).unwrap();
    assert_eq!(kind(catalog.replace_record(lease, &version, new, old)), Kind::Stale);
}

fn names_go_out_and_come_in(catalog: &dyn Catalog) {
    assert_eq!(catalog.names().unwrap(), model::Names::default());
    let version = publish(catalog, "debian");
    publish(catalog, "debian");
    let gone = publish(catalog, "gone");
    catalog.clone_version(&version, &name("copy")).unwrap();
    catalog.set_tag(&version, &tag("stable")).unwrap();
    catalog.set_label(&name("copy"), &key("arch"), Some("amd64 = x")).unwrap();
    catalog.count_attach(&version).unwrap();
    let lease = catalog.begin_lease(LONG).unwrap();
    let content = catalog.version(&version.clone().into()).unwrap().facts.content;
    let document = DocumentRecord { content, name: "description".into(), digest: [7; 32] };
    catalog.set_document(lease, &document).unwrap();
    catalog.abandon_lease(lease).unwrap();
    catalog.hold(&gone, "mirror a", Some(LONG)).unwrap();
    catalog.hold(&version, "mirror b", None).unwrap();
    catalog.hold(&version, "expired", Some(Duration::ZERO)).unwrap();
    catalog.remove_image(&name("gone")).unwrap();
    let names = catalog.names().unwrap();
    let images: Vec<_> = names
        .images
        .iter()
        .map(|image| (image.name.as_str(), image.last_version, image.versions.len()))
        .collect();
    assert_eq!(images, [("copy", 1, 1), ("debian", 2, 2), ("gone", 1, 0)]);
    assert_eq!(names.images[1].versions[0].attach_count, 1);
    assert_eq!(names.documents.len(), 1);
    assert_eq!(names.images[0].versions[0].parent, Some(version.clone()));
    assert_eq!(
        names.holds.iter().map(|hold| &hold.holder).collect::<Vec<_>>(),
        ["mirror a", "mirror b"]
    );
    assert_eq!(kind(catalog.restore_names(&names)), Kind::Refused);

    for image in ["copy", "debian"] {
        catalog.remove_image(&name(image)).unwrap();
    }
    assert_eq!(kind(catalog.restore_names(&names)), Kind::Refused, "numbers are names too");
}

/// Panics unless names come out of `to`, which is empty, as they were in `from`.
pub fn check_restored(from: &dyn Catalog, to: &dyn Catalog) {
    names_go_out_and_come_in(from);
    let lease = from.begin_lease(LONG).unwrap();
    from.publish(lease, &publication("debian")).unwrap();
    from.set_tag(&id("debian", 3), &tag("new")).unwrap();
    let names = from.names().unwrap();
    to.restore_names(&names).unwrap();
    assert_eq!(to.names().unwrap(), names);
    assert_eq!(
        to.version(&reference("debian:new")).unwrap(),
        from.version(&reference("debian:new")).unwrap()
    );
    let roots = to.roots(Revision::default(), 100).unwrap();
    assert_eq!(roots.len(), 3, "one version and two holds");
    let lease = to.begin_lease(LONG).unwrap();
    assert_eq!(to.publish(lease, &publication("gone")).unwrap().id, id("gone", 2));
}

fn packs_are_found_by_number(catalog: &dyn Catalog) {
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
        catalog_len: 0,
    };
    assert_eq!(counted(), expected);
    catalog.remove_image(&name("b")).unwrap();
    expected.image_count = 1;
    expected.version_count = 2;
    expected.logical_len = 2 * one.length;
    expected.data_len = 2 * one.data_len;
    assert_eq!(counted(), expected);
}

/// A small pack of its own name, digests and hooks.
pub fn pack(number: u8) -> NewPack {
    let entry = |index: u8| EntryRecord {
        digest: [number.wrapping_mul(16).wrapping_add(index); DIGEST_LEN],
        offset: (1 << 40) + u64::from(index) * 100,
        stored_len: 100 + u32::from(index),
        plain_len: u32::MAX - u32::from(index),
        encoding: u8::MAX,
        kind: index,
    };
    NewPack {
        name: format!("{:032x}", u128::from(number) << 120 | u128::from(number)),
        realm: Realm::default_realm(),
        stored_len: 1000 + u64::from(number),
        data_len: 4000,
        data_stored_len: 900,
        entries: (0..3).map(entry).collect(),
        hooks: [1, 2].map(|index| Hook(u64::from(number) << 32 | index << 6)).to_vec(),
    }
}

/// A small version for an image that may exist.
pub fn publication(image: &str) -> Publication {
    Publication {
        image: name(image),
        facts: VersionFacts {
            kind: VersionKind::Disk,
            length: 1 << 30,
            data_len: 1 << 20,
            content: ContentDigest([1; DIGEST_LEN]),
            layout: LayoutDigest([2; DIGEST_LEN]),
            parent: None,
            origin: "import disk.raw".to_string(),
        },
        based_on: None,
        condition: Condition::Any,
        tag: None,
        record: None,
    }
}

fn publish(catalog: &dyn Catalog, image: &str) -> VersionId {
    let lease = catalog.begin_lease(LONG).unwrap();
    catalog.publish(lease, &publication(image)).unwrap().id
}

fn doomed(pack: PackId, of: &NewPack) -> Doomed {
    Doomed { pack, entries: digests(of), hooks: of.hooks.clone() }
}

fn digests(pack: &NewPack) -> Vec<EntryDigest> {
    pack.entries.iter().map(|entry| entry.digest).collect()
}

fn kind<T>(result: model::Result<T>) -> Kind {
    result.err().expect("an error").kind()
}

fn reference(text: &str) -> Reference {
    text.parse().expect("well-formed")
}

fn name(text: &str) -> ImageName {
    ImageName::new(text).expect("well-formed")
}

fn tag(text: &str) -> TagName {
    TagName::new(text).expect("well-formed")
}

fn key(text: &str) -> LabelKey {
    LabelKey::new(text).expect("well-formed")
}

fn id(image: &str, version: u64) -> VersionId {
    VersionId { image: name(image), version: VersionNumber::new(version).expect("not 0") }
}
