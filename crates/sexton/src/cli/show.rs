//! `show`: one instance as `systemctl status` would tell it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};
use sexton_core::domain::Subtree;
use sexton_core::proc;
use sexton_plan::id::{Name, Pid};

use super::failure::{Failure, exit};
use super::member::Member as _;
use super::{Context, args, events, out, watch, words};

/// `sexton show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The instance.
    #[arg(value_parser = args::name)]
    name: Name,
}

/// Events that are shown.
const EVENTS_SHOWN: usize = 10;
/// Processes that are shown.
const PROCESSES_SHOWN: usize = 64;

/// Shows one instance.
pub async fn run(context: &Context, args: &ShowArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let instance = client.get(watch::path(&args.name)).await?;
    // What is only for people's eyes may be missing.
    let events = match context.out.is_json() {
        true => Vec::new(),
        false => events::newest(&client, &args.name, EVENTS_SHOWN).await.unwrap_or_default(),
    };
    context.out.document(&instance, |instance| text(instance, &events, Timestamp::now()))?;
    Ok(exit::DONE)
}

fn text(instance: &Value, events: &[Value], now: Timestamp) -> String {
    let (on, off) = colour(words::state(instance));
    let name = out::escape(&out::word(instance.at("name")));
    let mut text = format!("{on}●{off} {name} - {}\n", out::escape(&words::command(instance.at("spec").at("argv"))));
    let mut line = |key: &str, value: String| {
        let _always = writeln!(text, "{key:>13}: {}", out::escape(&value));
    };
    line("State", state(instance, now));
    if let Some(exit) = words::exit(instance) {
        let source = out::word(instance.at("exit").at("source"));
        line("Exit", format!("{exit} (told by {source}, {})", out::word(instance.at("exit").at("at"))));
    }
    if instance.at("identity").is_object() {
        let identity = instance.at("identity");
        line("Main process", format!("{} (identity: {})", identity.at("pid"), out::word(identity.at("strength"))));
    }
    for process in instance.at("stuck").as_array().into_iter().flatten() {
        let word = |key: &str| out::word(process.at(key));
        line("Stuck", format!("process {} ({}) in {}", word("pid"), word("state"), word("wchan")));
    }
    line("Restarts", restarts(instance, now));
    line("Kind", format!("{}, runtime {}", out::word(instance.at("kind")), out::word(instance.at("runtime"))));
    line("Labels", out::word(instance.at("labels")));
    line(
        "Stop",
        format!(
            "{} after SIG{}",
            out::word(instance.at("spec").at("grace")),
            out::word(instance.at("spec").at("stop_signal"))
        ),
    );
    if let Some(escapes) = escapes(instance) {
        line("Killed by", escapes.to_owned());
    }
    if instance.at("control").is_object() {
        let word = |key: &str| out::word(instance.at("control").at(key));
        line("Control", format!("{} ({})", word("socket"), control(&word("peer"))));
    }
    line("Limits", limits(instance.at("spec").at("limits")));
    line("Incarnation", format!("{} on {}", out::word(instance.at("incarnation")), out::word(instance.at("node"))));
    line("Created", out::word(instance.at("created_at")));
    for resource in instance.at("resources").as_array().into_iter().flatten() {
        let word = |key: &str| out::word(resource.at(key));
        line("Resource", format!("{} {} ({})", word("kind"), word("key"), word("state")));
    }
    if instance.at("slot").is_object() {
        let word = |key: &str| out::word(instance.at("slot").at(key));
        line("Network", format!("{} by way of {} in namespace {}", word("address"), word("gateway"), word("netns")));
    }
    text.push_str(&cgroup(instance.at("cgroup")));
    if !events.is_empty() {
        text.push('\n');
    }
    for event in events {
        text.push_str(&(words::event(event) + "\n"));
    }
    text
}

fn colour(state: &str) -> (&'static str, &'static str) {
    if !out::in_colour() {
        return ("", "");
    }
    let on = match state {
        "running" => "\x1b[32m",
        "stuck" | "failed" | "lost" | "unverified" => "\x1b[31m",
        "starting" | "stopping" => "\x1b[33m",
        _ => "\x1b[2m",
    };
    (on, "\x1b[0m")
}

fn state(instance: &Value, now: Timestamp) -> String {
    let mut text = words::state(instance).to_owned();
    if let Some(reason) = instance.at("reason").as_str() {
        text.push_str(&format!(" ({reason})"));
    }
    if let Some(at) = words::since(instance) {
        text.push_str(&format!(" since {at}"));
        if let Some(ago) = words::relative(at, now) {
            text.push_str(&format!("; {ago}"));
        }
    }
    if instance.at("adopted") == true {
        text.push_str("; adopted");
    }
    text
}

fn restarts(instance: &Value, now: Timestamp) -> String {
    let policy = out::word(instance.at("spec").at("restart"));
    let count = instance.at("restarts").at("count").as_u64().unwrap_or(0);
    let next = match instance.at("restarts").at("next_at").as_str() {
        Some(at) => format!(", next at {at} ({})", words::relative(at, now).unwrap_or_default()),
        None => String::new(),
    };
    format!("{count} ({policy}){next}")
}

/// By what it is ended as one, and what escapes that.
fn escapes(instance: &Value) -> Option<&'static str> {
    match instance.at("kill").as_str()? {
        "cgroup" => Some("cgroup, which nothing escapes"),
        "pidns" => Some("PID namespace, which nothing escapes"),
        "tree" => Some("tree: what leaves its session and loses its parent unseen escapes"),
        _ => None,
    }
}

