//! What to do about what one look found: the one place that decides it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use crate::claim::{Claim, Recorded};
use crate::id::{BootId, Incarnation, Name, Pid};
use crate::identity::{Identity, Strength};
use crate::judge;
use crate::pool::{self, Moves};
use crate::slot::{self, Seen};
use crate::state::State;
use crate::world::{Before, Content, Doubted, Left, Marked, MarkedKind, Network, Owner, Sighting, SlotSighting, World};

/// What one watch allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How old an orphan must be to be ended.
    pub grace: Duration,
    /// What is done with one.
    pub on_orphan: OnOrphan,
}

/// What is done with an orphan once it is proven one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOrphan {
    /// It is told, and let alone.
    Report,
    /// It is ended.
    Terminate,
}

/// Policies by watch.
pub type Policies = BTreeMap<String, Policy>;

/// One effect; it names an identity, never a bare PID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Write the live PID back into the owner's metadata.
    WriteBack {
        /// The watch.
        watch: String,
        /// The id.
        id: String,
        /// Whose PID.
        #[serde(serialize_with = "with_strength")]
        identity: Identity,
        /// The file.
        file: String,
        /// The proof.
        reason: String,
    },
    /// End an orphan.
    Terminate {
        /// The watch.
        watch: String,
        /// The id.
        id: String,
        /// Which process.
        #[serde(serialize_with = "with_strength")]
        identity: Identity,
        /// The file that does not exist.
        file: String,
        /// The proof.
        reason: String,
    },
    /// Take custody again of an instance that was doubted.
    Adopt {
        /// The instance.
        instance: Name,
        /// Its life.
        incarnation: Incarnation,
        /// Its process.
        #[serde(serialize_with = "some_with_strength")]
        identity: Option<Identity>,
        /// The proof.
        reason: String,
    },
    /// Carry the stop of an instance that was doubted to its end.
    FinishStop {
        /// The instance.
        instance: Name,
        /// Its life.
        incarnation: Incarnation,
        /// Its process.
        #[serde(serialize_with = "some_with_strength")]
        identity: Option<Identity>,
        /// The proof.
        reason: String,
    },
    /// Close an instance that was doubted: learn how it ended, and give back what it held.
    Close {
        /// The instance.
        instance: Name,
        /// Its life.
        incarnation: Incarnation,
        /// Its process, which is gone.
        #[serde(serialize_with = "some_with_strength")]
        identity: Option<Identity>,
        /// The proof.
        reason: String,
    },
    /// Remove what bears our mark and is nobody's.
    Release {
        /// What it is.
        kind: MarkedKind,
        /// Its name.
        key: String,
        /// Its inode, where another one could bear its name.
        ino: Option<u64>,
        /// The proof.
        reason: String,
    },
    /// Put back what is missing of a network slot that a live instance uses.
    RepairSlot {
        /// The slot's number.
        index: u32,
        /// Its entry below `/run/netns`.
        netns: String,
        /// Inode of its namespace.
        ns_ino: Option<u64>,
        /// The instance.
        instance: Name,
        /// Its life.
        incarnation: Incarnation,
        /// The proof.
        reason: String,
    },
    /// Take down a network slot that nobody uses, or what is left of it.
    ReleaseSlot {
        /// The slot's number.
        index: u32,
        /// Its entry below `/run/netns`.
        netns: String,
        /// Inode of its namespace, once it was made.
        ns_ino: Option<u64>,
        /// The proof.
        reason: String,
    },
    /// Make a network slot, to be ready for whoever starts.
    MakeSlot {
        /// The slot's number.
        index: u32,
        /// The proof.
        reason: String,
    },
    /// Take down what network slots share.
    ReleaseTable {
        /// The nft table.
        table: String,
        /// The proof.
        reason: String,
    },
}

impl Action {
    /// Watch, id and process, where it is about a watched one.
    pub fn watched(&self) -> Option<(&str, &str, &Identity)> {
        match self {
            Action::WriteBack { watch, id, identity, .. } | Action::Terminate { watch, id, identity, .. } => {
                Some((watch, id, identity))
            }
            Action::Adopt { .. } | Action::FinishStop { .. } | Action::Close { .. } | Action::Release { .. } => None,
            Action::RepairSlot { .. }
            | Action::ReleaseSlot { .. }
            | Action::MakeSlot { .. }
            | Action::ReleaseTable { .. } => None,
        }
    }

