//! Network slots as a user has them: real daemons and processes, in a network and a mount namespace of each test's own;
//! `ip`, `nft` and the kernel's own files are the witnesses.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]
#![allow(clippy::print_stdout, reason = "with many slots, how long it takes is told")]

#[path = "support/network.rs"]
mod network;
#[path = "support/slots.rs"]
mod place;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use network::{alone, host, run, snapshot};
use place::{
    Squatter, create, entry_of, host_becomes, namespace_of, node, reaches_its_gateway, reconcile, sleeper, slots,
    slots_become, stop, with_slot,
};
use serde_json::{Value, json};
use sexton_testkit::{Held, SOON, eventually};
use support::{Dead, Node, is_settled, script, spec, text};

#[test]
fn a_slot_is_a_place_of_its_own_and_comes_back_as_it_was() {
    alone(|| {
        let nothing = host();
        let mut node = node("count = 2\n");
        let ready = host();
        assert_ne!(ready, nothing);
        assert_eq!(slots(&mut node), ["0 ready", "1 ready"], "when it is first ready");

        let vm = create(&mut node, &sleeper("vm"));
        let held = json!([{ "kind": "slot", "key": vm["slot"]["netns"], "state": "held" }]);
        let resources = vm["resources"].as_array().expect("a list").clone();
        assert!(resources.contains(&held[0]), "{vm}");
        let entry = fs::metadata(entry_of(&vm)).expect("an entry").ino();
        assert_eq!(namespace_of(&vm), entry);
        assert_ne!(namespace_of(&vm), fs::metadata("/proc/thread-self/ns/net").expect("ours").ino());
        assert!(reaches_its_gateway(&vm), "{vm}");
        let neighbours = run("ip", &format!("-n {} -4 neigh show dev eth0", text(&vm["slot"], "netns")));
        let is_fixed =
            |line: &str| line.starts_with(&text(&vm["slot"], "gateway")) && line.trim().ends_with("PERMANENT");
        assert!(neighbours.lines().any(is_fixed), "a place in the host's ARP table is not needed: {neighbours}");
        slots_become(&mut node, &["0 held vm", "1 ready", "2 ready"]);
        let metrics = node.ask("GET", "/metrics", None, None).0.text();
        for line in ["sexton_slots{state=\"held\"} 1", "sexton_slots{state=\"ready\"} 2"] {
            assert!(metrics.lines().any(|other| other == line), "{line}\n{metrics}");
        }

        let one = host();
        create(&mut node, &sleeper("other"));
        slots_become(&mut node, &["0 held vm", "1 held other", "2 ready", "3 ready"]);
        let over = stop(&mut node, "other");
        assert!(is_settled(&over) && over["slot"].is_null(), "{over}");
        host_becomes(&one);
        stop(&mut node, "vm");
        host_becomes(&ready);
        assert_eq!(slots(&mut node), ["0 ready", "1 ready"]);

        let drained = node.ask("POST", "/v1/nodes/self?wait=20s", None, Some(&json!({ "status": "draining" }))).0;
        assert_eq!(drained.expect(200)["drained"], true);
        assert_eq!((host(), slots(&mut node)), (nothing.clone(), vec![]));
        node.daemon().replace_worker().expect("another worker");
        assert_eq!((host(), slots(&mut node)), (nothing, vec![]), "a new worker alone does not leave the drain");
        node.daemon = None;
        node.serve();
        assert_eq!((host(), slots(&mut node)), (ready, vec!["0 ready".to_owned(), "1 ready".to_owned()]));
    });
}

#[test]
fn the_directory_of_namespaces_goes_with_the_last_of_them_whoever_made_it() {
    alone(|| {
        // The host that this namespace was copied from may have some, too.
        let mounts = || {
            let all = fs::read_to_string("/proc/thread-self/mountinfo").expect("read");
            all.lines().filter(|line| line.contains("/run/netns")).count()
        };
        let before = mounts();
        assert!(!fs::exists("/run/netns").expect("looked"), "it was not there before");
        let mut node = node("count = 1\n");
        assert!(mounts() > before, "an entry is a mount");
        // REGRESSION: the next worker did not know that the directory was made by a daemon of ours.
        node.daemon().replace_worker().expect("another worker");
        let drained = node.ask("POST", "/v1/nodes/self?wait=10s", None, Some(&json!({ "status": "draining" }))).0;
        assert_eq!(drained.expect(200)["drained"], true);
        assert!(!fs::exists("/run/netns").expect("looked"));
        assert_eq!(mounts(), before);
    });
}

