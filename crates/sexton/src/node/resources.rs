//! What an incarnation acquires, by name.

use sexton_ledger::entry::{Entry, Resource, ResourceState};

use super::limits::V1;

/// Where an adopted process came from, until it is in custody: the path of its cgroup2, and `controller/path` of a v1
/// cgroup that its limits take it out of.
pub const ORIGIN: &str = "cgroup-origin";

/// The name of an incarnation's cgroup, unique for ever.
pub fn domain_name(entry: &Entry) -> String {
    format!("{}.{}", entry.name, entry.incarnation)
}

/// What a start is about to acquire, as intents.
pub fn intents(entry: &Entry, has_cgroups: bool, v1: &V1, has_pins: bool) -> Vec<Resource> {
    let mut wanted = Vec::new();
    let mut want = |kind: &str, key: String| {
        wanted.push(Resource { kind: kind.to_owned(), key, state: ResourceState::Intent });
    };
    if has_cgroups {
        want("cgroup", domain_name(entry));
    }
    for controller in v1.needed(&entry.spec.limits) {
        want("cgroup-v1", format!("{controller}/{}", domain_name(entry)));
    }
    if has_pins {
        want("pin", entry.incarnation.to_string());
    }
    wanted
}

/// Whether `entry` is an adoption that has not come about.
pub fn is_adoption_begun(entry: &Entry) -> bool {
    entry.resources.iter().any(|held| held.kind == ORIGIN)
}
