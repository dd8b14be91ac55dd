//! The exits of held processes, on disk before the process is reaped and until the worker has them in its ledger.
//!
//! `RUN/exits` is a head of 16 bytes and records of 40, each with a checksum, so that a torn one is left out and the
//! others are found. It is read once, by a keeper that finds one of an earlier keeper. What was acknowledged stays in
//! the file until nothing is left in it that was not, or it has grown: a record that is told twice is recognised by
//! its process's inode.

use core::ffi::CStr;

use sexton_sys::file::{self, AT_FDCWD, flags};
use sexton_sys::memory::Table;
use sexton_sys::{Errno, Fd, RawFd, SysError};

use crate::wire::ExitRecord;

/// BOUND: records that wait for their acknowledgement. When it is reached, zombies stay zombies: their status is safe
/// there, and nothing is forgotten.
const BOUND: usize = 65_536;
/// BOUND: records that are written at once.
pub(crate) const BATCH: usize = 128;

const FILE: &CStr = c"exits";
const NEW_FILE: &CStr = c"exits.new";
/// Magic, version 1, bytes in a record.
const HEAD: [u8; 16] = *b"SXTNEXIT\x01\0\0\0\x28\0\0\0";
const HEAD_BYTES: u64 = HEAD.len() as u64;
const RECORD: usize = 40;
/// A file with so many records that nobody waits for any more is written anew.
const MUCH_WASTE: u64 = 1024;
/// Blocks that are kept for the file, so that a few exits can be recorded on a full disk.
const RESERVE: u64 = 64 << 10;

/// The records and their file.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    run_dir: &'a CStr,
    /// The same, once it has been needed: it may be made only after the keeper has started.
    dir: Option<Fd>,
    file: Option<Fd>,
    /// Records in the file, dead ones too.
    in_file: u64,
    /// Whether the file is one of an earlier keeper, or none that can be appended to.
    stale: bool,
    waiting: Waiting,
}

/// The records that wait, in the order of their numbers. Number `n` is in place `n % BOUND`; a PID of 0 is a gap.
#[derive(Debug)]
struct Waiting {
    pids: Table<u32>,
    statuses: Table<i32>,
    inos: Table<u64>,
    times: Table<u64>,
    /// The first number that may still be waited for.
    first: u64,
    /// The number that the next record gets.
    next: u64,
    live: u64,
}

