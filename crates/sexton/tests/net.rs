//! Network slots on the real kernel, each test in a network and a mount namespace of its own; `ip` and `nft` are the
//! witnesses.

#[path = "support/network.rs"]
mod network;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use network::{alone, make_uplink, run, snapshot, tried};
use sexton::config::Slots;
use sexton::net::{Made, Net, NetError, Released, Scheme, Slot, open_netns};
use sexton_plan::slot::{Part, Seen};
use sexton_testkit::eventually;

/// How long what must not arrive is waited for.
const NEVER: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(10);

fn scheme(cgroup: &str, uplink: &str, tap: bool) -> Scheme {
    let uplink = uplink.parse().expect("a name");
    Scheme::new(cgroup, &Slots { uplink, tap, ..Slots::default() })
}

fn slots(scheme: &Scheme, count: u32) -> Vec<Slot> {
    (0..count).map(|index| scheme.slot(index).expect("fits")).collect()
}

fn ip(args: &str) -> String {
    run("ip", args)
}

fn nft(args: &str) -> String {
    run("nft", args)
}

/// Runs `work` inside the slot's namespace.
fn inside<T: Send>(slot: &Slot, work: impl FnOnce() -> T + Send) -> T {
    let namespace = open_netns(slot).expect("a namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            sexton_sys::net::enter(namespace.as_raw_fd()).expect("entered");
            work()
        });
        thread.join().expect("no panic")
    })
}

/// Who the host sees when the slot calls `address`.
fn call(slot: &Slot, address: Ipv4Addr) -> Ipv4Addr {
    let listener = TcpListener::bind((address, 0)).expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let target = SocketAddr::from((address, port));
    inside(slot, || drop(TcpStream::connect_timeout(&target, SOON).expect("reached")));
    match listener.accept().expect("accepted").1 {
        SocketAddr::V4(peer) => *peer.ip(),
        SocketAddr::V6(peer) => panic!("{peer}"),
    }
}

fn all_ok<T>(results: Vec<Result<T, NetError>>) -> Vec<T> {
    results.into_iter().map(|result| result.expect("done")).collect()
}

fn seen(net: &mut Net, slot: &Slot) -> Seen {
    net.observe(std::slice::from_ref(slot)).expect("looked").remove(0)
}

fn make(net: &mut Net, slot: &Slot) -> Result<Made, NetError> {
    net.make(std::slice::from_ref(slot)).remove(0)
}

fn release(net: &mut Net, slot: &Slot) -> Result<Released, NetError> {
    net.release(std::slice::from_ref(slot)).remove(0)
}

/// A process in a slot's namespace, ended with this.
struct Tenant(Child);

impl Tenant {
    fn of(slot: &Slot) -> Tenant {
        let namespace = open_netns(slot).expect("a namespace");
        let ino = fs::File::from(namespace).metadata().expect("seen").ino();
        let args = ["netns", "exec", &slot.netns, "sleep", "1000"];
        let child = Command::new("ip").args(args).stdout(Stdio::null()).spawn().expect("runs");
        let tenant = Tenant(child);
        eventually("the tenant is inside", SOON, || {
            let found = fs::metadata(tenant.namespace()).map_err(|error| error.to_string())?.ino();
            if found == ino { Ok(()) } else { Err(format!("{found}, not {ino}")) }
        });
        tenant
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.0.kill().expect("signalled");
        self.0.wait().expect("ended");
    }
}

#[test]
fn a_slot_reaches_its_gateway_and_leaves_nothing() {
    alone(|| {
        let before = snapshot();
        let scheme = scheme("sexton", "", true);
        let slots = slots(&scheme, 3);
        let mut net = Net::open(scheme);
        assert_eq!(snapshot(), before, "opening makes nothing");
        assert_eq!(net.observe(&slots).expect("looked"), [Seen::Absent, Seen::Absent, Seen::Absent]);
        let made = all_ok(net.make(&slots));
        assert_eq!(net.observe(&slots).expect("looked"), [Seen::Whole, Seen::Whole, Seen::Whole]);
        for (slot, made) in slots.iter().zip(made) {
            assert_eq!(call(slot, slot.gateway), slot.address);
            assert_eq!(inside(slot, || fs::metadata("/proc/thread-self/ns/net").expect("seen").ino()), made.ns_ino);
            assert!(ip(&format!("-n {} link show tap0", slot.netns)).contains("tap0"), "and has its TAP");
        }
        assert!(ip("netns list").contains("sexton-2"));
        assert!(nft("list table inet sexton").contains("\"sexton-1\" . 10.231.0.6 comment \"slot 1\""));
        assert_eq!(all_ok(net.release(&slots)), [Released::Now; 3]);
        assert_eq!(net.observe(&slots).expect("looked"), [Seen::Absent, Seen::Absent, Seen::Absent]);
        assert_eq!(all_ok(net.release(&slots)), [Released::WasGone; 3]);
        assert_eq!(net.dismantle(slots[0].table()), Ok(Released::Now));
        assert_eq!(net.dismantle(slots[0].table()), Ok(Released::WasGone));
        assert_eq!(snapshot(), before);
        assert!(!fs::exists("/run/netns").expect("looked"), "it was not there before");
    });
}

