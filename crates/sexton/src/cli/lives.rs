//! `start`, `stop`, `signal`, `wait`, `rm`: what is asked of instances that there are.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use sexton_ledger::duration;
use sexton_plan::id::Name;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::{Ask, AskError, Client, Known};
use super::failure::{Failure, exit};
use super::member::Member as _;
use super::watch::{self, GiveUp, Until};
use super::{Context, args, out, words};

/// `sexton start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// The instance.
    #[arg(value_parser = args::name)]
    name: Name,
}

/// `sexton stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The instances.
    #[arg(value_parser = args::name, required = true, value_name = "NAME")]
    names: Vec<Name>,
    /// SIGKILL at once.
    #[arg(long)]
    force: bool,
    /// How long to wait after the polite signal, instead of what the spec says.
    #[arg(long, value_parser = args::span, value_name = "DURATION")]
    grace: Option<Duration>,
    /// Wait no longer than this for the end; the stop itself goes on.
    #[arg(long, value_parser = args::span, value_name = "DURATION")]
    wait: Option<Duration>,
}

/// `sexton signal`.
#[derive(Debug, Args)]
pub struct SignalArgs {
    /// The instance.
    #[arg(value_parser = args::name)]
    name: Name,
    /// A name with or without `SIG`, or a number from 1 to 64.
    #[arg(value_parser = args::signal)]
    signal: String,
}

/// `sexton wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The instance.
    #[arg(value_parser = args::name)]
    name: Name,
    /// Wait no longer than this.
    #[arg(long, value_parser = args::span, value_name = "DURATION")]
    timeout: Option<Duration>,
}

/// `sexton rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The instances.
    #[arg(value_parser = args::name, required = true, value_name = "NAME")]
    names: Vec<Name>,
    /// Stop it first, if it lives.
    #[arg(long)]
    force: bool,
}

/// Starts a new incarnation, and waits until it runs.
pub async fn start(context: &Context, args: &StartArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let before = client.get(watch::path(&args.name)).await?;
    let begun = begin(&client, &args.name, &before).await?;
    let instance = match words::state(&begun) {
        "starting" => watch::until(&client, &args.name, Until::Running, None, GiveUp::WhenStuck).await?.0,
        _ => begun,
    };
    context.out.document(&instance, |_| format!("{}\n", args.name))?;
    ran(&instance)
}

/// Asks for the start once; where the answer was lost, a new incarnation tells that it was heard.
async fn begin(client: &Client, name: &Name, before: &Value) -> Result<Value, Failure> {
    let ask = Ask::post(format!("{}/start?wait=30s", watch::path(name)), json!({}));
    match client.send(&ask).await {
        Ok(answer) => answer.into_body(),
        Err(error @ AskError::Unreachable { .. }) => Err(error.into()),
        Err(error @ AskError::Lost { .. }) => {
            let now = client.send_again(&Ask::get(watch::path(name)), Known::Yes).await?.into_body()?;
            if now.at("incarnation") == before.at("incarnation") { Err(error.into()) } else { Ok(now) }
        }
    }
}

/// A life that never ran is a failure of whoever asked for it.
fn ran(instance: &Value) -> Result<u8, Failure> {
    match words::state(instance) {
        "failed" => {
            let reason = instance.at("reason").as_str().unwrap_or("nobody knows why");
            Err(Failure::new(exit::FAILED, format!("it never ran: {reason}")).hint("`sexton show NAME` tells more"))
        }
        _ => Ok(exit::DONE),
    }
}

/// Asks all to end, and waits until all have.
pub async fn stop(context: &Context, args: &StopArgs) -> Result<u8, Failure> {
    let body = json!({"force": args.force, "grace": args.grace.map(duration::format)});
    let deadline = watch::deadline(args.wait);
    let client = context.client()?;
    let results = each(&args.names, |name| stop_one(client.clone(), name, body.clone(), deadline)).await;
    report(context, &args.names, results, words::summary)
}

async fn stop_one(client: Client, name: Name, body: Value, deadline: Option<Instant>) -> Result<Value, Failure> {
    let ask = Ask::post(format!("{}/stop", watch::path(&name)), body).held(deadline, Duration::from_secs(1));
    let answer = client.send_again(&ask, Known::No).await?;
    let finished = answer.status == 200;
    let instance = answer.into_body()?;
    let (instance, finished) = match finished {
        true => (instance, true),
        false => watch::until(&client, &name, Until::Settled, deadline, GiveUp::WhenStuck).await?,
    };
    if finished { Ok(instance) } else { Err(unfinished(&instance)) }
}

/// Why a wait ended before what it was for.
fn unfinished(instance: &Value) -> Failure {
    let processes = instance.at("stuck").as_array().map(Vec::as_slice).unwrap_or_default();
    if !watch::is_stuck(instance) && processes.is_empty() {
        return Failure::new(exit::TIMED_OUT, format!("not yet over: {}", words::summary(instance)))
            .hint("it goes on by itself; `sexton wait NAME` waits for the end");
    }
    let told: Vec<String> = processes
        .iter()
        .map(|process| {
            format!(
                "process {} ({}) in {}",
                process.at("pid"),
                out::word(process.at("state")),
                out::word(process.at("wchan"))
            )
        })
        .collect();
    Failure::new(exit::STUCK, format!("stuck: SIGKILL did not end {}", told.join(", ")))
        .hint("the kernel holds it, often in a device or a file system; it is looked at again every second")
}

