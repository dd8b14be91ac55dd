//! The command line as others meet it: exit codes, words, and what it does while daemons come and go.
#![allow(clippy::disallowed_types, reason = "a test starts programs")]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use sexton_testkit::{Ground, Held, SOON, eventually, skip};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sexton");
const SIGTERM: i32 = 15;
const SIGUSR1: i32 = 10;
const SIGWINCH: i32 = 28;
const SIGRTMAX: i32 = 64;
const SIGSTOP: i32 = 19;

/// The program with nothing of this process's environment, and no configuration.
fn bare(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("SEXTON_CONFIG", "/dev/null").env("SEXTON_SOCKET", "/nonexistent/sexton.sock").args(args);
    command
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn usage_errors_are_2_and_64_for_serve() {
    for args in [
        &["frobnicate"][..],
        &["ps", "--bogus"],
        &["run", "a"],
        &["stop"],
        &["signal", "a", "term"],
        &["ps", "-o", "xml"],
    ] {
        let (code, stdout, stderr) = output(&mut bare(args));
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    }
    assert_eq!(output(&mut bare(&["serve", "--bogus"])).0, Some(64));
    assert_eq!(output(&mut bare(&["serve", "--drain-timeout", "5"])).0, Some(64));
    assert_eq!(output(&mut bare(&["ps", "--drain-timeout", "5"])).0, Some(2));
}

#[test]
fn bad_names_are_refused_before_anybody_is_asked() {
    let long = "a".repeat(64);
    for name in ["", ".", "..", "a/b", "../etc", "A", "ä", "a b", "a\n", "_a", &long] {
        for args in [
            &["run", name, "--", "true"][..],
            &["start", name],
            &["stop", name],
            &["stop", "good", name],
            &["signal", name, "TERM"],
            &["wait", name],
            &["rm", name],
            &["show", name],
            &["logs", name],
            &["adopt", name, "--pid", "2"],
        ] {
            let (code, _, stderr) = output(&mut bare(args));
            assert_eq!(code, Some(2), "{args:?}: {stderr}");
        }
    }
}

#[test]
fn without_a_daemon_everything_that_needs_one_is_6_with_a_hint() {
    for args in [
        &["ps"][..],
        &["run", "a", "--", "true"],
        &["run", "a", "--attach", "--", "true"],
        &["start", "a"],
        &["stop", "a", "b"],
        &["signal", "a", "TERM"],
        &["wait", "a"],
        &["rm", "a"],
        &["show", "a"],
        &["logs", "a", "-f"],
        &["events", "-f"],
        &["node"],
        &["drain", "--wait"],
        &["nodes"],
        &["slots"],
        &["plan"],
        &["apply"],
        &["reconcile"],
        &["top", "--once"],
        &["ps", "--socket", "http+unix:///nonexistent/other.sock"],
    ] {
        let (code, _, stderr) = output(&mut bare(args));
        assert_eq!(code, Some(6), "{args:?}: {stderr}");
        assert!(stderr.contains("error: ") && stderr.contains("\nhint: "), "{args:?}: {stderr}");
    }
}

#[test]
fn control_characters_come_back_escaped() {
    for args in [
        &["show", "a\x1b[31m\nerror: b"][..],
        &["\x1b]0;x\x07"],
        &["ps", "--socket", "/nope\x1b[2J"],
        &["ps", "--state-dir", "\x1b"],
    ] {
        let (_, stdout, stderr) = output(&mut bare(args));
        let text = stdout + &stderr;
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert!(!text.contains("\nerror: b"), "{text:?}");
    }
}

#[test]
fn arguments_that_are_no_text_are_named_and_refused() {
    let bad = OsStr::from_bytes(b"a\xff\x1b");
    let (code, _, stderr) = output(bare(&["show"]).arg(bad));
    assert_eq!((code, stderr.contains(r"a\xff\x1b")), (Some(2), true), "{stderr}");
    assert_eq!(output(bare(&["run", "a", "--", "echo"]).arg(bad)).0, Some(2));
    assert_eq!(output(bare(&["serve", "--state-dir"]).arg(bad)).0, Some(64));
}

#[test]
fn it_tells_of_itself() {
    let (code, stdout, _) = output(&mut bare(&["completions", "bash"]));
    assert!(code == Some(0) && stdout.contains("complete") && stdout.contains("boot-check"));
    let (code, stdout, _) = output(&mut bare(&["man"]));
    assert!(code == Some(0) && stdout.contains(".TH") && stdout.contains("\\-\\-on\\-shutdown"), "{stdout}");
    for args in [&["completions", "bash", "-o", "json"], &["man", "run", "-o", "json"]] {
        let (_, plain, _) = output(&mut bare(&args[..2]));
        let document: Value = output(&mut bare(args)).1.parse().expect("one document");
        assert_eq!(document["text"], plain, "{args:?}");
    }
    let (code, stdout, _) = output(&mut bare(&["--help"]));
    assert!(code == Some(0) && stdout.contains("Exit codes"));
    assert_eq!(output(&mut bare(&["--version"])).1, format!("sexton {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_settings_are_shown_and_checked() {
    let (code, stdout, _) = output(&mut bare(&["config", "show", "-o", "json", "--cgroup", "a/b"]));
    let shown: Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!(
        (code, &shown["cgroup"], &shown["socket"]),
        (Some(0), &"a/b".into(), &"/nonexistent/sexton.sock".into())
    );
    assert_eq!(output(&mut bare(&["config", "check"])).0, Some(0));
    assert_eq!(output(bare(&["config", "check"]).env("SEXTON_ON_SHUTDOWN", "explode")).0, Some(2));
}

#[test]
fn the_host_is_looked_at_without_a_daemon_too() {
    let (code, stdout, _) = output(bare(&["doctor", "-o", "json"]).env("SEXTON_CGROUP", "sexton-test-absent"));
    let report: Value = stdout.parse().expect("one document");
    assert_eq!(code, Some(if report["ok"] == true { 0 } else { 1 }), "{stdout}");
    let daemon = report["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "daemon");
    assert_eq!(daemon.expect("told")["grade"], "warn");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = bare(&["man"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_ledger_that_is_not_there_is_told_and_not_made() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    assert_eq!(output(&mut ground.command(&["ledger", "verify"])).0, Some(3));
    let (code, stdout, _) = output(&mut ground.command(&["boot-check", "-o", "json"]));
    assert_eq!((code, stdout.parse::<Value>().expect("one document")["settled"].as_u64()), (Some(0), Some(0)));
    assert!(!ground.state_dir().exists());
}

#[test]
fn the_verbs_of_a_life_do_what_they_say() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let daemon = ground.serve().expect("serves");
    let run = |args: &[&str]| output(&mut ground.command(args));
    let json = |args: &[&str]| -> Value { run(args).1.parse().expect("one document") };

    assert_eq!(run(&["run", "a", "--label", "x=y", "--", "sleep", "1000"]), (Some(0), "a\n".into(), String::new()));
    let (code, _, stderr) = run(&["run", "a", "--", "true"]);
    assert!(code == Some(4) && stderr.contains("hint: "), "{stderr}");
    assert_eq!(run(&["run", "b", "--", "/no/such/program"]).0, Some(1));
    assert_eq!(json(&["show", "b", "-o", "json"])["state"], "failed");
    assert_eq!(run(&["rm", "b"]).0, Some(0));
    assert_eq!(run(&["rm", "a"]).0, Some(4), "a live one is refused");
    assert_eq!(run(&["wait", "a", "--timeout", "50ms"]).0, Some(7));
    assert_eq!(run(&["ps", "-o", "json", "--label", "x=z"]).1.parse::<Value>().unwrap()["items"], Value::Array(vec![]));
    assert_eq!(json(&["ps", "-o", "json", "--label", "x=y"])["items"][0]["name"], "a");
    assert_eq!(run(&["signal", "a", "KILL"]).0, Some(0));
    assert_eq!(run(&["wait", "a"]).1, "ended by SIGKILL\n");
    assert_eq!(json(&["wait", "a", "-o", "json"])["exit"]["signal"], 9);
    assert_eq!(run(&["start", "a"]).0, Some(0));
    let (code, stdout, _) = run(&["show", "a"]);
    assert!(code == Some(0) && stdout.contains("State: running since") && stdout.contains("sleep 1000"), "{stdout}");
    assert_eq!(run(&["stop", "a"]), (Some(0), "a: ended by SIGTERM\n".into(), String::new()));
    assert_eq!(run(&["stop", "a"]).0, Some(0), "stopping what is over succeeds");
    assert_eq!(run(&["signal", "a", "TERM"]).0, Some(4));
    assert_eq!(run(&["stop", "a", "nobody"]).0, Some(5), "partly done");
    assert_eq!(run(&["stop", "nobody"]).0, Some(3));
    assert_eq!(run(&["rm", "a"]), (Some(0), "a: removed\n".into(), String::new()));
    assert_eq!(run(&["show", "a"]).0, Some(3));
    assert_eq!(json(&["ps", "-a", "-o", "json"])["items"].as_array().map(Vec::len), Some(0));
    drop(daemon);
    assert_eq!(json(&["ledger", "verify", "-o", "json"])["sound"], true);
}

#[test]
fn attached_output_is_whole_and_the_code_is_the_childs() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let _daemon = ground.serve().expect("serves");
    let script = "seq 1 200000; echo end; echo of >&2; exit 7";
    let result = ground.command(&["run", "a", "--attach", "--", "sh", "-c", script]).output().expect("runs");
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect::<String>() + "end\n";
    assert!(result.stdout == expected.as_bytes(), "{} of {} bytes", result.stdout.len(), expected.len());
    assert_eq!((result.status.code(), result.stderr.as_slice()), (Some(7), &b"of\n"[..]));
    let killed = ground.command(&["run", "b", "--attach", "--", "sh", "-c", "kill -9 $$"]).output().expect("runs");
    assert_eq!(killed.status.code(), Some(137));
    // REGRESSION: `-o json` was not heard here.
    let script = "printf 'a\\n\\033b'; echo c >&2; exit 7";
    let told =
        ground.command(&["-o", "json", "run", "c", "--attach", "--", "sh", "-c", script]).output().expect("runs");
    let lines = String::from_utf8(told.stdout).expect("text");
    let mut lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    lines.sort_by_key(ToString::to_string);
    let line = |stream: &str, line: &str| json!({"stream": stream, "line": line});
    assert_eq!(lines, [line("stderr", "c"), line("stdout", "\x1bb"), line("stdout", "a")]);
    assert_eq!((told.status.code(), told.stderr.as_slice()), (Some(7), &b""[..]));
}

#[test]
fn what_is_dumped_is_json_whatever_a_row_holds() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let daemon = ground.serve().expect("serves");
    let odd = "\x7f\u{9b}\u{202e}\u{feff}\\u202e é";
    let body = json!({"name": "a", "argv": ["true", odd]});
    daemon.client().post("/v1/instances", &body).expect("an answer").expect(201);
    let dump = ground.command(&["ledger", "dump"]).output().expect("a dump");
    let text = String::from_utf8(dump.stdout).expect("text");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{text:?}");
    // REGRESSION: such characters were escaped as for people, which is no JSON.
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let entry = lines.iter().find_map(|line| line.get("entry")).expect("the instance");
    assert_eq!(entry["spec"]["argv"][1], odd);
}

#[test]
fn an_attached_run_ends_when_nobody_reads_any_more() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let _daemon = ground.serve().expect("serves");
    let mut command = ground.command(&["run", "a", "--attach", "--", "yes"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("read");
    let output = child.wait_with_output().expect("ends");
    assert_eq!((line.as_str(), output.status.code(), output.stderr.as_slice()), ("y\n", Some(141), &b""[..]));
    assert_eq!(output_of(&ground, &["ps", "-o", "json"])["items"][0]["state"], "running", "it is not ended by that");
}

fn output_of(ground: &Ground, args: &[&str]) -> Value {
    output(&mut ground.command(args)).1.parse().expect("one document")
}

/// A child of this test, held so that it can be signalled.
fn held(child: &Child) -> Held {
    Held::child_of(std::process::id(), i32::try_from(child.id()).expect("fits")).expect("it lives")
}

#[test]
fn signals_to_the_attached_go_to_the_child() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let _daemon = ground.serve().expect("serves");
    let script = "for signal in 10 28 64; do trap \"echo $signal\" $signal; done; trap 'exit 9' TERM; echo ready
                  while :; do sleep 0.05; done";
    let mut command = ground.command(&["run", "a", "--attach", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("read"), "ready");
    // REGRESSION: but for six of them, signals ended the program or were lost.
    for signal in [SIGUSR1, SIGRTMAX, SIGWINCH] {
        held(&child).signal(signal).expect("sent");
        assert_eq!(lines.next().expect("a line").expect("read"), signal.to_string());
    }
    held(&child).signal(SIGTERM).expect("sent");
    assert_eq!(child.wait().expect("ends").code(), Some(9));
}

#[test]
fn what_is_attached_outlives_a_worker_without_loss_or_repetition() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let mut daemon = ground.serve().expect("serves");
    let script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.01; done; exit 3";
    let mut command = ground.command(&["run", "a", "--attach", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut text = String::new();
    lines.read_line(&mut text).expect("read");
    daemon.replace_worker().expect("replaced");
    lines.read_to_string(&mut text).expect("read");
    assert_eq!(text, (1..=300).map(|n| format!("{n}\n")).collect::<String>());
    assert_eq!(child.wait().expect("ends").code(), Some(3));
}

#[test]
fn what_is_attached_ends_with_its_own_life_though_another_follows() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let _daemon = ground.serve().expect("serves");
    let script = "echo life; exit 5";
    let output = ground.command(&["run", "a", "--restart", "always", "--attach", "--", "sh", "-c", script]).output();
    let output = output.expect("runs");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(5), &b"life\n"[..]));
}

#[test]
fn a_run_whose_worker_dies_meanwhile_makes_one_instance() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let mut daemon = ground.serve().expect("serves");
    let worker = daemon.worker().expect("there");
    worker.signal(SIGSTOP).expect("stopped");
    let running = ground.command(&["run", "a", "--", "sleep", "1000"]).stdout(Stdio::piped()).spawn().expect("starts");
    connected(&running);
    worker.kill9().expect("killed");
    daemon.wait_ready().expect("another one");
    let output = running.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"a\n"[..]));
    let lives = daemon.client().list("/v1/events").expect("read").into_iter();
    assert_eq!(lives.filter(|event| event["kind"] == "instance.starting").count(), 1);
}

