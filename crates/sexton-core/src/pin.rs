//! Pins: pidfds kept in a mount namespace of their own, so that the kernel keeps each exit status whoever dies.
//!
//! ```text
//!   RUN/pins  ── one nsfs bind mount, all that the host sees; with ground below it where mounts are propagated
//!      └─► private mount namespace: a tmpfs as its root, one empty file a pin, a pidfd attached to each
//! ```
//!
//! One thread of the process lives in that namespace and does all the work there; nobody else ever enters it.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use sexton_plan::identity::Identity;
use sexton_sys::cpu::Cpus;
use sexton_sys::file::flags;
use sexton_sys::mount::{self, MountKind};
use sexton_sys::{Errno, SysError, pidfd};

use crate::handle::Handle;

/// Where a thread of the private namespace stages its tmpfs before that becomes the root.
const STAGING: &std::ffi::CStr = c"/tmp";

type Job = Box<dyn FnOnce() + Send>;

/// The board of pins below one run directory.
#[derive(Debug)]
pub struct PinBoard {
    jobs: mpsc::Sender<Job>,
    mount_point: PathBuf,
}

/// Why there can be no pins; exit statuses then depend on the worker or the keeper being alive.
#[derive(Debug, thiserror::Error)]
pub enum OpenPinsError {
    /// A file below the run directory could not be made or opened.
    #[error("could not use `{}`", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a namespace or a mount.
    #[error("could not keep a mount namespace")]
    Sys(#[from] SysError),
    /// The thread ended before it said how it went.
    #[error("the thread of the pins ended")]
    Thread,
}

/// Whether something was given back now, or had gone before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// By this call.
    Now,
    /// Already.
    WasGone,
}

impl OpenPinsError {
    /// Whether there was no descriptor, memory or thread for it: that passes, and tells nothing of what the host has.
    pub fn passes(&self) -> bool {
        const LACKING: [Errno; 4] = [Errno::EAGAIN, Errno::ENOMEM, Errno::ENFILE, Errno::EMFILE];
        let errno = match self {
            OpenPinsError::Io { source, .. } => source.raw_os_error().map(Errno),
            OpenPinsError::Sys(error) => Some(error.errno),
            OpenPinsError::Thread => None,
        };
        errno.is_some_and(|errno| LACKING.contains(&errno))
    }
}

impl PinBoard {
    /// Where a run directory has its board.
    pub fn place(run_dir: &Path) -> PathBuf {
        run_dir.join("pins")
    }

    /// Opens the board at `run_dir/pins`: enters the namespace kept there, or makes it.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`, or on a kernel that cannot mount a pidfd.
    ///
    /// # Blocking
    /// For a few mounts.
    pub fn open(run_dir: &Path) -> Result<PinBoard, OpenPinsError> {
        let mount_point = PinBoard::place(run_dir);
        let io_error = |source| OpenPinsError::Io { path: mount_point.clone(), source };
        let is_new = !mount_point.try_exists().map_err(io_error)?;
        if is_new {
            fs::File::create(&mount_point).map_err(io_error)?;
        }
        PinBoard::open_at(&mount_point).inspect_err(|_| {
            if is_new {
                let _gone = fs::remove_file(&mount_point);
            }
        })
    }

    fn open_at(mount_point: &Path) -> Result<PinBoard, OpenPinsError> {
        let io_error = |source| OpenPinsError::Io { path: mount_point.to_owned(), source };
        // A pipe in its place keeps nobody waiting, and is mounted upon.
        let opened = fs::File::options().read(true).custom_flags(flags::NONBLOCK).open(mount_point);
        let kept = opened.map_err(io_error)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let (told, news) = mpsc::channel();
        let thread = thread::Builder::new().name("pins".to_owned()).stack_size(128 * 1024);
        thread.spawn(move || pin_thread(&kept, &told, &queue)).map_err(io_error)?;
        let entered = news.recv().map_err(|_| OpenPinsError::Thread)??;
        let board = PinBoard { jobs, mount_point: mount_point.to_owned() };
        // One that is kept was tried, and what is on it is needed though there were no room for another mount.
        if let Entered::New { ns } = entered {
            board.run(Pins::try_out).ok_or(OpenPinsError::Thread)??;
            board.keep(&ns)?;
        }
        Ok(board)
    }

