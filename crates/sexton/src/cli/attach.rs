//! `run --attach`: this process in place of the instance's own, for whoever started it.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use serde_json::{Value, json};
use sexton_plan::id::Name;
use sexton_sys::signal::{self, Signal, SignalFd, SignalSet};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::client::{Ask, Client, PATIENCE};
use super::failure::{Failure, exit};
use super::logs::{Copy, Over, Sink};
use super::member::Member as _;
use super::out::Out;
use super::watch::{self, GiveUp, Until};
use super::{events, out, words};
use crate::api::types::Stream;
use crate::node::readiness;

/// What is not passed on: what the kernel tells this very program, and what a terminal stops its jobs with.
const OWN: [Signal; 15] = [
    Signal::ILL,
    Signal::TRAP,
    Signal::ABRT,
    Signal::BUS,
    Signal::FPE,
    Signal::SEGV,
    Signal::SYS,
    Signal::PIPE,
    Signal::CHLD,
    Signal::URG,
    Signal::XCPU,
    Signal::XFSZ,
    Signal::TSTP,
    Signal::TTIN,
    Signal::TTOU,
];

/// `set` and all that is passed on to the instance; 32 and 33 are the C library's.
fn with_forwarded(set: SignalSet) -> SignalSet {
    let all = (1..=31).chain(34..=64).filter_map(Signal::new);
    all.filter(|signal| !OWN.contains(signal)).fold(set, SignalSet::with)
}

/// How often a wait looks whether there is another life meanwhile.
const LOOK: Duration = Duration::from_secs(5);

/// Stays with `instance`, passes on the signals that come, and ends as it does.
pub async fn stay(
    (client, out): (&Client, Out),
    name: &Name,
    instance: &Value,
    signals: Signals,
) -> Result<u8, Failure> {
    let life = instance.at("incarnation").as_str().unwrap_or_default().to_owned();
    // The first that cannot go on ends all: a reader that is gone, an instance that was removed.
    let whole = async {
        let sink = |which, plain| if out.is_json() { Sink::lines(which) } else { plain };
        let stdout = stream(client, name, &life, Stream::Stdout, sink(Stream::Stdout, Sink::Stdout));
        let stderr = stream(client, name, &life, Stream::Stderr, sink(Stream::Stderr, Sink::Stderr));
        tokio::try_join!(end(client, name, &life), stdout, stderr).map(|(ended, (), ())| ended)
    };
    let ended = tokio::select! {
        ended = whole => ended,
        stuck = stays_stuck(client, name) => Ok(stuck),
        failure = signals.forward(client, name) => Err(failure),
    };
    match ended {
        Ok(ended) => code(&ended),
        // The reader of the output went away, as that of any program may.
        Err(failure) if failure.message.is_none() => Ok(exit::BROKEN_PIPE),
        Err(failure) => Err(failure),
    }
}

/// Waits for the end of one life, and gives the instance as it then was.
async fn end(client: &Client, name: &Name, life: &str) -> Result<Value, Failure> {
    loop {
        let look = watch::deadline(Some(LOOK));
        let (instance, known) = watch::until(client, name, Until::Exit, look, GiveUp::Never).await?;
        if instance.at("incarnation") != life {
            return events::end_of(client, name, life).await;
        }
        if known {
            return Ok(instance);
        }
    }
}

/// Copies one stream of one life, to its end.
async fn stream(client: &Client, name: &Name, life: &str, which: Stream, sink: Sink) -> Result<(), Failure> {
    let mut copy = Copy::new(client.clone(), name.clone(), life.to_owned(), which, sink);
    copy.follow = true;
    match copy.life().await? {
        Over::Whole => copy.end().await,
        Over::Unkept(failure) => Err(failure),
    }
}

/// Ends when the main process has ended and something else lives on that SIGKILL does not end: its output may stay
/// open for ever.
async fn stays_stuck(client: &Client, name: &Name) -> Value {
    loop {
        let looked = watch::until(client, name, Until::Settled, None, GiveUp::WhenStuck).await;
        // Over, removed, or out of reach: that is for the others to tell.
        let Ok((instance, false)) = looked else { return std::future::pending().await };
        if instance.at("exit").is_object() {
            return instance;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// The exit code of `sexton` for how that life ended.
fn code(instance: &Value) -> Result<u8, Failure> {
    words::exit_code(instance).ok_or_else(|| {
        Failure::new(exit::FAILED, format!("nobody knows how it ended: {}", words::summary(instance)))
            .hint("`sexton show NAME` tells more")
    })
}

/// Signals that come to this process, taken one by one.
pub struct Signals(AsyncFd<Source>);

struct Source(SignalFd);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.raw()
    }
}

impl Signals {
    /// Blocks them for this thread, the only one yet; those of the runtime inherit that.
    pub fn block() -> Result<Signals, Failure> {
        let before = signal::replace_mask(SignalSet::EMPTY);
        signal::replace_mask(with_forwarded(before));
        let told = |why: String| Failure::new(exit::FAILED, format!("could not take signals: {why}"));
        let source = SignalFd::new(with_forwarded(SignalSet::EMPTY)).map_err(|error| told(error.to_string()))?;
        readiness::watch(Source(source), Interest::READABLE).map(Signals).map_err(|error| told(error.to_string()))
    }

    /// Passes every signal on; ends only where it cannot go on.
    async fn forward(&self, client: &Client, name: &Name) -> Failure {
        loop {
            let mut ready = match self.0.readable().await {
                Ok(ready) => ready,
                Err(error) => return Failure::new(exit::FAILED, format!("could not take signals: {error}")),
            };
            match ready.get_inner().0.take() {
                Ok(Some(caught)) => pass_on(client, name, caught.signal).await,
                Ok(None) => ready.clear_ready(),
                Err(error) => return Failure::new(exit::FAILED, error.to_string()),
            }
        }
    }
}

/// Sends one signal to the instance. Once only: a program may count them.
async fn pass_on(client: &Client, name: &Name, signal: Signal) {
    let ask = Ask::post(format!("{}/signal", watch::path(name)), json!({"signal": signal.number().to_string()}));
    let sent = tokio::time::timeout(PATIENCE, client.send(&ask)).await;
    match sent {
        // 409: it is over already.
        Ok(Ok(answer)) if (200..300).contains(&answer.status) || answer.status == 409 || answer.status == 404 => {}
        Ok(Ok(answer)) => out::warning(&format!("{signal} was not passed on: {}", out::word(answer.body.at("detail")))),
        Ok(Err(error)) => out::warning(&format!("{signal} was perhaps not passed on: {error}")),
        Err(_) => out::warning(&format!("{signal} was perhaps not passed on: no answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_the_childs_own_or_none() {
        let ended = json!({"state": "exited", "exit": {"code": 7, "signal": null}});
        assert_eq!(code(&ended), Ok(7));
        let lost = json!({"state": "lost", "reason": "reboot", "exit": null});
        assert_eq!(code(&lost).unwrap_err().exit, exit::FAILED);
    }
}
