//! Settings: flag over environment over file over default, each value checked once, here.

mod file;
pub mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub use file::{
    Access, Drain, DrainRule, FileError, Fleet, IdFrom, Logs, OnOrphan, OnShutdown, Reconcile, Role, Runtime, Slots,
    StopStep, Sweep, Watch,
};
use sexton_core::delegation::Delegation;
pub use value::Target;
use value::{AbsolutePath, CgroupPath, Span};

/// Runtimes that need no `[[runtime]]` table.
pub const BUILT_IN_RUNTIMES: &[&str] = &["command", "qemu", "firecracker", "cloud-hypervisor"];

/// How long a stop waits after the polite signal, unless the spec or its runtime says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// Where the file is looked for when nobody names one.
const DEFAULT_FILE: &str = "/etc/sexton/sexton.toml";

/// What the command line says; `None` where it is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the flags")]
pub struct Flags {
    pub config: Option<String>,
    pub state_dir: Option<String>,
    pub run_dir: Option<String>,
    pub cgroup: Option<String>,
    pub socket: Option<String>,
    pub listen: Option<String>,
    pub on_shutdown: Option<String>,
    pub drain_timeout: Option<String>,
}

/// What surrounds the process and takes part in the answer.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The environment.
    pub variables: BTreeMap<String, OsString>,
    /// Where the caller is; relative flags begin there.
    pub directory: Option<PathBuf>,
    /// The effective user.
    pub uid: u32,
    /// The cgroup that was given to this process to divide, or why that could not be read.
    pub delegated: Option<Result<String, String>>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Surroundings {
        let variables = std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value))).collect();
        // The owner of one's own directory in `/proc` is the effective user.
        let uid = std::fs::metadata("/proc/self").map_or(u32::MAX, |about| about.uid());
        let delegated = Delegation::of_this_process().map_err(|error| error.to_string());
        let delegated = delegated.map(|given| given.map(|given| given.path)).transpose();
        Surroundings { variables, directory: std::env::current_dir().ok(), uid, delegated }
    }
}

/// Everything that can be set, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The file that was read, if any.
    pub config: Option<PathBuf>,
    /// Ledger and logs.
    pub state_dir: PathBuf,
    /// Sockets and pins.
    pub run_dir: PathBuf,
    /// The subtree below the cgroup2 root that the daemon may write.
    #[serde(serialize_with = "as_text")]
    pub cgroup: String,
    /// What the CLI talks to, and where the daemon listens if it is a unix socket.
    pub socket: Target,
    /// The extra TCP listener.
    pub listen: Option<SocketAddr>,
    /// The file with the token that callers of the TCP listener present.
    pub listen_token_file: Option<PathBuf>,
    /// What becomes of the instances when the daemon is asked to end.
    pub on_shutdown: OnShutdown,
    /// How long a graceful drain may last; `None` for ever.
    #[serde(serialize_with = "as_span")]
    pub drain_timeout: Option<Duration>,
    /// `[drain]`.
    pub drain: Drain,
    /// `[reconcile]`.
    pub reconcile: Reconcile,
    /// `[sweep]`.
    pub sweep: Sweep,
    /// `[logs]`.
    pub logs: Logs,
    /// `[slots]`.
    pub slots: Slots,
    /// `[[runtime]]`.
    pub runtime: Vec<Runtime>,
    /// `[[watch]]`.
    pub watch: Vec<Watch>,
    /// `[[access]]`.
    pub access: Vec<Access>,
    /// `[fleet]`.
    pub fleet: Fleet,
}

fn as_text<S: serde::Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn as_span<S: serde::Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match span {
        Some(span) => serializer.collect_str(&Span(*span)),
        None => serializer.serialize_none(),
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A flag or variable is outside its rules.
    #[error("{origin}: {why}")]
    Value {
        /// The flag or variable.
        origin: String,
        /// The rule.
        why: String,
    },
    /// The file is outside the rules.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nobody says where instances live, and whether a cgroup was given to this process could not be read.
    #[error("could not read which cgroup this process was given ({0}); `--cgroup` names one")]
    Delegation(String),
    /// The file could not be read.
    #[error("could not read the configuration file {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// One value by its layers, and who said it.
struct Layers<'a> {
    flags: &'a Flags,
    around: &'a Surroundings,
}

