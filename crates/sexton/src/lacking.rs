//! What a host must have.

use sexton_core::features;

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
