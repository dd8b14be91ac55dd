//! The OpenAPI 3.1 document, built from the table of routes.

use serde_json::{Map, Value, json};

use super::routes::instances::SNAPSHOT_DEPTH_MAX;
use super::spec::LABEL_KEY;
use super::table::{BodyRule, ROUTES, Route, SNAPSHOT_MAX, Shape};
use crate::refusal::Kind;

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(path) = path {
            path.insert(route.method.as_str().to_ascii_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sexton",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Custody of processes on one node.",
            "license": { "name": "Apache-2.0 OR MIT" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "parameters": parameters(route),
        "responses": responses(route),
    });
    if let (Some(body), Value::Object(operation)) = (request_body(route.body), &mut operation) {
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let braces = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path =
        braces.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": reference("Name") }));
    let in_query =
        route.query.iter().map(|query| json!({ "name": query.name, "in": "query", "schema": reference(query.schema) }));
    let mut parameters: Vec<Value> = in_path.chain(in_query).collect();
    if route.id == "createInstance" {
        let key = json!({ "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$" });
        parameters.push(json!({ "name": "Idempotency-Key", "in": "header", "schema": key }));
    }
    if route.id == "listEvents" {
        parameters.push(json!({ "name": "Last-Event-ID", "in": "header", "schema": reference("Seq") }));
    }
    parameters
}

fn request_body(rule: BodyRule) -> Option<Value> {
    let (required, schema) = match rule {
        BodyRule::Ignored => return None,
        BodyRule::Empty => (false, json!({ "type": "object", "maxProperties": 0 })),
        BodyRule::Optional(schema) => (false, reference(schema)),
        BodyRule::Required { schema, .. } => (true, reference(schema)),
    };
    Some(json!({ "required": required, "content": { "application/json": { "schema": schema } } }))
}

fn responses(route: &Route) -> Value {
    let mut responses = Map::new();
    for (status, shape) in route.answers {
        let content = match shape {
            Shape::Json(schema) => json!({ "application/json": { "schema": reference(schema) } }),
            Shape::JsonOrEvents(schema) => json!({
                "application/json": { "schema": reference(schema) },
                "text/event-stream": { "schema": { "type": "string" } },
            }),
            Shape::Bytes(media_type) | Shape::Log(media_type) => {
                let essence = media_type.split(';').next().unwrap_or(media_type);
                json!({ (essence): {} })
            }
        };
        let description = match status {
            201 => "made",
            202 => "accepted, not finished: the present state",
            _ => "done",
        };
        let mut response = json!({ "description": description, "content": content });
        if let (Some(headers), Value::Object(response)) = (headers(*status, *shape), &mut response) {
            response.insert("headers".to_owned(), headers);
        }
        responses.insert(status.to_string(), response);
    }
    responses.insert("default".to_owned(), problem());
    Value::Object(responses)
}

fn headers(status: u16, shape: Shape) -> Option<Value> {
    match (status, shape) {
        (201, _) => Some(json!({ "Location": { "schema": { "type": "string" } } })),
        (_, Shape::Log(_)) => Some(json!({
            "Sexton-Incarnation": { "description": "the life whose log comes first", "schema": reference("Incarnation") },
            "Sexton-Offset": { "description": "the first byte's number in it", "schema": reference("Count") },
        })),
        _ => None,
    }
}

/// Every refusal has the same shape, whatever its status.
fn problem() -> Value {
    json!({
        "description": "refused; `code` says why",
        "content": { "application/problem+json": { "schema": reference("Problem") } },
    })
}

fn text(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": pattern })
}

fn optional(schema: Value) -> Value {
    json!({ "oneOf": [schema, { "type": "null" }] })
}

fn words<T: std::fmt::Display>(words: &[T]) -> Value {
    json!({ "type": "string", "enum": words.iter().map(ToString::to_string).collect::<Vec<_>>() })
}

/// An object all of whose fields are there.
fn object(fields: Value) -> Value {
    let required: Vec<String> = fields.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default();
    json!({ "type": "object", "properties": fields, "required": required })
}

/// An object that takes these fields and no others, and needs some of them.
fn closed(fields: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": fields, "required": required, "additionalProperties": false })
}

fn texts() -> Value {
    json!({ "type": "object", "additionalProperties": { "type": "string" } })
}

fn labels() -> Value {
    let keys = json!({ "description": LABEL_KEY, "minLength": 1, "maxLength": 255, "pattern": "^[^=\\u0000-\\u001f\\u007f-\\u009f]+$" });
    json!({ "type": "object", "additionalProperties": { "type": "string" }, "propertyNames": keys })
}

fn page_of(schema: &str) -> Value {
    object(json!({ "items": { "type": "array", "items": reference(schema) }, "next": {} }))
}

fn schemas() -> Value {
    let mut all = Map::new();
    for part in [scalars(), requests(), instance(), plan(), rest()] {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    Value::Object(all)
}

fn scalars() -> Value {
    use sexton_plan::state::{ExitSource, LostReason, Restart, State};
    json!({
        "Any": {},
        "Name": text("^[a-z0-9][a-z0-9._-]{0,62}$"),
        "Word": text("^[a-z0-9][a-z0-9._/-]{0,62}$"),
        "Incarnation": text("^[0-7][0-9A-HJKMNP-TV-Z]{25}$"),
        "LabelFilter": { "type": "string", "description": "KEY=VALUE, or KEY for its presence; may be repeated" },
        "Duration": text("^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$"),
        "Limit": { "type": "integer", "minimum": 1, "maximum": 1000, "default": 100 },
        "Count": { "type": "integer", "minimum": 0 },
        "Seq": { "type": "integer", "minimum": 0 },
        "Flag": { "type": "boolean", "default": false },
        "Stream": words(&["stdout", "stderr"]),
        "Until": words(&["exit", "settled", "running", "removed"]),
        "State": words(State::ALL),
        "Restart": words(Restart::ALL),
        "ExitSource": words(ExitSource::ALL),
        "LostReason": words(LostReason::ALL),
        "Signal": { "type": "string", "description": "a name with or without `SIG`, or \"1\" to \"64\"" },
        "Timestamp": { "type": "string", "format": "date-time" },
    })
}

fn nullable(kind: &str) -> Value {
    json!({ "type": [kind, "null"] })
}

/// The fields of a spec, but for `argv`, and the name.
fn spec_fields() -> Value {
    let count = json!({ "type": ["integer", "null"], "minimum": 1 });
    json!({
        "name": reference("Name"),
        "env": optional(texts()),
        "cwd": nullable("string"),
        "user": nullable("string"),
        "kind": optional(reference("Word")),
        "runtime": nullable("string"),
        "labels": optional(labels()),
        "grace": optional(reference("Duration")),
        "stop_signal": optional(reference("Signal")),
        "slot": nullable("boolean"),
        "limits": optional(closed(json!({ "pids": count, "memory": count }), &[])),
        "pidns": nullable("boolean"),
        "restart": optional(reference("Restart")),
    })
}

/// The fields of a spec, and some more.
fn spec_fields_and(more: Value) -> Value {
    let mut fields = spec_fields();
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
        fields.extend(more);
    }
    fields
}

fn new_instance() -> Value {
    let argv = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    closed(spec_fields_and(json!({ "argv": argv })), &["name", "argv"])
}

/// Exactly one of `pidfs_ino` and `start_ticks` says which process the number means.
fn adoption() -> Value {
    let mut adoption = closed(
        spec_fields_and(json!({
            "argv": { "type": ["array", "null"], "items": { "type": "string" }, "minItems": 1 },
            "pid": { "type": "integer", "minimum": 2 },
            "pidfs_ino": { "type": ["integer", "null"], "minimum": 1 },
            "start_ticks": { "type": ["integer", "null"], "minimum": 0 },
        })),
        &["name", "pid"],
    );
    if let Value::Object(adoption) = &mut adoption {
        let one_of = json!([{ "required": ["pidfs_ino"] }, { "required": ["start_ticks"] }]);
        adoption.insert("oneOf".to_owned(), one_of);
    }
    adoption
}

fn requests() -> Value {
    json!({
        "NewInstance": new_instance(),
        "Adoption": adoption(),
        "NodeChange": closed(json!({
            "status": words(&["standby", "healthy", "unhealthy", "draining"]), "forceStop": nullable("boolean"),
            "timeout": optional(reference("Duration")),
        }), &["status"]),
        "Stop": closed(json!({ "force": nullable("boolean"), "grace": optional(reference("Duration")) }), &[]),
        "SignalRequest": closed(json!({ "signal": reference("Signal") }), &["signal"]),
        "Snapshot": { "description": format!("any JSON value of at most {SNAPSHOT_MAX} bytes, nested {SNAPSHOT_DEPTH_MAX} deep at most") },
    })
}

fn instance() -> Value {
    let integer = || json!({ "type": "integer" });
    let string = || json!({ "type": "string" });
    let exit = object(json!({
        "code": { "type": ["integer", "null"], "minimum": 0, "maximum": 255 },
        "signal": { "type": ["integer", "null"], "minimum": 1, "maximum": 64 },
        "source": reference("ExitSource"), "at": reference("Timestamp"),
    }));
    let identity = object(json!({
        "pid": integer(), "pidfs_ino": { "type": ["integer", "null"] }, "start_ticks": { "type": ["integer", "null"] },
        "boot_id": string(), "pid_ns": integer(), "strength": words(&["pidfs", "starttime", "none"]),
    }));
    let spec = object(json!({
        "argv": { "type": "array", "items": string() }, "env": texts(), "cwd": { "type": ["string", "null"] },
        "user": { "type": ["string", "null"] }, "kind": reference("Word"), "runtime": string(), "labels": texts(),
        "grace": reference("Duration"), "stop_signal": reference("Signal"), "slot": { "type": "boolean" },
        "limits": { "type": "object" }, "pidns": { "type": "boolean" }, "restart": reference("Restart"),
    }));
    let resource =
        object(json!({ "kind": string(), "key": string(), "state": words(&["intent", "held", "releasing"]) }));
    let stuck = object(json!({ "pid": integer(), "state": string(), "wchan": string() }));
    json!({
        "Exit": exit, "Identity": identity, "Spec": spec, "Resource": resource, "StuckProcess": stuck,
        "Cgroup": object(json!({ "path": string(), "ino": integer() })),
        "Place": object(json!({
            "index": integer(), "netns": string(), "address": string(), "gateway": string(),
            "tap": { "type": ["string", "null"] },
        })),
        "Instance": object(json!({
            "name": reference("Name"), "incarnation": string(), "state": reference("State"),
            "reason": { "type": ["string", "null"] }, "kind": reference("Word"), "runtime": string(), "labels": texts(),
            "spec": reference("Spec"), "identity": optional(reference("Identity")),
            "cgroup": optional(reference("Cgroup")),
            "kill": { "enum": ["cgroup", "pidns", "tree", null] },
            "resources": { "type": "array", "items": reference("Resource") },
            "slot": optional(reference("Place")),
            "exit": optional(reference("Exit")),
            "stuck": { "type": ["array", "null"], "items": reference("StuckProcess") },
            "snapshot": {}, "node": string(), "created_at": reference("Timestamp"),
            "started_at": optional(reference("Timestamp")), "ended_at": optional(reference("Timestamp")),
            "adopted": { "type": "boolean" },
            "restarts": object(json!({ "count": integer(), "next_at": optional(reference("Timestamp")) })),
            "control": optional(object(json!({
                "socket": string(), "peer": words(&["instance", "stranger", "nobody"]),
            }))),
        })),
        "InstanceList": page_of("Instance"),
    })
}

fn plan() -> Value {
    let integer = || json!({ "type": "integer" });
    let string = || json!({ "type": "string" });
    json!({
        "Plan": object(json!({
            "generation": integer(), "actions": { "type": "array", "items": reference("Action") },
            "left": { "type": "array", "items": reference("LetAlone") },
        })),
        "Action": json!({ "oneOf": [
            object(json!({
                "action": words(&["write_back", "terminate"]), "watch": string(), "id": string(),
                "identity": reference("Identity"), "file": string(), "reason": string(),
            })),
            object(json!({
                "action": words(&["adopt", "finish_stop", "close"]), "instance": reference("Name"),
                "incarnation": string(), "identity": optional(reference("Identity")), "reason": string(),
            })),
            object(json!({
                "action": words(&["release"]), "kind": words(&["mark", "logs", "pin", "cgroup"]), "key": string(),
                "ino": { "type": ["integer", "null"] }, "reason": string(),
            })),
            object(json!({
                "action": words(&["repair_slot"]), "index": integer(), "netns": string(),
                "ns_ino": { "type": ["integer", "null"] }, "instance": reference("Name"), "incarnation": string(),
                "reason": string(),
            })),
            object(json!({
                "action": words(&["release_slot"]), "index": integer(), "netns": string(),
                "ns_ino": { "type": ["integer", "null"] }, "reason": string(),
            })),
            object(json!({ "action": words(&["make_slot"]), "index": integer(), "reason": string() })),
            object(json!({ "action": words(&["release_table"]), "table": string(), "reason": string() })),
        ] }),
        "LetAlone": object(json!({ "what": string(), "pid": { "type": ["integer", "null"] }, "reason": string() })),
    })
}

fn rest() -> Value {
    let integer = || json!({ "type": "integer" });
    let string = || json!({ "type": "string" });
    let codes: Vec<&str> = Kind::ALL.iter().map(|kind| kind.code()).collect();
    json!({
        "Event": object(json!({
            "seq": integer(), "at": reference("Timestamp"), "boot_id": string(), "node": string(),
            "instance": optional(reference("Name")), "incarnation": { "type": ["string", "null"] },
            "kind": words(sexton_ledger::EventKind::ALL), "data": {},
        })),
        "EventList": page_of("Event"),
        "Left": object(json!({ "name": string(), "error": { "type": ["string", "null"] } })),
        "Operations": object(json!({ "kind": string(), "count": integer(), "since": reference("Timestamp") })),
        "Node": object(json!({
            "id": reference("Name"), "status": words(&["standby", "healthy", "unhealthy", "draining"]),
            "drained": { "type": "boolean" }, "deadline": optional(reference("Timestamp")),
            "inflight": integer(), "operations": { "type": "array", "items": reference("Operations") },
            "left": { "type": "array", "items": reference("Left") },
        })),
        "NodeList": page_of("Node"),
        "Slot": object(json!({
            "index": integer(), "name": string(), "netns": string(), "link": string(), "address": string(),
            "gateway": string(), "tap": { "type": ["string", "null"] },
            "state": words(&["making", "ready", "held", "releasing", "quarantined", "skipped"]),
            "instance": optional(reference("Name")), "node": reference("Name"),
        })),
        "SlotList": page_of("Slot"),
        "Generation": object(json!({ "generation": integer() })),
        "Self": object(json!({
            "worker_pid": integer(), "keeper_pid": integer(), "fds": integer(), "threads": integer(),
            "rss_bytes": integer(), "ledger_path": string(), "generation": integer(),
        })),
        "Ledger": object(json!({
            "path": string(), "bytes": integer(), "first_seq": { "type": ["integer", "null"] }, "last_seq": integer(),
        })),
        "Check": object(json!({
            "name": string(), "ok": { "type": "boolean" }, "grade": words(&["ok", "warn", "fail"]), "detail": string(),
            "hint": { "type": ["string", "null"] },
        })),
        "Doctor": object(json!({
            "ok": { "type": "boolean" }, "checks": { "type": "array", "items": reference("Check") },
        })),
        "Version": object(json!({ "version": string(), "api": string() })),
        "Health": { "type": "object", "properties": { "status": string(), "generation": integer() }, "required": ["status"] },
        "Metrics": { "type": "object" },
        "Problem": object(json!({
            "code": words(&codes), "title": string(), "status": integer(), "detail": string(),
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_exactly_what_is_served() {
        let document = document();
        let paths = document["paths"].as_object().expect("paths");
        let listed: usize = paths.values().map(|path| path.as_object().expect("operations").len()).sum();
        assert_eq!(listed, ROUTES.len());
        for route in ROUTES {
            let method = route.method.as_str().to_ascii_lowercase();
            assert_eq!(paths[route.path][&method]["operationId"], route.id);
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value, document: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(to)) = members.get("$ref") {
                        let pointer = to.strip_prefix('#').expect("local");
                        assert!(document.pointer(pointer).is_some(), "{to}");
                    }
                    members.values().for_each(|member| walk(member, document));
                }
                Value::Array(list) => list.iter().for_each(|element| walk(element, document)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        let document = document();
        walk(&document, &document);
    }

    #[test]
    fn a_new_instance_takes_the_fields_that_the_reader_takes() {
        let listed = requests()["NewInstance"]["properties"].as_object().expect("fields").len();
        assert_eq!(listed, crate::api::spec::FIELDS.len());
    }
}
