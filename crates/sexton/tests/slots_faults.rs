//! Network slots and a host that is against them: strangers who take names and addresses or hold what is to end, rules
//! that were edited by hand, a full disk, a worker that is stopped in the middle.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/failing.rs"]
mod failing;
#[path = "support/network.rs"]
mod network;
#[path = "support/slots.rs"]
mod place;
mod support;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use disk::{SmallDisk, exhaust};
use failing::Failing;
use network::{alone, host, make_uplink, run, snapshot};
use place::{
    Squatter, create, host_becomes, node, reaches_its_gateway, reconcile, sleeper, slots, slots_become, stop, with_slot,
};
use serde_json::{Value, json};
use sexton_testkit::{Held, SOON, eventually};
use support::{Dead, Node, SEXTON, SIGCONT, SIGSTOP, is_settled, script, text};

/// Drains the node, waits a moment, and tells what it then shows.
fn drain(node: &mut Node, wait: &str) -> Value {
    let path = format!("/v1/nodes/self?wait={wait}");
    node.ask("POST", &path, None, Some(&json!({ "status": "draining" }))).0.json()
}

#[test]
fn an_unused_slot_that_a_stranger_holds_is_named_by_a_drain() {
    alone(|| {
        let nothing = snapshot();
        let mut node = node("count = 1\n");
        let name = text(&node.get("/v1/slots")["items"][0], "netns");
        let squatter = Squatter::in_slot(&Path::new("/run/netns").join(&name));
        let shown = drain(&mut node, "1s");
        let left = &shown["left"][0];
        assert_eq!((&shown["drained"], text(left, "name")), (&json!(false), name.clone()), "{shown}");
        assert!(text(left, "error").contains("somebody holds"), "{shown}");
        node.kill(Dead::Worker, || ());
        eventually("the next worker names it too", SOON, || {
            let shown = node.get("/v1/node");
            if shown["left"][0]["name"] == name.as_str() { Ok(()) } else { Err(shown.to_string()) }
        });
        drop(squatter);
        let shown = drain(&mut node, "20s");
        assert_eq!((&shown["drained"], &shown["left"]), (&json!(true), &json!([])));
        assert_eq!(snapshot(), nothing);
    });
}

#[test]
fn names_and_addresses_that_somebody_else_took_are_passed_by() {
    alone(|| {
        run("ip", "link add other type veth peer name rehto");
        let mut node = node("count = 0\n");
        for name in ["a", "b", "c", "d", "e"] {
            create(&mut node, &sleeper(name));
        }
        let shown = node.get("/v1/slots");
        let of = |index: usize, key: &str| text(&shown["items"][index], key);
        let (links, entries): (Vec<_>, Vec<_>) = (0..5).map(|at| (of(at, "link"), of(at, "netns"))).unzip();
        let gateway: Ipv4Addr = of(3, "gateway").parse().expect("an address");
        for name in ["a", "b", "c", "d", "e"] {
            stop(&mut node, name);
        }
        run("ip", &format!("link add {} type bridge", links[0]));
        fs::create_dir_all("/run/netns").expect("made");
        fs::write(Path::new("/run/netns").join(&entries[1]), "mine\n").expect("written");
        run("ip", &format!("netns add {}", entries[2]));
        run("ip", &format!("addr add {}/24 dev other", Ipv4Addr::from_bits(gateway.to_bits() + 1)));
        let planted = snapshot();
        let vm = node.ask("POST", "/v1/instances/a/start?wait=20s", None, Some(&json!({}))).0.expect(200);
        assert_eq!(vm["slot"]["index"], 4, "{vm}");
        assert!(reaches_its_gateway(&vm));
        node.kill(Dead::Both, || ());
        reconcile(&mut node);
        stop(&mut node, "a");
        assert_eq!(drain(&mut node, "20s")["drained"], true);
        assert_eq!(snapshot(), planted, "nothing of theirs was touched, and nothing of ours is left");
        assert_eq!(fs::read_to_string(Path::new("/run/netns").join(&entries[1])).expect("theirs"), "mine\n");
    });
}