#[test]
fn slots_on_demand_leave_nothing_and_run_out_without_a_trace() {
    alone(|| {
        let nothing = host();
        let mut node = node("count = 0\nsubnet = \"10.231.7.0/28\"\n");
        assert_eq!(host(), nothing, "nothing is made before somebody wants it");
        let names = ["a", "b", "c", "d"];
        for name in names {
            create(&mut node, &sleeper(name));
        }
        let full = host();
        let refused = node.ask("POST", "/v1/instances", None, Some(&sleeper("e"))).0;
        assert_eq!((refused.status, refused.json()["code"].clone()), (503, json!("no_slot")));
        assert!(refused.header("retry-after").is_some());
        assert_eq!(node.ask("GET", "/v1/instances/e", None, None).0.status, 404, "no row");
        assert_eq!(host(), full, "nothing half-made");
        stop(&mut node, "b");
        let next = create(&mut node, &sleeper("e"));
        assert_eq!(next["slot"]["index"], 1);
        host_becomes(&full);
        for name in ["a", "c", "d", "e"] {
            stop(&mut node, name);
        }
        host_becomes(&nothing);
    });
}

#[test]
fn whoever_dies_the_living_keep_their_slots_and_the_dead_give_them_back() {
    alone(|| {
        let mut node = node("count = 1\n");
        let ready = host();
        for who in [Dead::Worker, Dead::Keeper, Dead::Both] {
            let vm = create(&mut node, &sleeper("vm"));
            slots_become(&mut node, &["0 held vm", "1 ready"]);
            let one = host();
            node.kill(who, || assert_eq!(host(), one, "no rule of a running instance goes"));
            slots_become(&mut node, &["0 held vm", "1 ready"]);
            assert!(reaches_its_gateway(&node.instance("vm")));
            assert_eq!(namespace_of(&vm), fs::metadata(entry_of(&vm)).expect("an entry").ino());
            assert_eq!(host(), one);
            let pid = i32::try_from(vm["identity"]["pid"].as_i64().expect("a number")).expect("a PID");
            let main = Held::in_cgroup(vm["cgroup"]["ino"].as_u64().expect("an id"), pid).expect("ours");
            node.kill(who, || main.signal(9).expect("killed"));
            assert!(is_settled(&node.settled("vm")));
            host_becomes(&ready);
            node.clear();
        }
        // A shutdown that leaves instances to the next start leaves their network too.
        create(&mut node, &sleeper("vm"));
        slots_become(&mut node, &["0 held vm", "1 ready"]);
        let one = host();
        let keeper = node.daemon().keeper().expect("a keeper");
        keeper.signal(15).expect("asked to end");
        keeper.wait_end();
        node.daemon = None;
        assert_eq!(host(), one);
        node.serve();
        slots_become(&mut node, &["0 held vm", "1 ready"]);
        stop(&mut node, "vm");
        host_becomes(&ready);
    });
}

#[test]
fn what_goes_missing_is_put_back_by_the_next_pass() {
    alone(|| {
        let mut node = node("count = 1\n");
        let vm = create(&mut node, &sleeper("vm"));
        slots_become(&mut node, &["0 held vm", "1 ready"]);
        let whole = host();
        let links: Vec<String> =
            node.get("/v1/slots")["items"].as_array().expect("a list").iter().map(|slot| text(slot, "link")).collect();
        let entries: Vec<String> =
            node.get("/v1/slots")["items"].as_array().expect("a list").iter().map(|slot| text(slot, "netns")).collect();
        let damages: [(&str, Vec<(&str, String)>); 4] = [
            ("the rules", vec![("nft", "flush ruleset".to_owned())]),
            ("the links", links.iter().map(|link| ("ip", format!("link del {link}"))).collect()),
            ("the entries", entries.iter().map(|entry| ("ip", format!("netns del {entry}"))).collect()),
            (
                "all",
                vec![
                    ("nft", "flush ruleset".to_owned()),
                    ("ip", format!("link del {}", links[0])),
                    ("ip", format!("netns del {}", entries[0])),
                    ("ip", format!("netns del {}", entries[1])),
                ],
            ),
        ];
        for (what, commands) in damages {
            commands.iter().for_each(|(program, args)| drop(run(program, args)));
            assert_ne!(host(), whole, "{what}");
            reconcile(&mut node);
            assert!(reaches_its_gateway(&vm), "{what}");
            assert_eq!(namespace_of(&vm), fs::metadata(entry_of(&vm)).expect("an entry").ino(), "{what}");
            assert_eq!(slots(&mut node), ["0 held vm", "1 ready"], "{what}");
            host_becomes(&whole);
        }
    });
}

