//! A file system that never answers: whoever asks it for a file sleeps where SIGKILL does not reach.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use sexton_sys::poll::{self, PollFd, events};
use sexton_testkit::{SOON, eventually};

/// `FUSE_INIT` of `linux/fuse.h`, the only question that is answered.
const INIT: u32 = 26;
/// More than the kernel asks for at once.
const QUESTION_MAX: usize = 1 << 17;

/// One that is mounted. [`Unanswering::release`] lets everybody go who waits for it.
#[derive(Debug)]
pub struct Unanswering {
    dir: PathBuf,
    server: Option<(JoinHandle<()>, UnixStream)>,
    asked: Arc<AtomicU32>,
}

impl Unanswering {
    /// Mounts one at `dir`, which is made; `None` where this host has no FUSE.
    pub fn mount(dir: &Path) -> Option<Unanswering> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        std::fs::create_dir_all(dir).expect("a mount point");
        let options = "fd=0,rootmode=40000,user_id=0,group_id=0,allow_other";
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o", options, "sexton-test"]).arg(dir);
        let status = mount.stdin(Stdio::from(device.try_clone().expect("a copy"))).status().expect("mount");
        assert!(status.success(), "mount: {status}");
        drop(mount);
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let server = std::thread::spawn(move || serve(device, &theirs, &counted));
        Some(Unanswering { dir: dir.to_owned(), server: Some((server, ours)), asked })
    }

    /// A file that it might have.
    pub fn file(&self) -> String {
        self.dir.join("file").display().to_string()
    }

    /// Waits until that many questions wait for an answer.
    pub fn wait_asked(&self, count: u32) {
        eventually("the file system is asked", SOON, || {
            let asked = self.asked.load(Ordering::Acquire);
            if asked >= count { Ok(()) } else { Err(format!("{asked} of {count}")) }
        });
    }

    /// Ends every wait, with an error.
    pub fn release(&mut self) {
        let Some((server, end)) = self.server.take() else { return };
        drop(end);
        server.join().expect("the server ends");
        let target = std::ffi::CString::new(self.dir.as_os_str().as_bytes()).expect("a path");
        sexton_sys::mount::unmount(&target).expect("unmounted");
    }
}

impl Drop for Unanswering {
    fn drop(&mut self) {
        self.release();
    }
}

/// Reads every question, so that the kernel waits for the answer whatever happens, and answers the first one alone.
/// The device is closed at its end, which ends the connection.
fn serve(mut device: File, end: &UnixStream, asked: &AtomicU32) {
    let mut question = vec![0; QUESTION_MAX];
    loop {
        let mut fds = [PollFd::new(device.as_raw_fd(), events::IN), PollFd::new(end.as_raw_fd(), events::IN)];
        poll::poll(&mut fds, None).expect("polled");
        if fds[1].has(events::IN | events::HUP) {
            return;
        }
        let length = device.read(&mut question).expect("a question");
        let word = |at: usize| u32::from_le_bytes(question[at..at + 4].try_into().expect("four bytes"));
        assert!(length >= 40, "{length}");
        if word(4) == INIT {
            device.write_all(&ready(&question[8..16])).expect("answered");
        } else {
            asked.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// `fuse_out_header` and `fuse_init_out`: version 7.31, nothing special.
fn ready(unique: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    answer.extend(80_u32.to_le_bytes());
    answer.extend(0_u32.to_le_bytes());
    answer.extend(unique);
    for word in [7_u32, 31, 4_096, 0, 0, 4_096, 1] {
        answer.extend(word.to_le_bytes());
    }
    answer.resize(80, 0);
    answer
}
