//! The daemon itself: who it is, what it uses, what it is told to do.

use std::fs;

use crate::api::answer::{Answer, json};
use crate::api::dispatch::Call;
use crate::api::serve::detached;
use crate::api::types::{LedgerView, SelfView, VersionView};
use crate::refusal::{Kind, Refusal};

pub(in crate::api) async fn version(_call: Call) -> Result<Answer, Refusal> {
    Ok(json(200, &VersionView { version: env!("CARGO_PKG_VERSION").to_owned(), api: "v1".to_owned() }))
}

pub(in crate::api) async fn own(call: Call) -> Result<Answer, Refusal> {
    let facts = call.context.node.facts().await?;
    let usage =
        Usage::look().map_err(|error| Refusal::new(Kind::Internal, format!("could not read `/proc/self`: {error}")))?;
    Ok(json(
        200,
        &SelfView {
            worker_pid: std::process::id(),
            keeper_pid: facts.keeper_pid,
            fds: usage.fds,
            threads: usage.threads,
            rss_bytes: usage.rss_bytes,
            ledger_path: call.context.ledger_path().display().to_string(),
            generation: facts.generation,
        },
    ))
}

/// What this process uses.
struct Usage {
    fds: u64,
    threads: u64,
    rss_bytes: u64,
}

impl Usage {
    fn look() -> std::io::Result<Usage> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        // The descriptor that lists the others is not counted.
        let fds = fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64;
        Ok(Usage { fds, threads: field("Threads:").unwrap_or(0), rss_bytes: field("VmRSS:").unwrap_or(0) * 1_024 })
    }
}

pub(in crate::api) async fn ledger(call: Call) -> Result<Answer, Refusal> {
    let path = call.context.ledger_path();
    let size = |suffix: &str| fs::metadata(format!("{}{suffix}", path.display())).map_or(0, |about| about.len());
    let bytes = size("") + size("-wal");
    let reader = call.context.events.0.clone();
    let first = tokio::task::spawn_blocking(move || reader.first_seq()).await.map_err(|_| Refusal::ending())?;
    let first_seq =
        first.map_err(|error| Refusal::new(Kind::Internal, format!("could not read the ledger: {error}")))?;
    let last_seq = *call.context.last_seq.borrow();
    Ok(json(200, &LedgerView { path: path.display().to_string(), bytes, first_seq, last_seq }))
}

pub(in crate::api) async fn reconcile(call: Call) -> Result<Answer, Refusal> {
    let node = call.context.node.clone();
    let generation = detached(async move { node.reconcile().await }).await??;
    Ok(json(200, &serde_json::json!({ "generation": generation })))
}