impl Layers<'_> {
    /// The text that flag or environment give, and its origin. An empty variable is an unset one.
    fn outer(&self, flag: &Option<String>, name: &str) -> Result<Option<(String, String)>, ResolveError> {
        let origin = format!("--{name}");
        if let Some(text) = flag {
            return Ok(Some((text.clone(), origin)));
        }
        let variable = format!("SEXTON_{}", name.to_uppercase().replace('-', "_"));
        match self.around.variables.get(&variable) {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => match text.to_str() {
                Some(text) => Ok(Some((text.to_owned(), variable))),
                None => Err(ResolveError::Value { origin: variable, why: "not UTF-8".to_owned() }),
            },
        }
    }

    /// The value that flag or environment give, through `parse`.
    fn parsed<T, E: std::fmt::Display>(
        &self,
        flag: &Option<String>,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ResolveError> {
        let Some((text, origin)) = self.outer(flag, name)? else { return Ok(None) };
        parse(&text).map(Some).map_err(|error| {
            let origin = format!("{origin}=`{}`", text.escape_debug());
            ResolveError::Value { origin, why: error.to_string() }
        })
    }

    fn path(&self, flag: &Option<String>, name: &str) -> Result<Option<PathBuf>, ResolveError> {
        let base = self.around.directory.as_deref();
        let parse = |text: &str| {
            AbsolutePath::new(Path::new(text), base.or(Some(Path::new("")))).map(|path| path.as_path().to_owned())
        };
        self.parsed(flag, name, parse)
    }
}

/// Resolves the settings of this process.
///
/// # Errors
/// [`ResolveError`]: a value outside its rules, wherever it comes from; a named file that cannot be read.
pub fn resolve(flags: &Flags) -> Result<Settings, ResolveError> {
    resolve_in(flags, &Surroundings::of_this_process())
}

/// Resolves settings within `around`.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(flags: &Flags, around: &Surroundings) -> Result<Settings, ResolveError> {
    let layers = Layers { flags, around };
    let (config, file) = read_file(layers.path(&flags.config, "config")?)?;
    let state_dir = match layers.path(&flags.state_dir, "state-dir")?.or(owned(file.state_dir.as_ref())) {
        Some(path) => path,
        None => default_dir(around, "/var/lib/sexton", "XDG_STATE_HOME", "state-dir")?,
    };
    let run_dir = match layers.path(&flags.run_dir, "run-dir")?.or(owned(file.run_dir.as_ref())) {
        Some(path) => path,
        None => default_dir(around, "/run/sexton", "XDG_RUNTIME_DIR", "run-dir")?,
    };
    let socket = target(&layers, file.socket.as_deref(), config.as_deref())?
        .unwrap_or_else(|| Target::Unix(run_dir.join("sexton.sock")));
    let cgroup = layers.parsed(&layers.flags.cgroup, "cgroup", str::parse::<CgroupPath>)?.or(file.cgroup);
    let settings = Settings {
        config,
        state_dir,
        run_dir,
        cgroup: cgroup.map_or_else(|| default_cgroup(around), |path| Ok(path.to_string()))?,
        socket,
        listen: layers.parsed(&flags.listen, "listen", listen_address)?.or(file.listen),
        listen_token_file: owned(file.listen_token_file.as_ref()),
        on_shutdown: layers
            .parsed(&flags.on_shutdown, "on-shutdown", on_shutdown)?
            .or(file.on_shutdown)
            .unwrap_or(OnShutdown::Detach),
        drain_timeout: layers
            .parsed(&flags.drain_timeout, "drain-timeout", str::parse::<Span>)?
            .or(file.drain_timeout)
            .map(|span| span.0),
        drain: file.drain,
        reconcile: file.reconcile,
        sweep: file.sweep,
        logs: file.logs,
        slots: file.slots,
        runtime: file.runtime,
        watch: file.watch,
        access: file.access,
        fleet: file.fleet,
    };
    if settings.listen.is_some() && settings.listen_token_file.is_none() {
        let why = "a TCP listener needs a token: set `listen_token_file` in the configuration file".to_owned();
        return Err(ResolveError::Value { origin: "--listen".to_owned(), why });
    }
    Ok(settings)
}

