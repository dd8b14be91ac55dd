//! A kernel that is played: children that end when the test says so, pidfds on them, and one epoll set.

use std::collections::BTreeMap;
use std::time::Duration;

use loom::sync::{Condvar, Mutex, MutexGuard};

pub use sexton_sys::{Errno, RawFd, SysError, signal};

const FIRST_PID: i32 = 100;

loom::lazy_static! {
    static ref KERNEL: Mutex<Kernel> = Mutex::new(Kernel::default());
    static ref CHANGED: Condvar = Condvar::new();
}

#[derive(Default)]
struct Kernel {
    children: Vec<Life>,
    open: BTreeMap<RawFd, Target>,
    last_fd: RawFd,
    set: BTreeMap<RawFd, Member>,
    bell: bool,
    now: Duration,
    fails_next_wait: bool,
    threads: i32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Runs,
    /// Ended, and its tracer keeps it from its parent.
    Traced(u8),
    Zombie(u8),
    Reaped(u8),
}

#[derive(Clone, Copy)]
enum Target {
    Child(usize),
    Bell,
    Nothing,
}

struct Member {
    token: u64,
    trigger: poll::Trigger,
    is_armed: bool,
}

fn kernel() -> MutexGuard<'static, Kernel> {
    KERNEL.lock().expect("nobody panics")
}

/// Changes the world, and wakes who waits for that.
fn change<T>(change: impl FnOnce(&mut Kernel) -> T) -> T {
    let told = change(&mut kernel());
    CHANGED.notify_all();
    told
}

impl Kernel {
    fn open(&mut self, target: Target) -> Fd {
        self.last_fd += 1;
        self.open.insert(self.last_fd, target);
        Fd(self.last_fd)
    }

    fn child(&self, fd: RawFd) -> usize {
        match self.open.get(&fd) {
            Some(Target::Child(child)) => *child,
            Some(Target::Bell | Target::Nothing) | None => panic!("{fd} is no pidfd"),
        }
    }

    fn is_ready(&self, fd: RawFd) -> bool {
        match self.open.get(&fd) {
            Some(Target::Child(child)) => self.children[*child] != Life::Runs,
            Some(Target::Bell) => self.bell,
            Some(Target::Nothing) => false,
            None => panic!("{fd} was closed before it was taken out of the set"),
        }
    }

    /// One `waitid` with `WNOHANG`.
    fn wait(&mut self, child: usize, reap: bool) -> Result<Option<wait::Ended>, SysError> {
        match self.children[child] {
            Life::Runs | Life::Traced(_) => Ok(None),
            Life::Reaped(_) => Err(SysError::of(c"waitid", Errno::ECHILD)),
            Life::Zombie(code) => {
                if reap {
                    self.children[child] = Life::Reaped(code);
                }
                Ok(Some(wait::Ended::Exited(code)))
            }
        }
    }
}

/// What the test does to the world.
pub struct World;

impl World {
    /// Children that run.
    pub fn begin<const N: usize>() -> [Child; N] {
        kernel().children = vec![Life::Runs; N];
        std::array::from_fn(Child)
    }

    pub fn fail_next_wait() {
        change(|kernel| kernel.fails_next_wait = true);
    }

    pub fn count_thread(by: i32) {
        kernel().threads += by;
    }

    /// Waits for threads that nobody joins: the world goes when the model is over.
    pub fn end() {
        while World::has_threads() {
            loom::thread::yield_now();
        }
    }

    pub fn has_threads() -> bool {
        kernel().threads > 0
    }
}

#[derive(Clone, Copy)]
pub struct Child(usize);

impl Child {
    pub fn pid(self) -> i32 {
        FIRST_PID + i32::try_from(self.0).expect("few")
    }

    pub fn end(self, code: u8) {
        change(|kernel| kernel.children[self.0] = Life::Zombie(code));
    }

    pub fn end_traced(self, code: u8) {
        change(|kernel| kernel.children[self.0] = Life::Traced(code));
    }

    pub fn let_go(self) {
        change(|kernel| match kernel.children[self.0] {
            Life::Traced(code) => kernel.children[self.0] = Life::Zombie(code),
            Life::Runs | Life::Zombie(_) | Life::Reaped(_) => panic!("it is not traced"),
        });
    }

    /// The code, or `None` where somebody else had it.
    pub fn reap_as_another_owner(self) -> Option<u8> {
        match change(|kernel| kernel.wait(self.0, true)) {
            Ok(Some(wait::Ended::Exited(code))) => Some(code),
            Ok(Some(wait::Ended::Killed { .. }) | None) | Err(_) => None,
        }
    }

    pub fn is_reaped(self) -> bool {
        matches!(kernel().children[self.0], Life::Reaped(_))
    }
}

#[derive(Debug)]
pub struct Fd(RawFd);

impl Fd {
    pub fn raw(&self) -> RawFd {
        self.0
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        let mut kernel = kernel();
        let target = kernel.open.remove(&self.0);
        // A copy in a forked child would keep it in the set. What goes together with the set matters not.
        let is_child = matches!(target, Some(Target::Child(_))) && kernel.threads > 0;
        assert!(!is_child || !kernel.set.contains_key(&self.0), "closed while it is in the set");
        kernel.set.remove(&self.0);
    }
}

pub mod file {
    use super::*;

    pub fn duplicate(_fd: RawFd) -> Result<Fd, SysError> {
        Err(SysError::of(c"fcntl", Errno::ENOSYS))
    }
}

pub mod time {
    use super::*;

    pub fn monotonic() -> Duration {
        kernel().now
    }
}

pub mod pidfd {
    use super::*;
    pub use sexton_sys::pidfd::{End, PidfdFacts};

