//! Random worlds: one plan each, which obeys the rules and, carried out, leaves nothing to plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::bool::weighted;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use proptest::{prop_assert, prop_assert_eq, proptest};
use sexton_plan::check::check;
use sexton_plan::claim::{Claim, Field, Recorded};
use sexton_plan::id::Pid;
use sexton_plan::identity::Identity;
use sexton_plan::judge::{Claimed, MarkSeen, ProcessSeen};
use sexton_plan::plan::{Action, OnOrphan, Plan, Policies, Policy, plan};
use sexton_plan::pool::Wish;
use sexton_plan::slot::{Holder, Holding, Part, Seen, SlotClaim, SlotState};
use sexton_plan::state::State;
use sexton_plan::world::{
    Before, Content, Custody, Doubted, Left, Marked, MarkedKind, Network, Owner, Parent, SharedTable, Sighting,
    SlotSighting, World,
};

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![Just(Field::Absent), (2..8u64).prop_map(Field::Number), Just(Field::Other)]
}

fn recorded() -> impl Strategy<Value = Recorded> {
    let pid = |raw| Pid::new(raw).expect("greater than 1");
    prop_oneof![
        3 => Just(Recorded::Nobody),
        1 => (2..8i32).prop_map(move |raw| Recorded::Rival(pid(raw))),
        1 => (2..8i32).prop_map(move |raw| Recorded::Unread(pid(raw))),
    ]
}

fn claim() -> impl Strategy<Value = Claim> {
    prop_oneof![
        Just(Claim::Missing),
        Just(Claim::Odd("odd".to_owned())),
        (field(), proptest::option::of(field()), recorded()).prop_map(|(pid, start_ticks, recorded)| Claim::Read {
            pid,
            start_ticks,
            recorded
        }),
    ]
}

/// Few numbers, so that they collide.
fn sighting() -> impl Strategy<Value = Sighting> {
    let who = (2..8i32, proptest::option::of(Just(())), proptest::option::of(0..50_000u64));
    // Most are nobody's, so that several of one id are candidates.
    let facts = (weighted(0.8), weighted(0.8), any::<bool>());
    (("[vwx]", "[ab]"), who, facts, claim()).prop_map(|((watch, id), who, facts, claim)| {
        let (raw, pidfs, start_ticks) = who;
        let (adopted, free, before) = facts;
        let identity = Identity {
            pid: Pid::new(raw).expect("greater than 1"),
            pidfs_ino: pidfs.map(|()| 1_000 + u64::from(raw.unsigned_abs())),
            start_ticks,
            boottime_offset: 0,
            boot_id: "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().expect("a UUID"),
            pid_ns: 1,
        };
        Sighting {
            file: format!("/{watch}/{id}"),
            watch,
            id,
            identity,
            parent: if adopted { Parent::Adopter } else { Parent::Other },
            custody: if free { Custody::None } else { Custody::Held },
            before: if before { Before::Seen } else { Before::Unseen },
            claim,
        }
    })
}

fn world() -> impl Strategy<Value = World> {
    let seen = (0..600u64, vec(sighting(), 0..6)).prop_map(|(now, mut sightings)| {
        // One file says one thing, whoever is looked at.
        let mut claims = BTreeMap::new();
        for seen in &mut sightings {
            seen.claim = claims.entry(seen.file.clone()).or_insert_with(|| seen.claim.clone()).clone();
        }
        (now, sightings)
    });
    let own = (vec(doubted(), 0..4), vec(marked(), 0..6), network());
    (seen, own).prop_map(|((now, sightings), (mut doubted, mut marked, network))| {
        // A life and a name are one each.
        let (mut lives, mut names) = (BTreeSet::new(), BTreeSet::new());
        doubted.retain(|seen| lives.insert(seen.name.clone()));
        marked.retain(|seen| names.insert((seen.kind, seen.key.clone())));
        World { now: Duration::from_secs(now), sightings, doubted, marked, network, left: Vec::new() }
    })
}

