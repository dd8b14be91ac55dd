//! An owner's metadata file: opened component by component inside its tree, read whole, replaced in one step.

use std::ffi::{CString, OsStr};
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::PathBuf;

use sexton_sys::file::{self, flags};
use sexton_sys::{Errno, SysError};

use super::rule::Template;

/// BOUND: metadata of more bytes than this is left alone.
const LARGEST: u64 = 16 << 20;

/// What was found where metadata should be.
#[derive(Debug)]
pub enum Found {
    /// The file is proven not to exist.
    Missing,
    /// Something that is left alone; why.
    Odd(String),
    /// A regular file inside the tree.
    File(Metadata),
}

/// A metadata file as it was read.
#[derive(Debug)]
pub struct Metadata {
    /// Its bytes.
    pub text: Vec<u8>,
    dir: File,
    name: CString,
    stamp: Stamp,
}

/// What changes when somebody else writes or replaces a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Why metadata was not written; completes "could not write the metadata: …".
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// Somebody else wrote it since it was read.
    #[error("it changed meanwhile")]
    Changed,
    /// The file system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The kernel refused.
    #[error("{0}")]
    Sys(#[from] SysError),
}

fn odd(why: impl std::fmt::Display) -> Found {
    Found::Odd(why.to_string())
}

/// Opens and reads the metadata of `id`. The tree is the configuration's own; below it no symbolic link is followed.
pub fn read(template: &Template, id: &str) -> Found {
    let options = File::options().read(true).custom_flags(flags::DIRECTORY).open(&template.tree);
    let mut dir = match options {
        Ok(dir) => dir,
        // Without its tree nobody can tell whether a file is missing: the disk may not be mounted.
        Err(error) => return odd(format!("the tree `{}` cannot be read: {error}", template.tree)),
    };
    let parts: Vec<&str> = std::iter::once(id).chain(template.below.iter().map(String::as_str)).collect();
    let Some((name, dirs)) = parts.split_last() else { return odd("no name") };
    for part in dirs {
        let Ok(part) = CString::new(*part) else { return odd("a name holds a NUL") };
        let how = flags::DIRECTORY | flags::NOFOLLOW;
        dir = match File::options().read(true).custom_flags(how).open(inside(&dir, &part)) {
            Ok(dir) => dir,
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT.0) => return Found::Missing,
            Err(error) if matches!(error.raw_os_error().map(Errno), Some(Errno::ENOTDIR | Errno::ELOOP)) => {
                return odd("a directory above it is none, or a symbolic link");
            }
            Err(error) => return odd(format!("a directory above it cannot be read: {error}")),
        };
    }
    let Ok(name) = CString::new(*name) else { return odd("a name holds a NUL") };
    match read_file(&dir, &name) {
        Ok(Ok((text, stamp))) => Found::File(Metadata { text, dir, name, stamp }),
        Ok(Err(why)) => odd(why),
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT.0) => Found::Missing,
        Err(error) => odd(format!("cannot be read: {error}")),
    }
}

/// The name of `name` in the very directory that `dir` holds, wherever that has gone.
fn inside(dir: &File, name: &CString) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name.as_bytes()))
}

/// Opens `name` without side effects, whatever it is.
fn look(dir: &File, name: &CString) -> io::Result<File> {
    File::options().read(true).custom_flags(flags::PATH | flags::NOFOLLOW).open(inside(dir, name))
}

fn read_file(dir: &File, name: &CString) -> io::Result<Result<(Vec<u8>, Stamp), String>> {
    let before = look(dir, name)?.metadata()?;
    if !before.is_file() {
        return Ok(Err("is no regular file".to_owned()));
    }
    if before.len() > LARGEST {
        return Ok(Err(format!("is larger than {LARGEST} bytes")));
    }
    let how = flags::NOFOLLOW | flags::NONBLOCK | flags::NOCTTY;
    let opened = File::options().read(true).custom_flags(how).open(inside(dir, name))?;
    let mut text = Vec::new();
    (&opened).take(LARGEST + 1).read_to_end(&mut text)?;
    let after = opened.metadata()?;
    if stamp(&before) != stamp(&after) || text.len() as u64 != after.len() {
        return Ok(Err("is being changed".to_owned()));
    }
    Ok(Ok((text, stamp(&after))))
}

fn stamp(about: &std::fs::Metadata) -> Stamp {
    Stamp {
        device: about.dev(),
        inode: about.ino(),
        size: about.size(),
        modified: (about.mtime(), about.mtime_nsec()),
        changed: (about.ctime(), about.ctime_nsec()),
    }
}

