//! `node`, `drain`, `nodes`, `slots`: the node as a whole.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use sexton_ledger::duration;
use sexton_plan::id::Name;
use tokio::time::Instant;

use super::client::{Ask, Client, Known};
use super::failure::{Failure, exit};
use super::member::Member as _;
use super::{Context, args, out, watch};

/// `sexton drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The node [default: the one that answers].
    #[arg(value_parser = args::name)]
    node: Option<Name>,
    /// End everything, now.
    #[arg(long)]
    force: bool,
    /// Turn a graceful drain into a forced one after this long.
    #[arg(long, value_parser = args::span, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// Return when drained; a forced one at most `--timeout` (default 30s) later, with 5 and what is left.
    #[arg(long)]
    wait: bool,
}

/// How long a forced drain is waited for where nobody says.
const FORCED: Duration = Duration::from_secs(30);

/// Shows the node.
pub async fn show(context: &Context) -> Result<u8, Failure> {
    let node = context.client()?.get("/v1/node").await?;
    context.out.document(&node, out::members)?;
    Ok(exit::DONE)
}

/// Lists what a path lists.
pub async fn list(context: &Context, path: &str) -> Result<u8, Failure> {
    let items = context.client()?.list(path, &[]).await?;
    let text = |_: &Value| if items.is_empty() { "none\n".to_owned() } else { out::objects(&items) };
    context.out.document(&json!({"items": items, "next": null}), text)?;
    Ok(exit::DONE)
}

/// Closes the gate, and with `--wait` waits until nothing is left.
pub async fn drain(context: &Context, args: &DrainArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let timeout = args.timeout.map(duration::format);
    let body = json!({"status": "draining", "forceStop": args.force, "timeout": timeout});
    let path = format!("/v1/nodes/{}", args.node.as_ref().map_or("self", Name::as_str));
    let ends = ends(args).map(|limit| Instant::now() + limit);
    let answer = client.ask(&Ask::post(path, body).due(ends)).await.map_err(hint_at_nodes)?;
    if !args.wait {
        context.out.document(&answer, out::members)?;
        return Ok(exit::DONE);
    }
    let node = drained(&client, args.node.as_ref(), ends).await?;
    context.out.document(&node, out::members)?;
    if node.at("drained") == true { Ok(exit::DONE) } else { Err(left(&node)) }
}

/// How long a drain is waited for; `None` for ever.
fn ends(args: &DrainArgs) -> Option<Duration> {
    match (args.force, args.timeout) {
        (true, timeout) => Some(timeout.unwrap_or(FORCED)),
        // It is graceful for so long, and forced from then on.
        (false, Some(timeout)) => Some(timeout.saturating_add(timeout.max(FORCED))),
        (false, None) => None,
    }
}

/// Waits until the node is drained, or until `ends`; gives it as it then is.
async fn drained(client: &Client, name: Option<&Name>, ends: Option<Instant>) -> Result<Value, Failure> {
    let mut known = Known::No;
    let mut pause = Duration::from_millis(20);
    loop {
        let node = look(client, name, known, ends).await?;
        known = Known::Yes;
        if node.at("drained") == true || watch::is_over(ends) {
            return Ok(node);
        }
        tokio::time::sleep(pause.min(watch::left(ends))).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// One node as it is now.
async fn look(client: &Client, name: Option<&Name>, known: Known, ends: Option<Instant>) -> Result<Value, Failure> {
    let Some(name) = name.filter(|name| name.as_str() != "self") else {
        return client.send_again(&Ask::get("/v1/node").due(ends), known).await?.into_body();
    };
    let nodes = client.list("/v1/nodes", &[]).await?;
    let found = nodes.into_iter().find(|node| node.at("id") == name.as_str());
    found.ok_or_else(|| hint_at_nodes(Failure::new(exit::NOT_FOUND, format!("there is no node `{name}`"))))
}

/// What is not found here is a node, not an instance.
fn hint_at_nodes(failure: Failure) -> Failure {
    if failure.exit == exit::NOT_FOUND { failure.hint("`sexton nodes` lists what there is") } else { failure }
}

fn left(node: &Value) -> Failure {
    let things = node.at("left").as_array().map(Vec::as_slice).unwrap_or_default();
    let told: Vec<String> = things
        .iter()
        .map(|thing| format!("{} ({})", out::word(thing.at("name")), out::word(thing.at("error"))))
        .collect();
    let told = if told.is_empty() { "something".to_owned() } else { told.join(", ") };
    Failure::new(exit::STUCK, format!("not drained, left: {told}"))
        .hint("`sexton drain --force --wait` asks again; `sexton show NAME` tells what holds one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graceful_drain_without_a_limit_is_waited_for_for_ever() {
        let args = |force, timeout| DrainArgs { node: None, force, timeout, wait: true };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(ends(&args(false, None)), None);
        assert_eq!(ends(&args(true, None)), seconds(30));
        assert_eq!(ends(&args(true, seconds(5))), seconds(5));
        assert_eq!(ends(&args(false, seconds(60))), seconds(120));
    }

    #[test]
    fn who_drains_another_node_is_told_where_nodes_are_listed() {
        let of = |status, code| hint_at_nodes(Failure::of_answer(status, &json!({"code": code}))).hint;
        assert!(of(404, "not_found").is_some_and(|hint| hint.contains("sexton nodes")));
        assert!(of(409, "wrong_state").is_some_and(|hint| !hint.contains("sexton nodes")));
    }

    #[test]
    fn what_is_left_is_named() {
        let failure = left(&json!({"left": [{"name": "vm-1", "error": "stuck"}]}));
        assert_eq!((failure.exit, failure.message.as_deref()), (5, Some("not drained, left: vm-1 (stuck)")));
    }
}
