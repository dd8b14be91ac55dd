//! Network slots: one task owns their rows, keeps the pool ready, hands slots out and takes them back.
//!
//! ```text
//!            making ──► ready ──► held ──► releasing ──► (no row)
//!               └──────────┴─────────────────▲   ▲
//!                                            └───┴─ quarantined
//! ```
//!
//! A row is durable before the kernel is touched, and goes after the kernel has confirmed. A slot is given to a life in
//! the very commit that records the life's intent, and is never used twice: it is taken down, whole, and made anew. The
//! kernel's side is [`crate::net`], on a thread of its own.

mod crew;
mod kept;
mod life;
mod news;
mod owner;
mod review;
mod turn;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use sexton_ledger::entry::{Entry, Place};
use sexton_ledger::slot::SlotRow;
use sexton_plan::id::{Incarnation, Name};
use sexton_plan::plan::{Action, Plan};
use sexton_plan::slot::Holder;
use tokio::sync::{mpsc, oneshot, watch};

pub use owner::{Owner, Pool};

use crate::refusal::Refusal;

/// The kind of resource that a slot is.
pub const KIND: &str = "slot";

/// Asks that wait for the owner; it answers each within one step of its own.
const QUEUE: usize = 1_024;

type Reply<T> = oneshot::Sender<T>;

/// What may be asked of the owner.
#[derive(Debug)]
pub(super) enum Ask {
    Claim { holder: Holder, reply: Reply<Result<Claimed, Refusal>> },
    Unclaim { index: u32, incarnation: Incarnation },
    Enter { index: u32, reply: Reply<io::Result<OwnedFd>> },
    Release { netns: String, incarnation: Incarnation, reply: Reply<Result<(), String>> },
    Review(Review),
    Close { reply: Reply<Result<(), String>> },
    List { reply: Reply<Vec<Shown>> },
}

/// What is asked of a look.
#[derive(Debug)]
pub struct Review {
    /// The instances, as they are when it is asked for.
    entries: Vec<Arc<Entry>>,
    /// What is done about what is planned.
    purpose: Purpose,
}

/// What a review is for.
#[derive(Debug)]
pub enum Purpose {
    /// To do all of it.
    Pass(Reply<()>),
    /// To show it; nothing changes.
    Plan(Reply<Plan>),
    /// To do exactly these, or nothing.
    Apply(Vec<Action>, Reply<Result<(), Refusal>>),
}

/// Whoever waits until what a review began is done.
#[derive(Debug)]
pub(super) enum Waits {
    Pass(Reply<()>),
    Apply(Vec<Action>, Reply<Result<(), Refusal>>),
}

/// A slot that was handed out; it is the life's once `row` is recorded with the life's own.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// To be recorded.
    pub row: SlotRow,
    /// To be shown.
    pub place: Place,
}

/// One slot, or a number that is skipped, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its place.
    pub place: Place,
    /// The host's end of its link.
    pub link: String,
    /// The word for its state.
    pub state: &'static str,
    /// The instance that holds it.
    pub instance: Option<Name>,
}

/// A slot that is still there though none is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotLeft {
    /// Its name: of its entry below `/run/netns`.
    pub name: String,
    /// The instance that gives it back, or has.
    pub instance: Option<Name>,
    /// Why.
    pub error: String,
}

/// How far the end of all slots is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// Whether they are to end, and nothing of any is left.
    pub is_down: bool,
    /// Once they are to end: what is left.
    pub left: Vec<SlotLeft>,
}

/// The way to the owner; cheap to clone.
#[derive(Clone, Debug)]
pub struct Slots {
    asks: mpsc::Sender<Ask>,
    closing: watch::Receiver<Closing>,
}

impl Slots {
    /// The way to an owner that is to be, and its queue.
    pub fn channel() -> (Slots, Queue) {
        let (asks, queue) = mpsc::channel(QUEUE);
        let (tell, closing) = watch::channel(Closing::default());
        (Slots { asks, closing }, Queue { asks: queue, closing: tell })
    }

