use super::Api;

use serde_json::json;

#[tokio::test]
async fn an_instance_is_made_shown_stopped_and_removed() {
    let api = Api::start("life");
    let body = r#"{"name":"vm-1","argv":["/bin/true"],"env":{"API_TOKEN":"s","A":"b"},"labels":{"team":"x"}}"#;
    let made = api.ask("POST", "/v1/instances", Some(body)).await;
    assert_eq!((made.status, made.header("location")), (201, Some("/v1/instances/vm-1")));
    let view = api.ask("GET", "/v1/instances/vm-1", None).await.json();
    assert_eq!(view["spec"]["env"], json!({"A": "b", "API_TOKEN": "***"}));
    for field in [
        "name",
        "incarnation",
        "state",
        "reason",
        "kind",
        "runtime",
        "labels",
        "spec",
        "identity",
        "cgroup",
        "kill",
        "resources",
        "exit",
        "stuck",
        "snapshot",
        "node",
        "created_at",
        "started_at",
        "ended_at",
        "adopted",
    ] {
        assert!(view.get(field).is_some(), "{field}");
    }
    assert_eq!(
        api.ask("POST", "/v1/instances/vm-1/signal", Some(r#"{"signal":"SIGUSR1"}"#)).await.json()["reason"],
        "signal 10"
    );
    api.ask("DELETE", "/v1/instances/vm-1", None).await.refused(409, "wrong_state");
    assert_eq!(api.ask("POST", "/v1/instances/vm-1/stop?wait=5s", Some("{}")).await.status, 200);
    assert_eq!(api.ask("DELETE", "/v1/instances/vm-1?wait=5s", None).await.status, 200);
    api.ask("GET", "/v1/instances/vm-1", None).await.refused(404, "not_found");
}

#[tokio::test]
async fn waiting_answers_202_with_the_present_state_when_the_time_is_over() {
    let api = Api::start("wait");
    api.create("slow-1").await;
    for path in ["/v1/instances/slow-1/stop", "/v1/instances/slow-1/stop?wait=20ms"] {
        let reply = api.ask("POST", path, None).await;
        assert_eq!((reply.status, reply.json()["state"].as_str()), (202, Some("stopping")), "{path}");
    }
    let reply = api.ask("GET", "/v1/instances/slow-1?wait=20ms&until=exit", None).await;
    assert_eq!(reply.status, 202);
}

#[tokio::test]
async fn a_stop_is_carried_out_though_its_caller_hangs_up() {
    let api = Api::start("hangup");
    api.create("vm-1").await;
    let mut client = api.connect().await;
    client.send(&super::request("POST", "/v1/instances/vm-1/stop?wait=1h", &[], None)).await;
    drop(client);
    let reply = api.ask("GET", "/v1/instances/vm-1?wait=10s&until=settled", None).await;
    assert_eq!((reply.status, reply.json()["state"].as_str()), (200, Some("exited")));
}

#[tokio::test]
async fn one_cut_off_does_nothing() {
    let api = Api::start("cut");
    let whole = super::request("POST", "/v1/instances", &[], Some(r#"{"name":"vm-1","argv":["/bin/true"]}"#));
    for cut in [1, 20, whole.len() - 1] {
        let mut client = api.connect().await;
        client.send(&whole[..whole.len() - cut]).await;
    }
    assert_eq!(api.ask("GET", "/v1/instances", None).await.json()["items"], json!([]));
}

#[tokio::test]
async fn a_caller_that_half_closes_still_gets_its_answer() {
    use tokio::io::AsyncWriteExt as _;
    let api = Api::start("half");
    let mut client = api.connect().await;
    client.send(&super::request("GET", "/livez", &[], None)).await;
    client.stream.shutdown().await.expect("half-closed");
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let api = Api::start("list");
    for name in ["a", "b", "c"] {
        api.create(name).await;
    }
    let page = api.ask("GET", "/v1/instances?limit=2", None).await.json();
    assert_eq!((page["items"].as_array().map(Vec::len), page["next"].as_str()), (Some(2), Some("b")));
    let page = api.ask("GET", "/v1/instances?limit=2&after=b", None).await.json();
    assert_eq!((page["items"][0]["name"].as_str(), page["next"].is_null()), (Some("c"), true));
    assert_eq!(api.ask("GET", "/v1/instances?state=lost", None).await.json()["items"], json!([]));
    for key in ["TEAM", "app.kubernetes.io/Name", "%C3%A9", "a%20b", &"x".repeat(255)] {
        for filter in [key.to_owned(), format!("{key}%3Dx")] {
            assert_eq!(api.ask("GET", &format!("/v1/instances?label={filter}"), None).await.status, 200, "{filter}");
        }
    }
    for bad in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=+5",
        "state=gone",
        "kind=A",
        "label==b",
        "label=a%0Ab",
        "after=..",
        "sate=lost",
        "limit=1&limit=2",
        "after=%zz",
    ] {
        api.ask("GET", &format!("/v1/instances?{bad}"), None).await.refused(400, "bad_argument");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_in_its_status() {
    let api = Api::start("status");
    api.create("vm-1").await;
    let run = r#"{"name":"vm-1","argv":["/bin/true"]}"#;
    api.ask("POST", "/v1/instances", Some(run)).await.refused(409, "name_in_use");
    let full = api.ask("POST", "/v1/instances", Some(r#"{"name":"full","argv":["/bin/true"]}"#)).await;
    assert!(full.refused(503, "node_draining").header("retry-after").is_some());
    for bad in [
        "",
        "{",
        "[]",
        "null",
        r#"{"name":"x"}"#,
        r#"{"name":"x","argv":["a"],"colour":1}"#,
        r#"{"name":"x","name":"x","argv":["a"]}"#,
        "{\"name\":\"\u{0}\"}",
    ] {
        api.ask("POST", "/v1/instances", Some(bad)).await.refused(400, "bad_argument");
    }
    for name in ["..", ".", "%2e%2e", "A", "a%2Fb", "%ff", "%zz", "", "a%00"] {
        api.ask("GET", &format!("/v1/instances/{name}"), None).await.refused(400, "bad_argument");
        api.ask("POST", &format!("/v1/instances/{name}/stop"), None).await.refused(400, "bad_argument");
    }
    for nothing in ["/", "/v1", "/v1/instances/vm-1/../vm-1", "/v1//instances", "/v1/instance", "/v1/instances/vm-1/"] {
        api.ask("GET", nothing, None).await.refused(404, "not_found");
    }
    for bad in [r#"{"signal":"TREM"}"#, r#"{"signal":15}"#, r#"{"signal":"65"}"#, "{}", r#"{"signal":"TERM","x":1}"#] {
        api.ask("POST", "/v1/instances/vm-1/signal", Some(bad)).await.refused(400, "bad_argument");
    }
    for (path, body) in [
        ("stop", r#"{"force":"yes"}"#),
        ("stop", r#"{"grace":5}"#),
        ("stop", r#"{"frce":true}"#),
        ("start", r#"{"x":1}"#),
        ("stop?wait=5", "{}"),
        ("stop?wiat=5s", "{}"),
    ] {
        api.ask("POST", &format!("/v1/instances/vm-1/{path}"), Some(body)).await.refused(400, "bad_argument");
    }
}

#[tokio::test]
async fn methods_and_media_types_are_told_apart() {
    let api = Api::start("method");
    let refused = api.ask("PATCH", "/v1/instances", None).await.refused(405, "method_not_allowed");
    assert_eq!(refused.header("allow"), Some("POST, GET, HEAD"));
    assert_eq!(api.ask("HEAD", "/livez", None).await.status, 200);
    let run = r#"{"name":"vm-1","argv":["/bin/true"]}"#;
    for media_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
        let refused = api.ask_with("POST", "/v1/instances", &[("content-type", media_type)], Some(run)).await;
        refused.refused(415, "unsupported_media_type");
    }
    api.ask_with("POST", "/v1/instances", &[("content-encoding", "gzip")], Some(run))
        .await
        .refused(415, "unsupported_media_type");
    let accepted =
        api.ask_with("POST", "/v1/instances", &[("content-type", "Application/JSON; charset=utf-8")], Some(run)).await;
    assert_eq!(accepted.status, 201);
}

#[tokio::test]
async fn a_key_must_be_visible_ascii() {
    let api = Api::start("key");
    let run = r#"{"name":"vm-1","argv":["/bin/true"]}"#;
    for key in ["", "a b", &"k".repeat(256)] {
        api.ask_with("POST", "/v1/instances", &[("idempotency-key", key)], Some(run))
            .await
            .refused(400, "bad_argument");
    }
    let twice = |second| [("idempotency-key", "k-1"), ("idempotency-key", second)];
    api.ask_with("POST", "/v1/instances", &twice("k-2"), Some(run)).await.refused(400, "bad_argument");
    assert_eq!(api.ask_with("POST", "/v1/instances", &twice("k-1"), Some(run)).await.status, 201);
}

#[tokio::test]
async fn a_snapshot_is_any_value_of_bounded_size() {
    let api = Api::start("snapshot");
    api.create("vm-1").await;
    let path = "/v1/instances/vm-1/snapshot";
    for value in ["5", "null", r#"{"a":[1,null]}"#, &format!("\"{}\"", "x".repeat(65_534))] {
        assert_eq!(api.ask("PUT", path, Some(value)).await.status, 200, "{}", value.len());
    }
    api.ask("PUT", path, Some(&format!("\"{}\"", "x".repeat(65_535)))).await.refused(413, "too_large");
    api.ask("PUT", path, None).await.refused(400, "bad_argument");
}

#[tokio::test]
async fn strangers_are_kept_out() {
    let api = Api::with_role("stranger", false);
    api.ask("GET", "/livez", None).await.refused(403, "forbidden");
    api.ask("GET", "/nothing", None).await.refused(403, "forbidden");
}

#[tokio::test]
async fn events_are_paged_and_followed_from_where_one_left() {
    let api = Api::start("events");
    api.record_events(5);
    let page = api.ask("GET", "/v1/events?after=1&limit=2", None).await.json();
    let seqs: Vec<_> = page["items"].as_array().expect("items").iter().map(|event| event["seq"].as_u64()).collect();
    assert_eq!((seqs, page["next"].as_u64()), (vec![Some(2), Some(3)], Some(3)));
    let page = api.ask("GET", "/v1/events?after=3", None).await.json();
    assert!(page["next"].is_null() && page["items"].as_array().map(Vec::len) == Some(2), "{page}");
    api.ask("GET", "/v1/events?after=-1", None).await.refused(400, "bad_argument");

    let stream = [("accept", "text/event-stream"), ("last-event-id", "4")];
    let mut client = api.connect().await;
    client.send(&super::request("GET", "/v1/events?after=0", &stream, None)).await;
    let head = String::from_utf8(client.until(b"\r\n\r\n").await).expect("ASCII");
    assert!(head.contains("text/event-stream"), "{head}");
    let first = String::from_utf8(client.until(b"}\n\n").await).expect("UTF-8");
    assert!(first.contains("id: 5\n") && !first.contains("id: 4\n"), "{first}");
    api.record_events(1);
    let second = String::from_utf8(client.until(b"}\n\n").await).expect("UTF-8");
    assert!(second.contains("id: 6\n"), "{second}");
}

#[tokio::test]
async fn logs_are_read_and_followed_byte_for_byte() {
    use std::io::Write as _;
    let api = Api::start("logs");
    api.create("vm-1").await;
    let path = api.settings.log_path("vm-1", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "stdout");
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    let mut log = std::fs::File::create(&path).expect("made");
    log.write_all(b"one\n\xff\x00two\nthree").expect("written");
    let reply = api.ask("GET", "/v1/instances/vm-1/logs", None).await;
    assert_eq!((reply.status, reply.body.as_slice()), (200, &b"one\n\xff\x00two\nthree"[..]));
    assert_eq!(api.ask("GET", "/v1/instances/vm-1/logs?tail=1", None).await.body, b"three");
    assert_eq!(api.ask("GET", "/v1/instances/vm-1/logs?stream=stderr", None).await.body, b"");
    for bad in ["stream=stdin", "tail=-1", "tail=x", "follow=maybe"] {
        api.ask("GET", &format!("/v1/instances/vm-1/logs?{bad}"), None).await.refused(400, "bad_argument");
    }
    api.ask("GET", "/v1/instances/nobody/logs", None).await.refused(404, "not_found");

    let mut client = api.connect().await;
    client.send(&super::request("GET", "/v1/instances/vm-1/logs?follow=true&tail=0", &[], None)).await;
    client.until(b"\r\n\r\n").await;
    log.write_all(b" and four\n").expect("written");
    let piece = client.until(b"four\n").await;
    assert!(piece.ends_with(b" and four\n"), "{piece:?}");
    api.ask("DELETE", "/v1/instances/vm-1?force=true", None).await;
    assert!(client.until(b"0\r\n\r\n").await.ends_with(b"0\r\n\r\n"), "a removal ends it");
}

#[tokio::test]
async fn a_reader_who_falls_behind_what_is_kept_is_cut_off_and_goes_on_where_it_was() {
    let api = Api::start("behind");
    api.create("vm-1").await;
    let life = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let path = api.settings.log_path("vm-1", life, "stdout");
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    let text: Vec<u8> = (0..1 << 20).flat_map(|n| format!("{n:07}\n").into_bytes()).collect();
    std::fs::write(&path, &text).expect("written");
    let log = std::fs::File::options().write(true).open(&path).expect("opened");

    let mut client = api.connect().await;
    let ask = format!("/v1/instances/vm-1/logs?incarnation={life}&offset=8");
    client.send(&super::request("GET", &ask, &[], None)).await;
    let head = String::from_utf8(client.until(b"\r\n\r\n").await).expect("ASCII");
    assert!(head.contains(&format!("sexton-incarnation: {life}\r\nsexton-offset: 8\r\n")), "{head}");
    client.until(b"0000001\n").await;
    // More than may be on its way.
    let kept = 1 << 22;
    sexton_sys::file::punch_hole(std::os::fd::AsRawFd::as_raw_fd(&log), 0, kept).expect("punched");
    let rest = client.until(b"\r\n0\r\n\r\n").await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a part is not told as the whole");
    assert!(rest.windows(8).all(|window| window != b"0524288\n"), "nothing behind a gap is sent");

    let reply = api.ask("GET", &format!("/v1/instances/vm-1/logs?incarnation={life}&offset=80"), None).await;
    assert_eq!(reply.header("sexton-offset"), Some("4194312"), "the first whole line behind what was dropped");
    assert_eq!(reply.body, text[4_194_312..]);
    for bad in ["offset=1&tail=1", "offset=-1", "after=x", &format!("after={life}&incarnation={life}")] {
        api.ask("GET", &format!("/v1/instances/vm-1/logs?{bad}"), None).await.refused(400, "bad_argument");
    }
    let none = api.ask("GET", &format!("/v1/instances/vm-1/logs?after={life}&wait=1ms"), None).await;
    assert_eq!((none.status, none.json()["incarnation"].as_str()), (202, Some(life)));
}

#[tokio::test]
async fn a_drain_tells_what_is_left_and_is_not_left() {
    let api = Api::start("drain");
    api.create("vm-1").await;
    for bad in [r#"{"status":"asleep"}"#, r#"{"status":"healthy","forceStop":true}"#, "{}"] {
        api.ask("POST", "/v1/nodes/self", Some(bad)).await.refused(400, "bad_argument");
    }
    api.ask("POST", "/v1/nodes/other", Some(r#"{"status":"draining"}"#)).await.refused(404, "not_found");
    let node = api.ask("GET", "/v1/node", None).await.json();
    assert_eq!(
        node,
        json!({"id": "n1", "status": "healthy", "drained": false, "deadline": null,
            "inflight": 1, "operations": [{"kind": "instance", "count": 1, "since": "1970-01-01T00:00:00Z"}], "left": []})
    );
    for word in ["standby", "unhealthy", "healthy"] {
        let reply = api.ask("POST", "/v1/nodes/self", Some(&format!(r#"{{"status":"{word}"}}"#))).await;
        assert_eq!((reply.status, reply.json()["status"].as_str()), (200, Some(word)));
    }
    let reply = api.ask("POST", "/v1/nodes/self?wait=20ms", Some(r#"{"status":"draining"}"#)).await;
    assert_eq!((reply.status, reply.json()["left"].clone()), (202, json!([{"name": "vm-1", "error": null}])));
    for other in ["healthy", "standby", "unhealthy"] {
        let body = format!(r#"{{"status":"{other}"}}"#);
        api.ask("POST", "/v1/nodes/n1", Some(&body)).await.refused(409, "wrong_state");
    }
    api.ask("DELETE", "/v1/instances/vm-1?force=true", None).await;
    let reply = api.ask("POST", "/v1/nodes/n1?wait=10s", Some(r#"{"status":"draining","forceStop":true}"#)).await;
    assert_eq!((reply.status, reply.json()["drained"].as_bool()), (200, Some(true)));
}

#[tokio::test]
async fn adoption_is_refused_by_what_is_wrong_with_it() {
    let api = Api::start("adopt");
    for pid in [1, i32::MAX] {
        let body = format!(r#"{{"name":"a","pid":{pid},"pidfs_ino":1}}"#);
        api.ask("POST", "/v1/adopt", Some(&body)).await.refused(409, "wrong_state");
    }
    for bad in [
        r#"{"name":"a","pid":0,"pidfs_ino":1}"#,
        r#"{"name":"A","pid":5,"pidfs_ino":1}"#,
        r#"{"name":"a","pid":5}"#,
        r#"{"name":"a","pid":5,"pidfs_ino":1,"x":1}"#,
    ] {
        api.ask("POST", "/v1/adopt", Some(bad)).await.refused(400, "bad_argument");
    }
}

#[tokio::test]
async fn following_one_life_ends_with_it() {
    use std::io::Write as _;
    let api = Api::start("life-log");
    api.create("vm-1").await;
    let life = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let path = api.settings.log_path("vm-1", life, "stdout");
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    let mut log = std::fs::File::create(&path).expect("made");
    let mut client = api.connect().await;
    let follow = format!("/v1/instances/vm-1/logs?follow=true&incarnation={life}");
    client.send(&super::request("GET", &follow, &[], None)).await;
    client.until(b"\r\n\r\n").await;
    log.write_all(b"last words").expect("written");
    api.ask("POST", "/v1/instances/vm-1/stop?wait=5s", None).await;
    let rest = client.until(b"\r\n0\r\n\r\n").await;
    assert!(String::from_utf8_lossy(&rest).contains("last words"), "{rest:?}");
    let other = "/v1/instances/vm-1/logs?incarnation=01ARZ3NDEKTSV4RRFFQ69G5FAA";
    api.ask("GET", other, None).await.refused(404, "not_found");
    api.ask("GET", "/v1/instances/vm-1/logs?incarnation=x", None).await.refused(400, "bad_argument");
}

#[tokio::test]
async fn everything_in_the_table_is_served() {
    let api = Api::start("table");
    api.create("vm-1").await;
    for route in crate::api::table::ROUTES {
        let path = route.path.replace("{name}", "nobody").replace("{id}", "nobody");
        let reply = api.ask(route.method.as_str(), &path, None).await;
        assert!(reply.status != 405 && reply.status != 501, "{} {path}: {reply:?}", route.method);
        let is_told = reply.status < 400 || reply.header("content-type") == Some("application/problem+json");
        assert!(is_told, "{} {path}: {reply:?}", route.method);
    }
    let own = api.ask("GET", "/v1/self", None).await.json();
    assert_eq!(own["worker_pid"], std::process::id());
    assert!(own["fds"].as_u64() > Some(3) && own["rss_bytes"].as_u64() > Some(0), "{own}");
    let text = api.ask("GET", "/metrics", None).await;
    assert!(String::from_utf8_lossy(&text.body).contains("sexton_reconcile_generation 1"));
}

#[tokio::test]
async fn what_health_answers_is_in_the_document() {
    let api = Api::start("health");
    let document = crate::api::openapi::document();
    let known = document["components"]["schemas"]["Health"]["properties"].as_object().expect("properties");
    for path in ["/livez", "/healthz", "/readyz"] {
        let shown = api.ask("GET", path, None).await.json();
        for (name, _) in shown.as_object().expect("an object") {
            assert!(shown["code"].is_string() || known.contains_key(name), "{path}: {name}");
        }
    }
}
