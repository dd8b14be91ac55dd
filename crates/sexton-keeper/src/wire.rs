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
    /// The inode of its pidfd, 0 where the kernel has none.
    pub ino: u64,
    /// Its wait status (`wait(2)`).
    pub status: i32,
    /// When it was found ended, in nanoseconds since 1970.
    pub at_ns: u64,
}

impl ExitRecord {
    /// Nobody's.
    pub(crate) const EMPTY: ExitRecord = ExitRecord { seq: 0, pid: 0, ino: 0, status: 0, at_ns: 0 };

    /// How it ended.
    pub fn ended(&self) -> Option<Ended> {
        Ended::from_raw(self.status)
    }
}

/// A zombie that was reaped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many zombies.
    pub count: u32,
    /// How many of them are named.
    named: u8,
    zombies: [Zombie; MAX_SWEPT],
}

impl Swept {
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
    /// The inode of its pidfd, 0 where the kernel has none that is unique (before 6.9).
    pub ino: u64,
}

/// A message of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToKeeper {
    /// Who speaks.
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
        let (kind, mut body) = Reader::open(packet)?;
        Ok(Some(match kind {
            1 => ToWorker::Welcome(body.welcome()?),
            2 => ToWorker::Stored(body.name()?),
            3 => ToWorker::Exit(body.exit()?),
            4 => ToWorker::Swept(body.swept()?),
            5 => ToWorker::Go,
            6 => ToWorker::Retire,
            7 => ToWorker::Shutdown { level: body.u8()? },
            _ => return Ok(None),
        }))
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
        let (kind, mut body) = Reader::open(packet)?;
        Ok(Some(match kind {
            1 => ToKeeper::Hello { version: body.u16()? },
            2 => ToKeeper::Prepared,
            3 => ToKeeper::Ready,
            4 => ToKeeper::Hold(HeldProcess { pid: body.u32()?, ino: body.u64()? }),
            5 => ToKeeper::Release(HeldProcess { pid: body.u32()?, ino: body.u64()? }),
            6 => ToKeeper::Ack { seq: body.u64()? },
            7 => ToKeeper::Store(body.name()?),
            8 => ToKeeper::Unstore(body.name()?),
            9 => {
                ToKeeper::Sweep(SweepPolicy { enabled: body.bool()?, interval_ms: body.u32()?, grace_ms: body.u32()? })
            }
            10 => ToKeeper::Mode(if body.bool()? { OnShutdown::Drain } else { OnShutdown::Detach }),
            11 => ToKeeper::Finished { code: body.u8()? },
            _ => return Ok(None),
        }))
    }
}

/// Fills a packet. What does not fit is left out; the longest message fits, which a test holds.
struct Writer<'a> {
    packet: &'a mut [u8; MAX_MESSAGE],
    len: usize,
}

impl<'a> Writer<'a> {
    fn new(packet: &'a mut [u8; MAX_MESSAGE]) -> Writer<'a> {
        Writer { packet, len: HEAD }
    }

    fn kind(&mut self, kind: u16) -> &mut Self {
        let [low, high, ..] = &mut *self.packet;
        [*low, *high] = kind.to_le_bytes();
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        if let Some(target) = self.packet.get_mut(self.len..self.len + bytes.len()) {
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

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn i32(&mut self, value: i32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn name(&mut self, name: &StoreName) {
        self.u8(name.len).bytes(name.as_bytes());
    }

    /// Writes the body's length into the head; tells the whole length.
    fn finish(self) -> usize {
        // MAX_MESSAGE is below 2^16.
        let body = u16::try_from(self.len - HEAD).unwrap_or(u16::MAX);
        let [_, _, low, high, ..] = self.packet;
        [*low, *high] = body.to_le_bytes();
        self.len
    }
}

/// Takes fields from the front of a body.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The kind and the body of `packet`.
    fn open(packet: &'a [u8]) -> Result<(u16, Reader<'a>), Malformed> {
        let mut head = Reader { rest: packet };
        let kind = head.u16()?;
        let len = head.u16()?;
        let rest = head.rest.get(..len.into()).ok_or(Malformed)?;
        Ok((kind, Reader { rest }))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn name(&mut self) -> Result<StoreName, Malformed> {
        let len = self.u8()?;
        let bytes = self.rest.get(..len.into()).ok_or(Malformed)?;
        StoreName::new(bytes).ok_or(Malformed)
    }

    fn welcome(&mut self) -> Result<Welcome, Malformed> {
        let (version, keeper_pid, restarts) = (self.u16()?, self.u32()?, self.u64()?);
        let has_last = self.bool()?;
        let last = LastEnd { pid: self.u32()?, status: self.i32()? };
        Ok(Welcome { version, keeper_pid, restarts, last_end: has_last.then_some(last), was_ready: self.bool()? })
    }

    fn exit(&mut self) -> Result<ExitRecord, Malformed> {
        Ok(ExitRecord { seq: self.u64()?, pid: self.u32()?, ino: self.u64()?, status: self.i32()?, at_ns: self.u64()? })
    }

    fn swept(&mut self) -> Result<Swept, Malformed> {
        let count = self.u32()?;
        let named = self.u8()?;
        let mut swept = Swept::default();
        for _ in 0..named {
            swept.add(Zombie { pid: self.u32()?, comm: self.array()? });
        }
        if count < swept.count {
            return Err(Malformed);
        }
        swept.count = count;
        Ok(swept)
    }
}

#[cfg(test)]
mod tests;
