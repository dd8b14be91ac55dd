//! Keeps logs bounded. A workload writes its logs itself, straight to files; what is oldest is dropped in place, so
//! that nothing newer is lost or repeated, whoever dies.
//!
//! A quiet log costs nothing: the kernel tells of the next write to it, once; then it is measured after a pause, and
//! watched again. The pause is short for the first write after a while and where much was dropped the last time, and
//! longer for those who only talk a lot. What the kernel will not watch for this user any more
//! (`fs.inotify.max_user_instances`, `max_user_watches`) is measured every second.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sexton_sys::inotify::{Inotify, Interest, Notice};
use sexton_sys::{Errno, file};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::readiness;

/// How long a log may be written to before it is measured, where much comes.
const PAUSE_SHORTEST: Duration = Duration::from_millis(2);
/// And where little does.
const PAUSE_LONGEST: Duration = Duration::from_millis(100);
/// After a time like this without a write the next is measured soon: nothing tells how many follow.
const SILENCE: Duration = Duration::from_secs(1);
/// How often a log is measured that the kernel does not watch.
const POLL: Duration = Duration::from_secs(1);
/// Holes are punched in whole blocks of this many bytes.
const BLOCK: u64 = 4096;

/// Watches logs, and drops their oldest bytes.
#[derive(Debug)]
pub struct LogKeeper {
    /// Where the kernel gives one.
    queue: Option<AsyncFd<Queue>>,
    paths: BTreeMap<i32, PathBuf>,
    /// What the kernel did not watch when it was last asked to.
    unwatched: Vec<PathBuf>,
    begun: mpsc::UnboundedReceiver<PathBuf>,
    keep: u64,
}

#[derive(Debug)]
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.raw()
    }
}

impl LogKeeper {
    /// Keeps `keep` bytes of every log whose path comes over the channel.
    pub fn new(keep: u64) -> (LogKeeper, mpsc::UnboundedSender<PathBuf>) {
        let (sender, begun) = mpsc::unbounded_channel();
        let queue = Inotify::new().map_err(|error| io::Error::from_raw_os_error(error.errno.0));
        let queue = queue.and_then(|queue| readiness::watch(Queue(queue), tokio::io::Interest::READABLE));
        if let Err(error) = &queue {
            tracing::warn!(%error, "logs are not watched, and measured every second instead");
        }
        (LogKeeper { queue: queue.ok(), paths: BTreeMap::new(), unwatched: Vec::new(), begun, keep }, sender)
    }

    /// Works until the daemon ends.
    pub async fn run(mut self) {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pace = Pace::new(Instant::now());
        loop {
            tokio::select! {
                Some(path) = self.begun.recv() => {
                    self.look_after(path);
                }
                () = noticed(self.queue.as_ref()) => {
                    sleep(pace.pause(Instant::now())).await;
                    let written = self.written();
                    let dropped = written.into_iter().map(|path| self.look_after(path)).max().unwrap_or(0);
                    pace.looked(Instant::now(), dropped, self.keep);
                }
                _ = poll.tick(), if !self.unwatched.is_empty() => {
                    for path in std::mem::take(&mut self.unwatched) {
                        self.look_after(path);
                    }
                }
            }
        }
    }

    /// The logs that were written to.
    fn written(&mut self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let paths = &mut self.paths;
        let mut take = |wd, notice| match (paths.remove(&wd), notice) {
            (Some(path), Notice::Changed) => found.push(path),
            // Removed with its instance.
            (_, Notice::Over) | (None, Notice::Changed) => {}
        };
        while self.queue.as_ref().is_some_and(|queue| queue.get_ref().0.take(&mut take).is_ok()) {}
        found
    }

    /// Watches a log for its next write, then measures it: what is written between the two is noticed. Tells how many
    /// bytes were dropped.
    fn look_after(&mut self, path: PathBuf) -> u64 {
        let Ok(c_path) = CString::new(path.as_os_str().as_bytes()) else { return 0 };
        let watch = self.queue.as_ref().map(|queue| queue.get_ref().0.watch(&c_path, Interest::NextWrite));
        let is_watched = match watch {
            Some(Ok(wd)) => {
                self.paths.insert(wd, path.clone());
                true
            }
            Some(Err(error)) => {
                tracing::debug!(%error, path = %path.display(), "log not watched");
                false
            }
            None => false,
        };
        let dropped = match bound(&path, self.keep) {
            // Removed with its instance.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return 0,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "log not bounded");
                0
            }
            Ok(dropped) => dropped,
        };
        if !is_watched {
            self.unwatched.push(path);
        }
        dropped
    }
}