impl Metadata {
    /// Replaces the file's text in one step: owner and mode stay, and a crash leaves the old text or the new one.
    ///
    /// # Errors
    /// It changed since it was read, or could not be written; it is then as it was.
    ///
    /// # Blocking
    /// For two syncs.
    pub fn replace(&self, text: &[u8]) -> Result<(), ReplaceError> {
        let dir = self.dir.as_raw_fd();
        let beside = [b".", self.name.as_bytes(), b".sexton"].concat();
        let beside = CString::new(beside).map_err(io::Error::other)?;
        let written = self.write_beside(&beside, text).and_then(|()| {
            // RACE: whoever writes between this look and the rename loses; a file cannot be renamed on a condition.
            if self.is_unchanged()? { Ok(()) } else { Err(ReplaceError::Changed) }
        });
        let renamed = written.and_then(|()| Ok(file::rename(dir, &beside, &self.name)?));
        if renamed.is_err() {
            let _gone = file::unlink(dir, &beside);
            return renamed;
        }
        Ok(file::sync(dir)?)
    }

    fn write_beside(&self, beside: &CString, text: &[u8]) -> Result<(), ReplaceError> {
        let about = look(&self.dir, &self.name)?.metadata()?;
        // What bears this name was left by a worker that died between the two steps.
        let _gone = file::unlink(self.dir.as_raw_fd(), beside);
        let how = inside(&self.dir, beside);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(how)?;
        file.write_all(text)?;
        // The owner first: changing it takes set-id bits away.
        fchown(&file, Some(about.uid()), Some(about.gid()))?;
        file.set_permissions(Permissions::from_mode(about.mode() & 0o7777))?;
        Ok(file.sync_all()?)
    }

    fn is_unchanged(&self) -> io::Result<bool> {
        match look(&self.dir, &self.name) {
            Ok(file) => Ok(stamp(&file.metadata()?) == self.stamp),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let dir = std::env::temp_dir().join(format!("sexton-metadata-{}-{name}", std::process::id()));
            fs::create_dir_all(dir.join("guests/a")).expect("made");
            Tree(dir)
        }

        fn template(&self) -> Template {
            Template::parse(&format!("{}/guests/{{id}}/metadata.json", self.0.display())).expect("a template")
        }

        fn file(&self) -> PathBuf {
            self.0.join("guests/a/metadata.json")
        }

        fn read(&self) -> Found {
            read(&self.template(), "a")
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).expect("removed");
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("entry").file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_file_is_replaced_with_its_owner_and_mode() {
        let tree = Tree::new("replace");
        fs::write(tree.file(), "{\"a\":1}\n").expect("written");
        fs::set_permissions(tree.file(), Permissions::from_mode(0o640)).expect("mode");
        std::os::unix::fs::chown(tree.file(), Some(7), Some(8)).expect("root");
        // As a worker leaves it that died between the two steps.
        fs::write(tree.0.join("guests/a/.metadata.json.sexton"), "half").expect("written");
        let Found::File(metadata) = tree.read() else { panic!("a file") };
        metadata.replace(b"{}").expect("replaced");
        let about = fs::metadata(tree.file()).expect("there");
        assert_eq!((about.uid(), about.gid(), about.mode() & 0o7777), (7, 8, 0o640));
        assert_eq!(fs::read(tree.file()).expect("readable"), b"{}");
        assert_eq!(names(&tree.0.join("guests/a")), ["metadata.json"]);
    }

    #[test]
    fn what_changed_meanwhile_is_not_written_over() {
        let tree = Tree::new("changed");
        fs::write(tree.file(), "{\"a\":1}").expect("written");
        let Found::File(metadata) = tree.read() else { panic!("a file") };
        fs::write(tree.file(), "{\"a\":2}").expect("written");
        assert!(matches!(metadata.replace(b"{}"), Err(ReplaceError::Changed)));
        fs::remove_file(tree.file()).expect("removed");
        assert!(metadata.replace(b"{}").is_err());
        assert!(names(&tree.0.join("guests/a")).is_empty());
    }

    #[test]
    fn missing_is_only_what_is_proven_missing() {
        let tree = Tree::new("missing");
        assert!(matches!(tree.read(), Found::Missing));
        assert!(matches!(read(&tree.template(), "b"), Found::Missing), "nor is its directory there");
        let nowhere = Template::parse(&format!("{}/none/{{id}}/x", tree.0.display())).expect("a template");
        assert!(matches!(read(&nowhere, "a"), Found::Odd(_)), "the tree itself is not there");
    }

    #[test]
    fn what_is_no_regular_file_inside_the_tree_is_odd() {
        let tree = Tree::new("odd");
        fs::write(tree.0.join("outside"), "{}").expect("written");
        symlink(tree.0.join("outside"), tree.file()).expect("linked");
        assert!(matches!(tree.read(), Found::Odd(_)), "a link");
        fs::remove_file(tree.0.join("outside")).expect("removed");
        assert!(matches!(tree.read(), Found::Odd(_)), "a link to nothing");
        fs::remove_file(tree.file()).expect("removed");
        fs::create_dir(tree.file()).expect("made");
        assert!(matches!(tree.read(), Found::Odd(_)), "a directory");
        symlink("a", tree.0.join("guests/b")).expect("linked");
        assert!(matches!(read(&tree.template(), "b"), Found::Odd(_)), "below a link");
        fs::write(tree.0.join("guests/c"), "{}").expect("written");
        assert!(matches!(read(&tree.template(), "c"), Found::Odd(_)), "below a file");
    }
}
