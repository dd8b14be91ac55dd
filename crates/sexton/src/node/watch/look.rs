//! One look at watched processes and their metadata: the kernel and the files become a `World`. Blocking.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use sexton_core::handle::Handle;
use sexton_core::look::{self, Adopter, Seen, Unread};
use sexton_core::proc;
use sexton_plan::claim::{Claim, Field, Recorded};
use sexton_plan::id::Pid;
use sexton_plan::identity::Identity;
use sexton_plan::plan::{Policies, Policy};
use sexton_plan::world::{Before, Custody, Left, Parent, Sighting, World};

use super::metadata::{self, Found};
use super::object::Object;
use super::rule::{Id, Watch, is_credible};
use super::trees::Trees;
use crate::node::adopt;
use crate::node::host::SharedHost;

/// A process, as it is recognised from pass to pass: number, inode of its pidfd, start tick.
pub type Who = (Pid, Option<u64>, Option<u64>);

/// Who it is: by its inode where the kernel has those, for its start tick may not have been read this time.
pub fn who(identity: &Identity) -> Who {
    let start_ticks = identity.start_ticks.filter(|_| identity.pidfs_ino.is_none());
    (identity.pid, identity.pidfs_ino, start_ticks)
}

/// The eyes of the watches.
#[derive(Clone, Debug)]
pub struct Looker {
    /// The host.
    pub host: SharedHost,
    /// What is watched.
    pub watches: Vec<Watch>,
    /// The keeper, where there is one.
    pub keeper: Option<Pid>,
    /// Where metadata was found.
    pub trees: Arc<Trees>,
}

impl Looker {
    /// What the watches allow.
    pub fn policies(&self) -> Policies {
        let policy = |watch: &Watch| Policy { grace: watch.grace, on_orphan: watch.on_orphan };
        self.watches.iter().map(|watch| (watch.name.clone(), policy(watch))).collect()
    }

    /// Looks at every process that may be watched. `before`: what the pass before saw.
    ///
    /// # Blocking
    /// For a few files of each child of PID 1 and of our subreapers.
    pub fn look(&self, before: &BTreeSet<Who>) -> World {
        let mut world = World { now: sexton_sys::time::boottime(), ..World::default() };
        if self.watches.is_empty() {
            return world;
        }
        let adopters = look::look_adopters(self.keeper);
        let adopted = look::look_adopted(&adopters);
        world.left.extend(adopted.unread.iter().map(unread));
        for pid in adopted.pids.into_iter().filter(|pid| !self.is_own(*pid)) {
            self.look_at(pid, &adopters, before, &mut world);
        }
        world
    }

    /// Whether it is this worker or its keeper, whatever their configuration says of the files that they execute.
    fn is_own(&self, pid: Pid) -> bool {
        Some(pid) == self.keeper || pid.as_raw().unsigned_abs() == std::process::id()
    }

    /// Looks at one process, which is held while its watches are.
    pub fn look_again(&self, pid: Pid, before: &BTreeSet<Who>) -> (World, Option<Handle>) {
        let mut world = World { now: sexton_sys::time::boottime(), ..World::default() };
        let handle = self.look_at(pid, &look::look_adopters(self.keeper), before, &mut world);
        (world, handle)
    }

    fn look_at(&self, pid: Pid, adopters: &[Adopter], before: &BTreeSet<Who>, world: &mut World) -> Option<Handle> {
        // One link is read of the many that are nobody's.
        let is_watched = |file: &Path| self.watches.iter().any(|watch| watch.runtime_of(file).is_some());
        match proc::executable(pid) {
            Ok(file) if is_watched(&file) => {}
            Err(proc::ReadProcError::Gone(_))
                if proc::executable_of_others(pid).is_some_and(|file| is_watched(&file)) => {}
            Ok(_) | Err(proc::ReadProcError::Gone(_)) => return None,
            Err(error @ (proc::ReadProcError::Unreadable { .. } | proc::ReadProcError::Malformed { .. })) => {
                world.left.push(left("process", Some(pid), error.to_string()));
                return None;
            }
        }
        let seen = match look::look_at(pid, &self.host.here) {
            Ok(seen) => seen?,
            Err(error) => {
                world.left.push(unread(&error));
                return None;
            }
        };
        let ids: Vec<(&Watch, Id)> = self.watches.iter().map(|watch| (watch, watch.id_of(&seen))).collect();
        let doubtful = ids.iter().find(|(_, id)| matches!(id, Id::Unsure(_))).map(|(watch, _)| &watch.name);
        for (watch, id) in &ids {
            match id {
                Id::Absent => {}
                Id::Is(id) if !is_credible(&seen, &metadata::places(&watch.metadata, id)) => {
                    let why = format!("it is user {}'s, who may write nothing of that guest", seen.user.uid);
                    world.left.push(left(&format!("{}/{id}", watch.name), Some(pid), why));
                }
                Id::Is(id) => {
                    let mut sighting = self.sighting(watch, id.clone(), &seen, adopters, before);
                    if let Some(other) = doubtful {
                        sighting.claim = Claim::Odd(format!("watch `{other}` may have it, and cannot tell"));
                    }
                    world.sightings.push(sighting);
                }
                Id::Unsure(why) => world.left.push(left(&watch.name, Some(pid), why.clone())),
            }
        }
        Some(seen.handle)
    }