/// How soon a log is measured after it is known to be written to: so soon that a flood does not get far beyond what is
/// kept, and so late that talk costs little.
#[derive(Debug)]
struct Pace {
    pause: Duration,
    looked_at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { pause: PAUSE_SHORTEST, looked_at: now }
    }

    /// The pause before what is written to is measured.
    fn pause(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.looked_at) > SILENCE {
            self.pause = PAUSE_SHORTEST;
        }
        self.pause
    }

    /// It was measured: `dropped` bytes were beyond the `keep` of the log that was furthest.
    fn looked(&mut self, now: Instant, dropped: u64, keep: u64) {
        self.looked_at = now;
        if dropped > keep {
            self.pause = (self.pause / 2).max(PAUSE_SHORTEST);
        } else if dropped <= keep / 4 {
            self.pause = (self.pause * 2).min(PAUSE_LONGEST);
        }
    }
}

/// Waits until the kernel tells of a write; without a queue it never does.
async fn noticed(queue: Option<&AsyncFd<Queue>>) {
    match queue {
        Some(queue) => match queue.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Drops the oldest bytes of a log beyond `keep`; tells how many.
///
/// # Errors
/// The file could not be read or changed.
pub fn bound(path: &Path, keep: u64) -> io::Result<u64> {
    let log = OpenOptions::new().read(true).write(true).open(path)?;
    let len = log.metadata()?.len();
    let first = file::seek_data(log.as_raw_fd(), 0).map_err(from_sys)?.unwrap_or(len);
    if len.saturating_sub(first) <= keep {
        return Ok(0);
    }
    // Whole blocks, so that at least `keep` bytes stay; the file keeps its length, and its writer its place.
    let end = (len - keep) / BLOCK * BLOCK;
    match file::punch_hole(log.as_raw_fd(), 0, end) {
        Ok(()) => {}
        Err(error) if error.errno == Errno::EOPNOTSUPP => copy_truncate(log, keep)?,
        Err(error) => return Err(from_sys(error)),
    }
    Ok(end.saturating_sub(first))
}

/// Where the file system cannot punch holes. What is written between the copy and the truncation is lost.
fn copy_truncate(mut log: File, keep: u64) -> io::Result<()> {
    let len = log.metadata()?.len();
    log.seek(SeekFrom::Start(len.saturating_sub(keep)))?;
    let mut tail = Vec::new();
    log.read_to_end(&mut tail)?;
    log.set_len(0)?;
    log.seek(SeekFrom::Start(0))?;
    log.write_all(&tail)
}

fn from_sys(error: sexton_sys::SysError) -> io::Error {
    io::Error::from_raw_os_error(error.errno.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_flood_is_measured_soon_and_talk_seldom() {
        const KEEP: u64 = 1 << 20;
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut pauses = |pace: &mut Pace, dropped| {
            let pause = pace.pause(now);
            now += pause;
            pace.looked(now, dropped, KEEP);
            pause
        };
        assert_eq!(pauses(&mut pace, 0), PAUSE_SHORTEST);
        let talk: Vec<_> = (0..10).map(|_| pauses(&mut pace, 0)).collect();
        assert!(talk.is_sorted() && talk.last() == Some(&PAUSE_LONGEST), "{talk:?}");
        let flood: Vec<_> = (0..10).map(|_| pauses(&mut pace, 2 * KEEP)).collect();
        assert!(flood.iter().rev().is_sorted() && flood.last() == Some(&PAUSE_SHORTEST), "{flood:?}");
        let _talk: Vec<_> = (0..10).map(|_| pauses(&mut pace, 0)).collect();
        assert_eq!(pace.pause(now + SILENCE * 2), PAUSE_SHORTEST);
    }

    #[test]
    fn the_newest_bytes_stay_in_place() {
        let path = std::env::temp_dir().join(format!("sexton-log-{}", std::process::id()));
        let mut log = OpenOptions::new().append(true).create(true).open(&path).expect("log");
        let lines: Vec<String> = (0..100_000).map(|n| format!("line {n}\n")).collect();
        log.write_all(lines.concat().as_bytes()).expect("written");
        let before = std::fs::read(&path).expect("read");
        let dropped = bound(&path, 64 * 1024).expect("bounded");
        let after = std::fs::read(&path).expect("read");
        let disk = std::fs::metadata(&path).expect("metadata").blocks() * 512;
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(after.len(), before.len());
        let kept = after.len() - 64 * 1024;
        assert_eq!(after[kept..], before[kept..]);
        assert!(after[..kept - 4096].iter().all(|byte| *byte == 0));
        assert_eq!(dropped, (kept / 4096 * 4096) as u64);
        assert!(disk <= 64 * 1024 + 2 * 4096, "{disk} bytes on the disk");
    }
}
