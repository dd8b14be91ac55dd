//! Signals: their names, sets of them, and taking them synchronously.

use core::fmt;
use core::time::Duration;

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{Fd, RawFd, opened, read, word};
use crate::strings::number;
use crate::text::{Show, Text, Words, display};
use crate::time::Timespec;

/// A signal number, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

/// The first and the last real-time signal as the C libraries count them (the kernel's first two are theirs).
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

macro_rules! signals {
    ($($name:ident = $number:literal;)*) => {
        #[allow(missing_docs, reason = "named as in signal(7)")]
        impl Signal {
            $(pub const $name: Signal = Signal($number);)*
        }

        /// The names of the signals, second ones at the end.
        const NAMES: Words =
            Words { all: concat!($(stringify!($name)),*), each: &[$(($number, stringify!($name).len() as u8)),*] };
    };
}

signals! {
    HUP = 1; INT = 2; QUIT = 3; ILL = 4; TRAP = 5; ABRT = 6; BUS = 7; FPE = 8; KILL = 9; USR1 = 10; SEGV = 11;
    USR2 = 12; PIPE = 13; ALRM = 14; TERM = 15; STKFLT = 16; CHLD = 17; CONT = 18; STOP = 19; TSTP = 20; TTIN = 21;
    TTOU = 22; URG = 23; XCPU = 24; XFSZ = 25; VTALRM = 26; PROF = 27; WINCH = 28; IO = 29; PWR = 30; SYS = 31;
    IOT = 6; CLD = 17; POLL = 29; UNUSED = 31;
}

impl Signal {
    /// Signal `number`, or `None` where there is no such signal.
    pub const fn new(number: u8) -> Option<Signal> {
        if matches!(number, 1..=RTMAX) { Some(Signal(number)) } else { None }
    }

