//! `ps`: what there is.

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};
use sexton_plan::id::Word;

use super::failure::{Failure, exit};
use super::member::Member as _;
use super::{Context, args, out, words};

/// `sexton ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Those that are over too.
    #[arg(short, long)]
    all: bool,
    /// Only with this label; may be given several times.
    #[arg(long, value_parser = args::label, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Only of this kind.
    #[arg(long, value_parser = args::word)]
    kind: Option<Word>,
}

/// Lists instances.
pub async fn run(context: &Context, args: &PsArgs) -> Result<u8, Failure> {
    let mut query = vec![("limit", "1000")];
    query.extend(args.label.iter().map(|label| ("label", label.as_str())));
    query.extend(args.kind.as_ref().map(|kind| ("kind", kind.as_str())));
    let mut items = context.client()?.list("/v1/instances", &query).await?;
    if !args.all {
        items.retain(|instance| !words::is_terminal(words::state(instance)));
    }
    let now = Timestamp::now();
    let rows = items.iter().map(|instance| row(instance, now)).collect();
    context.out.document(&json!({"items": items, "next": null}), |_| {
        out::table(&["NAME", "STATE", "KIND", "PID", "SINCE", "STATUS", "COMMAND"], rows)
    })?;
    Ok(exit::DONE)
}

/// The widest command that is shown.
const COMMAND_MAX: usize = 60;

fn row(instance: &Value, now: Timestamp) -> out::Row {
    let status = match (words::exit(instance), instance.at("reason").as_str()) {
        (Some(exit), Some(reason)) => format!("{exit} ({reason})"),
        (Some(exit), None) => exit,
        (None, Some(reason)) => reason.to_owned(),
        (None, None) => "-".to_owned(),
    };
    let mut command = words::command(instance.at("spec").at("argv"));
    if command.chars().count() > COMMAND_MAX {
        command = command.chars().take(COMMAND_MAX - 1).collect::<String>() + "…";
    }
    vec![
        out::word(instance.at("name")),
        words::state(instance).to_owned(),
        out::word(instance.at("kind")),
        out::word(instance.at("identity").at("pid")),
        words::since(instance).and_then(|at| words::relative(at, now)).unwrap_or_else(|| "-".to_owned()),
        status,
        command,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_state_and_end() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let instance = json!({
            "name": "vm-1", "state": "exited", "kind": "build", "identity": {"pid": 7}, "reason": "cancelled",
            "exit": {"code": null, "signal": 15}, "ended_at": "2026-01-01T00:00:50Z", "spec": {"argv": ["sleep", "9"]},
        });
        let expected = ["vm-1", "exited", "build", "7", "10s ago", "ended by SIGTERM (cancelled)", "sleep 9"];
        assert_eq!(row(&instance, now), expected);
    }
}
