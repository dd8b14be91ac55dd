//! What is followed comes whole and once, whoever dies and however many lives come and go meanwhile.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

mod support;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::json;
use sexton_testkit::{Ground, SOON, eventually};
use support::{Dead, Node, SEXTON, file_appears, spec, text};

/// A pipe with a name, whose bytes an instance copies to its stdout; a life ends with them.
struct Pipe(PathBuf);

impl Pipe {
    fn new(node: &Node) -> Pipe {
        let path = node.ground.dir().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo starts");
        assert!(made.success());
        Pipe(path)
    }

    /// Waits for the reader.
    fn open(&self) -> File {
        File::options().write(true).open(&self.0).expect("opened")
    }
}

/// `sexton logs`, with its output in a file.
struct Follower {
    child: Child,
    output: PathBuf,
}

impl Follower {
    fn start(node: &Node, file: &str, args: &[&str]) -> Follower {
        let output = node.ground.dir().join(file);
        let mut command = node.ground.command(&[&["logs", "talks", "-f"], args].concat());
        command.stdin(Stdio::null()).stdout(File::create(&output).expect("made"));
        Follower { child: command.spawn().expect("the program starts"), output }
    }

    fn has(&mut self, text: &str) {
        eventually("what was written is printed", SOON, || {
            if let Some(status) = self.child.try_wait().expect("asked") {
                return Err(format!("it ended early: {status}"));
            }
            let printed = fs::read_to_string(&self.output).expect("read");
            if printed == text { Ok(()) } else { Err(format!("{printed:?} instead of {text:?}")) }
        });
    }
}

#[test]
fn what_is_followed_comes_once_over_dead_daemons_and_new_lives() {
    let mut node = Node::new(SEXTON, &[]);
    let pipe = Pipe::new(&node);
    let body = spec("talks", &["/bin/cat", &pipe.0.display().to_string()]);
    node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    let mut writer = pipe.open();
    writer.write_all(b"1\n").expect("written");
    let mut whole = Follower::start(&node, "whole", &[]);
    whole.has("1\n");
    node.kill(Dead::Worker, || writer.write_all(b"2\n").expect("written"));
    whole.has("1\n2\n");
    let mut tail = Follower::start(&node, "tail", &["--tail", "1"]);
    tail.has("2\n");
    node.kill(Dead::Both, || {
        writer.write_all(b"3\n").expect("written");
        drop(writer);
    });
    for (dead, first, last) in [(Dead::Worker, "4\n", "5\n"), (Dead::Both, "6\n", "7\n")] {
        // How it ended, nobody may know (before Linux 6.15).
        node.settled("talks");
        node.ask("POST", "/v1/instances/talks/start", None, Some(&json!({}))).0.expect(200);
        let mut writer = pipe.open();
        writer.write_all(first.as_bytes()).expect("written");
        node.kill(dead, || {
            writer.write_all(last.as_bytes()).expect("written");
            drop(writer);
        });
    }
    whole.has("1\n2\n3\n4\n5\n6\n7\n");
    tail.has("2\n3\n4\n5\n6\n7\n");
    node.ask("DELETE", "/v1/instances/talks?force=true&wait=10s", None, None).0.expect(200);
    for mut follower in [whole, tail] {
        let ended = eventually("it ends with the instance", SOON, || {
            follower.child.try_wait().expect("asked").ok_or_else(|| "it follows".to_owned())
        });
        assert!(ended.success(), "{ended}");
    }
    node.clear();
}

#[test]
fn as_many_ended_lives_keep_their_logs_as_the_configuration_says() {
    let mut node = Node::on(SEXTON, |ground| {
        fs::write(ground.config(), "[logs]\nincarnations = 2\n").expect("configured");
    });
    node.ask("POST", "/v1/instances", None, Some(&spec("talks", &["/bin/true"]))).0.expect(201);
    let mut lives = vec![text(&node.settled("talks"), "incarnation")];
    for _ in 0..3 {
        node.ask("POST", "/v1/instances/talks/start", None, None).0.expect(200);
        lives.push(text(&node.settled("talks"), "incarnation"));
    }
    let files = fs::read_dir(node.ground.state_dir().join("logs/talks")).expect("read");
    let names = files.map(|file| file.expect("read").file_name().into_string().expect("text"));
    let mut kept: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".stdout")?.to_owned())).collect();
    kept.sort_unstable();
    // REGRESSION: those of one more were kept.
    assert_eq!(kept, lives[2..]);
    node.clear();
}