    /// Keeps the namespace of the thread at `ns` alive at the mount point.
    ///
    /// KERNEL(6.18): a namespace can be mounted only in one of a lower number, and each CPU gives out numbers of its own
    /// stock: where ours, as a container's, was made on another CPU, a newer one may have a lower number (`EINVAL`). That
    /// CPU, and most others of a newer stock, make one of a higher number.
    fn keep(&self, ns: &Path) -> Result<(), OpenPinsError> {
        let target = c_path(&self.mount_point);
        self.mount_kept(ns, &target).inspect_err(|_| {
            // Of ground on which nothing came to stand nobody would know.
            let _gone = unmount_all(&target);
        })
    }

    fn mount_kept(&self, ns: &Path, target: &CStr) -> Result<(), OpenPinsError> {
        let source = c_path(ns);
        let is_refused = |kept: &Result<(), SysError>| matches!(kept, Err(error) if error.errno == Errno::EINVAL);
        let mut kept = mount::mount(MountKind::Bind(&source), target);
        if is_refused(&kept) {
            lay_ground(target)?;
            kept = mount::mount(MountKind::Bind(&source), target);
        }
        for cpu in Cpus::of_thread().iter().flat_map(Cpus::each) {
            if !is_refused(&kept) {
                break;
            }
            let renewed = self.run(move |_| {
                let all = Cpus::of_thread()?;
                cpu.bind_thread()?;
                let renewed = mount::unshare_mounts();
                all.bind_thread()?;
                renewed
            });
            renewed.ok_or(OpenPinsError::Thread)??;
            kept = mount::mount(MountKind::Bind(&source), target);
        }
        Ok(kept?)
    }

    /// Runs `work` on the thread that lives among the pins; what it tells goes where the closure sends it. Jobs run in
    /// the order of their submission.
    pub fn submit(&self, work: impl FnOnce(&Pins) + Send + 'static) {
        // The thread lives as long as the board; a send can only fail while the process ends.
        let _sent = self.jobs.send(Box::new(move || work(&Pins { _private: () })));
    }

    /// As [`PinBoard::submit`], and waits for the answer.
    ///
    /// # Blocking
    /// For the jobs before it: a tenth of a millisecond each.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce(&Pins) -> T + Send + 'static) -> Option<T> {
        let (told, news) = mpsc::sync_channel(1);
        self.submit(move |pins| {
            let _heard = told.send(work(pins));
        });
        news.recv().ok()
    }

    /// Takes the board down, with every pin on it; only for a node that keeps nothing.
    ///
    /// # Errors
    /// The mount could not be removed.
    pub fn remove(&self) -> Result<(), OpenPinsError> {
        remove_at(&self.mount_point)
    }

    /// As [`PinBoard::remove`], of a board that nobody has open.
    ///
    /// # Errors
    /// There is none, or the mount could not be removed.
    pub fn remove_from(run_dir: &Path) -> Result<(), OpenPinsError> {
        remove_at(&PinBoard::place(run_dir))
    }
}

fn remove_at(mount_point: &Path) -> Result<(), OpenPinsError> {
    unmount_all(&c_path(mount_point))?;
    fs::remove_file(mount_point).map_err(|source| OpenPinsError::Io { path: mount_point.to_owned(), source })
}

/// The pins, as the thread that lives among them sees them.
#[derive(Debug)]
pub struct Pins {
    _private: (),
}

