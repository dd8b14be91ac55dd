//! Domains: cgroups that are killed as one.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sexton_plan::id::Pid;
use sexton_sys::cgroup;
use sexton_sys::pidfd::FileHandle;

use crate::cgroup_dir::{
    WAY, is_gone, make_with_way, pass_controllers_on, read_tag, remove_dir, remove_tree, remove_with_way, tag,
    unless_gone, walk,
};
use crate::cgroup2::find_mount;
use crate::handle::{Handle, OpenHandleError};
use crate::pin::Released;
use crate::proc::{self, Here};

/// The tag of a daemon's whole subtree.
const SUBTREE: &[u8] = b"subtree";

/// Why a domain could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The host has no cgroup2 where this process can see it.
    #[error("no cgroup2 is mounted")]
    NoCgroup2,
    /// The path names another cgroup than the recorded one, or none: that one is gone.
    #[error("the cgroup `{0}` is gone")]
    Gone(String),
    /// The kernel refused.
    #[error("could not {act} the cgroup `{path}`")]
    Io {
        /// What was refused.
        act: &'static str,
        /// Which cgroup.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// The subtree of the cgroup2 hierarchy that this daemon may write.
#[derive(Clone, Debug)]
pub struct Subtree {
    mount: PathBuf,
    path: String,
}

/// Who is in a domain.
#[derive(Debug, Default)]
struct Listing {
    /// Numbers of processes, or of threads.
    ids: Vec<Pid>,
    /// Every cgroup of it.
    cgroups: HashSet<u64>,
}

/// One cgroup below a [`Subtree`]. It holds no descriptor: of ten thousand that are being ended at once, each would keep
/// one from those that need one more to come to their end.
#[derive(Clone, Debug)]
pub struct Domain {
    full: PathBuf,
    path: String,
    ino: u64,
}

impl Subtree {
    /// The subtree `path` (components without a leading `/`) below the cgroup2 mount; nothing is made.
    ///
    /// # Errors
    /// No cgroup2 is mounted, or that could not be read.
    pub fn find(path: &str) -> Result<Subtree, DomainError> {
        let path = format!("/{}", path.trim_matches('/'));
        match find_mount() {
            Ok(Some(mount)) => Ok(Subtree { mount, path }),
            Ok(None) => Err(DomainError::NoCgroup2),
            Err(source) => Err(DomainError::Io { act: "look for", path, source }),
        }
    }

    /// Makes what is missing of the subtree, and gives its children the controllers that are to be had.
    ///
    /// # Errors
    /// A directory could not be made.
    pub fn make(&self) -> Result<(), DomainError> {
        let full = self.full();
        make_with_way(&full).map_err(|source| self.error("make", source))?;
        // So that a daemon whose subtree lies above this one knows that it is not a stray.
        tag(&full, SUBTREE);
        pass_controllers_on(&full);
        Ok(())
    }

    /// Whether it may be written, or made: tried on as much of it as there is, and nothing is changed.
    ///
    /// # Errors
    /// Why not: a mount that is read-only, a cgroup of somebody else.
    pub fn try_write(&self) -> Result<(), DomainError> {
        let full = self.full();
        let there = full.ancestors().find(|dir| dir.exists()).unwrap_or(&self.mount);
        let procs = fs::File::options().write(true).open(there.join("cgroup.procs"));
        procs.map(drop).map_err(|source| self.error("write", source))
    }

    /// Removes the subtree's own directory, unless somebody else had made it, and what was made on the way to it.
    ///
    /// # Errors
    /// It is not empty, or the kernel refused.
    pub fn remove(&self) -> Result<(), DomainError> {
        remove_with_way(&self.full()).map_err(|source| self.error("remove", source))
    }

    /// Its path from the cgroup2 root, beginning with `/`, as in `/proc/PID/cgroup`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Names of the cgroups directly below; none where it is gone.
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn children(&self) -> Result<Vec<String>, DomainError> {
        let read = || -> io::Result<Vec<String>> {
            let Some(entries) = unless_gone(fs::read_dir(self.full()))? else { return Ok(Vec::new()) };
            let entries = entries.collect::<io::Result<Vec<_>>>()?;
            let dirs = entries.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            Ok(dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        };
        read().map_err(|source| self.error("list", source))
    }

    /// Whether its directory exists.
    pub fn exists(&self) -> bool {
        self.full().exists()
    }

    /// Processes in the subtree's own cgroup, without those below; none where it is gone.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn processes(&self) -> Result<Vec<Pid>, DomainError> {
        let read = unless_gone(fs::read_to_string(self.full().join("cgroup.procs")));
        let text = read.map_err(|source| self.error("read", source))?.unwrap_or_default();
        Ok(text.lines().filter_map(|pid| Pid::new(pid.parse().ok()?)).collect())
    }

    /// Makes the domain `name`, with `owner` as its tag.
    ///
    /// # Errors
    /// It exists, or the kernel refused.
    pub fn create(&self, name: &str, owner: &str) -> Result<Domain, DomainError> {
        let (full, path) = (self.full().join(name), format!("{}/{name}", self.path));
        let make = || fs::create_dir(&full).and_then(|()| find(full.clone(), path.clone()));
        let made = match make() {
            // Somebody removed the subtree's own empty directory; it is ours to make.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make()?;
                make()
            }
            made => made,
        };
        let domain = made.map_err(|source| error_at("make", &path, source))?;
        tag(&domain.full, owner.as_bytes());
        Ok(domain)
    }

    /// Finds the cgroup `path` and proves by its inode, which is never reused, that it is the recorded one.
    ///
    /// # Errors
    /// `Gone` where it is proven not to exist any more.
    pub fn find_again(&self, path: &str, ino: u64) -> Result<Domain, DomainError> {
        let domain = self.find_path(path)?;
        if domain.ino == ino { Ok(domain) } else { Err(DomainError::Gone(path.to_owned())) }
    }

    /// Whether anything lives in the cgroup `ino`, which was `path` where it was recorded; one that is removed holds
    /// nothing. By its inode, for another cgroup namespace or mount shows it elsewhere or not at all; by path for callers
    /// whom the kernel lets open nothing so (`CAP_DAC_READ_SEARCH`).
    ///
    /// # Errors
    /// It could not be read.
    pub fn is_populated(&self, path: &str, ino: u64) -> Result<bool, DomainError> {
        let by_inode =
            fs::File::open(&self.mount).ok().map(|mount| cgroup_handle(ino).open_directory(mount.as_raw_fd()));
        match by_inode {
            Some(Ok(dir)) => {
                let full = PathBuf::from(format!("/proc/self/fd/{}", dir.raw()));
                return is_populated(&full).map_err(|source| error_at("read", path, source));
            }
            Some(Err(error)) if error.errno == sexton_sys::Errno::ESTALE => return Ok(false),
            Some(Err(_)) | None => {}
        }
        match self.find_again(path, ino) {
            Ok(domain) => domain.is_populated(),
            Err(DomainError::Gone(_)) => Ok(false),
            Err(error @ (DomainError::NoCgroup2 | DomainError::Io { .. })) => Err(error),
        }
    }

    /// Finds the cgroup `path`, whichever it is.
    ///
    /// # Errors
    /// `Gone` where there is none.
    pub fn find_path(&self, path: &str) -> Result<Domain, DomainError> {
        let full = self.mount.join(path.trim_start_matches('/'));
        find(full, path.to_owned()).map_err(|source| not_found(path, source))
    }

    fn full(&self) -> PathBuf {
        self.mount.join(self.path.trim_start_matches('/'))
    }

    fn error(&self, act: &'static str, source: io::Error) -> DomainError {
        error_at(act, &self.path, source)
    }
}

