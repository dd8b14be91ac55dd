//! The first instruction of a program that has no C library, and what the kernel left on its stack.

use crate::strings::Strings;

/// What the program was started with.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The command line; `argv[0]` may be missing.
    pub args: Strings<'static>,
    /// The environment.
    pub env: Strings<'static>,
}

/// Reads what `execve(2)` left at the initial stack pointer.
///
/// # Safety
/// `stack` is the value that the stack pointer had at the program's first instruction.
pub unsafe fn read_stack(stack: *const usize) -> Start {
    // SAFETY: the System V ABI puts argc there, then argv with its null, then envp with its null; all of it stays
    // in place for the life of the process, and nothing here writes to it.
    let args = unsafe { Strings::from_raw(stack.wrapping_add(1).cast()) };
    // SAFETY: as above; the environment follows the null that closes argv.
    let env = unsafe { Strings::from_raw(stack.wrapping_add(args.len() + 2).cast()) };
    Start { args, env }
}

/// Copies byte after byte, the first one first.
///
/// # Safety
/// As `memcpy(3)`, but `to` may begin before `from` and reach into it.
pub unsafe fn copy_up(to: *mut u8, from: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for `len` bytes on both sides; the direction flag is clear by the ABI.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for at in 0..len {
        // SAFETY: the caller vouches for `len` bytes on both sides.
        unsafe { copy_byte(to, from, at) };
    }
}

/// Copies byte after byte, the last one first.
///
/// # Safety
/// As `memcpy(3)`, but `to` may begin within `from`.
pub unsafe fn copy_down(to: *mut u8, from: *const u8, len: usize) {
    for at in (0..len).rev() {
        // SAFETY: the caller vouches for `len` bytes on both sides.
        unsafe { copy_byte(to, from, at) };
    }
}

/// Copies one byte. Volatile, or else the loops above would be compiled into calls of the functions that they are.
///
/// # Safety
/// Byte `at` may be read from `from` and written to `to`.
unsafe fn copy_byte(to: *mut u8, from: *const u8, at: usize) {
    // SAFETY: the caller vouches for it.
    let byte = unsafe { from.wrapping_add(at).read_volatile() };
    // SAFETY: the caller vouches for it.
    unsafe { to.wrapping_add(at).write_volatile(byte) };
}

