//! What a pass does about network slots is shown by `plan` before, done by `apply` exactly, and nothing at rest.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/network.rs"]
mod network;
#[path = "support/slots.rs"]
mod place;
mod support;

use std::path::Path;

use network::{alone, host, run};
use place::{
    Squatter, create, entry_of, host_becomes, namespace_of, node, reaches_its_gateway, reconcile, sleeper, slots,
    slots_become, stop,
};
use serde_json::{Value, json};
use support::{Node, text};

fn plan(node: &mut Node) -> Value {
    node.get("/v1/plan")
}

/// The status of the answer to `POST /v1/apply`.
fn apply(node: &mut Node, plan: &Value) -> u16 {
    node.ask("POST", "/v1/apply", None, Some(plan)).0.status
}

/// Every action as `ACTION INDEX`.
fn actions(plan: &Value) -> Vec<String> {
    let word = |action: &Value| format!("{} {}", text(action, "action"), action["index"]);
    plan["actions"].as_array().expect("a list").iter().map(word).collect()
}

/// Everything that is let alone, as `WHAT: REASON`.
fn left(plan: &Value) -> Vec<String> {
    let word = |left: &Value| format!("{}: {}", text(left, "what"), text(left, "reason"));
    plan["left"].as_array().expect("a list").iter().map(word).collect()
}

/// The number of the link that was made last; the kernel counts up.
fn last_link() -> u64 {
    let links: Value = serde_json::from_str(&run("ip", "-j link show")).expect("JSON");
    let numbers = links.as_array().expect("a list").iter().filter_map(|link| link["ifindex"].as_u64());
    numbers.max().expect("the loopback")
}

/// The names of a slot: of its link, and of its entry.
fn names(node: &mut Node, at: usize) -> [String; 2] {
    let slots = node.get("/v1/slots");
    ["link", "netns"].map(|key| text(&slots["items"][at], key))
}

#[test]
fn a_damaged_slot_is_planned_for_and_put_right_when_the_plan_is_applied() {
    alone(|| {
        let mut node = node("count = 1\n");
        let vm = create(&mut node, &sleeper("vm"));
        slots_become(&mut node, &["0 held vm", "1 ready"]);
        let (whole, last) = (host(), last_link());
        let rest = plan(&mut node);
        assert_eq!((actions(&rest), left(&rest)), (vec![], vec![]));
        assert_eq!(apply(&mut node, &rest), 200, "nothing is easily done");
        assert_eq!(host(), whole);

        let [link, _] = names(&mut node, 0);
        run("ip", &format!("link del {link}"));
        run("nft", "flush ruleset");
        let hurt = host();
        let told = plan(&mut node);
        assert_eq!(actions(&told), ["repair_slot 0", "release_slot 1", "make_slot 1"], "{told}");
        let repair = &told["actions"][0];
        assert_eq!((&repair["instance"], &repair["incarnation"]), (&json!("vm"), &vm["incarnation"]));
        assert_eq!(repair["ns_ino"], namespace_of(&vm));
        assert_eq!(repair["reason"], "it is in use, and its link, address, rule is missing");
        let mut forged = told.clone();
        forged["actions"][0]["ns_ino"] = json!(1);
        assert_eq!(apply(&mut node, &forged), 409, "of another namespace");
        assert_eq!(host(), hurt, "neither a plan nor what is refused changes anything");

        assert_eq!(apply(&mut node, &told), 200);
        assert!(reaches_its_gateway(&vm));
        assert_eq!(slots(&mut node), ["0 held vm", "1 ready"]);
        host_becomes(&whole);
        // REGRESSION: what was replaced was made twice, and was in no row in between.
        assert_eq!(last_link(), last + 2, "each was made once");
        assert_eq!(actions(&plan(&mut node)), [""; 0]);
        assert_eq!(apply(&mut node, &told), 409, "it is done");
    });
}

#[test]
fn forwarding_that_somebody_switched_off_is_planned_for_and_restored() {
    alone(|| {
        run("ip", "link add up0 type veth peer name outside");
        let mut node = node("count = 0\nuplink = \"up0\"\n");
        let vm = create(&mut node, &sleeper("vm"));
        let forwarding = "/proc/sys/net/ipv4/conf/up0/forwarding";
        let forwards = || run("ip", "-o -4 netconf show dev up0").contains("forwarding on");
        let (whole, switch_off) = (host(), || std::fs::write(forwarding, "0").expect("switched off"));
        assert!(forwards());
        switch_off();
        let told = plan(&mut node);
        assert_eq!(actions(&told), ["repair_slot 0"], "{told}");
        assert_eq!(told["actions"][0]["reason"], "it is in use, and its uplink's forwarding is missing");
        assert!(!forwards());
        assert_eq!(apply(&mut node, &told), 200);
        assert!(forwards() && reaches_its_gateway(&vm));
        switch_off();
        reconcile(&mut node);
        assert!(forwards());
        host_becomes(&whole);
        assert_eq!(actions(&plan(&mut node)), [""; 0]);
        stop(&mut node, "vm");
        slots_become(&mut node, &[]);
        assert!(!forwards(), "as it was");
        // One that is not there cannot be mended.
        create(&mut node, &sleeper("other"));
        run("ip", "link del up0");
        assert_eq!(actions(&plan(&mut node)), [""; 0]);
    });
}

