//! What keeper and worker say to each other: one message a packet of a `SOCK_SEQPACKET` pair.
//!
//! A message is its kind and the length of its body, 16 bits each, and the body; numbers are little endian. After an
//! upgrade the two are of different versions, so both skip a kind that they do not know, and what follows the fields
//! that they know in a body. A field is never removed and never changes its meaning; a version may add fields at the
//! end, and kinds.
//!
//! ```text
//!   worker                              keeper
//!     Hello, Mode, Sweep ──────────────►
//!     ◄─────────── Welcome, Stored…, Exit…, Go     a candidate (SEXTON_PHASE=prepare) says Prepared first,
//!     Store+fd, Hold…, Ready ──────────►           and gets these once its predecessor has ended
//!     ◄───────────────────── Exit, Swept
//!     Ack ─────────────────────────────►
//!     ◄───────────────── Retire, Shutdown
//!     Finished ────────────────────────►
//! ```

use sexton_sys::wait::Ended;

/// The version of this protocol.
pub const VERSION: u16 = 1;

/// BOUND: no message is longer; a packet that is longer comes from a later version and is cut, which its reader
/// notices by the length in its head.
pub const MAX_MESSAGE: usize = 512;

/// BOUND: zombies that one `Swept` names; its count is exact all the same.
pub const MAX_SWEPT: usize = 16;

/// BOUND: bytes in the name of a stored descriptor.
pub const MAX_NAME: usize = 64;

/// The bytes of a kind and a length.
const HEAD: usize = 4;

/// The name of a stored descriptor: 1 to 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreName {
    len: u8,
    bytes: [u8; MAX_NAME],
}

impl StoreName {
    /// `name`, or `None` where it is empty or too long.
    pub fn new(name: &[u8]) -> Option<StoreName> {
        let mut bytes = [0; MAX_NAME];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        let len = u8::try_from(name.len()).ok().filter(|&len| len > 0)?;
        Some(StoreName { len, bytes })
    }

    /// The name.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }
}

/// How the worker before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastEnd {
    /// Its PID.
    pub pid: u32,
    /// Its wait status (`wait(2)`).
    pub status: i32,
}

/// First message to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The keeper's version of the protocol.
    pub version: u16,
    /// The keeper's PID.
    pub keeper_pid: u32,
    /// Workers that this keeper has started before this one.
    pub restarts: u64,
    /// How the one before ended, where there was one.
    pub last_end: Option<LastEnd>,
    /// Whether any worker of this keeper has ever been ready.
    pub was_ready: bool,
}

/// The end of a process that was held, recorded on disk before it was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitRecord {
    /// Names the record in an `Ack`; counts from 1 in each keeper.
    pub seq: u64,
    /// Its PID.
    pub pid: u32,
    /// As it was held.
    pub ino: u64,
    /// Its wait status (`wait(2)`).
    pub status: i32,
    /// When it was found ended, in nanoseconds since 1970.
    pub at_ns: u64,
}

impl ExitRecord {
    /// How it ended.
    pub fn ended(&self) -> Option<Ended> {
        Ended::from_raw(self.status)
    }
}

/// A zombie that was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zombie {
    /// Its PID.
    pub pid: u32,
    /// Its `comm`, cut off by zeroes; any other byte may occur in it.
    pub comm: [u8; 16],
}

impl Zombie {
    /// The bytes of its `comm`.
    pub fn comm(&self) -> &[u8] {
        self.comm.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

/// What one sweep reaped, or several where the worker did not listen meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// How many zombies.
    pub count: u32,
    /// How many of them are named.
    named: u8,
    zombies: [Zombie; MAX_SWEPT],
}

impl Swept {
    /// Nobody.
    pub const NOBODY: Swept = Swept { count: 0, named: 0, zombies: [Zombie { pid: 0, comm: [0; 16] }; MAX_SWEPT] };

