//! The command line: one file for each verb or small group of them. It talks to the daemon through its REST API alone.

mod adopt;
mod args;
mod attach;
mod boot;
mod client;
mod config;
mod doctor;
mod events;
mod failure;
mod ledger;
mod lives;
mod logs;
mod member;
mod meta;
mod node;
mod out;
mod plan;
mod ps;
mod run;
mod serve;
mod show;
mod top;
mod watch;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use self::client::Client;
use self::failure::{Failure, exit};
use self::out::{Format, Out};
use crate::config::{Flags, Settings, Target};

/// Custody of processes on hosts that run other people's programs.
#[derive(Debug, Parser)]
#[command(name = "sexton", version, max_term_width = 110, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 usage or bad name, 3 not found, 4 refused in this state, 5 stuck or partly done,
6 daemon not reachable, 7 timed out and nothing is stuck.";

/// Flags of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Where things live")]
struct Global {
    /// Configuration file [env: SEXTON_CONFIG] [default: /etc/sexton/sexton.toml].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<String>,
    /// Ledger and logs [env: SEXTON_STATE_DIR] [default: /var/lib/sexton].
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,
    /// Sockets and pins [env: SEXTON_RUN_DIR] [default: /run/sexton].
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<String>,
    /// Subtree below the cgroup2 root [env: SEXTON_CGROUP] [default: sexton, or `instances`
    /// in a cgroup that was delegated to the daemon].
    #[arg(long, global = true, value_name = "PATH")]
    cgroup: Option<String>,
    /// What to talk to: a path or `http+unix://…` [env: SEXTON_SOCKET] [default: RUN_DIR/sexton.sock].
    #[arg(long, global = true, value_name = "URL")]
    socket: Option<String>,
    /// Extra TCP listener of the daemon [env: SEXTON_LISTEN].
    #[arg(long, global = true, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// What becomes of instances when the daemon is asked to end: `detach` or `drain` [env: SEXTON_ON_SHUTDOWN].
    #[arg(long, global = true, value_name = "WHAT")]
    on_shutdown: Option<String>,
    /// How long a graceful drain may last before it is forced [env: SEXTON_DRAIN_TIMEOUT].
    #[arg(long, global = true, value_name = "DURATION")]
    drain_timeout: Option<String>,
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the node daemon.
    Serve(serve::ServeArgs),
    /// Create an instance and start it; returns when it runs.
    Run(Box<run::RunArgs>),
    /// Start a new incarnation of a terminal instance, from its recorded spec.
    Start(lives::StartArgs),
    /// Ask instances to end, and wait until they have; stopping what is over succeeds.
    Stop(lives::StopArgs),
    /// Send one signal to the main process of an instance.
    Signal(lives::SignalArgs),
    /// Wait until it is known how the main process ended.
    Wait(lives::WaitArgs),
    /// Take terminal instances off the list, and wait for what they still release.
    Rm(lives::RmArgs),
    /// List instances.
    Ps(ps::PsArgs),
    /// Show one instance, its processes and its last events.
    Show(show::ShowArgs),
    /// Print what an instance wrote.
    Logs(logs::LogsArgs),
    /// Print the durable event log.
    Events(events::EventsArgs),
    /// Take custody of a process that something else started (root only).
    Adopt(adopt::AdoptArgs),
    /// Show what the reconciler would do, with its proof for each line.
    Plan,
    /// Do exactly what a plan says, or refuse if the facts changed.
    Apply(plan::ApplyArgs),
    /// Run the reconciler now.
    Reconcile,
    /// Settle the previous boot's instances once, without a daemon. A live daemon has settled its boot: 0 beside one.
    BootCheck,
    /// Show the status of this node.
    Node,
    /// Close the gate of a node and empty it.
    Drain(node::DrainArgs),
    /// List the nodes of the fleet.
    Nodes,
    /// List the network slots.
    Slots,
    /// Watch instances live.
    Top(top::TopArgs),
    /// Tell what this kernel and host allow, and what is wrong.
    Doctor,
    /// Read the ledger, with or without a daemon.
    Ledger(ledger::LedgerArgs),
    /// Show the main promises live in temporary directories.
    Demo,
    /// Show or check the configuration.
    Config(config::ConfigArgs),
    /// Print the completions of a shell.
    Completions(meta::CompletionsArgs),
    /// Print the manual page.
    Man(meta::ManArgs),
}

impl Global {
    fn flags(&self) -> Flags {
        let Global { config, state_dir, run_dir, cgroup, socket, listen, on_shutdown, drain_timeout, output: _ } = self;
        Flags {
            config: config.clone(),
            state_dir: state_dir.clone(),
            run_dir: run_dir.clone(),
            cgroup: cgroup.clone(),
            socket: socket.clone(),
            listen: listen.clone(),
            on_shutdown: on_shutdown.clone(),
            drain_timeout: drain_timeout.clone(),
        }
    }
}

/// What a verb works with.
#[derive(Clone, Debug)]
struct Context {
    out: Out,
    settings: Settings,
}

impl Context {
    /// The way to the daemon.
    fn client(&self) -> Result<Client, Failure> {
        match &self.settings.socket {
            Target::Unix(path) => Ok(Client::new(path.clone())),
            Target::Url(url) => {
                Err(Failure::new(exit::USAGE, format!("`{url}` cannot be talked to by this program yet"))
                    .hint("name a unix socket: a path, or `http+unix://` and a path"))
            }
        }
    }
}

