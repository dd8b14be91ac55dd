//! The worker's own main: hears its keeper, opens the node, serves, and lets go in reverse order.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sexton_core::delegation::Delegation;
use sexton_keeper::link::{FromKeeper, KeeperLink};
use sexton_keeper::wire::{self, SweepPolicy, ToKeeper, ToWorker, Welcome};
use sexton_ledger::{Batch, EventKind, NewEvent};
use sexton_sys::fd::RawFd;
use sexton_sys::signal::{self, Disposition, Signal};

use super::closers::Closers;
use super::listeners::{self, Kept};
use super::made::Made;
use super::preflight::{check_ledger, ledger_refused};
use super::succession;
use super::{Refused, exit};
use crate::api;
use crate::chain::chain;
use crate::config::{DrainRule, OnShutdown, Settings};
use crate::node::drain::DrainRules;
use crate::node::driver::Stopped;
use crate::node::host::Host;
use crate::node::keeper::Keeper;
use crate::node::request::InFlight;
use crate::node::slots::Pool;
use crate::node::worker::{self, BeginError, Begun, Options};

/// How much longer than its pause the reconciler may take to come to its next pass.
const MARGIN: Duration = Duration::from_secs(10);

/// Runs the worker under the keeper behind `link`.
///
/// # Errors
/// It could not begin; the keeper passes the exit code on if no worker has ever been ready.
pub fn run(settings: Settings, link: RawFd, prepare: bool) -> Result<u8, Refused> {
    crate::log::start();
    tracing::info!(prepare, "worker begins");
    // Ignored by whoever started the keeper, it would discard the statuses of our children.
    if let Err(error) = signal::set_disposition(Signal::CHLD, Disposition::Default) {
        tracing::warn!(%error, "SIGCHLD not reset");
    }
    // Where the host has no room for another thread, as while a workload forks without end, what wants one waits for one
    // that is there; where there is none tokio panics, and nobody could start another worker then. Every pass takes one:
    // so that one is always there, they last longer than the pause between two passes.
    let kept = settings.reconcile.interval.0.saturating_mul(2).saturating_add(MARGIN);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().thread_keep_alive(kept).build();
    let runtime = runtime.map_err(|error| Refused::new(exit::UNAVAILABLE, error.to_string()))?;
    let mut made = Made::default();
    let worked = runtime.block_on(work(settings, link, prepare, &mut made));
    // What still waits is left: the next worker finds it again.
    runtime.shutdown_background();
    if worked.is_err() {
        // Only now the ledger is closed.
        made.take_back();
    }
    worked
}

/// `made` gets what a refusal is to take back.
async fn work(settings: Settings, link: RawFd, prepare: bool, made: &mut Made) -> Result<u8, Refused> {
    let keeper = KeeperLink::inherit(link).map_err(|error| Refused::new(exit::UNAVAILABLE, error.to_string()))?;
    let keeper = Keeper::new(keeper).map_err(|error| Refused::new(exit::UNAVAILABLE, error.to_string()))?;
    introduce(&keeper, &settings).await;
    if prepare {
        check_ledger(&settings.state_dir)?;
        // While it is locked, the old worker is of more use.
        sexton_ledger::check_lock(&settings.state_dir).map_err(|error| ledger_refused(&error))?;
        keeper.send(ToKeeper::Prepared).await;
    }
    let told = hear(&keeper).await?;
    if prepare {
        super::notify::reloading();
    } else if told.welcome.restarts == 0 {
        // A worker before this one may have taken work: nothing of it is taken back.
        *made = Made::of_the_start();
    }
    divide(&settings.cgroup);
    let new_keeper = told.welcome.restarts == 0;
    let options = options(&settings, told.welcome.keeper_pid == 1);
    let begun = worker::begin(&options, keeper, new_keeper).await.map_err(|error| refused(&error))?;
    tell_restart(&begun, &told.welcome);
    serve(Arc::new(settings), begun, told, made).await
}

/// Passes the controllers of a delegated cgroup on to `cgroup`, where that lies in it.
fn divide(cgroup: &str) {
    let given = Delegation::of_this_process().unwrap_or_else(|error| {
        tracing::warn!(%error, "cgroup not read: no controllers are passed on to instances");
        None
    });
    let Some(given) = given.filter(|given| Path::new(cgroup).starts_with(&given.path)) else { return };
    if let Err((controller, error)) = given.give_controllers() {
        tracing::warn!(controller, %error, "cgroup controller not available to instances");
    }
}

