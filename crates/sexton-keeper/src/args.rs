//! The command line of `sexton-init` as an image's entry point: tini's flags and variables, and dumb-init's `-r`.

use core::ffi::CStr;

use sexton_sys::entry::Start;
use sexton_sys::signal::Signal;
use sexton_sys::strings::{Strings, number};
use sexton_sys::text::{Show, Text};

use crate::text::Shown;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Wish<'a> {
    /// Run a command.
    Run(Options<'a>),
    /// Print the usage.
    Help,
    /// Print the version.
    Version,
    /// Print the licence.
    Licence,
}

/// How to run the command.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// `-s`: reap orphans though this is not PID 1.
    pub(crate) subreaper: bool,
    /// `-g`: signal the command's process group.
    pub(crate) signal_group: bool,
    /// `-w`: tell of every zombie that is reaped.
    pub(crate) warn_on_reap: bool,
    /// 0 errors, 1 warnings, 2 what happens, 3 and 4 why.
    pub(crate) verbosity: i32,
    /// `-p`: what to get when the parent ends.
    pub(crate) parent_death: Option<Signal>,
    /// `-e`: codes that count as 0.
    pub(crate) expected: Codes,
    /// `-r`: signals that are forwarded as others.
    pub(crate) rewrites: Rewrites,
    /// The command and its arguments; not empty.
    pub(crate) command: Strings<'a>,
}

/// A set of exit codes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Codes([u64; 4]);

impl Codes {
    fn add(&mut self, code: u8) {
        if let Some(word) = self.0.get_mut(usize::from(code / 64)) {
            *word |= 1 << (code % 64);
        }
    }

    /// Whether `code` is in it.
    pub(crate) fn contains(&self, code: u8) -> bool {
        self.0.get(usize::from(code / 64)).is_some_and(|word| word & (1 << (code % 64)) != 0)
    }
}

/// What each signal is forwarded as.
#[derive(Debug)]
pub(crate) struct Rewrites([Forward; 65]);

/// What a signal is forwarded as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forward {
    /// Itself.
    Same,
    /// Another.
    As(Signal),
    /// Nothing.
    Dropped,
}

impl Rewrites {
    /// What `signal` is forwarded as; `None` where it is dropped.
    pub(crate) fn of(&self, signal: Signal) -> Option<Signal> {
        match self.0.get(usize::from(signal.number())).copied().unwrap_or(Forward::Same) {
            Forward::Same => Some(signal),
            Forward::As(other) => Some(other),
            Forward::Dropped => None,
        }
    }

    /// Reads `SIG:SIG`.
    fn add(&mut self, text: &[u8]) -> Option<()> {
        let colon = text.iter().position(|&byte| byte == b':')?;
        let (from, to) = (text.get(..colon)?, text.get(colon + 1..)?);
        let forward = if to == b"0" { Forward::Dropped } else { Forward::As(Signal::parse(to)?) };
        *self.0.get_mut(usize::from(Signal::parse(from)?.number()))? = forward;
        Some(())
    }
}

/// Why a command line was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ArgsError<'a> {
    /// There is no such option.
    Unknown(u8),
    /// The option needs a value.
    NoValue(u8),
    /// The option cannot have this value.
    BadValue(u8, &'a CStr),
    /// There is no command.
    NoCommand,
}

impl Show for ArgsError<'_> {
    fn show(&self, text: &mut Text) {
        match self {
            ArgsError::Unknown(option) => text.add("invalid option -- '").add(Shown(&[*option])).add("'"),
            ArgsError::NoValue(option) => text.add("option requires an argument -- '").add(Shown(&[*option])).add("'"),
            ArgsError::BadValue(option, value) => {
                text.add("Not a valid option for -").add(Shown(&[*option])).add(": ").add(Shown(value.to_bytes()))
            }
            ArgsError::NoCommand => text.add("there is no command to run"),
        };
    }
}

