//! What the next pass would do, and doing exactly that.

use sexton_plan::plan::Plan;

use crate::api::answer::{Answer, json};
use crate::api::call::{Call, detached};
use crate::refusal::{Kind, Refusal};

pub(in crate::api) async fn show(call: Call) -> Result<Answer, Refusal> {
    Ok(json(200, &call.context.node.plan().await?))
}

/// Answers with what was done: the plan as it was given.
pub(in crate::api) async fn apply(mut call: Call) -> Result<Answer, Refusal> {
    let told = |error: serde_json::Error| Refusal::new(Kind::BadArgument, format!("the body is no plan: {error}"));
    let plan: Plan = serde_json::from_value(call.body.take().unwrap_or_default()).map_err(told)?;
    let (node, caller, wanted) = (call.context.node.clone(), call.caller, plan.clone());
    detached(async move { node.apply(wanted, caller).await }).await??;
    Ok(json(200, &plan))
}