#[test]
fn a_tenant_finds_its_network_ready() {
    alone(|| {
        let scheme = scheme("sexton", "", true);
        let slot = &slots(&scheme, 1)[0];
        let mut net = Net::open(scheme);
        make(&mut net, slot).expect("made");
        let within = |what: &str| ip(&format!("-n {} {what}", slot.netns));
        let is_ready = |links: &[&str]| {
            let address = within("-4 -o addr show dev eth0");
            assert!(address.contains("inet 10.231.0.2/30 brd 10.231.0.3 scope global eth0"), "{address}");
            let gateway = within("neigh show nud permanent");
            assert!(gateway.starts_with("10.231.0.1 dev eth0 lladdr ") && gateway.lines().count() == 1, "{gateway}");
            let up = within("-o link show up");
            assert!(links.iter().all(|name| up.contains(&format!(" {name}"))), "{up}");
            assert!(up.lines().all(|link| link.contains("LOOPBACK") || link.contains(",MULTICAST,")), "{up}");
            let routes = "default via 10.231.0.1 dev eth0 \n\
                          10.231.0.0/30 dev eth0 proto kernel scope link src 10.231.0.2 \n";
            assert_eq!(within("route"), routes);
        };
        is_ready(&["lo:", "eth0@", "tap0:"]);
        ip("link del sexton-0");
        net.repair(slot, None).expect("repaired");
        is_ready(&["lo:", "eth0@"]);
        release(&mut net, slot).expect("released");
    });
}

#[test]
fn a_program_is_started_inside() {
    alone(|| {
        let scheme = scheme("sexton", "", false);
        let slot = scheme.slot(0).expect("fits");
        let mut net = Net::open(scheme);
        let made = make(&mut net, &slot).expect("made");
        let namespace = open_netns(&slot).expect("a namespace");
        let (mut told, out) = std::io::pipe().expect("a pipe");
        let null = fs::File::open("/dev/null").expect("null");
        let user = sexton_core::spawn::User { uid: 65_534, gid: 65_534, groups: Vec::new() };
        let program = sexton_core::spawn::Program {
            argv: &["readlink", "/proc/self/ns/net"].map(str::to_owned),
            env: &[],
            cwd: "/",
            user: Some(&user),
            stdio: [null.as_raw_fd(), out.as_raw_fd(), out.as_raw_fd()],
            mark: None,
            domain: None,
            netns: Some(namespace.as_fd()),
            pidns: false,
            no_new_privs: false,
            own_memory: false,
            nofile: None,
        };
        let here = sexton_core::proc::here().expect("proc");
        let (waiting, handle) = sexton_core::spawn::spawn(&program, &here).expect("spawned");
        let _going = waiting.release().expect("released");
        drop((out, namespace));
        let mut text = String::new();
        told.read_to_string(&mut text).expect("read");
        assert_eq!(text, format!("net:[{}]\n", made.ns_ino));
        drop(handle);
        release(&mut net, &slot).expect("released");
    });
}

#[test]
fn no_thread_of_the_caller_changes_its_namespace() {
    alone(|| {
        let here = || fs::read_link("/proc/thread-self/ns/net").expect("read");
        let before = here();
        let scheme = scheme("sexton", "", false);
        let slots = slots(&scheme, 2);
        let mut net = Net::open(scheme);
        all_ok(net.make(&slots));
        ip("link del sexton-0");
        net.repair(&slots[0], None).expect("repaired");
        all_ok(net.release(&slots));
        assert_eq!(here(), before);
    });
}

