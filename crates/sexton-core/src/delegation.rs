//! The cgroup that was given to this process to divide: by systemd (`Delegate=`), or by handing it to its user.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sexton_sys::xattr;

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
    pub fn of_this_process() -> Option<Delegation> {
        let mount = find_mount().ok()??;
        let text = fs::read("/proc/self/cgroup").ok()?;
        Delegation::of(&proc::parse_cgroup(&text)?, |path| is_delegated(&mount.join(path)))
    }

    /// The one that a process in the cgroup `own` lives in.
    fn of(own: &str, is_delegated: impl Fn(&str) -> bool) -> Option<Delegation> {
        let own = own.trim_matches('/');
        let above = own.strip_suffix(LEAF).and_then(|above| above.strip_suffix('/'));
        let mut places = above.map(|path| (path, true)).into_iter().chain([(own, false)]);
        let (path, has_leaf) = places.find(|(path, _)| !path.is_empty() && is_delegated(path))?;
        Some(Delegation { path: path.to_owned(), has_leaf })
    }

    /// Gives the children the controllers that instances are limited by, where that keeps nobody from starting this
    /// process again: without a leaf it would have to begin in a cgroup that may hold no process.
    ///
    /// # Errors
    /// The controller that could not be given, and why.
    pub fn give_controllers(&self) -> Result<(), (String, std::io::Error)> {
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

/// Whether the cgroup at `dir` is marked as delegated, or belongs to the user of this process, who is not root.
fn is_delegated(dir: &Path) -> bool {
    let Ok(open) = fs::File::open(dir) else { return false };
    let is_marked = |name| {
        let mut buffer = [0; 8];
        matches!(xattr::read(open.as_raw_fd(), name, &mut buffer), Ok(Some(b"1")))
    };
    // The owner of one's own directory in `/proc` is the effective user.
    let user = fs::metadata("/proc/self").map_or(0, |about| about.uid());
    MARKS.into_iter().any(is_marked) || (user != 0 && open.metadata().is_ok_and(|about| about.uid() == user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leaf_is_not_what_is_divided() {
        let of = |own: &str, delegated: &str| Delegation::of(own, |path| path == delegated);
        let found = |path: &str, has_leaf| Some(Delegation { path: path.to_owned(), has_leaf });
        let unit = "system.slice/sexton.service";
        assert_eq!(of("/system.slice/sexton.service", unit), found(unit, false));
        assert_eq!(of("/system.slice/sexton.service/daemon", unit), found(unit, true));
        assert_eq!(of("/system.slice/sexton.service/instances/a", unit), None);
        assert_eq!(of("/system.slice/other.service", unit), None);
        // The user's own leaf belongs to the user as the cgroup above does.
        assert_eq!(Delegation::of("/mine/daemon", |_| true), found("mine", true));
        assert_eq!(Delegation::of("/daemon", |_| true), found("daemon", false), "the root is nobody's");
        assert_eq!(Delegation::of("/", |_| true), None);
        assert_eq!(Delegation::of("/mydaemon", |_| true), found("mydaemon", false));
    }
}
