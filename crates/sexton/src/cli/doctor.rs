//! `doctor`: what this kernel and host allow, and what is wrong.

use serde_json::{Value, json};
use sexton_core::domain::Subtree;
use sexton_core::{features, proc};

use super::failure::{Failure, exit};
use super::member::Member as _;
use super::{Context, out};
use crate::node::chain;

/// Asks the daemon; where there is none, looks for itself.
pub async fn run(context: &Context) -> Result<u8, Failure> {
    let answer = match context.client() {
        Ok(client) => client.get("/v1/doctor").await,
        Err(failure) => Err(failure),
    };
    match answer {
        Ok(told) => {
            let bad = problems(&told);
            context.out.document(&told, text)?;
            Ok(if bad == 0 { exit::DONE } else { exit::FAILED })
        }
        Err(failure) if failure.exit == exit::UNREACHABLE || failure.exit == exit::NOT_FOUND => {
            context.out.document(&local(context), text)?;
            Err(failure)
        }
        Err(failure) => Err(failure),
    }
}

/// What can be seen without a daemon.
fn local(context: &Context) -> Value {
    let check = |name: &str, ok: bool, told: String| json!({"name": name, "ok": ok, "detail": told});
    let here = proc::here();
    let cgroup = Subtree::find(&context.settings.cgroup);
    let ledger = match &here {
        Ok(here) => sexton_ledger::check(&context.settings.state_dir, &here.boot_id).map_err(|error| chain(&error)),
        Err(_) => Err("not looked at without a boot id".to_owned()),
    };
    let pidfs = features::pidfs();
    let told = |result: Result<String, String>| result.unwrap_or_else(|error| error);
    let checks = vec![
        check("proc", here.is_ok(), told(here.map(|here| format!("boot {}", here.boot_id)).map_err(|e| e.to_string()))),
        check(
            "pidfs",
            pidfs,
            if pidfs { "64-bit identities" } else { "identities are weak: Linux 6.9 has pidfs" }.to_owned(),
        ),
        check(
            "cgroup2",
            cgroup.is_ok(),
            told(cgroup.map(|subtree| subtree.path().to_owned()).map_err(|e| e.to_string())),
        ),
        check("ledger", ledger.is_ok(), told(ledger.map(|()| "sound, or absent".to_owned()))),
    ];
    json!({"daemon": false, "checks": checks})
}

/// How many things are wrong.
fn problems(told: &Value) -> usize {
    let wrong = told.at("problems").as_array().map_or(0, Vec::len);
    let checks = told.at("checks").as_array().into_iter().flatten();
    wrong + checks.filter(|check| check.at("ok") == false && check.at("required") != false).count()
}

fn text(told: &Value) -> String {
    let mut text = String::new();
    let Some(members) = told.as_object() else { return out::members(told) };
    for (key, value) in members {
        match value.as_array() {
            Some(items) if items.iter().any(Value::is_object) => {
                text.push_str(&format!("{}:\n{}", out::escape(key), out::objects(items)));
            }
            Some(_) | None => text.push_str(&out::members(&json!({ key.as_str(): value }))),
        }
    }
    text
}