    /// Whether it is about network slots.
    pub fn is_of_network(&self) -> bool {
        match self {
            Action::RepairSlot { .. }
            | Action::ReleaseSlot { .. }
            | Action::MakeSlot { .. }
            | Action::ReleaseTable { .. } => true,
            Action::WriteBack { .. } | Action::Terminate { .. } | Action::Adopt { .. } => false,
            Action::FinishStop { .. } | Action::Close { .. } | Action::Release { .. } => false,
        }
    }
}

/// What would be done, and what is let alone. The same world gives the same plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The pass whose findings it builds on.
    pub generation: u64,
    /// What would change something: instances by name, what is watched by watch, id and PID, releases by kind and key,
    /// network slots by number: repairs, then what goes, then what is made.
    pub actions: Vec<Action>,
    /// What is let alone, and why.
    #[serde(default)]
    pub left: Vec<Left>,
}

impl Plan {
    /// This plan and that of another part of the same look, as one.
    #[must_use]
    pub fn joined(mut self, other: Plan) -> Plan {
        self.actions.extend(other.actions);
        self.left.extend(other.left);
        self.in_order()
    }

    fn in_order(mut self) -> Plan {
        self.actions.sort_by(|a, b| order(a).cmp(&order(b)));
        self.left.sort();
        self.left.dedup();
        self
    }
}

/// Plans for `world`, which was looked at after pass `generation`.
pub fn plan(world: &World, policies: &Policies, generation: u64) -> Plan {
    let mut left = world.left.clone();
    let mut actions = Vec::new();
    for sighting in &world.sightings {
        match judge(sighting, world, policies) {
            Verdict::Act(action) => actions.push(action),
            Verdict::Leave(reason) => left.push(leave(sighting, reason)),
            Verdict::Rest => {}
        }
    }
    for doubted in &world.doubted {
        match judge_doubted(doubted) {
            Verdict::Act(action) => actions.push(action),
            Verdict::Leave(reason) => left.push(Left {
                what: format!("instance `{}`", doubted.name),
                pid: doubted.identity.as_ref().map(|identity| identity.pid),
                reason,
            }),
            Verdict::Rest => {}
        }
    }
    for marked in &world.marked {
        match judge_marked(marked) {
            Verdict::Act(action) => actions.push(action),
            Verdict::Leave(reason) => left.push(Left { what: name_of(marked), pid: None, reason }),
            Verdict::Rest => {}
        }
    }
    plan_network(&world.network, &mut actions, &mut left);
    Plan { generation, actions, left }.in_order()
}

/// Plans for the network slots: each by itself, and then the pool that comes of it.
fn plan_network(network: &Network, actions: &mut Vec<Action>, left: &mut Vec<Left>) {
    let (mut staying, mut passed_by) = (BTreeMap::new(), BTreeSet::new());
    for slot in &network.slots {
        let verdict = slot::judge(slot.claim, &slot.seen);
        match slot.claim.filter(|_| !matches!(verdict, slot::Verdict::Release(_))) {
            Some(claim) => drop(staying.insert(slot.index, (claim.state, slot))),
            None if matches!(slot.seen, Seen::Foreign(_)) => drop(passed_by.insert(slot.index)),
            None => {}
        }
        match verdict {
            slot::Verdict::Repair(reason) => actions.extend(repair(slot, reason)),
            slot::Verdict::Release(reason) => actions.push(release(slot, reason)),
            slot::Verdict::Leave(reason) => {
                left.push(Left { what: format!("network slot `{}`", slot.netns), pid: None, reason });
            }
            slot::Verdict::Rest => {}
        }
    }
    let rows = staying.iter().map(|(index, (state, _))| (*index, *state));
    // What could not be read may serve: the pool is planned once all is known.
    let is_known = !network.slots.iter().any(|slot| matches!(slot.seen, Seen::Unread(_)));
    let moves = if is_known { pool::moves(rows, &passed_by, network.wish) } else { Moves::default() };
    let surplus = moves.release.iter().filter_map(|index| staying.remove(index));
    actions.extend(surplus.map(|(_, slot)| release(slot, "it is unused, and lower numbers suffice".to_string())));
    let reason = format!("unused slots to be ready: {}", network.wish.spare);
    actions.extend(moves.make.iter().map(|index| Action::MakeSlot { index: *index, reason: reason.clone() }));
    let is_wanted = !moves.make.is_empty() || network.wish.spare > 0;
    let unused = network.tables.iter().filter(|table| {
        let uses = |slot: &SlotSighting| !table.is_former || slot.table == table.name;
        !staying.values().any(|(_, slot)| uses(slot)) && (table.is_former || !is_wanted)
    });
    actions.extend(unused.map(|table| Action::ReleaseTable {
        table: table.name.clone(),
        reason: "no slot uses it, and none is to be made with it".to_string(),
    }));
}