/// Reads the command line and the environment.
pub(crate) fn parse(start: Start) -> Result<Wish<'static>, ArgsError<'static>> {
    if start.args.len() == 2 {
        match start.args.at(1).map(CStr::to_bytes) {
            Some(b"--version") => return Ok(Wish::Version),
            Some(b"--help") => return Ok(Wish::Help),
            Some(_) | None => {}
        }
    }
    let mut options = Options {
        subreaper: false,
        signal_group: false,
        warn_on_reap: false,
        verbosity: 1,
        parent_death: None,
        expected: Codes::default(),
        rewrites: Rewrites([Forward::Same; 65]),
        command: start.args.skip(1),
    };
    if let Some(wish) = parse_options(&mut options)? {
        return Ok(wish);
    }
    if options.command.is_empty() {
        return Err(ArgsError::NoCommand);
    }
    apply_environment(&mut options, start.env);
    Ok(Wish::Run(options))
}

/// Takes options off the front of the command, up to `--` or the first word that is none.
fn parse_options(options: &mut Options<'static>) -> Result<Option<Wish<'static>>, ArgsError<'static>> {
    while let Some(word) = options.command.at(0) {
        let Some(letters) = word.to_bytes_with_nul().strip_prefix(b"-").filter(|rest| *rest != b"\0") else {
            return Ok(None);
        };
        options.command = options.command.skip(1);
        if letters == b"-\0" {
            return Ok(None);
        }
        if let Some(wish) = parse_letters(options, letters)? {
            return Ok(Some(wish));
        }
    }
    Ok(None)
}

/// Reads one word of options, such as `-vvg` or `-pTERM`; the zero at its end included.
fn parse_letters(
    options: &mut Options<'static>,
    mut letters: &'static [u8],
) -> Result<Option<Wish<'static>>, ArgsError<'static>> {
    while let Some((&letter, rest)) = letters.split_first() {
        letters = rest;
        match letter {
            0 => break,
            b's' => options.subreaper = true,
            b'g' => options.signal_group = true,
            b'w' => options.warn_on_reap = true,
            b'v' => options.verbosity += 1,
            b'h' => return Ok(Some(Wish::Help)),
            b'l' => return Ok(Some(Wish::Licence)),
            b'p' | b'e' | b'r' => {
                let value = take_value(options, letter, rest)?;
                apply_value(options, letter, value)?;
                break;
            }
            other => return Err(ArgsError::Unknown(other)),
        }
    }
    Ok(None)
}

/// The value of `option`: the rest of its word, or the next one.
fn take_value(
    options: &mut Options<'static>,
    option: u8,
    rest: &'static [u8],
) -> Result<&'static CStr, ArgsError<'static>> {
    match CStr::from_bytes_with_nul(rest) {
        Ok(value) if !value.is_empty() => Ok(value),
        Ok(_) | Err(_) => {
            let value = options.command.at(0).ok_or(ArgsError::NoValue(option))?;
            options.command = options.command.skip(1);
            Ok(value)
        }
    }
}

/// Applies an option that has a value.
fn apply_value(options: &mut Options<'static>, option: u8, value: &'static CStr) -> Result<(), ArgsError<'static>> {
    let bytes = value.to_bytes();
    let applied = match option {
        b'p' => Signal::parse(bytes).map(|signal| options.parent_death = Some(signal)),
        b'e' => number(bytes).and_then(|code| code.try_into().ok()).map(|code| options.expected.add(code)),
        _ => options.rewrites.add(bytes),
    };
    applied.ok_or(ArgsError::BadValue(option, value))
}

/// The environment has the last word, as it has with tini.
fn apply_environment(options: &mut Options<'_>, env: Strings<'_>) {
    options.subreaper |= env.value_of(b"TINI_SUBREAPER").is_some();
    options.signal_group |= env.value_of(b"TINI_KILL_PROCESS_GROUP").is_some();
    if let Some(value) = env.value_of(b"TINI_VERBOSITY") {
        options.verbosity = leading_number(value.to_bytes());
    }
}