#[test]
fn each_damage_is_seen_and_put_right() {
    alone(|| {
        let scheme = scheme("sexton", "", false);
        let slots = slots(&scheme, 2);
        let mut net = Net::open(scheme);
        all_ok(net.make(&slots));
        let whole = snapshot();
        let slot = &slots[0];
        let tenant = Tenant::of(slot);
        let holder = fs::File::open(tenant.namespace()).expect("opened");
        let damages: [(&dyn Fn(), &[Part]); 11] = [
            (&|| drop(nft("flush ruleset")), &[Part::Rule]),
            (&|| drop(nft("flush table inet sexton")), &[Part::Rule]),
            (&|| drop(nft("flush chain inet sexton forward")), &[Part::Rule]),
            (&|| drop(nft("flush set inet sexton slots")), &[Part::Rule]),
            (&|| drop(ip("link del sexton-0")), &[Part::Link, Part::Address]),
            (&|| drop(ip("link set sexton-0 down")), &[Part::Link]),
            // REGRESSION: the inner end that was left stood in the way of another pair.
            (&|| drop(ip("link set sexton-0 down name lost0")), &[Part::Link, Part::Address]),
            (&|| drop(ip("link set sexton-0 netns sexton-1")), &[Part::Link, Part::Address]),
            (&|| drop(ip("addr flush dev sexton-0")), &[Part::Address]),
            (&|| drop(ip("netns del sexton-0")), &[Part::Namespace]),
            (&|| assert!(tried("umount", "/run/netns/sexton-0").0), &[Part::Namespace]),
        ];
        for (place, (damage, missing)) in damages.into_iter().enumerate() {
            damage();
            assert_eq!(seen(&mut net, slot), Seen::Damaged(missing.to_vec()), "damage {place}");
            net.repair(slot, Some(holder.as_fd())).unwrap_or_else(|error| panic!("damage {place}: {error}"));
            assert_eq!(seen(&mut net, slot), Seen::Whole, "damage {place}");
            assert_eq!(call(slot, slot.gateway), slot.address, "damage {place}");
            net.repair(&slots[1], None).expect("the other needs its element");
        }
        assert_eq!(net.observe(&slots).expect("looked"), [Seen::Whole, Seen::Whole]);
        let (was, is) = (&whole[4], &snapshot()[4]);
        assert_eq!(was, is);
        drop((tenant, holder));
        all_ok(net.release(&slots));
    });
}

#[test]
fn a_lost_namespace_is_put_back_for_its_own_process_alone() {
    alone(|| {
        let scheme = scheme("sexton", "", false);
        let slots = slots(&scheme, 2);
        let mut net = Net::open(scheme);
        all_ok(net.make(&slots));
        let (first, second) = (Tenant::of(&slots[0]), Tenant::of(&slots[1]));
        ip("netns del sexton-0");
        let stranger = fs::File::open(second.namespace()).expect("opened");
        assert!(matches!(net.repair(&slots[0], None), Err(NetError::Failed(_))));
        assert!(matches!(net.repair(&slots[0], Some(stranger.as_fd())), Err(NetError::Failed(_))));
        assert_eq!(seen(&mut net, &slots[0]), Seen::Damaged(vec![Part::Namespace]));
        let holder = fs::File::open(first.namespace()).expect("opened");
        net.repair(&slots[0], Some(holder.as_fd())).expect("repaired");
        assert_eq!(seen(&mut net, &slots[0]), Seen::Whole);
        drop((first, second, stranger, holder));
        all_ok(net.release(&slots));
    });
}

