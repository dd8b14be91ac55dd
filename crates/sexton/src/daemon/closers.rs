//! What was opened is closed in the reverse order, whatever fails on the way.

use std::pin::Pin;

/// How one thing is closed.
type Close<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// What is open, in the order of its opening.
#[derive(Default)]
pub(super) struct Closers<'a>(Vec<(&'static str, Close<'a>)>);

impl<'a> Closers<'a> {
    /// Notes that `what` is open, and how it is closed. Nothing of `close` runs before its turn.
    pub(super) fn opened(&mut self, what: &'static str, close: impl Future<Output = Result<(), String>> + Send + 'a) {
        self.0.push((what, Box::pin(close)));
    }

    /// Closes everything, the last opened first. One that fails keeps none of the others from being closed.
    ///
    /// # Errors
    /// All that failed, each with what it was, in the order of closing.
    pub(super) async fn close(self) -> Result<(), String> {
        let mut failed = Vec::new();
        for (what, close) in self.0.into_iter().rev() {
            if let Err(error) = close.await {
                failed.push(format!("{what}: {error}"));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn what_was_opened_last_is_closed_first_and_every_error_is_kept() {
        let closed = Mutex::new(Vec::new());
        let close = |what: &'static str, result: Result<(), String>| {
            let closed = &closed;
            async move {
                closed.lock().expect("one thread").push(what);
                result
            }
        };
        let mut closers = Closers::default();
        closers.opened("cgroup", close("cgroup", Err("busy".to_owned())));
        closers.opened("slots", close("slots", Ok(())));
        closers.opened("socket", close("socket", Err("gone".to_owned())));
        assert!(closed.lock().expect("one thread").is_empty(), "nothing runs before its turn");
        assert_eq!(closers.close().await, Err("socket: gone; cgroup: busy".to_owned()));
        assert_eq!(*closed.lock().expect("one thread"), ["socket", "slots", "cgroup"]);
    }

    #[tokio::test]
    async fn nothing_open_is_nothing_to_close() {
        assert_eq!(Closers::default().close().await, Ok(()));
    }
}
