//! Starting one incarnation, in the order that leaks nothing wherever it is cut off.
//!
//! ```text
//!   intent durable ─► logs, mark, cgroup ─► child waits ─► tag, pin, keeper ─► identity durable ─► released
//!                                                                          ─► execve seen ─► running durable
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sexton_core::domain::Domain;
use sexton_core::handle::Handle;
use sexton_core::spawn::{self, Going, NeverRan, Program, Waiting};
use sexton_keeper::wire::ToKeeper;
use sexton_ledger::entry::{Cgroup, Entry, ResourceState};
use sexton_ledger::{Batch, EventKind};
use sexton_plan::state::State;
use tokio::io::Interest;
use tokio::time::timeout;

use super::clock::now;
use super::crash::crash_point;
use super::keeper;
use super::life::{Answer, Life, Next, RollBack, fact};
use super::process::Process;
use super::readiness;
use super::resources::domain_name;
use super::unstarted::Unstarted;
use super::user::{self, ResolveUserError};
use crate::lacking::open_null;
use crate::refusal::{Kind, Refusal};

/// How long a keeper is waited for that alone would know an exit code: no longer than a full disk is.
const KEEPER_TAKES: Duration = Duration::from_secs(4);

/// What a start has made so far.
struct Made {
    handle: Arc<Handle>,
    waiting: Waiting,
    domain: Option<Domain>,
}

impl Life {
    /// Runs the incarnation that the ledger has as `starting`.
    pub(super) async fn start(&mut self, reply: Option<Answer>) -> Next {
        crash_point!("start.intent");
        self.logs_are_known = false;
        (self.is_pinned, self.is_seen_through, self.is_mark_lost) = (false, false, false);
        let netns = self.enter_slot().await;
        let made = match netns.map_err(Unstarted::from).and_then(|netns| self.make(netns)) {
            Ok(made) => made,
            Err(why) => return Next::RollBack(RollBack { why, process: None, reply }),
        };
        crash_point!("start.spawned");
        let process = match Process::watch(Arc::clone(&made.handle)) {
            Ok(process) => process,
            // The child goes with `made`, having run nothing.
            Err(error) => {
                return Next::RollBack(RollBack { why: Unstarted::refused(&error), process: None, reply });
            }
        };
        let going = match self.identify(made).await {
            Ok(going) => going,
            Err(why) => return Next::RollBack(RollBack { why, process: Some(process), reply }),
        };
        crash_point!("start.released");
        let told = {
            let mut left = std::pin::pin!(left(going));
            loop {
                tokio::select! {
                    biased;
                    told = &mut left => break told,
                    command = self.mailbox.recv() => {
                        if self.obey(command, Some(&process)).await {
                            // A program that the kernel is still loading is ended like any other.
                            self.answer_stopped(reply).await;
                            return Next::End(Some(process));
                        }
                    }
                }
            }
        };
        match told {
            Ok(()) => self.now_running(process, reply).await,
            Err(never_ran) => {
                let why = Unstarted::refused(&never_ran);
                Next::RollBack(RollBack { why, process: Some(process), reply })
            }
        }
    }

