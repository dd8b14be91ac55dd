//! Network slots as a user has them, beside the same steps by `ip` and `nft`. Everything happens in a network and a
//! mount namespace of the bench's own.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use sexton_testkit::Connection;

use super::node::{Node, SLEEPER};
use super::{Aim, Bench, Figure, Row, in_turns, timed};

/// Slots that are kept ready.
const POOL: usize = 8;
/// How long the pool may take to be full again.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the kernel still clears away of a slot is done by then, and burdens nobody.
const SETTLED: Duration = Duration::from_millis(100);

/// A slot from the pool, and one that is made for a start and given back with the stop.
pub fn slots(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Err(anyhow!("nothing was measured"));
    let went = sexton_testkit::alone(|| rows = measure(&bench.sexton, bench.rounds.min(60)));
    went.map_err(|why| anyhow!(why))?;
    rows
}

fn measure(sexton: &Path, rounds: usize) -> Result<Vec<Row>> {
    let mut rows = from_pool(sexton, rounds)?;
    rows.extend(on_demand(sexton, rounds)?);
    Ok(rows)
}

/// What a start takes longer because it is given a slot that is ready.
fn from_pool(sexton: &Path, rounds: usize) -> Result<Vec<Row>> {
    let node = Node::serve_with(sexton, Path::new("/dev/shm"), &format!("[slots]\ncount = {POOL}\n"))?;
    let mut connection = node.connect()?;
    let mut second = node.connect()?;
    wait_for_pool(&mut connection)?;
    let mut with = |round| {
        std::thread::sleep(SETTLED);
        let name = format!("with-{round}");
        let (took, ()) = timed(|| start(&mut connection, &name, true))?;
        node.stop_and_remove(&mut connection, &name)?;
        wait_for_pool(&mut connection)?;
        Ok(took)
    };
    let mut without = |round| {
        std::thread::sleep(SETTLED);
        let name = format!("without-{round}");
        let (took, ()) = timed(|| start(&mut second, &name, false))?;
        node.stop_and_remove(&mut second, &name)?;
        Ok(took)
    };
    let [with, without] = in_turns(rounds, [&mut with, &mut without])?.map(|spans| spans.median());
    let start = Row::new("start over REST with a slot from the pool", Figure::Time(with));
    let slot = Row::new("slot from the pool: the difference", Figure::Time(with.saturating_sub(without)));
    let aim = Aim::AtMost(Figure::Time(Duration::from_millis(1)));
    Ok(vec![start.against("start without a slot", Figure::Time(without)), slot.aim(aim)])
}

/// What a start and a stop take longer because a slot is made and taken down, beside the commands that do the same.
/// Ours ends when nothing of the slot is left, the commands when they return, which is no later than theirs is gone.
fn on_demand(sexton: &Path, rounds: usize) -> Result<Vec<Row>> {
    let node = Node::serve_with(sexton, Path::new("/dev/shm"), "[slots]\ncount = 0\n")?;
    let (mut connection, mut second) = (node.connect()?, node.connect()?);
    let (mut made, mut bare_start) = (Vec::new(), Vec::new());
    let mut with = |round| {
        std::thread::sleep(SETTLED);
        let (started, whole) = life(&mut connection, &format!("with-{round}"), true)?;
        made.push(started);
        Ok(whole)
    };
    let mut without = |round| {
        std::thread::sleep(SETTLED);
        let (started, whole) = life(&mut second, &format!("without-{round}"), false)?;
        bare_start.push(started);
        Ok(whole)
    };
    let commands = Commands::new();
    commands.prepare()?;
    let mut made_by_commands = Vec::new();
    let mut by_commands = |_| {
        std::thread::sleep(SETTLED);
        let began = Instant::now();
        commands.make()?;
        made_by_commands.push(began.elapsed());
        commands.release()?;
        Ok(began.elapsed())
    };
    let sides = in_turns(rounds, [&mut with, &mut without, &mut by_commands])?;
    let [with, without, by_commands] = sides.map(|spans| spans.median());
    let [made, bare_start, made_by_commands] =
        [made, bare_start, made_by_commands].map(|spans| super::Samples::from(spans).median());
    let row = |what: &str, ours: Duration, theirs| {
        Row::new(what, Figure::Time(ours)).against("ip and nft, the same steps", Figure::Time(theirs))
    };
    let make = row("slot made: what a start takes longer", made.saturating_sub(bare_start), made_by_commands);
    let both =
        row("slot made and released: what start and stop take longer", with.saturating_sub(without), by_commands);
    Ok(vec![make, both.aim(Aim::Times(0.33))])
}