    /// Counts `zombie`, and names it where there is room.
    pub fn add(&mut self, zombie: Zombie) {
        self.count = self.count.saturating_add(1);
        if let Some(slot) = self.zombies.get_mut(usize::from(self.named)) {
            *slot = zombie;
            self.named += 1;
        }
    }

    /// Whether another zombie would be named.
    pub fn has_room(&self) -> bool {
        usize::from(self.named) < MAX_SWEPT
    }

    /// The zombies that are named.
    pub fn named(&self) -> &[Zombie] {
        self.zombies.get(..self.named.into()).unwrap_or_default()
    }
}

/// A message of the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one at a time on a stack; there is no allocator to box it with")]
pub enum ToWorker {
    /// The first one.
    Welcome(Welcome),
    /// A descriptor that an earlier worker stored comes with this.
    Stored(StoreName),
    /// A held process ended; sent again to every new worker until it is acknowledged.
    Exit(ExitRecord),
    /// Orphans were reaped.
    Swept(Swept),
    /// All that was stored and recorded has been told: start.
    Go,
    /// A successor is prepared: end, and leave all instances.
    Retire,
    /// Begin the configured shutdown (1), or force it (2).
    Shutdown {
        /// 1 or 2.
        level: u8,
    },
}

/// What a shutdown does to instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShutdown {
    /// They live on.
    Detach,
    /// They are waited for, or ended.
    Drain,
}

/// How orphaned zombies are swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepPolicy {
    /// Whether at all.
    pub enabled: bool,
    /// Pause between two sweeps.
    pub interval_ms: u32,
    /// How long a zombie is left to others.
    pub grace_ms: u32,
}

impl Default for SweepPolicy {
    fn default() -> SweepPolicy {
        SweepPolicy { enabled: true, interval_ms: 1000, grace_ms: 1000 }
    }
}

/// A process that the worker answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldProcess {
    /// Its PID.
    pub pid: u32,
    /// What tells it from an earlier process of its number: the inode of its pidfd; where the kernel has none that is
    /// unique (before 6.9), its start tick and [`HeldProcess::TICKS`]; 0 where that is not known either.
    pub ino: u64,
}

impl HeldProcess {
    /// The bit by which a start tick is known from an inode; no kernel counts so far.
    pub const TICKS: u64 = 1 << 63;
}

/// A message of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToKeeper {
    /// Who speaks. Said again, it changes nothing: whether it is heard tells whether the keeper works.
    Hello {
        /// The worker's version of the protocol.
        version: u16,
    },
    /// A candidate has checked what it can check beside its predecessor.
    Prepared,
    /// The worker serves.
    Ready,
    /// From now on the process's exit is to be recorded if the worker cannot wait for it.
    Hold(HeldProcess),
    /// The process's exit is known, and durable.
    Release(HeldProcess),
    /// The record is durable in the ledger.
    Ack {
        /// Of the record.
        seq: u64,
    },
    /// A descriptor comes with this, to be handed to every later worker; it replaces one of the same name.
    Store(StoreName),
    /// The descriptor of this name is forgotten.
    Unstore(StoreName),
    /// How to sweep from now on.
    Sweep(SweepPolicy),
    /// What a shutdown means.
    Mode(OnShutdown),
    /// The worker ends for good, and so does the keeper, with this code.
    Finished {
        /// For the caller of `sexton serve`.
        code: u8,
    },
}

/// A packet that is no message of any version: too short, or cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("malformed message between keeper and worker")
    }
}

impl core::error::Error for Malformed {}