/// The kernel's handle on the cgroup `ino`: its inode is its 64-bit id (`FILEID_KERNFS` of the kernel).
fn cgroup_handle(ino: u64) -> FileHandle {
    const KIND: i32 = 0xfe;
    FileHandle::of_id(KIND, ino)
}

/// Whether anything lives in the cgroup at `dir` or below; a removed one is empty.
fn is_populated(dir: &Path) -> io::Result<bool> {
    // The kernel gives a whole file at the first read that has room for it, and this one is two short lines.
    let mut buffer = [0; 128];
    match fs::File::open(dir.join("cgroup.events")).and_then(|mut file| file.read(&mut buffer)) {
        Ok(len) => {
            let text = buffer.get(..len).unwrap_or_default();
            Ok(text.split(|byte| *byte == b'\n').any(|line| line == b"populated 1"))
        }
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn error_at(act: &'static str, path: &str, source: io::Error) -> DomainError {
    DomainError::Io { act, path: path.to_owned(), source }
}

fn is_of_subtree(tag: &[u8]) -> bool {
    [SUBTREE, WAY].contains(&tag)
}

fn find(full: PathBuf, path: String) -> io::Result<Domain> {
    let ino = fs::metadata(&full)?.ino();
    Ok(Domain { full, path, ino })
}

fn not_found(path: &str, source: io::Error) -> DomainError {
    if source.kind() == io::ErrorKind::NotFound {
        return DomainError::Gone(path.to_owned());
    }
    error_at("open", path, source)
}

impl Domain {
    /// Its path from the cgroup2 root, beginning with `/`, as in `/proc/PID/cgroup`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Inode of its directory: its 64-bit id, never reused within a boot.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// Its directory, proven by its inode to be this one's.
    ///
    /// # Errors
    /// `Gone` once it is removed; no descriptor is left.
    pub fn open(&self) -> Result<fs::File, DomainError> {
        let open = || fs::File::open(&self.full).and_then(|dir| Ok((dir.metadata()?.ino(), dir)));
        match open() {
            Ok((ino, dir)) if ino == self.ino => Ok(dir),
            Ok(_) => Err(DomainError::Gone(self.path.clone())),
            Err(source) => Err(not_found(&self.path, source)),
        }
    }

    /// Whose it is, as was written at its making; `None` where it is no domain of anybody.
    ///
    /// # Errors
    /// Its tag could not be read.
    pub fn owner(&self) -> Result<Option<String>, DomainError> {
        let tag = self.tag()?.filter(|tag| !is_of_subtree(tag));
        Ok(tag.map(|tag| String::from_utf8_lossy(&tag).into_owned()))
    }

    /// Whether it is the subtree of a daemon, or lies on the way to one, and is no domain.
    ///
    /// # Errors
    /// Its tag could not be read.
    pub fn is_subtree(&self) -> Result<bool, DomainError> {
        Ok(self.tag()?.is_some_and(|tag| is_of_subtree(&tag)))
    }

    fn tag(&self) -> Result<Option<Vec<u8>>, DomainError> {
        read_tag(&self.open()?).map_err(|source| self.error("read the tag of", source))
    }

    /// Whether a live process is in it or below, from `cgroup.events`; zombies do not count. A removed one is empty.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn is_populated(&self) -> Result<bool, DomainError> {
        is_populated(&self.full).map_err(|source| self.error("read", source))
    }

    /// `cgroup.events`, to be polled for `POLLPRI`; the kernel's notice may come 20 ms late.
    ///
    /// # Errors
    /// The file could not be opened.
    pub fn events(&self) -> Result<fs::File, DomainError> {
        fs::File::open(self.full.join("cgroup.events")).map_err(|source| self.error("open", source))
    }

    /// Every process in it and below. Those outside the reader's PID namespace, listed as 0, are left out.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn processes(&self) -> Result<Vec<Pid>, DomainError> {
        Ok(self.who()?.ids)
    }

    /// Holds on the processes in it and below, each taken when it is asked for, and proven to be in a cgroup of it while it
    /// is held.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn members<'a>(&self, here: &'a Here) -> Result<impl Iterator<Item = Handle> + use<'a>, DomainError> {
        let Listing { ids, cgroups } = self.who()?;
        Ok(ids.into_iter().filter_map(move |pid| member(pid, &cgroups, here)))
    }

    /// Its processes. One whose main thread has ended is listed where that was then, though the others have been moved:
    /// where nobody is listed and somebody lives, those others are looked for.
    fn who(&self) -> Result<Listing, DomainError> {
        let listing = self.listed("cgroup.procs")?;
        if !listing.ids.is_empty() || !self.is_populated()? {
            return Ok(listing);
        }
        let Listing { ids, cgroups } = self.listed("cgroup.threads")?;
        let mut ids: Vec<Pid> = ids.into_iter().filter_map(|thread| proc::process_of(thread).ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(Listing { ids, cgroups })
    }

    /// Everybody in the file `name` of it and of those below.
    fn listed(&self, name: &str) -> Result<Listing, DomainError> {
        let mut listing = Listing::default();
        let read = |dir: &Path| {
            listing.cgroups.insert(fs::metadata(dir)?.ino());
            match fs::read_to_string(dir.join(name)) {
                Ok(text) => listing.ids.extend(text.lines().filter_map(|pid| Pid::new(pid.parse().ok()?))),
                // A threaded cgroup lists its processes in its domain above (`cgroups(7)`).
                Err(error) if error.raw_os_error() == Some(sexton_sys::Errno::EOPNOTSUPP.0) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        };
        walk(&self.full, read, |_| Ok(())).map_err(|source| self.error("read", source))?;
        Ok(listing)
    }

    /// Sends SIGKILL to every process in it and below (`cgroup.kill`, Linux 5.14). It misses those whose leader thread
    /// has ended, so a sweep by pidfd follows. `false` where the kernel cannot.
    ///
    /// # Errors
    /// The kernel refused for another reason.
    pub fn kill(&self) -> Result<bool, DomainError> {
        // Opened as it is: to make it, which it never needs, its directory would be locked.
        let file = fs::File::options().write(true).open(self.full.join("cgroup.kill"));
        match file.and_then(|mut file| file.write_all(b"1")) {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => Ok(self.full.exists()).map(|there| !there),
            Err(error) if error.raw_os_error() == Some(sexton_sys::Errno::EOPNOTSUPP.0) => Ok(false),
            Err(source) => Err(self.error("kill", source)),
        }
    }

    /// Thaws it and all below (`cgroup.freeze`): a frozen process cannot answer a polite signal.
    ///
    /// # Errors
    /// A directory could not be listed.
    pub fn thaw(&self) -> Result<(), DomainError> {
        let thaw = |dir: &Path| {
            let file = dir.join("cgroup.freeze");
            let frozen = fs::read_to_string(&file).is_ok_and(|text| text.trim_end() == "1");
            if frozen && let Err(error) = fs::write(&file, "0") {
                tracing::warn!(%error, path = self.path, "cgroup not thawed");
            }
            Ok(())
        };
        walk(&self.full, thaw, |_| Ok(())).map_err(|source| self.error("list", source))
    }

    /// Sets a limit file such as `pids.max`.
    ///
    /// # Errors
    /// The controller is not available, or the kernel refused.
    pub fn limit(&self, file: &str, value: u64) -> Result<(), DomainError> {
        fs::write(self.full.join(file), value.to_string()).map_err(|source| self.error("limit", source))
    }

    /// A figure from one of its files, such as `memory.current`; `None` where there is no such file.
    pub fn figure(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.full.join(file)).ok()?.trim_end().parse().ok()
    }

    /// Moves a process into it, by the number that the caller has proven and still holds a pidfd of.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn take_in(&self, pid: Pid) -> Result<(), DomainError> {
        let moved = cgroup::take_in(self.open()?.as_raw_fd(), pid.as_raw());
        moved.map_err(|error| self.error("move into", io::Error::from_raw_os_error(error.errno.0)))
    }

    /// Moves everybody in it and below to `home`, by number.
    ///
    /// # Errors
    /// A file could not be read, or the kernel refused to move somebody who has not ended.
    pub fn empty_into(&self, home: &Domain) -> Result<(), DomainError> {
        // RACE: a number that was listed may be another's by the time it is moved; a cgroup takes nothing but numbers.
        // A process whose main thread exited elsewhere is listed there, so the other threads are looked for as well:
        // the number of any thread moves the whole process.
        for list in ["cgroup.procs", "cgroup.threads"] {
            for id in self.listed(list)?.ids {
                match home.take_in(id) {
                    Err(DomainError::Io { source, .. })
                        if source.raw_os_error() == Some(sexton_sys::Errno::ESRCH.0) => {}
                    moved => moved?,
                }
            }
        }
        Ok(())
    }

    /// Removes it if nothing is in it and nothing below, and tells whether it is gone. That is the cheapest proof that
    /// nothing lives there: the kernel keeps what is populated, and zombies do not count.
    pub fn try_remove(&self) -> bool {
        remove_dir(&self.full).is_ok()
    }

    /// Removes it and what its workload made below, deepest first.
    ///
    /// # Errors
    /// A process lives in it, or the kernel refused.
    pub fn remove(&self) -> Result<Released, DomainError> {
        remove_tree(&self.full).map_err(|source| self.error("remove", source))
    }

    fn error(&self, act: &'static str, source: io::Error) -> DomainError {
        error_at(act, &self.path, source)
    }
}

