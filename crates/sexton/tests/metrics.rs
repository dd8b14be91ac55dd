//! Every metric tells of what has happened: it is made to happen, and then read as Prometheus reads it.

mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::json;
use sexton_testkit::{Daemon, Ground, SOON, eventually};
use support::SEXTON;

/// The value of one series, 0 where it is not shown.
fn value(daemon: &Daemon, series: &str) -> f64 {
    let text = daemon.client().get("/metrics").expect("an answer").text();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
    line.map_or(0.0, |number| number.parse().expect("a number"))
}

fn grows(daemon: &Daemon, series: &str) {
    eventually(series, SOON, || if value(daemon, series) >= 1.0 { Ok(()) } else { Err("0".to_owned()) });
}

#[test]
fn what_has_happened_is_counted() {
    let ground = Ground::new(SEXTON).expect("a ground");
    let dir = ground.dir().display().to_string();
    fs::create_dir_all(ground.dir().join("guests/a")).expect("made");
    fs::create_dir_all(ground.dir().join("guests/b")).expect("made");
    for id in ["a", "b"] {
        fs::write(ground.dir().join(format!("guests/{id}/disk")), "").expect("written");
    }
    fs::write(ground.dir().join("guests/a/metadata.json"), "{\"pid\":1}").expect("written");
    let runtime = format!("[[runtime]]\nname = \"tail\"\nexecutables = [\"{dir}/tail\"]\n");
    let watch = format!(
        "[[watch]]\nname = \"w\"\nruntimes = [\"tail\"]\nmetadata = \"{dir}/guests/{{id}}/metadata.json\"\n\
         pid_field = \"pid\"\norphan_grace = \"1ms\"\non_orphan = \"terminate\"\n"
    );
    fs::write(ground.config(), format!("[reconcile]\ninterval = \"200ms\"\n{runtime}{watch}")).expect("written");
    fs::copy("/usr/bin/tail", ground.dir().join("tail")).expect("copied");
    let mut daemon = ground.serve().expect("the daemon starts");
    let post = |daemon: &Daemon, path: &str, body: serde_json::Value, status: u16| {
        daemon.client().post(path, &body).expect("an answer").expect(status);
    };
    // What its main process leaves behind becomes the keeper's, and is nobody's zombie.
    let leaves = "sleep 1000 & echo left; exec sleep 1000";
    post(&daemon, "/v1/instances", json!({ "name": "a", "argv": ["sh", "-c", leaves] }), 201);
    eventually("it has something to leave", SOON, || match daemon.client().get("/v1/instances/a/logs") {
        Ok(log) if log.text() == "left\n" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    post(&daemon, "/v1/instances/a/stop?wait=20s", json!({}), 200);
    post(&daemon, "/v1/instances", json!({ "name": "b", "argv": ["sleep", "1000"] }), 201);
    post(&daemon, "/v1/instances/b/stop?wait=20s", json!({ "force": true }), 200);
    for series in [
        "sexton_kill_steps_total{step=\"ask\"}",
        "sexton_kill_steps_total{step=\"kill\"}",
        "sexton_ledger_commit_seconds_count",
        "sexton_reconcile_duration_seconds_count",
        "sexton_reaper_sweeps_total",
        "sexton_reaper_last_sweep_timestamp_seconds",
    ] {
        grows(&daemon, series);
    }
    assert!(value(&daemon, "sexton_events_dropped_total").abs() < f64::EPSILON);
    for id in ["a", "b"] {
        // The shell ends at once, and what it leaves is an orphan.
        let line = format!("{dir}/tail -f {dir}/guests/{id}/disk </dev/null >/dev/null 2>&1 &");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(line).process_group(0);
        assert!(shell.status().expect("sh").success());
    }
    for series in ["seen", "adopted", "terminated"].map(|action| format!("sexton_orphans{{action=\"{action}\"}}")) {
        grows(&daemon, &series);
    }
    fs::remove_file(ground.dir().join("guests/a/metadata.json")).expect("removed");
    eventually("both orphans are ended", SOON, || {
        let ended = value(&daemon, "sexton_orphans{action=\"terminated\"}");
        if ended >= 2.0 { Ok(()) } else { Err(ended.to_string()) }
    });
    daemon.kill9_worker().expect("killed");
    daemon.wait_ready().expect("another worker");
    grows(&daemon, "sexton_reaper_restarts_total");
    assert_eq!(daemon.client().get("/healthz").expect("an answer").status, 200);
}
