//! Reading a log that its workload writes to meanwhile, and whose head may be dropped meanwhile.
//!
//! A log's first bytes may be a hole: they were dropped to bound it. Reading begins at the first line that is whole; or
//! at the first byte, where no line ends near it.
//! RACE: a hole may be punched while a piece is read. It always begins at the head, so a piece whose first byte is
//! still there after it was read is whole.
//!
//! What is sent of a life that was asked for by name has no gap: a reader that fell behind is cut off, as by a daemon
//! that ends, and asks again from where it was.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use sexton_core::gate::OwnedPermit;
use sexton_plan::id::{Incarnation, Name};
use sexton_sys::file::{flags, seek_data};
use tokio::sync::futures::Notified;
use tokio::sync::{mpsc, watch};

use super::Context;
use super::answer::END;
use super::types::Stream;
use crate::node::request::{NodeState, Watch};
use crate::refusal::{Kind, Refusal};

/// Bytes read at once.
const PIECE: usize = 64 * 1_024;

/// How far behind what was dropped the end of a line is looked for. BOUND: a workload that ends no lines, and writes faster
/// than is read here, is not run after.
const LONGEST_LINE: u64 = 1 << 20;

/// How often a log is looked at where the kernel gives no notices of it.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Even with notices a log is looked at so often; nothing is lost if one is.
const BACKSTOP: Duration = Duration::from_secs(5);

/// Where in a log to begin.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// At the first whole line that is kept.
    First,
    /// So many lines before the end.
    Tail(u64),
    /// At this byte of the file, or behind what was dropped since.
    Byte(u64),
}

/// A reader of one stream of one instance.
pub(super) struct Follow {
    pub context: Arc<Context>,
    pub name: Name,
    pub stream: Stream,
    /// Where in the first log that is read.
    pub from: Start,
    /// Only this life; the newest one, and followed by later ones, where `None`.
    pub life: Option<Incarnation>,
    /// Where the bytes go; its other end is gone when the reader is.
    pub sender: mpsc::Sender<Bytes>,
    /// Whether the node drains.
    pub status: watch::Receiver<NodeState>,
    /// The admission, so that a drain waits until everything is sent; or until it is forced.
    pub permit: Option<OwnedPermit>,
}

/// The log of one life, and how far it is read.
#[derive(Debug)]
struct Log {
    file: Arc<File>,
    at: u64,
}

/// A log that is about to be read.
pub(super) struct Reading {
    follow: Follow,
    watch: Watch,
    incarnation: String,
    log: Option<Log>,
    /// Where reading ends; `None` where it goes on.
    end: Option<u64>,
}

impl Reading {
    /// The life whose log is read first, and the number in its file of the first byte that is sent.
    pub(super) fn place(&self) -> (&str, u64) {
        (&self.incarnation, self.log.as_ref().map_or(0, |log| log.at))
    }

    /// Sends what the life has written, up to where its log ended at the beginning of this; or, where it follows, also
    /// what is written from now on and by later lives, until the instance is removed or the reader is gone. Following
    /// one life ends with that life; while the node drains no other follows, so there any following does.
    pub(super) async fn run(mut self) {
        let name = self.follow.name.clone();
        let cut = self.follow.permit.is_some().then(|| self.follow.status.clone());
        let ended = tokio::select! {
            ended = self.read() => ended,
            () = forced(cut) => Err(Ended::Cut),
        };
        match ended {
            Ok(()) => drop(self.follow.sender.send(END).await),
            Err(Ended::Cut) => {}
            Err(Ended::Failed(error)) => tracing::warn!(instance = %name, %error, "could not read a log"),
        }
    }

    async fn read(&mut self) -> Result<(), Ended> {
        match (self.end, &mut self.log) {
            (Some(end), Some(log)) => self.follow.pump(log, end).await,
            (Some(_), None) => Ok(()),
            (None, _) => self.go_on().await,
        }
    }

