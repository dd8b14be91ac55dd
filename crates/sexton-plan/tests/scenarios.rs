//! Scripts of what was seen, and what is planned for it. `rows.rs` has the list of what they are to show, and where that
//! is shown which the planner does not decide.
//!
//! ```text
//! shows CLAIM…
//! now SECONDS
//! watch NAME grace=SECONDS report|terminate
//! see WATCH/ID pid=N pidfs=N start=TICKS [child] [held] [before] CLAIM…
//!     CLAIM: missing | odd | has=N|nothing|text [tick=N|nothing] [rival=N | unread=N]
//! doubt NAME pid=N same|gone|unproven|unrecorded [state=STATE] [stop] [exit]
//! doubt NAME pid=N elsewhere domain=populated|empty|unknown [namespace=ended] [state=STATE] [stop] [exit]
//! unread WHAT pid=N WORDS OF THE REASON
//! mark|logs|pin|cgroup KEY row|nobody|forgotten [living|unread]
//! pool N [of=CAPACITY] [table] [former-table]
//! slot INDEX passed-by | making|ready|held|releasing|quarantined [live|leaving|untold|nobody] [outdated] [former]
//!     [whole|bare|absent|foreign=WHAT|unread=WHY|missing=PART,…]
//! plan
//! > adopt|finish-stop|close NAME | > release KIND KEY |
//! > repair-slot INDEX WORDS OF THE REASON | > release-slot INDEX WORDS OF THE REASON | > make-slot INDEX |
//! > release-table NAME |
//! > write-back WATCH/ID pid=N | > terminate WATCH/ID pid=N | > leave WATCH/ID pid=N WORDS OF THE REASON
//! ```

#![allow(clippy::indexing_slicing, reason = "a script that is cut short is to fail")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use sexton_plan::check::check;
use sexton_plan::claim::{Claim, Field, Recorded};
use sexton_plan::id::Pid;
use sexton_plan::identity::Identity;
use sexton_plan::judge::{Claimed, DomainSeen, MarkSeen, NamespaceSeen, ProcessSeen, out_of_sight};
use sexton_plan::plan::{Action, OnOrphan, Plan, Policies, Policy, plan};
use sexton_plan::pool::Wish;
use sexton_plan::slot::{Holder, Holding, Part, Seen, SlotClaim, SlotState};
use sexton_plan::state::State;
use sexton_plan::world::{
    Before, Content, Custody, Doubted, Left, Marked, MarkedKind, Owner, Parent, SharedTable, Sighting, SlotSighting,
    World,
};

/// What scenarios show, each by one at least; a scenario shows nothing else.
const CLAIMS: [&str; 37] = [
    // Processes of somebody else.
    "written-back",
    "right-is-not-written",
    "odd-metadata",
    "owner-came-back",
    "several-survivors",
    "several-watches",
    "parent-may-care",
    "in-custody",
    "unknown-watch",
    "grace",
    "two-passes",
    "report-ends-nothing",
    "weak-identity",
    "number-reused",
    "unread-is-not-gone",
    // Instances.
    "adopted-again",
    "stop-is-finished",
    "gone-is-closed",
    "doubt-is-kept",
    "never-ran-is-closed",
    "inactive-is-let-alone",
    "out-of-sight-is-not-gone",
    // What bears our mark.
    "stray-is-released",
    "in-use-is-kept",
    "new-ledger-keeps-logs",
    "unclaimed-process-is-told",
    // Network slots.
    "slot-in-use-is-repaired",
    "slot-of-a-life-that-is-over-is-let-alone",
    "unused-slot-is-replaced",
    "pool-at-rest",
    "foreign-is-passed-by",
    "foreign-beside-an-unused-slot",
    "quarantined-until-free",
    "unread-slot-is-let-alone",
    "abandoned-slot-goes",
    "last-slot-takes-the-table",
    "former-table-goes-when-unused",
];

fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn number(words: &[&str], key: &str) -> Option<u64> {
    value(words, key).map(|text| text.parse().expect("a number"))
}

fn pid(raw: u64) -> Pid {
    Pid::new(i32::try_from(raw).expect("fits")).expect("greater than 1")
}

fn field(text: &str) -> Field {
    match text {
        "nothing" => Field::Absent,
        "text" => Field::Other,
        number => Field::Number(number.parse().expect("a number")),
    }
}

fn claim(words: &[&str]) -> Claim {
    if words.contains(&"missing") {
        return Claim::Missing;
    }
    if words.contains(&"odd") {
        return Claim::Odd("is no JSON object".to_owned());
    }
    let recorded = match (number(words, "rival"), number(words, "unread")) {
        (Some(rival), _) => Recorded::Rival(pid(rival)),
        (None, Some(unread)) => Recorded::Unread(pid(unread)),
        (None, None) => Recorded::Nobody,
    };
    let pid = field(value(words, "has").expect("a claim"));
    Claim::Read { pid, start_ticks: value(words, "tick").map(field), recorded }
}

