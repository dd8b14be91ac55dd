//! `sexton.toml` as it is written: every key of the contract, nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sexton_plan::id::Word;

use super::value::{AbsolutePath, CgroupPath, Interface, Size, Span, Subnet};
use crate::signal_name;

/// What a worker does with its instances when the daemon is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnShutdown {
    /// They live on, to be adopted by the next start.
    Detach,
    /// Gate, wait, force at the deadline.
    Drain,
}

/// What a drain does with the instances of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainRule {
    /// Ended by the stop path.
    Cancel,
    /// Waited for.
    Wait,
}

/// What is done with an orphan once it is proven one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnOrphan {
    /// It is told, and let alone.
    Report,
    /// It is ended.
    Terminate,
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look, and change nothing.
    Read,
    /// Everything.
    Admin,
}

/// The whole file; what is absent has its default elsewhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub state_dir: Option<AbsolutePath>,
    pub run_dir: Option<AbsolutePath>,
    pub cgroup: Option<CgroupPath>,
    pub socket: Option<String>,
    pub listen: Option<SocketAddr>,
    pub listen_token_file: Option<AbsolutePath>,
    pub on_shutdown: Option<OnShutdown>,
    pub drain_timeout: Option<Span>,
    #[serde(default)]
    pub drain: Drain,
    #[serde(default)]
    pub reconcile: Reconcile,
    #[serde(default)]
    pub sweep: Sweep,
    #[serde(default)]
    pub logs: Logs,
    #[serde(default)]
    pub slots: Slots,
    #[serde(default)]
    pub runtime: Vec<Runtime>,
    #[serde(default)]
    pub watch: Vec<Watch>,
    #[serde(default)]
    pub access: Vec<Access>,
    #[serde(default)]
    pub fleet: Fleet,
}

/// `[drain]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// What is done with each kind; what is not named is waited for, builds too where the table is given.
    pub kinds: BTreeMap<String, DrainRule>,
}

impl Default for Drain {
    fn default() -> Drain {
        Drain { kinds: BTreeMap::from([("build".to_owned(), DrainRule::Cancel)]) }
    }
}

/// `[reconcile]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reconcile {
    /// Pause between two passes.
    pub interval: Span,
    /// Default of the `[[watch]]` tables.
    pub orphan_grace: Span,
}

impl Default for Reconcile {
    fn default() -> Reconcile {
        Reconcile { interval: seconds(30), orphan_grace: seconds(300) }
    }
}

/// `[sweep]`: zombies of processes that nobody here started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sweep {
    /// Whether they are collected.
    pub enabled: bool,
    /// Pause between two looks.
    pub interval: Span,
    /// How long each is left to whoever may want its status.
    pub grace: Span,
}

impl Default for Sweep {
    fn default() -> Sweep {
        Sweep { enabled: true, interval: seconds(1), grace: seconds(1) }
    }
}

/// `[logs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    /// Bytes kept of each stream of one incarnation.
    pub keep: Size,
    /// Ended lives whose logs are kept.
    pub incarnations: u32,
}

impl Default for Logs {
    fn default() -> Logs {
        Logs { keep: Size(64 << 20), incarnations: 3 }
    }
}

/// `[slots]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slots {
    /// Unused slots to keep ready.
    pub count: u32,
    /// The network they are cut from.
    pub subnet: Subnet,
    /// The interface to masquerade to, empty for none.
    pub uplink: Interface,
    /// Whether each has a tap device.
    pub tap: bool,
}

impl Default for Slots {
    fn default() -> Slots {
        let subnet = Subnet { base: std::net::Ipv4Addr::new(10, 231, 0, 0), prefix: 16 };
        Slots { count: 0, subnet, uplink: Interface::default(), tap: false }
    }
}

/// `[[runtime]]`: a runtime as data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Its name.
    pub name: RuntimeName,
    /// The executable files it is known by.
    pub executables: Vec<AbsolutePath>,
    /// Where its processes carry their id.
    pub id_from: Option<IdFrom>,
    /// How it is asked to end, step by step.
    #[serde(default)]
    pub stop: Vec<StopStep>,
}

