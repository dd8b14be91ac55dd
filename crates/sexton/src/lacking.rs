//! What a host must have.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use sexton_core::features;

/// Where the null device is.
const NULL: &str = "/dev/null";

/// Why the null device is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenNullError {
    /// There is none, or it could not be opened.
    #[error("could not open `/dev/null`")]
    Open(#[from] io::Error),
    /// Another file is in its place, whatever can be read there.
    #[error("`/dev/null` is not the null device")]
    Other,
}

/// The null device, open for reading: a workload's stdin.
///
/// # Errors
/// [`OpenNullError`].
pub fn open_null() -> Result<File, OpenNullError> {
    // Character device 1:3 (`null(4)`).
    let is_null = |about: &Metadata| about.file_type().is_char_device() && about.rdev() == 0x103;
    // Looked at first, for a pipe in its place would not let go of who opens it.
    if !is_null(&fs::metadata(NULL)?) {
        return Err(OpenNullError::Other);
    }
    let open = File::open(NULL)?;
    if is_null(&open.metadata()?) { Ok(open) } else { Err(OpenNullError::Other) }
}

/// What a worker cannot do without and this host, or a filter, refuses; tried by doing it.
pub fn lacking() -> Option<String> {
    if let Err(error) = features::required() {
        return Some(error.to_string());
    }
    // On a thread of its own, which is tried as well: a C library that is refused `clone3` otherwise than by `ENOSYS`
    // makes none. Joined, for a keeper has one thread.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().map(drop);
    match std::thread::Builder::new().spawn(runtime).map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(error))) => Some(format!("epoll and eventfd: {error}")),
        Ok(Err(_)) => Some("threads".to_owned()),
        Err(error) => Some(format!("threads: {error}")),
    }
}
