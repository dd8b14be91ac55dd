//! Ending processes: the only caller of [`Handle::signal`] and of [`Domain::kill`].

use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sexton_core::domain::{Domain, DomainError};
use sexton_core::handle::{Handle, Life};
use sexton_core::proc::{self, Here};
use sexton_core::tree::Tree;
use sexton_ledger::entry::StuckProcess;
use sexton_plan::id::Pid;
use sexton_plan::ladder::STUCK_AFTER;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::adapter::Step;
use super::asking::{nothing_to_wait_for, say};
use super::process::Process;
use super::readiness;

const SIGKILL: u8 = 9;
const SIGCONT: u8 = 18;
const SIGSTOP: u8 = 19;
/// Members whose ends are waited for by pidfd; the rest shows at the next look.
const WATCHED_MEMBERS: usize = 64;
/// How long the kernel's notice of an empty domain is waited for before its members are looked at: it comes at once,
/// save where the domain changed a moment before, and then up to 20 ms late.
const NOTICE: Duration = Duration::from_millis(2);
/// The backstop of every wait for an empty domain of which no member can be watched.
const BACKSTOP: Duration = Duration::from_millis(25);

/// What is being ended: the main process, and whatever else lives in the domain.
#[derive(Debug)]
pub struct Target<'a> {
    /// The main process, while it has not been seen to be over.
    pub process: Option<&'a Process>,
    /// The domain, while it exists.
    pub domain: Option<&'a Domain>,
    /// What descends from the main process, where neither a cgroup nor a PID namespace holds that together.
    pub tree: Option<Mutex<Tree>>,
    /// Where identities mean something.
    pub here: &'a Here,
}

/// Sends one signal to the main process, for whoever asked for that; `false` where it has ended.
///
/// # Errors
/// The kernel refused.
pub fn signal(process: &Process, signal: u8) -> Result<bool, sexton_sys::SysError> {
    process.handle().signal(signal)
}

/// How the ending of an orphan went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrphanEnd {
    /// It is over.
    Ended,
    /// What made it an orphan is not so any more: it was let go.
    Spared,
    /// SIGKILL was delivered, and it lives.
    Stuck,
}

/// Ends a process that is in no custody: asks by `steps` within `grace`, then kills. Before each step `still_is_one`
/// looks again whether everything holds that makes it an orphan to be ended.
pub async fn end_orphan<F>(
    process: &Process,
    (steps, grace): (VecDeque<Step>, Duration),
    still_is_one: impl Fn() -> F,
) -> OrphanEnd
where
    F: Future<Output = bool> + Send,
{
    let name = format!("orphan {}", process.handle().identity().pid);
    let whole = Instant::now() + grace;
    let mut is_asked = false;
    for step in steps.into_iter().chain([Step::Signal(SIGKILL, Some(STUCK_AFTER))]) {
        if !still_is_one().await {
            let patience = whole.max(Instant::now() + STUCK_AFTER);
            let is_over = is_asked && is_ending(process.handle()) && timeout_at(patience, process.over()).await.is_ok();
            return if is_over { OrphanEnd::Ended } else { OrphanEnd::Spared };
        }
        is_asked = true;
        let (until, mut heard) = match step {
            Step::Signal(signal, wait) => {
                tell(process.handle(), &[signal, SIGCONT]);
                (wait.map_or(whole, |wait| Instant::now() + wait), None)
            }
            Step::Say(sentence, wait) => (Instant::now() + wait, Some(say(name.clone(), sentence, wait))),
        };
        tokio::select! {
            () = process.over() => return OrphanEnd::Ended,
            () = nothing_to_wait_for(&mut heard) => {}
            () = sleep_until(until) => {}
        }
    }
    OrphanEnd::Stuck
}

/// Whether it is over, or about to be: it cannot be looked at any more then, which is no change of the facts.
fn is_ending(handle: &Handle) -> bool {
    let stat = proc::stat(handle.identity().pid);
    // RACE: what was read by number was read of this process, if it lives afterwards.
    !matches!(handle.life(), Ok(Life::Alive)) || stat.is_ok_and(|stat| stat.is_exiting())
}

