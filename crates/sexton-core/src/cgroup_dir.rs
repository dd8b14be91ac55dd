//! Cgroups as directories, of whatever hierarchy: making them with what is missing above, tagging, walking, removing.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sexton_sys::xattr;

use crate::pin::Released;

/// The tag on a cgroup's directory, which only root can write.
const TAG: &std::ffi::CStr = c"trusted.sexton";

/// The tag of a cgroup that was made on the way to another.
pub(crate) const WAY: &[u8] = b"way";

/// The sticky bit on a cgroup's directory: Sexton made it. The kernel takes it with the directory in one step, so no crash
/// falls between the two, as one would before a tag, and it needs no privilege. It has no other meaning there.
const MADE: u32 = 0o1000;

/// Makes the cgroup at `dir`, of whatever hierarchy, and what is missing on the way to it, which is marked so that
/// [`remove_with_way`] knows it again.
///
/// # Errors
/// One of them could not be made.
pub fn make_with_way(dir: &Path) -> io::Result<()> {
    let make = || -> io::Result<()> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|above| !above.exists()).collect();
        for missing in missing.into_iter().rev() {
            match fs::DirBuilder::new().mode(0o755 | MADE).create(missing) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        // A file of the kernel may have that name.
        if fs::metadata(dir)?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
    };
    match make() {
        // RACE: another daemon may just have removed what it had made.
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(),
        made => made,
    }?;
    // What a crash has left without its tag is on the way as well.
    let is_untagged = |above: &&Path| is_made(above) && tag_of(above).is_ok_and(|tag| tag.is_none());
    let way: Vec<&Path> = dir.ancestors().skip(1).take_while(is_untagged).collect();
    for above in way.into_iter().rev() {
        tag(above, WAY);
        pass_controllers_on(above);
    }
    Ok(())
}

/// Removes the cgroup at `dir`, unless somebody else had made it, and above it what [`make_with_way`] made and nobody uses
/// any more. Where that of another daemon lies below, it is on the way to that one from now on, and goes with it.
///
/// # Errors
/// It is not empty, or the kernel refused.
pub fn remove_with_way(dir: &Path) -> io::Result<()> {
    if dir.exists() && !is_made(dir) {
        return Ok(());
    }
    remove_dir(dir).inspect_err(|_| tag(dir, WAY))?;
    let is_way = |above: &Path| matches!(tag_of(above), Ok(Some(tag)) if tag == WAY);
    for above in dir.ancestors().skip(1) {
        if !is_way(above) || fs::remove_dir(above).is_err() {
            break;
        }
    }
    Ok(())
}

fn is_made(dir: &Path) -> bool {
    fs::metadata(dir).is_ok_and(|found| found.mode() & MADE != 0)
}

fn tag_of(dir: &Path) -> io::Result<Option<Vec<u8>>> {
    read_tag(&fs::File::open(dir)?)
}

/// Tags a cgroup, as far as that can be done; it needs no descriptor, of which there may be none.
pub(crate) fn tag(dir: &Path, with: &[u8]) {
    // No path of a cgroup holds a NUL.
    let path = CString::new(dir.as_os_str().as_bytes()).unwrap_or_default();
    if let Err(error) = xattr::set_at(&path, TAG, with) {
        tracing::debug!(%error, dir = %dir.display(), "cgroup not tagged");
    }
}

/// The tag of an open cgroup, if it bears one.
pub(crate) fn read_tag(dir: &fs::File) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; 128];
    match xattr::read(dir.as_raw_fd(), TAG, &mut buffer) {
        Ok(tag) => Ok(tag.map(<[u8]>::to_vec)),
        // It can bear none.
        Err(error) if error.errno == sexton_sys::Errno::EOPNOTSUPP => Ok(None),
        Err(error) => Err(io::Error::from_raw_os_error(error.errno.0)),
    }
}

/// Gives the children of a cgroup the controllers that are to be had.
pub(crate) fn pass_controllers_on(dir: &Path) {
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_ascii_whitespace().filter(|name| matches!(*name, "pids" | "memory")) {
        // Refused where processes live in it: limits are then reported as unavailable, never ignored.
        if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")) {
            tracing::warn!(controller, %error, "cgroup controller not available to instances");
        }
    }
}

/// Removes the cgroup at `top`, of whatever hierarchy, and what its workload made below, deepest first.
///
/// # Errors
/// A process lives in it, or the kernel refused.
pub fn remove_tree(top: &Path) -> io::Result<Released> {
    // Most have nothing below.
    if let Ok(released) = remove_dir(top) {
        return Ok(released);
    }
    walk(top, |_| Ok(()), |dir| remove_dir(dir).map(drop))?;
    remove_dir(top)
}

/// Gives `top` and each cgroup below to `enter`, and each one below, once it is done with, to `leave`. What is gone by then
/// is passed over.
///
/// By descriptors, of which one directory at a time is held: what a workload makes may be deeper than a path is long, and
/// than there are descriptors. BOUND: the kernel bounds depth and number of cgroups.
pub(crate) fn walk(
    top: &Path,
    mut enter: impl FnMut(&Path) -> io::Result<()>,
    mut leave: impl FnMut(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let Some(mut here) = unless_gone(fs::File::open(top))? else { return Ok(()) };
    unless_gone(enter(&path_of(&here)))?;
    // The way from `top`: the name of each cgroup, and of those in it that were not entered yet.
    let mut way = vec![(OsString::new(), names_below(&here)?)];
    while let Some((name, below)) = way.last_mut() {
        if let Some(next) = below.pop() {
            let Some(dir) = unless_gone(fs::File::open(path_of(&here).join(&next)))? else { continue };
            here = dir;
            unless_gone(enter(&path_of(&here)))?;
            way.push((next, names_below(&here)?));
        } else {
            let name = std::mem::take(name);
            way.pop();
            if !way.is_empty() {
                // A removed directory knows its parent, too.
                here = fs::File::open(path_of(&here).join(".."))?;
                unless_gone(leave(&path_of(&here).join(name)))?;
            }
        }
    }
    Ok(())
}

/// A path of an open directory that is short however deep that is.
fn path_of(dir: &fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// Names of the cgroups directly below an open one.
fn names_below(dir: &fs::File) -> io::Result<Vec<OsString>> {
    let Some(entries) = unless_gone(fs::read_dir(path_of(dir)))? else { return Ok(Vec::new()) };
    let dirs = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(dirs.map(|entry| entry.file_name()).collect())
}

pub(crate) fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A removed cgroup answers `ENOENT` by path, `ENODEV` through an open file.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(sexton_sys::Errno::ENODEV.0)
}

pub(crate) fn remove_dir(dir: &Path) -> io::Result<Released> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(Released::Now),
        Err(error) if is_gone(&error) => Ok(Released::WasGone),
        Err(error) => Err(error),
    }
}