    async fn go_on(&mut self) -> Result<(), Ended> {
        loop {
            let newest = self.watch.borrow_and_update().clone();
            let draining = self.follow.status.borrow().is_draining();
            let notice = self.follow.context.writes.next(&self.follow.path(&self.incarnation));
            let written = notice.as_ref().map(|notice| notice.notified());
            if self.log.is_none() {
                self.log = self.follow.open(&self.incarnation, Start::First).await?;
            }
            if let Some(log) = &mut self.log {
                self.follow.pump(log, u64::MAX).await?;
            }
            let Some(newest) = newest else { return Ok(()) };
            let is_replaced = newest.incarnation.as_str() != self.incarnation;
            // What was written until it was over was sent just now: the entry was read before the log.
            let over = is_replaced || newest.state.is_terminal();
            if over && (self.follow.life.is_some() || (draining && !is_replaced)) {
                return Ok(());
            }
            if is_replaced {
                let (context, name, stream) = (&self.follow.context, &self.follow.name, self.follow.stream);
                self.incarnation = next_life(context, name, stream, &self.incarnation, newest.incarnation.as_str());
                self.log = None;
                continue;
            }
            let changed = self.follow.changed(&mut self.watch, written, self.log.is_some());
            tokio::select! {
                changed = changed => changed?,
                () = drains(self.follow.status.clone()), if !draining => {}
            }
        }
    }
}

/// Waits until the node drains; for ever where the driver is gone.
async fn drains(mut status: watch::Receiver<NodeState>) {
    if status.wait_for(NodeState::is_draining).await.is_err() {
        std::future::pending().await
    }
}

/// Waits until a drain is forced, where there is one to hear of.
async fn forced(status: Option<watch::Receiver<NodeState>>) {
    let Some(mut status) = status else { return std::future::pending().await };
    if status.wait_for(|state| state.forced).await.is_err() {
        std::future::pending().await
    }
}

/// Why reading ends early.
enum Ended {
    /// The reader or the daemon goes, or bytes were dropped that should have been sent.
    Cut,
    /// The log cannot be read.
    Failed(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        Ended::Failed(error)
    }
}

impl Follow {
    /// Finds where reading begins: what is written after this is read by whoever follows.
    ///
    /// # Errors
    /// The instance is gone, the life that was asked for has no log, or the log cannot be read.
    pub(super) async fn begin(self, follows: bool) -> Result<Reading, Refusal> {
        let unknown = || Refusal::new(Kind::NotFound, format!("there is no instance `{}`", self.name));
        let watch = self.context.node.watch(self.name.clone()).await?.ok_or_else(unknown)?;
        let newest = watch.borrow().clone().ok_or_else(unknown)?.incarnation.clone();
        let incarnation = self.life.as_ref().unwrap_or(&newest).to_string();
        let told = |error: io::Error| Refusal::new(Kind::Internal, format!("could not read the log: {error}"));
        let log = self.open(&incarnation, self.from).await.map_err(told)?;
        if log.is_none() && incarnation != newest.as_str() {
            return Err(Refusal::new(Kind::NotFound, format!("no log of incarnation {incarnation} is kept")));
        }
        let end = match &log {
            Some(log) if !follows => Some(log.file.metadata().map_err(told)?.len()),
            None if !follows => Some(0),
            Some(_) | None => None,
        };
        Ok(Reading { follow: self, watch, incarnation, log, end })
    }