    /// The name without `SIG`, where the signal has one of its own.
    pub fn name(self) -> Option<&'static str> {
        NAMES.find(|number, _| number == self.0).map(|(_, name)| name)
    }

    /// The signal whose name is `name`, in any case.
    fn named(name: &[u8]) -> Option<Signal> {
        NAMES.find(|_, known| same(name, known)).map(|(number, _)| Signal(number))
    }

    /// The number, 1 to 64.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The number as the kernel takes it.
    pub(crate) fn raw(self) -> usize {
        self.0.into()
    }

    /// A name with or without `SIG` in any case, `RTMIN+n`, `RTMAX-n`, or a number from 1 to 64.
    pub fn parse(text: &[u8]) -> Option<Signal> {
        if text.first().is_some_and(u8::is_ascii_digit) {
            return Signal::new(decimal(text)?);
        }
        let name = match text.get(..3) {
            Some(prefix) if same(prefix, "SIG") => text.get(3..)?,
            Some(_) | None => text,
        };
        Signal::named(name).or_else(|| Signal::real_time(name))
    }

    /// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`.
    fn real_time(name: &[u8]) -> Option<Signal> {
        let (base, offset) = name.split_at_checked(5)?;
        let counts = |sign: u8| match offset.split_first() {
            None => Some(0),
            Some((first, digits)) if *first == sign => decimal(digits).filter(|&count| count <= RTMAX - RTMIN),
            Some(_) => None,
        };
        if same(base, "RTMIN") {
            Some(Signal(RTMIN + counts(b'+')?))
        } else if same(base, "RTMAX") {
            Some(Signal(RTMAX - counts(b'-')?))
        } else {
            None
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `SIGTERM`, `SIGRTMIN+3`; the two that belong to the C library by number.
impl Show for Signal {
    fn show(&self, text: &mut Text) {
        match (self.name(), self.0.checked_sub(RTMIN)) {
            (Some(name), _) => text.add("SIG").add(name),
            (None, Some(0)) => text.add("SIGRTMIN"),
            (None, Some(offset)) => text.add("SIGRTMIN+").add(u32::from(offset)),
            (None, None) => text.add("signal ").add(u32::from(self.0)),
        };
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(self, f)
    }
}

/// Whether `name` is `known`, which is in capitals.
fn same(name: &[u8], known: &str) -> bool {
    name.iter().map(u8::to_ascii_uppercase).eq(known.bytes())
}

/// A number below 256.
fn decimal(digits: &[u8]) -> Option<u8> {
    number(digits)?.try_into().ok()
}

/// A set of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalSet(u64);

impl SignalSet {
    /// No signal.
    pub const EMPTY: SignalSet = SignalSet(0);
    /// Every signal; the kernel leaves KILL and STOP out by itself.
    pub const ALL: SignalSet = SignalSet(u64::MAX);

    /// The set and `signal`.
    #[must_use]
    pub const fn with(self, signal: Signal) -> SignalSet {
        SignalSet(self.0 | SignalSet::bit(signal))
    }

    /// The set without `signal`.
    #[must_use]
    pub const fn without(self, signal: Signal) -> SignalSet {
        SignalSet(self.0 & !SignalSet::bit(signal))
    }

    /// Whether `signal` is in it.
    pub const fn contains(self, signal: Signal) -> bool {
        self.0 & SignalSet::bit(signal) != 0
    }

    const fn bit(signal: Signal) -> u64 {
        1 << (signal.0 - 1)
    }
}

/// The kernel's size of a signal set, which several calls want to be told.
pub(crate) const SET_SIZE: usize = size_of::<SignalSet>();

/// Replaces the calling thread's mask of blocked signals and tells the one before.
pub fn replace_mask(mask: SignalSet) -> SignalSet {
    const SIG_SETMASK: usize = 2;
    let mut before = SignalSet::EMPTY;
    let args = [SIG_SETMASK, &raw const mask.0 as usize, &raw mut before.0 as usize, SET_SIZE];
    // SAFETY: the kernel reads one set and writes one; it cannot fail with valid pointers.
    let _always = unsafe { syscall(nr::RT_SIGPROCMASK, args) };
    before
}

/// What happens to a signal that nobody handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The default of `signal(7)`. For CHLD: zombies wait for their parent, and stops are not told.
    Default,
    /// Discarded. For CHLD: exit statuses too, the children reap themselves.
    Ignore,
    /// A handler in this program; seen only where another part of it installed one.
    Handled,
}

/// `struct sigaction` of the kernel, the same on both machines.
#[repr(C)]
#[derive(Default)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

/// Sets what happens to `signal` and tells what happened before. Asking for `Handled` changes nothing.
///
/// # Errors
/// `EINVAL` for KILL and STOP.
pub fn set_disposition(signal: Signal, to: Disposition) -> Result<Disposition, SysError> {
    const SA_NOCLDSTOP: usize = 1;
    let action = match to {
        // Stopped children would fill the one pending CHLD with news that nobody here wants.
        Disposition::Default => Action { handler: 0, flags: SA_NOCLDSTOP, ..Action::default() },
        Disposition::Ignore => Action { handler: 1, ..Action::default() },
        Disposition::Handled => return disposition(signal),
    };
    act(signal, Some(&action))
}

/// What happens to `signal` now.
///
/// # Errors
/// None that a `Signal` can cause.
pub fn disposition(signal: Signal) -> Result<Disposition, SysError> {
    act(signal, None)
}

/// `rt_sigaction`: the disposition before.
fn act(signal: Signal, new: Option<&Action>) -> Result<Disposition, SysError> {
    let mut before = Action::default();
    let new = new.map_or(core::ptr::null(), core::ptr::from_ref);
    let args = [signal.raw(), new as usize, &raw mut before as usize, SET_SIZE];
    // SAFETY: reads and writes one `Action` each; no handler is ever installed, so none can run.
    let ret = unsafe { syscall(nr::RT_SIGACTION, args) };
    ret.map_err(|errno| SysError::about(c"rt_sigaction", signal.0.into(), errno))?;
    Ok(match before.handler {
        0 => Disposition::Default,
        1 => Disposition::Ignore,
        _ => Disposition::Handled,
    })
}

/// A signal that was taken synchronously.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    /// Which.
    pub signal: Signal,
    /// Who sent it, or for CHLD which child; 0 where the kernel did, or one outside the PID namespace.
    pub pid: u32,
}

