//! Rules that every plan obeys, whoever made it; asked before anything is carried out, always.
//!
//! Deliberately written from the contract and not from the planner, so that one mistake is not made twice.

use crate::claim::{Claim, Recorded};
use crate::id::Incarnation;
use crate::identity::Identity;
use crate::judge::ProcessSeen;
use crate::plan::{Action, OnOrphan, Plan, Policies, order};
use crate::slot::{Holding, Seen, SlotState};
use crate::state::State;
use crate::world::{
    Before, Content, Custody, Doubted, Network, Owner, Parent, SharedTable, Sighting, SlotSighting, World,
};

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
    /// A network slot would be repaired that no live instance uses, or that is whole, foreign or not read.
    #[error("a network slot would be repaired that is not to be")]
    NotToRepair,
    /// A network slot, or what slots share, would be taken down that somebody uses, or that was not read.
    #[error("something of the network would be taken down that is in use, or was not read")]
    NotToTakeDown,
    /// A network slot would be made where something is, or where none is wanted.
    #[error("a network slot would be made where something is, or where none is wanted")]
    NotToMake,
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
    check_pool(plan, &world.network)?;
    plan.actions.iter().try_for_each(|action| check_action(action, plan, world, policies))
}

/// Whether `plan` takes the slot of this number down.
fn goes(plan: &Plan, slot: &SlotSighting) -> bool {
    plan.actions.iter().any(|action| matches!(action, Action::ReleaseSlot { index, .. } if *index == slot.index))
}

/// What the actions about network slots come to together: no more are ready than are to be, none that could serve goes
/// unless enough are left, and what slots share goes after the last of them.
fn check_pool(plan: &Plan, network: &Network) -> Result<(), Broken> {
    let spare = usize::try_from(network.wish.spare).unwrap_or(usize::MAX);
    let made = plan.actions.iter().filter(|action| matches!(action, Action::MakeSlot { .. })).count();
    let stays = |slot: &&SlotSighting| slot.claim.is_some() && !goes(plan, slot);
    let is_ready = |slot: &&SlotSighting| slot.claim.is_some_and(|row| row.state == SlotState::Ready);
    let ready = network.slots.iter().filter(stays).filter(is_ready).count() + made;
    if made > 0 && ready > spare {
        return Err(Broken::NotToMake);
    }
    let could_serve = |slot: &SlotSighting| {
        let fits = slot.claim.is_some_and(|row| row.fits) && slot.index < network.wish.capacity;
        fits && slot.seen == Seen::Whole
    };
    let is_wasted = |slot: &SlotSighting| goes(plan, slot) && could_serve(slot);
    let is_used = |table: &SharedTable| {
        let is_its = |slot: &SlotSighting| slot.table == table.name || !table.is_former;
        (!table.is_former && spare + made > 0) || network.slots.iter().filter(stays).any(is_its)
    };
    let is_taken = |table: &&SharedTable| {
        plan.actions
            .iter()
            .any(|action| matches!(action, Action::ReleaseTable { table: name, .. } if *name == table.name))
    };
    let takes_used = network.tables.iter().filter(is_taken).any(is_used);
    if takes_used || (ready < spare && network.slots.iter().filter(is_ready).any(is_wasted)) {
        return Err(Broken::NotToTakeDown);
    }
    Ok(())
}

fn check_action(action: &Action, plan: &Plan, world: &World, policies: &Policies) -> Result<(), Broken> {
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
        Action::RepairSlot { .. } => return check_repair(action, &world.network),
        Action::ReleaseSlot { .. } => return check_take_down(action, &world.network),
        Action::MakeSlot { index, .. } => return check_make(*index, plan, &world.network),
        Action::ReleaseTable { table, .. } => {
            let is_ours = world.network.tables.iter().any(|known| known.name == *table);
            return if is_ours { Ok(()) } else { Err(Broken::NotToTakeDown) };
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

fn check_repair(action: &Action, network: &Network) -> Result<(), Broken> {
    let Action::RepairSlot { index, netns, ns_ino, instance, incarnation, .. } = action else { return Ok(()) };
    let may = |slot: &SlotSighting| {
        let holds = slot.holder.as_ref().is_some_and(|who| who.name == *instance && who.incarnation == *incarnation);
        let is_used = slot.claim.is_some_and(|row| (row.state, row.holding) == (SlotState::Held, Holding::Live));
        holds && is_used && matches!(slot.seen, Seen::Damaged(_) | Seen::Bare)
    };
    if one_slot(network, *index, netns, *ns_ino).is_some_and(may) { Ok(()) } else { Err(Broken::NotToRepair) }
}

fn check_take_down(action: &Action, network: &Network) -> Result<(), Broken> {
    let Action::ReleaseSlot { index, netns, ns_ino, .. } = action else { return Ok(()) };
    let may = |slot: &SlotSighting| !matches!(slot.seen, Seen::Unread(_)) && is_nobodys(slot);
    if one_slot(network, *index, netns, *ns_ino).is_some_and(may) { Ok(()) } else { Err(Broken::NotToTakeDown) }
}

fn check_make(index: u32, plan: &Plan, network: &Network) -> Result<(), Broken> {
    let is_free = |slot: &SlotSighting| {
        let is_empty = slot.claim.is_none() || goes(plan, slot);
        is_empty && !matches!(slot.seen, Seen::Foreign(_) | Seen::Unread(_))
    };
    let is_all_free = network.slots.iter().filter(|slot| slot.index == index).all(is_free);
    if is_all_free && index < network.wish.capacity { Ok(()) } else { Err(Broken::NotToMake) }
}

/// The one slot of this number, if it is the very one that was made then.
fn one_slot<'a>(network: &'a Network, index: u32, netns: &str, ns_ino: Option<u64>) -> Option<&'a SlotSighting> {
    let mut same = network.slots.iter().filter(|slot| slot.index == index);
    let one = same.next().filter(|slot| slot.netns == netns && slot.ns_ino == ns_ino)?;
    if same.next().is_none() { Some(one) } else { None }
}

/// Whether a recorded slot is in nobody's hands: no life has it, and none gives it back.
fn is_nobodys(slot: &SlotSighting) -> bool {
    slot.claim.is_some_and(|row| match row.state {
        SlotState::Making | SlotState::Ready => true,
        SlotState::Held => row.holding == Holding::Nobody,
        SlotState::Releasing | SlotState::Quarantined => matches!(row.holding, Holding::Nobody | Holding::Untold),
    })
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