fn doubted() -> impl Strategy<Value = Doubted> {
    let process = prop_oneof![
        Just(ProcessSeen::Same),
        Just(ProcessSeen::Gone),
        Just(ProcessSeen::Unproven),
        Just(ProcessSeen::NotRecorded)
    ];
    let state = proptest::sample::select(State::ALL);
    ("[abcd]", state, any::<[bool; 3]>(), process).prop_map(|(name, state, facts, process)| {
        let [stop_ordered, exit_known, holds_resources] = facts;
        Doubted {
            incarnation: format!("01ARZ3NDEKTSV4RRFFQ69G5FA{}", name.to_uppercase()).parse().expect("a ULID"),
            name: name.parse().expect("a name"),
            identity: None,
            claimed: Claimed { state, stop_ordered, exit_known, holds_resources },
            process,
            mark: MarkSeen::Absent,
            why: "odd".to_owned(),
        }
    })
}

fn marked() -> impl Strategy<Value = Marked> {
    let kind =
        prop_oneof![Just(MarkedKind::Mark), Just(MarkedKind::Logs), Just(MarkedKind::Pin), Just(MarkedKind::Cgroup)];
    let owner = prop_oneof![Just(Owner::Row), Just(Owner::Nobody), Just(Owner::Forgotten)];
    let content = prop_oneof![Just(Content::Dead), Just(Content::Living), Just(Content::Unread)];
    (kind, "[abc]", proptest::option::of(0..3u64), owner, content).prop_map(|(kind, key, ino, owner, content)| Marked {
        kind,
        key,
        ino,
        owner,
        content,
    })
}

fn slot() -> impl Strategy<Value = SlotSighting> {
    let seen = prop_oneof![
        3 => Just(Seen::Whole),
        2 => Just(Seen::Damaged(vec![Part::Link, Part::Rule])),
        1 => Just(Seen::Bare),
        1 => Just(Seen::Absent),
        1 => Just(Seen::Foreign("a bridge".to_owned())),
        1 => weighted(0.3).prop_map(|is| if is { Seen::Unread("odd".to_owned()) } else { Seen::Whole }),
    ];
    let holding = prop_oneof![
        2 => Just(Holding::Live),
        1 => Just(Holding::Leaving),
        1 => Just(Holding::Untold),
        1 => Just(Holding::Nobody)
    ];
    let claim = (proptest::sample::select(SlotState::ALL), holding, weighted(0.8));
    let claim = claim.prop_map(|(state, holding, fits)| SlotClaim { state, holding, fits });
    (0..8u32, proptest::option::weighted(0.8, claim), seen, weighted(0.3)).prop_map(
        |(index, claim, seen, is_former)| {
            let incarnation = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("a ULID");
            let name = format!("vm-{index}").parse().expect("a name");
            let is_held = claim.is_some_and(|row| row.holding != Holding::Nobody);
            SlotSighting {
                index,
                netns: format!("sexton-{index}"),
                ns_ino: claim.map(|_| u64::from(index)),
                table: if is_former { "sexton_old" } else { "sexton" }.to_owned(),
                claim,
                holder: is_held.then_some(Holder { name, incarnation }),
                seen,
            }
        },
    )
}

fn network() -> impl Strategy<Value = Network> {
    let wish = (0..4u32, 0..8u32).prop_map(|(spare, capacity)| Wish { spare, waiting: 0, capacity });
    let tables = proptest::sample::subsequence(vec![("sexton", false), ("sexton_old", true)], 0..=2);
    (vec(slot(), 0..6), wish, tables).prop_map(|(mut slots, wish, tables)| {
        let mut numbers = BTreeSet::new();
        slots.retain(|slot| numbers.insert(slot.index));
        let table = |(name, is_former)| SharedTable { name: String::from(name), is_former };
        Network { slots, wish, tables: tables.into_iter().map(table).collect() }
    })
}

fn policies() -> Policies {
    let policy = |grace, on_orphan| Policy { grace: Duration::from_secs(grace), on_orphan };
    [("v", policy(0, OnOrphan::Terminate)), ("w", policy(100, OnOrphan::Terminate)), ("x", policy(0, OnOrphan::Report))]
        .map(|(watch, policy)| (watch.to_owned(), policy))
        .into()
}