fn sighting(words: &[&str]) -> Sighting {
    let (watch, id) = words[0].split_once('/').expect("WATCH/ID");
    let identity = Identity {
        pid: pid(number(words, "pid").expect("pid")),
        pidfs_ino: number(words, "pidfs"),
        start_ticks: number(words, "start"),
        boottime_offset: 0,
        boot_id: "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().expect("a UUID"),
        pid_ns: 4_026_531_836,
    };
    Sighting {
        watch: watch.to_owned(),
        id: id.to_owned(),
        identity,
        parent: if words.contains(&"child") { Parent::Other } else { Parent::Adopter },
        custody: if words.contains(&"held") { Custody::Held } else { Custody::None },
        before: if words.contains(&"before") { Before::Seen } else { Before::Unseen },
        file: format!("/{watch}/{id}.json"),
        claim: claim(words),
    }
}

/// A process that cannot be seen from here.
fn elsewhere(words: &[&str]) -> ProcessSeen {
    let domain = match value(words, "domain").expect("a domain") {
        "populated" => DomainSeen::Populated,
        "empty" => DomainSeen::Empty,
        "unknown" => DomainSeen::Unknown,
        other => panic!("`{other}` is nothing that a domain can be"),
    };
    let namespace = match value(words, "namespace") {
        Some("ended") => NamespaceSeen::Ended,
        Some(other) => panic!("`{other}` is nothing that is known of a namespace"),
        None => NamespaceSeen::Unknown,
    };
    out_of_sight(domain, namespace)
}

fn doubted(words: &[&str]) -> Doubted {
    let has = |word: &str| words.contains(&word);
    let seen = sighting(&["w/x", words[2], "missing"]);
    Doubted {
        name: words[1].parse().expect("a name"),
        incarnation: format!("01ARZ3NDEKTSV4RRFFQ69G5{}", value(words, "pid").expect("a PID")).parse().expect("a ULID"),
        identity: Some(seen.identity),
        claimed: Claimed {
            state: value(words, "state").map_or(State::Unverified, |word| word.parse().expect("a state")),
            stop_ordered: has("stop"),
            exit_known: has("exit"),
            holds_resources: true,
        },
        process: match words[3] {
            "same" => ProcessSeen::Same,
            "gone" => ProcessSeen::Gone,
            "unproven" => ProcessSeen::Unproven,
            "unrecorded" => ProcessSeen::NotRecorded,
            "elsewhere" => elsewhere(words),
            other => panic!("`{other}` is nothing that a process can be"),
        },
        mark: match value(words, "mark") {
            None => MarkSeen::Absent,
            Some("unread") => MarkSeen::Unread,
            Some("waiting") => MarkSeen::Waiting,
            Some("released") => MarkSeen::Released,
            Some("refused") => MarkSeen::Refused,
            Some(other) => panic!("`{other}` is nothing that a mark can say"),
        },
        why: "could not be read".to_owned(),
    }
}

fn marked(words: &[&str]) -> Marked {
    let kind = match words[0] {
        "mark" => MarkedKind::Mark,
        "logs" => MarkedKind::Logs,
        "pin" => MarkedKind::Pin,
        _ => MarkedKind::Cgroup,
    };
    let owner = match words[2] {
        "row" => Owner::Row,
        "nobody" => Owner::Nobody,
        "forgotten" => Owner::Forgotten,
        other => panic!("`{other}` is no owner"),
    };
    let content = match words.get(3) {
        Some(&"living") => Content::Living,
        Some(&"unread") => Content::Unread,
        Some(_) | None => Content::Dead,
    };
    Marked { kind, key: words[1].to_owned(), ino: None, owner, content }
}

fn slot_seen(words: &[&str]) -> Seen {
    let part = |word: &str| match word {
        "namespace" => Part::Namespace,
        "link" => Part::Link,
        "address" => Part::Address,
        "rule" => Part::Rule,
        "forwarding" => Part::Forwarding,
        other => panic!("`{other}` is no part of a slot"),
    };
    match (value(words, "foreign"), value(words, "unread"), value(words, "missing")) {
        (Some(what), _, _) => Seen::Foreign(what.to_owned()),
        (None, Some(why), _) => Seen::Unread(why.to_owned()),
        (None, None, Some(parts)) => Seen::Damaged(parts.split(',').map(part).collect()),
        (None, None, None) if words.contains(&"bare") => Seen::Bare,
        (None, None, None) if words.contains(&"absent") => Seen::Absent,
        (None, None, None) => Seen::Whole,
    }
}