    /// Waits for something new.
    async fn changed(&self, watch: &mut Watch, written: Option<Notified<'_>>, is_open: bool) -> Result<(), Ended> {
        let pause = if written.is_some() || !is_open { BACKSTOP } else { POLL_INTERVAL };
        tokio::select! {
            () = self.sender.closed() => Err(Ended::Cut),
            changed = watch.changed() => changed.map_err(|_| Ended::Cut),
            () = heard(written) => Ok(()),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    fn path(&self, incarnation: &str) -> PathBuf {
        path(&self.context, &self.name, self.stream, incarnation)
    }

    /// The log of one life, at the first byte to send; `None` where it has none.
    async fn open(&self, incarnation: &str, from: Start) -> io::Result<Option<Log>> {
        let path = self.path(incarnation);
        self.blocking(move || {
            // Nobody is to wait for the other end of a pipe that a workload has put in its log's place: that is no log.
            let file = match File::options().read(true).custom_flags(flags::NONBLOCK | flags::NOCTTY).open(&path) {
                Ok(file) if !file.metadata()?.is_file() => return Ok(None),
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let at = first_byte(&file, from)?;
            Ok(Some(Log { file: Arc::new(file), at }))
        })
        .await
    }

    /// Runs `work` on a thread where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        // Never closed; and if it were, more threads would do no harm.
        let _turn = self.context.disk.acquire().await;
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }

    /// Sends what there is, up to `end` or to where the log ends now.
    async fn pump(&self, log: &mut Log, end: u64) -> Result<(), Ended> {
        while log.at < end {
            let (file, at) = (log.file.clone(), log.at);
            let room = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let (piece, next) = self.blocking(move || read_piece(&file, at, room)).await?;
            let is_over = next == log.at;
            log.at = next;
            if is_over {
                return Ok(());
            }
            if piece.is_empty() {
                // Something was dropped unread. Of a flood that may be all there is to see, also of a reader who is gone.
                if self.life.is_some() || self.sender.is_closed() {
                    return Err(Ended::Cut);
                }
            } else if self.sender.send(piece.into()).await.is_err() {
                return Err(Ended::Cut);
            }
        }
        Ok(())
    }
}

/// The life after `last`, or `None` where there is none within `wait`.
///
/// # Errors
/// The instance is gone, or nothing follows on a node that drains.
pub(super) async fn life_after(
    context: &Context,
    name: &Name,
    stream: Stream,
    last: &Incarnation,
    wait: Duration,
) -> Result<Option<Incarnation>, Refusal> {
    let unknown = || Refusal::new(Kind::NotFound, format!("there is no instance `{name}`"));
    let mut watch = context.node.watch(name.clone()).await?.ok_or_else(unknown)?;
    let status = context.node.status().await?;
    let next = async {
        loop {
            let newest = watch.borrow_and_update().clone().ok_or_else(unknown)?;
            if newest.incarnation != *last {
                let life = next_life(context, name, stream, last.as_str(), newest.incarnation.as_str());
                return Ok(life.parse().unwrap_or_else(|_| newest.incarnation.clone()));
            }
            let draining = status.borrow().is_draining();
            if draining && newest.state.is_terminal() {
                return Err(Refusal::new(
                    Kind::NotFound,
                    format!("nothing follows: `{name}` is over, and the node drains"),
                ));
            }
            tokio::select! {
                changed = watch.changed() => changed.map_err(|_| Refusal::ending())?,
                () = drains(status.clone()), if !draining => {}
            }
        }
    };
    tokio::time::timeout(wait, next).await.map_or(Ok(None), |found| found.map(Some))
}

/// The life after `last`, up to `newest`: several may have come and gone since it was looked.
fn next_life(context: &Context, name: &Name, stream: Stream, last: &str, newest: &str) -> String {
    let path = path(context, name, stream, newest);
    let suffix = format!(".{}", stream.as_str());
    let names = path.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten();
    let lives = names.filter_map(|name| {
        let name = name.ok()?.file_name().into_string().ok()?;
        name.strip_suffix(&suffix).map(str::to_owned)
    });
    lives.filter(|life| life.as_str() > last && life.as_str() < newest).min().unwrap_or_else(|| newest.to_owned())
}

fn path(context: &Context, name: &Name, stream: Stream, incarnation: &str) -> PathBuf {
    context.settings.log_path(name.as_str(), incarnation, stream.as_str())
}

/// Waits for a notice; for ever where there is none to come.
async fn heard(written: Option<Notified<'_>>) {
    match written {
        Some(written) => written.await,
        None => std::future::pending().await,
    }
}

/// Reads at most `room` bytes at `at`, and tells where to go on: at `at` itself where nothing is there yet.
fn read_piece(file: &File, at: u64, room: usize) -> io::Result<(Vec<u8>, u64)> {
    let mut piece = vec![0; room];
    let count = file.read_at(&mut piece, at)?;
    piece.truncate(count);
    let next = behind_dropped(file, at)?;
    if next == at { Ok((piece, at + count as u64)) } else { Ok((Vec::new(), next)) }
}

/// `at` itself where nothing was dropped from there on, otherwise the first whole line that is kept, or the first byte.
fn behind_dropped(file: &File, at: u64) -> io::Result<u64> {
    let size = file.metadata()?.len();
    if size < at {
        // Its writer, or a file system without holes, has cut it off: what is there now is new.
        return Ok(0);
    }
    match kept_from(file, at)? {
        Some(kept) if kept == at => Ok(at),
        Some(kept) => line_after(file, kept),
        None => Ok(size),
    }
}

/// The first byte from `at` on that is kept; `None` where nothing is.
fn kept_from(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek_data(file.as_raw_fd(), at) {
        Ok(found) => Ok(found),
        // A file system that knows no holes has none.
        Err(error) if error.errno.is_unsupported() => Ok(Some(at)),
        Err(error) => Err(io::Error::from_raw_os_error(error.errno.0)),
    }
}

/// Where to begin.
fn first_byte(file: &File, from: Start) -> io::Result<u64> {
    match from {
        Start::First => behind_dropped(file, 0),
        Start::Byte(at) => behind_dropped(file, at),
        Start::Tail(lines) => {
            let size = file.metadata()?.len();
            lines_before(file, behind_dropped(file, 0)?, size, lines)
        }
    }
}

/// The beginning of the first line behind `kept`; `kept` itself where none ends near it.
fn line_after(file: &File, kept: u64) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut at = kept;
    while at - kept < LONGEST_LINE {
        let count = file.read_at(&mut piece, at)?;
        let read = piece.get(..count).unwrap_or_default();
        if let Some(line_end) = read.iter().position(|b| *b == b'\n') {
            return Ok(at + line_end as u64 + 1);
        }
        if count == 0 {
            break;
        }
        at += count as u64;
    }
    Ok(kept)
}

/// The beginning of the last `lines` lines between `first` and `end`.
fn lines_before(file: &File, first: u64, end: u64, lines: u64) -> io::Result<u64> {
    if lines == 0 {
        return Ok(end);
    }
    let mut left = lines;
    let mut at = end;
    let mut piece = vec![0; PIECE];
    while at > first {
        let begin = at.saturating_sub(PIECE as u64).max(first);
        let space = piece.get_mut(..usize::try_from(at - begin).unwrap_or(PIECE)).unwrap_or_default();
        file.read_exact_at(space, begin)?;
        for (index, byte) in space.iter().enumerate().rev() {
            let behind = begin + index as u64 + 1;
            // The line end at the very end ends the last line, and begins none.
            if *byte != b'\n' || behind == end {
                continue;
            }
            left -= 1;
            if left == 0 {
                return Ok(behind);
            }
        }
        at = begin;
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn scratch(name: &str, text: &[u8]) -> (std::path::PathBuf, File) {
        let path = std::env::temp_dir().join(format!("sexton-follow-{}-{name}", std::process::id()));
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("made");
        file.write_all(text).expect("written");
        (path, file)
    }

    #[test]
    fn the_last_lines_are_found_whether_or_not_the_last_one_is_whole() {
        let (path, file) = scratch("tail", b"one\ntwo\nthree");
        for (lines, at) in [(0, 13), (1, 8), (2, 4), (3, 0), (9, 0)] {
            assert_eq!(first_byte(&file, Start::Tail(lines)).expect("read"), at, "{lines}");
        }
        std::fs::remove_file(path).expect("removed");
        let (path, file) = scratch("tail", b"one\ntwo\n");
        for (lines, at) in [(0, 8), (1, 4), (2, 0)] {
            assert_eq!(first_byte(&file, Start::Tail(lines)).expect("read"), at, "{lines}");
        }
        std::fs::remove_file(path).expect("removed");
    }

    #[test]
    fn reading_begins_at_the_first_whole_line_behind_a_hole() {
        let text: Vec<u8> = (0..40_000).flat_map(|n| format!("{n:06}\n").into_bytes()).collect();
        let (path, file) = scratch("hole", &text);
        sexton_sys::file::punch_hole(file.as_raw_fd(), 0, 65_536).expect("punched");
        let at = first_byte(&file, Start::First).expect("read");
        assert!((65_536..65_544).contains(&at) && at.is_multiple_of(7), "{at}");
        let (piece, next) = read_piece(&file, at, 14).expect("read");
        assert_eq!((piece.len(), next), (14, at + 14));
        let (piece, next) = read_piece(&file, 0, 100).expect("read");
        assert!(piece.is_empty() && next == at, "what is gone is skipped, never sent as zeroes");
        std::fs::remove_file(path).expect("removed");
    }
}
