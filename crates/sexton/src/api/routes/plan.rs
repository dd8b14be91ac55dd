//! What the next pass would do, and doing exactly that.

use serde_json::Value;
use sexton_plan::plan::{Action, Plan};

use crate::api::answer::{Answer, json};
use crate::api::call::{Call, detached};
use crate::api::json::Fields;
use crate::node::planning::changed;
use crate::refusal::{Kind, Refusal};

pub(in crate::api) async fn show(call: Call) -> Result<Answer, Refusal> {
    Ok(json(200, &call.context.node.plan().await?))
}

/// Answers with what was done: the plan as it was given.
pub(in crate::api) async fn apply(mut call: Call) -> Result<Answer, Refusal> {
    let told = |error: serde_json::Error| Refusal::new(Kind::BadArgument, format!("the body is no plan: {error}"));
    let body = call.body.take().unwrap_or_default();
    // Read as a plan a list of its members would do, which is none.
    Fields::new(body.clone())?;
    let plan: Plan = serde_json::from_value(body.clone()).map_err(told)?;
    if let Some(action) = plan.actions.iter().zip(given(&body)).find_map(|(read, given)| is_other(read, given)) {
        return Err(changed(action));
    }
    let (node, caller, wanted) = (call.context.node.clone(), call.caller, plan.clone());
    detached(async move { node.apply(wanted, caller).await }).await??;
    Ok(json(200, &plan))
}

fn given(plan: &Value) -> &[Value] {
    plan.get("actions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// `read`, if it was given in other words than those in which it is shown: a strength is told and not read.
fn is_other<'a>(read: &'a Action, given: &Value) -> Option<&'a Action> {
    let shown = serde_json::to_value(read).ok();
    (shown.as_ref() != Some(given)).then_some(read)
}