impl Runtime {
    /// The steps before SIGKILL, which ends every stop, written down or not.
    pub fn polite_steps(&self) -> impl Iterator<Item = &StopStep> {
        self.stop.iter().filter(|step| step.signal != SignalName::KILL)
    }
}

/// Where a process of a runtime carries its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum IdFrom {
    /// In this environment variable.
    Env(VariableName),
    /// In the argument after (or behind the `=` of) this flag.
    Flag(FlagName),
    /// In the component below this directory of any path on the command line.
    PathUnder(AbsolutePath),
}

/// One step of asking a runtime to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopStep {
    /// The signal to send.
    pub signal: SignalName,
    /// How long to wait before the next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Span>,
}

/// `[[watch]]`: somebody else's processes and metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Its name.
    pub name: RuntimeName,
    /// The runtimes whose processes are looked for.
    pub runtimes: Vec<RuntimeName>,
    /// Where each one's metadata is; `{id}` stands for the id.
    pub metadata: MetadataPath,
    /// The field that holds the PID.
    pub pid_field: FieldName,
    /// The field that takes the start tick, where one is wanted.
    #[serde(default, deserialize_with = "optional_field", serialize_with = "or_empty")]
    pub start_ticks_field: Option<FieldName>,
    /// How old an orphan must be; that of `[reconcile]` where absent.
    pub orphan_grace: Option<Span>,
    /// What is done with one.
    #[serde(default = "report")]
    pub on_orphan: OnOrphan,
}

/// `[[access]]`: a user who may use the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Who.
    pub uid: u32,
    /// What for.
    pub role: Role,
}

/// `[fleet]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    /// NATS servers; none for a single node, which is all that this version can be.
    pub servers: Vec<String>,
    /// NATS credentials file, empty for none.
    pub credentials: String,
    /// This node's id, empty for a random one made once.
    pub node: NodeName,
    /// How long a node is believed to live without a sign.
    pub lease: Span,
}

impl Default for Fleet {
    fn default() -> Fleet {
        Fleet { servers: Vec::new(), credentials: String::new(), node: NodeName(String::new()), lease: seconds(15) }
    }
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub struct $name(pub String);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = String::deserialize(deserializer)?;
                let check: fn(&str) -> bool = $check;
                if check(&text) { Ok($name(text)) } else { Err(D::Error::custom($rule)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_text! {
    /// The name of a runtime or watch.
    RuntimeName, |text| text.parse::<Word>().is_ok(),
    "a name is 1 to 63 of `a-z`, `0-9`, `.`, `_`, `-`, `/` and begins with a letter or digit"
}

checked_text! {
    /// A node's id, or empty.
    NodeName, |text| text.is_empty() || text.parse::<sexton_plan::id::NodeId>().is_ok(),
    "a node is 1 to 63 of `a-z`, `0-9`, `.`, `_`, `-` and begins with a letter or digit, or empty"
}

checked_text! {
    /// The name of a member of a JSON object.
    FieldName, |text| !text.is_empty() && !text.chars().any(char::is_control),
    "a field's name must not be empty or hold control characters"
}

checked_text! {
    /// The name of an environment variable.
    VariableName, |text| !text.is_empty() && !text.contains(['=', '\0']),
    "the name of a variable must not be empty or hold `=` or a NUL"
}

checked_text! {
    /// A flag as it stands on a command line.
    FlagName, |text| !text.is_empty() && !text.contains('\0'),
    "a flag must not be empty or hold a NUL"
}

checked_text! {
    /// An absolute path with `{id}` once, as or within one component.
    MetadataPath, is_metadata_path,
    "metadata is an absolute path that holds `{id}` exactly once, as a whole component, and no `.` or `..`"
}

fn is_metadata_path(text: &str) -> bool {
    let Some(below) = text.strip_prefix('/') else { return false };
    let parts: Vec<&str> = below.split('/').collect();
    let ids = parts.iter().filter(|part| **part == "{id}").count();
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    ids == 1 && text.matches("{id}").count() == 1 && parts.first() != Some(&"{id}") && parts.into_iter().all(plain)
}

/// A signal by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalName(pub u8);

impl SignalName {
    /// The one that ends every stop.
    pub const KILL: SignalName = SignalName(9);
}

impl<'de> Deserialize<'de> for SignalName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SignalName, D::Error> {
        let text = String::deserialize(deserializer)?;
        signal_name::parse(&text)
            .map(SignalName)
            .ok_or_else(|| D::Error::custom("a signal is a name such as `TERM` or `SIGTERM`, or `1` to `64`"))
    }
}

impl Serialize for SignalName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&signal_name::name(self.0))
    }
}

