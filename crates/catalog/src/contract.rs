//! The promises of [`crate::Catalog`] as a test suite: every engine's tests call it.
//!
//! [`check`] runs all of it. Each promise is a function of its own, which takes an empty catalog and
//! panics where the promise is broken. Expiry of leases is tested with leases that live for no time,
//! so that no engine needs a clock of the suite's.

mod examples;
mod leases;
mod names;
mod packs;
mod roots;
mod versions;

use crate::catalog::Catalog;

pub use examples::{pack, publication};
pub use names::check_restored;
pub use versions::numbers_ascend_and_are_never_reused;

type Promise = fn(&dyn Catalog);

/// All promises, by name.
pub const PROMISES: &[(&str, Promise)] = &[
    ("a version is what was published", versions::a_version_is_what_was_published),
    ("numbers ascend and are never reused", numbers_ascend_and_are_never_reused),
    ("a clone is a new image", versions::a_clone_is_a_new_image),
    ("an image that must be new", versions::an_image_that_must_be_new_is_refused_when_it_exists),
    ("tags move", versions::tags_move),
    ("labels are set and taken away", versions::labels_are_set_and_taken_away),
    ("documents stay with their content", roots::documents_stay_with_their_content),
    ("the list shows the latest", versions::the_list_shows_the_latest_version),
    ("the list is filtered", versions::the_list_is_filtered),
    ("what is removed is gone", versions::what_is_removed_is_gone),
    ("machines keep their disks", roots::machines_keep_their_disks),
    ("attaches are counted", versions::attaches_are_counted),
    ("hints tell near names", versions::hints_tell_near_names),
    ("a dead lease makes stale", leases::a_dead_lease_makes_stale),
    ("a base that has changed makes stale", leases::a_base_that_has_changed_makes_stale),
    ("a latest that has changed makes stale", leases::a_latest_that_has_changed_makes_stale),
    ("abandoned packs are gone", leases::abandoned_packs_are_gone),
    ("abandon spares what was claimed", leases::abandon_spares_what_others_have_claimed),
    ("abandon spares first places", leases::abandon_spares_what_holds_the_entries_of_others),
    ("packs are removed in two steps", packs::packs_are_removed_in_two_steps),
    ("entries that come again", packs::entries_that_come_again_bring_their_pack_back),
    ("collects take turns", packs::collects_take_turns),
    ("entries move", packs::entries_move),
    ("holds and versions are roots", roots::holds_and_versions_are_roots),
    ("working sets go with their content", roots::working_sets_go_with_their_content),
    ("entries keep their first place", packs::entries_keep_their_first_place),
    ("hooks lead to the newest packs", packs::hooks_lead_to_the_newest_packs),
    ("nothing crosses realms", packs::nothing_crosses_realms),
    ("entries are forgotten", packs::entries_are_forgotten),
    ("records are replaced", roots::records_are_replaced),
    ("names go out and come in", names::names_go_out_and_come_in),
    ("packs are found by number", packs::packs_are_found_by_number),
    ("statistics add up", packs::statistics_add_up),
];

/// Panics where an engine breaks a promise. `make` makes an empty catalog.
pub fn check(make: &dyn Fn() -> Box<dyn Catalog>) {
    for (_, promise) in PROMISES {
        promise(make().as_ref());
    }
}