impl<'a> Records<'a> {
    /// Reads what an earlier keeper left in `run_dir`. Nothing is written, for this start may yet be refused; what
    /// cannot be read is left where it is, and is written over by the first record.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn load(run_dir: &'a CStr) -> Result<Records<'a>, SysError> {
        let waiting = Waiting::new()?;
        let mut records = Records { run_dir, dir: None, file: None, in_file: 0, stale: true, waiting };
        if let Ok(dir) = open_dir(run_dir)
            && let Ok(old) = file::open(dir.raw(), FILE, flags::RDONLY, 0)
        {
            records.load_file(old.raw());
        }
        Ok(records)
    }

    fn load_file(&mut self, old: RawFd) {
        let mut head = [0; HEAD.len()];
        if read_whole(old, &mut head, 0).is_none() || head != HEAD {
            return;
        }
        let mut bytes = [0; RECORD];
        let mut offset = HEAD_BYTES;
        while self.waiting.has_room() && read_whole(old, &mut bytes, offset).is_some() {
            if let Some(record) = decode(&bytes) {
                self.waiting.push(record);
            }
            offset += RECORD as u64;
        }
    }

    /// How many records wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.live
    }

    /// Whether a whole batch can be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.has_room()
    }

    /// The first waiting record whose number is at least `seq`.
    pub(crate) fn from(&self, seq: u64) -> Option<ExitRecord> {
        (seq.max(self.waiting.first)..self.waiting.next).find_map(|seq| self.waiting.at(seq))
    }

    /// Puts `batch` on the disk, and into the queue once it is there; its numbers are set.
    ///
    /// # Blocking
    /// Until the disk has it: this is what the zombies wait for.
    ///
    /// # Errors
    /// As `open`, `write` and `fdatasync`; then nothing has been added, and the zombies must stay.
    pub(crate) fn add(&mut self, batch: &mut [ExitRecord]) -> Result<(), SysError> {
        self.prepare_file()?;
        let file = self.file.as_ref().map(Fd::raw).ok_or(SysError::of(&"openat", Errno::EBADF))?;
        let mut bytes = [0; RECORD * BATCH];
        let mut len = 0;
        for (slot, (record, seq)) in bytes.chunks_exact_mut(RECORD).zip(batch.iter_mut().zip(self.waiting.next..)) {
            record.seq = seq;
            slot.copy_from_slice(&encode(record));
            len += RECORD;
        }
        let offset = HEAD_BYTES + self.in_file * RECORD as u64;
        let written = file::write_all_at(file, bytes.get(..len).unwrap_or_default(), offset);
        if let Err(error) = written.and_then(|()| file::sync_data(file)) {
            // What is half there is cut off, or else written over by the next attempt.
            let _half = file::truncate(file, offset);
            return Err(error);
        }
        self.in_file += batch.len() as u64;
        batch.iter().for_each(|&record| self.waiting.push(record));
        Ok(())
    }

    /// Forgets record `seq`, which the worker has made durable.
    pub(crate) fn forget(&mut self, seq: u64) {
        self.waiting.remove(seq);
        let wasted = self.in_file.saturating_sub(self.waiting.live);
        if self.waiting.live == 0 {
            self.empty_file();
        } else if wasted > MUCH_WASTE + self.waiting.live {
            self.stale = true;
        }
    }

    /// Cuts the file down to its head, where there is one of this keeper.
    fn empty_file(&mut self) {
        let Some(file) = &self.file else {
            // An earlier keeper's.
            return self.remove_file();
        };
        if file::truncate(file.raw(), HEAD_BYTES).is_ok() {
            self.in_file = 0;
            self.stale = false;
            let _full = file::reserve(file.raw(), RESERVE);
        }
    }

    /// Removes the file, where nothing in it is waited for.
    pub(crate) fn remove_file(&mut self) {
        if self.waiting.live == 0
            && let Ok(dir) = open_dir(self.run_dir)
        {
            self.file = None;
            let _gone = file::unlink(dir.raw(), FILE);
        }
    }

    /// Opens the file to append to, with only waiting records in it.
    fn prepare_file(&mut self) -> Result<(), SysError> {
        if self.file.is_some() && !self.stale {
            return Ok(());
        }
        let dir = match self.dir.take() {
            Some(dir) => dir,
            None => open_dir(self.run_dir)?,
        };
        let fresh = self.write_anew(dir.raw());
        self.dir = Some(dir);
        let (file, count) = fresh?;
        self.file = Some(file);
        self.in_file = count;
        self.stale = false;
        Ok(())
    }

    /// Writes a file of all waiting records, and puts it in the place of the old one.
    fn write_anew(&self, dir: RawFd) -> Result<(Fd, u64), SysError> {
        let file = file::open(dir, NEW_FILE, flags::RDWR | flags::CREAT | flags::TRUNC | flags::NOFOLLOW, 0o600)?;
        let _full = file::reserve(file.raw(), RESERVE);
        file::write_all_at(file.raw(), &HEAD, 0)?;
        let mut count = 0;
        let mut next = 0;
        while let Some(record) = self.from(next) {
            file::write_all_at(file.raw(), &encode(&record), HEAD_BYTES + count * RECORD as u64)?;
            count += 1;
            next = record.seq + 1;
        }
        file::sync_data(file.raw())?;
        file::rename(dir, NEW_FILE, FILE)?;
        Ok((file, count))
    }
}