#[test]
fn a_daemon_that_hangs_keeps_nobody_longer_than_was_asked() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let mut daemon = ground.serve().expect("serves");
    assert_eq!(output(&mut ground.command(&["run", "a", "--", "sleep", "1000"])).0, Some(0));
    let worker = daemon.worker().expect("there");
    worker.signal(SIGSTOP).expect("stopped");
    let asked: [&[&str]; 8] = [
        &["wait", "a", "--timeout", "100ms"],
        &["stop", "a", "--wait", "100ms"],
        &["drain", "--force", "--wait", "--timeout", "100ms"],
        // What the daemon has at hand comes at once or never.
        &["ps"],
        &["show", "a"],
        &["logs", "a"],
        &["events"],
        &["node"],
    ];
    let asked: Vec<Child> = asked.iter().map(|args| ground.command(args).spawn().expect("starts")).collect();
    for mut child in asked {
        let code = eventually("it gives up", std::time::Duration::from_secs(20), || match child.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            Ok(None) => Err("it waits".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        assert_eq!(code, Some(6));
    }
    worker.kill9().expect("killed");
    daemon.wait_ready().expect("another one");
}

#[test]
fn who_asks_anew_waits_no_longer_than_was_asked() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    std::fs::create_dir_all(ground.run_dir()).expect("made");
    let listener = UnixListener::bind(ground.run_dir().join("sexton.sock")).expect("bound");
    let mut command = ground.command(&["wait", "a", "--timeout", "30s"]);
    let child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let mut asked = [String::new(), String::new()];
    for (number, line) in asked.iter_mut().enumerate() {
        let (stream, _) = listener.accept().expect("a caller");
        BufReader::new(&stream).read_line(line).expect("read");
        if number == 1 {
            let body = r#"{"name":"a","state":"exited","exit":{"code":3,"signal":null}}"#;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
            (&stream).write_all(format!("{head}\r\n\r\n{body}").as_bytes()).expect("written");
        }
        // A daemon that goes away hangs up.
    }
    let output = child.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"exited with code 3\n"[..]));
    // REGRESSION: all of it was to be waited again.
    assert_ne!(asked[0], asked[1]);
}

