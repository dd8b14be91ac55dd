//! The polite part of a stop.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::adapter::{Said, Sentence, Step};
use crate::chain::chain;

/// The polite part of a stop: what is still to be done, and how long what was done is waited for.
#[derive(Debug, Default)]
pub(super) struct Asking {
    pub(super) steps: VecDeque<Step>,
    /// What the rest is asked with that the main process leaves behind.
    pub(super) signal: u8,
    /// Whether the main process lived, and was asked alone.
    pub(super) main: bool,
    /// When the present step is over; none for the end of the grace.
    pub(super) until: Option<Instant>,
    /// Tells that what was said is over, or was never heard.
    pub(super) heard: Option<oneshot::Receiver<()>>,
}

impl Asking {
    /// Nothing more is said: the main process is over, and what it left has been asked.
    pub(super) fn rest(&mut self) {
        (self.steps, self.until, self.heard, self.main) = (VecDeque::new(), None, None, false);
    }
}

/// Says `sentence` to `name` beside whatever goes on; the answer comes only where nothing is to be waited for.
pub(super) fn say(name: String, sentence: Sentence, limit: Duration) -> oneshot::Receiver<()> {
    let (told, news) = oneshot::channel();
    tokio::spawn(async move {
        match sentence.say(limit).await {
            Ok(Said::Wait) => {}
            Ok(Said::Done) => drop(told.send(())),
            Err(error) => {
                tracing::info!(name, socket = %sentence.socket().display(), error = chain(&error), "runtime not asked");
                let _heard = told.send(());
            }
        }
    });
    news
}

/// CANCEL: may be dropped and asked again.
pub(super) async fn nothing_to_wait_for(heard: &mut Option<oneshot::Receiver<()>>) {
    if let Some(news) = heard {
        let told = news.await;
        *heard = None;
        if told.is_ok() {
            return;
        }
    }
    std::future::pending().await
}