#[test]
fn a_table_that_was_edited_by_hand_is_put_right() {
    alone(|| {
        let mut node = node("count = 1\n");
        let vm = create(&mut node, &sleeper("vm"));
        slots_become(&mut node, &["0 held vm", "1 ready"]);
        let (whole, listed) = (host(), run("nft", "-j list tables"));
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        let table = format!("inet {}", text(&listed["nftables"][1]["table"], "name"));
        let edits = [
            format!("insert rule {table} prerouting accept"),
            format!("add rule {table} forward accept comment \"mine\""),
            format!("flush chain {table} forward"),
            format!("chain {table} prerouting {{ policy drop ; }}"),
            format!("add table {table} {{ flags dormant ; }}"),
            format!("delete chain {table} forward"),
            format!("delete table {table}"),
        ];
        for edit in edits {
            run("nft", &edit);
            assert_ne!(host(), whole, "{edit}");
            reconcile(&mut node);
            assert!(reaches_its_gateway(&vm), "{edit}");
            host_becomes(&whole);
        }
        stop(&mut node, "vm");
    });
}

#[test]
fn who_lives_in_a_slot_of_a_lost_ledger_keeps_it() {
    alone(|| {
        let mut node = node("count = 1\n");
        let lost = create(&mut node, &sleeper("lost"));
        slots_become(&mut node, &["0 held lost", "1 ready"]);
        let state_dir = node.ground.state_dir();
        node.kill(Dead::Both, || fs::remove_dir_all(state_dir).expect("removed"));
        // REGRESSION: its network was taken down, for it was thought to be left of an earlier attempt.
        slots_become(&mut node, &["0 skipped", "1 ready"]);
        let vm = create(&mut node, &sleeper("vm"));
        for _ in 0..2 {
            slots_become(&mut node, &["0 skipped", "1 held vm", "2 ready"]);
            assert!(reaches_its_gateway(&lost) && reaches_its_gateway(&vm));
            let told = node.get("/v1/plan");
            assert_eq!(told["actions"], json!([]), "{told}");
            assert!(told["left"].to_string().contains("lives in"), "{told}");
            reconcile(&mut node);
        }
        let pid = i32::try_from(lost["identity"]["pid"].as_i64().expect("a number")).expect("fits");
        let cgroup = lost["cgroup"]["ino"].as_u64().expect("a number");
        Held::in_cgroup(cgroup, pid).expect("it lives").kill9().expect("ended");
        reconcile(&mut node);
        slots_become(&mut node, &["0 ready", "1 held vm"]);
    });
}

#[test]
fn a_full_disk_keeps_no_network_and_makes_none() {
    alone(|| {
        let nothing = snapshot();
        let mut disk = None;
        let mut node = Node::on(SEXTON, |ground| disk = Some(SmallDisk::mount(ground)));
        let disk = disk.expect("a disk");
        create(&mut node, &sleeper("vm"));
        disk.fill();
        exhaust(&mut node);
        let before = host();
        let refused = node.ask("POST", "/v1/instances", None, Some(&sleeper("more"))).0;
        assert_eq!(refused.expect(503)["code"], "ledger_unwritable");
        host_becomes(&before);
        let over = node.ask("POST", "/v1/instances/vm/stop?wait=20s", None, Some(&json!({ "force": true }))).0;
        assert!(is_settled(&over.expect(200)), "a stop goes on");
        eventually("the network is given back", SOON, || {
            let names: Vec<_> = fs::read_dir("/run/netns").into_iter().flatten().flatten().collect();
            if names.is_empty() { Ok(()) } else { Err(format!("{names:?}")) }
        });
        node.kill(Dead::Both, || disk.clear());
        node.clear();
        assert_eq!(drain(&mut node, "20s")["drained"], true);
        assert_eq!(snapshot(), nothing);
    });
}