    fn sighting(
        &self,
        watch: &Watch,
        id: String,
        seen: &Seen,
        adopters: &[Adopter],
        before: &BTreeSet<Who>,
    ) -> Sighting {
        let identity = seen.handle.identity().clone();
        let is_adopted = adopters.iter().any(|adopter| adopter.as_raw() == seen.parent);
        // Of whom it cannot be told, somebody may have custody.
        let is_held = seen.handle.tagged().is_some() || adopt::in_custody(identity.pid, &self.host).unwrap_or(true);
        let was_seen = before.contains(&who(&identity));
        Sighting {
            parent: if is_adopted { Parent::Adopter } else { Parent::Other },
            custody: if is_held { Custody::Held } else { Custody::None },
            before: if was_seen { Before::Seen } else { Before::Unseen },
            file: watch.metadata.file(&id),
            claim: self.claim(watch, &id, identity.pid),
            watch: watch.name.clone(),
            id,
            identity,
        }
    }

    /// What the metadata of `id` says of process `pid`.
    pub fn claim(&self, watch: &Watch, id: &str, pid: Pid) -> Claim {
        let tree = &watch.metadata.tree;
        let directory = Trees::directory(tree);
        let metadata = match metadata::read(&watch.metadata, id) {
            Found::Missing if self.trees.is_another(tree, directory) => {
                return Claim::Odd(format!(
                    "the tree `{tree}` is not the directory in which metadata was found before"
                ));
            }
            Found::Missing => return Claim::Missing,
            Found::Odd(why) => return Claim::Odd(why),
            Found::File(metadata) => metadata,
        };
        self.trees.held(tree, directory);
        let object = match Object::parse(&metadata.text, &watch.fields()) {
            Ok(object) => object,
            Err(error) => return Claim::Odd(error.to_string()),
        };
        let start_ticks = watch.start_ticks_field.as_deref().map(|name| object.field(name));
        let recorded = object.field(&watch.pid_field);
        Claim::Read { pid: recorded, start_ticks, recorded: self.who_has(recorded, watch, id, pid) }
    }

    /// Who has the number that metadata records, where it is not `pid`.
    fn who_has(&self, recorded: Field, watch: &Watch, id: &str, pid: Pid) -> Recorded {
        let Field::Number(number) = recorded else { return Recorded::Nobody };
        let other = i32::try_from(number).ok().and_then(Pid::new).filter(|other| *other != pid);
        let Some(other) = other else { return Recorded::Nobody };
        match look::look_at(other, &self.host.here) {
            Ok(None) => Recorded::Nobody,
            Ok(Some(seen)) => match watch.id_of(&seen) {
                Id::Is(theirs) if theirs == id => Recorded::Rival(other),
                Id::Is(_) | Id::Absent => Recorded::Nobody,
                Id::Unsure(_) => Recorded::Unread(other),
            },
            Err(_) => Recorded::Unread(other),
        }
    }
}

impl Watch {
    /// The members of its metadata that are written.
    pub fn fields(&self) -> Vec<&str> {
        std::iter::once(self.pid_field.as_str()).chain(self.start_ticks_field.as_deref()).collect()
    }
}

fn left(what: &str, pid: Option<Pid>, reason: String) -> Left {
    Left { what: what.to_owned(), pid, reason }
}

fn unread(unread: &Unread) -> Left {
    left("process", unread.pid, format!("could not be read: {}", unread.why))
}