/// Waits for a blocked signal of `set`, `None` after `timeout`; without one, for as long as it takes.
///
/// # Errors
/// `EINTR` is retried by the caller, for the time that has passed is known there.
pub fn wait(set: SignalSet, timeout: Option<Duration>) -> Result<Option<Caught>, SysError> {
    let mut info = [0_u32; 32];
    let timeout = timeout.map(Timespec::of);
    let timeout = timeout.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    let args = [&raw const set.0 as usize, info.as_mut_ptr() as usize, timeout as usize, SET_SIZE];
    // SAFETY: the kernel reads one set and one timespec, and writes one siginfo of 128 bytes.
    let ret = unsafe { syscall(nr::RT_SIGTIMEDWAIT, args) };
    match ret {
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(SysError::of(c"rt_sigtimedwait", errno)),
        // The sender's PID is the fifth word of a siginfo that carries one.
        Ok(number) => Ok(caught(number, info[4])),
    }
}

/// What was caught, from its parts.
fn caught(number: usize, pid: u32) -> Option<Caught> {
    let signal = Signal::new(u8::try_from(number).ok()?)?;
    Some(Caught { signal, pid })
}

/// A descriptor that is readable while a blocked signal of a set is pending.
#[derive(Debug)]
pub struct SignalFd(Fd);

impl SignalFd {
    /// Opens one for `set`, which the caller has blocked.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new(set: SignalSet) -> Result<SignalFd, SysError> {
        const NONBLOCK_CLOEXEC: i32 = 0o2_004_000;
        let args = [word(-1), &raw const set.0 as usize, SET_SIZE, word(NONBLOCK_CLOEXEC)];
        // SAFETY: the kernel reads one set.
        let ret = unsafe { syscall(nr::SIGNALFD4, args) };
        ret.map(|fd| SignalFd(opened(fd))).map_err(|errno| SysError::of(c"signalfd4", errno))
    }

    /// The number, for `poll`.
    pub const fn raw(&self) -> RawFd {
        self.0.raw()
    }

    /// Takes one signal, `None` where none is pending.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn take(&self) -> Result<Option<Caught>, SysError> {
        let mut info = [0_u8; 128];
        match read(self.0.raw(), &mut info) {
            Err(error) if error.errno == Errno::EAGAIN => Ok(None),
            Err(error) => Err(error),
            Ok(_) => {
                let [a, b, c, d, _, _, _, _, _, _, _, _, e, f, g, h, ..] = info;
                let number = u32::from_ne_bytes([a, b, c, d]) as usize;
                Ok(caught(number, u32::from_ne_bytes([e, f, g, h])))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn names_and_numbers_lead_to_the_same_signal() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(Signal::parse(text.as_bytes()), Some(Signal::TERM), "{text}");
        }
        assert_eq!(Signal::parse(b"RTMIN+3"), Signal::new(37));
        assert_eq!(Signal::parse(b"SIGRTMAX"), Signal::new(64));
        assert_eq!(Signal::parse(b"RTMAX-30"), Signal::new(34));
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in
            ["", "0", "65", "256", "-1", "+9", "SIG", "SIGSIGTERM", "TER", "RTMIN-1", "RTMAX-31", "RTMIN+", "1x"]
        {
            assert_eq!(Signal::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn every_signal_is_shown_as_what_parses_back_to_it() {
        for number in (1..=31).chain(34..=64) {
            let signal = Signal::new(number).unwrap();
            assert_eq!(Signal::parse(signal.to_string().as_bytes()), Some(signal));
        }
    }

    #[test]
    fn a_second_name_is_understood_and_never_shown() {
        for (second, name) in [("IOT", "SIGABRT"), ("sigcld", "SIGCHLD"), ("POLL", "SIGIO"), ("UNUSED", "SIGSYS")] {
            assert_eq!(Signal::parse(second.as_bytes()).map(|signal| signal.to_string()).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set = SignalSet::EMPTY.with(Signal::CHLD).with(Signal::HUP);
        assert!(set.contains(Signal::CHLD));
        assert!(set.contains(Signal::HUP));
        assert!(!set.without(Signal::HUP).contains(Signal::HUP));
        assert!(SignalSet::ALL.contains(Signal(64)));
    }
}
