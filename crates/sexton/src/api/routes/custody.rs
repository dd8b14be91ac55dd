//! Taking custody of a process that something else started.

use hyper::header::LOCATION;
use sexton_core::proc;
use sexton_plan::id::Pid;

use crate::api::answer::{Answer, json, with_header};
use crate::api::call::{Call, detached};
use crate::api::json::{Fields, bad_field};
use crate::api::spec;
use crate::api::types::InstanceView;
use crate::node::request::{Proof, Wanted};
use crate::refusal::{Kind, Refusal};

pub(in crate::api) async fn adopt(mut call: Call) -> Result<Answer, Refusal> {
    let (wanted, body) = wanted(Fields::new(call.body.take().unwrap_or_default())?)?;
    let new = spec::new_instance(body, &call.context.settings)?;
    if !call.is_owner {
        // Whoever may have a process taken may have it ended, whosever it is.
        return Err(Refusal::new(Kind::Forbidden, "only root and the daemon's own user may adopt"));
    }
    let (node, caller) = (call.context.node.clone(), call.caller);
    let entry = detached(async move { node.adopt(new, wanted, caller).await }).await??;
    let answer = json(201, &InstanceView::from(entry.as_ref()));
    Ok(with_header(answer, LOCATION, &format!("/v1/instances/{}", entry.name)))
}

/// Which process is meant, and the rest of the body with an `argv` in it.
fn wanted(mut fields: Fields) -> Result<(Wanted, serde_json::Value), Refusal> {
    let told = || bad_field("pid", "must be a process ID");
    let number = fields.number("pid", 1)?.and_then(|number| i32::try_from(number).ok()).ok_or_else(told)?;
    let proof = match (fields.number("pidfs_ino", 1)?, fields.number("start_ticks", 0)?) {
        (Some(ino), None) => Proof::PidfsIno(ino),
        (None, Some(ticks)) => Proof::StartTicks(ticks),
        (Some(_), Some(_)) | (None, None) => {
            return Err(bad_field("pidfs_ino", "exactly one of `pidfs_ino` and `start_ticks` is needed"));
        }
    };
    // PID 1 is a process ID like any other, and nobody may take it.
    let init = || Refusal::new(Kind::WrongState, "process 1 is never taken into custody");
    let pid = Pid::new(number).ok_or_else(init)?;
    let mut body = fields.rest();
    if !body.contains_key("argv") {
        // A hint for people and for a later start; which process it is is proven by the node.
        body.insert("argv".to_owned(), command_of(pid).into());
    }
    Ok((Wanted { pid, proof }, body.into()))
}

/// What the process says that it was started as; its number in brackets where it says nothing.
fn command_of(pid: Pid) -> Vec<String> {
    let arguments = proc::arguments(pid).unwrap_or_default();
    let words: Vec<String> = arguments.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    if words.first().is_none_or(String::is_empty) { vec![format!("[{pid}]")] } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_its_number_and_one_proof() {
        let read = |text: &str| wanted(Fields::new(crate::api::json::parse(text.as_bytes()).expect(text)).expect(text));
        let (wanted, body) = read(r#"{"name":"a","pid":4711,"pidfs_ino":9}"#).expect("named");
        assert_eq!((wanted.pid.as_raw(), wanted.proof), (4711, Proof::PidfsIno(9)));
        assert_eq!(body["name"], "a");
        for bad in [
            r#"{"pid":0,"pidfs_ino":9}"#,
            r#"{"pid":-1,"pidfs_ino":9}"#,
            r#"{"pid":4711}"#,
            r#"{"pid":"4711","start_ticks":1}"#,
            r#"{"pid":4711,"pidfs_ino":9,"start_ticks":1}"#,
            r#"{"pid":4294967297,"start_ticks":1}"#,
            r#"{"start_ticks":1}"#,
        ] {
            assert_eq!(read(bad).expect_err(bad).kind, Kind::BadArgument);
        }
        let init = r#"{"pid":1,"pidfs_ino":9}"#;
        assert_eq!(read(init).expect_err(init).kind, Kind::WrongState, "well said, and never taken");
    }

    #[test]
    fn a_process_says_itself_what_it_is() {
        let own = Pid::new(std::process::id().cast_signed()).expect("greater than 1");
        assert!(command_of(own).first().is_some_and(|program| program.contains("sexton")));
        assert_eq!(command_of(Pid::new(i32::MAX).expect("greater than 1")), ["[2147483647]"]);
    }
}