/// What the keeper told before it said go.
struct Told {
    welcome: Welcome,
    listeners: Kept,
}

async fn introduce(keeper: &Keeper, settings: &Settings) {
    keeper.send(ToKeeper::Hello { version: wire::VERSION }).await;
    let mode = match settings.on_shutdown {
        OnShutdown::Detach => wire::OnShutdown::Detach,
        OnShutdown::Drain => wire::OnShutdown::Drain,
    };
    keeper.send(ToKeeper::Mode(mode)).await;
    let whole_ms = |span: std::time::Duration| u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
    let policy = SweepPolicy {
        enabled: settings.sweep.enabled,
        interval_ms: whole_ms(settings.sweep.interval.0),
        grace_ms: whole_ms(settings.sweep.grace.0),
    };
    keeper.send(ToKeeper::Sweep(policy)).await;
}

/// Hears everything up to go.
async fn hear(keeper: &Keeper) -> Result<Told, Refused> {
    let (mut welcome, mut listeners) = (None, Kept::default());
    loop {
        let FromKeeper { message, fd } =
            keeper.receive().await.map_err(|error| Refused::new(exit::UNAVAILABLE, error.to_string()))?;
        match message {
            Some(ToWorker::Welcome(told)) => welcome = Some(told),
            Some(ToWorker::Stored(name)) => listeners.put(name, fd),
            Some(ToWorker::Exit(record)) => keeper.remember(record),
            Some(ToWorker::Go) => break,
            Some(ToWorker::Shutdown { .. } | ToWorker::Retire) => {
                // Nothing was begun, so there is nothing to end.
                keeper.send(ToKeeper::Finished { code: 0 }).await;
                return Err(Refused::new(0, "asked to end before it began"));
            }
            Some(ToWorker::Swept(_)) | None => {}
        }
    }
    let welcome = welcome.ok_or_else(|| Refused::new(exit::UNAVAILABLE, "the keeper said go before welcome"))?;
    Ok(Told { welcome, listeners })
}

fn options(settings: &Settings, is_first: bool) -> Options {
    Options {
        is_first,
        state_dir: settings.state_dir.clone(),
        run_dir: settings.run_dir.clone(),
        cgroup: settings.cgroup.clone(),
        // Checked with the rest of the configuration: what is no id is empty.
        node: settings.fleet.node.0.parse().ok(),
        log_keep: settings.logs.keep.0,
        log_incarnations: usize::try_from(settings.logs.incarnations).unwrap_or(usize::MAX),
        slots: Pool::new(&settings.cgroup, &settings.slots),
        reconcile_every: settings.reconcile.interval.0,
        runtimes: super::watches::runtimes(settings),
        watches: super::watches::of(settings),
        drain: drain_rules(settings),
        drain_at_shutdown: (settings.on_shutdown == OnShutdown::Drain).then_some(settings.drain_timeout),
    }
}

/// What a drain does with each kind, as the configuration says.
fn drain_rules(settings: &Settings) -> DrainRules {
    let cancelled = settings.drain.kinds.iter().filter(|(_, rule)| **rule == DrainRule::Cancel);
    DrainRules { cancel: cancelled.filter_map(|(kind, _)| kind.parse().ok()).collect() }
}

fn refused(error: &BeginError) -> Refused {
    match error {
        BeginError::Ledger(error) => ledger_refused(error),
        BeginError::Proc(_) | BeginError::V1(_) | BeginError::Pins(_) => Refused::new(exit::UNAVAILABLE, chain(error)),
        BeginError::Directory { .. } | BeginError::Cgroup(_) => Refused::new(exit::CANT_CREATE, chain(error)),
    }
}