#[test]
fn a_slot_that_cannot_be_entered_for_a_moment_is_to_be_asked_for_again() {
    if !sexton_testkit::skip::has_program("strace") {
        sexton_testkit::skip!(package "strace");
    }
    alone(|| {
        let mut node = node("count = 1\n");
        slots_become(&mut node, &["0 ready"]);
        let mut ready = fs::read_dir("/run/netns").expect("slots").flatten().map(|entry| entry.path());
        let worker = node.daemon().worker_pid().expect("a worker");
        let failing = Failing::of(worker, "openat", &ready.next().expect("a slot"), "EMFILE", "1");
        let answer = node.ask("POST", "/v1/instances", None, Some(&sleeper("vm"))).0;
        drop(failing);
        // REGRESSION: 400, as if the program could not be run.
        assert_eq!(answer.expect(503)["code"], "no_slot");
        eventually("its name is free", SOON, || {
            let left = node.instances();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        create(&mut node, &sleeper("vm"));
        node.clear();
    });
}

#[test]
fn a_worker_that_is_stopped_in_the_middle_of_a_release_goes_on_with_it() {
    alone(|| {
        let mut node = node("count = 0\n");
        let nothing = snapshot();
        for round in 0..8_u32 {
            create(&mut node, &sleeper("vm"));
            let worker = node.daemon().worker().expect("a worker");
            let client = node.ground.client();
            std::thread::scope(|scope| {
                let stopping = scope.spawn(move || {
                    let path = "/v1/instances/vm/stop?wait=20s";
                    client.ask("POST", path, &[], Some(&json!({ "force": true }))).expect("an answer").expect(200)
                });
                // Another moment of it each round.
                let began = std::time::Instant::now();
                while began.elapsed() < std::time::Duration::from_millis(u64::from(round) * 3) {
                    std::thread::yield_now();
                }
                worker.signal(SIGSTOP).expect("stopped");
                worker.signal(SIGCONT).expect("continued");
                assert!(is_settled(&stopping.join().expect("an answer")));
            });
            node.ask("DELETE", "/v1/instances/vm?wait=20s", None, None).0.expect(200);
            eventually("nothing is left", SOON, || {
                let found = snapshot();
                if found == nothing { Ok(()) } else { Err(format!("{found:?}")) }
            });
        }
    });
}

/// Opens the TAP of a slot, as whoever runs a virtual machine in it does.
fn opens_tap(entry: &Path) {
    let namespace = fs::File::open(entry).expect("opened");
    let opened = std::thread::spawn(move || {
        sexton_sys::net::enter(std::os::fd::AsRawFd::as_raw_fd(&namespace)).expect("entered");
        sexton_sys::net::make_tap(c"tap0")
    });
    opened.join().expect("no panic").expect("nobody has it");
}

#[test]
fn a_slot_has_its_tap_and_reaches_the_world_through_the_uplink() {
    alone(|| {
        make_uplink();
        let nothing = snapshot();
        let mut node = node("count = 1\ntap = true\nuplink = \"up0\"\n");
        let rules = run("nft", "list ruleset");
        assert!(rules.contains("oifname \"up0\" masquerade"), "{rules}");
        let body = "until bash -c 'exec 3<>/dev/tcp/192.0.2.2/4711'; do sleep 0.01; done; exit 6";
        let outside = std::thread::spawn(|| {
            let namespace = fs::File::open("/run/netns/outside").expect("opened");
            sexton_sys::net::enter(std::os::fd::AsRawFd::as_raw_fd(&namespace)).expect("entered");
            let listener = TcpListener::bind("192.0.2.2:4711").expect("bound");
            listener.set_nonblocking(true).expect("set");
            let who = || listener.accept().map(|(_, from)| from.ip().to_string()).map_err(|error| error.to_string());
            eventually("somebody comes", SOON, who)
        });
        let vm = create(&mut node, &with_slot(script("vm", body)));
        assert_eq!(outside.join().expect("heard"), "192.0.2.1", "it appears as its host");
        assert_eq!(node.settled("vm")["exit"]["code"], 6);
        assert_eq!(vm["slot"]["tap"], "tap0");
        let vm = create(&mut node, &sleeper("other"));
        let (slot, inside) = (&vm["slot"], format!("-n {}", text(&vm["slot"], "netns")));
        let addresses = run("ip", &format!("{inside} -4 -o addr show dev eth0"));
        assert!(addresses.contains(&format!("inet {}/30", text(slot, "address"))), "{addresses}");
        let gateway = run("ip", &format!("-4 -o addr show dev {}", text(&node.get("/v1/slots")["items"][0], "link")));
        assert!(gateway.contains(&format!("inet {}/30", text(slot, "gateway"))), "{gateway}");
        let tap = run("ip", &format!("{inside} -o link show dev tap0"));
        assert!(tap.contains("UP"), "{tap}");
        opens_tap(&Path::new("/run/netns").join(text(slot, "netns")));
        assert_eq!(run("ip", &format!("{inside} -o link show dev tap0")), tap, "it is the one that was there");
        node.kill(Dead::Both, || ());
        assert!(reaches_its_gateway(&node.instance("other")));
        node.clear();
        slots_become(&mut node, &["0 ready"]);
        node.kill(Dead::Worker, || ());
        assert_eq!(drain(&mut node, "20s")["drained"], true);
        assert_eq!((slots(&mut node), snapshot()), (vec![], nothing), "forwarding of the uplink included");
    });
}
