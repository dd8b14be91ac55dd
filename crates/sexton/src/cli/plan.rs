//! `plan`, `apply`, `reconcile`: what the reconciler would do, exactly that, and now.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use clap::Args;
use serde_json::{Value, json};

use super::client::{Ask, Client};
use super::failure::{Failure, exit};
use super::member::Member as _;
use super::{Context, out};

/// `sexton apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// A plan as `sexton plan -o json` printed it, `-` for stdin [default: the present one].
    #[arg(long, value_name = "FILE")]
    plan: Option<String>,
}

/// Prints the present plan.
pub async fn show(context: &Context) -> Result<u8, Failure> {
    let plan = present(&context.client()?).await?;
    context.out.document(&plan, text)?;
    Ok(exit::DONE)
}

/// Applies a plan.
pub async fn apply(context: &Context, args: &ApplyArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let plan = match &args.plan {
        Some(file) => read(file)?,
        None => present(&client).await?,
    };
    let done = client.send(&Ask::post("/v1/apply", plan)).await?.into_body().map_err(|failure| match failure.exit {
        exit::REFUSED => {
            failure.hint("the facts changed, and nothing was done; `sexton plan` shows them as they are now")
        }
        _ => failure,
    })?;
    context.out.document(&done, |done| if done.at("actions").is_array() { text(done) } else { out::members(done) })?;
    Ok(exit::DONE)
}

/// The present plan. It takes a look at the host, and perhaps at a file system that is slow to answer.
async fn present(client: &Client) -> Result<Value, Failure> {
    client.ask(&Ask::get("/v1/plan")).await
}

/// Runs a pass of the reconciler.
pub async fn reconcile(context: &Context) -> Result<u8, Failure> {
    let done = context.client()?.ask(&Ask::post("/v1/reconcile", json!({}))).await?;
    context.out.document(&done, out::members)?;
    Ok(exit::DONE)
}

fn read(file: &str) -> Result<Value, Failure> {
    let mut text = String::new();
    let result = match file {
        "-" => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        file => std::fs::read_to_string(Path::new(file)).map(|read| text = read),
    };
    result.map_err(|error| {
        Failure::new(exit::FAILED, format!("could not read the plan `{file}`: {error}"))
            .hint("`sexton plan -o json > FILE` makes one")
    })?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(exit::USAGE, format!("`{file}` is no plan: {error}"))
            .hint("`sexton plan -o json > FILE` makes one")
    })
}

/// One line for each action and for each thing that is let alone, with its proof.
fn text(plan: &Value) -> String {
    let mut text = format!("generation {}\n", out::escape(&out::word(plan.at("generation"))));
    let items = |key: &str| plan.at(key).as_array().cloned().unwrap_or_default();
    let (actions, left) = (items("actions"), items("left"));
    if actions.is_empty() {
        text.push_str("nothing to do\n");
    }
    for action in &actions {
        let _always = writeln!(text, "do    {}", sentence(action));
    }
    for thing in &left {
        let _always = writeln!(text, "leave {}", sentence(thing));
    }
    text
}

/// An object as `key=value` words, nested ones in parentheses.
fn sentence(value: &Value) -> String {
    let Value::Object(members) = value else { return out::escape(&out::word(value)) };
    let told = members.iter().filter(|(_, value)| !value.is_null());
    let words = told.map(|(key, value)| match value {
        Value::Object(_) => format!("{}=({})", out::escape(key), sentence(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            format!("{}={}", out::escape(key), out::escape(&out::word(value)))
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_proof() {
        let plan = json!({
            "generation": 4,
            "actions": [{"act": "terminate", "identity": {"pid": 7, "pidfs_ino": 9}, "why": null}],
            "left": [{"pid": 8, "reason": "not\nproven"}],
        });
        let expected =
            "generation 4\ndo    act=terminate identity=(pid=7 pidfs_ino=9)\nleave pid=8 reason=not\\nproven\n";
        assert_eq!(text(&plan), expected);
        assert_eq!(text(&json!({"generation": 4, "actions": [], "left": []})), "generation 4\nnothing to do\n");
    }
}
