//! The command line of `sexton-init` as an image's entry point: tini's flags and variables, and dumb-init's `-r`.

use core::ffi::CStr;

use sexton_sys::entry::Start;
use sexton_sys::signal::Signal;
use sexton_sys::strings::{Strings, behind, number};
use sexton_sys::text::{Show, Text};

use crate::text::Shown;

/// The version that is told.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    /// The place of a `--` directly behind the command, where none ended the options before it (`PROGRAM -- ARGS`).
    pub(crate) left_out: Option<usize>,
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

/// What each signal is forwarded as, by its number; `None` for nothing.
#[derive(Debug)]
pub(crate) struct Rewrites([Option<Signal>; 65]);

impl Rewrites {
    /// Each signal as itself, but for what the terminal sends to a background group: init's group is in the background
    /// once the command has the terminal, and a line of init's neighbour there is not to stop the command.
    fn none() -> Rewrites {
        let for_command = |signal: &Signal| !matches!(*signal, Signal::TTIN | Signal::TTOU);
        Rewrites(core::array::from_fn(|number| Signal::new(number.try_into().ok()?).filter(for_command)))
    }

    /// What `signal` is forwarded as; `None` where it is dropped.
    pub(crate) fn of(&self, signal: Signal) -> Option<Signal> {
        self.0.get(usize::from(signal.number())).copied().flatten()
    }

    /// Reads `SIG:SIG`.
    fn add(&mut self, text: &[u8]) -> Option<()> {
        let colon = text.iter().position(|&byte| byte == b':')?;
        let (from, to) = (Signal::parse(text.get(..colon)?)?, text.get(colon + 1..)?);
        let to = if to == b"0" { None } else { Some(Signal::parse(to)?) };
        *self.0.get_mut(usize::from(from.number()))? = to;
        Some(())
    }
}

/// Why no command is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instead<'a> {
    /// The usage is asked for.
    Help,
    /// The version is.
    Version,
    /// The licence is.
    Licence,
    /// There is no such option.
    Unknown(u8),
    /// The option needs a value.
    NoValue(u8),
    /// The option cannot have this value.
    BadValue(u8, &'a CStr),
    /// There is no command.
    NoCommand,
}

/// What is said of it, beside the usage.
impl Show for Instead<'_> {
    fn show(&self, text: &mut Text) {
        match self {
            Instead::Help => text,
            Instead::Version => text.add("sexton-init version ").add(VERSION),
            Instead::Licence => text.add("sexton-init is licensed under Apache-2.0 OR MIT."),
            Instead::Unknown(option) => text.add("invalid option -- '").add(Shown(&[*option])).add("'"),
            Instead::NoValue(option) => text.add("option requires an argument -- '").add(Shown(&[*option])).add("'"),
            Instead::BadValue(option, value) => {
                text.add("Not a valid option for -").add(Shown(&[*option])).add(": ").add(Shown(value.to_bytes()))
            }
            Instead::NoCommand => text.add("there is no command to run"),
        };
    }
}

