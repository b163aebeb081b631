//! Writers and their leases: who is late is told so.

use std::time::Duration;

use model::digest::DIGEST_LEN;
use model::{Kind, LayoutDigest, Realm, VersionId, VersionNumber};

use crate::catalog::Catalog;
use crate::records::{Condition, LeaseId, NewPack, PackId, Publication};

use super::examples::{LONG, digests, id, kind, name, pack, publication, publish, reference};

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