/// Writes `byte` `len` times.
///
/// # Safety
/// As `memset(3)`.
pub unsafe fn fill(to: *mut u8, byte: u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for `len` bytes; the direction flag is clear by the ABI.
    unsafe {
        core::arch::asm!(
            "rep stosb",
            inout("rcx") len => _, inout("rdi") to => _, in("al") byte,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for at in 0..len {
        // SAFETY: the caller vouches for `len` bytes.
        unsafe { to.wrapping_add(at).write_volatile(byte) };
    }
}

/// Less than, equal to, or greater than 0, as the first difference is.
///
/// # Safety
/// As `memcmp(3)`.
pub unsafe fn compare(a: *const u8, b: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: the caller vouches for `len` bytes on both sides.
        let left = unsafe { a.wrapping_add(at).read_volatile() };
        // SAFETY: as above.
        let right = unsafe { b.wrapping_add(at).read_volatile() };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

/// How many bytes come before the first zero.
///
/// # Safety
/// As `strlen(3)`.
pub unsafe fn length(string: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller vouches for every byte up to the zero, where this loop ends.
    while unsafe { string.wrapping_add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

/// Makes the crate a program without std and libc whose first function is `$main: fn(Start) -> i32`.
///
/// The macro is here, and not spelt out in the program, because an entry point cannot be written without `unsafe`,
/// which lives in this crate alone.
#[macro_export]
macro_rules! program {
    ($main:path) => {
        #[cfg(target_arch = "x86_64")]
        ::core::arch::global_asm!(
            ".globl _start",
            "_start:",
            "xor ebp, ebp",
            "mov rdi, rsp",
            "and rsp, -16",
            "call {begin}",
            "ud2",
            begin = sym __begin,
        );
        #[cfg(target_arch = "aarch64")]
        ::core::arch::global_asm!(
            ".globl _start",
            "_start:",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, sp",
            "bl {begin}",
            "brk #1",
            begin = sym __begin,
        );

        /// Called once by `_start`.
        unsafe extern "C" fn __begin(stack: *const usize) -> ! {
            // SAFETY: `_start` hands over the stack pointer as the kernel set it.
            let start = unsafe { $crate::entry::read_stack(stack) };
            $crate::process::exit($main(start))
        }

        /// A panic is a broken invariant: it is told as `SIGABRT` would be, for there is no unwinder here.
        #[panic_handler]
        fn __panic(_: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::process::exit(134)
        }

        // What the compiler calls by name, and a C library would provide.

        #[unsafe(no_mangle)]
        unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
            // SAFETY: the contract of memcpy(3).
            unsafe { $crate::entry::copy_up(to, from, len) };
            to
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
            if to.addr().wrapping_sub(from.addr()) < len {
                // SAFETY: the contract of memmove(3); the target begins within the source.
                unsafe { $crate::entry::copy_down(to, from, len) };
            } else {
                // SAFETY: the contract of memmove(3); the target does not begin within the source.
                unsafe { $crate::entry::copy_up(to, from, len) };
            }
            to
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
            // SAFETY: the contract of memset(3), which takes the low byte.
            unsafe { $crate::entry::fill(to, byte as u8, len) };
            to
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
            // SAFETY: the contract of memcmp(3).
            unsafe { $crate::entry::compare(a, b, len) }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
            // SAFETY: the contract of bcmp(3).
            unsafe { $crate::entry::compare(a, b, len) }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn strlen(string: *const u8) -> usize {
            // SAFETY: the contract of strlen(3).
            unsafe { $crate::entry::length(string) }
        }

        /// Named by unoptimised code; never called, for a panic aborts.
        #[unsafe(no_mangle)]
        extern "C" fn rust_eh_personality() {}

        /// Named by unoptimised code; never called, for a panic aborts.
        #[unsafe(no_mangle)]
        extern "C" fn _Unwind_Resume() {}
    };
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn what_a_c_library_would_provide_does_what_it_says() {
        for len in 0..70 {
            let source: Vec<u8> = (0..len).map(|byte: u8| byte.wrapping_mul(37)).collect();
            let mut target = std::vec![0xee; source.len() + 1];
            // SAFETY: `len` bytes lie on both sides.
            unsafe { copy_up(target.as_mut_ptr(), source.as_ptr(), source.len()) };
            assert_eq!(target.split_last(), Some((&0xee, &source[..])));
            let mut moved = source.clone();
            moved.push(0);
            // SAFETY: `len` bytes lie on both sides, which overlap by all but one.
            unsafe { copy_down(moved.as_mut_ptr().wrapping_add(1), moved.as_ptr(), source.len()) };
            assert_eq!(&moved[1..], source);
            // SAFETY: `len` bytes lie there.
            unsafe { fill(target.as_mut_ptr(), 7, source.len()) };
            assert!(target.split_last().is_some_and(|(end, rest)| *end == 0xee && rest.iter().all(|&byte| byte == 7)));
        }
        // SAFETY: three bytes lie on both sides.
        assert!(unsafe { compare(b"abc".as_ptr(), b"abd".as_ptr(), 3) } < 0);
        // SAFETY: three bytes lie on both sides.
        assert!(unsafe { compare(b"\xff__".as_ptr(), b"a__".as_ptr(), 3) } > 0);
        // SAFETY: as many bytes lie on both sides as are told.
        assert_eq!(unsafe { compare(b"abc".as_ptr(), b"abd".as_ptr(), 2) }, 0);
        // SAFETY: the string ends in a zero.
        assert_eq!(unsafe { length(c"four".as_ptr().cast()) }, 4);
    }
}
