//! An owner's metadata file: opened component by component inside its tree, read whole, replaced in one step.
//!
//! ```text
//!   NAME = old, .RANDOM.sexton = ours ── exchanged ──► NAME = ours, .RANDOM.sexton = what came out
//!   what came out is what was read: removed; it is newer: its owner's, and given back
//! ```
//!
//! The name beside is made for one writing, and in the ledger before anything bears it: so whoever clears up behind a
//! worker that died knows its file from any that somebody else made, whatever that is called.

use std::ffi::{CString, OsStr};
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::PathBuf;

use sexton_sys::file::{self, flags};
use sexton_sys::{Errno, SysError};

use super::attributes::{self, KeepError};
use super::rule::{Place, Template};
use crate::node::crash::crash_point;

/// BOUND: metadata of more bytes than this is left alone.
const LARGEST: u64 = 16 << 20;

/// BOUND: exchanges with an owner who writes again within the microseconds of each.
const MOST_EXCHANGES: usize = 16;

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
    /// The new file would let others in than the old one, or lack what that bears.
    #[error("{0}")]
    Attributes(#[from] KeepError),
    /// The same of its mode.
    #[error("its mode cannot be kept")]
    Mode,
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
    let (dir, name) = match open_dir(template, id) {
        Ok(found) => found,
        Err(found) => return found,
    };
    match read_file(&dir, &name) {
        Ok(Ok((text, stamp))) => Found::File(Metadata { text, dir, name, stamp }),
        Ok(Err(why)) => odd(why),
        Err(error) if is_missing(&error) => Found::Missing,
        Err(error) => odd(format!("cannot be read: {error}")),
    }
}

/// What decides who may say something of `id`: its metadata, its own directory and the tree, as far as they are there.
pub fn places(template: &Template, id: &str) -> Vec<Place> {
    let paths = [template.file(id), format!("{}/{id}", template.tree), template.tree.clone()];
    let about = paths.iter().filter_map(|path| std::fs::symlink_metadata(path).ok());
    about.map(|about| Place { uid: about.uid(), gid: about.gid(), mode: about.mode() }).collect()
}

/// The directory that the metadata of `id` is in, and its name there.
fn open_dir(template: &Template, id: &str) -> Result<(File, CString), Found> {
    let tree = File::options().read(true).custom_flags(flags::DIRECTORY).open(&template.tree);
    // Without its tree nobody can tell whether a file is missing: the disk may not be mounted.
    let mut dir = tree.map_err(|error| odd(format!("the tree `{}` cannot be read: {error}", template.tree)))?;
    let parts: Vec<&str> = std::iter::once(id).chain(template.below.iter().map(String::as_str)).collect();
    let (name, dirs) = parts.split_last().ok_or_else(|| odd("no name"))?;
    for part in dirs {
        let part = CString::new(*part).map_err(|_| odd("a name holds a NUL"))?;
        let how = flags::DIRECTORY | flags::NOFOLLOW;
        dir = File::options().read(true).custom_flags(how).open(inside(&dir, &part)).map_err(|error| {
            if is_missing(&error) {
                return Found::Missing;
            }
            match error.raw_os_error().map(Errno) {
                Some(Errno::ENOTDIR | Errno::ELOOP) => odd("a directory above it is none, or a symbolic link"),
                _ => odd(format!("a directory above it cannot be read: {error}")),
            }
        })?;
    }
    Ok((dir, CString::new(*name).map_err(|_| odd("a name holds a NUL"))?))
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOENT.0)
}

/// A name for what is beside a file while that is replaced: nobody else's, and short enough whatever the file is called.
pub fn name_beside() -> String {
    format!(".{}.sexton", sexton_ledger::new_incarnation())
}

/// Whether something is called `beside` next to the metadata of `id`, as far as anybody can tell.
pub fn is_beside(template: &Template, id: &str, beside: &str) -> bool {
    let Ok(beside) = CString::new(beside) else { return false };
    match open_dir(template, id) {
        Ok((dir, _)) => !look(&dir, &beside).is_err_and(|error| is_missing(&error)),
        Err(Found::Missing | Found::File(_)) => false,
        Err(Found::Odd(_)) => true,
    }
}