/// Runs the command line that this process was started with, and gives its exit code.
pub fn main() -> ExitCode {
    ExitCode::from(command_line(std::env::args_os().collect()))
}

fn command_line(args: Vec<OsString>) -> u8 {
    let usage_exit = if is_serve(&args) { exit::SERVE_USAGE } else { exit::USAGE };
    let args = match args::utf8(args) {
        Ok(args) => args,
        Err(why) => return Failure::new(usage_exit, why).hint("write it as UTF-8").tell(),
    };
    let parsed = Cli::command().try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => run_verb(cli).unwrap_or_else(|failure| failure.tell()),
        Err(error) => meta::usage(&tamed(&args).unwrap_or(error), usage_exit),
    }
}

/// What is wrong with `args`, said of the same words with their control characters escaped: a message has lines of its
/// own, so afterwards nobody could tell them from the caller's. `None` where there is none to escape.
fn tamed(args: &[String]) -> Option<clap::Error> {
    if !args.iter().any(|arg| arg.contains(char::is_control)) {
        return None;
    }
    Cli::command().try_get_matches_from(args.iter().map(|arg| out::escape(arg))).err()
}

/// Whether this is meant to be `sexton serve`, which has exit codes of its own.
fn is_serve(args: &[OsString]) -> bool {
    let told = Cli::command().ignore_errors(true).try_get_matches_from(args).ok();
    match told.as_ref().and_then(|matches| matches.subcommand_name()) {
        Some(verb) => verb == "serve",
        // Behind a flag that is none, nothing was looked at: the first verb's name is the verb.
        None => {
            let verbs = Cli::command();
            let is_verb = |word: &&str| verbs.find_subcommand(word).is_some();
            args.iter().skip(1).filter_map(|arg| arg.to_str()).find(is_verb) == Some("serve")
        }
    }
}

fn run_verb(cli: Cli) -> Result<u8, Failure> {
    let out = Out::new(cli.global.output);
    let flags = cli.global.flags();
    let context = || config::resolve(&flags).map(|settings| Context { out, settings });
    match cli.verb {
        Verb::Serve(_) => serve::serve(&flags),
        Verb::Run(args) => block_on(run::run(&context()?, &args)),
        Verb::Start(args) => block_on(lives::start(&context()?, &args)),
        Verb::Stop(args) => block_on(lives::stop(&context()?, &args)),
        Verb::Signal(args) => block_on(lives::signal(&context()?, &args)),
        Verb::Wait(args) => block_on(lives::wait(&context()?, &args)),
        Verb::Rm(args) => block_on(lives::rm(&context()?, &args)),
        Verb::Ps(args) => block_on(ps::run(&context()?, &args)),
        Verb::Show(args) => block_on(show::run(&context()?, &args)),
        Verb::Logs(args) => block_on(logs::run(&context()?, &args)),
        Verb::Events(args) => block_on(events::run(&context()?, &args)),
        Verb::Adopt(args) => block_on(adopt::run(&context()?, &args)),
        Verb::Plan => block_on(plan::show(&context()?)),
        Verb::Apply(args) => block_on(plan::apply(&context()?, &args)),
        Verb::Reconcile => block_on(plan::reconcile(&context()?)),
        Verb::BootCheck => boot::check(&context()?),
        Verb::Node => block_on(node::show(&context()?)),
        Verb::Drain(args) => block_on(node::drain(&context()?, &args)),
        Verb::Nodes => block_on(node::list(&context()?, "/v1/nodes")),
        Verb::Slots => block_on(node::list(&context()?, "/v1/slots")),
        Verb::Top(args) => block_on(top::run(&context()?, &args)),
        Verb::Doctor => block_on(doctor::run(&context()?)),
        Verb::Ledger(args) => ledger::run(&context()?, &args),
        Verb::Demo => serve::demo(out),
        Verb::Config(args) => config::run(&args, &flags, out),
        Verb::Completions(args) => meta::completions(&args, &mut Cli::command(), out),
        Verb::Man(args) => meta::man(&args, Cli::command(), out),
    }
}

/// Runs what asks the daemon, on this one thread.
fn block_on(work: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(exit::FAILED, format!("could not begin: {error}")))?;
    let result = runtime.block_on(work);
    // A write that nobody takes must not keep the program.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_word_cannot_add_lines_to_an_error() {
        let args = ["sexton", "show", "a\x1b[31m\nerror: b"].map(str::to_owned);
        let text = tamed(&args).expect("refused").to_string();
        assert!(text.contains(r"'a\x1b[31m\nerror: b'"), "{text}");
        assert!(tamed(&["sexton".to_owned(), "A".to_owned()]).is_none());
    }

    #[test]
    fn serve_is_recognised_among_flags() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(is_serve(&args("sexton --state-dir /x serve --bogus")));
        assert!(is_serve(&args("sexton --bogus serve")));
        assert!(!is_serve(&args("sexton --bogus ps serve")));
        assert!(!is_serve(&args("sexton --state-dir serve ps --bogus")));
        assert!(!is_serve(&args("sexton run serve -- serve")));
    }
}