impl ToWorker {
    /// Writes the message to `packet`; tells its length.
    pub fn encode(&self, packet: &mut [u8; MAX_MESSAGE]) -> usize {
        let mut out = Writer::new(packet);
        match self {
            ToWorker::Welcome(welcome) => {
                out.kind(1).u16(welcome.version).u32(welcome.keeper_pid).u64(welcome.restarts);
                let last = welcome.last_end.unwrap_or(LastEnd { pid: 0, status: 0 });
                out.bool(welcome.last_end.is_some()).u32(last.pid).i32(last.status).bool(welcome.was_ready);
            }
            ToWorker::Stored(name) => out.kind(2).name(name),
            ToWorker::Exit(exit) => {
                out.kind(3).u64(exit.seq).u32(exit.pid).u64(exit.ino).i32(exit.status).u64(exit.at_ns);
            }
            ToWorker::Swept(swept) => {
                out.kind(4).u32(swept.count).u8(swept.named);
                for zombie in swept.named() {
                    out.u32(zombie.pid).bytes(&zombie.comm);
                }
            }
            ToWorker::Go => {
                out.kind(5);
            }
            ToWorker::Retire => {
                out.kind(6);
            }
            ToWorker::Shutdown { level } => {
                out.kind(7).u8(*level);
            }
        }
        out.finish()
    }

    /// Reads a packet; `None` for a message of a later version.
    ///
    /// # Errors
    /// `Malformed` where a field is missing or means nothing.
    pub fn decode(packet: &[u8]) -> Result<Option<ToWorker>, Malformed> {
        let (kind, mut body) = Reader::open(packet);
        let message = match kind {
            1 => ToWorker::Welcome(body.welcome()),
            2 => ToWorker::Stored(body.name()),
            3 => ToWorker::Exit(body.exit()),
            4 => ToWorker::Swept(body.swept()),
            5 => ToWorker::Go,
            6 => ToWorker::Retire,
            7 => ToWorker::Shutdown { level: body.u8() },
            _ => return body.checked(None),
        };
        body.checked(Some(message))
    }
}

impl ToKeeper {
    /// Writes the message to `packet`; tells its length.
    pub fn encode(&self, packet: &mut [u8; MAX_MESSAGE]) -> usize {
        let mut out = Writer::new(packet);
        match self {
            ToKeeper::Hello { version } => {
                out.kind(1).u16(*version);
            }
            ToKeeper::Prepared => {
                out.kind(2);
            }
            ToKeeper::Ready => {
                out.kind(3);
            }
            ToKeeper::Hold(held) => {
                out.kind(4).u32(held.pid).u64(held.ino);
            }
            ToKeeper::Release(held) => {
                out.kind(5).u32(held.pid).u64(held.ino);
            }
            ToKeeper::Ack { seq } => {
                out.kind(6).u64(*seq);
            }
            ToKeeper::Store(name) => out.kind(7).name(name),
            ToKeeper::Unstore(name) => out.kind(8).name(name),
            ToKeeper::Sweep(policy) => {
                out.kind(9).bool(policy.enabled).u32(policy.interval_ms).u32(policy.grace_ms);
            }
            ToKeeper::Mode(mode) => {
                out.kind(10).bool(*mode == OnShutdown::Drain);
            }
            ToKeeper::Finished { code } => {
                out.kind(11).u8(*code);
            }
        }
        out.finish()
    }

    /// Reads a packet; `None` for a message of a later version.
    ///
    /// # Errors
    /// `Malformed` where a field is missing or means nothing.
    pub fn decode(packet: &[u8]) -> Result<Option<ToKeeper>, Malformed> {
        let (kind, mut body) = Reader::open(packet);
        let message = match kind {
            1 => ToKeeper::Hello { version: body.u16() },
            2 => ToKeeper::Prepared,
            3 => ToKeeper::Ready,
            4 => ToKeeper::Hold(HeldProcess { pid: body.u32(), ino: body.u64() }),
            5 => ToKeeper::Release(HeldProcess { pid: body.u32(), ino: body.u64() }),
            6 => ToKeeper::Ack { seq: body.u64() },
            7 => ToKeeper::Store(body.name()),
            8 => ToKeeper::Unstore(body.name()),
            9 => ToKeeper::Sweep(SweepPolicy { enabled: body.bool(), interval_ms: body.u32(), grace_ms: body.u32() }),
            10 => ToKeeper::Mode(if body.bool() { OnShutdown::Drain } else { OnShutdown::Detach }),
            11 => ToKeeper::Finished { code: body.u8() },
            _ => return body.checked(None),
        };
        body.checked(Some(message))
    }
}

