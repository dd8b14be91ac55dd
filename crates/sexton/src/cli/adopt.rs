//! `adopt`: custody of a process that something else started. Who it is, is read here through a pidfd, so that the
//! daemon takes exactly the process that the caller meant.

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use sexton_core::handle::{Handle, OpenHandleError};
use sexton_core::proc;
use sexton_ledger::duration;
use sexton_plan::id::{Name, Pid, Word};

use super::client::Ask;
use super::failure::{Failure, exit};
use super::{Context, args};

/// `sexton adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The instance's name.
    #[arg(value_parser = args::name)]
    name: Name,
    /// The process, by its number in this PID namespace.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
    /// What a drain does with it is decided by this word.
    #[arg(long, value_parser = args::word)]
    kind: Option<Word>,
    /// The runtime adapter that knows how to ask it to stop.
    #[arg(long)]
    runtime: Option<String>,
    /// A label; may be given several times.
    #[arg(long, value_parser = args::pair, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
    /// How long a stop waits after the polite signal.
    #[arg(long, value_parser = args::span, value_name = "DURATION")]
    grace: Option<Duration>,
    /// The polite signal.
    #[arg(long, value_parser = args::signal, value_name = "SIGNAL")]
    stop_signal: Option<String>,
}

/// Takes custody.
pub async fn run(context: &Context, args: &AdoptArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let mut body = Map::new();
    body.insert("name".to_owned(), args.name.as_str().into());
    body.insert("pid".to_owned(), args.pid.into());
    // The pidfd stays open until the daemon has answered: meanwhile its number is no other's.
    let handle = hold(args.pid)?;
    let identity = handle.identity();
    match (identity.pidfs_ino, identity.start_ticks) {
        (Some(ino), _) => body.insert("pidfs_ino".to_owned(), ino.into()),
        (None, Some(ticks)) => body.insert("start_ticks".to_owned(), ticks.into()),
        (None, None) => return Err(refused(args.pid, "nothing proves which process it is")),
    };
    let mut say = |key: &str, value: Option<Value>| value.map(|value| body.insert(key.to_owned(), value));
    say("kind", args.kind.as_ref().map(|kind| kind.as_str().into()));
    say("runtime", args.runtime.clone().map(Value::from));
    say("grace", args.grace.map(|grace| duration::format(grace).into()));
    say("stop_signal", args.stop_signal.clone().map(Value::from));
    let labels: Map<String, Value> = args.label.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    say("labels", (!labels.is_empty()).then(|| labels.into()));
    // Never twice: the second would find the process in custody.
    let instance = client.send(&Ask::post("/v1/adopt", body.into())).await?.into_body()?;
    context.out.document(&instance, |_| format!("{}\n", args.name))?;
    Ok(exit::DONE)
}

/// A hold on the process that the caller means.
fn hold(pid: i32) -> Result<Handle, Failure> {
    let Some(number) = Pid::new(pid) else { return Err(refused(pid, "the first process is never taken")) };
    let here = proc::here().map_err(|error| Failure::new(exit::FAILED, format!("could not read `/proc`: {error}")))?;
    Handle::open(number, &here).map_err(|error| match error {
        OpenHandleError::Gone => refused(pid, "there is no such process"),
        OpenHandleError::Unproven | OpenHandleError::OutOfSight => refused(pid, "nothing proves which process it is"),
        OpenHandleError::Sys(error) => refused(pid, &error.to_string()),
        OpenHandleError::Proc(error) => refused(pid, &error.to_string()),
    })
}

fn refused(pid: i32, why: &str) -> Failure {
    Failure::new(exit::REFUSED, format!("process {pid} cannot be taken: {why}"))
        .hint("name a process by the number of its first thread, as root; `ps -e` lists them")
}
