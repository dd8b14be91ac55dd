//! Rules that every plan obeys, whoever made it; asked before anything is carried out, always.
//!
//! Deliberately written from the contract and not from the planner, so that one mistake is not made twice.

use crate::claim::{Claim, Recorded};
use crate::id::Incarnation;
use crate::identity::Identity;
use crate::judge::ProcessSeen;
use crate::plan::{Action, OnOrphan, Plan, Policies, order};
use crate::state::State;
use crate::world::{Before, Content, Custody, Doubted, Owner, Parent, Sighting, World};

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
    /// An instance would be taken, ended or closed without proof.
    #[error("an instance would be taken, ended or closed without proof")]
    NotProven,
    /// Something would be removed that is somebody's, or in use.
    #[error("something would be removed that is somebody's, or in use")]
    NotToRelease,
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
    let (watch, id, identity) = match action {
        Action::WriteBack { watch, id, identity, .. } | Action::Terminate { watch, id, identity, .. } => {
            (watch, id, identity)
        }
        Action::Adopt { incarnation, .. } => {
            return check_own(world, incarnation, |seen| is_ours(seen) && !is_ending(seen));
        }
        Action::FinishStop { incarnation, .. } => {
            return check_own(world, incarnation, |seen| is_ours(seen) && is_ending(seen));
        }
        Action::Close { incarnation, .. } => return check_own(world, incarnation, is_over),
        Action::Release { kind, key, ino, .. } => {
            let mut same = world.marked.iter().filter(|seen| seen.kind == *kind && seen.key == *key);
            let may = same.any(|seen| seen.ino == *ino && seen.owner == Owner::Nobody && seen.content == Content::Dead);
            return if may { Ok(()) } else { Err(Broken::NotToRelease) };
        }
    };
    if world.sightings.iter().filter(|seen| is_same(&seen.identity, identity)).count() > 1 {
        return Err(Broken::Twice);
    }
    let seen = world.sightings.iter().find(|seen| seen.watch == *watch && seen.id == *id && seen.identity == *identity);
    let seen = seen.ok_or(Broken::Unseen)?;
    if seen.parent != Parent::Adopter || seen.custody != Custody::None {
        return Err(Broken::NoOrphan);
    }
    if let Action::WriteBack { file, .. } = action {
        check_write(seen, file, world)
    } else {
        check_end(seen, world, policies)
    }
}

/// The one instance of this life, if what was seen of it proves what is to be done.
fn check_own(world: &World, life: &Incarnation, proves: impl Fn(&Doubted) -> bool) -> Result<(), Broken> {
    let mut same = world.doubted.iter().filter(|seen| seen.incarnation == *life && !seen.claimed.state.is_terminal());
    match (same.next(), same.next()) {
        (Some(seen), None) if proves(seen) => Ok(()),
        (Some(_) | None, Some(_) | None) => Err(Broken::NotProven),
    }
}

fn is_ours(seen: &Doubted) -> bool {
    seen.process == ProcessSeen::Same
}

fn is_ending(seen: &Doubted) -> bool {
    seen.claimed.stop_ordered || seen.claimed.exit_known || matches!(seen.claimed.state, State::Stopping | State::Stuck)
}

fn is_over(seen: &Doubted) -> bool {
    match seen.process {
        ProcessSeen::Gone | ProcessSeen::NotRecorded => true,
        ProcessSeen::Unproven => seen.claimed.exit_known,
        ProcessSeen::Same => false,
    }
}

fn is_same(a: &Identity, b: &Identity) -> bool {
    a.pid == b.pid || (a.pidfs_ino.is_some() && a.pidfs_ino == b.pidfs_ino)
}

fn check_write(seen: &Sighting, file: &str, world: &World) -> Result<(), Broken> {
    let is_free = matches!(seen.claim, Claim::Read { recorded: Recorded::Nobody, .. });
    let is_candidate = |other: &&Sighting| {
        let of_its_id = other.watch == seen.watch && other.id == seen.id;
        of_its_id && other.parent == Parent::Adopter && other.custody == Custody::None
    };
    let carriers = world.sightings.iter().filter(is_candidate).count();
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
