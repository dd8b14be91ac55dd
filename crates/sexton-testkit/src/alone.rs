//! A network and a mount namespace of a test's own.

use std::{fs, thread};

use sexton_sys::mount::{self, MountKind};
use sexton_sys::pidfd;

/// Runs `test` on a thread in a network namespace of its own, with an empty `/run`; what it starts lives there too, and
/// what it leaves of either ends with it. Tells why that is not possible here, and then has run nothing.
///
/// # Errors
/// The kernel refused a namespace.
pub fn alone(test: impl FnOnce() + Send) -> Result<(), String> {
    let name = thread::current().name().unwrap_or("a test").to_owned();
    thread::scope(|scope| {
        let body = || {
            let namespaces = mount::unshare_mounts().and_then(|()| sexton_sys::net::unshare());
            namespaces.map_err(|error| format!("no namespaces of its own: {error}"))?;
            mount::mount(MountKind::Private, c"/").map_err(|error| error.to_string())?;
            mount::mount(MountKind::Tmpfs, c"/run").map_err(|error| error.to_string())?;
            test();
            Ok(())
        };
        let thread = thread::Builder::new().name(name).spawn_scoped(scope, body).expect("a thread");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether the kernel mounts a pidfd, without which it pins no exit code (Linux 6.15): tried on a file of one's own.
pub fn pidfds_can_be_mounted() -> bool {
    let mut can = false;
    let try_it = || {
        fs::write("/run/tried", "").expect("an empty directory");
        let me = pidfd::open(std::process::id().cast_signed()).expect("own process");
        can = mount::attach(me.raw(), c"/run/tried").is_ok();
    };
    alone(try_it).is_ok() && can
}
