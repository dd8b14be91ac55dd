//! What a refused system call says.

use core::ffi::{CStr, c_char};
use core::fmt;
use core::ptr::NonNull;

use crate::text::{Show, Text, Words, display};

/// An error number (`errno(3)`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        #[allow(missing_docs, reason = "named as in errno(3)")]
        impl Errno {
            $(pub const $name: Errno = Errno($number);)*

            /// The symbol of `errno(3)`, or `None` for one that Sexton never meets.
            pub const fn symbol(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }

        /// The sentences of `errno(3)`.
        const SENTENCES: Words =
            Words { all: concat!($($text),*), each: &[$(($number, $text.len() as u8)),*] };
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such file or directory";
    ESRCH = 3, "No such process";
    EINTR = 4, "Interrupted system call";
    EIO = 5, "Input/output error";
    ENXIO = 6, "No such device or address";
    E2BIG = 7, "Argument list too long";
    ENOEXEC = 8, "Exec format error";
    EBADF = 9, "Bad file descriptor";
    ECHILD = 10, "No child processes";
    EAGAIN = 11, "Resource temporarily unavailable";
    ENOMEM = 12, "Cannot allocate memory";
    EACCES = 13, "Permission denied";
    EFAULT = 14, "Bad address";
    EBUSY = 16, "Device or resource busy";
    EEXIST = 17, "File exists";
    EXDEV = 18, "Invalid cross-device link";
    ENODEV = 19, "No such device";
    ENOTDIR = 20, "Not a directory";
    EISDIR = 21, "Is a directory";
    EINVAL = 22, "Invalid argument";
    ENFILE = 23, "Too many open files in system";
    EMFILE = 24, "Too many open files";
    ENOTTY = 25, "Inappropriate ioctl for device";
    ETXTBSY = 26, "Text file busy";
    EFBIG = 27, "File too large";
    ENOSPC = 28, "No space left on device";
    EROFS = 30, "Read-only file system";
    EPIPE = 32, "Broken pipe";
    ERANGE = 34, "Numerical result out of range";
    ENAMETOOLONG = 36, "File name too long";
    ENOSYS = 38, "Function not implemented";
    ENOTEMPTY = 39, "Directory not empty";
    ELOOP = 40, "Too many levels of symbolic links";
    ENODATA = 61, "No data available";
    EPROTO = 71, "Protocol error";
    EOVERFLOW = 75, "Value too large for defined data type";
    EMSGSIZE = 90, "Message too long";
    EOPNOTSUPP = 95, "Operation not supported";
    ENOPROTOOPT = 92, "Protocol not available";
    EPROTONOSUPPORT = 93, "Protocol not supported";
    EAFNOSUPPORT = 97, "Address family not supported by protocol";
    EADDRINUSE = 98, "Address already in use";
    EADDRNOTAVAIL = 99, "Cannot assign requested address";
    ENETDOWN = 100, "Network is down";
    ENETUNREACH = 101, "Network is unreachable";
    ECONNRESET = 104, "Connection reset by peer";
    ENOBUFS = 105, "No buffer space available";
    ETOOMANYREFS = 109, "Too many references: cannot splice";
    ETIMEDOUT = 110, "Connection timed out";
    ECONNREFUSED = 111, "Connection refused";
    ESTALE = 116, "Stale file handle";
    EDQUOT = 122, "Disk quota exceeded";
}

impl Errno {
    /// The sentence of `errno(3)`, or `None` for one that Sexton never meets.
    pub fn sentence(self) -> Option<&'static str> {
        SENTENCES.find(|number, _| i32::from(number) == self.0).map(|(_, sentence)| sentence)
    }

    /// Splits what the kernel returned into a value or an error number: the last 4095 values are errors.
    pub(crate) const fn check(ret: isize) -> Result<usize, Errno> {
        let value = ret.cast_unsigned();
        if value > usize::MAX - 4095 { Err(Errno(-(ret as i32))) } else { Ok(value) }
    }

    /// Whether the kernel does not have the call, or not in this form.
    pub const fn is_unsupported(self) -> bool {
        matches!(self, Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.symbol() {
            Some(symbol) => f.write_str(symbol),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl Show for Errno {
    fn show(&self, text: &mut Text) {
        match self.sentence() {
            Some(sentence) => text.add(sentence),
            None => text.add("errno ").add(self.0),
        };
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(self, f)
    }
}

/// The name of a system call. It is one word, so that an error is two, which every result of a call has room for.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Call(NonNull<c_char>);

// SAFETY: it points to a constant.
unsafe impl Send for Call {}
// SAFETY: as above.
unsafe impl Sync for Call {}

impl Call {
    const fn named(name: &'static CStr) -> Call {
        // SAFETY: a string is somewhere, and never at address 0.
        Call(unsafe { NonNull::new_unchecked(name.as_ptr().cast_mut()) })
    }

    /// The name.
    pub fn name(self) -> &'static CStr {
        // SAFETY: it was made from a string that lives for ever.
        unsafe { CStr::from_ptr(self.0.as_ptr()) }
    }
}

impl PartialEq for Call {
    fn eq(&self, other: &Call) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Call {}

impl Show for Call {
    fn show(&self, text: &mut Text) {
        self.name().to_bytes().show(text);
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(self, f)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(self, f)
    }
}

/// A refused system call; prints like strace: `pidfd_open(4711): No such process`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysError {
    /// The call's name.
    pub call: Call,
    /// Why it was refused.
    pub errno: Errno,
    /// The descriptor, process or signal that it was about, or `NOTHING`.
    about: i32,
}

/// No descriptor, process or signal has this number.
const NOTHING: i32 = i32::MIN;

impl SysError {
    /// An error of `call` about `number`.
    pub(crate) const fn about(call: &'static CStr, number: i32, errno: Errno) -> SysError {
        SysError { call: Call::named(call), errno, about: number }
    }

    /// An error of `call`.
    pub const fn of(call: &'static CStr, errno: Errno) -> SysError {
        SysError::about(call, NOTHING, errno)
    }
}

impl Show for SysError {
    fn show(&self, text: &mut Text) {
        text.add(self.call);
        if self.about != NOTHING {
            text.add("(").add(self.about).add(")");
        }
        text.add(": ").add(self.errno);
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(self, f)
    }
}

impl core::error::Error for SysError {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn each_number_has_its_own_sentence() {
        assert_eq!(SENTENCES.each.iter().map(|(_, len)| usize::from(*len)).sum::<usize>(), SENTENCES.all.len());
        for (errno, sentence) in [
            (Errno::EPERM, "Operation not permitted"),
            (Errno::ENOTDIR, "Not a directory"),
            (Errno::EDQUOT, "Disk quota exceeded"),
        ] {
            assert_eq!(errno.to_string(), sentence);
        }
        assert_eq!(Errno(4000).to_string(), "errno 4000");
    }
}