/// Sends one signal.
pub async fn signal(context: &Context, args: &SignalArgs) -> Result<u8, Failure> {
    let ask = Ask::post(format!("{}/signal", watch::path(&args.name)), json!({"signal": args.signal}));
    // Never twice: whether a lost one was sent cannot be known.
    let instance = context.client()?.send(&ask).await?.into_body()?;
    context.out.document(&instance, |_| String::new())?;
    Ok(exit::DONE)
}

/// Waits for the end of the main process.
pub async fn wait(context: &Context, args: &WaitArgs) -> Result<u8, Failure> {
    let deadline = watch::deadline(args.timeout);
    let (instance, known) = watch::until(&context.client()?, &args.name, Until::Exit, deadline, GiveUp::Never).await?;
    if !known {
        return Err(unfinished(&instance));
    }
    let told = |instance: &Value| words::exit(instance).unwrap_or_else(|| words::summary(instance));
    context.out.document(&instance, |instance| out::escape(&told(instance)) + "\n")?;
    Ok(exit::DONE)
}

/// Removes all, and waits until all are gone.
pub async fn rm(context: &Context, args: &RmArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let results = each(&args.names, |name| remove_one(client.clone(), name, args.force)).await;
    report(context, &args.names, results, |_| "removed".to_owned())
}

async fn remove_one(client: Client, name: Name, force: bool) -> Result<Value, Failure> {
    let ask = Ask::delete(format!("{}?wait=1s&force={force}", watch::path(&name)));
    let mut last: Option<Value> = None;
    loop {
        let known = if last.is_some() { Known::Yes } else { Known::No };
        let answer = client.send_again(&ask, known).await?;
        match (answer.status, last) {
            // Accepted before, it went away between two looks.
            (404, Some(instance)) => return Ok(instance),
            (404, None) if answer.after_loss => return Ok(json!({"name": name})),
            (202, _) => {
                let instance = answer.into_body()?;
                if watch::is_stuck(&instance) {
                    return Err(unfinished(&instance));
                }
                last = Some(instance);
            }
            (_, _) => return answer.into_body(),
        }
    }
}

/// Does the same with every name at once; results in the order of the names.
async fn each<F>(names: &[Name], work: impl Fn(Name) -> F) -> Vec<Result<Value, Failure>>
where
    F: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (number, name) in names.iter().enumerate() {
        let work = work(name.clone());
        tasks.spawn(async move { (number, work.await) });
    }
    let mut results = tasks.join_all().await;
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Prints what became of each, tells the failures, and gives one exit code for all.
fn report(
    context: &Context,
    names: &[Name],
    results: Vec<Result<Value, Failure>>,
    told: fn(&Value) -> String,
) -> Result<u8, Failure> {
    let mut done = Vec::new();
    let mut text = String::new();
    let mut codes = Vec::new();
    for (name, result) in names.iter().zip(results) {
        match result {
            Ok(instance) => {
                text.push_str(&format!("{name}: {}\n", out::escape(&told(&instance))));
                done.push(instance);
            }
            Err(failure) => codes.push(failure.about(name.as_str()).tell()),
        }
    }
    let any_done = !done.is_empty();
    context.out.document(&json!({"items": done, "next": null}), |_| text)?;
    Ok(joint_exit(any_done, &codes))
}

/// One exit code for several results.
fn joint_exit(any_done: bool, codes: &[u8]) -> u8 {
    match codes {
        [] => exit::DONE,
        codes if codes.contains(&exit::STUCK) => exit::STUCK,
        [first, rest @ ..] if !any_done && rest.iter().all(|code| code == first) => *first,
        _ => exit::STUCK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_results_make_one_exit_code() {
        assert_eq!(joint_exit(true, &[]), exit::DONE);
        assert_eq!(joint_exit(false, &[3]), 3);
        assert_eq!(joint_exit(false, &[3, 3]), 3);
        assert_eq!(joint_exit(true, &[3]), exit::STUCK);
        assert_eq!(joint_exit(false, &[3, 4]), exit::STUCK);
        assert_eq!(joint_exit(false, &[7, 5]), exit::STUCK);
    }

    #[test]
    fn a_time_out_with_something_stuck_is_told_as_stuck() {
        let stuck = json!({"state": "stuck", "stuck": [{"pid": 7, "state": "D", "wchan": "fuse_wait"}]});
        let failure = unfinished(&stuck);
        assert_eq!(failure.exit, exit::STUCK);
        assert_eq!(failure.message.as_deref(), Some("stuck: SIGKILL did not end process 7 (D) in fuse_wait"));
        assert_eq!(unfinished(&json!({"state": "stopping", "stuck": null})).exit, exit::TIMED_OUT);
    }
}