fn owned(path: Option<&AbsolutePath>) -> Option<PathBuf> {
    path.map(|path| path.as_path().to_owned())
}

/// The file that was asked for, or the default one if it is there.
fn read_file(asked: Option<PathBuf>) -> Result<(Option<PathBuf>, file::File), ResolveError> {
    let is_default = asked.is_none();
    let path = asked.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let parsed = file::parse(&path, &text)?;
            Ok((Some(path), parsed))
        }
        Err(error) if is_default && error.kind() == io::ErrorKind::NotFound => Ok((None, file::File::default())),
        Err(source) => Err(ResolveError::Read { file: path, source }),
    }
}

fn default_dir(around: &Surroundings, as_root: &str, variable: &str, flag: &str) -> Result<PathBuf, ResolveError> {
    if around.uid == 0 {
        return Ok(PathBuf::from(as_root));
    }
    let absolute = |name: &str| around.variables.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(variable).or_else(|| match variable {
        "XDG_STATE_HOME" => absolute("HOME").map(|home| home.join(".local/state")),
        _ => Some(PathBuf::from(format!("/run/user/{}", around.uid))),
    });
    base.map(|base| base.join("sexton")).ok_or_else(|| ResolveError::Value {
        origin: format!("--{flag}"),
        why: format!("no default, for neither {variable} nor HOME is set to an absolute path"),
    })
}

/// Beside the daemon's own leaf in the cgroup that it was given, if it was given one. Where that cannot be told there is
/// none: instances would be looked for where they do not live.
fn default_cgroup(around: &Surroundings) -> Result<String, ResolveError> {
    match &around.delegated {
        None => Ok("sexton".to_owned()),
        Some(Ok(path)) => Ok(format!("{path}/instances")),
        Some(Err(why)) => Err(ResolveError::Delegation(why.clone())),
    }
}

fn target(layers: &Layers<'_>, file: Option<&str>, config: Option<&Path>) -> Result<Option<Target>, ResolveError> {
    let base = layers.around.directory.as_deref();
    if let Some(target) = layers.parsed(&layers.flags.socket, "socket", |text| Target::parse(text, base))? {
        return Ok(Some(target));
    }
    let Some(text) = file else { return Ok(None) };
    let origin = format!("{}: `socket`", config.unwrap_or(Path::new(DEFAULT_FILE)).display());
    Target::parse(text, None).map(Some).map_err(|error| ResolveError::Value { origin, why: error.to_string() })
}

fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "an address and port such as `127.0.0.1:7070`")
}

fn on_shutdown(text: &str) -> Result<OnShutdown, &'static str> {
    match text {
        "detach" => Ok(OnShutdown::Detach),
        "drain" => Ok(OnShutdown::Drain),
        _ => Err("either `detach` or `drain`"),
    }
}

impl Settings {
    /// Where the daemon listens: the socket it is told to be talked to at, else the one in the run directory.
    pub fn listen_path(&self) -> PathBuf {
        match &self.socket {
            Target::Unix(path) => path.clone(),
            Target::Url(_) => self.run_dir.join("sexton.sock"),
        }
    }

    /// The file that one stream of one incarnation is written to.
    pub fn log_path(&self, name: &str, incarnation: &str, stream: &str) -> PathBuf {
        self.state_dir.join("logs").join(name).join(format!("{incarnation}.{stream}"))
    }

    /// How long a stop of an instance of this runtime waits, unless its spec says otherwise: as long as the runtime's own
    /// steps take together, where it declares some.
    pub fn default_grace(&self, name: &str) -> Duration {
        let declared = self.runtime.iter().find(|runtime| runtime.name.0 == name && !runtime.stop.is_empty());
        declared.map_or(DEFAULT_GRACE, |runtime| {
            let waits = runtime.polite_steps().map(|step| step.wait.map_or(DEFAULT_GRACE, |wait| wait.0));
            waits.fold(Duration::ZERO, Duration::saturating_add)
        })
    }

    /// Whether `name` is a runtime that a spec may name.
    pub fn knows_runtime(&self, name: &str) -> bool {
        BUILT_IN_RUNTIMES.contains(&name) || self.runtime.iter().any(|runtime| runtime.name.0 == name)
    }
}

#[cfg(test)]
mod tests;
