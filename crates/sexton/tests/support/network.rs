//! A network that nobody else uses, and what it looks like: `ip`, `nft` and the kernel's own files are the witnesses.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]
#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;
use sexton_testkit::{SOON, eventually, skip};

/// Runs a test in namespaces of its own, with an empty `/run`, where nothing of the host's network can come to harm.
/// What it leaves ends with its thread.
pub fn alone(test: impl FnOnce() + Send) {
    for program in ["ip", "nft"] {
        if !sexton_testkit::skip::has_program(program) {
            match program {
                "ip" => skip!(package "iproute2"),
                _ => skip!(package "nftables"),
            }
        }
    }
    if let Err(why) = sexton_testkit::alone(|| {
        run("ip", "link set lo up");
        // Links get no address of the kernel's own, which would come some time later; without IPv6 there is none.
        let _none = fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1");
        test();
    }) {
        skip!("{why}");
    }
}

/// Runs a command; whether it succeeded, and what it printed.
pub fn tried(program: &str, args: &str) -> (bool, String) {
    let done = Command::new(program).args(args.split(' ')).output().expect("the program runs");
    let text = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Runs a command that succeeds, and gives what it printed.
pub fn run(program: &str, args: &str) -> String {
    let (is_done, text) = tried(program, args);
    assert!(is_done, "{program} {args}: {text}");
    text
}

/// Makes the link `up0` of a host, 192.0.2.1, and behind it the namespace `outside`, 192.0.2.2.
pub fn make_uplink() {
    let ip = |args| run("ip", args);
    ip("netns add outside");
    ip("link add up0 type veth peer name eth0 netns outside");
    ip("addr add 192.0.2.1/24 dev up0");
    // Without an address of the kernel's own, which would be tentative for a while, and then not.
    ip("link set up0 addrgenmode none");
    ip("link set up0 up");
    ip("-n outside addr add 192.0.2.2/24 dev eth0");
    ip("-n outside link set eth0 up");
    // RACE: the kernel says some time later that a link has a carrier.
    eventually("the uplink has its carrier", SOON, || {
        let link = ip("-o link show up0");
        if link.contains("state UP") { Ok(()) } else { Err(link) }
    });
}

/// Everything of the network, to the last number: equal where nothing was touched, or everything is gone that was made.
pub fn snapshot() -> Vec<String> {
    vec![
        links("-j -d link"),
        links("-j addr"),
        run("ip", "-j route show table all"),
        run("nft", "-j list ruleset"),
        format!("{:?}", entries()),
        run("ip", "-o -4 netconf show"),
    ]
}

/// What `ip` says of every link, without what the kernel says some time later: that there is a carrier.
fn links(args: &str) -> String {
    let mut links: Vec<Value> = serde_json::from_str(&run("ip", args)).expect("JSON");
    for link in links.iter_mut().filter_map(Value::as_object_mut) {
        link.remove("operstate");
        link.get_mut("flags").and_then(Value::as_array_mut).expect("flags").retain(|flag| flag != "NO-CARRIER");
    }
    Value::from(links).to_string()
}

/// Everything of the network, as text that is equal where it looks the same, though it was made anew.
pub fn host() -> String {
    // The kernel numbers links in the order of their making, counts what they carry, and says some time later that a
    // link has a carrier.
    let links: Vec<Value> = serde_json::from_str(&run("ip", "-j -d link show")).expect("JSON");
    let shown = links.into_iter().map(|link| {
        let keys = ["ifname", "address", "mtu", "group", "link_netnsid"];
        keys.map(|key| format!("{key}={}", link[key])).join(" ")
    });
    let links: BTreeSet<String> = shown.collect();
    let addresses = run("ip", "-4 -o addr show")
        .lines()
        .map(|line| line.split_once(' ').expect("numbered").1.to_owned())
        .collect::<BTreeSet<String>>();
    let routes = run("ip", "-4 route show table all").replace(" linkdown", "");
    let rules = run("nft", "list ruleset");
    let forwarding = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("readable");
    format!("{links:#?}\n{addresses:#?}\n{routes}\n{rules}\n{forwarding}\n{:?}", entries())
}

/// What is below `/run/netns`; nothing where that is missing.
fn entries() -> BTreeSet<String> {
    let files = fs::read_dir("/run/netns").map(|files| files.map(|file| file.expect("a file").file_name()));
    files.into_iter().flatten().map(|name| name.to_string_lossy().into_owned()).collect()
}
