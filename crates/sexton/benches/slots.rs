//! A network slot made and taken down, beside the same steps by `ip` and `nft`, in turns; and many at once.
//! `cargo bench -p sexton --bench slots`. Everything happens in a network and a mount namespace of the bench's own.
//!
//! Absolute numbers are the machine's; the ratios are what counts.

#![allow(clippy::print_stdout, reason = "a bench prints what it found")]

use std::process::Command;
use std::time::{Duration, Instant};

use sexton::config::Slots;
use sexton::net::{Net, Scheme, Slot, open_netns};
use sexton_sys::mount::{self, MountKind};

type Res<T> = Result<T, Box<dyn std::error::Error>>;

/// Turns of each way.
const TURNS: usize = 40;
/// Slots in use while the turns are measured again, and made at once.
const MANY: u32 = 1_000;

fn main() -> Res<()> {
    mount::unshare_mounts()?;
    mount::mount(MountKind::Private, c"/")?;
    mount::mount(MountKind::Tmpfs, c"/run")?;
    sexton_sys::net::unshare()?;
    let scheme = Scheme::new("sexton", &Slots::default());
    let slot = |index| scheme.slot(index).ok_or("does not fit");
    let mut net = Net::open(scheme.clone());
    let many: Vec<Slot> = (0..MANY).filter_map(|index| scheme.slot(index)).collect();
    compare("alone", &mut net, &slot(MANY)?)?;
    let began = Instant::now();
    net.make(&many).into_iter().collect::<Result<Vec<_>, _>>()?;
    println!("{MANY} made at once: {:?}", began.elapsed());
    let began = Instant::now();
    net.observe(&many)?;
    println!("{MANY} looked at: {:?}", began.elapsed());
    let began = Instant::now();
    many.iter().try_for_each(|slot| open_netns(slot).map(drop))?;
    println!("a namespace proven and opened: {:?}", began.elapsed() / MANY);
    compare("beside 1000", &mut net, &slot(MANY)?)?;
    let began = Instant::now();
    net.release(&many).into_iter().collect::<Result<Vec<_>, _>>()?;
    println!("{MANY} taken down at once: {:?}", began.elapsed());
    net.dismantle()?;
    Ok(())
}

/// Both ways in turns, so that what the kernel still clears away burdens both.
fn compare(what: &str, net: &mut Net, slot: &Slot) -> Res<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let commands = Commands::of(slot);
    commands.prepare()?;
    for _ in 0..TURNS {
        let began = Instant::now();
        net.make(std::slice::from_ref(slot)).remove(0)?;
        let made = began.elapsed();
        net.release(std::slice::from_ref(slot)).remove(0)?;
        ours.push([made, began.elapsed()]);
        let began = Instant::now();
        commands.make()?;
        let made = began.elapsed();
        commands.release()?;
        theirs.push([made, began.elapsed()]);
    }
    let [our_make, ours] = middle(ours);
    let [their_make, theirs] = middle(theirs);
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    println!(
        "{what}: p50 of make {our_make:?}, make and release {ours:?}; by commands {their_make:?}, {theirs:?}: {ratio:.1} x"
    );
    Ok(())
}

fn middle(mut turns: Vec<[Duration; 2]>) -> [Duration; 2] {
    turns.sort_by_key(|[_, whole]| *whole);
    turns.get(turns.len() / 2).copied().unwrap_or_default()
}

/// The same steps as a person would take them.
struct Commands {
    netns: String,
    link: String,
    gateway: String,
    address: String,
}

impl Commands {
    fn of(slot: &Slot) -> Commands {
        let of = |address| format!("{address}/{}", slot.prefix_len);
        Commands {
            netns: format!("by-hand-{}", slot.index),
            link: format!("by-hand-{}", slot.index),
            gateway: of(slot.gateway),
            address: of(slot.address),
        }
    }

    fn prepare(&self) -> Res<()> {
        run("nft", "add table inet by-hand")?;
        run("nft", "add set inet by-hand slots { type ifname . ipv4_addr; }")
    }

    fn make(&self) -> Res<()> {
        let Commands { netns, link, gateway, address } = self;
        run("ip", &format!("netns add {netns}"))?;
        run("ip", &format!("link add {link} type veth peer name eth0 netns {netns}"))?;
        run("ip", &format!("addr add {gateway} dev {link}"))?;
        run("ip", &format!("link set {link} up"))?;
        run("ip", &format!("-n {netns} link set lo up"))?;
        run("ip", &format!("-n {netns} addr add {address} dev eth0"))?;
        run("ip", &format!("-n {netns} link set eth0 up"))?;
        let (gateway, _) = gateway.split_once('/').ok_or("no prefix")?;
        run("ip", &format!("-n {netns} route add default via {gateway}"))?;
        run("nft", &format!("add element inet by-hand slots {{ {} }}", self.element()))
    }

    fn release(&self) -> Res<()> {
        run("nft", &format!("delete element inet by-hand slots {{ {} }}", self.element()))?;
        run("ip", &format!("link del {}", self.link))?;
        run("ip", &format!("netns del {}", self.netns))
    }

    fn element(&self) -> String {
        let address = self.address.split('/').next().unwrap_or_default();
        format!("\"{}\" . {address}", self.link)
    }
}

fn run(program: &str, args: &str) -> Res<()> {
    let done = Command::new(program).args(args.split(' ')).status()?;
    if done.success() { Ok(()) } else { Err(format!("{program} {args}: {done}").into()) }
}
