//! Rules that every plan obeys, whoever made it; asked before anything is carried out, always.
//!
//! Deliberately written from the contract and not from the planner, so that one mistake is not made twice.

use crate::claim::{Claim, Recorded};
use crate::identity::Identity;
use crate::plan::{Action, OnOrphan, Plan, Policies, order};
use crate::world::{Before, Custody, Parent, Sighting, World};

/// The rule that a plan breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The process was not seen, or not as the action describes it.
    #[error("an action is about a process that was not seen so")]
    Unseen,
    /// Its parent may still care, or it is in custody.
    #[error("an action is about a process that is no orphan")]
    NoOrphan,
    /// Two actions, or two watches, are about one process.
    #[error("one process is claimed twice")]
    Twice,
    /// Metadata that is right, odd or disputed would be written.
    #[error("metadata that is right, odd or disputed would be written")]
    NotToWrite,
    /// A process that must live would be ended.
    #[error("a process would be ended that must not be")]
    NotToEnd,
    /// The actions are not in their order.
    #[error("the actions are not in their order")]
    Disorder,
}

/// Checks `plan` against the world that it was made for.
///
/// # Errors
/// The first rule that is broken; nothing of such a plan may be carried out.
pub fn check(plan: &Plan, world: &World, policies: &Policies) -> Result<(), Broken> {
    for pair in plan.actions.windows(2) {
        if let [a, b] = pair
            && order(a) >= order(b)
        {
            return Err(Broken::Disorder);
        }
    }
    plan.actions.iter().try_for_each(|action| check_action(action, world, policies))
}

fn check_action(action: &Action, world: &World, policies: &Policies) -> Result<(), Broken> {
    let (watch, id, identity) = action.subject();
    if world.sightings.iter().filter(|seen| is_same(&seen.identity, identity)).count() > 1 {
        return Err(Broken::Twice);
    }
    let seen = world.sightings.iter().find(|seen| seen.watch == watch && seen.id == id && seen.identity == *identity);
    let seen = seen.ok_or(Broken::Unseen)?;
    if seen.parent != Parent::Adopter || seen.custody != Custody::None {
        return Err(Broken::NoOrphan);
    }
    match action {
        Action::WriteBack { file, .. } => check_write(seen, file, world),
        Action::Terminate { .. } => check_end(seen, world, policies),
    }
}

fn is_same(a: &Identity, b: &Identity) -> bool {
    a.pid == b.pid || (a.pidfs_ino.is_some() && a.pidfs_ino == b.pidfs_ino)
}

fn check_write(seen: &Sighting, file: &str, world: &World) -> Result<(), Broken> {
    let is_free = matches!(seen.claim, Claim::Read { recorded: Recorded::Nobody, .. });
    let carriers = world.sightings.iter().filter(|other| other.watch == seen.watch && other.id == seen.id).count();
    let may = is_free && carriers == 1 && !seen.claim.is_right_for(&seen.identity) && file == seen.file;
    if may { Ok(()) } else { Err(Broken::NotToWrite) }
}

fn check_end(seen: &Sighting, world: &World, policies: &Policies) -> Result<(), Broken> {
    let policy = policies.get(&seen.watch).filter(|policy| policy.on_orphan == OnOrphan::Terminate);
    let is_old = policy.zip(seen.age(world.now)).is_some_and(|(policy, age)| age > policy.grace);
    let may =
        is_old && seen.claim == Claim::Missing && seen.before == Before::Seen && seen.identity.pidfs_ino.is_some();
    if may { Ok(()) } else { Err(Broken::NotToEnd) }
}