    pub fn open(pid: i32) -> Result<Fd, SysError> {
        let mut kernel = kernel();
        let child = usize::try_from(pid - FIRST_PID).ok().filter(|child| *child < kernel.children.len());
        // Any other number is this very process.
        let Some(child) = child else { return Ok(kernel.open(Target::Nothing)) };
        match kernel.children[child] {
            Life::Reaped(_) => Err(SysError::of(c"pidfd_open", Errno::ESRCH)),
            Life::Runs | Life::Traced(_) | Life::Zombie(_) => Ok(kernel.open(Target::Child(child))),
        }
    }

    pub fn send_signal(fd: RawFd, signal: i32) -> Result<(), SysError> {
        assert_eq!(signal, 0, "the reaper only asks");
        let kernel = kernel();
        match kernel.children[kernel.child(fd)] {
            Life::Reaped(_) => Err(SysError::of(c"pidfd_send_signal", Errno::ESRCH)),
            Life::Runs | Life::Traced(_) | Life::Zombie(_) => Ok(()),
        }
    }

    pub fn poll_end(fd: RawFd) -> Result<End, SysError> {
        let kernel = kernel();
        Ok(match kernel.children[kernel.child(fd)] {
            Life::Runs => End::None,
            Life::Traced(_) | Life::Zombie(_) => End::Zombie,
            Life::Reaped(_) => End::Reaped,
        })
    }

    pub fn facts(fd: RawFd) -> Result<PidfdFacts, SysError> {
        let kernel = kernel();
        let wait_word = match kernel.children[kernel.child(fd)] {
            Life::Reaped(code) => Some(i32::from(code) << 8),
            Life::Runs | Life::Traced(_) | Life::Zombie(_) => None,
        };
        Ok(PidfdFacts { pid: None, ppid: None, cgroup_id: None, wait_word })
    }
}

pub mod wait {
    use super::*;
    pub use sexton_sys::wait::Ended;

    pub fn peek_pidfd(fd: RawFd) -> Result<Option<Ended>, SysError> {
        let mut kernel = kernel();
        let child = kernel.child(fd);
        kernel.wait(child, false)
    }

    pub fn reap_pidfd(fd: RawFd) -> Result<Option<Ended>, SysError> {
        change(|kernel| {
            let child = kernel.child(fd);
            kernel.wait(child, true)
        })
    }

    pub fn peek(_pid: u32) -> Result<Option<Ended>, SysError> {
        panic!("nothing is watched by its number here")
    }

    pub fn reap(_pid: u32) -> Result<Option<Ended>, SysError> {
        panic!("nothing is watched by its number here")
    }
}

pub mod poll {
    use super::*;
    pub use sexton_sys::poll::{Trigger, events};

    #[derive(Clone, Copy)]
    pub struct Event(u64);

    impl Event {
        pub const EMPTY: Event = Event(0);

        pub fn token(&self) -> u64 {
            self.0
        }
    }

    pub struct Epoll(Fd);

    impl Epoll {
        pub fn new() -> Result<Epoll, SysError> {
            Ok(Epoll(kernel().open(Target::Nothing)))
        }

        pub fn add(&self, fd: RawFd, _wanted: i16, trigger: Trigger, token: u64) -> Result<(), SysError> {
            let before = change(|kernel| kernel.set.insert(fd, Member { token, trigger, is_armed: true }));
            assert!(before.is_none(), "it is in the set already");
            Ok(())
        }

        pub fn rearm(&self, fd: RawFd, _wanted: i16, trigger: Trigger, token: u64) -> Result<(), SysError> {
            let before = change(|kernel| kernel.set.insert(fd, Member { token, trigger, is_armed: true }));
            assert!(before.is_some(), "it is not in the set");
            Ok(())
        }

        pub fn remove(&self, fd: RawFd) -> Result<(), SysError> {
            kernel().set.remove(&fd).map(|_| ()).ok_or(SysError::of(c"epoll_ctl", Errno::ENOENT))
        }

        /// Time passes where nothing else can happen first.
        pub fn wait<'a>(&self, space: &'a mut [Event], timeout: Option<Duration>) -> Result<&'a [Event], SysError> {
            let mut kernel = kernel();
            loop {
                if std::mem::take(&mut kernel.fails_next_wait) {
                    return Err(SysError::of(c"epoll_pwait", Errno::EINVAL));
                }
                let ready: Vec<RawFd> = kernel
                    .set
                    .iter()
                    .filter(|(fd, one)| one.is_armed && kernel.is_ready(**fd))
                    .map(|(fd, _)| *fd)
                    .collect();
                let mut count = 0;
                for (fd, place) in ready.into_iter().zip(space.iter_mut()) {
                    let Some(member) = kernel.set.get_mut(&fd) else { continue };
                    member.is_armed = member.trigger == Trigger::Level;
                    *place = Event(member.token);
                    count += 1;
                }
                match timeout {
                    _ if count > 0 => return Ok(&space[..count]),
                    Some(timeout) => {
                        kernel.now += timeout;
                        drop(kernel);
                        loom::thread::yield_now();
                        return Ok(&[]);
                    }
                    None => kernel = CHANGED.wait(kernel).expect("nobody panics"),
                }
            }
        }
    }

    pub struct EventFd(Fd);

    impl EventFd {
        pub fn new() -> Result<EventFd, SysError> {
            Ok(EventFd(kernel().open(Target::Bell)))
        }

        pub fn raw(&self) -> RawFd {
            self.0.raw()
        }

        pub fn set(&self) {
            change(|kernel| kernel.bell = true);
        }

        pub fn clear(&self) -> bool {
            std::mem::take(&mut kernel().bell)
        }
    }
}
