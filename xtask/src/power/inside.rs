//! In the machine: finds out whether what was told before the cut is so, and then has more told, until the next cut.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sexton_testkit::{Client, Connection, eventually};

use super::told::{self, Told};

const STATE_DIR: &str = "/state/sexton";
const RUN_DIR: &str = "/run/sexton";
/// Clients that start, end and remove at once.
const CLIENTS: usize = 3;
const READY: Duration = Duration::from_secs(120);
const ENDS: Duration = Duration::from_secs(60);
/// The key of what a client says that was ended by something else than a cut.
const FAILED: &str = "failed";

/// Looks, and goes on until the power is cut.
pub fn run(share: &Path, sexton: &str) -> Result<bool> {
    let mut daemon = Command::new(sexton);
    daemon.args(["--state-dir", STATE_DIR, "--run-dir", RUN_DIR, "serve"]);
    let _daemon = daemon.stderr(File::create(share.join("said/daemon"))?).spawn()?;
    let socket = Path::new(RUN_DIR).join("sexton.sock");
    let client = Client::new(&socket);
    eventually("the daemon is ready", READY, || match client.get("/readyz") {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let before = told::read(share);
    let told = Told::open(share)?;
    let newest = told.looked(before.len(), &wrong(&client, &before)?).and_then(|()| newest(&client))?;
    let round = told::rounds(share);
    std::thread::scope(|scope| {
        let (told, client, socket) = (&told, &client, &socket);
        scope.spawn(move || until_cut(told, || follow(socket, newest, told)));
        for index in 0..CLIENTS {
            scope.spawn(move || until_cut(told, || live(client, told, &format!("r{round}-{index}"))));
        }
    });
    Ok(false)
}

/// Does `work`, which only the cut ends: if anything else does, that is told, and found wrong.
fn until_cut(told: &Told, work: impl FnOnce() -> Result<()>) {
    let why = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => "it came to its end".to_owned(),
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned()),
    };
    told.add(&json!({ FAILED: why })).expect("the host takes what is told");
}

fn newest(client: &Client) -> Result<u64> {
    let events = client.list("/v1/events")?;
    Ok(events.last().and_then(|event| event.get("seq")).and_then(Value::as_u64).unwrap_or(0))
}

/// What of all that was told is not so.
fn wrong(client: &Client, told: &[Value]) -> Result<Vec<String>> {
    let of = |key: &str| told.iter().filter_map(|line| line.get(key)).collect::<Vec<_>>();
    let mut wrong = wrong_events(client, &of("event"))?;
    let leaving: HashSet<&Value> = of("removing").into_iter().collect();
    let listed = client.list("/v1/instances")?;
    let listed: HashMap<&Value, &Value> = listed.iter().filter_map(|entry| Some((entry.get("name")?, entry))).collect();
    for entry in of("created").into_iter().chain(of("ended")) {
        let name = entry.get("name").context("a name")?;
        match listed.get(name) {
            _ if leaving.contains(name) => {}
            None => wrong.push(format!("{name} is not there")),
            Some(now) => wrong.extend(differing(entry, now, &["incarnation", "exit"])),
        }
    }
    let live = listed
        .values()
        .filter(|entry| ["starting", "running", "stopping"].iter().any(|state| entry["state"] == **state));
    wrong.extend(live.map(|entry| format!("{} lives", entry["name"])));
    let back = of("removed").into_iter().filter(|name| listed.contains_key(name));
    wrong.extend(back.map(|name| format!("{name} is back")));
    // The key of what is removed may make it anew.
    for request in of("request").into_iter().filter(|request| !leaving.contains(&request["body"]["name"])) {
        wrong.extend(wrong_answer(client, request)?);
    }
    wrong.extend(of(FAILED).into_iter().map(|why| format!("a client failed: {why}")));
    Ok(wrong)
}

