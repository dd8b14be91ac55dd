//! `doctor`: what this kernel and host allow, and what is wrong; told by the daemon, or looked for here without one.

use serde_json::Value;

use super::failure::{Failure, exit};
use super::member::Member as _;
use super::{Context, out};
use crate::doctor::{self, Check, Grade, Report};

/// Asks the daemon; where there is none, looks at the host.
pub async fn run(context: &Context) -> Result<u8, Failure> {
    let report = match context.client()?.get("/v1/doctor").await {
        Err(failure) if failure.exit == exit::UNREACHABLE => local(context, &failure)?,
        told => told?,
    };
    context.out.document(&report, text)?;
    Ok(if report.at("ok") == false { exit::FAILED } else { exit::DONE })
}

/// What can be seen without a daemon. That there is none is no fault of the host.
fn local(context: &Context, absence: &Failure) -> Result<Value, Failure> {
    let mut checks = doctor::examine(&context.settings);
    checks.push(Check {
        name: "daemon".to_owned(),
        ok: true,
        grade: Grade::Warn,
        detail: absence.message.clone().unwrap_or_default(),
        hint: absence.hint.clone(),
    });
    serde_json::to_value(Report::new(checks))
        .map_err(|error| Failure::new(exit::FAILED, format!("could not write the report: {error}")))
}

/// The checks, and then what to do about those that are not as they should be.
fn text(report: &Value) -> String {
    let checks = report.at("checks").as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = checks.iter().map(|check| ["name", "grade", "detail"].map(|key| out::word(check.at(key))).to_vec());
    let mut text = out::table(&["CHECK", "GRADE", "FOUND"], rows.collect());
    for check in checks.iter().filter(|check| check.at("hint").is_string()) {
        text.push_str(&out::escape(&format!("hint: {}: {}", out::word(check.at("name")), out::word(check.at("hint")))));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hints_stand_behind_the_checks() {
        let report = json!({"ok": false, "checks": [
            {"name": "kernel", "grade": "ok", "detail": "Linux 6.18", "hint": null},
            {"name": "ledger", "grade": "fail", "detail": "full\x1b", "hint": "make room"},
        ]});
        let expected =
            "CHECK   GRADE  FOUND\nkernel  ok     Linux 6.18\nledger  fail   full\\x1b\nhint: ledger: make room\n";
        assert_eq!(text(&report), expected);
    }
}
