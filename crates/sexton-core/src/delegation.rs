//! The cgroup that was given to this process to divide: by systemd (`Delegate=`), or by handing it to its user.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sexton_sys::{Errno, xattr};

use crate::cgroup2::find_mount;
use crate::proc;

/// The leaf that processes of a delegated cgroup's own are put into (`DelegateSubgroup=`), so that the cgroup itself
/// may give controllers to its children (`cgroups(7)`, no internal processes).
pub const LEAF: &str = "daemon";

/// What systemd marks a delegated cgroup with (`systemd.resource-control(5)`).
const MARKS: [&std::ffi::CStr; 2] = [c"trusted.delegate", c"user.delegate"];

/// A cgroup below the root that this process may divide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegation {
    /// Its path from the cgroup2 root, without a `/` at either end.
    pub path: String,
    /// Whether this process lives in the leaf below it, so that controllers can be given to its children.
    pub has_leaf: bool,
}

impl Delegation {
    /// The one that this process lives in; `None` at the root, and where nobody has given it anything.
    ///
    /// # Errors
    /// That could not be read.
    pub fn of_this_process() -> io::Result<Option<Delegation>> {
        let Some(mount) = if_there(find_mount())?.flatten() else { return Ok(None) };
        let Some(text) = if_there(fs::read("/proc/self/cgroup"))? else { return Ok(None) };
        let Some(own) = proc::parse_cgroup(&text) else { return Ok(None) };
        Delegation::of(&own, |path| is_delegated(&mount.join(path)))
    }

    /// The one that a process in the cgroup `own` lives in.
    fn of(own: &str, is_delegated: impl Fn(&str) -> io::Result<bool>) -> io::Result<Option<Delegation>> {
        let own = own.trim_matches('/');
        let above = own.strip_suffix(LEAF).and_then(|above| above.strip_suffix('/'));
        for (path, has_leaf) in above.map(|path| (path, true)).into_iter().chain([(own, false)]) {
            if !path.is_empty() && is_delegated(path)? {
                return Ok(Some(Delegation { path: path.to_owned(), has_leaf }));
            }
        }
        Ok(None)
    }

    /// Gives the children the controllers that instances are limited by, where that keeps nobody from starting this
    /// process again: without a leaf it would have to begin in a cgroup that may hold no process.
    ///
    /// # Errors
    /// The controller that could not be given, and why.
    pub fn give_controllers(&self) -> Result<(), (String, io::Error)> {
        let Some(mount) = find_mount().ok().flatten().filter(|_| self.has_leaf) else { return Ok(()) };
        let dir = mount.join(&self.path);
        let there = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        for controller in there.split_ascii_whitespace().filter(|name| matches!(*name, "pids" | "memory")) {
            let given = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
            given.map_err(|error| (controller.to_owned(), error))?;
        }
        Ok(())
    }
}

/// Whether the cgroup at `dir` is marked as delegated, or belongs to the user of this process, who is not root. One that
/// this process cannot see, or may not look at, is not.
fn is_delegated(dir: &Path) -> io::Result<bool> {
    let open = match fs::File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
        opened => if_there(opened)?,
    };
    let Some(open) = open else { return Ok(false) };
    for name in MARKS {
        let mut buffer = [0; 8];
        match xattr::read(open.as_raw_fd(), name, &mut buffer) {
            Ok(Some(b"1")) => return Ok(true),
            Err(error) if error.errno == Errno::ENOMEM => return Err(io::Error::from_raw_os_error(error.errno.0)),
            // Before Linux 5.7 a cgroup has no attributes of the user's.
            Ok(_) | Err(_) => {}
        }
    }
    // The owner of one's own directory in `/proc` is the effective user.
    let user = fs::metadata("/proc/self")?.uid();
    Ok(user != 0 && open.metadata()?.uid() == user)
}

/// `None` for what is not there: without `/proc`, or on a kernel without cgroups, nobody has given anything.
fn if_there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leaf_is_not_what_is_divided() {
        let of = |own: &str, delegated: &str| Delegation::of(own, |path| Ok(path == delegated)).expect("looked");
        let found = |path: &str, has_leaf| Some(Delegation { path: path.to_owned(), has_leaf });
        let unit = "system.slice/sexton.service";
        assert_eq!(of("/system.slice/sexton.service", unit), found(unit, false));
        assert_eq!(of("/system.slice/sexton.service/daemon", unit), found(unit, true));
        assert_eq!(of("/system.slice/sexton.service/instances/a", unit), None);
        assert_eq!(of("/system.slice/other.service", unit), None);
        // The user's own leaf belongs to the user as the cgroup above does.
        let all = |own| Delegation::of(own, |_| Ok(true)).expect("looked");
        assert_eq!(all("/mine/daemon"), found("mine", true));
        assert_eq!(all("/daemon"), found("daemon", false), "the root is nobody's");
        assert_eq!(all("/"), None);
        assert_eq!(all("/mydaemon"), found("mydaemon", false));
    }

    #[test]
    fn what_cannot_be_looked_at_now_is_not_taken_for_one_that_nobody_has_given() {
        assert!(Delegation::of("/mine/daemon", |_| Err(io::Error::from_raw_os_error(Errno::EMFILE.0))).is_err());
        assert!(!is_delegated(Path::new("/nonexistent")).expect("looked"));
        assert!(is_delegated(Path::new(&"x".repeat(5_000))).is_err(), "too long a name to be looked for");
    }
}