/// A hold on the process `pid` if it is, at this moment, in one of `cgroups`.
fn member(pid: Pid, cgroups: &HashSet<u64>, here: &Here) -> Option<Handle> {
    let handle = match Handle::open(pid, here) {
        Ok(handle) => handle,
        Err(OpenHandleError::Gone | OpenHandleError::Unproven | OpenHandleError::OutOfSight) => return None,
        Err(error @ (OpenHandleError::Sys(_) | OpenHandleError::Proc(_))) => {
            tracing::warn!(%pid, %error, "member of a domain not opened");
            return None;
        }
    };
    // In one below that which listed it, where it is threaded.
    let is_in = handle.cgroup_id().is_some_and(|id| cgroups.contains(&id)) || handle.has_thread_in(cgroups);
    is_in.then_some(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_elsewhere_by_now_is_no_member() {
        let here = proc::here().expect("readable");
        let me = Pid::new(std::process::id().cast_signed()).expect("not init");
        // RACE: a number that was listed may be another's by the time it is opened.
        assert!(member(me, &HashSet::from([u64::MAX]), &here).is_none());
        let Some(home) = Handle::open(me, &here).expect("a hold").cgroup_id() else { return };
        assert!(member(me, &HashSet::from([home]), &here).is_some());
    }
}