fn slot(words: &[&str]) -> SlotSighting {
    let index = words[1].parse().expect("a number");
    let state = SlotState::ALL.iter().find(|state| state.as_str() == words[2]);
    let holding = match words.get(3) {
        Some(&"live") => Holding::Live,
        Some(&"leaving") => Holding::Leaving,
        Some(&"untold") => Holding::Untold,
        Some(_) | None => Holding::Nobody,
    };
    let fits = !words.contains(&"outdated");
    let incarnation = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("a ULID");
    SlotSighting {
        index,
        netns: format!("sexton-{index}"),
        ns_ino: state.map(|_| 4_026_532_000 + u64::from(index)),
        table: if words.contains(&"former") { "sexton_old" } else { "sexton" }.to_owned(),
        claim: state.map(|state| SlotClaim { state: *state, holding, fits }),
        holder: (holding != Holding::Nobody).then(|| Holder { name: "vm".parse().expect("a name"), incarnation }),
        seen: slot_seen(words),
    }
}

fn told(plan: &Plan) -> Vec<String> {
    let acted = plan.actions.iter().map(|action| match action {
        Action::WriteBack { watch, id, identity, .. } => format!("write-back {watch}/{id} pid={}", identity.pid),
        Action::Terminate { watch, id, identity, .. } => format!("terminate {watch}/{id} pid={}", identity.pid),
        Action::Adopt { instance, .. } => format!("adopt {instance}"),
        Action::FinishStop { instance, .. } => format!("finish-stop {instance}"),
        Action::Close { instance, .. } => format!("close {instance}"),
        Action::Release { kind, key, .. } => format!("release {kind:?} {key}").to_lowercase(),
        Action::RepairSlot { index, reason, .. } => format!("repair-slot {index} {reason}"),
        Action::ReleaseSlot { index, reason, .. } => format!("release-slot {index} {reason}"),
        Action::MakeSlot { index, .. } => format!("make-slot {index}"),
        Action::ReleaseTable { table, .. } => format!("release-table {table}"),
    });
    let left = plan.left.iter().map(|left| {
        let pid = left.pid.map(|pid| format!(" pid={pid}")).unwrap_or_default();
        format!("leave {}{pid} {}", left.what, left.reason)
    });
    acted.chain(left).collect()
}

/// Runs one scenario; tells what it says that it shows.
fn run(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).expect("readable");
    let (mut world, mut policies, mut planned) = (World::default(), Policies::default(), None);
    let (mut expected, mut shown) = (Vec::new(), BTreeSet::new());
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "now" => world.now = Duration::from_secs(words[1].parse().expect("seconds")),
            "watch" => {
                let grace = Duration::from_secs(number(&words, "grace").expect("grace"));
                let on_orphan = if words.contains(&"terminate") { OnOrphan::Terminate } else { OnOrphan::Report };
                policies.insert(words[1].to_owned(), Policy { grace, on_orphan });
            }
            "shows" => shown.extend(words[1..].iter().map(|word| (*word).to_owned())),
            "unread" => world.left.push(Left {
                what: words[1].to_owned(),
                pid: number(&words, "pid").map(pid),
                reason: words[3..].join(" "),
            }),
            "doubt" => world.doubted.push(doubted(&words)),
            "mark" | "logs" | "pin" | "cgroup" => world.marked.push(marked(&words)),
            "pool" => {
                let capacity = number(&words, "of").unwrap_or(16).try_into().expect("fits");
                world.network.wish = Wish { spare: words[1].parse().expect("a number"), waiting: 0, capacity };
                let tables = [("table", "sexton", false), ("former-table", "sexton_old", true)];
                let tables = tables.into_iter().filter(|(word, ..)| words.contains(word));
                let table = |(_, name, is_former)| SharedTable { name: String::from(name), is_former };
                world.network.tables = tables.map(table).collect();
            }
            "slot" => world.network.slots.push(slot(&words)),
            "see" => world.sightings.push(sighting(&words[1..])),
            "plan" => planned = Some(plan(&world, &policies, 1)),
            ">" => expected.push(words[1..].join(" ")),
            other => panic!("{}: `{other}` is no word of the script", file.display()),
        }
    }
    let planned = planned.expect("a plan");
    check(&planned, &world, &policies).unwrap_or_else(|broken| panic!("{}: {broken}", file.display()));
    let found = told(&planned);
    let fits = found.len() == expected.len() && found.iter().zip(&expected).all(|(found, line)| found.contains(line));
    assert!(fits, "{}:\nplanned {found:#?}\nexpected {expected:#?}", file.display());
    shown
}

#[test]
fn every_scenario_is_planned_as_written_and_every_claim_is_shown() {
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let files: BTreeSet<_> =
        fs::read_dir(scenarios).expect("scenarios").map(|file| file.expect("a file").path()).collect();
    let shown: BTreeSet<String> = files.iter().flat_map(|file| run(file)).collect();
    assert_eq!(shown, CLAIMS.map(str::to_owned).into());
}
