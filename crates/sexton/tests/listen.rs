//! The extra TCP listener: it needs a token, is had or the start is refused, and stays whoever dies.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use sexton_testkit::{Ground, SOON, eventually};

use support::{Dead, Node, SEXTON};

const TOKEN: &str = "a-token-that-nobody-guesses";

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    taken.local_addr().expect("an address")
}

fn write_token(ground: &Ground, token: &str) {
    let file = ground.dir().join("token");
    std::fs::write(&file, token).expect("written");
    std::fs::write(ground.config(), format!("listen_token_file = \"{}\"\n", file.display())).expect("written");
}

/// Connects, and asks; the answer is for later.
fn ask(address: SocketAddr, token: &str) -> std::io::Result<TcpStream> {
    ask_by(address, &format!("Bearer {token}"))
}

fn ask_by(address: SocketAddr, credentials: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    let head = format!("GET /v1/version HTTP/1.1\r\nhost: sexton\r\nconnection: close\r\nauthorization: {credentials}");
    stream.write_all(format!("{head}\r\n\r\n").as_bytes())?;
    Ok(stream)
}

/// The status of the answer.
fn status(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn a_port_stays_open_whoever_dies() {
    let address = free();
    let mut node = Node::prepared(SEXTON, &[("SEXTON_LISTEN", &address.to_string())], |ground| {
        write_token(ground, TOKEN);
    });
    assert_eq!(status(ask(address, TOKEN).expect("asked")), "200");
    assert_eq!(status(ask(address, "another-token-entirely").expect("asked")), "401");
    // REGRESSION: the scheme was known in one spelling alone.
    assert_eq!(status(ask_by(address, &format!("bearer {TOKEN}")).expect("asked")), "200");
    for credentials in [TOKEN.to_owned(), format!("Basic {TOKEN}"), "Bearer".to_owned(), "Bearer ".to_owned()] {
        assert_eq!(status(ask_by(address, &credentials).expect("asked")), "401", "{credentials}");
    }
    // Who asks while there is no worker is answered by the next one.
    let mut asked = None;
    node.kill(Dead::Worker, || asked = Some(ask(address, TOKEN).expect("nobody is refused")));
    assert_eq!(status(asked.expect("asked")), "200");
    // And while one worker follows another at a reload.
    let (worker, is_over) = (node.daemon().worker().expect("worker"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut connected = 0;
            while !is_over.load(Ordering::Acquire) {
                // Of so many who come while nobody accepts, some are asked to come again, which takes them seconds.
                drop(TcpStream::connect_timeout(&address, SOON).expect("nobody is refused"));
                connected += 1;
            }
            connected
        });
        node.daemon().keeper().expect("keeper").signal(1).expect("asked");
        assert!(worker.ends_within(SOON), "the worker is replaced");
        node.daemon().wait_ready().expect("another worker");
        is_over.store(true, Ordering::Release);
        assert!(asking.join().expect("never refused") > 0);
    });
    assert_eq!(status(ask(address, TOKEN).expect("asked")), "200");
    node.daemon.take().expect("a daemon").terminate(SOON).expect("ended");
    assert!(TcpStream::connect(address).is_err(), "it ends with the daemon");
}

/// Starts a daemon that refuses; its exit code, and what it says.
fn refused(ground: &Ground, address: SocketAddr) -> (Option<i32>, String) {
    let mut command = ground.command(&["serve", "--listen", &address.to_string()]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("the program starts");
    let ended = eventually("the start is refused", SOON, || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        other => Err(format!("{other:?}")),
    });
    let mut said = String::new();
    child.stderr.take().expect("stderr").read_to_string(&mut said).expect("text");
    assert!(!ground.state_dir().exists() && !ground.run_dir().exists(), "nothing was made: {said}");
    (ended.code(), said)
}

#[test]
fn a_start_is_refused_where_the_address_or_the_token_is_not_to_be_had() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let ground = Ground::new(SEXTON).expect("a ground");
    write_token(&ground, TOKEN);
    let (code, said) = refused(&ground, address);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains(&format!("could not listen at `{address}`")), "{said}");
    drop(taken);
    write_token(&ground, "short");
    let (code, said) = refused(&ground, address);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("listen_token_file"), "{said}");
    std::fs::remove_file(ground.dir().join("token")).expect("removed");
    let (code, said) = refused(&ground, address);
    assert_eq!(code, Some(64), "{said}");
}

#[test]
fn a_socket_may_lie_deeper_than_its_address_has_room_for() {
    let ground = Ground::new(SEXTON).expect("a ground");
    // REGRESSION: 107 bytes is what `sockaddr_un` takes, and the start ended with 73.
    let deep = ground.dir().join("a-directory-with-a-long-name".repeat(4)).join("run");
    let place = |verb: &str| {
        let mut command = std::process::Command::new(SEXTON);
        command.arg(verb).arg("--run-dir").arg(&deep).arg("--state-dir").arg(ground.state_dir());
        command.arg("--config").arg(ground.config()).args(["--cgroup", ground.cgroup()]);
        command
    };
    let mut keeper = place("serve").spawn().expect("the program starts");
    eventually("the daemon answers", SOON, || {
        let told = place("node").output().map_err(|error| error.to_string())?;
        if told.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&told.stderr).into_owned()) }
    });
    let second = place("serve").output().expect("the program starts");
    assert_eq!(second.status.code(), Some(75), "{}", String::from_utf8_lossy(&second.stderr));
    let held = sexton_testkit::Held::child_of(std::process::id(), keeper.id().cast_signed()).expect("our child");
    held.signal(15).expect("told to end");
    assert!(keeper.wait().expect("ended").success());
}

/// What `sexton ARGS…` answers the user `uid`.
fn asked_by(node: &Node, uid: u32, args: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new("setpriv");
    command.args([&format!("--reuid={uid}"), "--clear-groups", "--", SEXTON]).args(node.ground.flags()).args(args);
    let output = command.output().expect("setpriv");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn users_with_a_role_are_let_in_and_nobody_else() {
    let access = |uids: &[(u32, &str)]| -> String {
        uids.iter().map(|(uid, role)| format!("[[access]]\nuid = {uid}\nrole = \"{role}\"\n")).collect()
    };
    let mut node = Node::on(SEXTON, |ground| {
        std::fs::write(ground.config(), access(&[(61_002, "admin"), (61_001, "read")])).expect("configured");
    });
    let run = ["run", "a", "--", "sleep", "1000"];
    assert_eq!(asked_by(&node, 61_001, &["ps"]).0, Some(0));
    let (code, said) = asked_by(&node, 61_001, &run);
    assert!(code == Some(1) && said.contains("your role is `read`"), "{code:?} {said}");
    let (code, said) = asked_by(&node, 61_002, &run);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = asked_by(&node, 61_003, &["ps"]);
    assert!(code == Some(6) && said.contains("Permission denied"), "{code:?} {said}");
    // A reload lets in whom the file names now.
    std::fs::write(node.ground.config(), access(&[(61_003, "read")])).expect("configured");
    let worker = node.daemon().worker().expect("worker");
    node.daemon().keeper().expect("keeper").signal(1).expect("asked");
    assert!(worker.ends_within(SOON), "the worker is replaced");
    node.daemon().wait_ready().expect("another worker");
    assert_eq!(asked_by(&node, 61_003, &["ps"]).0, Some(0));
    assert_eq!(asked_by(&node, 61_002, &["ps"]).0, Some(6));
}