impl Pins {
    /// Pins `handle` under `key`; an older pin of that key is replaced.
    ///
    /// # Errors
    /// As `open_tree(2)` and `move_mount(2)`.
    pub fn pin(&self, handle: &Handle, key: &str) -> Result<(), SysError> {
        let path = pin_path(key);
        let file = fs::OpenOptions::new().append(true).create_new(true).open(Path::new("/").join(key));
        if let Err(error) = file {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(sys_error(c"openat", &error));
            }
            self.unpin(key)?;
            fs::File::create_new(Path::new("/").join(key)).map_err(|error| sys_error(c"openat", &error))?;
        }
        handle.attach(&path)
    }

    /// Whether a pidfd can be mounted at all, tried with that of this very process.
    fn try_out(&self) -> Result<(), SysError> {
        const TRIED: &str = "tried";
        let me = pidfd::open(std::process::id().cast_signed())?;
        // There is one where a worker died in the midst of this.
        self.unpin(TRIED)?;
        fs::File::create(Path::new("/").join(TRIED)).map_err(|error| sys_error(c"openat", &error))?;
        let attached = mount::attach(me.raw(), &pin_path(TRIED));
        self.unpin(TRIED)?;
        attached
    }

    /// Takes the pin `key` away, if there is one.
    ///
    /// # Errors
    /// As `umount2(2)` and `unlink(2)`.
    pub fn unpin(&self, key: &str) -> Result<Released, SysError> {
        match mount::unmount(&pin_path(key)) {
            Ok(()) => {}
            // A file without a pidfd on it: the daemon died between the two.
            Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        match fs::remove_file(Path::new("/").join(key)) {
            Ok(()) => Ok(Released::Now),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Released::WasGone),
            Err(error) => Err(sys_error(c"unlink", &error)),
        }
    }

    /// The pinned process of `key`, which `recorded` describes; `None` where nothing is pinned under that key.
    ///
    /// # Errors
    /// The pin could not be opened.
    pub fn open(&self, key: &str, recorded: &Identity) -> Result<Option<Handle>, SysError> {
        let fd = match mount::open(&pin_path(key)) {
            Ok(fd) => fd,
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            Err(error) => return Err(error),
        };
        let ino = sexton_sys::pidfd::inode(fd.raw())?;
        // A file without a pidfd on it has another inode, and proves nothing.
        Ok((recorded.pidfs_ino == Some(ino)).then(|| Handle::of_pinned(fd, recorded.clone())))
    }

    /// The keys of all pins.
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn keys(&self) -> io::Result<Vec<String>> {
        fs::read_dir("/")?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

/// How the thread came into the namespace.
enum Entered {
    /// It was kept at the mount point.
    Kept,
    /// It is new, and to be found at this path of the process.
    New { ns: PathBuf },
}

fn pin_thread(kept: &fs::File, told: &mpsc::Sender<Result<Entered, SysError>>, queue: &mpsc::Receiver<Job>) {
    let entered = match mount::enter(kept.as_raw_fd()) {
        Ok(()) => Ok(Entered::Kept),
        // Not a namespace: the plain file, of a first start or of a new boot.
        Err(error) if error.errno == Errno::EINVAL => make_namespace(),
        Err(error) => Err(error),
    };
    let may_go_on = entered.is_ok();
    let heard = told.send(entered).is_ok();
    if may_go_on && heard {
        queue.iter().for_each(|job| job());
    }
}

/// A mount namespace whose only content is an empty tmpfs: it holds nothing of the host busy.
fn make_namespace() -> Result<Entered, SysError> {
    let ns = fs::read_link("/proc/thread-self").map_err(|error| sys_error(c"readlink", &error))?;
    mount::unshare_mounts()?;
    mount::mount(MountKind::Private, c"/")?;
    mount::mount(MountKind::Tmpfs, STAGING)?;
    mount::change_directory(STAGING)?;
    mount::keep_only_working_directory()?;
    mount::change_directory(c"/")?;
    Ok(Entered::New { ns: Path::new("/proc").join(ns).join("ns/mnt") })
}

/// Mounts the file `target` onto itself, out of propagation: where mounts are propagated to other namespaces, as on every
/// host with systemd, the kernel mounts no mount namespace (`EINVAL`), for that would have to appear there too. The ground
/// appears there, and vanishes with ours.
fn lay_ground(target: &CStr) -> Result<(), SysError> {
    mount::mount(MountKind::Bind(target), target)?;
    mount::mount(MountKind::Private, target)
}

/// Takes away all that is mounted on `target`. BOUND: the namespace, its ground, and what of these a death in between has
/// left.
fn unmount_all(target: &CStr) -> Result<(), SysError> {
    loop {
        match mount::unmount(target) {
            Ok(()) => {}
            Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn pin_path(key: &str) -> CString {
    CString::new(format!("/{key}")).unwrap_or_default()
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

fn sys_error(call: &'static CStr, error: &io::Error) -> SysError {
    SysError::of(call, Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_leaves_no_mount() {
        let dir = std::env::temp_dir().join(format!("sexton-test-{}-ground", std::process::id()));
        fs::create_dir(&dir).expect("made");
        let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        if let Ok(board) = PinBoard::open(&dir) {
            board.remove().expect("removed");
            fs::write(dir.join("pins"), "").expect("a mount point");
            // No namespace can be mounted in itself (`EINVAL`).
            board.keep(Path::new("/proc/self/ns/mnt")).expect_err("refused");
            assert!(!mounts().contains(&*dir.to_string_lossy()), "{}", mounts());
        }
        fs::remove_dir_all(&dir).expect("removed");
    }
}
