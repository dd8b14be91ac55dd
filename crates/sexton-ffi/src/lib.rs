//! The C ABI of `sexton-core`: `bindings/c/sexton.h` is its other half, and a test keeps the two together.
//!
//! Nothing unwinds over the boundary: a panic becomes `SEXTON_PANICKED`. For that the library is built with the
//! profile `ffi`, which unwinds; with `panic = "abort"` there would be nothing to catch.
//!
//! What a pointer must be is the same everywhere: null, which is refused, or what the function that makes such a thing
//! returned and nobody has given back yet. Texts end with a NUL.

#![allow(unsafe_code, reason = "a C ABI reads and writes through its caller's pointers")]
#![allow(unreachable_pub, reason = "the functions are reached through their symbols")]

mod gate;
mod log;
mod process;
mod reaper;
mod sweep;

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a function answers, with the numbers of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Code {
    Ok = 0,
    Gone = -1,
    NotAChild = -2,
    Unproven = -3,
    Unsupported = -4,
    Stopped = -5,
    BadArgument = -6,
    Failed = -7,
    Panicked = -8,
    NothingYet = -9,
    TooSmall = -10,
    Draining = -11,
}

/// The caller's own pointer, handed back with each call.
pub(crate) struct User(pub *mut c_void);

// SAFETY: this library never looks through it; the header says that it goes to other threads.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

impl User {
    pub(crate) const fn pointer(&self) -> *mut c_void {
        self.0
    }
}

/// A refusal: its code, and a sentence for `sexton_error`.
pub(crate) struct Refused(pub Code, pub String);

impl Refused {
    /// `error` and its sources in one line.
    fn because(code: Code, error: &dyn std::error::Error) -> Refused {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        Refused(code, text)
    }

    fn null() -> Refused {
        Refused(Code::BadArgument, "a null pointer where something is needed".to_owned())
    }
}

thread_local! {
    static ERROR: RefCell<CString> = RefCell::default();
}

fn set_error(text: String) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // A thread that is just ending has no place for it any more.
    let _kept = ERROR.try_with(|error| error.replace(text));
}

/// Runs the inside of a function of the ABI; its code, and the message where there is one.
pub(crate) fn guard(inside: impl FnOnce() -> Result<(), Refused>) -> c_int {
    match catch_unwind(AssertUnwindSafe(inside)) {
        Ok(Ok(())) => Code::Ok as c_int,
        Ok(Err(Refused(code, text))) => {
            set_error(text);
            code as c_int
        }
        Err(_) => {
            set_error("a defect in this library: it panicked".to_owned());
            Code::Panicked as c_int
        }
    }
}

/// As [`guard`], for functions that answer with nothing.
pub(crate) fn guard_quietly(inside: impl FnOnce()) {
    let _caught = catch_unwind(AssertUnwindSafe(inside));
}

/// What `pointer` points to.
///
/// # Safety
/// Null, or a live thing that this library made, not given back for as long as the result is used.
pub(crate) unsafe fn borrowed<'a, T>(pointer: *const T) -> Result<&'a T, Refused> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(Refused::null)
}

/// Puts `value` where the caller asked for it.
///
/// # Safety
/// `place` is null, or a place for a `T` that the caller may write to.
pub(crate) unsafe fn put<T>(place: *mut T, value: T) -> Result<(), Refused> {
    if place.is_null() {
        return Err(Refused::null());
    }
    // SAFETY: the caller's promise.
    unsafe { place.write(value) };
    Ok(())
}

/// Takes back what this library made.
///
/// # Safety
/// Null, or a live thing that this library made by `Box::into_raw`, which nobody uses from here on.
pub(crate) unsafe fn take_back<T>(pointer: *mut T) -> Option<Box<T>> {
    // SAFETY: the caller's promise.
    (!pointer.is_null()).then(|| unsafe { Box::from_raw(pointer) })
}

/// The text at `text`.
///
/// # Safety
/// Null, or a text that ends with a NUL and stays as it is while the result is used.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<&'a str, Refused> {
    if text.is_null() {
        return Err(Refused::null());
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Refused(Code::BadArgument, "a text that is not UTF-8".to_owned()))
}

/// Copies `text` and a NUL into the caller's buffer of `room` bytes.
///
/// # Safety
/// `buffer` is null, or `room` bytes that the caller may write to.
pub(crate) unsafe fn put_text(buffer: *mut c_char, room: usize, text: &str) -> Result<(), Refused> {
    if buffer.is_null() {
        return Err(Refused::null());
    }
    if text.len() >= room {
        return Err(Refused(Code::TooSmall, format!("the buffer needs {} bytes", text.len() + 1)));
    }
    // SAFETY: the text is shorter than the buffer, by the check above; the two cannot overlap.
    unsafe { text.as_ptr().cast::<c_char>().copy_to_nonoverlapping(buffer, text.len()) };
    // SAFETY: as above; the last byte is inside.
    unsafe { buffer.wrapping_add(text.len()).write(0) };
    Ok(())
}

/// The version of this library.
#[unsafe(no_mangle)]
pub extern "C" fn sexton_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

/// What the last refusal on this thread was about; valid until the next one.
#[unsafe(no_mangle)]
pub extern "C" fn sexton_error() -> *const c_char {
    ERROR.try_with(|error| error.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_code_and_a_sentence() {
        assert_eq!(guard(|| panic!("as the test wants it")), Code::Panicked as c_int);
        // SAFETY: the text lives until the next refusal on this thread.
        let text = unsafe { CStr::from_ptr(sexton_error()) };
        assert!(text.to_str().unwrap().contains("panicked"));
    }
}