impl Target<'_> {
    /// Looks who descends from the main process, where only that tells what belongs to it. As long as the main process
    /// is not reaped, those are found too whose parents have ended, if they have not left its session.
    pub fn look(&self) {
        if let (Some(mut tree), Some(process)) = (self.tree(), self.process) {
            tree.look(process.handle());
        }
    }

    fn tree(&self) -> Option<MutexGuard<'_, Tree>> {
        // What is known of the tree is true whoever panicked.
        self.tree.as_ref().map(|tree| tree.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Kills the tree: everybody in it is stopped first, so that nobody forks while others are ended.
    fn fell(&self) {
        let (Some(mut tree), Some(process)) = (self.tree(), self.process) else { return };
        if !tree.settle(process.handle(), |member| tell(member, &[SIGSTOP])) {
            tracing::warn!(pid = %process.handle().identity().pid, "a tree is killed that did not come to stand still");
        }
        tell(process.handle(), &[SIGKILL]);
        tree.living().iter().for_each(|member| tell(member, &[SIGKILL]));
    }

    /// Asks politely: `signal`, with SIGCONT, to the main process; to everything in the domain where that is over.
    /// A frozen process could not answer, so the domain is thawed.
    pub fn ask(&self, signal: u8) {
        if let Some(domain) = self.domain
            && let Err(error) = domain.thaw()
        {
            tracing::warn!(%error, "domain not thawed");
        }
        self.look();
        match self.process {
            Some(process) if self.main_lives() => tell(process.handle(), &[signal, SIGCONT]),
            Some(_) | None => self.members().for_each(|member| tell(&member, &[signal, SIGCONT])),
        }
    }

    /// Kills: the main process by pidfd, and the domain as one. What this misses is for [`Target::sweep`], at once only
    /// where the kernel cannot kill a domain as one: what dies of the first need not be looked for.
    pub fn kill(&self) {
        self.fell();
        if let Some(process) = self.process {
            tell(process.handle(), &[SIGKILL]);
        }
        match self.domain.map(Domain::kill) {
            Some(Ok(true)) | None => return,
            Some(Ok(false)) => {}
            Some(Err(error)) => tracing::warn!(%error, "domain not killed as one"),
        }
        self.sweep();
    }

    /// Thaws the domain, and kills by pidfd each process that lives in it.
    pub fn sweep(&self) {
        let Some(domain) = self.domain else { return };
        if matches!(domain.is_populated(), Ok(false)) {
            return;
        }
        if let Err(error) = domain.thaw() {
            tracing::warn!(%error, "domain not thawed");
        }
        self.members().for_each(|member| tell(&member, &[SIGKILL]));
    }

    /// Whether anything lives. What could not be read may live.
    pub fn lives(&self) -> bool {
        self.main_lives()
            || self.domain.is_some_and(|domain| domain.is_populated().unwrap_or(true))
            || self.tree().is_some_and(|tree| tree.is_alive())
    }

    /// Whether the main process lives; what cannot be asked may live.
    pub fn main_lives(&self) -> bool {
        self.process.is_some_and(|process| !matches!(process.handle().is_over(), Ok(true)))
    }

    /// Waits until nothing lives; by then the domain is gone, unless there is an empty one below.
    pub async fn emptied(&self) {
        if let Some(process) = self.process {
            process.over().await;
            // Before it is reaped: until then its session proves who belongs to it.
            self.look();
        }
        if !self.remains() {
            return;
        }
        // What was killed along with the main process ends while others have their turn.
        tokio::task::yield_now().await;
        if !self.remains() {
            return;
        }
        self.notice(NOTICE).await;
        while self.remains() {
            let mut ends = self.members().take(WATCHED_MEMBERS).filter_map(|member| watch(member).ok()).peekable();
            if ends.peek().is_none() {
                self.notice(BACKSTOP).await;
            }
            for member in ends {
                member.over().await;
            }
        }
    }

    /// As [`Target::lives`], for when all is to be over: a domain that can be removed needs no look.
    fn remains(&self) -> bool {
        let is_gone = !self.main_lives() && self.domain.is_some_and(Domain::try_remove);
        !is_gone && self.lives()
    }

    /// Waits for the kernel's notice that the domain has changed, `limit` at most.
    async fn notice(&self, limit: Duration) {
        let events = self.domain.and_then(|domain| domain.events().ok());
        match events.and_then(|events| readiness::watch(events, Interest::PRIORITY).ok()) {
            // RACE: of what had ended before the file was opened there is no notice.
            Some(events) if self.remains() => {
                let _notice_or_not = timeout(limit, changed(&events)).await;
            }
            Some(_) => {}
            None => sleep(limit).await,
        }
    }

    /// Holds on the processes in the domain, each taken when its turn comes, or on those of the tree.
    fn members(&self) -> impl Iterator<Item = Arc<Handle>> + use<'_> {
        let of_tree = self.tree().map(|tree| tree.living()).unwrap_or_default();
        let of_domain = match self.domain.map(|domain| domain.members(self.here)).transpose() {
            Ok(members) => members,
            Err(error) => {
                tracing::warn!(%error, "domain not read");
                None
            }
        };
        of_tree.into_iter().chain(of_domain.into_iter().flatten().map(Arc::new))
    }

    /// What lives in spite of SIGKILL, for human eyes.
    pub fn survivors(&self) -> Vec<StuckProcess> {
        let main = self.process.filter(|_| self.main_lives()).map(|process| process.handle().identity().pid);
        let members = self.domain.and_then(|domain| domain.processes().ok()).unwrap_or_default();
        let tree = self.tree().map(|tree| tree.living()).unwrap_or_default();
        let tree = tree.iter().map(|member| member.identity().pid);
        let mut pids: Vec<Pid> = main.into_iter().chain(members).chain(tree).collect();
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter().filter_map(survivor).collect()
    }
}