/// Writes fields one behind the other. What does not fit is left out; the longest message fits, which a test holds.
pub(crate) struct Writer<'a> {
    target: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(target: &'a mut [u8]) -> Writer<'a> {
        Writer { target, len: 0 }
    }

    /// Begins a message; its length follows in `finish`.
    fn kind(&mut self, kind: u16) -> &mut Self {
        self.u16(kind).u16(0)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        if let Some(target) = self.target.get_mut(self.len..self.len + bytes.len()) {
            target.copy_from_slice(bytes);
            self.len += bytes.len();
        }
        self
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(value.into())
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn i32(&mut self, value: i32) -> &mut Self {
        self.u32(value.cast_unsigned())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn name(&mut self, name: &StoreName) {
        self.u8(name.len).bytes(name.as_bytes());
    }

    /// Writes the body's length into the head; tells the whole length.
    fn finish(self) -> usize {
        // MAX_MESSAGE is below 2^16.
        let body = u16::try_from(self.len - HEAD).unwrap_or(u16::MAX);
        if let [_, _, low, high, ..] = self.target {
            [*low, *high] = body.to_le_bytes();
        }
        self.len
    }
}

/// Takes fields from the front of a body. What is missing or means nothing reads as zero, and is noted.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    is_sound: bool,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(rest: &'a [u8]) -> Reader<'a> {
        Reader { rest, is_sound: true }
    }

    /// The kind and the body of `packet`.
    fn open(packet: &'a [u8]) -> (u16, Reader<'a>) {
        let mut head = Reader::new(packet);
        let kind = head.u16();
        let len = head.u16();
        let body = head.take(len.into());
        (kind, Reader { rest: body, ..head })
    }

    /// `message`, where all of its fields were there and meant something.
    fn checked<T>(&self, message: T) -> Result<T, Malformed> {
        if self.is_sound { Ok(message) } else { Err(Malformed) }
    }

    /// The next `len` bytes; none where there are not so many.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            self.is_sound = false;
            return &[];
        };
        self.rest = rest;
        taken
    }

    /// The number in the next `len` bytes, 8 at most.
    fn number(&mut self, len: usize) -> u64 {
        self.take(len).iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    fn u8(&mut self) -> u8 {
        self.number(1).try_into().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        self.number(2).try_into().unwrap_or(0)
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.number(4).try_into().unwrap_or(0)
    }

    pub(crate) fn i32(&mut self) -> i32 {
        self.u32().cast_signed()
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.number(8)
    }

    fn bool(&mut self) -> bool {
        let value = self.u8();
        self.is_sound &= value <= 1;
        value == 1
    }

    fn name(&mut self) -> StoreName {
        let len = self.u8();
        StoreName::new(self.take(len.into())).unwrap_or_else(|| {
            self.is_sound = false;
            StoreName { len: 0, bytes: [0; MAX_NAME] }
        })
    }

    fn welcome(&mut self) -> Welcome {
        let (version, keeper_pid, restarts) = (self.u16(), self.u32(), self.u64());
        let has_last = self.bool();
        let last = LastEnd { pid: self.u32(), status: self.i32() };
        Welcome { version, keeper_pid, restarts, last_end: has_last.then_some(last), was_ready: self.bool() }
    }

    fn exit(&mut self) -> ExitRecord {
        ExitRecord { seq: self.u64(), pid: self.u32(), ino: self.u64(), status: self.i32(), at_ns: self.u64() }
    }

    fn swept(&mut self) -> Swept {
        let count = self.u32();
        let mut swept = Swept::NOBODY;
        for _ in 0..self.u8() {
            let pid = self.u32();
            let comm = self.take(16).try_into().unwrap_or_default();
            swept.add(Zombie { pid, comm });
        }
        self.is_sound &= count >= swept.count;
        swept.count = count;
        swept
    }
}

#[cfg(test)]
mod tests;