fn optional_field<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<FieldName>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.chars().any(char::is_control) {
        return Err(D::Error::custom("a field's name must not hold control characters"));
    }
    Ok(if text.is_empty() { None } else { Some(FieldName(text)) })
}

fn or_empty<S: Serializer>(field: &Option<FieldName>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(field.as_ref().map_or("", |field| &field.0))
}

fn report() -> OnOrphan {
    OnOrphan::Report
}

const fn seconds(count: u64) -> Span {
    Span(std::time::Duration::from_secs(count))
}

/// What is wrong with a configuration file, with file and line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {message}", file.display())]
pub struct FileError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

/// Reads the text of `file`.
pub(super) fn parse(file: &Path, text: &str) -> Result<File, FileError> {
    let parsed: File = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        FileError { file: file.to_owned(), line: line_of(text, at), message: told(&error, text) }
    })?;
    let checked = text.parse().map_or(Ok(()), |written| check_shapes(&written)).and_then(|()| check(&parsed));
    checked.map_err(|(needle, message)| {
        let at = text.find(&needle).unwrap_or(0);
        FileError { file: file.to_owned(), line: line_of(text, at), message }
    })?;
    Ok(parsed)
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

/// The message, with the key in front where the parser's span is that of a value.
fn told(error: &toml::de::Error, text: &str) -> String {
    let message = error.message();
    let key = error.span().and_then(|span| {
        let line = text.get(..span.start)?.rsplit('\n').next()?;
        let key = line.split('=').next()?.trim();
        (line.contains('=') && !key.is_empty()).then(|| key.to_owned())
    });
    match key {
        Some(key) => format!("`{key}`: {message}"),
        None => message.to_owned(),
    }
}

/// The tables that may be given several times.
const LISTS: [&str; 3] = ["runtime", "watch", "access"];

/// Serde takes a list of its values for a table, and so the slip `[[drain]]` for an empty one.
fn check_shapes(written: &toml::Table) -> Result<(), (String, String)> {
    for (key, value) in written {
        let Some(list) = value.as_array() else { continue };
        if !LISTS.contains(&key.as_str()) {
            return Err((key.clone(), format!("`{key}` is one table, written `[{key}]`")));
        }
        if !list.iter().all(toml::Value::is_table) {
            return Err((key.clone(), format!("`{key}` holds tables, each written `[[{key}]]`")));
        }
        let steps = list.iter().filter_map(|table| table.get("stop")?.as_array()).flatten();
        if steps.into_iter().any(|step| !step.is_table()) {
            let why = format!("`{key}.stop` holds tables, each written `{{ signal = \"TERM\", wait = \"10s\" }}`");
            return Err(("stop".to_owned(), why));
        }
    }
    Ok(())
}

