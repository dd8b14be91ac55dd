//! The spec of an instance: from a body or a command line into the ledger's type, every rule checked here.

use std::collections::BTreeMap;

use serde_json::Value;
use sexton_ledger::entry::{Limits, Spec};
use sexton_plan::id::{Name, Word};
use sexton_plan::state::Restart;
use sexton_sys::signal::Signal;

use super::json::{Fields, bad_field};
use crate::config::{BUILT_IN_RUNTIMES, Settings};
use crate::node::request::NewInstance;
use crate::refusal::{Kind, Refusal};
use crate::signal_name;

/// The kernel refuses a longer argument or variable, its NUL included (`execve(2)`, `MAX_ARG_STRLEN`).
const STRING_MAX: usize = 32 * 4_096 - 1;

/// The kernel refuses a longer path, its NUL included (`PATH_MAX`).
const PATH_MAX: usize = 4_095;

/// Bytes in all labels' values together that one instance may carry; they are shown in every list.
const LABELS_MAX: usize = 16 * 1_024;

/// The fields of `POST /v1/instances`.
pub const FIELDS: &[&str] = &[
    "name",
    "argv",
    "env",
    "cwd",
    "user",
    "kind",
    "runtime",
    "labels",
    "grace",
    "stop_signal",
    "slot",
    "limits",
    "pidns",
    "restart",
];

/// Reads a body of `POST /v1/instances`.
///
/// # Errors
/// 400 that names the field and the rule.
pub fn new_instance(body: Value, settings: &Settings) -> Result<NewInstance, Refusal> {
    let mut fields = Fields::new(body)?;
    let name = fields.string("name")?.ok_or_else(|| bad_field("name", "is required"))?;
    let name: Name = name.parse().map_err(|error| bad_field("name", error))?;
    let mut limits = fields.object("limits")?;
    let runtime = runtime(fields.string("runtime")?, settings)?;
    let spec = Spec {
        argv: argv(fields.strings("argv")?)?,
        env: env(fields.text_map("env")?)?,
        cwd: fields.string("cwd")?.map(cwd).transpose()?,
        user: fields.string("user")?.map(user).transpose()?,
        kind: kind(fields.string("kind")?.as_deref().unwrap_or("sandbox"))?,
        labels: labels(fields.text_map("labels")?)?,
        grace: fields.duration("grace")?.unwrap_or_else(|| settings.default_grace(&runtime)),
        runtime,
        stop_signal: signal("stop_signal", fields.take("stop_signal"))?.unwrap_or(Signal::TERM.number()),
        slot: fields.fact("slot")?,
        limits: Limits { pids: limits.number("pids", 1)?, memory: limits.number("memory", 1)? },
        pidns: fields.fact("pidns")?,
        restart: restart(fields.string("restart")?)?,
    };
    limits.end("limits", &["pids", "memory"])?;
    fields.end("", FIELDS)?;
    Ok(NewInstance { name, spec })
}

fn argv(argv: Option<Vec<String>>) -> Result<Vec<String>, Refusal> {
    let argv = argv.ok_or_else(|| bad_field("argv", "is required"))?;
    match argv.first() {
        None => return Err(bad_field("argv", "must hold at least the program")),
        Some(program) if program.is_empty() => return Err(bad_field("argv", "the program must not be empty")),
        Some(_) => {}
    }
    for argument in &argv {
        plain("argv", argument)?;
    }
    Ok(argv)
}

fn plain(field: &str, text: &str) -> Result<(), Refusal> {
    if text.contains('\0') {
        return Err(bad_field(field, "must not hold a NUL"));
    }
    if text.len() > STRING_MAX {
        return Err(bad_field(field, format_args!("one string has more than {STRING_MAX} bytes")));
    }
    Ok(())
}

fn env(env: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    for (key, value) in &env {
        if key.is_empty() || key.contains('=') || key.contains('\0') {
            let told = format!("`{}` is no variable: not empty, no `=`, no NUL", key.escape_debug());
            return Err(bad_field("env", told));
        }
        plain("env", value)?;
        if key.len() + 1 + value.len() > STRING_MAX {
            return Err(bad_field("env", format_args!("one variable has more than {STRING_MAX} bytes")));
        }
    }
    Ok(env)
}