    /// Acquires what the incarnation needs, and makes its process, waiting.
    fn make(&self, netns: Option<OwnedFd>) -> Result<Made, Unstarted> {
        let entry = &self.entry;
        let stdin = open_null().map_err(|error| Unstarted::failed(&error))?;
        let files = self.open_files(stdin).map_err(|error| {
            let why = Unstarted::failed(&error);
            Unstarted { reason: format!("its files: {}", why.reason), ..why }
        })?;
        crash_point!("start.files");
        let domain = self.make_domain()?;
        crash_point!("start.domain");
        let user = entry.spec.user.as_deref().map(user::resolve).transpose();
        let user = user.map_err(|error| match error {
            ResolveUserError::Unknown(_) => Unstarted::refused(&error),
            ResolveUserError::Io { .. } => Unstarted::failed(&error),
        })?;
        let env = user::environment(&entry.spec, user.as_ref());
        let text =
            entry.spec.argv.iter().chain(env.iter().flat_map(|(key, value)| [key, value])).map(String::len).sum();
        let program = Program {
            argv: &entry.spec.argv,
            env: &env,
            cwd: entry.spec.cwd.as_deref().unwrap_or("/"),
            user: user.as_ref().map(|found| &found.ids),
            stdio: files.stdio(),
            mark: Some(files.mark.as_raw_fd()),
            domain: domain.as_ref(),
            netns: netns.as_ref().map(AsFd::as_fd),
            pidns: entry.spec.pidns,
            no_new_privs: false,
            own_memory: super::limits::is_scarce(&entry.spec.limits, text),
            nofile: self.host.nofile,
        };
        let (waiting, handle) = spawn::spawn(&program, &self.host.here).map_err(|error| Unstarted::refused(&error))?;
        Ok(Made { handle: Arc::new(handle), waiting, domain })
    }

    /// The cgroup of this incarnation, with its limits. A limit that the host cannot keep refuses the start.
    pub(super) fn make_domain(&self) -> Result<Option<Domain>, Unstarted> {
        let Some(subtree) = &self.host.subtree else { return Ok(None) };
        let entry = &self.entry;
        let name = domain_name(entry);
        let domain = subtree.create(&name, entry.incarnation.as_str()).map_err(|error| Unstarted::failed(&error))?;
        let limited = self.host.v1.apply(&domain, &name, &entry.spec.limits);
        limited.map_err(|error| Unstarted::refused(&error))?;
        Ok(Some(domain))
    }

    /// Records who the waiting process is, where its exit status is kept and who else knows of it; then lets it go.
    async fn identify(&mut self, made: Made) -> Result<Going, Unstarted> {
        let handle = Arc::clone(&made.handle);
        let identity = handle.identity().clone();
        let mut next = (*self.entry).clone();
        let limited = self.host.v1.take_in(&next.spec.limits, &domain_name(&next), identity.pid);
        limited.map_err(|error| Unstarted::refused(&error))?;
        handle.tag(next.incarnation.as_str());
        next.handle = handle.to_bytes();
        next.cgroup = made.domain.as_ref().map(|domain| Cgroup { path: domain.path().to_owned(), ino: domain.ino() });
        next.identity = Some(identity.clone());
        for resource in &mut next.resources {
            resource.state = ResourceState::Held;
        }
        let (key, pinned) = (next.incarnation.to_string(), Arc::clone(&handle));
        let host = Arc::clone(&self.host);
        let pin = host.with_pins(move |pins| pins.pin(&pinned, &key));
        let held = keeper::held(&identity);
        // The keeper last: it may take this processor, and both others are on their way by then.
        let mut taken = None;
        let hold = async { taken = Some(host.keeper.send(ToKeeper::Hold(held))) };
        let (recorded, pin, ()) = tokio::join!(self.record(next, Vec::new(), true), pin, hold);
        if let Some(Err(error)) = &pin {
            tracing::warn!(%error, "exit status not pinned");
        }
        if let Err(refusal) = recorded {
            host.keeper.tell(ToKeeper::Release(held));
            return Err(refusal.into());
        }
        self.is_pinned = matches!(pin, Some(Ok(_)));
        // With a pin nothing is lost by a keeper that hears of it later.
        let sole = taken.filter(|_| !self.is_pinned);
        if let Some(taken) = sole
            && timeout(KEEPER_TAKES, taken).await.is_err()
        {
            let why = "the keeper does not answer, and nothing else would keep its exit code";
            return Err(Refusal::new(Kind::NotReady, why).into());
        }
        crash_point!("start.identified");
        made.waiting.release().map_err(|error| Unstarted::refused(&error))
    }

