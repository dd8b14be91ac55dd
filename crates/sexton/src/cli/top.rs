//! `top`: what runs, and what it uses, again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::failure::{Failure, exit};
use super::member::Member as _;
use super::{Context, args, out, show, words};

/// `sexton top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Pause between two looks.
    #[arg(long, value_parser = args::span, value_name = "DURATION", default_value = "1s")]
    interval: Duration,
    /// Look once.
    #[arg(long)]
    once: bool,
}

/// Bytes of a page, and clock ticks of a second as `/proc` counts them (`USER_HZ`), on every machine we know.
const PAGE: u64 = 4_096;
const TICKS_A_SECOND: f64 = 100.0;

/// Clears the screen and goes to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Shows the live view; without a terminal, or with `-o json` and `--once`, it is shown once.
pub async fn run(context: &Context, args: &TopArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let live = !args.once && (out::to_terminal() || context.out.is_json());
    let mut before: BTreeMap<String, u64> = BTreeMap::new();
    let mut looked = Instant::now();
    loop {
        let mut items = client.list("/v1/instances", &[("limit", "1000")]).await?;
        items.retain(|instance| !words::is_terminal(words::state(instance)));
        let passed = looked.elapsed().as_secs_f64();
        looked = Instant::now();
        let mut now = BTreeMap::new();
        let rows: Vec<Value> = items.iter().map(|item| row(item, &before, &mut now, passed)).collect();
        before = now;
        let document = json!({"items": rows, "next": null});
        context.out.line(&document, |_| {
            let screen = if live { CLEAR } else { "" };
            format!("{screen}{} instances\n\n{}", rows.len(), out::objects(&rows).trim_end())
        })?;
        if !live {
            return Ok(exit::DONE);
        }
        sleep(args.interval.max(Duration::from_millis(100))).await;
    }
}

/// One instance, and what its processes used since the look before.
fn row(instance: &Value, before: &BTreeMap<String, u64>, now: &mut BTreeMap<String, u64>, passed: f64) -> Value {
    let usage = show::usage(instance.at("cgroup"));
    let life = instance.at("incarnation").as_str().unwrap_or_default().to_owned();
    let ticks = usage.at("cpu_ticks").as_u64().unwrap_or(0);
    let cpu = before.get(&life).filter(|_| passed > 0.0).map(|before| {
        // Ticks of one look fit a double many times over.
        #[allow(clippy::cast_precision_loss, reason = "a difference of ticks is far below 2^52")]
        let used = ticks.saturating_sub(*before) as f64;
        format!("{:.1}", used / TICKS_A_SECOND / passed * 100.0)
    });
    now.insert(life, ticks);
    json!({
        "name": instance.at("name"),
        "state": instance.at("state"),
        "kind": instance.at("kind"),
        "pid": instance.at("identity").at("pid"),
        "cpu%": cpu,
        "rss": words::bytes(usage.at("rss_pages").as_u64().unwrap_or(0) * PAGE),
        "tasks": usage.at("tasks"),
    })
}