fn cwd(path: String) -> Result<String, Refusal> {
    if !path.starts_with('/') || path.contains('\0') || path.len() > PATH_MAX {
        return Err(bad_field("cwd", format_args!("must be an absolute path of at most {PATH_MAX} bytes without NUL")));
    }
    Ok(path)
}

/// `USER`, `UID` or `UID:GID`.
fn user(text: String) -> Result<String, Refusal> {
    // The kernel takes 2^32 - 1 as "leave it", never as an id.
    let is_id = |text: &str| super::path::whole(text).is_some_and(|id| id < u64::from(u32::MAX));
    let begins = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let fits = |b: u8| begins(b) || b.is_ascii_digit() || b"-.$".contains(&b);
    let is_name = |text: &str| text.len() <= 32 && text.bytes().next().is_some_and(begins) && text.bytes().all(fits);
    let is_user = match text.split_once(':') {
        Some((uid, gid)) => is_id(uid) && is_id(gid),
        None => is_id(&text) || is_name(&text),
    };
    if is_user { Ok(text) } else { Err(bad_field("user", "must be a user's name, `UID` or `UID:GID`")) }
}

fn kind(text: &str) -> Result<Word, Refusal> {
    text.parse().map_err(|error| bad_field("kind", error))
}

fn runtime(name: Option<String>, settings: &Settings) -> Result<String, Refusal> {
    let name = name.unwrap_or_else(|| "command".to_owned());
    if settings.knows_runtime(&name) {
        return Ok(name);
    }
    let declared = settings.runtime.iter().map(|runtime| runtime.name.0.as_str());
    let known: Vec<&str> = BUILT_IN_RUNTIMES.iter().copied().chain(declared).collect();
    Err(bad_field("runtime", format_args!("`{}` is unknown; known are {}", name.escape_debug(), known.join(", "))))
}

/// What a label's key may be, as it is told.
pub const LABEL_KEY: &str = "a label's key is 1 to 255 bytes, without `=` and control characters";

/// Whether `key` can be written as `KEY=VALUE` and shown in a line.
pub fn is_label_key(key: &str) -> bool {
    (1..=255).contains(&key.len()) && !key.contains(|c: char| c == '=' || c.is_control())
}

fn labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    for (key, value) in &labels {
        if !is_label_key(key) {
            return Err(bad_field("labels", format_args!("`{}`: {LABEL_KEY}", key.escape_debug())));
        }
        if value.contains('\0') {
            return Err(bad_field("labels", format_args!("the value of `{key}` must not hold a NUL")));
        }
    }
    if labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > LABELS_MAX {
        return Err(bad_field("labels", format_args!("must not have more than {LABELS_MAX} bytes together")));
    }
    Ok(labels)
}

/// A signal as the contract writes it: a name with or without `SIG`, or a string `"1"` to `"64"`.
///
/// # Errors
/// 400 for anything else, a bare number among it.
pub fn signal(field: &str, value: Option<Value>) -> Result<Option<u8>, Refusal> {
    let told = || bad_field(field, "must be a signal's name such as `TERM` or `SIGTERM`, or `\"1\"` to `\"64\"`");
    match value {
        None => Ok(None),
        Some(Value::String(text)) => signal_name::parse(&text).map(Some).ok_or_else(told),
        Some(_) => Err(told()),
    }
}

fn restart(text: Option<String>) -> Result<Restart, Refusal> {
    let Some(text) = text else { return Ok(Restart::Never) };
    text.parse().map_err(|_| bad_field("restart", "must be `never`, `on-failure` or `always`"))
}

