//! `run`: create and start, once, whatever becomes of the connection.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use sexton_ledger::duration;
use sexton_plan::id::{Name, Word};

use super::client::{Ask, Client, Known};
use super::failure::{Failure, exit};
use super::{Context, args, attach};

/// `sexton run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The instance's name: 1 to 63 of `a-z`, `0-9`, `.`, `_`, `-`, beginning with a letter or digit.
    #[arg(value_parser = args::name)]
    name: Name,
    /// What a drain does with it is decided by this word [default: sandbox].
    #[arg(long, value_parser = args::word)]
    kind: Option<Word>,
    /// `command`, `qemu`, `firecracker`, `cloud-hypervisor`, or one from the configuration [default: command].
    #[arg(long)]
    runtime: Option<String>,
    /// A variable of its environment; may be given several times.
    #[arg(long, value_parser = args::pair, value_name = "KEY=VALUE")]
    env: Vec<(String, String)>,
    /// Its working directory [default: /].
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// `USER`, `UID` or `UID:GID` [default: the daemon's].
    #[arg(long)]
    user: Option<String>,
    /// A label; its key is 1 to 255 bytes, without `=` and control characters. May be given several times.
    #[arg(long, value_parser = args::pair, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
    /// How long a stop waits after the polite signal [default: 10s].
    #[arg(long, value_parser = args::span, value_name = "DURATION")]
    grace: Option<Duration>,
    /// The polite signal [default: TERM].
    #[arg(long, value_parser = args::signal, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Give it a network slot.
    #[arg(long)]
    slot: bool,
    /// Processes and threads at once.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pids_max: Option<u64>,
    /// Memory, such as `64MiB`.
    #[arg(long, value_parser = args::size, value_name = "SIZE")]
    memory_max: Option<u64>,
    /// Run it in a PID namespace of its own.
    #[arg(long)]
    pidns: bool,
    /// What follows its end [default: never].
    #[arg(long, value_parser = ["never", "on-failure", "always"], value_name = "POLICY")]
    restart: Option<String>,
    /// Stream its output, forward signals, end with its code.
    #[arg(long)]
    attach: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    argv: Vec<String>,
}

impl RunArgs {
    /// The body of the request: what was said, and nothing else.
    fn body(&self) -> Result<Value, Failure> {
        let mut body = Map::new();
        let mut say = |key: &str, value: Option<Value>| value.map(|value| body.insert(key.to_owned(), value));
        say("name", Some(self.name.as_str().into()));
        say("argv", Some(json!(self.argv)));
        say("env", unique("--env", &self.env)?);
        say("cwd", self.cwd.clone().map(Value::from));
        say("user", self.user.clone().map(Value::from));
        say("kind", self.kind.as_ref().map(|kind| kind.as_str().into()));
        say("runtime", self.runtime.clone().map(Value::from));
        say("labels", unique("--label", &self.label)?);
        say("grace", self.grace.map(|grace| duration::format(grace).into()));
        say("stop_signal", self.stop_signal.clone().map(Value::from));
        say("slot", self.slot.then_some(true.into()));
        say("pidns", self.pidns.then_some(true.into()));
        say("restart", self.restart.clone().map(Value::from));
        let mut limits = Map::new();
        let mut limit = |key: &str, value: Option<u64>| value.map(|value| limits.insert(key.to_owned(), value.into()));
        limit("pids", self.pids_max);
        limit("memory", self.memory_max);
        if !limits.is_empty() {
            body.insert("limits".to_owned(), limits.into());
        }
        Ok(body.into())
    }
}

/// Pairs as an object; the same key with two values is a slip.
fn unique(flag: &str, pairs: &[(String, String)]) -> Result<Option<Value>, Failure> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key, value).is_some_and(|before| before != value) {
            return Err(Failure::new(exit::USAGE, format!("{flag}: `{key}` is given twice, with two values"))
                .hint("give each key once"));
        }
    }
    Ok(if map.is_empty() { None } else { Some(json!(map)) })
}

/// Creates the instance, and with `--attach` stays with it.
pub async fn run(context: &Context, args: &RunArgs) -> Result<u8, Failure> {
    let body = args.body()?;
    let client = context.client()?;
    // Before there is an instance: what comes meanwhile is for it.
    let signals = args.attach.then(attach::Signals::block).transpose()?;
    let instance = create(&client, body).await?;
    if let Some(signals) = signals {
        return attach::stay((&client, context.out), &args.name, &instance, signals).await;
    }
    context.out.document(&instance, |_| format!("{}\n", args.name))?;
    Ok(exit::DONE)
}

/// Creates the instance; asked again with the same key, the daemon makes no second one.
async fn create(client: &Client, body: Value) -> Result<Value, Failure> {
    let ask = Ask::post("/v1/instances", body).header("idempotency-key", ulid::Ulid::generate().to_string());
    client.send_again(&ask, Known::No).await?.into_body()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        run: RunArgs,
    }

    #[test]
    fn only_what_was_said_is_asked_for() {
        let plain = Alone::parse_from(["run", "vm-1", "--", "sleep", "-9"]).run.body().unwrap();
        assert_eq!(plain, json!({"name": "vm-1", "argv": ["sleep", "-9"]}));
        let line = "run vm-1 --kind build --env A=b --env C=d=e --label x=y --grace 1500ms --stop-signal INT --slot \
                    --pids-max 9 --memory-max 64MiB --pidns --restart on-failure --user 7:8 --cwd /tmp -- x";
        let full = Alone::parse_from(line.split_whitespace()).run.body().unwrap();
        assert_eq!(
            full,
            json!({
                "name": "vm-1", "argv": ["x"], "env": {"A": "b", "C": "d=e"}, "cwd": "/tmp", "user": "7:8",
                "kind": "build", "labels": {"x": "y"}, "grace": "1s500ms", "stop_signal": "INT", "slot": true,
                "pidns": true, "restart": "on-failure", "limits": {"pids": 9, "memory": 67_108_864},
            })
        );
    }

    #[test]
    fn a_key_with_two_values_is_refused() {
        let args = Alone::parse_from(["run", "a", "--env", "A=1", "--env", "A=2", "--", "x"]).run;
        assert_eq!(args.body().unwrap_err().exit, exit::USAGE);
    }

    #[test]
    fn bad_names_and_numbers_are_refused() {
        for line in ["run A -- x", "run .. -- x", "run a --pids-max 0 -- x", "run a --grace 5 -- x", "run a", "run a x"]
        {
            assert!(Alone::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
