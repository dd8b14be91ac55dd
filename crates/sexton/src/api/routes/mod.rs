//! What each row of the table does; a file per noun.

pub(super) mod custody;
pub(super) mod events;
pub(super) mod health;
pub(super) mod instances;
pub(super) mod logs;
pub(super) mod node;
pub(super) mod plan;
pub(super) mod slots;

use std::sync::Arc;
use std::time::Duration;

use sexton_ledger::duration;
use sexton_ledger::entry::Entry;
use sexton_plan::id::Name;

use super::call::Call;
use crate::node::request::{Filter, Node};
use crate::refusal::{Kind, Refusal};

/// The instance that the path names.
fn name(call: &Call) -> Result<Name, Refusal> {
    let text = call.segments.first().map_or("", String::as_str);
    text.parse().map_err(|error| Refusal::new(Kind::BadArgument, format!("`{}`: {error}", text.escape_debug())))
}

/// How long the caller wants to be held.
fn wait(call: &Call) -> Result<Option<Duration>, Refusal> {
    call.query.parsed("wait", "a duration such as `250ms`, `5s` or `1h30m`", |text| duration::parse(text).ok())
}

/// Objects of a page, 1 to 1,000.
fn limit(call: &Call) -> Result<usize, Refusal> {
    let parse = |text: &str| {
        super::path::whole(text).and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=LIMIT_MAX).contains(n))
    };
    Ok(call.query.parsed("limit", "a whole number from 1 to 1000", parse)?.unwrap_or(LIMIT_DEFAULT))
}

/// Objects of a page at most.
const LIMIT_MAX: usize = 1_000;

/// Objects of a page where the caller does not say.
const LIMIT_DEFAULT: usize = 100;

/// Every instance. The driver does other things between two pages.
async fn everything(node: &Node) -> Result<Vec<Arc<Entry>>, Refusal> {
    let mut entries = Vec::new();
    let mut after = None;
    loop {
        let page = node.list(Filter { after, limit: LIMIT_MAX, ..Filter::default() }).await?;
        entries.extend(page.items);
        after = page.next;
        if after.is_none() {
            return Ok(entries);
        }
    }
}