fn repair(slot: &SlotSighting, reason: String) -> Option<Action> {
    let SlotSighting { index, netns, ns_ino, holder, .. } = slot.clone();
    let holder = holder?;
    Some(Action::RepairSlot { index, netns, ns_ino, instance: holder.name, incarnation: holder.incarnation, reason })
}

fn release(slot: &SlotSighting, reason: String) -> Action {
    Action::ReleaseSlot { index: slot.index, netns: slot.netns.clone(), ns_ino: slot.ns_ino, reason }
}

/// The order in which actions are carried out and shown.
pub(crate) fn order(action: &Action) -> (u8, &str, &str, Option<Pid>, Option<u64>) {
    match action {
        Action::Adopt { instance, incarnation, .. }
        | Action::FinishStop { instance, incarnation, .. }
        | Action::Close { instance, incarnation, .. } => (0, instance.as_str(), incarnation.as_str(), None, None),
        Action::WriteBack { watch, id, identity, .. } | Action::Terminate { watch, id, identity, .. } => {
            (1, watch, id, Some(identity.pid), identity.pidfs_ino)
        }
        Action::Release { kind, key, ino, .. } => (2 + *kind as u8, key, "", None, *ino),
        Action::RepairSlot { index, .. } => (6, "", "", None, Some(u64::from(*index))),
        Action::ReleaseSlot { index, .. } => (7, "", "", None, Some(u64::from(*index))),
        Action::MakeSlot { index, .. } => (8, "", "", None, Some(u64::from(*index))),
        Action::ReleaseTable { table, .. } => (9, table, "", None, None),
    }
}

fn name_of(marked: &Marked) -> String {
    match marked.kind {
        MarkedKind::Mark => format!("mark `{}`", marked.key),
        MarkedKind::Logs => format!("logs of `{}`", marked.key),
        MarkedKind::Pin => format!("pin `{}`", marked.key),
        MarkedKind::Cgroup => format!("cgroup `{}`", marked.key),
    }
}

enum Verdict {
    Act(Action),
    Leave(String),
    Rest,
}

fn leave(sighting: &Sighting, reason: String) -> Left {
    Left { what: format!("{}/{}", sighting.watch, sighting.id), pid: Some(sighting.identity.pid), reason }
}

fn judge(seen: &Sighting, world: &World, policies: &Policies) -> Verdict {
    let Some(policy) = policies.get(&seen.watch) else { return Verdict::Rest };
    if !seen.is_alone() {
        return Verdict::Rest;
    }
    if others(seen, world).any(|other| other.identity.pid == seen.identity.pid) {
        return Verdict::Leave("it belongs to several watches or ids".to_string());
    }
    match &seen.claim {
        Claim::Odd(why) => Verdict::Leave(format!("`{}`: {why}", seen.file)),
        Claim::Missing => judge_orphan(seen, world, *policy),
        claim @ Claim::Read { .. } if claim.is_right_for(&seen.identity) => Verdict::Rest,
        Claim::Read { recorded, .. } => judge_claimed(seen, world, *recorded),
    }
}

/// An instance that was doubted, judged as at every start of the worker.
fn judge_doubted(doubted: &Doubted) -> Verdict {
    let Doubted { name, incarnation, identity, .. } = doubted.clone();
    let (instance, told) = (name, |reason: &str| reason.to_string());
    match judge::judge(doubted.claimed, doubted.process, doubted.mark) {
        judge::Verdict::Adopt => {
            let reason = told("its process lives, and is proven the recorded one");
            Verdict::Act(Action::Adopt { instance, incarnation, identity, reason })
        }
        judge::Verdict::FinishStop => {
            let reason = told("its process lives, is proven the recorded one, and a stop was accepted");
            Verdict::Act(Action::FinishStop { instance, incarnation, identity, reason })
        }
        judge::Verdict::Close => {
            let reason = told("its process is proven gone");
            Verdict::Act(Action::Close { instance, incarnation, identity, reason })
        }
        judge::Verdict::RollBack if doubted.claimed.state == State::Unverified => {
            let reason = told("its program never ran");
            Verdict::Act(Action::Close { instance, incarnation, identity, reason })
        }
        judge::Verdict::LeaveUnverified => Verdict::Leave(doubted.why.clone()),
        judge::Verdict::RollBack | judge::Verdict::Release | judge::Verdict::Rest => Verdict::Rest,
    }
}

