//! Entries below `/run/netns`, as `ip netns` has them: a file, and the namespace mounted onto it.
//!
//! An entry is ours where the namespace behind it bears the slot's number, which it is given before it is mounted; or
//! where nothing is mounted and the file says whose it is, which it does from its first moment on. So there is no
//! instant at which a crash leaves something that cannot be told from somebody else's.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use sexton_sys::file::{AT_FDCWD, flags};
use sexton_sys::mount::{self, MountKind};
use sexton_sys::{Errno, file, xattr};

use super::scheme::Slot;
use super::socket::{Netlink, Refused};
use super::{NetError, route};

/// Where `ip netns` looks.
const DIR: &CStr = c"/run/netns";

/// What bears the name of a slot's namespace.
#[derive(Debug)]
pub enum Entry {
    /// Nothing.
    Missing,
    /// The slot's namespace.
    Ours(File),
    /// The slot's file, with no namespace on it.
    Empty,
    /// Something of somebody else's.
    Foreign(String),
}

/// Looks at what bears the name of `slot`'s namespace.
///
/// # Errors
/// It could not be looked at.
pub fn look(netlink: &mut Netlink, slot: &Slot) -> Result<Entry, NetError> {
    let path = path(slot);
    let foreign = || Entry::Foreign(format!("`{}` was made by somebody else", shown(slot)));
    let opened = File::options().read(true).custom_flags(flags::NONBLOCK | flags::NOFOLLOW).open(to_path(&path));
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Entry::Missing),
        // A link, a socket, a device without a driver: nothing that we make.
        Err(error) if matches!(error.raw_os_error(), Some(6 | 40)) => return Ok(foreign()),
        Err(error) => return Err(NetError::Failed(format!("could not open `{}`: {error}", shown(slot)))),
    };
    let nsid =
        route::nsid_of(netlink, file.as_fd()).map_err(|refused| refused.during("ask for a namespace's number"))?;
    if nsid == Some(slot.nsid) {
        return Ok(Entry::Ours(file));
    }
    let wanted = mark(slot);
    let mut found = vec![0; wanted.len() + 1];
    // A namespace cannot be read, nor a directory.
    match file.read(&mut found) {
        Ok(len) if found.get(..len) == Some(wanted.as_bytes()) => Ok(Entry::Empty),
        Ok(_) | Err(_) => Ok(foreign()),
    }
}

/// Mounts the namespace behind `namespace` at `slot`'s entry, which is made where it is missing.
///
/// # Errors
/// `Foreign` where the name was taken meanwhile.
pub fn bind(slot: &Slot, namespace: BorrowedFd<'_>, dir: &mut Directory) -> Result<(), NetError> {
    dir.make()?;
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        NetError::Failed(format!("could not {what} `{}`: {error}", shown(slot)))
    };
    match make_file(slot) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(NetError::Foreign(format!("`{}` was made meanwhile", shown(slot))));
        }
        Err(error) => return Err(failed("make", &error)),
    }
    mount_onto(slot, namespace)
}

/// Mounts the namespace onto the slot's file, which is there.
///
/// # Errors
/// The kernel refused.
pub fn mount_onto(slot: &Slot, namespace: BorrowedFd<'_>) -> Result<(), NetError> {
    let source = c_string(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
    let mounted = mount::mount(MountKind::Bind(&source), &path(slot));
    mounted.map_err(|error| Refused::from(error).during(&format!("mount onto `{}`", shown(slot))))
}

/// Takes the entry of `slot` away, which the caller has seen to be ours.
///
/// # Errors
/// The kernel refused.
pub fn remove(slot: &Slot) -> Result<(), NetError> {
    let path = path(slot);
    let failed =
        |error: &dyn std::fmt::Display| NetError::Failed(format!("could not remove `{}`: {error}", shown(slot)));
    match mount::unmount(&path) {
        Ok(()) => {}
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(failed(&error)),
    }
    match file::unlink(AT_FDCWD, &path) {
        Err(error) if error.errno != Errno::ENOENT => Err(failed(&error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the file with what it holds, at once.
fn make_file(slot: &Slot) -> std::io::Result<()> {
    const O_TMPFILE: i32 = 0o20_000_000 | flags::DIRECTORY;
    let mut unnamed = File::options().write(true).custom_flags(O_TMPFILE).mode(0o444).open(to_path(DIR))?;
    unnamed.write_all(mark(slot).as_bytes())?;
    let linked = file::link_unnamed(unnamed.as_raw_fd(), AT_FDCWD, &path(slot));
    linked.map_err(|error| std::io::Error::from_raw_os_error(error.errno.0))
}

/// What the file of an entry says.
fn mark(slot: &Slot) -> String {
    format!("{} is a network slot of sexton\n", slot.netns)
}

fn shown(slot: &Slot) -> String {
    format!("/run/netns/{}", slot.netns)
}

fn path(slot: &Slot) -> CString {
    c_string(shown(slot))
}

/// Text of ours, which holds no NUL.
fn c_string(text: String) -> CString {
    CString::new(text).unwrap_or_default()
}

fn to_path(path: &CStr) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

/// Says on the directory that a daemon of ours made it; as durable as the directory, whoever dies.
const MADE: (&CStr, &[u8]) = (c"trusted.sexton", b"made");

/// `/run/netns` itself.
#[derive(Debug, Default)]
pub struct Directory {
    is_ready: bool,
}

impl Directory {
    /// Makes it as `ip netns` does: a shared mount, so that a mount namespace that copied an entry does not keep the
    /// network namespace when the entry is taken away.
    fn make(&mut self) -> Result<(), NetError> {
        let failed = |error: &dyn std::fmt::Display| NetError::Failed(format!("could not make `/run/netns`: {error}"));
        if self.is_ready && to_path(DIR).is_dir() {
            return Ok(());
        }
        match fs::create_dir(to_path(DIR)) {
            Ok(()) => mark_made().map_err(|error| failed(&error))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&error)),
        }
        match mount::mount(MountKind::Shared, DIR) {
            Ok(()) => {}
            // It is no mount point.
            Err(error) if error.errno == Errno::EINVAL => {
                mount::mount(MountKind::BindAll(DIR), DIR).map_err(|error| failed(&error))?;
                mount::mount(MountKind::Shared, DIR).map_err(|error| failed(&error))?;
            }
            Err(error) => return Err(Refused::from(error).during("make `/run/netns` a shared mount")),
        }
        self.is_ready = true;
        Ok(())
    }

    /// Takes it away where a daemon of ours made it and nobody uses it.
    pub fn remove(&mut self) {
        self.is_ready = false;
        let is_empty = fs::read_dir(to_path(DIR)).is_ok_and(|mut entries| entries.next().is_none());
        if is_empty && is_made_by_us() {
            let _in_use = mount::unmount_unused(DIR);
            let _in_use = fs::remove_dir(to_path(DIR));
        }
    }
}

fn mark_made() -> std::io::Result<()> {
    let (name, value) = MADE;
    let marked = xattr::set(File::open(to_path(DIR))?.as_raw_fd(), name, value);
    marked.map_err(|error| std::io::Error::from_raw_os_error(error.errno.0))
}

fn is_made_by_us() -> bool {
    let (name, value) = MADE;
    let Ok(dir) = File::open(to_path(DIR)) else { return false };
    let mut found = [0; 8];
    xattr::read(dir.as_raw_fd(), name, &mut found).is_ok_and(|found| found == Some(value))
}
