//! Everything that is served: one row a method and path.

use hyper::Method;

use super::call::{BODY_MAX, Call, Handling};
use super::path::decode;
use super::routes::{custody, events, health, instances, logs, node, plan, slots};
use crate::config::Role;

/// One thing that can be asked.
#[derive(Debug)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path; a segment in braces stands for any one segment.
    pub path: &'static str,
    /// What may ask it.
    pub role: Role,
    /// Its name in the OpenAPI document.
    pub id: &'static str,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// Its query parameters.
    pub query: &'static [Parameter],
    /// What it makes of a body.
    pub body: BodyRule,
    /// Statuses of success, and what each holds.
    pub answers: &'static [(u16, Shape)],
    pub(super) handler: fn(Call) -> Handling,
}

/// A query parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its key.
    pub name: &'static str,
    /// Its type, as a name of a schema in the OpenAPI document.
    pub schema: &'static str,
}

/// What a route makes of a body.
#[derive(Clone, Copy, Debug)]
pub enum BodyRule {
    /// Nothing, whatever it is.
    Ignored,
    /// It may be absent or `{}`.
    Empty,
    /// It may be absent; where every field is optional.
    Optional(&'static str),
    /// It must be there.
    Required {
        /// Name of its schema.
        schema: &'static str,
        /// Bytes at most.
        limit: usize,
    },
}

impl BodyRule {
    /// Bytes at most.
    pub const fn limit(self) -> usize {
        match self {
            BodyRule::Required { limit, .. } => limit,
            BodyRule::Ignored | BodyRule::Empty | BodyRule::Optional(_) => BODY_MAX,
        }
    }
}

/// What an answer holds.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// JSON of this schema.
    Json(&'static str),
    /// JSON of this schema, or the same as a stream of server-sent events.
    JsonOrEvents(&'static str),
    /// Bytes of this media type.
    Bytes(&'static str),
    /// The same of one life's log, with headers that say which and from where.
    Log(&'static str),
}

/// A snapshot's bytes at most.
pub const SNAPSHOT_MAX: usize = 65_536;

const WAIT: Parameter = Parameter { name: "wait", schema: "Duration" };
const LIMIT: Parameter = Parameter { name: "limit", schema: "Limit" };

const fn parameter(name: &'static str, schema: &'static str) -> Parameter {
    Parameter { name, schema }
}

macro_rules! routes {
    ($($method:ident $path:literal $role:ident $id:ident ($handler:path) $summary:literal,
        query [$($query:expr),*], body $body:expr, gives [$($status:literal $shape:expr),*];)*) => {
        /// The table.
        pub static ROUTES: &[Route] = &[$(Route {
            method: Method::$method,
            path: $path,
            role: Role::$role,
            id: stringify!($id),
            summary: $summary,
            query: &[$($query),*],
            body: $body,
            answers: &[$(($status, $shape)),*],
            handler: |call| Box::pin($handler(call)),
        },)*];
    };
}

use BodyRule::{Empty, Ignored, Optional, Required};
use Shape::{Bytes, Json, JsonOrEvents, Log};

routes! {
    POST "/v1/instances" Admin createInstance (instances::create) "Create an instance and start it",
        query [WAIT], body Required { schema: "NewInstance", limit: BODY_MAX }, gives [201 Json("Instance")];
    GET "/v1/instances" Read listInstances (instances::list) "List instances by name",
        query [parameter("state", "State"), parameter("kind", "Word"), parameter("label", "LabelFilter"), LIMIT,
            parameter("after", "Name")], body Ignored, gives [200 Json("InstanceList")];
    GET "/v1/instances/{name}" Read showInstance (instances::show)
        "Show an instance, or wait until something is true of it",
        query [WAIT, parameter("until", "Until")], body Ignored, gives [200 Json("Instance"), 202 Json("Instance")];
    DELETE "/v1/instances/{name}" Admin removeInstance (instances::remove) "Take an instance off the list",
        query [WAIT, parameter("force", "Flag")], body Empty, gives [200 Json("Instance"), 202 Json("Instance")];
    POST "/v1/instances/{name}/start" Admin startInstance (instances::start) "Start a new incarnation",
        query [WAIT], body Empty, gives [200 Json("Instance"), 202 Json("Instance")];
    POST "/v1/instances/{name}/stop" Admin stopInstance (instances::stop) "Stop an instance",
        query [WAIT], body Optional("Stop"), gives [200 Json("Instance"), 202 Json("Instance")];
    POST "/v1/instances/{name}/signal" Admin signalInstance (instances::signal) "Send a signal to the main process",
        query [WAIT], body Required { schema: "SignalRequest", limit: BODY_MAX }, gives [200 Json("Instance")];
    PUT "/v1/instances/{name}/snapshot" Admin keepSnapshot (instances::snapshot) "Keep a value with an instance",
        query [], body Required { schema: "Snapshot", limit: SNAPSHOT_MAX }, gives [200 Json("Instance")];
    GET "/v1/instances/{name}/logs" Read readLogs (logs::read) "Read one stream of the newest incarnation",
        query [parameter("stream", "Stream"), parameter("follow", "Flag"), parameter("tail", "Count"),
            parameter("offset", "Count"), parameter("incarnation", "Incarnation"), parameter("after", "Incarnation"),
            WAIT], body Ignored,
        gives [200 Log("application/octet-stream"), 202 Json("Instance")];
    GET "/v1/events" Read listEvents (events::list) "List events, or follow them as they come",
        query [parameter("after", "Seq"), LIMIT], body Ignored, gives [200 JsonOrEvents("EventList")];
    POST "/v1/adopt" Admin adopt (custody::adopt) "Take custody of a process that something else started",
        query [], body Required { schema: "Adoption", limit: BODY_MAX }, gives [201 Json("Instance")];
    GET "/v1/node" Read showNode (node::node) "Show this node", query [], body Ignored, gives [200 Json("Node")];
    GET "/v1/nodes" Read listNodes (node::nodes) "List nodes", query [], body Ignored, gives [200 Json("NodeList")];
    POST "/v1/nodes/{id}" Admin setNode (node::set_node) "Drain a node",
        query [WAIT], body Required { schema: "NodeChange", limit: BODY_MAX }, gives [200 Json("Node"), 202 Json("Node")];
    GET "/v1/slots" Read listSlots (slots::list) "List the network slots by number",
        query [LIMIT, parameter("after", "Count")], body Ignored, gives [200 Json("SlotList")];
    POST "/v1/reconcile" Admin reconcile (node::reconcile) "Run a reconcile pass now",
        query [], body Empty, gives [200 Json("Generation")];
    GET "/v1/plan" Read showPlan (plan::show) "Show what the next reconcile pass would do", query [], body Ignored,
        gives [200 Json("Plan")];
    POST "/v1/apply" Admin applyPlan (plan::apply) "Do exactly what a plan says, or nothing",
        query [], body Required { schema: "Plan", limit: BODY_MAX }, gives [200 Json("Plan")];
    GET "/v1/self" Read showSelf (node::own) "Show the daemon itself", query [], body Ignored, gives [200 Json("Self")];
    GET "/v1/ledger" Read showLedger (node::ledger) "Show the ledger", query [], body Ignored,
        gives [200 Json("Ledger")];
    GET "/v1/doctor" Read showDoctor (node::doctor) "Show what this host allows, and what is wrong", query [],
        body Ignored, gives [200 Json("Doctor")];
    GET "/v1/version" Read showVersion (node::version) "Show the version", query [], body Ignored,
        gives [200 Json("Version")];
    GET "/v1/metrics" Read showMetrics (health::metrics_json) "Show the metrics as JSON", query [], body Ignored,
        gives [200 Json("Metrics")];
    GET "/v1/openapi.json" Read showOpenApi (health::openapi) "Show this document", query [], body Ignored,
        gives [200 Json("Any")];
    GET "/metrics" Read scrapeMetrics (health::metrics_text) "Show the metrics as Prometheus reads them", query [],
        body Ignored, gives [200 Bytes("text/plain; version=0.0.4; charset=utf-8")];
    GET "/livez" Read live (health::live) "Whether the daemon answers", query [], body Ignored,
        gives [200 Json("Health")];
    GET "/healthz" Read healthy (health::healthy) "Whether the daemon does its work", query [], body Ignored,
        gives [200 Json("Health")];
    GET "/readyz" Read ready (health::ready) "Whether the first reconcile is done", query [], body Ignored,
        gives [200 Json("Health")];
}

/// What is at a path.
#[derive(Debug)]
pub(super) enum Found<'p> {
    /// A route, and what stands in its braces, still encoded.
    Route(&'static Route, Vec<&'p str>),
    /// Other methods, as `Allow` lists them.
    Methods(String),
    /// Nothing.
    Nothing,
}

/// Finds the route of `method` and `path`. HEAD is GET without the body.
pub(super) fn find<'p>(method: &Method, path: &'p str) -> Found<'p> {
    let wanted = if *method == Method::HEAD { &Method::GET } else { method };
    let mut methods: Vec<&str> = Vec::new();
    for route in ROUTES {
        let Some(segments) = matches(route.path, path) else { continue };
        if route.method == *wanted {
            return Found::Route(route, segments);
        }
        methods.push(route.method.as_str());
        if route.method == Method::GET {
            methods.push("HEAD");
        }
    }
    if methods.is_empty() { Found::Nothing } else { Found::Methods(methods.join(", ")) }
}

/// What stands in the braces of `pattern`, where `path` fits it segment by segment.
fn matches<'p>(pattern: &str, path: &'p str) -> Option<Vec<&'p str>> {
    let mut segments = Vec::new();
    let mut rest = path.split('/');
    for part in pattern.split('/') {
        let segment = rest.next()?;
        if part.starts_with('{') {
            segments.push(segment);
        } else if !says(segment, part) {
            return None;
        }
    }
    if rest.next().is_none() { Some(segments) } else { None }
}