impl<'a> Options<'a> {
    /// Nothing is asked for.
    pub(crate) fn new(start: Start) -> Options<'static> {
        Options {
            subreaper: false,
            signal_group: false,
            warn_on_reap: false,
            verbosity: 1,
            parent_death: None,
            expected: Codes::default(),
            rewrites: Rewrites::none(),
            command: start.args.skip(1),
            left_out: None,
        }
    }

    /// Reads the command line and the environment.
    ///
    /// # Errors
    /// What is to be said instead of running a command.
    pub(crate) fn read(&mut self, env: Strings<'a>) -> Result<(), Instead<'a>> {
        if self.command.len() == 1 {
            let only = self.command.at(0);
            if only == Some(c"--version") {
                return Err(Instead::Version);
            }
            if only == Some(c"--help") {
                return Err(Instead::Help);
            }
        }
        while let Some(letters) = self.take_letters() {
            self.read_letters(letters)?;
        }
        if self.command.is_empty() {
            return Err(Instead::NoCommand);
        }
        // The environment has the last word, as it has with tini.
        self.subreaper |= env.value_of(b"TINI_SUBREAPER").is_some();
        self.signal_group |= env.value_of(b"TINI_KILL_PROCESS_GROUP").is_some();
        if let Some(value) = env.value_of(b"TINI_VERBOSITY") {
            self.verbosity = leading_number(value.to_bytes());
        }
        Ok(())
    }

    /// Takes a word of options off the front of the command, without its dash; `None` from `--` or the first word that is
    /// none, where a `--` behind that one is the end that the options have not had.
    fn take_letters(&mut self) -> Option<&'a CStr> {
        let word = self.command.at(0).filter(|word| word.to_bytes().starts_with(b"-") && *word != c"-");
        let Some(word) = word else {
            self.left_out = (self.command.at(1) == Some(c"--")).then_some(1);
            return None;
        };
        self.command = self.command.skip(1);
        (word != c"--").then(|| behind(word, 1))
    }

    /// Reads a word of options, such as `vvg` or `pTERM`.
    fn read_letters(&mut self, mut letters: &'a CStr) -> Result<(), Instead<'a>> {
        while let Some(&letter) = letters.to_bytes().first() {
            letters = behind(letters, 1);
            match letter {
                b's' => self.subreaper = true,
                b'g' => self.signal_group = true,
                b'w' => self.warn_on_reap = true,
                b'v' => self.verbosity += 1,
                b'h' => return Err(Instead::Help),
                b'l' => return Err(Instead::Licence),
                b'p' | b'e' | b'r' => return self.read_value(letter, letters),
                other => return Err(Instead::Unknown(other)),
            }
        }
        Ok(())
    }

    /// Reads the value of `option`: the `rest` of its word, or the next one.
    fn read_value(&mut self, option: u8, rest: &'a CStr) -> Result<(), Instead<'a>> {
        let value = if rest.is_empty() {
            let next = self.command.at(0).ok_or(Instead::NoValue(option))?;
            self.command = self.command.skip(1);
            next
        } else {
            rest
        };
        let bytes = value.to_bytes();
        let applied = match option {
            b'p' => Signal::parse(bytes).map(|signal| self.parent_death = Some(signal)),
            b'e' => number(bytes).and_then(|code| code.try_into().ok()).map(|code| self.expected.add(code)),
            _ => self.rewrites.add(bytes),
        };
        applied.ok_or(Instead::BadValue(option, value))
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
        let mut options = Options::new(Start { args: list(&args), env: list(&[]) });
        assert_eq!(options.read(list(env)), Ok(()), "{args:?}");
        options
    }

    fn refused(args: &[&str]) -> Instead<'static> {
        let args: Vec<&str> = ["init"].iter().chain(args).copied().collect();
        Options::new(Start { args: list(&args), env: list(&[]) }).read(list(&[])).unwrap_err()
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
    fn two_dashes_behind_the_command_are_left_out_unless_some_came_before_it() {
        for (args, left_out) in [
            (&["sh", "--", "-c", "x"][..], Some(1)),
            (&["-s", "-e", "3", "sh", "--"], Some(1)),
            (&["--", "sh", "--", "x"], None),
            (&["-s", "--", "sh", "--", "x"], None),
            (&["git", "checkout", "--", "f"], None),
            (&["sh"], None),
        ] {
            assert_eq!(run(args, &[]).left_out, left_out, "{args:?}");
        }
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
        assert_eq!(refused(&["-x", "cmd"]), Instead::Unknown(b'x'));
        assert_eq!(refused(&["--subreaper", "cmd"]), Instead::Unknown(b'-'));
        assert_eq!(refused(&["-s"]), Instead::NoCommand);
        assert_eq!(refused(&["--"]), Instead::NoCommand);
        assert_eq!(refused(&["-p"]), Instead::NoValue(b'p'));
        for bad in [["-p", "SIGNONE"], ["-e", "256"], ["-e", "-1"], ["-e", "x"], ["-r", "15"], ["-r", "15:99"]] {
            assert!(matches!(refused(&[bad[0], bad[1], "cmd"]), Instead::BadValue(_, _)), "{bad:?}");
        }
    }
}