    /// Asks, and waits for the answer; `None` where the daemon is ending.
    async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.ok()?;
        answer.await.ok()
    }

    /// A slot for the life `holder`: one that is ready, or else the next that is made.
    ///
    /// # Errors
    /// Every slot is in use, or none can be made.
    pub async fn claim(&self, holder: Holder) -> Result<Claimed, Refusal> {
        self.ask(|reply| Ask::Claim { holder, reply }).await.unwrap_or_else(|| Err(Refusal::ending()))
    }

    /// Gives back a slot that was claimed, and whose row could not be recorded.
    pub async fn unclaim(&self, index: u32, incarnation: Incarnation) {
        // Without an owner the daemon is ending; the ledger has the slot as unused.
        let _sent = self.asks.send(Ask::Unclaim { index, incarnation }).await;
    }

    /// The network namespace of slot `index`.
    ///
    /// # Errors
    /// It is missing, or not ours.
    pub async fn enter(&self, index: u32) -> io::Result<OwnedFd> {
        let ending = || Err(io::Error::other("the daemon is ending"));
        self.ask(|reply| Ask::Enter { index, reply }).await.unwrap_or_else(ending)
    }

    /// Takes down the slot that the life holds under the name `netns`; one that it does not hold is gone already.
    ///
    /// # Errors
    /// Something still holds it, or the kernel refused. It may be asked again.
    pub async fn release(&self, netns: &str, incarnation: &Incarnation) -> Result<(), String> {
        let (netns, incarnation) = (netns.to_owned(), incarnation.clone());
        let ending = || Err("the daemon is ending".to_owned());
        self.ask(|reply| Ask::Release { netns, incarnation, reply }).await.unwrap_or_else(ending)
    }

    /// Looks at all slots, and does what is planned about them; `entries` are the instances as they are now.
    pub async fn pass(&self, entries: Vec<Arc<Entry>>) {
        self.review(entries, Purpose::Pass).await.unwrap_or_default();
    }

    /// What the next pass would do about slots, and what is let alone. Changes nothing.
    pub async fn plan(&self, entries: Vec<Arc<Entry>>) -> Plan {
        self.review(entries, Purpose::Plan).await.unwrap_or_default()
    }

    /// Does exactly `actions`, or nothing.
    ///
    /// # Errors
    /// One of them is not planned any more, or was tried and refused.
    pub async fn apply(&self, entries: Vec<Arc<Entry>>, actions: Vec<Action>) -> Result<(), Refusal> {
        let done = self.review(entries, |reply| Purpose::Apply(actions, reply)).await;
        done.unwrap_or_else(|| Err(Refusal::ending()))
    }

    async fn review<T>(&self, entries: Vec<Arc<Entry>>, purpose: impl FnOnce(Reply<T>) -> Purpose) -> Option<T> {
        self.ask(|reply| Ask::Review(Review { entries, purpose: purpose(reply) })).await
    }

    /// Empties the pool, and takes down what slots share; no more of them are kept ready.
    ///
    /// # Errors
    /// What is left, and why. It may be asked again.
    pub async fn close(&self) -> Result<(), String> {
        self.ask(|reply| Ask::Close { reply }).await.unwrap_or_else(|| Err("the daemon is ending".to_owned()))
    }

    /// Whether it is closed, and nothing of any slot is left.
    pub fn is_down(&self) -> bool {
        self.closing.borrow().is_down
    }

    /// What is left of slots that are to end.
    pub fn left(&self) -> Vec<SlotLeft> {
        self.closing.borrow().left.clone()
    }

    /// Every slot by number.
    pub async fn list(&self) -> Vec<Shown> {
        self.ask(|reply| Ask::List { reply }).await.unwrap_or_default()
    }
}

/// What the owner hears.
#[derive(Debug)]
pub struct Queue {
    asks: mpsc::Receiver<Ask>,
    closing: watch::Sender<Closing>,
}