/// What `atoi(3)` makes of `text`, which is how tini reads its variable.
fn leading_number(text: &[u8]) -> i32 {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        Some(_) | None => (false, text),
    };
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let number = digits.fold(0_i32, |sum, digit| sum.saturating_mul(10).saturating_add((digit - b'0').into()));
    if negative { -number } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sexton_sys::strings::Slot;
    use std::boxed::Box;
    use std::ffi::CString;
    use std::vec::Vec;

    fn list(words: &[&str]) -> Strings<'static> {
        let strings = words.iter().map(|word| &*Box::leak(CString::new(*word).unwrap().into_boxed_c_str()));
        let slots: Vec<Slot<'static>> = strings.map(Slot::of).chain([Slot::END]).collect();
        Strings::new(slots.leak()).unwrap()
    }

    fn run(args: &[&str], env: &[&str]) -> Options<'static> {
        let args: Vec<&str> = ["init"].iter().chain(args).copied().collect();
        match parse(Start { args: list(&args), env: list(env) }) {
            Ok(Wish::Run(options)) => options,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn refused(args: &[&str]) -> ArgsError<'static> {
        let args: Vec<&str> = ["init"].iter().chain(args).copied().collect();
        parse(Start { args: list(&args), env: list(&[]) }).unwrap_err()
    }

    #[test]
    fn options_end_at_the_command_or_at_two_dashes() {
        let options = run(&["-sg", "-vv", "-pTERM", "-p", "SIGHUP", "-e143", "--", "-x", "-s"], &[]);
        assert!(options.subreaper && options.signal_group && !options.warn_on_reap);
        assert_eq!((options.verbosity, options.parent_death), (3, Some(Signal::HUP)));
        assert!(options.expected.contains(143) && !options.expected.contains(142));
        assert_eq!(options.command.at(0), Some(c"-x"));
        let options = run(&["-w", "cmd", "-s"], &[]);
        assert!(options.warn_on_reap && !options.subreaper);
        assert_eq!(options.command.len(), 2);
        assert_eq!(run(&["-"], &[]).command.at(0), Some(c"-"));
    }

    #[test]
    fn the_environment_has_the_last_word() {
        let options = run(&["-vvv", "x"], &["TINI_SUBREAPER=", "TINI_KILL_PROCESS_GROUP=0", "TINI_VERBOSITY= 2x"]);
        assert!(options.subreaper && options.signal_group);
        assert_eq!(options.verbosity, 2);
        assert_eq!(run(&["x"], &["TINI_VERBOSITY=none"]).verbosity, 0);
        assert_eq!(run(&["x"], &["TINI_VERBOSITY=-1"]).verbosity, -1);
        assert_eq!(run(&["x"], &["TINI_SUBREAPERS=1"]).verbosity, 1);
    }

    #[test]
    fn a_rewrite_changes_or_drops_a_signal() {
        let options = run(&["-r", "TERM:QUIT", "-r1:0", "-r", "15:SIGINT", "x"], &[]);
        assert_eq!(options.rewrites.of(Signal::TERM), Some(Signal::INT));
        assert_eq!(options.rewrites.of(Signal::HUP), None);
        assert_eq!(options.rewrites.of(Signal::INT), Some(Signal::INT));
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        assert_eq!(refused(&["-x", "cmd"]), ArgsError::Unknown(b'x'));
        assert_eq!(refused(&["--subreaper", "cmd"]), ArgsError::Unknown(b'-'));
        assert_eq!(refused(&["-s"]), ArgsError::NoCommand);
        assert_eq!(refused(&["--"]), ArgsError::NoCommand);
        assert_eq!(refused(&["-p"]), ArgsError::NoValue(b'p'));
        for bad in [["-p", "SIGNONE"], ["-e", "256"], ["-e", "-1"], ["-e", "x"], ["-r", "15"], ["-r", "15:99"]] {
            assert!(matches!(refused(&[bad[0], bad[1], "cmd"]), ArgsError::BadValue(_, _)), "{bad:?}");
        }
    }
}