#[test]
fn what_is_not_ours_is_never_touched() {
    alone(|| {
        let scheme = scheme("sexton", "", false);
        let slot = scheme.slot(4).expect("fits");
        let others = slots(&scheme, 2);
        let mut net = Net::open(scheme);
        all_ok(net.make(&others));
        ip("link add other type veth peer name rehto");
        let foreign: [(&str, &str); 6] = [
            ("link add sexton-4 type veth peer name peer4", "link del sexton-4"),
            ("link add sexton-4 type bridge", "link del sexton-4"),
            ("netns add sexton-4", "netns del sexton-4"),
            ("addr add 10.231.0.17/32 dev other", "addr del 10.231.0.17/32 dev other"),
            ("addr add 10.231.0.18/24 dev other", "addr del 10.231.0.18/24 dev other"),
            ("route add blackhole 10.231.0.16/30", "route del blackhole 10.231.0.16/30"),
        ];
        for (plant, remove) in foreign {
            ip(plant);
            let planted = snapshot();
            assert!(matches!(make(&mut net, &slot), Err(NetError::Foreign(_))), "{plant}");
            assert_eq!(snapshot(), planted, "{plant}");
            assert!(matches!(seen(&mut net, &slot), Seen::Foreign(_)), "{plant}");
            assert!(net.repair(&slot, None).is_err(), "{plant}");
            assert_eq!(release(&mut net, &slot), Ok(Released::WasGone), "{plant}");
            assert_eq!(snapshot(), planted, "{plant}");
            ip(remove);
        }
        for kind in ["file", "empty", "directory", "link"] {
            let path = "/run/netns/sexton-4";
            match kind {
                "file" => fs::write(path, "mine\n").expect("written"),
                "empty" => fs::write(path, "").expect("written"),
                "directory" => fs::create_dir(path).expect("made"),
                _ => std::os::unix::fs::symlink("/run/netns/sexton-0", path).expect("made"),
            }
            assert!(matches!(make(&mut net, &slot), Err(NetError::Foreign(_))), "{kind}");
            assert_eq!(release(&mut net, &slot), Ok(Released::WasGone), "{kind}");
            assert!(open_netns(&slot).is_err(), "{kind}");
            assert!(fs::symlink_metadata(path).is_ok(), "{kind}");
            fs::remove_file(path).or_else(|_| fs::remove_dir(path)).expect("removed");
        }
        make(&mut net, &slot).expect("made, once nothing is in the way");
        all_ok(net.release(&others));
        release(&mut net, &slot).expect("released");
    });
}

/// However far the making of a slot came before its daemon was killed, and whatever was taken from it since.
#[test]
fn whatever_is_left_of_a_slot_is_taken_down() {
    alone(|| {
        let before = snapshot();
        for left in 0..16 {
            let scheme = scheme("sexton", "", true);
            let slot = scheme.slot(0).expect("fits");
            let mut net = Net::open(scheme.clone());
            make(&mut net, &slot).expect("made");
            if left & 1 == 0 {
                ip("link del sexton-0");
            }
            if left & 2 == 0 {
                assert!(tried("umount", "/run/netns/sexton-0").0);
            }
            if left & 4 == 0 {
                nft("flush set inet sexton slots");
            }
            if left & 8 == 0 {
                nft("delete table inet sexton");
            }
            // Another process knows nothing of what this one did.
            let mut next = Net::open(scheme);
            if left % 2 == 0 {
                make(&mut next, &slot).unwrap_or_else(|error| panic!("made from what {left} left: {error}"));
                assert_eq!(seen(&mut next, &slot), Seen::Whole, "{left}");
            }
            release(&mut next, &slot).unwrap_or_else(|error| panic!("released what {left} left: {error}"));
            assert_eq!(seen(&mut next, &slot), Seen::Absent, "{left}");
            next.dismantle(slot.table()).expect("dismantled");
            assert_eq!(snapshot(), before, "{left}");
        }
    });
}

#[test]
fn a_slot_is_withheld_while_anything_holds_its_namespace() {
    alone(|| {
        let scheme = scheme("sexton", "", true);
        let slot = scheme.slot(0).expect("fits");
        let mut net = Net::open(scheme);
        make(&mut net, &slot).expect("made");
        let tenant = Tenant::of(&slot);
        assert!(matches!(release(&mut net, &slot), Err(NetError::Busy(_))));
        assert!(!ip("link").contains("sexton-0"), "it is cut off all the same");
        assert!(matches!(make(&mut net, &slot), Err(NetError::Busy(_))), "and its number is not used again");
        assert!(matches!(release(&mut net, &slot), Err(NetError::Busy(_))));
        drop(tenant);
        release(&mut net, &slot).expect("free");
        make(&mut net, &slot).expect("made");
        // A socket outlives the thread that was inside; so would an open TAP.
        let socket = inside(&slot, || UdpSocket::bind("0.0.0.0:0").expect("bound"));
        assert!(matches!(release(&mut net, &slot), Err(NetError::Busy(_))));
        drop(socket);
        eventually("the kernel gives the socket back", SOON, || {
            release(&mut net, &slot).map_err(|error| error.to_string())
        });
    });
}