#[test]
fn exactly_what_is_applied_is_done() {
    alone(|| {
        let mut node = node("count = 1\n");
        let [first, second] = ["a", "b"].map(|name| create(&mut node, &sleeper(name)));
        slots_become(&mut node, &["0 held a", "1 held b", "2 ready"]);
        let links = [0, 1, 2].map(|at| names(&mut node, at)[0].clone());
        links.iter().for_each(|link| drop(run("ip", &format!("link del {link}"))));
        let mut told = plan(&mut node);
        assert_eq!(actions(&told), ["repair_slot 0", "repair_slot 1", "release_slot 2", "make_slot 2"]);
        let whole_plan = told.clone();
        told["actions"].as_array_mut().expect("a list").truncate(1);
        assert_eq!(apply(&mut node, &told), 200);
        assert!(reaches_its_gateway(&first) && !reaches_its_gateway(&second));
        assert_eq!(actions(&plan(&mut node)), ["repair_slot 1", "release_slot 2", "make_slot 2"]);
        stop(&mut node, "b");
        slots_become(&mut node, &["0 held a", "1 ready"]);
        let before = host();
        assert_eq!(apply(&mut node, &whole_plan), 409, "one is repaired, and one given back");
        assert_eq!(host(), before, "refused whole");
        reconcile(&mut node);
        assert_eq!(actions(&plan(&mut node)), [""; 0]);
        assert_eq!(slots(&mut node), ["0 held a", "1 ready"]);
    });
}

#[test]
fn what_is_foreign_is_told_of_and_let_alone_whoever_has_its_slot() {
    alone(|| {
        let mut node = node("count = 1\n");
        let vm = create(&mut node, &sleeper("vm"));
        slots_become(&mut node, &["0 held vm", "1 ready"]);
        let links = [0, 1].map(|at| names(&mut node, at)[0].clone());
        for link in &links {
            run("ip", &format!("link del {link}"));
            run("ip", &format!("link add {link} type bridge"));
        }
        let foreign = links.clone().map(|link| run("ip", &format!("-o link show {link}")));
        let told = plan(&mut node);
        assert_eq!(actions(&told), ["release_slot 1", "make_slot 2"], "{told}");
        let is_told = |all: &[String], link: &str| all.iter().any(|left| left.contains(&format!("`{link}` was made")));
        assert!(is_told(&left(&told), &links[0]), "{told}");
        assert!(text(&told["actions"][0], "reason").contains("foreign"), "{told}");
        reconcile(&mut node);
        assert_eq!(slots(&mut node), ["0 held vm", "1 skipped", "2 ready"]);
        let told = plan(&mut node);
        assert_eq!(actions(&told), [""; 0], "{told}");
        assert!(links.iter().all(|link| is_told(&left(&told), link)), "{told}");
        assert_eq!(links.clone().map(|link| run("ip", &format!("-o link show {link}"))), foreign);

        links.iter().for_each(|link| drop(run("ip", &format!("link del {link}"))));
        let told = plan(&mut node);
        assert_eq!(actions(&told), ["repair_slot 0", "release_slot 2", "make_slot 1"], "{told}");
        assert_eq!(apply(&mut node, &told), 200);
        assert!(reaches_its_gateway(&vm));
        assert_eq!(slots(&mut node), ["0 held vm", "1 ready"]);
    });
}

#[test]
fn what_somebody_holds_is_at_rest_until_it_is_free() {
    alone(|| {
        let mut node = node("count = 1\n");
        let [link, netns] = names(&mut node, 0);
        let ready = host();
        let squatter = Squatter::in_slot(&Path::new("/run/netns").join(netns));
        run("ip", &format!("link del {link}"));
        assert_eq!(actions(&plan(&mut node)), ["release_slot 0", "make_slot 0"]);
        reconcile(&mut node);
        assert_eq!(slots(&mut node), ["0 quarantined", "1 ready"]);
        let (told, seq) = (plan(&mut node), node.get("/v1/ledger")["last_seq"].clone());
        assert_eq!(actions(&told), [""; 0], "{told}");
        assert!(left(&told).iter().any(|left| left.contains("somebody holds its network namespace")), "{told}");
        let before = host();
        reconcile(&mut node);
        assert_eq!((host(), &node.get("/v1/ledger")["last_seq"]), (before, &seq), "a pass leaves it alone, too");
        drop(squatter);
        let told = plan(&mut node);
        assert_eq!(actions(&told), ["release_slot 0", "release_slot 1", "make_slot 0"], "{told}");
        assert_eq!(apply(&mut node, &told), 200);
        assert_eq!(slots(&mut node), ["0 ready"]);
        host_becomes(&ready);
    });
}

#[test]
fn what_could_not_be_made_is_planned_again_and_says_why() {
    alone(|| {
        let mut node = node("count = 1\nuplink = \"up0\"\n");
        assert_eq!(slots(&mut node), [""; 0], "there is no such link");
        let told = plan(&mut node);
        assert_eq!(actions(&told), ["make_slot 0"], "{told}");
        assert!(left(&told).iter().any(|left| left.contains("up0")), "{told}");
        assert_eq!(apply(&mut node, &told), 409, "tried, and refused");
        run("ip", "link add up0 type veth peer name outside");
        assert_eq!(apply(&mut node, &told), 200);
        assert_eq!(slots(&mut node), ["0 ready"]);
        let vm = create(&mut node, &sleeper("vm"));
        assert!(entry_of(&vm).exists());
        slots_become(&mut node, &["0 held vm", "1 ready"]);
        assert_eq!(actions(&plan(&mut node)), [""; 0]);
    });
}
