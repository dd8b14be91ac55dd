//! The two effects on what is watched. Each looks again, through a fresh pidfd, and is done only if the one planner
//! still plans it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sexton_core::handle::Handle;
use sexton_core::proc;
use sexton_plan::claim::Field;
use sexton_plan::identity::Identity;
use sexton_plan::plan::{Action, plan};
use tokio::task::spawn_blocking;

use super::look::{Looker, who};
use super::metadata::{self, Found};
use super::object::{Object, ParseObjectError};
use super::rule::Watch;
use super::told::Writing;
use crate::chain::chain;
use crate::config::DEFAULT_GRACE;
use crate::node::adapter::{Asked, Step};
use crate::node::process::Process;
use crate::node::stop::{self, OrphanEnd};

const SIGTERM: u8 = 15;

impl Looker {
    /// A hold on the process of `action`, if that is still planned, word for word.
    pub fn hold(&self, action: &Action) -> Option<Handle> {
        let (_, _, identity) = action.watched()?;
        let (world, handle) = self.look_again(identity.pid, &BTreeSet::from([who(identity)]));
        let still = plan(&world, &self.policies(), 0).actions.contains(action);
        handle.filter(|_| still)
    }

    /// How `orphan` is asked to end, and how long that may take: as an instance of its runtime. Read by its number, for
    /// it decides nothing but the manner, and nobody else is spoken to.
    fn how_to_ask(&self, orphan: &Identity, watch: &str) -> (VecDeque<Step>, Duration) {
        let watch = self.watches.iter().find(|known| known.name == watch);
        let file = proc::executable(orphan.pid).unwrap_or_default();
        let runtime = watch.and_then(|watch| watch.runtime_of(&file));
        let (name, grace) = runtime.map_or(("", DEFAULT_GRACE), |runtime| (&runtime.name, runtime.stop_grace));
        let arguments = proc::arguments(orphan.pid).unwrap_or_default();
        let argv: Vec<String> = arguments.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let asked = Asked { runtime: name, argv: &argv, main: Some(orphan), stop_signal: SIGTERM };
        (self.host.runtimes.steps(asked, grace), grace)
    }

    /// Writes the live PID back, by way of the new file `beside`.
    ///
    /// # Errors
    /// The facts changed, or the file could not be written; it is then as it was.
    ///
    /// # Blocking
    /// For two syncs.
    pub fn write_back(&self, action: &Action, beside: &str) -> Result<(), String> {
        let (watch, id, identity) = action.watched().ok_or("it is about nothing that is watched")?;
        let watch = self.watches.iter().find(|known| known.name == watch).ok_or("the watch is gone")?;
        let _held = self.hold(action).ok_or("the facts changed")?;
        let Found::File(metadata) = metadata::read(&watch.metadata, id) else {
            return Err("the facts changed".to_owned());
        };
        let text = edited(watch, identity, &metadata.text)?;
        metadata.replace(&text, beside).map_err(|error| format!("could not write the metadata: {error}"))
    }

    /// Whether something is left beside of what was written back.
    pub fn is_left_beside(&self, writing: &Writing) -> bool {
        let watch = self.watches.iter().find(|known| known.name == writing.watch);
        watch.is_some_and(|watch| metadata::is_beside(&watch.metadata, &writing.id, &writing.beside))
    }

    /// Clears up behind a worker that died while it wrote, or could not; whether the metadata names the process now.
    ///
    /// # Errors
    /// Nobody can tell, or what is left cannot be removed.
    pub fn finish_writing(&self, writing: &Writing) -> Result<bool, String> {
        let Writing { watch, id, identity, beside, is_told: _ } = writing;
        let Some(watch) = self.watches.iter().find(|known| known.name == *watch) else { return Ok(false) };
        metadata::tidy(&watch.metadata, id, beside, |text| edited(watch, identity, text).ok())?;
        Ok(self.claim(watch, id, identity.pid).is_right_for(identity))
    }
}

/// `text`, naming `identity`.
///
/// # Errors
/// It is no metadata.
fn edited(watch: &Watch, identity: &Identity, text: &[u8]) -> Result<Vec<u8>, String> {
    let is_object = |text: &[u8]| Object::parse(text, &watch.fields()).map(drop);
    let told = |error: ParseObjectError| format!("the file {error}");
    is_object(text).map_err(told)?;
    let pid = u64::from(identity.pid.as_raw().unsigned_abs());
    let wanted = std::iter::once((watch.pid_field.as_str(), pid));
    let wanted = wanted.chain(watch.start_ticks_field.as_deref().zip(identity.start_ticks));
    let mut text = text.to_owned();
    for (name, number) in wanted {
        let object = Object::parse(&text, &[name]).map_err(told)?;
        if object.field(name) != Field::Number(number) {
            text = object.with(name, number).into_bytes();
        }
    }
    // The edit is ours, and so is the proof that it left an object behind.
    is_object(&text).map_err(told)?;
    Ok(text)
}

/// Ends the orphan of `action`.
///
/// # Errors
/// It could not be watched.
pub async fn terminate(looker: Arc<Looker>, action: Action) -> Result<OrphanEnd, String> {
    let hold = || {
        let (looker, action) = (Arc::clone(&looker), action.clone());
        async move { spawn_blocking(move || looker.hold(&action)).await.ok().flatten() }
    };
    let Some(handle) = hold().await else { return Ok(OrphanEnd::Spared) };
    let (watch, _, orphan) = action.watched().ok_or("it is about nothing that is watched")?;
    let asking = looker.how_to_ask(orphan, watch);
    let process = Process::watch(Arc::new(handle)).map_err(|error| chain(&error))?;
    let still_is_one = || {
        let held = hold();
        async move { held.await.is_some() }
    };
    Ok(stop::end_orphan(&process, asking, still_is_one).await)
}