#[test]
fn two_daemons_do_not_meet() {
    alone(|| {
        let (one, two) = (scheme("sexton", "", false), scheme("sexton-two", "", false));
        let two_slots: Vec<Slot> = (8..10).map(|index| two.slot(index).expect("fits")).collect();
        let one_slots = slots(&one, 2);
        let table = two.table();
        let (mut one, mut two) = (Net::open(one), Net::open(two));
        all_ok(two.make(&two_slots));
        let of_two = snapshot();
        all_ok(one.make(&one_slots));
        assert_eq!(two.observe(&two_slots).expect("looked"), [Seen::Whole, Seen::Whole]);
        assert_eq!(call(&two_slots[0], two_slots[0].gateway), two_slots[0].address);
        all_ok(one.release(&one_slots));
        one.dismantle(one_slots[0].table()).expect("dismantled");
        assert_eq!(snapshot(), of_two);
        assert!(nft("list tables").contains(&table));
        all_ok(two.release(&two_slots));
    });
}

#[test]
fn of_daemons_that_make_slots_at_one_moment_each_address_is_ones() {
    alone(|| {
        const COUNT: u32 = 8;
        let schemes = ["a", "b", "c", "d"].map(|cgroup| scheme(cgroup, "", false));
        let start = Barrier::new(schemes.len());
        let make = |scheme: Scheme| {
            let slots = slots(&scheme, COUNT);
            let mut net = Net::open(scheme);
            start.wait();
            let made = net.make(&slots);
            let failed = made.iter().filter_map(|made| made.as_ref().err());
            failed.for_each(|error| assert!(matches!(error, NetError::Foreign(_)), "{error}"));
            slots.into_iter().zip(made).filter(|(_, made)| made.is_ok()).map(|(slot, _)| slot).collect::<Vec<Slot>>()
        };
        let make = &make;
        let made: Vec<Slot> = std::thread::scope(|scope| {
            let threads = schemes.map(|scheme| scope.spawn(move || make(scheme)));
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        let mut numbers: Vec<u32> = made.iter().map(|slot| slot.index).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..COUNT), "each is one daemon's");
        made.iter().for_each(|slot| assert_eq!(call(slot, slot.gateway), slot.address));
    });
}

/// A host with an uplink, and somebody behind it.
fn with_uplink() -> Scheme {
    make_uplink();
    scheme("sexton", "up0", false)
}

fn outside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let namespace = fs::File::open("/run/netns/outside").expect("opened");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            sexton_sys::net::enter(namespace.as_raw_fd()).expect("entered");
            work()
        });
        thread.join().expect("no panic")
    })
}

fn forwarding(link: &str) -> bool {
    ip(&format!("-4 netconf show dev {link}")).contains("forwarding on")
}

#[test]
fn a_slot_appears_to_the_world_as_its_host() {
    alone(|| {
        let scheme = with_uplink();
        let before = snapshot();
        let slots = slots(&scheme, 2);
        let mut net = Net::open(scheme.clone());
        assert!(!forwarding("up0"));
        all_ok(net.make(&slots));
        assert!(forwarding("up0") && forwarding("sexton-0"));
        let listener = outside(|| TcpListener::bind("192.0.2.2:0").expect("bound"));
        let target = listener.local_addr().expect("bound");
        inside(&slots[0], || {
            let mut stream = TcpStream::connect_timeout(&target, SOON).expect("reached");
            let (mut accepted, peer) = listener.accept().expect("accepted");
            assert_eq!(peer.ip(), Ipv4Addr::new(192, 0, 2, 1), "masqueraded");
            accepted.write_all(b"back").expect("written");
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).expect("answered");
        });
        nothing_else_passes([&slots[0], &slots[1]]);
        // A daemon that was killed and came back knows what to put back.
        drop(net);
        let mut net = Net::open(scheme);
        assert_eq!(net.observe(&slots).expect("looked"), [Seen::Whole, Seen::Whole]);
        all_ok(net.release(&slots));
        net.dismantle(slots[0].table()).expect("dismantled");
        assert_eq!(snapshot(), before, "forwarding of the uplink included");
    });
}

