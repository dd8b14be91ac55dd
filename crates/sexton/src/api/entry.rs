//! Who may connect to the socket beside its owner. Its mode lets nobody else in; who has a role in `[[access]]` is let in
//! by name, so that nobody without one holds a connection.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sexton_sys::xattr;

/// What the kernel calls a file's access control list, and the version of its layout.
const LIST: (&CStr, u32) = (c"system.posix_acl_access", 2);
/// Whom an entry is about: the owner, a user by number, the group, all that users and groups get at most, anybody else.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// To connect takes the right to write.
const BOTH: u16 = 6;
/// Of whom there is one alone.
const NO_NUMBER: u32 = u32::MAX;

/// Lets `users` connect to the socket at `path`, and nobody any more who was let in before.
///
/// # Errors
/// The file system keeps no such lists.
pub fn let_in(path: &Path, users: &BTreeSet<u32>) -> io::Result<()> {
    if users.is_empty() && fs::metadata(path)?.permissions().mode() & 0o7777 == 0o600 {
        return Ok(());
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let set = xattr::set_at(&path, LIST.0, &list(users));
    set.map_err(|error| io::Error::from_raw_os_error(error.errno.0))
}

/// The list of a file that its owner and `users` may read and write.
fn list(users: &BTreeSet<u32>) -> Vec<u8> {
    let mut entries = vec![(OWNER, BOTH, NO_NUMBER)];
    entries.extend(users.iter().map(|user| (USER, BOTH, *user)));
    entries.push((GROUP, 0, NO_NUMBER));
    entries.extend((!users.is_empty()).then_some((MASK, BOTH, NO_NUMBER)));
    entries.push((OTHER, 0, NO_NUMBER));
    let mut bytes = LIST.1.to_le_bytes().to_vec();
    for (whom, may, number) in entries {
        bytes.extend(whom.to_le_bytes());
        bytes.extend(may.to_le_bytes());
        bytes.extend(number.to_le_bytes());
    }
    bytes
}