/// Starts an instance and ends it, until nothing of it is left: how long the start took, and the whole.
fn life(connection: &mut Connection, name: &str, slot: bool) -> Result<(Duration, Duration)> {
    let began = Instant::now();
    start(connection, name, slot)?;
    let started = began.elapsed();
    let path = format!("/v1/instances/{name}/stop?wait=30s");
    let answer = connection.ask("POST", &path, &[], Some(br#"{"force":true}"#))?;
    let whole = began.elapsed();
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    ensure!(answer.json().get("slot").is_none_or(serde_json::Value::is_null), "it has its slot: {}", answer.text());
    let removed = connection.ask("DELETE", &format!("/v1/instances/{name}?wait=30s"), &[], None)?;
    ensure!(removed.status < 300, "{} {}", removed.status, removed.text());
    Ok((started, whole))
}

fn start(connection: &mut Connection, name: &str, slot: bool) -> Result<()> {
    let body = json!({ "name": name, "argv": SLEEPER, "slot": slot }).to_string();
    let answer = connection.ask("POST", "/v1/instances", &[], Some(body.as_bytes()))?;
    ensure!(answer.status == 201, "{} {}", answer.status, answer.text());
    Ok(())
}

/// Waits until nothing is made or taken down, and the pool is full.
fn wait_for_pool(connection: &mut Connection) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let slots = connection.ask("GET", "/v1/slots", &[], None)?.json();
        let items = slots.get("items").and_then(serde_json::Value::as_array).context("a list")?;
        let is_ready = |slot: &serde_json::Value| slot.get("state").is_some_and(|state| state == "ready");
        if items.len() == POOL && items.iter().all(is_ready) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the pool is not full: {slots}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The same steps as a person would take them.
struct Commands {
    name: String,
    gateway: &'static str,
    address: &'static str,
}

impl Commands {
    fn new() -> Commands {
        Commands { name: format!("by-hand-{}", std::process::id()), gateway: "10.254.0.1", address: "10.254.0.2" }
    }

    fn prepare(&self) -> Result<()> {
        run("nft", &format!("add table inet {}", self.name))?;
        run("nft", &format!("add set inet {} slots {{ type ifname . ipv4_addr; }}", self.name))
    }

    fn make(&self) -> Result<()> {
        let Commands { name, gateway, address } = self;
        run("ip", &format!("netns add {name}"))?;
        run("ip", &format!("link add {name} type veth peer name eth0 netns {name}"))?;
        run("ip", &format!("addr add {gateway}/30 dev {name}"))?;
        run("ip", &format!("link set {name} up"))?;
        run("ip", &format!("-n {name} link set lo up"))?;
        run("ip", &format!("-n {name} addr add {address}/30 dev eth0"))?;
        run("ip", &format!("-n {name} link set eth0 up"))?;
        run("ip", &format!("-n {name} route add default via {gateway}"))?;
        run("nft", &format!("add element inet {name} slots {{ {} }}", self.element()))
    }

    fn release(&self) -> Result<()> {
        run("nft", &format!("delete element inet {} slots {{ {} }}", self.name, self.element()))?;
        run("ip", &format!("link del {}", self.name))?;
        run("ip", &format!("netns del {}", self.name))
    }

    fn element(&self) -> String {
        format!("\"{}\" . {}", self.name, self.address)
    }
}

fn run(program: &str, args: &str) -> Result<()> {
    let done = Command::new(program).args(args.split(' ')).status().with_context(|| program.to_owned())?;
    ensure!(done.success(), "{program} {args}: {done}");
    Ok(())
}