/// A worker that follows another says so, with what is known of the other's end.
fn tell_restart(begun: &Begun, welcome: &Welcome) {
    if welcome.restarts == 0 {
        return;
    }
    let end = welcome.last_end.and_then(|end| sexton_plan::state::ExitStatus::from_wait_word(end.status));
    let (code, signal) = match end {
        Some(sexton_plan::state::ExitStatus::Code(code)) => (Some(code), None),
        Some(sexton_plan::state::ExitStatus::Signal(signal)) => (None, Some(signal)),
        None => (None, None),
    };
    let data = serde_json::json!({
        "pid": welcome.last_end.map(|end| end.pid), "code": code, "signal": signal, "restarts": welcome.restarts,
    });
    let events = vec![NewEvent::of_node(EventKind::WorkerRestarted, data)];
    begun.host.owe_unwaited(Batch { events, ..Batch::default() });
}

/// Serves until the daemon is to end.
async fn serve(settings: Arc<Settings>, begun: Begun, told: Told, made: &mut Made) -> Result<u8, Refused> {
    let Begun { mut driver, node, host, log_keeper, reader, last_seq, facts_before } = begun;
    let listeners = listeners::open(&settings, told.listeners, &host.keeper, told.welcome.was_ready).await;
    if listeners.is_ok() || !driver.left().is_empty() {
        // It is not refused any more; and where there are instances, what holds them stays.
        *made = Made::default();
    }
    let listeners = listeners?;
    // Only now: a start that is refused has had no keeper that could have died.
    let before = facts_before.get(succession::KEEPER).map(String::as_str);
    succession::begin(&host, before, told.welcome.keeper_pid);
    driver.welcomed(told.welcome.keeper_pid, told.welcome.restarts);
    let (log_reader, newest) = (reader.clone(), *last_seq.borrow());
    let context = api::Context::new(node.clone(), Arc::clone(&settings), reader, last_seq, Arc::clone(&host));
    tokio::spawn(api::serve(listeners, context));
    let first = driver.begin_first_pass().await;
    let (ready_host, socket) = (Arc::clone(&host), settings.listen_path());
    // Instances are served before: the first pass may hang on somebody else's file system.
    tokio::spawn(async move {
        if first.await.is_err() {
            return;
        }
        ready_host.keeper.send(ToKeeper::Ready).await;
        ready_host.event_log.check(log_reader, newest);
        tracing::info!(socket = %socket.display(), node = %ready_host.node, "ready");
        ready_host.keeper.tell_anew();
        tokio::spawn(super::notify::tell(node));
        // Nobody waits for it: it looks at two files of each instance that was found again.
        log_keeper.run().await;
    });
    match driver.run().await {
        Stopped::Shutdown(level) => {
            tracing::info!(level, "ending");
            let left = driver.left();
            let is_clean = settings.on_shutdown == OnShutdown::Detach || driver.is_drained();
            let code = if is_clean { 0 } else { not_drained(&left) };
            super::notify::ending(&left);
            let_go(&settings, &host, left.is_empty()).await;
            succession::end(&host).await;
            host.keeper.send(ToKeeper::Finished { code }).await;
        }
        // Another worker goes on with all that is open.
        Stopped::Retire => {
            tracing::info!("ending, for a successor");
            // What the successor finds alive, the keeper is to hold.
            host.keeper.flush().await;
        }
        Stopped::KeeperGone => tracing::info!("ending, without a keeper"),
    }
    Ok(0)
}

/// Tells what would not end in a shutdown that drains; its exit code.
fn not_drained(left: &[InFlight]) -> u8 {
    let told: Vec<String> =
        left.iter().map(|one| format!("{} ({})", one.name, one.error.as_deref().unwrap_or("it lives"))).collect();
    tracing::error!(left = told.join(", "), "not drained; the next start goes on");
    exit::LEFT
}

/// Closes what the daemon has open on the host. Instances live on, to be adopted by the next start; where there are none
/// (`is_empty`), nothing of the daemon's own stays. The ledger is flushed by its own drop.
async fn let_go(settings: &Settings, host: &Host, is_empty: bool) {
    let mut closers = Closers::default();
    if is_empty {
        closers.opened("cgroups and pins", async { host.dismantle() });
        closers.opened("network slots", host.slots.close());
    }
    // Nobody answers there any more; the next start binds it anew.
    closers.opened("socket", async { fs::remove_file(settings.listen_path()).map_err(|error| error.to_string()) });
    if let Err(error) = closers.close().await {
        tracing::warn!(error, "not everything was closed");
    }
}