/// What no single value shows: what to look for in the text, and the sentence.
fn check(file: &File) -> Result<(), (String, String)> {
    for kind in file.drain.kinds.keys() {
        if kind.parse::<Word>().is_err() {
            return Err((kind.clone(), format!("`drain.kinds`: `{}` is no kind", kind.escape_default())));
        }
    }
    for (key, span) in [("interval", file.reconcile.interval), ("interval", file.sweep.interval)] {
        if span.0.is_zero() {
            return Err((key.to_owned(), format!("`{key}` must be longer than 0")));
        }
    }
    if !file.fleet.servers.is_empty() {
        // Taken without a word, it would leave a node that others believe to be in their fleet.
        let why = "`fleet.servers`: this version joins no fleet; leave it empty, and ask each node itself";
        return Err(("servers".to_owned(), why.to_owned()));
    }
    if file.fleet.lease.0.is_zero() {
        return Err(("lease".to_owned(), "`fleet.lease` must be longer than 0".to_owned()));
    }
    let capacity = file.slots.subnet.slots();
    if file.slots.count > capacity {
        let why = format!("`slots.count`: {} has room for {capacity} slots", file.slots.subnet);
        return Err(("count".to_owned(), why));
    }
    check_runtimes(file)?;
    let mut uids = std::collections::BTreeSet::new();
    for access in &file.access {
        // The kernel takes 2^32 - 1 as nobody's.
        if access.uid == u32::MAX {
            return Err((access.uid.to_string(), format!("`access.uid`: {} is no user", access.uid)));
        }
        if !uids.insert(access.uid) {
            return Err(("[[access]]".to_owned(), format!("`access.uid`: {} is named twice", access.uid)));
        }
    }
    Ok(())
}

/// Every step but the last says how long it is waited for, and nothing follows SIGKILL.
fn check_stop(runtime: &Runtime) -> Result<(), &'static str> {
    let last = runtime.polite_steps().count().saturating_sub(1);
    for (at, step) in runtime.stop.iter().enumerate() {
        if step.signal == SignalName::KILL {
            let is_end = at + 1 == runtime.stop.len() && step.wait.is_none();
            return if is_end { Ok(()) } else { Err("nothing follows `KILL`, and nothing is waited for after it") };
        }
        if step.wait.is_none() && at < last {
            return Err("every step but the last before `KILL` needs a `wait`");
        }
    }
    Ok(())
}

/// Names of runtimes and watches are unique, and a watch names runtimes that exist and two fields.
fn check_runtimes(file: &File) -> Result<(), (String, String)> {
    let mut known: Vec<&str> = super::BUILT_IN_RUNTIMES.to_vec();
    for runtime in &file.runtime {
        let quoted = format!("\"{}\"", runtime.name);
        if known.contains(&runtime.name.0.as_str()) {
            return Err((quoted, format!("`runtime.name`: `{}` exists already", runtime.name)));
        }
        if runtime.executables.is_empty() {
            return Err((quoted, format!("`runtime.executables` of `{}` must name at least one file", runtime.name)));
        }
        check_stop(runtime).map_err(|why| (quoted, format!("`runtime.stop` of `{}`: {why}", runtime.name)))?;
        known.push(&runtime.name.0);
    }
    let mut watches = Vec::new();
    for watch in &file.watch {
        let quoted = format!("\"{}\"", watch.name);
        if watches.contains(&&watch.name) {
            return Err((quoted, format!("`watch.name`: `{}` exists already", watch.name)));
        }
        if watch.runtimes.is_empty() {
            return Err((quoted, format!("`watch.runtimes` of `{}` must name at least one runtime", watch.name)));
        }
        if watch.runtimes.iter().any(|name| name.0 == "command") {
            let why = "has no executable file that its processes are known by";
            return Err((quoted, format!("`watch.runtimes` of `{}`: `command` {why}", watch.name)));
        }
        if let Some(unknown) = watch.runtimes.iter().find(|name| !known.contains(&name.0.as_str())) {
            return Err((
                format!("\"{unknown}\""),
                format!("`watch.runtimes`: `{unknown}` is no runtime; known are {}", known.join(", ")),
            ));
        }
        if watch.start_ticks_field.as_ref() == Some(&watch.pid_field) {
            let both = format!("`watch.pid_field` and `watch.start_ticks_field` of `{}`", watch.name);
            return Err((quoted, format!("{both} are both `{}`, and one field holds one number", watch.pid_field)));
        }
        watches.push(&watch.name);
    }
    Ok(())
}
