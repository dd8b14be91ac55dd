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

        /// Named by unoptimised code; never called, for a panic aborts.
        #[unsafe(no_mangle)]
        extern "C" fn rust_eh_personality() {}

        /// Named by unoptimised code; never called, for a panic aborts.
        #[unsafe(no_mangle)]
        extern "C" fn _Unwind_Resume() {}
    };
}