impl Waiting {
    fn new() -> Result<Waiting, SysError> {
        Ok(Waiting {
            pids: Table::new(BOUND)?,
            statuses: Table::new(BOUND)?,
            inos: Table::new(BOUND)?,
            times: Table::new(BOUND)?,
            first: 1,
            next: 1,
            live: 0,
        })
    }

    fn has_room(&self) -> bool {
        self.next - self.first <= (BOUND - BATCH) as u64
    }

    /// Appends `record` under the next number.
    fn push(&mut self, record: ExitRecord) {
        let place = place_of(self.next);
        let Waiting { pids, statuses, inos, times, .. } = self;
        let slots = (pids.get_mut(place), statuses.get_mut(place), inos.get_mut(place), times.get_mut(place));
        if let (Some(pid), Some(status), Some(ino), Some(time)) = slots {
            (*pid, *status, *ino, *time) = (record.pid, record.status, record.ino, record.at_ns);
            self.next += 1;
            self.live += 1;
        }
    }

    /// The record of number `seq`, where it is waited for.
    fn at(&self, seq: u64) -> Option<ExitRecord> {
        if !(self.first..self.next).contains(&seq) {
            return None;
        }
        let place = place_of(seq);
        let pid = self.pids.get(place).copied().filter(|&pid| pid != 0)?;
        let (status, ino, at_ns) = (*self.statuses.get(place)?, *self.inos.get(place)?, *self.times.get(place)?);
        Some(ExitRecord { seq, pid, ino, status, at_ns })
    }

    fn remove(&mut self, seq: u64) {
        if self.at(seq).is_none() {
            return;
        }
        if let Some(pid) = self.pids.get_mut(place_of(seq)) {
            *pid = 0;
            self.live -= 1;
        }
        while self.first < self.next && self.at(self.first).is_none() {
            self.first += 1;
        }
    }
}

/// The place of number `seq`.
fn place_of(seq: u64) -> usize {
    // The remainder is below BOUND.
    usize::try_from(seq % BOUND as u64).unwrap_or(0)
}

fn open_dir(path: &CStr) -> Result<Fd, SysError> {
    file::open(AT_FDCWD, path, flags::RDONLY | flags::DIRECTORY, 0)
}

/// Fills `bytes` from `offset`; `None` where the file ends before.
fn read_whole(fd: RawFd, bytes: &mut [u8], offset: u64) -> Option<()> {
    let len = file::read_at(fd, bytes, offset).ok()?;
    (len == bytes.len()).then_some(())
}

/// PID, status, inode, time, a spare field, checksum. The number is not kept: another keeper counts anew.
fn encode(record: &ExitRecord) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let (body, sum) = bytes.split_at_mut(RECORD - 8);
    let fields = [u64::from(record.pid) | u64::from(record.status.cast_unsigned()) << 32, record.ino, record.at_ns, 0];
    for (slot, field) in body.chunks_exact_mut(8).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes());
    }
    sum.copy_from_slice(&checksum(body).to_le_bytes());
    bytes
}

/// The record in `bytes`, where its checksum is right.
fn decode(bytes: &[u8; RECORD]) -> Option<ExitRecord> {
    let (body, sum) = bytes.split_last_chunk::<8>()?;
    if checksum(body) != u64::from_le_bytes(*sum) {
        return None;
    }
    let (pid, rest) = body.split_first_chunk()?;
    let (status, rest) = rest.split_first_chunk()?;
    let (ino, rest) = rest.split_first_chunk()?;
    let (at_ns, _spare) = rest.split_first_chunk()?;
    let pid = u32::from_le_bytes(*pid);
    (pid != 0).then_some(ExitRecord {
        seq: 0,
        pid,
        ino: u64::from_le_bytes(*ino),
        status: i32::from_le_bytes(*status),
        at_ns: u64::from_le_bytes(*at_ns),
    })
}

/// FNV-1a over 64 bits: against torn writes and stray bytes, not against people.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