#[test]
fn what_is_foreign_is_skipped_and_never_touched() {
    alone(|| {
        let mut node = node("count = 0\n");
        let vm = create(&mut node, &sleeper("vm"));
        let name = node.get("/v1/slots")["items"][0]["link"].as_str().expect("a link").to_owned();
        stop(&mut node, "vm");
        assert_eq!(vm["slot"]["index"], 0);
        run("ip", &format!("link add {name} type veth peer name other"));
        let foreign = run("ip", &format!("-o link show {name}"));
        let vm = node.ask("POST", "/v1/instances/vm/start?wait=20s", None, Some(&json!({}))).0.expect(200);
        assert_eq!(vm["slot"]["index"], 1, "{vm}");
        assert_eq!(slots(&mut node), ["0 skipped", "1 held vm"]);
        reconcile(&mut node);
        assert_eq!(run("ip", &format!("-o link show {name}")), foreign);
        run("ip", &format!("link del {name}"));
        reconcile(&mut node);
        assert_eq!(slots(&mut node), ["1 held vm"]);
        stop(&mut node, "vm");
    });
}

#[test]
fn a_slot_that_somebody_still_holds_is_quarantined_until_it_is_free() {
    alone(|| {
        let mut node = node("count = 0\n");
        let nothing = host();
        let vm = create(&mut node, &sleeper("vm"));
        let squatter = Squatter::in_slot(&entry_of(&vm));
        let path = "/v1/instances/vm/stop?wait=1s";
        node.ask("POST", path, None, Some(&json!({ "force": true }))).0.expect(202);
        let over = eventually("its slot alone is left", SOON, || {
            let now = node.instance("vm");
            let left = [&now["resources"][0]["kind"], &now["resources"][0]["state"]];
            if now["state"] == "exited" && left == ["slot", "releasing"] { Ok(now) } else { Err(now.to_string()) }
        });
        assert_eq!(over["exit"]["signal"], 9, "{over}");
        slots_become(&mut node, &["0 quarantined vm"]);
        let drain = node.ask("POST", "/v1/nodes/self?wait=1s", None, Some(&json!({ "status": "draining" }))).0;
        assert_eq!(drain.expect(202)["left"][0]["name"], "vm", "it is waited for");
        node.kill(Dead::Worker, || ());
        slots_become(&mut node, &["0 quarantined vm"]);
        let removed = node.ask("DELETE", "/v1/instances/vm?wait=100ms", None, None).0;
        assert_eq!(removed.status, 202, "{}", removed.text());
        drop(squatter);
        node.settled("vm");
        let told = |node: &mut Node, kind: &str| {
            let all = node.ground.client().list("/v1/events").expect("events");
            let is_it = |event: &&Value| event["kind"] == kind && event["data"]["key"] == vm["slot"]["netns"];
            all.iter().filter(is_it).map(|event| text(&event["data"], "kind")).collect::<Vec<String>>()
        };
        assert_eq!(told(&mut node, "resource.release_failed"), ["slot"], "once, however often it was tried");
        assert_eq!(told(&mut node, "resource.released"), ["slot"]);
        eventually("the node is drained", SOON, || {
            let node = node.get("/v1/node");
            if node["drained"] == true { Ok(()) } else { Err(node.to_string()) }
        });
        host_becomes(&nothing);
    });
}

#[test]
fn every_life_has_a_slot_of_its_own() {
    alone(|| {
        let mut node = node("count = 1\n");
        let mut body = with_slot(script("vm", "exit 3"));
        body["restart"] = json!("always");
        let first = create(&mut node, &body);
        eventually("some lives", Duration::from_secs(20), || {
            let now = node.instance("vm");
            let count = now["restarts"]["count"].as_u64().unwrap_or(0);
            if count >= 4 && now["incarnation"] != first["incarnation"] { Ok(()) } else { Err(now.to_string()) }
        });
        stop(&mut node, "vm");
        slots_become(&mut node, &["0 ready"]);
        let failed = node.ask("POST", "/v1/instances", None, Some(&with_slot(spec("no", &["/no/such"])))).0;
        assert_eq!(failed.status, 400);
        slots_become(&mut node, &["0 ready"]);
        let adopt = json!({ "name": "other", "pid": std::process::id(), "start_ticks": 1, "slot": true });
        let refused = node.ask("POST", "/v1/adopt", None, Some(&adopt)).0;
        assert!(refused.status == 400 && refused.text().contains("`slot`"), "{}", refused.text());
    });
}

/// The names of the daemon's tables, sorted.
fn tables() -> Vec<String> {
    let listed: Value = serde_json::from_str(&run("nft", "-j list tables")).expect("JSON");
    let all = listed["nftables"].as_array().expect("a list").iter().filter_map(|one| one["table"]["name"].as_str());
    let mut names: Vec<String> = all.map(str::to_owned).collect();
    names.sort();
    names
}