    /// Its program runs: makes that durable, and tells whoever waits.
    async fn now_running(&mut self, process: Process, reply: Option<Answer>) -> Next {
        let mut next = (*self.entry).clone();
        // A stop that came meanwhile has made it `stopping` already.
        if next.state == State::Starting {
            next.state = State::Running;
        }
        next.started_at = Some(now());
        let data = json!({ "pid": process.handle().identity().pid });
        let events = vec![fact(EventKind::InstanceRunning, &next, data)];
        self.is_seen_through = true;
        crash_point!("start.running");
        let asked = self.request.clone();
        let request = self.answered(201, || serde_json::to_string(&next).unwrap_or_default());
        let next = Arc::new(next);
        let batch = Batch { puts: vec![Arc::clone(&next)], events, request, ..Batch::default() };
        if let Err(refusal) = self.host.record(batch).await {
            // Nobody was told that it runs: it is ended as if it never had, and that is the answer.
            self.request = asked;
            let why = Unstarted { ran: true, ..Unstarted::from(refusal) };
            return Next::RollBack(RollBack { why, process: Some(process), reply });
        }
        self.show(next);
        if let Some(reply) = reply {
            self.answer(reply);
        }
        crash_point!("start.answered");
        // Once the answer is on its way: on a disk it takes a while.
        tokio::task::yield_now().await;
        self.host.remove_mark(&self.entry.incarnation);
        if self.entry.stop.is_some() { Next::End(Some(process)) } else { Next::Guard(process) }
    }

    fn open_files(&self, stdin: File) -> io::Result<Files> {
        let (paths, entry) = (&self.host.paths, &self.entry);
        fs::create_dir_all(paths.logs(&entry.name))?;
        let log = |stream| {
            let path = paths.log(&entry.name, &entry.incarnation, stream);
            OpenOptions::new().append(true).create(true).open(path)
        };
        let make_mark =
            || OpenOptions::new().write(true).create(true).truncate(true).open(paths.mark(&entry.incarnation));
        let mut mark = match make_mark() {
            // Below `/run` others clear away what lies empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(paths.marks())?;
                make_mark()?
            }
            made => made?,
        };
        // The bytes are laid out now, so that a full disk cannot refuse them later.
        mark.write_all(&[0; 8])?;
        Ok(Files { stdin, stdout: log("stdout")?, stderr: log("stderr")?, mark })
    }

    /// Tells whoever waits for a start that it was stopped first, and whoever asks for it with the same key later.
    async fn answer_stopped(&mut self, reply: Option<Answer>) {
        let refusal = Refusal::new(Kind::WrongState, stopped_first(&self.entry));
        if let Some(request) = self.answered(refusal.kind.status(), || refusal.detail.clone()) {
            self.host.owe(Batch { request: Some(request), ..Batch::default() }).await;
        }
        if let Some(reply) = reply {
            let _heard = reply.send(Err(refusal));
        }
    }
}

/// Files that a workload gets, and the mark by which it tells how far it came.
struct Files {
    stdin: File,
    stdout: File,
    stderr: File,
    mark: File,
}

impl Files {
    fn stdio(&self) -> [RawFd; 3] {
        [self.stdin.as_raw_fd(), self.stdout.as_raw_fd(), self.stderr.as_raw_fd()]
    }
}

/// Waits until the child has left for its program, or says why it never will.
async fn left(mut going: Going) -> Result<(), NeverRan> {
    let Ok(report) = readiness::watch(ReportFd(going.as_raw_fd()), Interest::READABLE) else {
        // It cannot be watched: then its own end tells.
        return Ok(());
    };
    loop {
        if going.has_left()? {
            return Ok(());
        }
        match report.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return Ok(()),
        }
    }
}

/// The report's descriptor, which `Going` owns.
struct ReportFd(RawFd);

impl AsRawFd for ReportFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// The sentence for whoever asked for a start that a stop overtook.
pub fn stopped_first(entry: &Entry) -> String {
    format!("`{}` was stopped before its program ran", entry.name)
}