/// Waits until a child has a socket open.
fn connected(child: &Child) {
    eventually("it is connected", SOON, || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", child.id())).map_err(|error| error.to_string())?;
        let is_socket = |fd: std::fs::DirEntry| {
            std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        };
        if fds.flatten().any(is_socket) { Ok(()) } else { Err("no socket".to_owned()) }
    });
}

#[test]
fn followed_events_outlive_the_daemon_and_repeat_nothing() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let daemon = ground.serve().expect("serves");
    let mut command = ground.command(&["events", "-f", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut seqs = Vec::new();
    let mut until = |kind: &str, name: &str| {
        for line in lines.by_ref() {
            let event: Value = line.expect("read").parse().expect("one object a line");
            seqs.push(event["seq"].as_u64().expect("numbered"));
            if event["kind"] == kind && event["instance"] == name {
                return;
            }
        }
        panic!("the stream ended");
    };
    assert_eq!(output(&mut ground.command(&["run", "a", "--", "true"])).0, Some(0));
    until("instance.exited", "a");
    daemon.kill9_both().expect("killed");
    let _next = ground.serve().expect("serves again");
    assert_eq!(output(&mut ground.command(&["run", "b", "--", "true"])).0, Some(0));
    until("instance.exited", "b");
    let expected: Vec<u64> = (1..=seqs.len() as u64).collect();
    assert_eq!(seqs, expected);
    child.kill().expect("killed");
    child.wait().expect("reaped");
}

#[test]
fn a_wait_outlives_the_worker() {
    let Ok(ground) = Ground::new(PROGRAM) else { skip!("no cgroup2") };
    let mut daemon = ground.serve().expect("serves");
    let gate = ground.dir().join("gate");
    let script = format!("while ! [ -e {} ]; do sleep 0.02; done; exit 4", gate.display());
    assert_eq!(output(&mut ground.command(&["run", "a", "--", "sh", "-c", &script])).0, Some(0));
    let waiting = ground.command(&["wait", "a"]).stdout(Stdio::piped()).spawn().expect("starts");
    connected(&waiting);
    daemon.replace_worker().expect("replaced");
    std::fs::write(gate, "").expect("opened");
    let output = waiting.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"exited with code 4\n"[..]));
}
