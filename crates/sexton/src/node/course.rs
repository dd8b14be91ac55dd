//! One instance's life, as one task that owns its row: nobody else changes it.
//!
//! ```text
//!                 ┌──────────────── restart, start ───────────────┐
//!                 ▼                                               │
//!   new ──► start ──► guard ──► end ──► settle ──► rest ──► removed
//!             │         ▲        ▲                   ▲
//!             ├─ failed ┼────────┼───────────────────┘
//!             └─ withdrawn (a new name that is to be asked for again)
//!   known ──────────────┴────────┤   doubt (unverified)
//! ```

use serde_json::json;

use super::life::{Answer, Command, Life, Next, called};
use super::process::Process;
use super::request::{Caller, IdempotencyKey};

impl Life {
    /// Lives until it is removed from the list, or the daemon ends.
    pub async fn run(mut self, first: Next) {
        let mut next = first;
        let refused = loop {
            // Most lives are guarded or at rest nearly all of the time: what passes is boxed, so that a task is small.
            next = match next {
                Next::Intend { key, caller, reply, permit } => {
                    let next = Box::pin(self.intend(key, &caller, reply)).await;
                    drop(permit);
                    next
                }
                Next::TakeCustody { taken, caller, reply } => Box::pin(self.take_custody(taken, &caller, reply)).await,
                Next::Start(reply) => Box::pin(self.start(reply)).await,
                Next::Guard(process) => self.guard(process).await,
                Next::End(process) => Box::pin(self.end(process)).await,
                Next::RollBack(roll_back) => Box::pin(self.roll_back(roll_back)).await,
                Next::Close => Box::pin(self.close()).await,
                Next::GiveUpAdoption => Box::pin(self.give_up_adoption()).await,
                Next::Doubt => Box::pin(self.doubt()).await,
                Next::Release => {
                    // Before anybody is heard: most often it went with the boot, and whoever resumes it need not wait.
                    Box::pin(self.release_again()).await;
                    Next::Rest
                }
                Next::Rest => self.rest().await,
                Next::Removed => break None,
                Next::Withdrawn(refusal) => break Some(refusal),
            };
        };
        // The driver lets go of the name before anybody can see that it is free.
        let _heard = self.removed.send(self.entry.name.clone());
        self.published.send_replace(None);
        // Whoever asked in the meantime asked for what is gone.
        self.mailbox.close();
        while let Some(command) = self.mailbox.recv().await {
            let is_same_request = matches!(*command, Command::Start { key: Some(_), .. });
            let refusal = refused.clone().filter(|_| is_same_request);
            command.refuse(refusal.unwrap_or_else(|| super::driver::unknown(&self.entry.name)));
        }
    }

    /// Begins a new instance.
    async fn intend(&mut self, key: Option<IdempotencyKey>, caller: &Caller, reply: Answer) -> Next {
        let next = (*self.entry).clone();
        let asked = vec![called(&next, "create", caller)];
        match self.record_intent(next, asked, json!({}), key).await {
            Ok(()) => Next::Start(Some(reply)),
            Err(refusal) => {
                let _heard = reply.send(Err(refusal));
                Next::Removed
            }
        }
    }

    /// Watches a main process until it ends or is asked to.
    async fn guard(&mut self, process: Process) -> Next {
        self.bound_logs();
        loop {
            tokio::select! {
                () = process.over() => return Next::End(Some(process)),
                command = self.mailbox.recv() => {
                    if Box::pin(self.obey(command, Some(&process))).await {
                        return Next::End(Some(process));
                    }
                }
            }
        }
    }
}