/// What carrying it out does to the network.
fn carry_out_network(action: &Action, network: &mut Network) {
    let slots = &mut network.slots;
    match action {
        Action::RepairSlot { index, .. } => {
            slots.iter_mut().filter(|slot| slot.index == *index).for_each(|slot| slot.seen = Seen::Whole);
        }
        Action::ReleaseSlot { index, .. } => {
            slots.iter_mut().filter(|slot| slot.index == *index).for_each(|slot| slot.claim = None);
            slots.retain(|slot| slot.claim.is_some() || matches!(slot.seen, Seen::Foreign(_) | Seen::Unread(_)));
        }
        Action::MakeSlot { index, .. } => {
            let claim = SlotClaim { state: SlotState::Ready, holding: Holding::Nobody, fits: true };
            let netns = format!("sexton-{index}");
            slots.retain(|slot| slot.index != *index);
            let (claim, seen) = (Some(claim), Seen::Whole);
            let table = "sexton".to_owned();
            slots.push(SlotSighting { index: *index, netns, ns_ino: Some(9), table, claim, holder: None, seen });
        }
        Action::ReleaseTable { table, .. } => network.tables.retain(|known| known.name != *table),
        Action::WriteBack { .. } | Action::Terminate { .. } | Action::Adopt { .. } => {}
        Action::FinishStop { .. } | Action::Close { .. } | Action::Release { .. } => {}
    }
}

/// What carrying it out does to the world.
fn carry_out(plan: &Plan, world: &mut World) {
    for action in &plan.actions {
        match action {
            Action::Adopt { incarnation, .. }
            | Action::FinishStop { incarnation, .. }
            | Action::Close { incarnation, .. } => world.doubted.retain(|seen| seen.incarnation != *incarnation),
            Action::Release { kind, key, .. } => world.marked.retain(|seen| (seen.kind, &seen.key) != (*kind, key)),
            Action::Terminate { identity, .. } => world.sightings.retain(|seen| seen.identity != *identity),
            Action::WriteBack { watch, id, identity, .. } => {
                for seen in &mut world.sightings {
                    if seen.watch == *watch && seen.id == *id && seen.identity == *identity {
                        let tick = identity.start_ticks.map_or(Field::Absent, Field::Number);
                        let pid = Field::Number(u64::from(identity.pid.as_raw().unsigned_abs()));
                        seen.claim = Claim::Read { pid, start_ticks: Some(tick), recorded: Recorded::Nobody };
                    }
                }
            }
            Action::RepairSlot { .. }
            | Action::ReleaseSlot { .. }
            | Action::MakeSlot { .. }
            | Action::ReleaseTable { .. } => carry_out_network(action, &mut world.network),
        }
    }
}

/// Every judgement there is, without numbers.
const JUDGEMENTS: [&str; 41] = [
    "adopt",
    "close",
    "finish_stop",
    "leave: a file: odd",
    "leave: an orphan without metadata; it is reported only",
    "leave: an orphan without metadata; it is younger than the grace",
    "leave: an orphan without metadata; it was seen for the first time",
    "leave: an orphan without metadata; its age is not known",
    "leave: an orphan without metadata; its identity is too weak for a signal",
    "leave: it belongs to several watches or ids",
    "leave: it could not be read",
    "leave: its metadata names a process, which cannot be read",
    "leave: its metadata names a process, which has the same id",
    "leave: odd",
    "leave: several processes carry its id",
    "leave: the ledger is new, and this may be all that is left of an older one",
    "it is in use, and all but its namespace is missing",
    "it is in use, and its link, rule is missing",
    "it is unused, and gone from the host",
    "it is unused, and its link, rule is missing",
    "it is unused, and lower numbers suffice",
    "it is unused, and of another configuration",
    "it is unused, and something foreign is there: a bridge",
    "leave a slot: a bridge",
    "leave a slot: it could not be read: odd",
    "leave a slot: its namespace is gone: its instance has left it",
    "leave a slot: somebody holds its network namespace",
    "make_slot",
    "no row claims it",
    "nobody knows how far its making came",
    "nobody's any more, and not taken down yet",
    "release_table",
    "release a cgroup",
    "release a mark",
    "release a pin",
    "release logs",
    "rest: a claimed thing",
    "rest: nobody's orphan",
    "rest: right already",
    "terminate",
    "write_back",
];

