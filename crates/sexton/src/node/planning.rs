//! What every part of the node does with a plan before anything of it is carried out.

use sexton_plan::check::{Broken, check};
use sexton_plan::plan::{Action, Plan, Policies, plan};
use sexton_plan::world::World;

use crate::refusal::{Kind, Refusal};

/// What is planned for `world`; nothing, where that breaks a rule.
pub fn sound(world: &World, policies: &Policies) -> Plan {
    let planned = plan(world, policies, 0);
    match check(&planned, world, policies) {
        Ok(()) => planned,
        Err(error) => {
            tracing::error!(%error, "a plan broke a rule, and nothing of it is done");
            Plan { left: planned.left, ..Plan::default() }
        }
    }
}

/// Those actions of the present plan for `world` that are `wanted`, which obey the rules without the others too.
///
/// # Errors
/// One of `wanted` is not planned any more, or they break a rule.
pub fn exactly(wanted: &[Action], world: &World, policies: &Policies) -> Result<Vec<Action>, Refusal> {
    let mut present = sound(world, policies);
    holds(&present, wanted)?;
    present.actions.retain(|action| wanted.contains(action));
    let broken = |error: Broken| Refusal::new(Kind::WrongState, format!("nothing of this plan can be done: {error}"));
    check(&present, world, policies).map_err(broken)?;
    Ok(present.actions)
}

/// Whether all that is `wanted` is in the `present` plan.
///
/// # Errors
/// One is not: the facts changed.
pub fn holds(present: &Plan, wanted: &[Action]) -> Result<(), Refusal> {
    let moved = wanted.iter().find(|action| !present.actions.contains(action));
    moved.map_or(Ok(()), |action| Err(changed(action)))
}

/// The refusal of a plan that holds `action`, which is not planned any more.
pub fn changed(action: &Action) -> Refusal {
    let about = match action {
        Action::WriteBack { watch, id, identity, .. } | Action::Terminate { watch, id, identity, .. } => {
            format!("`{watch}/{id}`, process {}", identity.pid)
        }
        Action::Adopt { instance, .. } | Action::FinishStop { instance, .. } | Action::Close { instance, .. } => {
            format!("instance `{instance}`")
        }
        Action::Release { key, .. } | Action::ReleaseTable { table: key, .. } => format!("`{}`", key.escape_default()),
        Action::RepairSlot { index, .. } | Action::ReleaseSlot { index, .. } | Action::MakeSlot { index, .. } => {
            format!("network slot {index}")
        }
    };
    Refusal::new(Kind::WrongState, format!("the facts changed: the plan for {about} is not the present one"))
}