/// Who is at the control socket, in a sentence.
fn control(peer: &str) -> &'static str {
    match peer {
        "instance" => "the instance answers there",
        "stranger" => "somebody else answers there, and is not spoken to",
        _ => "nobody answers there",
    }
}

fn limits(limits: &Value) -> String {
    let tasks = limits.at("pids").as_u64().map(|tasks| format!("{tasks} tasks"));
    let memory = limits.at("memory").as_u64().map(|memory| format!("{} memory", words::bytes(memory)));
    let told: Vec<String> = tasks.into_iter().chain(memory).collect();
    if told.is_empty() { "none".to_owned() } else { told.join(", ") }
}

/// The cgroup, and as a tree the processes in it, as far as this process may see them.
fn cgroup(cgroup: &Value) -> String {
    let Some(path) = cgroup.at("path").as_str() else { return String::new() };
    let mut text = format!("{:>13}: {}\n", "CGroup", out::escape(path));
    let indent = " ".repeat(15);
    let processes = processes(path, cgroup.at("ino").as_u64());
    for (depth, pid) in tree(&processes).into_iter().take(PROCESSES_SHOWN) {
        let command = proc::command_line(pid).or_else(|| name_of(pid)).unwrap_or_else(|| "(unreadable)".to_owned());
        let branch = if depth == 0 { String::new() } else { format!("{}└─", "  ".repeat(depth - 1)) };
        let _always = writeln!(text, "{indent}{branch}{pid} {}", out::escape(&command));
    }
    if processes.len() > PROCESSES_SHOWN {
        let _always = writeln!(text, "{indent}… and {} more", processes.len() - PROCESSES_SHOWN);
    }
    text
}

/// The name of a process without a command line, such as a zombie.
fn name_of(pid: Pid) -> Option<String> {
    let stat = proc::stat(pid).ok()?;
    Some(format!("[{}] ({})", String::from_utf8_lossy(&stat.comm), stat.state))
}

/// Processes and their parents; none where the cgroup is another one than was recorded, or not to be seen.
fn processes(path: &str, ino: Option<u64>) -> BTreeMap<Pid, i32> {
    let found = || {
        let domain = Subtree::find(path).ok()?.find_path(path).ok()?;
        let is_recorded = ino.is_none_or(|ino| ino == domain.ino());
        if is_recorded { domain.processes().ok() } else { None }
    };
    let parent = |pid| proc::stat(pid).map_or(0, |stat| stat.ppid);
    found().unwrap_or_default().into_iter().map(|pid| (pid, parent(pid))).collect()
}

/// Depth first, children below their parents.
fn tree(processes: &BTreeMap<Pid, i32>) -> Vec<(usize, Pid)> {
    let is_root = |parent: i32| !processes.keys().any(|pid| pid.as_raw() == parent);
    let mut open: Vec<(usize, Pid)> =
        processes.iter().rev().filter(|(_, parent)| is_root(**parent)).map(|(pid, _)| (0, *pid)).collect();
    let mut ordered = Vec::new();
    // BOUND: each process is the child of one other, so each is met once at most.
    while let Some((depth, pid)) = open.pop() {
        ordered.push((depth, pid));
        let children = processes.iter().rev().filter(|(_, parent)| **parent == pid.as_raw());
        open.extend(children.map(|(child, _)| (depth + 1, *child)));
    }
    ordered
}

/// Bytes and ticks that the processes of an instance use now, for `top`.
pub fn usage(cgroup: &Value) -> Value {
    let Some(path) = cgroup.at("path").as_str() else { return json!({"tasks": 0, "rss_pages": 0, "cpu_ticks": 0}) };
    let stats: Vec<proc::Stat> =
        processes(path, cgroup.at("ino").as_u64()).into_keys().filter_map(|pid| proc::stat(pid).ok()).collect();
    json!({
        "tasks": stats.iter().map(|stat| stat.threads).sum::<u64>(),
        "rss_pages": stats.iter().map(|stat| stat.rss_pages).sum::<u64>(),
        "cpu_ticks": stats.iter().map(|stat| stat.cpu_ticks).sum::<u64>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_stand_below_their_parents() {
        let pid = |number| Pid::new(number).unwrap();
        let processes = BTreeMap::from([(pid(10), 1), (pid(11), 10), (pid(12), 11), (pid(13), 10), (pid(20), 1)]);
        let expected = vec![(0, pid(10)), (1, pid(11)), (2, pid(12)), (1, pid(13)), (0, pid(20))];
        assert_eq!(tree(&processes), expected);
    }

    #[test]
    fn what_is_pending_is_told_with_its_time() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let instance = json!({
            "name": "a\x1b", "state": "exited", "reason": null, "exit": {"code": 1, "signal": null, "source": "wait", "at": "t"},
            "spec": {"argv": ["x"], "restart": "on-failure", "grace": "10s", "stop_signal": "TERM", "limits": {"pids": 9}},
            "restarts": {"count": 2, "next_at": "2026-01-01T00:00:03Z"}, "ended_at": "2025-12-31T23:59:59Z",
            "slot": {"index": 0, "netns": "sexton-0", "address": "10.231.0.2", "gateway": "10.231.0.1", "tap": null},
        });
        let shown = text(&instance, &[], now);
        for part in [
            "2 (on-failure), next at 2026-01-01T00:00:03Z (in 3s)",
            "exited since",
            "1s ago",
            "9 tasks",
            "code 1",
            "10.231.0.2 by way of 10.231.0.1 in namespace sexton-0",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!shown.contains('\x1b'), "{shown}");
    }
}
