//! The exits of held processes, on disk before the process is reaped and until the worker has them in its ledger.
//!
//! `RUN/exits` is a head of 16 bytes and records of 40, each with a checksum, so that a torn one is left out and the
//! others are found. It is read once, by a keeper that finds one of an earlier keeper. What was acknowledged stays in
//! the file until nothing is left in it that was not, or it has grown: a record that is told twice is recognised by
//! its process's inode.

use core::ffi::CStr;
use core::ops::Range;

use sexton_sys::file::{self, AT_FDCWD, flags};
use sexton_sys::memory::Table;
use sexton_sys::{Errno, Fd, RawFd, SysError};

use crate::wire::{ExitRecord, Reader, Writer};

/// BOUND: records that wait for their acknowledgement. When it is reached, zombies stay zombies: their status is safe
/// there, and nothing is forgotten.
const BOUND: usize = 65_536;
/// BOUND: records that are written at once.
const BATCH: usize = 128;

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
    /// The file that is appended to; there is none where what is there is of an earlier keeper, or has grown.
    file: Option<Fd>,
    /// Records in the file, dead ones too.
    in_file: u64,
    waiting: Waiting,
}

/// The records that wait, as they are in the file, in the order of their numbers. Number `n` is in place `n % BOUND`;
/// zeroes are a gap.
#[derive(Debug)]
struct Waiting {
    records: Table<[u8; RECORD]>,
    /// The first number that may still be waited for.
    first: u64,
    /// The number that the next record gets.
    next: u64,
    /// Records from that number on that are not on the disk yet, and so not in the queue.
    staged: u64,
    live: u64,
}

