//! The extended attributes of a metadata file, its access control list among them.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::AsRawFd;

use sexton_sys::{Errno, SysError, xattr};

/// The kernel's own bound for a value, and for the names of one file (`xattr(7)`).
const LARGEST: usize = 64 << 10;

/// Made by the kernel from a file's bytes, which are others in the new file. Every other one is kept or the file is left
/// alone, `security.*` and `trusted.*` too: a label says who may open the file as an ACL does. The label that the kernel
/// itself gave the new file is mostly the right one already, and then nothing is asked of it that it could refuse.
const OF_THE_BYTES: [&CStr; 2] = [c"security.ima", c"security.evm"];

/// Why a file would have lost an attribute, or gained one.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Nobody can tell what it has.
    #[error("its extended attributes cannot be listed: {0}")]
    List(SysError),
    /// One that cannot be read, written or removed.
    #[error("its extended attribute {0:?} cannot be kept: {1}")]
    One(CString, SysError),
}

/// All attributes that the kernel shows of `file`, which is none where its file system keeps none.
///
/// # Errors
/// One of them cannot be read.
pub fn all(file: &File) -> Result<BTreeMap<CString, Vec<u8>>, KeepError> {
    let (mut names, mut value) = (vec![0; LARGEST], vec![0; LARGEST]);
    let names = match xattr::list(file.as_raw_fd(), &mut names) {
        Ok(names) => names,
        Err(error) if error.errno == Errno::EOPNOTSUPP => return Ok(BTreeMap::new()),
        Err(error) => return Err(KeepError::List(error)),
    };
    let mut found = BTreeMap::new();
    for name in names.filter(|name| !OF_THE_BYTES.contains(name)) {
        let read = xattr::read(file.as_raw_fd(), name, &mut value);
        let value = read.map_err(|error| KeepError::One(name.to_owned(), error))?;
        // It is listed: without a value it is an empty one.
        found.insert(name.to_owned(), value.unwrap_or_default().to_owned());
    }
    Ok(found)
}

/// Gives `to` the attributes of `from`, and no others.
///
/// # Errors
/// One of them cannot be kept; `to` has some of them.
pub fn copy(from: &File, to: &File) -> Result<(), KeepError> {
    let (wanted, given) = (all(from)?, all(to)?);
    let refused = |name: &CString| {
        let name = name.clone();
        move |error| KeepError::One(name, error)
    };
    // A directory may give each new file in it an ACL, and so let in who could not read the old one.
    for name in given.keys().filter(|name| !wanted.contains_key(*name)) {
        xattr::remove(to.as_raw_fd(), name).map_err(refused(name))?;
    }
    // From `user.*` to `system.*` and `security.*`: behind an ACL or a label its owner may not write the others.
    for (name, value) in wanted.iter().rev().filter(|(name, value)| given.get(*name) != Some(*value)) {
        xattr::set(to.as_raw_fd(), name, value).map_err(refused(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_is_named() {
        let path = std::env::temp_dir().join(format!("sexton-attributes-{}", std::process::id()));
        let from = File::options().read(true).write(true).create_new(true).open(&path).expect("made");
        std::fs::remove_file(path).expect("removed");
        // No device has attributes of users.
        let to = File::open("/dev/null").expect("opened");
        copy(&from, &to).expect("nothing to keep");
        xattr::set(from.as_raw_fd(), c"user.note", b"mine").expect("set");
        let told = copy(&from, &to).expect_err("not kept").to_string();
        assert!(told.contains("\"user.note\" cannot be kept"), "{told}");
    }
}
