//! All names go out of one catalog and into another.

use std::time::Duration;

use model::Kind;

use crate::catalog::Catalog;
use crate::records::{DocumentRecord, Revision};

use super::examples::{LONG, id, key, kind, name, publication, publish, reference, tag};

pub(super) fn names_go_out_and_come_in(catalog: &dyn Catalog) {
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