fn survivor(pid: Pid) -> Option<StuckProcess> {
    let stat = proc::stat(pid).ok()?;
    let lives = stat.state != 'Z' || stat.threads > 1;
    lives.then(|| StuckProcess { pid, state: stat.state, wchan: proc::wchan(pid) })
}

fn watch(handle: Arc<Handle>) -> std::io::Result<Process> {
    Process::watch(handle)
}

async fn changed(events: &AsyncFd<File>) {
    if let Ok(mut ready) = events.ready(Interest::PRIORITY).await {
        ready.clear_ready();
    }
}

fn tell(handle: &Handle, signals: &[u8]) {
    for signal in signals {
        if let Err(error) = handle.signal(*signal) {
            tracing::warn!(pid = %handle.identity().pid, signal, %error, "signal refused");
        }
    }
}

/// Finds the domain that an entry records; `None` where it is proven gone.
///
/// # Errors
/// It could not be read.
pub fn find_domain(
    subtree: Option<&sexton_core::domain::Subtree>,
    cgroup: Option<&sexton_ledger::entry::Cgroup>,
) -> Result<Option<Domain>, DomainError> {
    let (Some(subtree), Some(cgroup)) = (subtree, cgroup) else { return Ok(None) };
    unless_gone(subtree.find_again(&cgroup.path, cgroup.ino))
}

/// A domain that was looked for; `None` where it is proven gone.
///
/// # Errors
/// It could not be read.
pub fn unless_gone(found: Result<Domain, DomainError>) -> Result<Option<Domain>, DomainError> {
    match found {
        Ok(domain) => Ok(Some(domain)),
        Err(DomainError::Gone(_)) => Ok(None),
        Err(error @ (DomainError::NoCgroup2 | DomainError::Io { .. })) => Err(error),
    }
}