/// Kills the daemon, whose instances live on, and starts one with another cgroup.
fn change_cgroup(node: &mut Node, meanwhile: impl FnOnce()) {
    node.daemon.take().expect("a daemon runs").kill9_both().expect("both killed");
    meanwhile();
    node.ground.change_cgroup();
    node.serve();
}

#[test]
fn the_table_of_a_former_cgroup_goes_with_the_last_slot_that_was_made_with_it() {
    alone(|| {
        run("ip", "link add up0 type veth peer name outside");
        let nothing = snapshot();
        let mut node = node("count = 1\nuplink = \"up0\"\n");
        let first = tables();
        change_cgroup(&mut node, || ());
        assert_eq!(slots(&mut node), ["0 ready"]);
        let second = tables();
        assert_eq!(second.len(), 1, "{second:?}");
        assert_ne!(first, second);

        let vm = create(&mut node, &sleeper("vm"));
        slots_become(&mut node, &["0 held vm", "1 ready"]);
        change_cgroup(&mut node, || ());
        slots_become(&mut node, &["0 held vm", "1 ready"]);
        assert!(reaches_its_gateway(&vm));
        let both = tables();
        assert!(both.len() == 2 && both.contains(&second[0]), "{both:?}");
        let planned = node.get("/v1/plan");
        assert_eq!(planned["actions"], json!([]), "{planned}");
        node.kill(Dead::Worker, || ());
        assert_eq!(tables(), both);
        stop(&mut node, "vm");
        slots_become(&mut node, &["0 ready"]);
        let third = tables();
        assert!(third.len() == 1 && !third.contains(&second[0]), "{third:?}");
        let drained = node.ask("POST", "/v1/nodes/self?wait=20s", None, Some(&json!({ "status": "draining" }))).0;
        assert_eq!(drained.expect(200)["drained"], true);
        assert_eq!(snapshot(), nothing, "forwarding of the uplink included");
    });
}

#[test]
fn forwarding_lasts_as_long_as_a_table_needs_it() {
    alone(|| {
        run("ip", "link add up0 type veth peer name outside");
        let nothing = snapshot();
        let forwards = || run("ip", "-o -4 netconf show dev up0").contains("forwarding on");
        let mut node = node("count = 0\nuplink = \"up0\"\n");
        create(&mut node, &sleeper("former"));
        assert!(forwards());
        change_cgroup(&mut node, || ());
        create(&mut node, &sleeper("vm"));
        stop(&mut node, "former");
        eventually("the former table is gone", SOON, || match tables() {
            one if one.len() == 1 => Ok(()),
            more => Err(format!("{more:?}")),
        });
        assert!(forwards(), "it was switched on for the former table, and the present one needs it");
        stop(&mut node, "vm");
        eventually("the host is as it was", SOON, || {
            let found = snapshot();
            if found == nothing { Ok(()) } else { Err(format!("{found:?}")) }
        });
    });
}

#[test]
fn forwarding_lasts_until_the_last_daemon_that_needs_it_has_no_slot() {
    alone(|| {
        run("ip", "link add up0 type veth peer name outside");
        let forwards = || run("ip", "-o -4 netconf show dev up0").contains("forwarding on");
        let configured = |subnet: &str| node(&format!("count = 0\nsubnet = \"{subnet}\"\nuplink = \"up0\"\n"));
        let mut nodes = ["10.93.0.0/24", "10.94.0.0/24"].map(configured);
        let nothing = snapshot();
        for (first_to_go, crash) in [(0, false), (1, false), (0, true), (1, true)] {
            nodes.iter_mut().for_each(|node| drop(create(node, &sleeper("vm"))));
            assert!(forwards() && tables().len() == 2);
            if crash {
                nodes.iter_mut().for_each(|node| node.kill(Dead::Both, || ()));
            }
            for (at, left) in [(first_to_go, 1), (1 - first_to_go, 0)] {
                nodes[at].clear();
                eventually("its table is gone", SOON, || match tables() {
                    tables if tables.len() == left => Ok(()),
                    more => Err(format!("{more:?}")),
                });
                if left == 1 {
                    assert!(forwards(), "the other needs it ({at})");
                }
            }
            eventually("the host is as it was", SOON, || {
                let found = snapshot();
                if found == nothing { Ok(()) } else { Err(format!("{found:?}")) }
            });
        }
    });
}

