//! `boot-check`: settles the previous boot's instances, without a daemon.

use jiff::Timestamp;
use serde_json::json;
use sexton_core::proc;
use sexton_ledger::BootCheck;
use sexton_plan::id::NodeId;

use super::Context;
use super::failure::{Failure, exit};
use super::ledger::open_failure;

/// Settles them, and prints how many.
pub fn check(context: &Context) -> Result<u8, Failure> {
    let here =
        proc::here().map_err(|error| Failure::new(exit::FAILED, format!("could not read the boot id: {error}")))?;
    let node: Option<NodeId> = context.settings.fleet.node.0.parse().ok();
    let check = BootCheck { boot_id: &here.boot_id, node: node.as_ref(), now: Timestamp::now };
    let settled =
        sexton_ledger::boot_check(&context.settings.state_dir, check).map_err(|error| open_failure(&error))?;
    context.out.document(&json!({"settled": settled.settled}), |_| format!("{}\n", settled.settled))?;
    Ok(exit::DONE)
}
