//! From `[[watch]]` and `[[runtime]]` to what the node watches, and how it asks runtimes to end.

use crate::config::{self, OnOrphan, Settings};
use crate::node::adapter::{Runtimes, SignalStep};
use crate::node::watch::rule::{Executables, IdFrom, Runtime, Template, Watch};

/// The watches of `settings`, which were checked when they were read.
pub fn of(settings: &Settings) -> Vec<Watch> {
    settings.watch.iter().filter_map(|watch| watch_of(watch, settings)).collect()
}

/// How the declared runtimes of `settings` are asked to end.
pub fn runtimes(settings: &Settings) -> Runtimes {
    Runtimes(settings.runtime.iter().map(|runtime| (runtime.name.0.clone(), steps_of(runtime))).collect())
}

/// SIGKILL follows whatever is declared, so it is no step of asking.
fn steps_of(runtime: &config::Runtime) -> Vec<SignalStep> {
    runtime.polite_steps().map(|step| (step.signal.0, step.wait.map(|wait| wait.0))).collect()
}

fn watch_of(watch: &config::Watch, settings: &Settings) -> Option<Watch> {
    Some(Watch {
        name: watch.name.0.clone(),
        runtimes: watch.runtimes.iter().filter_map(|name| runtime_of(&name.0, settings)).collect(),
        metadata: Template::parse(&watch.metadata.0)?,
        pid_field: watch.pid_field.0.clone(),
        start_ticks_field: watch.start_ticks_field.as_ref().map(|name| name.0.clone()),
        grace: watch.orphan_grace.unwrap_or(settings.reconcile.orphan_grace).0,
        on_orphan: match watch.on_orphan {
            OnOrphan::Report => sexton_plan::plan::OnOrphan::Report,
            OnOrphan::Terminate => sexton_plan::plan::OnOrphan::Terminate,
        },
    })
}

fn runtime_of(name: &str, settings: &Settings) -> Option<Runtime> {
    let (executables, id_from) = match name {
        "qemu" => (Executables::Qemu, None),
        "firecracker" => (Executables::Firecracker, None),
        "cloud-hypervisor" => (Executables::CloudHypervisor, None),
        name => {
            let declared = settings.runtime.iter().find(|runtime| runtime.name.0 == name)?;
            let files = declared.executables.iter().map(|file| file.as_path().to_owned()).collect();
            let id_from = declared.id_from.as_ref().map(|from| match from {
                config::IdFrom::Env(name) => IdFrom::Env(name.0.clone()),
                config::IdFrom::Flag(flag) => IdFrom::Flag(flag.0.clone()),
                config::IdFrom::PathUnder(tree) => IdFrom::PathUnder(tree.as_path().display().to_string()),
            });
            (Executables::Files(files), id_from)
        }
    };
    Some(Runtime { name: name.to_owned(), executables, id_from, stop_grace: settings.default_grace(name) })
}
