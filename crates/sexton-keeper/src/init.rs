//! One command as PID 1 of a container, or as a subreaper anywhere.
//!
//! It takes tini's place, so what tini documents is the specification: which signals are forwarded, what is printed at
//! which verbosity, and that init ends when its command does.

use core::ffi::CStr;
use core::fmt;
use core::time::Duration;

use sexton_sys::entry::Start;
use sexton_sys::process::{self, Child, Group, Program, SignalState, Spawn};
use sexton_sys::signal::{self, Caught, Disposition, Signal, SignalSet};
use sexton_sys::strings::Strings;
use sexton_sys::wait::{self, Ended};
use sexton_sys::{Errno, SysError, time};

use crate::args::{self, Options, Wish};
use crate::children::Finder;
use crate::text::{STDERR, STDOUT, Shown, say};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Signals that tell of a fault in this very program: they are never for the command.
const FAULTS: [Signal; 7] =
    [Signal::FPE, Signal::ILL, Signal::SEGV, Signal::BUS, Signal::ABRT, Signal::TRAP, Signal::SYS];

/// Runs what the command line says; tells the exit code.
pub(crate) fn run(start: Start) -> i32 {
    let name = start.args.at(0).map_or(b"sexton-init".as_slice(), |name| base_name(name.to_bytes()));
    match args::parse(start) {
        Ok(Wish::Run(options)) => Init::new(options, start.env).run(),
        Ok(Wish::Help) => {
            print_usage(STDOUT, name);
            0
        }
        Ok(Wish::Version) => {
            say(STDOUT, format_args!("sexton-init version {VERSION}"));
            0
        }
        Ok(Wish::Licence) => {
            say(STDOUT, format_args!("sexton-init is licensed under Apache-2.0 OR MIT."));
            0
        }
        Err(error) => {
            say(STDERR, format_args!("{}: {error}", Shown(name)));
            print_usage(STDERR, name);
            1
        }
    }
}

/// What stands after the last slash.
fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

fn print_usage(fd: i32, name: &[u8]) {
    let name = Shown(name);
    say(
        fd,
        format_args!(
            "{name} (version {VERSION})
Usage: {name} [OPTIONS] PROGRAM -- [ARGS] | --version

Execute a program under the supervision of a valid init process ({name})

Command line options:

  --version: Show version and exit.
  -h: Show this help message and exit.
  -s: Register as a process subreaper (requires Linux >= 3.4).
  -p SIGNAL: Trigger SIGNAL when parent dies, e.g. \"-p SIGKILL\".
  -v: Generate more verbose output. Repeat up to 3 times.
  -w: Print a warning when processes are getting reaped.
  -g: Send signals to the child's process group.
  -e EXIT_CODE: Remap EXIT_CODE (from 0 to 255) to 0 (can be repeated)."
        ),
    );
    say(
        fd,
        format_args!(
            "  -r SIGNAL:SIGNAL: Forward the first as the second, 0 for not at all (can be repeated).
  -l: Show license and exit.

Environment variables:

  TINI_SUBREAPER: Register as a process subreaper (requires Linux >= 3.4).
  TINI_VERBOSITY: Set the verbosity level (default: 1).
  TINI_KILL_PROCESS_GROUP: Send signals to the child's process group."
        ),
    );
}

/// How loud a line is; it is printed from this verbosity on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Fatal = 0,
    Warn = 1,
    Info = 2,
    Debug = 3,
    Trace = 4,
}

/// The init of one command.
struct Init<'a> {
    options: Options<'a>,
    env: Strings<'a>,
    finder: Finder,
    child: Option<Child>,
    code: Option<u8>,
}

