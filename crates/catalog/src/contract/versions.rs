//! Names, numbers, tags, labels, lists: what people see of versions.

use std::collections::BTreeMap;

use model::digest::DIGEST_LEN;
use model::{ContentDigest, Kind, LayoutDigest, VersionKind, VersionNumber};

use crate::catalog::Catalog;
use crate::records::{Condition, ImageFilter, Publication, VersionFacts};

use super::examples::{LONG, id, key, kind, name, publication, publish, reference, tag};

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