#[test]
fn who_needs_no_uplink_does_not_keep_it_and_who_found_it_on_leaves_it_on() {
    alone(|| {
        make_uplink();
        let before = snapshot();
        let with = |cgroup: &str, uplink: &str, subnet: &str| {
            let (uplink, subnet) = (uplink.parse().expect("a name"), subnet.parse().expect("a network"));
            let scheme = Scheme::new(cgroup, &Slots { uplink, subnet, ..Slots::default() });
            let slot = scheme.slot(0).expect("fits");
            (Net::open(scheme), slot)
        };
        let go = |(net, slot): &mut (Net, Slot)| {
            all_ok(net.release(std::slice::from_ref(slot)));
            net.dismantle(slot.table()).expect("dismantled");
        };
        let mut first = with("first", "up0", "10.93.0.0/24");
        let mut without = with("without", "", "10.94.0.0/24");
        let mut second = with("second", "up0", "10.95.0.0/24");
        for (net, slot) in [&mut first, &mut without] {
            make(net, slot).expect("made");
        }
        go(&mut first);
        assert!(!forwarding("up0"), "who has no uplink does not need it");
        go(&mut without);
        assert_eq!(snapshot(), before);

        fs::write("/proc/sys/net/ipv4/conf/up0/forwarding", "1").expect("switched on");
        make(&mut second.0, &second.1).expect("made");
        fs::write("/proc/sys/net/ipv4/conf/up0/forwarding", "0").expect("switched off");
        make(&mut first.0, &first.1).expect("made");
        assert_eq!(seen(&mut second.0, &second.1), Seen::Whole, "the one has restored it for the other");
        go(&mut first);
        assert!(forwarding("up0"), "the other needs it, who had found it on");
        go(&mut second);
        assert!(forwarding("up0"), "as it had been found");
    });
}

/// Between slots, from an address that is not the slot's, and from outside to a slot.
fn nothing_else_passes([first, second]: [&Slot; 2]) {
    let heard = |socket: &UdpSocket| {
        socket.set_read_timeout(Some(NEVER)).expect("set");
        match socket.recv_from(&mut [0; 16]) {
            Ok((_, from)) => Some(from),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    };
    let send = |from: &str, to: SocketAddr| UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(b"x", to));
    let at_gateway = UdpSocket::bind((first.gateway, 0)).expect("bound");
    let gateway = at_gateway.local_addr().expect("bound");
    inside(first, || send("0.0.0.0", gateway)).expect("sent");
    assert!(heard(&at_gateway).is_some(), "its own address is heard");
    ip(&format!("-n {} addr add 10.9.9.9/32 dev eth0", first.netns));
    ip("route add 10.9.9.9/32 dev sexton-0");
    inside(first, || send("10.9.9.9", gateway)).expect("sent");
    assert_eq!(heard(&at_gateway), None, "another is not");
    ip(&format!("-n {} addr del 10.9.9.9/32 dev eth0", first.netns));
    ip("route del 10.9.9.9/32 dev sexton-0");
    let in_second = inside(second, || UdpSocket::bind("0.0.0.0:0").expect("bound"));
    let target = SocketAddr::from((second.address, in_second.local_addr().expect("bound").port()));
    send("0.0.0.0", target).expect("sent");
    assert!(heard(&in_second).is_some(), "its host reaches a slot");
    inside(first, || send("0.0.0.0", target)).expect("sent");
    assert_eq!(heard(&in_second), None, "another slot does not");
    ip("-n outside route add 10.231.0.0/16 via 192.0.2.1");
    outside(|| send("0.0.0.0", target)).expect("sent");
    assert_eq!(heard(&in_second), None, "nor does the world");
    ip("-n outside route del 10.231.0.0/16 via 192.0.2.1");
}

#[test]
fn an_uplink_that_does_not_exist_is_named() {
    alone(|| {
        let before = snapshot();
        let scheme = scheme("sexton", "nowhere0", false);
        let slot = scheme.slot(0).expect("fits");
        let error = make(&mut Net::open(scheme), &slot).expect_err("refused").to_string();
        assert!(error.contains("slots.uplink") && error.contains("nowhere0"), "{error}");
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn three_hundred_slots_are_made_used_and_given_back() {
    alone(|| {
        let before = snapshot();
        let scheme = scheme("sexton", "", false);
        let slots = slots(&scheme, 300);
        let mut net = Net::open(scheme);
        let began = Instant::now();
        all_ok(net.make(&slots));
        let made = began.elapsed();
        assert!(net.observe(&slots).expect("looked").iter().all(|seen| *seen == Seen::Whole));
        for slot in &slots {
            assert_eq!(call(slot, slot.gateway), slot.address);
        }
        let began = Instant::now();
        all_ok(net.release(&slots));
        eprintln!("made in {made:?}, released in {:?}", began.elapsed());
        net.dismantle(slots[0].table()).expect("dismantled");
        assert_eq!(snapshot(), before);
    });
}
