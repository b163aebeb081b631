//! What keeps contents alive, and what goes with them.

use std::time::Duration;

use model::digest::DIGEST_LEN;
use model::{ContentDigest, Kind, LayoutDigest, VersionKind, VersionNumber};

use crate::catalog::Catalog;
use crate::records::{
    BootSetRecord, Condition, DocumentRecord, ImageFilter, Publication, Revision,
};

use super::examples::{LONG, id, kind, name, pack, publication, publish, reference};

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

pub(super) fn documents_stay_with_their_content(catalog: &dyn Catalog) {
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

pub(super) fn records_are_replaced(catalog: &dyn Catalog) {
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