/// What bears our mark goes when it is nobody's, and nothing lives in it.
fn judge_marked(marked: &Marked) -> Verdict {
    match (marked.owner, marked.content) {
        (Owner::Row, _) => Verdict::Rest,
        (Owner::Forgotten, _) => {
            Verdict::Leave("the ledger is new, and this may be all that is left of an older one".to_string())
        }
        (Owner::Nobody, Content::Dead) => Verdict::Act(Action::Release {
            kind: marked.kind,
            key: marked.key.clone(),
            ino: marked.ino,
            reason: "no row claims it, and nothing lives in it".to_string(),
        }),
        // Each process in it is told of by itself.
        (Owner::Nobody, Content::Living) => Verdict::Rest,
        (Owner::Nobody, Content::Unread) => Verdict::Leave("it could not be read".to_string()),
    }
}

/// Every other sighting in `world`.
fn others<'a>(seen: &'a Sighting, world: &'a World) -> impl Iterator<Item = &'a Sighting> {
    world.sightings.iter().filter(move |other| !core::ptr::eq(*other, seen))
}

/// Its metadata is there and names something else.
fn judge_claimed(seen: &Sighting, world: &World, recorded: Recorded) -> Verdict {
    match recorded {
        Recorded::Rival(pid) => {
            return Verdict::Leave(format!("its metadata names process {pid}, which has the same id"));
        }
        Recorded::Unread(pid) => {
            return Verdict::Leave(format!("its metadata names process {pid}, which cannot be read"));
        }
        Recorded::Nobody => {}
    }
    // Whoever has a parent or an owner is none of the candidates, whether it is seen or not.
    let is_rival = |other: &Sighting| other.watch == seen.watch && other.id == seen.id && other.is_alone();
    if others(seen, world).any(is_rival) {
        return Verdict::Leave("several processes carry its id".to_string());
    }
    Verdict::Act(Action::WriteBack {
        watch: seen.watch.clone(),
        id: seen.id.clone(),
        identity: seen.identity.clone(),
        file: seen.file.clone(),
        reason: "it lives, its parent is gone, and its metadata names no live process of this id".to_string(),
    })
}

/// No metadata: an orphan.
fn judge_orphan(seen: &Sighting, world: &World, policy: Policy) -> Verdict {
    let kept = match (policy.on_orphan, seen.age(world.now)) {
        (OnOrphan::Report, _) => Some("it is reported only"),
        (OnOrphan::Terminate, _) if seen.identity.strength() != Strength::Pidfs => {
            Some("its identity is too weak for a signal")
        }
        (OnOrphan::Terminate, None) => Some("its age is not known"),
        (OnOrphan::Terminate, Some(age)) if age <= policy.grace => Some("it is younger than the grace"),
        (OnOrphan::Terminate, Some(_)) if seen.before == Before::Unseen => Some("it was seen for the first time"),
        (OnOrphan::Terminate, Some(_)) => None,
    };
    if let Some(why) = kept {
        return Verdict::Leave(format!("an orphan without metadata; {why}"));
    }
    Verdict::Act(Action::Terminate {
        watch: seen.watch.clone(),
        id: seen.id.clone(),
        identity: seen.identity.clone(),
        file: seen.file.clone(),
        reason: "its parent is gone, it has no metadata, it is older than the grace, and it was seen before"
            .to_string(),
    })
}

fn some_with_strength<S: Serializer>(identity: &Option<Identity>, serializer: S) -> Result<S::Ok, S::Error> {
    struct Shown<'a>(&'a Identity);
    impl Serialize for Shown<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            with_strength(self.0, serializer)
        }
    }
    identity.as_ref().map(Shown).serialize(serializer)
}

/// An identity with its strength beside the evidence, as it is shown everywhere.
fn with_strength<S: Serializer>(identity: &Identity, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown<'a> {
        pid: Pid,
        pidfs_ino: Option<u64>,
        start_ticks: Option<u64>,
        boot_id: &'a BootId,
        pid_ns: u64,
        strength: Strength,
    }
    let Identity { pid, pidfs_ino, start_ticks, boot_id, pid_ns, boottime_offset: _ } = identity;
    let (pid, pidfs_ino, start_ticks, pid_ns) = (*pid, *pidfs_ino, *start_ticks, *pid_ns);
    Shown { pid, pidfs_ino, start_ticks, boot_id, pid_ns, strength: identity.strength() }.serialize(serializer)
}
