//! One command as PID 1 of a container, or as a subreaper anywhere.
//!
//! It takes tini's place, so what tini documents is the specification: which signals are forwarded, what is printed at
//! which verbosity, and that init ends when its command does.

use core::ffi::CStr;

use sexton_sys::entry::Start;
use sexton_sys::process::{self, Child, Group, Program, SignalState, Spawn};
use sexton_sys::signal::{self, Caught, Disposition, Signal, SignalSet};
use sexton_sys::strings::Strings;
use sexton_sys::text::Text;
use sexton_sys::wait::{self, Ended};
use sexton_sys::{Errno, SysError};

use crate::args::{Instead, Options, VERSION};
use crate::children::{self, Finder};
use crate::clock::Time;
use crate::text::{STDERR, STDOUT, Shown, say};

/// Signals that tell of a fault in this very program: they are never for the command.
const FAULTS: [Signal; 7] =
    [Signal::FPE, Signal::ILL, Signal::SEGV, Signal::BUS, Signal::ABRT, Signal::TRAP, Signal::SYS];

/// Runs what the command line says; tells the exit code.
pub(crate) fn run(start: Start) -> i32 {
    let name = start.args.at(0).map_or(b"sexton-init".as_slice(), |name| base_name(name.to_bytes()));
    let mut init = Init::new(start);
    let Err(instead) = init.options.read(start.env) else {
        return init.run();
    };
    match instead {
        Instead::Help => print_usage(STDOUT, name),
        Instead::Version | Instead::Licence => say(STDOUT, Text::new().add(instead)),
        Instead::Unknown(_) | Instead::NoValue(_) | Instead::BadValue(_, _) | Instead::NoCommand => {
            say(STDERR, Text::new().add(Shown(name)).add(": ").add(instead));
            print_usage(STDERR, name);
            return 1;
        }
    }
    0
}

/// What stands after the last slash.
fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// The usage, in two parts that are each short enough for a line.
fn print_usage(fd: i32, name: &[u8]) {
    let name = &Shown(name);
    let mut head = Text::new();
    head.add(name).add(" (version ").add(VERSION).add(")\nUsage: ").add(name);
    head.add(
        " [OPTIONS] PROGRAM -- [ARGS] | --version\n\nExecute a program under the supervision of a valid init process (",
    );
    say(fd, head.add(name).add(USAGE_HEAD));
    say(fd, Text::new().add(USAGE_TAIL));
}

const USAGE_HEAD: &str = ")

Command line options:

  --version: Show version and exit.
  -h: Show this help message and exit.
  -s: Register as a process subreaper (requires Linux >= 3.4).
  -p SIGNAL: Trigger SIGNAL when parent dies, e.g. \"-p SIGKILL\".
  -v: Generate more verbose output. Repeat up to 3 times.
  -w: Print a warning when processes are getting reaped.
  -g: Send signals to the child's process group.
  -e EXIT_CODE: Remap EXIT_CODE (from 0 to 255) to 0 (can be repeated).";

const USAGE_TAIL: &str = "  -r SIGNAL:SIGNAL: Forward the first as the second, 0 for not at all (can be repeated).
  -l: Show license and exit.