#[test]
fn nobody_waits_for_what_a_workload_has_put_in_its_logs_place() {
    let mut node = Node::new(SEXTON, &[]);
    for (name, put) in [("pipe", "mkfifo"), ("dir", "mkdir")] {
        let there = node.ground.dir().join(format!("{name}-there"));
        let line = format!("log=$(readlink /proc/$$/fd/1); rm \"$log\"; {put} \"$log\"; touch {}", there.display());
        let body = spec(name, &["/bin/sh", "-c", &format!("{line}; exec sleep 1000")]);
        node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
        file_appears(&there);
        // More than there are threads for readers.
        for _ in 0..8 {
            let log = node.ground.client().get(&format!("/v1/instances/{name}/logs")).expect("an answer");
            assert_eq!((log.status, log.text().as_str()), (200, ""), "{name}");
        }
    }
    node.clear();
}

#[test]
fn nobody_waits_for_the_end_of_a_line_that_a_flood_never_ends() {
    let mut node = Node::on(SEXTON, |ground| {
        fs::write(ground.config(), "[logs]\nkeep = \"256KiB\"\n").expect("configured");
    });
    let flood = spec("floods", &["/bin/cat", "/dev/zero"]);
    let log = text(&node.ask("POST", "/v1/instances", None, Some(&flood)).0.expect(201), "incarnation");
    let log = node.ground.state_dir().join(format!("logs/floods/{log}.stdout"));
    eventually("its head is dropped", SOON, || {
        let about = fs::metadata(&log).expect("a log");
        let dropped = about.len().saturating_sub(about.blocks() * 512);
        if dropped > 8 << 20 { Ok(()) } else { Err(format!("{dropped} bytes")) }
    });
    // REGRESSION: each ran after its writer without end, and more than there are threads for readers kept all from theirs.
    for _ in 0..8 {
        let log = node.ground.client().get("/v1/instances/floods/logs").expect("an answer");
        assert_eq!(log.status, 200);
    }
    node.ask("POST", "/v1/instances/floods/stop?wait=20s", None, Some(&json!({ "force": true }))).0.expect(200);
    // Where no line ends, what is kept is told all the same.
    let told = node.ground.client().get("/v1/instances/floods/logs").expect("an answer").body.len();
    assert!(told >= 256 << 10, "{told} bytes");
    node.clear();
}

#[test]
fn a_daemon_that_goes_away_before_the_first_byte_is_waited_for() {
    let ground = Ground::new(SEXTON).expect("a ground");
    fs::create_dir_all(ground.run_dir()).expect("made");
    let listener = UnixListener::bind(ground.run_dir().join("sexton.sock")).expect("bound");
    let mut command = ground.command(&["logs", "talks"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let life = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let shown = format!("{{\"name\":\"talks\",\"incarnation\":\"{life}\"}}");
    std::thread::spawn(move || {
        let mut is_lost = false;
        while let Ok((mut asked, _)) = listener.accept() {
            let (mut request, mut buffer) = (Vec::new(), [0; 4_096]);
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let len = asked.read(&mut buffer).expect("read");
                assert!(len > 0, "half a request");
                request.extend_from_slice(&buffer[..len]);
            }
            let is_log = request.starts_with(b"GET /v1/instances/talks/logs");
            if is_log && !std::mem::replace(&mut is_lost, true) {
                continue;
            }
            let (kind, body) = if is_log { ("octet-stream", "said\n") } else { ("json", shown.as_str()) };
            let about = format!("Sexton-Incarnation: {life}\r\nSexton-Offset: 0\r\nContent-Length: {}", body.len());
            let head = format!("Content-Type: application/{kind}\r\nConnection: close\r\n{about}");
            write!(asked, "HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}").expect("written");
        }
    });
    // REGRESSION: whoever asked just as the daemon was upgraded was told that it is lost.
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"said\n".as_slice()), "{output:?}");
}
