//! The small parent of other processes, in two uses of one program, `sexton-init`.
//!
//! As an image's entry point it runs one command, forwards signals to it, reaps whatever reparents to it, and ends as
//! the command did ([`init`]). As the keeper it does the same for the daemon's worker, and besides outlives it: it
//! holds the worker's listeners, records the exits of processes that the worker left behind, and replaces the worker
//! when it dies or is upgraded ([`turn`]). Built without the feature `keeper`, the program is an entry point alone.
//!
//! It has one thread and one loop, needs no allocator, and works without std and without a C library, because it must
//! still work when nothing else does. It never waits for or signals a process by number unless that process is its own
//! unreaped child.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

use sexton_sys::entry::Start;
use sexton_sys::strings::number;
use sexton_sys::text::Text;

mod args;
mod children;
mod clock;
mod connection;
mod init;
pub mod link;
mod pidmap;
mod records;
mod roster;
mod starts;
mod status;
mod store;
mod swap;
mod sweep;
mod text;
mod turn;
pub mod wire;
mod worker;

pub use turn::run;
pub use worker::{KeeperConfig, LOCKS};

/// A wrong command line of the keeper, or one for a program that is none (`sysexits.h`).
const USAGE: i32 = 64;

/// What `sexton-init` does; tells its exit code.
pub fn main(start: Start) -> i32 {
    if start.args.at(1) != Some(c"--keeper") {
        return init::run(start);
    }
    // All that makes the program for images: whatever nothing calls then is left out by the linker.
    if !cfg!(feature = "keeper") {
        return refuse(
            Text::new()
                .add(text::Shown(start.args.at(0).unwrap_or_default().to_bytes()))
                .add(" is built for images, without the keeper: put a whole one in its place, or remove it"),
        );
    }
    match read_config(start) {
        Some(config) => run(&config),
        None => {
            refuse(Text::new().add("usage: sexton-init --keeper --run-dir DIR [--lock-fd N]... -- /PROGRAM [ARG]..."))
        }
    }
}

/// Tells why nothing is kept, and the exit code.
fn refuse(why: &mut Text) -> i32 {
    text::say(text::STDERR, why);
    USAGE
}

/// Reads `--keeper --run-dir DIR [--lock-fd N]… -- /PROGRAM [ARG]…`.
fn read_config(start: Start) -> Option<KeeperConfig<'static>> {
    let mut args = start.args.skip(2);
    let mut run_dir = None;
    let mut lock_fds = [None; LOCKS];
    while let Some(flag) = args.at(0).filter(|flag| *flag != c"--") {
        let value = args.at(1)?;
        match flag.to_bytes() {
            b"--run-dir" => run_dir = Some(value),
            b"--lock-fd" => {
                let fd = number(value.to_bytes())?.try_into().ok().filter(|&fd| fd > 2)?;
                *lock_fds.iter_mut().find(|slot| slot.is_none())? = Some(fd);
            }
            _ => return None,
        }
        args = args.skip(2);
    }
    let args = args.skip(1);
    let program = args.at(0).filter(|program| program.to_bytes().starts_with(b"/"))?;
    Some(KeeperConfig { program, args, env: start.env, run_dir: run_dir?, lock_fds })
}
