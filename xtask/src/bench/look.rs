//! A look for orphans, by how many processes are on the host, and a pass that finds nothing to do.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use procfs::process::all_processes;
use sexton_core::look::{Adopter, look_adopted};

use super::node::Node;
use super::sweep::Strangers;
use super::{Aim, Bench, Figure, Row, in_turns, timed};

/// The first pass of a look, beside two ways of reading everybody: where nobody of them is adopted, and where everybody
/// is, which is the most that it can cost.
pub fn look(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [1_000, 5_000, 10_000] {
        let strangers = Strangers::make(count)?;
        let all = [Adopter::Init, Adopter::Process(strangers.init())];
        let mut few = |_| first_pass(&all[..1], 0);
        let mut many = |_| first_pass(&all, count);
        let mut library = |_| enough(count, timed(by_procfs)?);
        let mut files = |_| enough(count, timed(by_three_files)?);
        let sides = in_turns(bench.rounds.min(30), [&mut few, &mut many, &mut library, &mut files])?;
        drop(strangers);
        let [few, many, library, files] = sides.map(|spans| Figure::Time(spans.median()));
        for (ours, what) in [(few, "none"), (many, "all")] {
            let row = Row::new(format!("first pass of a look, {count} processes, {what} adopted"), ours);
            let aimed = |row: Row| if count == 10_000 { row.aim(Aim::Times(0.1)) } else { row };
            rows.push(aimed(row.clone().against("the procfs crate: stat, cmdline", library)));
            rows.push(aimed(row.against("comm, stat, cmdline of each", files)));
        }
    }
    Ok(rows)
}

/// How long the product's own first pass takes, and that it found `least`.
fn first_pass(adopters: &[Adopter], least: usize) -> Result<Duration> {
    let (took, found) = timed(|| Ok(look_adopted(adopters)))?;
    ensure!(found.unread.is_empty(), "{:?}", found.unread);
    enough(least, (took, found.pids.len()))
}

fn enough(least: usize, (took, found): (Duration, usize)) -> Result<Duration> {
    ensure!(found >= least, "{found} of {least} were found");
    Ok(took)
}

/// As a program in Rust does it that asks the usual library; tells how many it could read.
fn by_procfs() -> Result<usize> {
    let read = |process: &procfs::process::Process| process.stat().is_ok() && process.cmdline().is_ok();
    Ok(all_processes()?.flatten().filter(read).count())
}

/// As orchestrators without a supervisor do it: the name, the state and the arguments of everybody, by number.
fn by_three_files() -> Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().to_str().is_none_or(|name| name.parse::<i32>().is_err()) {
            continue;
        }
        let dir = entry.path();
        // What is gone by now is not there to be found.
        let texts = ["comm", "stat", "cmdline"].map(|file| fs::read_to_string(dir.join(file)));
        if let [Ok(_), Ok(stat), Ok(arguments)] = texts {
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(1));
            let words = arguments.split('\0').count();
            found += usize::from(parent.is_some() && words > 0);
        }
    }
    Ok(found)
}

/// A pass over REST that looks at everything and finds nothing to do.
pub fn reconcile(bench: &Bench) -> Result<Vec<Row>> {
    const COUNT: usize = 1_000;
    let node = Node::serve(&bench.sexton, &std::env::temp_dir())?;
    node.create_many("pass", COUNT)?;
    let mut connection = node.connect()?;
    let planned = connection.ask("GET", "/v1/plan", &[], None)?;
    let actions = planned.json().get("actions").and_then(serde_json::Value::as_array).map(Vec::len);
    ensure!(actions == Some(0), "{}", planned.text());
    let mut pass = |_| {
        let (took, answer) = timed(|| connection.ask("POST", "/v1/reconcile", &[], None))?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        Ok(took)
    };
    let [spans] = in_turns(bench.rounds.min(50), [&mut pass])?;
    let aim = Aim::AtMost(Figure::Time(Duration::from_millis(20)));
    let row = |percent| {
        let what = format!("reconcile over REST, nothing to do, {COUNT} instances, p{percent}");
        Row::new(what, Figure::Time(spans.percentile(percent)))
    };
    Ok(vec![row(50).aim(aim), row(90)])
}
