//! The seats of a gate: who is inside, without a lock.
//!
//! Each block is one word: a bit that says closed, and a bit for each seat. INVARIANT: whether somebody is admitted is
//! decided by one compare-and-swap of one word, which fails where that word says closed. So a block that is closed and
//! empty stays so, and no fence between two words is needed: when every block has been seen closed and empty, nobody is
//! inside and nobody will be. A model checker runs this very file (`tests/gate_model.rs`).

use std::sync::OnceLock;

use super::sync::{AtomicU64, Mutex, Ordering};

/// The bit that says closed.
const CLOSED: u64 = 1 << 63;
/// Seats of one block.
const SEATS: usize = 63;
/// The seat's kind is above, the time of its admission below.
const KIND_SHIFT: u32 = 56;

/// Why nobody was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The gate is closed.
    Closed,
    /// Every seat is taken.
    NoSeat,
}

/// A seat that is taken.
#[derive(Debug)]
pub struct Seat {
    block: usize,
    number: u32,
}

/// Who sits there, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The number of its kind.
    pub kind: u8,
    /// When it was admitted, in the caller's units; its 56 low bits count.
    pub since: u64,
}

impl Note {
    fn to_word(self) -> u64 {
        // Never 0, which says that nothing is written yet.
        ((u64::from(self.kind) + 1) << KIND_SHIFT) | (self.since & ((1 << KIND_SHIFT) - 1))
    }

    fn of_word(word: u64) -> Option<Note> {
        let kind = u8::try_from((word >> KIND_SHIFT).checked_sub(1)?).ok()?;
        Some(Note { kind, since: word & ((1 << KIND_SHIFT) - 1) })
    }
}

type Notes = Box<[AtomicU64]>;
type WhenIdle = Box<dyn FnOnce() + Send>;

/// Those who wait for an empty gate, by the number of their wait.
#[derive(Default)]
struct Waiting {
    next: u64,
    calls: Vec<(u64, WhenIdle)>,
}

/// One word and its notes, on a cache line of its own: threads that use different blocks never meet.
#[repr(align(64))]
#[derive(Debug)]
struct Block {
    word: AtomicU64,
    notes: OnceLock<Notes>,
}

/// All seats of one gate.
pub struct Seats {
    blocks: Box<[Block]>,
    waiting: Mutex<Waiting>,
}

impl Seats {
    /// Room for `blocks` times 63.
    pub fn new(blocks: usize) -> Seats {
        let blocks = (0..blocks.max(1)).map(|_| Block { word: AtomicU64::new(0), notes: OnceLock::new() });
        Seats { blocks: blocks.collect(), waiting: Mutex::new(Waiting::default()) }
    }

    /// Takes a seat, in the block numbered `home` if one is free there, else in one behind it.
    ///
    /// # Errors
    /// Closed, or full.
    pub fn take(&self, home: usize, note: Note) -> Result<Seat, Full> {
        let count = self.blocks.len();
        let home = home % count;
        for at in (home..count).chain(0..home) {
            let Some(block) = self.blocks.get(at) else { break };
            if let Some(number) = block.take()? {
                block.note(number).store(note.to_word(), Ordering::Release);
                return Ok(Seat { block: at, number });
            }
        }
        Err(Full::NoSeat)
    }

    /// Gives a seat back; whoever waits for an empty gate is told by the last one.
    pub fn give_back(&self, seat: &Seat) {
        let Some(block) = self.blocks.get(seat.block) else { return };
        block.note(seat.number).store(0, Ordering::Relaxed);
        let before = block.word.fetch_and(!(1 << seat.number), Ordering::AcqRel);
        if before == CLOSED | (1 << seat.number) {
            self.tell_idle();
        }
    }

    /// Closes it. Once this has returned nobody is admitted any more.
    pub fn close(&self) {
        for block in &self.blocks {
            block.word.fetch_or(CLOSED, Ordering::AcqRel);
        }
        self.tell_idle();
    }

    /// Whether nobody is admitted any more: the last block is closed last.
    pub fn is_closed(&self) -> bool {
        self.blocks.last().is_some_and(|block| block.word.load(Ordering::Acquire) & CLOSED != 0)
    }

    /// Whether nobody is inside, and nobody will be.
    pub fn is_idle(&self) -> bool {
        self.blocks.iter().all(|block| block.word.load(Ordering::Acquire) == CLOSED)
    }

    /// Everybody inside.
    ///
    /// # Blocking
    /// For the few instructions between a seat and its note, where another thread is just there.
    pub fn look(&self) -> Vec<Note> {
        let mut found = Vec::new();
        for block in &self.blocks {
            let taken = block.word.load(Ordering::Acquire) & !CLOSED;
            found.extend(
                (0..CLOSED.trailing_zeros()).filter(|number| taken & (1 << number) != 0).filter_map(|n| block.read(n)),
            );
        }
        found
    }

    /// Calls `told` once, as soon as the gate is closed and empty: at once if it is. Gives the number of this wait.
    pub fn when_idle(&self, told: WhenIdle) -> u64 {
        let mut number = 0;
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.next += 1;
            number = waiting.next;
            waiting.calls.push((number, told));
        }
        self.tell_idle();
        number
    }

    /// Forgets a wait that was given up.
    pub fn forget(&self, number: u64) {
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.calls.retain(|(other, _)| *other != number);
        }
    }

    /// Calls whoever waits, if the gate is closed and empty.
    fn tell_idle(&self) {
        // RACE: of two who leave different blocks at once, each may not see the other's word yet. Whoever takes the
        // lock second sees both, for the first has left before it took the lock.
        let Ok(mut waiting) = self.waiting.lock() else { return };
        if !self.is_idle() {
            return;
        }
        let told = std::mem::take(&mut waiting.calls);
        drop(waiting);
        told.into_iter().for_each(|(_, tell)| tell());
    }
}

impl Block {
    /// A free seat of this block, taken; `None` where it has none.
    fn take(&self) -> Result<Option<u32>, Full> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & CLOSED != 0 {
                return Err(Full::Closed);
            }
            let number = word.trailing_ones();
            if number as usize >= SEATS {
                return Ok(None);
            }
            match self.word.compare_exchange_weak(word, word | (1 << number), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(Some(number)),
                Err(newer) => word = newer,
            }
        }
    }

    fn note(&self, number: u32) -> &AtomicU64 {
        let notes = self.notes.get_or_init(|| (0..SEATS).map(|_| AtomicU64::new(0)).collect());
        notes.get(number as usize).unwrap_or(&self.word)
    }

    /// The note of a seat; `None` once it is free again.
    fn read(&self, number: u32) -> Option<Note> {
        loop {
            if let Some(note) = Note::of_word(self.note(number).load(Ordering::Acquire)) {
                return Some(note);
            }
            if self.word.load(Ordering::Acquire) & (1 << number) == 0 {
                return None;
            }
            std::thread::yield_now();
        }
    }
}

impl std::fmt::Debug for Seats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seats").field("inside", &self.look().len()).field("closed", &self.is_closed()).finish()
    }
}