/// Whether `segment`, decoded once, is `part`.
fn says(segment: &str, part: &str) -> bool {
    segment == part || segment.contains('%') && decode(segment).as_deref() == Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_segment_is_decoded_once() {
        for path in ["/v1/%6eode", "/%76%31/node", "/v1/%6E%6F%64%65"] {
            assert!(matches!(find(&Method::GET, path), Found::Route(route, _) if route.path == "/v1/node"), "{path}");
        }
        let stop = find(&Method::POST, "/v1/instances/a%2Fstop/%73top");
        assert!(matches!(stop, Found::Route(route, at) if route.id == "stopInstance" && at == ["a%2Fstop"]));
        for nothing in
            ["/v1%2Fnode", "/v1/%256eode", "/v1/node%", "/v1/nod%zz", "/v1/%ff", "/v1/%2e/node", "%2Fv1/node"]
        {
            assert!(matches!(find(&Method::GET, nothing), Found::Nothing), "{nothing}");
        }
        assert!(matches!(find(&Method::DELETE, "/v1/%6eode"), Found::Methods(_)));
    }

    #[test]
    fn paths_are_matched_segment_by_segment() {
        assert!(matches!(find(&Method::GET, "/v1/instances/a"), Found::Route(_, segments) if segments == ["a"]));
        assert!(matches!(find(&Method::GET, "/v1/instances/"), Found::Route(_, segments) if segments == [""]));
        assert!(matches!(find(&Method::HEAD, "/livez"), Found::Route(..)));
        for nothing in [
            "",
            "*",
            "/",
            "//v1/instances",
            "/v1//instances",
            "/v1/instances/a/b",
            "/V1/instances",
            "/v1/./instances",
            "/livez/",
        ] {
            assert!(matches!(find(&Method::GET, nothing), Found::Nothing), "{nothing}");
        }
        assert!(
            matches!(find(&Method::PATCH, "/v1/instances"), Found::Methods(methods) if methods == "POST, GET, HEAD")
        );
    }

    #[test]
    fn no_two_rows_are_the_same() {
        for (index, route) in ROUTES.iter().enumerate() {
            for other in &ROUTES[index + 1..] {
                assert!(route.id != other.id, "{}", route.id);
                assert!((&route.method, route.path) != (&other.method, other.path), "{}", route.path);
            }
        }
    }
}