/// Which of `keys` are not in `now` as they were told in `then`.
fn differing<'a>(then: &'a Value, now: &'a Value, keys: &'a [&str]) -> impl Iterator<Item = String> + 'a {
    let told = keys.iter().filter_map(|key| Some((*key, then.get(*key)?)));
    told.filter(|(key, told)| now.get(*key) != Some(*told))
        .map(move |(key, told)| format!("{key} was {told}, and is {now}"))
}

/// A gap in the log, and events that are not as somebody who followed it got them.
fn wrong_events(client: &Client, told: &[&Value]) -> Result<Vec<String>> {
    let events = client.list("/v1/events")?;
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
    let gaps = numbers.windows(2).filter(|pair| pair[0] + 1 != pair[1]).map(|pair| format!("a gap: {pair:?}"));
    let numbered: HashMap<u64, &Value> = numbers.iter().copied().zip(&events).collect();
    let changed = told.iter().filter_map(|event| {
        let now = event["seq"].as_u64().and_then(|seq| numbered.get(&seq).copied());
        (now != Some(*event)).then(|| format!("{event} was told, and its number now has {now:?}"))
    });
    Ok(gaps.chain(changed).collect())
}

/// Asks again what was answered with 201.
fn wrong_answer(client: &Client, request: &Value) -> Result<Option<String>> {
    let key = request["key"].as_str().context("a key")?;
    let again = client.ask("POST", "/v1/instances", &[("idempotency-key", key)], Some(&request["body"]))?;
    let same = again.status == 201 && again.json()["incarnation"] == request["incarnation"];
    Ok((!same).then(|| format!("{request} is answered with {} {}", again.status, again.text())))
}

/// Tells every event after number `after`.
fn follow(socket: &Path, after: u64, told: &Told) -> Result<()> {
    let mut connection = Connection::open(socket)?;
    let ask = format!("GET /v1/events?after={after} HTTP/1.1\r\nhost: sexton\r\naccept: text/event-stream\r\n\r\n");
    connection.send_raw(ask.as_bytes())?;
    connection.head()?;
    while let Some(piece) = connection.chunk()? {
        for line in String::from_utf8_lossy(&piece).lines().filter_map(|line| line.strip_prefix("data: ")) {
            told.add(&json!({ "event": serde_json::from_str::<Value>(line)? }))?;
        }
    }
    Ok(())
}

/// Starts, ends and removes one after the other, and tells what is answered.
fn live(client: &Client, told: &Told, who: &str) -> Result<()> {
    for life in 0u64.. {
        let (name, code) = (format!("{who}-{life}"), life % 255);
        let stays = life.is_multiple_of(3);
        let script = if stays { "sleep 1000".to_owned() } else { format!("exit {code}") };
        let body = json!({ "name": name, "argv": ["/bin/sh", "-c", script] });
        let created = client.ask("POST", "/v1/instances", &[("idempotency-key", &name)], Some(&body))?.expect(201);
        told.add(&json!({ "created": { "name": name, "incarnation": created["incarnation"] } }))?;
        told.add(&json!({ "request": { "key": name, "body": body, "incarnation": created["incarnation"] } }))?;
        if !stays {
            let path = format!("/v1/instances/{name}");
            let over = eventually("it ends", ENDS, || {
                let entry = client.get(&path).map_err(|error| error.to_string())?.expect(200);
                if entry["exit"].is_null() { Err(entry.to_string()) } else { Ok(entry) }
            });
            ensure!(over["exit"]["code"] == code, "{over}");
            told.add(&json!({ "ended": { "name": name, "exit": over["exit"] } }))?;
        }
        match life % 4 {
            1 => {
                told.add(&json!({ "removing": name }))?;
                client.delete(&format!("/v1/instances/{name}?force=true&wait=60s"))?.expect(200);
                told.add(&json!({ "removed": name }))?;
            }
            3 => {
                let stop = format!("/v1/instances/{name}/stop?wait=60s");
                let over = client.post(&stop, &json!({ "force": true }))?.expect(200);
                told.add(&json!({ "ended": { "name": name, "exit": over["exit"] } }))?;
            }
            _ => {}
        }
    }
    Ok(())
}