impl<'a> Init<'a> {
    fn new(options: Options<'a>, env: Strings<'a>) -> Init<'a> {
        Init { options, env, finder: Finder::new(), child: None, code: None }
    }

    /// Runs the command to its end; tells the exit code.
    fn run(&mut self) -> i32 {
        let before = self.arrange_signals();
        if let Err(error) = self.arrange_reaping() {
            self.tell(Level::Fatal, format_args!("{error}"));
            return 1;
        }
        match self.start_command(before) {
            Ok(child) => self.child = Some(child),
            Err(error) => return self.refuse_command(error),
        }
        loop {
            let now = time::monotonic();
            let mut finder = core::mem::replace(&mut self.finder, Finder::resting());
            finder.scan_if_due(now, |pid, _| self.reap(pid));
            self.finder = finder;
            if let Some(code) = self.code {
                return self.leave(code);
            }
            self.await_signal(now);
        }
    }

    /// Blocks all signals that are to be forwarded, and makes children leave their statuses; tells the state before.
    fn arrange_signals(&self) -> SignalState {
        let mask = signal::replace_mask(forwarded());
        // Cannot fail for CHLD.
        let child = signal::set_disposition(Signal::CHLD, Disposition::Default).unwrap_or(Disposition::Default);
        SignalState { mask, child }
    }

    /// Sets what happens when the parent or a descendant ends.
    fn arrange_reaping(&self) -> Result<(), SysError> {
        if let Some(signal) = self.options.parent_death {
            process::set_parent_death_signal(signal)?;
        }
        if self.options.subreaper {
            process::become_subreaper()?;
            self.tell(Level::Trace, format_args!("Registered as child subreaper"));
        }
        if process::pid() != 1 && !process::is_subreaper().unwrap_or(false) {
            self.tell(
                Level::Warn,
                format_args!(
                    "sexton-init is not running as PID 1 and isn't registered as a child subreaper.
Zombie processes will not be re-parented to sexton-init, so zombie reaping won't work.
To fix the problem, use the -s option or set the environment variable TINI_SUBREAPER to register \
                     sexton-init as a child subreaper, or run sexton-init as PID 1."
                ),
            );
        }
        Ok(())
    }

    fn start_command(&self, signals: SignalState) -> Result<Child, SysError> {
        let command = self.options.command;
        let program = command.at(0).unwrap_or(c"");
        let child = process::spawn(&Spawn {
            program: Program::Search(program),
            args: command,
            env: self.env,
            env_added: &[],
            signals,
            group: Group::OwnWithTerminal,
            parent_death: None,
            stdin: None,
            kept: &[],
        })?;
        let name = Shown(program.to_bytes());
        self.tell(Level::Info, format_args!("Spawned child process '{name}' with pid '{}'", child.pid()));
        Ok(child)
    }

    /// Tells why the command could not be run, and the exit code that shells use for it.
    fn refuse_command(&self, error: SysError) -> i32 {
        let name = Shown(self.options.command.at(0).map(CStr::to_bytes).unwrap_or_default());
        if error.call == "execve" {
            self.tell(Level::Fatal, format_args!("exec {name} failed: {}", error.errno));
        } else {
            self.tell(Level::Fatal, format_args!("could not start {name}: {error}"));
            return 1;
        }
        match error.errno {
            Errno::ENOENT | Errno::ENOTDIR => 127,
            _ => 126,
        }
    }

    /// Waits for a signal until there is something else to do, and acts on it.
    fn await_signal(&mut self, now: Duration) {
        let crowd = self.finder.crowd(now);
        let awaited = if crowd.is_some() { forwarded().without(Signal::CHLD) } else { forwarded() };
        // An error is an interruption; the loop comes back here with what is left of the pause.
        let Ok(Some(caught)) = signal::wait(awaited, crowd.or(self.finder.pause(now))) else {
            return;
        };
        if caught.signal == Signal::CHLD {
            self.tell(Level::Debug, format_args!("Received SIGCHLD"));
            self.finder.want();
            self.reap(caught.pid);
        } else {
            self.forward(caught);
        }
    }

    /// Passes a signal on to the command.
    fn forward(&self, caught: Caught) {
        // Our own line on a closed pipe is not the command's affair.
        let own = caught.signal == Signal::PIPE && caught.pid == process::pid();
        let (Some(signal), Some(child)) = (self.options.rewrites.of(caught.signal), &self.child) else {
            return;
        };
        if own {
            return;
        }
        self.tell(Level::Debug, format_args!("Passing signal: '{signal}'"));
        let sent = if self.options.signal_group { child.signal_group(signal) } else { child.signal(signal) };
        match sent {
            Ok(()) => {}
            Err(error) if error.errno == Errno::ESRCH => {
                self.tell(Level::Warn, format_args!("Child was dead when forwarding signal"));
            }
            Err(error) => self.tell(Level::Warn, format_args!("Could not forward {signal}: {error}")),
        }
    }

    /// Reaps child `pid` if it has ended; tells whether it did. A number that is no child of ours is left alone by
    /// the kernel.
    fn reap(&mut self, pid: u32) -> bool {
        match self.child.take_if(|child| child.pid() == pid) {
            Some(child) => match child.reap() {
                Ok(ended) => {
                    self.tell(Level::Debug, format_args!("Reaped child with pid: '{pid}'"));
                    self.command_ended(ended);
                }
                Err(child) => {
                    self.child = Some(child);
                    return false;
                }
            },
            None if pid == 0 || !matches!(wait::reap(pid), Ok(Some(_))) => return false,
            None => {
                self.tell(Level::Debug, format_args!("Reaped child with pid: '{pid}'"));
                if self.options.warn_on_reap {
                    self.tell(Level::Warn, format_args!("Reaped zombie process with pid={pid}"));
                }
            }
        }
        true
    }

    /// Notes the command's end.
    fn command_ended(&mut self, ended: Ended) {
        match ended {
            Ended::Exited(code) => {
                self.tell(Level::Info, format_args!("Main child exited normally (with status '{code}')"));
            }
            Ended::Killed { signal, core: _ } => {
                self.tell(Level::Info, format_args!("Main child exited with signal (with signal '{signal}')"));
            }
        }
        let code = ended.shell_code();
        self.code = Some(if self.options.expected.contains(code) { 0 } else { code });
    }

    /// Reaps who else has ended by now, so that none of them is left to a parent that may not; tells the exit code.
    fn leave(&mut self, code: u8) -> i32 {
        Finder::new().scan(Duration::ZERO, |pid, _| self.reap(pid));
        self.tell(Level::Trace, format_args!("Exiting: child has exited"));
        code.into()
    }

    /// Prints a line, where it is wanted.
    fn tell(&self, level: Level, line: fmt::Arguments<'_>) {
        if level != Level::Fatal && self.options.verbosity < level as i32 {
            return;
        }
        let (fd, tag) = match level {
            Level::Fatal => (STDERR, "FATAL"),
            Level::Warn => (STDERR, "WARN "),
            Level::Info => (STDOUT, "INFO "),
            Level::Debug => (STDOUT, "DEBUG"),
            Level::Trace => (STDOUT, "TRACE"),
        };
        say(fd, format_args!("[{tag} sexton-init ({})] {line}", process::pid()));
    }
}

/// The signals that are taken and passed on, CHLD included, which is acted on.
fn forwarded() -> SignalSet {
    FAULTS.iter().fold(SignalSet::ALL, |set, &fault| set.without(fault))
}