Environment variables:

  TINI_SUBREAPER: Register as a process subreaper (requires Linux >= 3.4).
  TINI_VERBOSITY: Set the verbosity level (default: 1).
  TINI_KILL_PROCESS_GROUP: Send signals to the child's process group.";

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
    fn new(start: Start) -> Init<'a> {
        Init { options: Options::new(start), env: start.env, finder: Finder::new(), child: None, code: None }
    }

    /// Runs the command to its end; tells the exit code.
    // By itself, so that its state is reached by short offsets.
    #[inline(never)]
    fn run(&mut self) -> i32 {
        let before = self.arrange_signals();
        if let Err(error) = self.arrange_reaping() {
            self.tell(Level::Fatal, Text::new().add(error));
            return 1;
        }
        match self.start_command(before) {
            Ok(child) => self.child = Some(child),
            Err(error) => return self.refuse_command(error),
        }
        loop {
            let now = Time::now();
            if self.finder.due() <= now {
                let begun = self.finder.begin();
                let reaped = self.reap_all();
                self.finder.end(now, begun, reaped);
            }
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
            self.tell(Level::Trace, Text::new().add("Registered as child subreaper"));
        }
        if process::pid() != 1 && !process::is_subreaper().unwrap_or(false) {
            self.tell(
                Level::Warn,
                Text::new().add(
                    "sexton-init is not running as PID 1 and isn't registered as a child subreaper.
Zombie processes will not be re-parented to sexton-init, so zombie reaping won't work.
To fix the problem, use the -s option or set the environment variable TINI_SUBREAPER to register \
                     sexton-init as a child subreaper, or run sexton-init as PID 1.",
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
            left_out: self.options.left_out,
            env: self.env,
            env_added: &[],
            signals,
            group: Group::OwnWithTerminal,
            parent_death: None,
            stdin: None,
            kept: &[],
        })?;
        let name = Shown(program.to_bytes());
        self.tell(
            Level::Info,
            Text::new().add("Spawned child process '").add(name).add("' with pid '").add(child.pid()).add("'"),
        );
        Ok(child)
    }

    /// Tells why the command could not be run, and the exit code that shells use for it.
    fn refuse_command(&self, error: SysError) -> i32 {
        let name = Shown(self.options.command.at(0).map(CStr::to_bytes).unwrap_or_default());
        if error.call.name() == c"execve" {
            self.tell(Level::Fatal, Text::new().add("exec ").add(name).add(" failed: ").add(error.errno));
        } else {
            self.tell(Level::Fatal, Text::new().add("could not start ").add(name).add(": ").add(error));
            return 1;
        }
        match error.errno {
            Errno::ENOENT | Errno::ENOTDIR => 127,
            _ => 126,
        }
    }

    /// Waits for a signal until there is something else to do, and acts on it.
    fn await_signal(&mut self, now: Time) {
        let crowd = self.finder.crowd();
        let (awaited, until) = if crowd > now {
            (forwarded().without(Signal::CHLD), crowd)
        } else {
            // It is listened again though the next scan may be late.
            (forwarded(), self.finder.due())
        };
        // An error is an interruption; the loop comes back here with what is left of the pause.
        let Ok(Some(caught)) = signal::wait(awaited, until.pause(now)) else {
            return;
        };
        if caught.signal == Signal::CHLD {
            self.tell(Level::Debug, Text::new().add("Received SIGCHLD"));
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
        self.tell(Level::Debug, Text::new().add("Passing signal: '").add(signal).add("'"));
        let sent = if self.options.signal_group { child.signal_group(signal) } else { child.signal(signal) };
        match sent {
            Ok(()) => {}
            Err(error) if error.errno == Errno::ESRCH => {
                self.tell(Level::Warn, Text::new().add("Child was dead when forwarding signal"));
            }
            Err(error) => {
                self.tell(Level::Warn, Text::new().add("Could not forward ").add(signal).add(": ").add(error))
            }
        }
    }

    /// Reaps child `pid` if it has ended; tells whether it did. A number that is no child of ours is left alone by
    /// the kernel.
    fn reap(&mut self, pid: u32) -> bool {
        match self.child.take_if(|child| child.pid() == pid) {
            Some(child) => match child.reap() {
                Ok(ended) => {
                    self.tell_of_reap(pid);
                    self.command_ended(ended);
                }
                Err(child) => {
                    self.child = Some(child);
                    return false;
                }
            },
            None if pid == 0 || !matches!(wait::reap(pid), Ok(Some(_))) => return false,
            None => {
                self.tell_of_reap(pid);
                if self.options.warn_on_reap {
                    self.tell(Level::Warn, Text::new().add("Reaped zombie process with pid=").add(pid));
                }
            }
        }
        true
    }

    /// Tells that `pid` was reaped. Asked first, for there may be very many.
    fn tell_of_reap(&self, pid: u32) {
        if self.wants(Level::Debug) {
            self.tell(Level::Debug, Text::new().add("Reaped child with pid: '").add(pid).add("'"));
        }
    }

    /// Reaps all children that have ended; tells how many.
    fn reap_all(&mut self) -> u32 {
        children::look(&mut |pid, _| self.reap(pid))
    }

    /// Notes the command's end.
    fn command_ended(&mut self, ended: Ended) {
        match ended {
            Ended::Exited(code) => {
                self.tell(
                    Level::Info,
                    Text::new().add("Main child exited normally (with status '").add(u32::from(code)).add("')"),
                );
            }
            Ended::Killed { signal, core: _ } => {
                self.tell(
                    Level::Info,
                    Text::new().add("Main child exited with signal (with signal '").add(signal).add("')"),
                );
            }
        }
        let code = ended.shell_code();
        self.code = Some(if self.options.expected.contains(code) { 0 } else { code });
    }

    /// Reaps who else has ended by now, so that none of them is left to a parent that may not; tells the exit code.
    fn leave(&mut self, code: u8) -> i32 {
        self.reap_all();
        self.tell(Level::Trace, Text::new().add("Exiting: child has exited"));
        code.into()
    }

    /// Whether lines of `level` are wanted.
    fn wants(&self, level: Level) -> bool {
        level == Level::Fatal || self.options.verbosity >= level as i32
    }

    /// Prints a line, where it is wanted.
    fn tell(&self, level: Level, line: &Text) {
        if !self.wants(level) {
            return;
        }
        let (fd, tag) = match level {
            Level::Fatal => (STDERR, "FATAL"),
            Level::Warn => (STDERR, "WARN "),
            Level::Info => (STDOUT, "INFO "),
            Level::Debug => (STDOUT, "DEBUG"),
            Level::Trace => (STDOUT, "TRACE"),
        };
        say(fd, Text::new().add("[").add(tag).add(" sexton-init (").add(process::pid()).add(")] ").add(line));
    }
}

/// The signals that are taken and passed on, CHLD included, which is acted on.
fn forwarded() -> SignalSet {
    FAULTS.iter().fold(SignalSet::ALL, |set, &fault| set.without(fault))
}