/// What `planned` says, and of what `world` holds says nothing.
fn judgements(planned: &Plan, world: &World) -> BTreeSet<String> {
    fn told(action: &Action) -> &str {
        match action {
            Action::WriteBack { .. } => "write_back",
            Action::Terminate { .. } => "terminate",
            Action::Adopt { .. } => "adopt",
            Action::FinishStop { .. } => "finish_stop",
            Action::Close { .. } => "close",
            Action::Release { kind: MarkedKind::Mark, .. } => "release a mark",
            Action::Release { kind: MarkedKind::Logs, .. } => "release logs",
            Action::Release { kind: MarkedKind::Pin, .. } => "release a pin",
            Action::Release { kind: MarkedKind::Cgroup, .. } => "release a cgroup",
            Action::RepairSlot { reason, .. } | Action::ReleaseSlot { reason, .. } => reason,
            Action::MakeSlot { .. } => "make_slot",
            Action::ReleaseTable { .. } => "release_table",
        }
    }
    let mut found: BTreeSet<String> = planned.actions.iter().map(|action| told(action).to_owned()).collect();
    let is_slot = |left: &&Left| left.what.starts_with("network slot");
    found.extend(planned.left.iter().filter(is_slot).map(|left| format!("leave a slot: {}", left.reason)));
    for left in planned.left.iter().filter(|left| !is_slot(left)) {
        let reason = left.reason.replace(|c: char| c.is_ascii_digit(), "").replace("process ,", "a process,");
        let reason = reason.rsplit_once('`').map_or(reason.clone(), |(_, why)| format!("a file{why}"));
        found.insert(format!("leave: {reason}"));
    }
    let is_alone = |seen: &Sighting| seen.parent == Parent::Adopter && seen.custody == Custody::None;
    let rests = [
        ("rest: nobody's orphan", world.sightings.iter().any(|seen| !is_alone(seen))),
        (
            "rest: right already",
            world.sightings.iter().any(|seen| is_alone(seen) && seen.claim.is_right_for(&seen.identity)),
        ),
        ("rest: a claimed thing", world.marked.iter().any(|seen| seen.owner == Owner::Row)),
    ];
    found.extend(rests.into_iter().filter(|(_, is)| *is).map(|(told, _)| told.to_owned()));
    found
}

#[test]
fn random_worlds_reach_every_judgement() {
    let mut runner = TestRunner::deterministic();
    let mut reached = BTreeSet::new();
    for _ in 0..1_000 {
        let world = world().new_tree(&mut runner).expect("a world").current();
        reached.extend(judgements(&plan(&world, &policies(), 1), &world));
    }
    assert_eq!(reached, JUDGEMENTS.map(str::to_owned).into());
}

