//! The worker that does what the test tells it to, on its side of the control stream.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use sexton_keeper::link::{KeeperLink, LinkError};
use sexton_keeper::wire::{HeldProcess, OnShutdown, StoreName, SweepPolicy, ToKeeper};
use sexton_sys::poll::{PollFd, events, poll};
use sexton_sys::{Errno, pidfd};

/// What a worker answers that hears nothing from then on.
const HANGING: &str = "hanging";

/// Carries out orders and passes on what the keeper says, until one of the two has gone.
pub fn serve(link: &KeeperLink, mut control: UnixStream, mut orders: BufReader<UnixStream>) {
    let mut kept: Vec<UnixListener> = Vec::new();
    loop {
        let mut fds = [PollFd::new(link.raw(), events::IN), PollFd::new(control.as_raw_fd(), events::IN)];
        poll(&mut fds, None).unwrap();
        if fds[0].came() != 0 && !pass_on(link, &mut control) {
            std::process::exit(0);
        }
        if fds[1].came() != 0 {
            let mut line = String::new();
            // An error is a test that left without reading all: over, too.
            if orders.read_line(&mut line).unwrap_or(0) == 0 {
                std::process::exit(0);
            }
            let answer = obey(link, &mut kept, line.trim_end());
            writeln!(control, "{answer}").unwrap();
            if answer == HANGING {
                loop {
                    std::thread::park();
                }
            }
        }
    }
}

/// Passes on all that the keeper has said; `false` once it has ended.
fn pass_on(link: &KeeperLink, control: &mut UnixStream) -> bool {
    loop {
        match link.receive() {
            Ok(news) => {
                let fd = news.fd.map_or(String::new(), |fd| format!(" inode {}", pidfd::inode(fd.raw()).unwrap()));
                // A test that does not listen any more may have left an order all the same.
                let _unheard = writeln!(control, "keeper: {:?}{fd}", news.message);
            }
            Err(LinkError::Empty) => return true,
            Err(LinkError::Closed) => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

fn obey(link: &KeeperLink, kept: &mut Vec<UnixListener>, order: &str) -> String {
    let words: Vec<&str> = order.splitn(2, ' ').collect();
    let rest = words.get(1).copied().unwrap_or("");
    let numbers: Vec<u64> = rest.split(' ').filter_map(|word| word.parse().ok()).collect();
    let held = || HeldProcess { pid: u32::try_from(numbers[0]).unwrap(), ino: numbers[1] };
    let small = |index: usize| u32::try_from(numbers[index]).unwrap();
    let message = match words[0] {
        "prepared" => ToKeeper::Prepared,
        "ready" => ToKeeper::Ready,
        "hold" => ToKeeper::Hold(held()),
        "release" => ToKeeper::Release(held()),
        "ack" => ToKeeper::Ack { seq: numbers[0] },
        "sweep" => ToKeeper::Sweep(SweepPolicy { enabled: numbers[0] == 1, interval_ms: small(1), grace_ms: small(2) }),
        "drain" => ToKeeper::Mode(OnShutdown::Drain),
        "finished" => ToKeeper::Finished { code: u8::try_from(numbers[0]).unwrap() },
        "unstore" => ToKeeper::Unstore(StoreName::new(rest.as_bytes()).unwrap()),
        "store" => {
            let listener = UnixListener::bind(rest).unwrap();
            link.store(StoreName::new(b"api").unwrap(), listener.as_raw_fd()).unwrap();
            let inode = pidfd::inode(listener.as_raw_fd()).unwrap();
            kept.push(listener);
            return format!("stored {inode}");
        }
        #[allow(clippy::zombie_processes, reason = "the keeper is to reap what the worker leaves behind")]
        "spawn" => {
            let child = Command::new("sh").args(["-c", rest]).stdin(Stdio::null()).spawn().unwrap();
            let fd = pidfd::open(i32::try_from(child.id()).unwrap()).unwrap();
            return format!("spawned {} {}", child.id(), pidfd::inode(fd.raw()).unwrap());
        }
        // It takes the kernel a moment to end it then.
        "weigh" => {
            std::vec::Vec::leak(vec![1_u8; 256 << 20]);
            return "heavy".to_owned();
        }
        "stdin" => return format!("stdin {}", std::fs::read_link("/proc/self/fd/0").unwrap().display()),
        "fds" => return format!("fds {}", std::fs::read_dir("/proc/self/fd").unwrap().count()),
        "hang" => return HANGING.to_owned(),
        "exit" => std::process::exit(i32::try_from(numbers[0]).unwrap()),
        other => panic!("no such order: {other}"),
    };
    while let Err(error) = link.send(&message) {
        assert_eq!(error.errno, Errno::EAGAIN);
        poll(&mut [PollFd::new(link.raw(), events::OUT)], None).unwrap();
    }
    "done".to_owned()
}