#[test]
fn the_table_of_a_former_cgroup_is_let_alone_where_somebody_else_uses_it() {
    alone(|| {
        let mut node = node("count = 1\n");
        let first = tables().remove(0);
        let element = format!("add element inet {first} slots {{ \"stranger\" . 192.0.2.1 }}");
        change_cgroup(&mut node, || drop(run("nft", &element)));
        assert_eq!(slots(&mut node), ["0 ready"]);
        assert!(tables().len() == 2 && tables().contains(&first), "{:?}", tables());
        assert!(run("nft", &format!("list table inet {first}")).contains("stranger"));
        let drained = node.ask("POST", "/v1/nodes/self?wait=20s", None, Some(&json!({ "status": "draining" }))).0;
        assert_eq!(drained.expect(200)["drained"], true);
        assert_eq!(tables(), [first]);
    });
}

/// Begun at once where each is a process of this test's own.
const FEW: usize = 8;
/// Begun at once where those that end together share what the kernel takes to clear them away.
const MANY: usize = 128;

/// How many slots at once: `SEXTON_TEST_SLOTS`, or what is made and used in some seconds.
fn how_many() -> usize {
    std::env::var("SEXTON_TEST_SLOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// Does `work` for each of `all`, `at_once` at a time, and prints how long that took.
fn for_all<T: Sync>(what: &str, at_once: usize, all: &[T], work: impl Fn(&T) + Sync) {
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for first in 0..at_once {
            let work = &work;
            scope.spawn(move || all.iter().skip(first).step_by(at_once).for_each(work));
        }
    });
    println!("{} {what}: {:?}", all.len(), began.elapsed());
}

#[test]
fn as_many_as_a_host_has_reach_each_others_gateways_and_leave_nothing() {
    alone(|| {
        let (count, nothing) = (how_many(), host());
        let began = std::time::Instant::now();
        let node = node(&format!("count = {count}\n"));
        println!("{count} made before the node is ready: {:?}", began.elapsed());
        let client = node.ground.client();
        let name = |number: &usize| format!("vm-{number}");
        let numbers: Vec<usize> = (0..count).collect();
        for_all("started", FEW, &numbers, |number| {
            let body = sleeper(&name(number));
            client.ask("POST", "/v1/instances", &[], Some(&body)).expect("answered").expect(201);
        });
        let instances = client.list("/v1/instances").expect("a list");
        let entries: BTreeSet<u64> =
            instances.iter().map(|vm| fs::metadata(entry_of(vm)).expect("an entry").ino()).collect();
        assert_eq!((instances.len(), entries.len()), (count, count), "a namespace each");

        let listener = TcpListener::bind(("0.0.0.0", 0)).expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let gateways: Vec<String> = instances.iter().map(|vm| text(&vm["slot"], "gateway")).collect();
        let pairs: Vec<(&Value, [&String; 2])> = instances
            .iter()
            .zip(&gateways)
            .zip(gateways.iter().cycle().skip(1))
            .map(|((vm, own), next)| (vm, [own, next]))
            .collect();
        let came = std::thread::spawn(move || {
            let peer = |_| listener.accept().expect("somebody came").1.ip().to_string();
            (0..2 * count).map(peer).collect::<Vec<String>>()
        });
        for_all("came through to two gateways", FEW, &pairs, |(vm, gateways)| {
            assert_eq!(namespace_of(vm), fs::metadata(entry_of(vm)).expect("an entry").ino());
            let [own, next] = gateways;
            let script = format!("exec 3<>/dev/tcp/{own}/{port} 4<>/dev/tcp/{next}/{port}");
            let pid = vm["identity"]["pid"].to_string();
            let mut inside = Command::new("nsenter");
            inside.args(["-t", &pid, "-n", "timeout", "20", "bash", "-c", &script]);
            assert!(inside.status().expect("nsenter runs").success(), "{vm} to {own} and {next}");
        });
        let mut came = came.join().expect("all came");
        let mut wanted: Vec<String> =
            instances.iter().flat_map(|vm| [text(&vm["slot"], "address"), text(&vm["slot"], "address")]).collect();
        came.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(came, wanted, "each from its own address, twice");

        for_all("stopped and given back", MANY, &numbers, |number| {
            let path = format!("/v1/instances/{}/stop?wait=120s", name(number));
            let over = client.ask("POST", &path, &[], Some(&json!({ "force": true }))).expect("answered").expect(200);
            assert!(is_settled(&over) && over["slot"].is_null(), "{over}");
        });
        let drain = json!({ "status": "draining" });
        let drained = client.ask("POST", "/v1/nodes/self?wait=120s", &[], Some(&drain)).expect("answered");
        assert_eq!(drained.expect(200)["drained"], true);
        assert_eq!(host(), nothing);
    });
}