/// Clears away `beside`, which was left beside the metadata of `id` by a worker that died while it replaced that, or that
/// could not remove it. `edited`: what it would have made of a text, which is the text itself where that was right, and
/// nothing where it is no metadata.
///
/// # Errors
/// Nobody can tell what is there, or it cannot be removed; it stays.
pub fn tidy(
    template: &Template,
    id: &str,
    beside: &str,
    edited: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<(), String> {
    let (dir, name) = match open_dir(template, id) {
        Ok(found) => found,
        Err(Found::Odd(why)) => return Err(why),
        Err(Found::Missing | Found::File(_)) => return Ok(()),
    };
    let told = |error: io::Error| error.to_string();
    let text = |name: &CString| match read_file(&dir, name) {
        Ok(Ok((text, _))) => Ok(Some(text)),
        // What is no file is nothing that was written.
        Ok(Err(_)) => Ok(None),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(told(error)),
    };
    let beside = CString::new(beside).map_err(|error| error.to_string())?;
    let (present, out) = (text(&name)?, text(&beside)?);
    let made = |text: &Option<Vec<u8>>| text.as_deref().and_then(&edited);
    let ours_is_in_place = present.is_some() && made(&present) == present;
    // What ours was made of is old, and what is right itself is ours, or as good.
    let is_newer = made(&out).is_some_and(|made| Some(&made) != out.as_ref() && Some(&made) != present.as_ref());
    if ours_is_in_place && is_newer {
        file::exchange(dir.as_raw_fd(), &beside, &name).map_err(|error| error.to_string())?;
    }
    match file::unlink(dir.as_raw_fd(), &beside) {
        Err(error) if error.errno != Errno::ENOENT => Err(error.to_string()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The name of `name` in the very directory that `dir` holds, wherever that has gone.
fn inside(dir: &File, name: &CString) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name.as_bytes()))
}

/// Looks at `name` without side effects, whatever it is, and without a descriptor, which may be all used up.
fn look(dir: &File, name: &CString) -> io::Result<std::fs::Metadata> {
    std::fs::symlink_metadata(inside(dir, name))
}

fn open_file(dir: &File, name: &CString) -> io::Result<File> {
    let how = flags::NOFOLLOW | flags::NONBLOCK | flags::NOCTTY;
    File::options().read(true).custom_flags(how).open(inside(dir, name))
}

fn read_file(dir: &File, name: &CString) -> io::Result<Result<(Vec<u8>, Stamp), String>> {
    let before = look(dir, name)?;
    if !before.is_file() {
        return Ok(Err("is no regular file".to_owned()));
    }
    if before.len() > LARGEST {
        return Ok(Err(format!("is larger than {LARGEST} bytes")));
    }
    let opened = open_file(dir, name)?;
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
    /// Replaces the file's text in one step: owner, mode and extended attributes stay, and a crash leaves the old
    /// text or the new one. `beside`: a name of [`name_beside`], which something may bear afterwards ([`is_beside`]).
    ///
    /// # Errors
    /// It changed since it was read, or could not be written; it is then as it was.
    ///
    /// # Blocking
    /// For two syncs.
    pub fn replace(&self, text: &[u8], beside: &str) -> Result<(), ReplaceError> {
        let beside = CString::new(beside).map_err(io::Error::from)?;
        // Whatever bears the name already is somebody else's, and stays.
        let file = self.make_beside(&beside)?;
        let put = self.write_beside(file, text).and_then(|ours| self.put(&beside, ours));
        let replaced = match put {
            Ok(Some(ours)) if !self.is_what_was_read(&beside) => {
                // Left there on an error: it is its owner's.
                self.give_back(&beside, ours)?;
                Err(ReplaceError::Changed)
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        // What is beside now is the old file, or one of ours that is not wanted.
        if let Err(error) = file::unlink(self.dir.as_raw_fd(), &beside) {
            tracing::warn!(%error, ?beside, "what a writing left is still there");
        }
        replaced?;
        // It is in place for whoever reads it. Without power the process is gone as well as what was said of it.
        if let Err(error) = file::sync(self.dir.as_raw_fd()) {
            tracing::warn!(%error, "a directory of metadata is not synced");
        }
        Ok(())
    }

    /// Puts the file `beside`, whose inode is `ours`, into place; tells that again where something came out in exchange.
    ///
    /// RACE: a file cannot be renamed on a condition, so the two are exchanged, and what comes out is looked at.
    fn put(&self, beside: &CString, ours: u64) -> Result<Option<u64>, ReplaceError> {
        let dir = self.dir.as_raw_fd();
        crash_point!("watch.written");
        if !self.is_unchanged()? {
            return Err(ReplaceError::Changed);
        }
        let put = match file::exchange(dir, beside, &self.name) {
            Ok(()) => Ok(Some(ours)),
            Err(error) if error.errno == Errno::ENOENT => Err(ReplaceError::Changed),
            // RACE: where the file system cannot exchange, whoever writes between the look and the rename loses.
            Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENOSYS) => {
                Ok(file::rename(dir, beside, &self.name).map(|()| None)?)
            }
            Err(error) => Err(error.into()),
        };
        crash_point!("watch.exchanged");
        put
    }

    /// Gives what came out back to its owner, in place of `ours`.
    ///
    /// RACE: the owner may have replaced that by something newer still, which then comes out in its turn, until what
    /// comes out is what was put there last.
    fn give_back(&self, beside: &CString, ours: u64) -> Result<(), ReplaceError> {
        let mut put_last = ours;
        for _ in 0..MOST_EXCHANGES {
            let puts = look(&self.dir, beside)?.ino();
            match file::exchange(self.dir.as_raw_fd(), beside, &self.name) {
                Ok(()) => {}
                // Removed by its owner.
                Err(error) if error.errno == Errno::ENOENT => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if look(&self.dir, beside)?.ino() == put_last {
                return Ok(());
            }
            put_last = puts;
        }
        Err(ReplaceError::Changed)
    }

    /// Whether `beside` is the very file that was read, as it was.
    fn is_what_was_read(&self, beside: &CString) -> bool {
        // Being renamed changes the time of the last change, and a clock may be too coarse to show a write.
        let is = |text: &[u8], found: Stamp| {
            text == self.text && Stamp { changed: self.stamp.changed, ..found } == self.stamp
        };
        matches!(read_file(&self.dir, beside), Ok(Ok((text, found))) if is(&text, found))
    }

    /// Makes the new file `beside`.
    fn make_beside(&self, beside: &CString) -> io::Result<File> {
        File::options().write(true).create_new(true).mode(0o600).open(inside(&self.dir, beside))
    }

    /// Writes `text` to the new file beside; tells its inode.
    fn write_beside(&self, mut file: File, text: &[u8]) -> Result<u64, ReplaceError> {
        let old = open_file(&self.dir, &self.name)?;
        let about = old.metadata()?;
        file.write_all(text)?;
        // The owner first: changing it takes set-id bits away.
        fchown(&file, Some(about.uid()), Some(about.gid()))?;
        // The mode behind the ACL: without that its bits for the group let in whom the ACL keeps out, and with it they
        // are its mask, which stays.
        attributes::copy(&old, &file)?;
        file.set_permissions(Permissions::from_mode(about.mode() & 0o7777))?;
        file.sync_all()?;
        let made = file.metadata()?;
        if made.mode() == about.mode() { Ok(made.ino()) } else { Err(ReplaceError::Mode) }
    }

    fn is_unchanged(&self) -> io::Result<bool> {
        match look(&self.dir, &self.name) {
            Ok(about) => Ok(stamp(&about) == self.stamp),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use sexton_sys::xattr;

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
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_with_its_owner_and_mode() {
        let tree = Tree::new("replace");
        fs::write(tree.file(), "{\"a\":1}\n").expect("written");
        fs::set_permissions(tree.file(), Permissions::from_mode(0o640)).expect("mode");
        std::os::unix::fs::chown(tree.file(), Some(7), Some(8)).expect("root");
        // Its owner's own.
        fs::write(tree.0.join("guests/a/.metadata.json.sexton"), "mine").expect("written");
        let Found::File(metadata) = tree.read() else { panic!("a file") };
        assert!(metadata.replace(b"{}", ".metadata.json.sexton").is_err(), "somebody else's");
        metadata.replace(b"{}", &name_beside()).expect("replaced");
        let about = fs::metadata(tree.file()).expect("there");
        assert_eq!((about.uid(), about.gid(), about.mode() & 0o7777), (7, 8, 0o640));
        assert_eq!(fs::read(tree.file()).expect("readable"), b"{}");
        assert_eq!(text(tree.0.join("guests/a/.metadata.json.sexton")), "mine");
        assert_eq!(names(&tree.0.join("guests/a")), [".metadata.json.sexton", "metadata.json"]);
    }

    #[test]
    fn a_file_is_replaced_whatever_it_is_called() {
        let tree = Tree::new("names");
        let id = "x".repeat(255);
        let template = Template::parse(&format!("{}/guests/{{id}}", tree.0.display())).expect("a template");
        fs::write(tree.0.join("guests").join(&id), "{\"a\":1}").expect("written");
        let Found::File(metadata) = read(&template, &id) else { panic!("a file") };
        metadata.replace(b"{}", &name_beside()).expect("replaced");
        assert_eq!(text(tree.0.join("guests").join(&id)), "{}");
        assert_eq!(names(&tree.0.join("guests")), ["a".to_owned(), id]);
    }

    /// A POSIX ACL that lets one more `user` read and write, and nobody of the group.
    fn acl(user: u32) -> Vec<u8> {
        let entries = [(0x01_u16, 6_u16, u32::MAX), (0x02, 6, user), (0x04, 0, u32::MAX), (0x10, 6, u32::MAX)];
        let entries = entries.into_iter().chain([(0x20, 0, u32::MAX)]);
        let bytes = |(tag, rights, who): (u16, u16, u32)| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &who.to_le_bytes()].concat()
        };
        2_u32.to_le_bytes().into_iter().chain(entries.flat_map(bytes)).collect()
    }

    #[test]
    fn a_file_is_replaced_with_its_attributes_and_no_others() {
        const ACL: &CStr = c"system.posix_acl_access";
        let tree = Tree::new("attributes");
        let dir = File::open(tree.0.join("guests/a")).expect("opened");
        // Each new file in the directory is given this one.
        xattr::set(dir.as_raw_fd(), c"system.posix_acl_default", &acl(4321)).expect("set");
        let its = [(c"user.note", b"mine".to_vec()), (c"trusted.empty", Vec::new()), (ACL, acl(1234))];
        for (its, mode) in [(&its[..], 0o660), (&its[..2], 0o4640), (&[], 0o640)] {
            fs::write(tree.file(), "{\"a\":1}").expect("written");
            let old = File::open(tree.file()).expect("opened");
            xattr::remove(old.as_raw_fd(), ACL).expect("removed");
            old.set_permissions(Permissions::from_mode(mode)).expect("mode");
            its.iter().for_each(|(name, value)| xattr::set(old.as_raw_fd(), name, value).expect("set"));
            let Found::File(metadata) = tree.read() else { panic!("a file") };
            metadata.replace(b"{}", &name_beside()).expect("replaced");
            let new = File::open(tree.file()).expect("opened");
            let about = |file: &File| (attributes::all(file).expect("read"), file.metadata().expect("there").mode());
            assert_eq!(about(&new), about(&old));
            assert!(its.iter().all(|(name, _)| about(&new).0.contains_key(*name)), "{its:?}");
            assert_ne!(new.metadata().expect("there").ino(), old.metadata().expect("there").ino());
            fs::remove_file(tree.file()).expect("removed");
        }
    }

    #[test]
    fn what_changed_meanwhile_is_not_written_over() {
        let tree = Tree::new("changed");
        fs::write(tree.file(), "{\"a\":1}").expect("written");
        let Found::File(metadata) = tree.read() else { panic!("a file") };
        fs::write(tree.file(), "{\"a\":2}").expect("written");
        assert!(matches!(metadata.replace(b"{}", &name_beside()), Err(ReplaceError::Changed)));
        fs::remove_file(tree.file()).expect("removed");
        assert!(metadata.replace(b"{}", &name_beside()).is_err());
        assert!(names(&tree.0.join("guests/a")).is_empty());
    }

    /// Puts a file of its owner into place, in one step as owners do.
    fn own(tree: &Tree, text: &str) {
        fs::write(tree.0.join("guests/a/newer"), text).expect("written");
        fs::rename(tree.0.join("guests/a/newer"), tree.file()).expect("renamed");
    }

    fn text(path: PathBuf) -> String {
        fs::read_to_string(path).expect("readable")
    }

    #[test]
    fn what_its_owner_replaces_at_the_last_moment_is_given_back() {
        let tree = Tree::new("last-moment");
        let beside = CString::new(".metadata.json.sexton").expect("a name");
        for newer in [&["{\"a\":2}"][..], &["{\"a\":2}", "{\"a\":3}"], &["in place"], &[]] {
            fs::write(tree.file(), "{\"a\":1}").expect("written");
            let Found::File(metadata) = tree.read() else { panic!("a file") };
            let file = metadata.make_beside(&beside).expect("made");
            let ours = metadata.write_beside(file, b"{}").expect("written");
            // Behind the last look.
            match newer.first() {
                Some(&"in place") => fs::write(tree.file(), "{\"a\":4}").expect("written"),
                Some(text) => own(&tree, text),
                None => fs::remove_file(tree.file()).expect("removed"),
            }
            let exchanged = file::exchange(metadata.dir.as_raw_fd(), &beside, &metadata.name);
            assert_eq!(exchanged.is_ok(), !newer.is_empty(), "nothing is made that was removed");
            if exchanged.is_ok() {
                assert!(!metadata.is_what_was_read(&beside), "{newer:?}");
                // While it is given back.
                newer.get(1).into_iter().for_each(|text| own(&tree, text));
                metadata.give_back(&beside, ours).expect("given back");
                let expected = newer.last().filter(|text| **text != "in place").unwrap_or(&"{\"a\":4}");
                assert_eq!(text(tree.file()), *expected);
            }
            fs::remove_file(tree.0.join("guests/a/.metadata.json.sexton")).expect("removed");
        }
    }

    #[test]
    fn what_came_out_is_as_it_was_read() {
        let tree = Tree::new("came-out");
        let Found::Missing = tree.read() else { panic!("nothing") };
        fs::write(tree.file(), "{\"a\":1}").expect("written");
        let Found::File(metadata) = tree.read() else { panic!("a file") };
        let beside = CString::new(name_beside()).expect("a name");
        let ours = metadata.write_beside(metadata.make_beside(&beside).expect("made"), b"{}").expect("written");
        assert_eq!(metadata.put(&beside, ours).expect("put"), Some(ours));
        assert!(metadata.is_what_was_read(&beside));
        assert_eq!(text(tree.file()), "{}");
    }

    #[test]
    fn what_a_dead_worker_left_beside_is_cleared_away_unless_it_is_newer() {
        let tree = Tree::new("tidy");
        let name = name_beside();
        let beside = tree.0.join("guests/a").join(&name);
        let edited = |text: &[u8]| {
            let text = String::from_utf8(text.to_vec()).ok()?;
            text.ends_with('}').then(|| text.replace("PID", "7").into_bytes())
        };
        for (present, out, then) in [
            // It died before the exchange, with half of the text written, or all of it.
            (Some("{PID}"), "{7", Some("{PID}")),
            (Some("{PID}"), "", Some("{PID}")),
            (Some("{PID}"), "{7}", Some("{PID}")),
            // Its owner wrote since.
            (Some("{newer PID}"), "{7}", Some("{newer PID}")),
            (Some("{newer 7}"), "{7}", Some("{newer 7}")),
            (None, "{7}", None),
            // Behind the exchange.
            (Some("{7}"), "{PID}", Some("{7}")),
            // Behind the exchange, by which its owner's newer file came out.
            (Some("{7}"), "{newer PID}", Some("{newer PID}")),
        ] {
            let _none = fs::remove_file(tree.file());
            present.into_iter().for_each(|text| fs::write(tree.file(), text).expect("written"));
            fs::write(&beside, out).expect("written");
            tidy(&tree.template(), "a", &name, edited).expect("readable");
            assert_eq!(fs::read_to_string(tree.file()).ok().as_deref(), then, "{present:?}, beside it {out:?}");
            assert!(!beside.exists(), "{present:?}, beside it {out:?}");
        }
        assert!(tidy(&tree.template(), "nobody", &name, edited).is_ok(), "there is nothing");
        symlink("a", tree.0.join("guests/b")).expect("linked");
        assert!(tidy(&tree.template(), "b", &name, edited).is_err(), "below a link");
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