impl<'a> Records<'a> {
    /// Reads what an earlier keeper left in `run_dir`. Nothing is written, for this start may yet be refused; what
    /// cannot be read is left where it is, and is written over by the first record; a pipe keeps nobody waiting.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn load(run_dir: &'a CStr) -> Result<Records<'a>, SysError> {
        let waiting = Waiting::new()?;
        let mut records = Records { run_dir, file: None, in_file: 0, waiting };
        if let Ok(dir) = open_dir(run_dir)
            && let Ok(old) = file::open(dir.raw(), FILE, flags::RDONLY | flags::NONBLOCK, 0)
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
        while read_whole(old, &mut bytes, offset).is_some() {
            if decode(&bytes).is_some() {
                // Those that were acknowledged come first.
                self.waiting.make_room();
                self.waiting.stage(&bytes);
                self.waiting.take_staged();
            }
            offset += RECORD as u64;
        }
    }

    /// How many records wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.live
    }

    /// The first waiting record whose number is at least `seq`.
    pub(crate) fn from(&self, seq: u64) -> Option<ExitRecord> {
        (seq.max(self.waiting.first)..self.waiting.next).find_map(|seq| self.waiting.at(seq))
    }

    /// Takes `exit` for the next `commit`; `false` where there is no room for it before that.
    pub(crate) fn stage(&mut self, exit: &ExitRecord) -> bool {
        let is_staged = |seq| self.waiting.read(seq).is_some_and(|other| other.pid == exit.pid);
        self.staged().any(is_staged) || self.waiting.stage(&encode(exit))
    }

    /// The numbers that those taken for the next `commit` will have.
    pub(crate) fn staged(&self) -> Range<u64> {
        self.waiting.next..self.waiting.next + self.waiting.staged
    }

    /// Puts what was staged on the disk, and into the queue once it is there.
    ///
    /// # Blocking
    /// Until the disk has it: this is what the zombies wait for.
    ///
    /// # Errors
    /// As `open`, `write` and `fdatasync`; then nothing has been added, and the zombies must stay.
    pub(crate) fn commit(&mut self) -> Result<(), SysError> {
        let written = self.write_staged();
        match written {
            Ok(()) => self.in_file += self.waiting.take_staged(),
            Err(_) => self.waiting.staged = 0,
        }
        written
    }

    /// Appends what is staged to the file.
    fn write_staged(&mut self) -> Result<(), SysError> {
        if self.waiting.is_full() {
            return Err(SysError::of(c"exits", Errno::ENOSPC));
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => self.write_anew()?,
        };
        let written = self.write_records(file.raw(), self.in_file, self.staged());
        if written.is_err() {
            // What is half there is cut off, or else written over by the next attempt.
            let _half = file::truncate(file.raw(), offset_of(self.in_file));
        }
        self.file = Some(file);
        written.map(|_| ())
    }

    /// Forgets record `seq`, which the worker has made durable.
    pub(crate) fn forget(&mut self, seq: u64) {
        self.waiting.remove(seq);
        let wasted = self.in_file.saturating_sub(self.waiting.live);
        if self.waiting.live == 0 {
            self.empty_file();
        } else if wasted > MUCH_WASTE + self.waiting.live {
            self.file = None;
        }
    }

    /// Cuts the file down to its head, where there is one of this keeper.
    fn empty_file(&mut self) {
        let Some(file) = &self.file else {
            return self.remove_file();
        };
        if file::truncate(file.raw(), HEAD_BYTES).is_ok() {
            self.in_file = 0;
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

    /// Writes a file of all waiting records, and puts it in the place of the old one.
    fn write_anew(&mut self) -> Result<Fd, SysError> {
        let dir = open_dir(self.run_dir)?;
        let flags = flags::RDWR | flags::CREAT | flags::TRUNC | flags::NOFOLLOW;
        let file = file::open(dir.raw(), NEW_FILE, flags, 0o600)?;
        let _full = file::reserve(file.raw(), RESERVE);
        file::write_all_at(file.raw(), &HEAD, 0)?;
        self.in_file = self.write_records(file.raw(), 0, self.waiting.first..self.waiting.next)?;
        file::rename(dir.raw(), NEW_FILE, FILE)?;
        Ok(file)
    }

    /// Writes the records that are there of the numbers `seqs` to `file`, the first one in `place`; tells how many, once
    /// the disk has them.
    fn write_records(&self, file: RawFd, place: u64, seqs: Range<u64>) -> Result<u64, SysError> {
        let mut count = 0;
        for record in seqs.filter_map(|seq| self.waiting.read(seq)) {
            file::write_all_at(file, &encode(&record), offset_of(place + count))?;
            count += 1;
        }
        file::sync_data(file)?;
        Ok(count)
    }
}

impl Waiting {
    fn new() -> Result<Waiting, SysError> {
        Ok(Waiting { records: Table::new(BOUND)?, first: 1, next: 1, staged: 0, live: 0 })
    }

    /// Whether another batch has no room, nor what is staged behind it.
    fn is_full(&self) -> bool {
        self.next - self.first > (BOUND - 2 * BATCH) as u64
    }

    /// Leaves the first record out where there are as many as ever wait.
    fn make_room(&mut self) {
        if self.next - self.first >= (BOUND - BATCH) as u64 {
            self.remove(self.first);
        }
    }

    /// Takes a record behind the queue; `false` where there is no room.
    fn stage(&mut self, record: &[u8; RECORD]) -> bool {
        match self.records.get_mut(place_of(self.next + self.staged)) {
            Some(slot) if self.staged < BATCH as u64 => {
                *slot = *record;
                self.staged += 1;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Takes into the queue what is behind it; tells how many.
    fn take_staged(&mut self) -> u64 {
        let count = core::mem::take(&mut self.staged);
        self.next += count;
        self.live += count;
        count
    }

    /// The record of number `seq`, where it is waited for.
    fn at(&self, seq: u64) -> Option<ExitRecord> {
        if (self.first..self.next).contains(&seq) { self.read(seq) } else { None }
    }

    /// The record in the place of number `seq`, where there is one.
    fn read(&self, seq: u64) -> Option<ExitRecord> {
        let record = decode(self.records.get(place_of(seq))?)?;
        Some(ExitRecord { seq, ..record })
    }

    fn remove(&mut self, seq: u64) {
        if self.at(seq).is_none() {
            return;
        }
        if let Some(record) = self.records.get_mut(place_of(seq)) {
            *record = [0; RECORD];
            self.live -= 1;
        }
        while self.first < self.next && self.at(self.first).is_none() {
            self.first += 1;
        }
    }
}

/// Where record number `place` of a file begins.
fn offset_of(place: u64) -> u64 {
    HEAD_BYTES + place * RECORD as u64
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
    Writer::new(&mut bytes).u32(record.pid).i32(record.status).u64(record.ino).u64(record.at_ns);
    if let Some((body, sum)) = bytes.split_last_chunk_mut() {
        *sum = checksum(body).to_le_bytes();
    }
    bytes
}

/// The record in `bytes`, where there is one and its checksum is right.
fn decode(bytes: &[u8; RECORD]) -> Option<ExitRecord> {
    let mut fields = Reader::new(bytes);
    let record = ExitRecord { seq: 0, pid: fields.u32(), status: fields.i32(), ino: fields.u64(), at_ns: fields.u64() };
    let (body, sum) = bytes.split_last_chunk()?;
    let is_whole = record.pid != 0 && checksum(body) == u64::from_le_bytes(*sum);
    is_whole.then_some(record)
}

/// FNV-1a over 64 bits: against torn writes and stray bytes, not against people.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