/// A label filter: `KEY=VALUE`, or `KEY` for its presence.
///
/// # Errors
/// 400 where the key is none.
pub fn label_filter(text: &str) -> Result<(String, Option<String>), Refusal> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    if is_label_key(key) {
        return Ok((key.to_owned(), value));
    }
    Err(Refusal::new(Kind::BadArgument, format!("label `{}`: {LABEL_KEY}", key.escape_debug())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn settings() -> Settings {
        let flags = crate::config::Flags { config: Some("/dev/null".into()), ..crate::config::Flags::default() };
        crate::config::resolve_in(&flags, &crate::config::Surroundings::default()).expect("defaults")
    }

    fn with(field: &str, value: Value) -> Result<NewInstance, Refusal> {
        let mut body = json!({"name": "vm-1", "argv": ["/bin/true"]});
        body[field] = value;
        new_instance(body, &settings())
    }

    #[test]
    fn what_is_absent_has_the_contracts_default() {
        let new = new_instance(json!({"name": "vm-1", "argv": ["true"]}), &settings()).expect("a spec");
        assert_eq!((new.spec.kind.as_str(), new.spec.runtime.as_str()), ("sandbox", "command"));
        assert_eq!((new.spec.grace, new.spec.stop_signal), (Duration::from_secs(10), 15));
        assert_eq!(new.spec.restart, Restart::Never);
    }

    #[test]
    fn every_field_has_its_rule_and_the_refusal_names_it() {
        let long = "x".repeat(STRING_MAX + 1);
        let cases = [
            ("name", json!("../x")),
            ("name", json!("A")),
            ("name", json!("")),
            ("name", json!(5)),
            ("name", json!(null)),
            ("argv", json!([])),
            ("argv", json!([""])),
            ("argv", json!(["a\0b"])),
            ("argv", json!("true")),
            ("argv", json!([1])),
            ("argv", json!([long])),
            ("env", json!({"": "x"})),
            ("env", json!({"A=B": "x"})),
            ("env", json!({"A": "x\0"})),
            ("env", json!({"A": 1})),
            ("env", json!(["A=B"])),
            ("cwd", json!("tmp")),
            ("cwd", json!("")),
            ("cwd", json!("/a\0")),
            ("user", json!("")),
            ("user", json!("a b")),
            ("user", json!("-1")),
            ("user", json!("1:")),
            ("user", json!("4294967295")),
            ("user", json!(0)),
            ("kind", json!("Build")),
            ("kind", json!("")),
            ("runtime", json!("docker")),
            ("labels", json!({"": "x"})),
            ("labels", json!({"a=b": "x"})),
            ("labels", json!({"a\n": "x"})),
            ("labels", json!({("a".repeat(256)): "x"})),
            ("labels", json!({"a": 1})),
            ("labels", json!({"a": "\0"})),
            ("grace", json!(5)),
            ("grace", json!("5")),
            ("grace", json!("-5s")),
            ("stop_signal", json!("TREM")),
            ("stop_signal", json!("0")),
            ("stop_signal", json!("65")),
            ("stop_signal", json!(15)),
            ("stop_signal", json!("")),
            ("stop_signal", json!("term")),
            ("stop_signal", json!("015")),
            ("slot", json!("yes")),
            ("pidns", json!(1)),
            ("limits", json!({"pids": 0})),
            ("limits", json!({"memory": -1})),
            ("limits", json!({"memory": "1GiB"})),
            ("limits", json!({"cpu": 1})),
            ("limits", json!([])),
            ("restart", json!("sometimes")),
            ("colour", json!("red")),
        ];
        for (field, value) in cases {
            let refusal = with(field, value.clone()).expect_err(&format!("{field}={value}"));
            assert_eq!(refusal.kind, Kind::BadArgument);
            let names = [field, "pids", "memory"].iter().any(|name| refusal.detail.contains(name));
            assert!(names, "{field}={value}: {}", refusal.detail);
        }
    }

    #[test]
    fn what_the_rules_allow_is_taken() {
        for (field, value) in [
            ("argv", json!(["a", "", "ä\n"])),
            ("user", json!("nobody")),
            ("user", json!("0")),
            ("user", json!("1000:1000")),
            ("kind", json!("ci/build")),
            ("runtime", json!("qemu")),
            ("labels", json!({"team/x": "any text\n"})),
            (
                "labels",
                json!({"TEAM": "x", "app.kubernetes.io/Name": "x", "\u{e9}": "x", " ": "", ("a".repeat(255)): "x"}),
            ),
            ("grace", json!("1m30s")),
            ("stop_signal", json!("SIGINT")),
            ("stop_signal", json!("64")),
            ("stop_signal", json!("RTMIN+3")),
            ("limits", json!({"pids": 1, "memory": 1048576})),
            ("restart", json!("on-failure")),
            ("cwd", json!("/tmp")),
        ] {
            assert!(with(field, value.clone()).is_ok(), "{field}={value}");
        }
    }
}