proptest! {
    #[test]
    fn the_same_world_gives_the_same_plan_in_whatever_order_it_was_seen(world in world()) {
        let there = plan(&world, &policies(), 1);
        prop_assert_eq!(&there, &plan(&world, &policies(), 1));
        let World { now, mut sightings, mut doubted, mut marked, mut network, left } = world;
        network.slots.reverse();
        sightings.reverse();
        doubted.reverse();
        marked.reverse();
        let backwards = World { now, sightings, doubted, marked, network, left };
        prop_assert_eq!(there, plan(&backwards, &policies(), 1));
    }

    #[test]
    fn every_plan_obeys_the_rules(world in world()) {
        let planned = plan(&world, &policies(), 1);
        prop_assert_eq!(check(&planned, &world, &policies()), Ok(()));
    }

    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(world in world()) {
        let mut world = world;
        let planned = plan(&world, &policies(), 1);
        carry_out(&planned, &mut world);
        let after = plan(&world, &policies(), 2);
        prop_assert!(after.actions.is_empty(), "{:?} then {:?}", planned, after);
    }

    #[test]
    fn an_action_that_the_planner_did_not_plan_is_refused(world in world()) {
        let planned = plan(&world, &policies(), 1);
        for seen in &world.sightings {
            let is_planned = planned.actions.iter().any(|action| {
                action.watched().is_some_and(|(_, _, identity)| identity.pid == seen.identity.pid)
            });
            if is_planned {
                continue;
            }
            let forged = Action::Terminate {
                watch: seen.watch.clone(),
                id: seen.id.clone(),
                identity: seen.identity.clone(),
                file: seen.file.clone(),
                reason: String::new(),
            };
            let forged = Plan { generation: 1, actions: vec![forged], left: Vec::new() };
            prop_assert!(check(&forged, &world, &policies()).is_err(), "{:?}", seen);
        }
        for seen in &world.marked {
            let Marked { kind, key, ino, .. } = seen.clone();
            let forged = Action::Release { kind, key, ino, reason: String::new() };
            let is_planned = planned.actions.iter().any(|action| matches!((action, &forged),
                (Action::Release { kind, key, .. }, Action::Release { kind: mine, key: my_key, .. })
                    if (kind, key) == (mine, my_key)));
            let forged = Plan { generation: 1, actions: vec![forged], left: Vec::new() };
            prop_assert_eq!(check(&forged, &world, &policies()).is_ok(), is_planned, "{:?}", seen);
        }
        for seen in &world.doubted {
            let Doubted { name: instance, incarnation, identity, process, .. } = seen.clone();
            let forged = if process == ProcessSeen::Same {
                Action::Close { instance, incarnation, identity, reason: String::new() }
            } else {
                Action::Adopt { instance, incarnation, identity, reason: String::new() }
            };
            let forged = Plan { generation: 1, actions: vec![forged], left: Vec::new() };
            prop_assert!(check(&forged, &world, &policies()).is_err(), "{:?}", seen);
        }
    }

    #[test]
    fn an_action_about_a_slot_that_the_planner_did_not_plan_is_refused(network in network()) {
        let world = World { network, ..World::default() };
        let planned = plan(&world, &policies(), 1);
        for slot in &world.network.slots {
            let SlotSighting { index, netns, ns_ino, holder, .. } = slot.clone();
            let reason = String::new();
            let is_planned = |is_it: fn(&Action, u32) -> bool| planned.actions.iter().any(|action| is_it(action, index));
            let repaired = is_planned(|action, it| matches!(action, Action::RepairSlot { index, .. } if *index == it));
            if let (Some(Holder { name: instance, incarnation }), false) = (holder, repaired) {
                let netns = netns.clone();
                let forged = Action::RepairSlot { index, netns, ns_ino, instance, incarnation, reason: String::new() };
                let forged = Plan { generation: 1, actions: vec![forged], left: Vec::new() };
                prop_assert!(check(&forged, &world, &policies()).is_err(), "{:?}", slot);
            }
            let released = is_planned(|action, it| matches!(action, Action::ReleaseSlot { index, .. } if *index == it));
            // One of several unused ones may go as well as another.
            let is_unused = slot.claim.is_some_and(|claim| claim.state == SlotState::Ready);
            let is_held_in_vain = slot.claim.is_some_and(|claim| claim.state == SlotState::Quarantined);
            if !released && !is_unused && !is_held_in_vain {
                let forged = Action::ReleaseSlot { index, netns, ns_ino, reason };
                let forged = Plan { generation: 1, actions: vec![forged], left: Vec::new() };
                prop_assert!(check(&forged, &world, &policies()).is_err(), "{:?}", slot);
            }
            let is_table = |action: &Action| matches!(action, Action::ReleaseTable { table, .. } if *table == slot.table);
            if slot.claim.is_some() && !planned.actions.iter().any(is_table) {
                let forged = Action::ReleaseTable { table: slot.table.clone(), reason: String::new() };
                let forged = Plan { generation: 1, actions: vec![forged], left: Vec::new() };
                prop_assert!(check(&forged, &world, &policies()).is_err(), "{:?}", slot);
            }
            let is_made = |action: &Action| matches!(action, Action::MakeSlot { index: made, .. } if *made == index);
            let is_taken = slot.claim.is_some() || matches!(slot.seen, Seen::Foreign(_) | Seen::Unread(_));
            if is_taken && !planned.actions.iter().any(is_made) {
                let forged = Action::MakeSlot { index, reason: String::new() };
                let forged = Plan { generation: 1, actions: vec![forged], left: Vec::new() };
                prop_assert!(check(&forged, &world, &policies()).is_err(), "{}", index);
            }
        }
    }
}
