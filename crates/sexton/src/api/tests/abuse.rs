use std::time::{Duration, Instant};

use super::{Api, request};

#[tokio::test]
async fn bytes_that_are_no_request_get_a_problem_and_an_end() {
    let api = Api::start("garbage");
    let long_header = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let many_headers = format!("GET /livez HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(150));
    let long_line = format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(100_000));
    let long_path = format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(10_000));
    let cases: &[(&[u8], u16)] = &[
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\x00\x00\x00\x00\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"POST /v1/instances HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /v1/instances HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (b"POST /v1/instances HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        (b"POST /v1/instances HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (long_header.as_bytes(), 431),
        (many_headers.as_bytes(), 431),
        (long_line.as_bytes(), 414),
        (long_path.as_bytes(), 414),
    ];
    for (bytes, status) in cases {
        let mut client = api.connect().await;
        client.send(bytes).await;
        let reply = client.reply().await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert_eq!(reply.status, *status, "{shown}: {reply:?}");
        let code = reply.json()["code"].as_str().map(str::to_owned).expect("a code");
        reply.refused(*status, &code);
        if *bytes != long_path.as_bytes() {
            assert!(client.is_closed().await, "{shown}");
        }
    }
    assert_eq!(api.ask("GET", "/livez", None).await.status, 200);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_by_its_length_alone() {
    let api = Api::start("large");
    let mut client = api.connect().await;
    client.send(b"POST /v1/instances HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1048577\r\n\r\n").await;
    client.reply().await.refused(413, "too_large");

    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut client = api.connect().await;
    client.send(b"POST /v1/instances HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..17 {
        client.send(chunk.as_bytes()).await;
    }
    client.reply().await.refused(413, "too_large");

    let mut client = api.connect().await;
    let body = " ".repeat(4 << 20);
    client.send(&request("POST", "/v1/instances", &[], Some(&body))).await;
    client.reply().await.refused(413, "too_large");
}

#[tokio::test]
async fn requests_in_one_packet_are_answered_in_order() {
    let api = Api::start("pipeline");
    let mut client = api.connect().await;
    let both =
        [request("GET", "/v1/version", &[], None), request("GET", "/nothing", &[], None), b"rubbish\r\n\r\n".to_vec()];
    client.send(&both.concat()).await;
    assert_eq!(client.reply().await.status, 200);
    client.reply().await.refused(404, "not_found");
    client.reply().await.refused(400, "bad_argument");
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_and_a_slow_body_are_given_up_on() {
    let api = Api::start("slow");
    let mut head = api.connect().await;
    head.send(b"GET /livez HTT").await;
    let mut body = api.connect().await;
    body.send(b"POST /v1/instances HTTP/1.1\r\ncontent-length: 10\r\n\r\n{").await;
    let mut idle = api.connect().await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    head.reply().await.refused(408, "request_timeout");
    assert!(head.is_closed().await);
    body.reply().await.refused(408, "request_timeout");
    assert!(body.is_closed().await);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(idle.is_closed().await);
}

#[tokio::test]
async fn idle_connections_beyond_every_bound_hold_nobody_up() {
    let api = Api::start("crowd");
    let mut crowd = Vec::new();
    for n in 0..1_700 {
        let mut client = api.connect().await;
        if n % 2 == 0 {
            client.send(b"GET /live").await;
        }
        crowd.push(client);
        if n % 100 == 0 {
            let begin = Instant::now();
            assert_eq!(api.ask("GET", "/livez", None).await.status, 200);
            assert!(begin.elapsed() < Duration::from_secs(2), "{n}: {:?}", begin.elapsed());
        }
    }
    let mut last = crowd.pop().expect("a crowd");
    last.send(&request("GET", "/livez", &[], None)).await;
    assert_eq!(last.reply().await.status, 200, "who came last is served, who idled first is gone");
}

#[tokio::test]
async fn bodies_that_do_not_come_hold_nobody_up() {
    let api = Api::start("uploads");
    let body = b"POST /v1/instances HTTP/1.1\r\ncontent-length: 100\r\n\r\n{";
    let mut crowd = api.crowd(1_536, &[body]).await;
    assert_eq!(api.ask("GET", "/livez", None).await.status, 200, "a request that is whole goes before them");
    crowd.remove(0).reply().await.refused(408, "request_timeout");
}

#[tokio::test]
async fn who_comes_in_a_crowd_is_served_though_slow_ones_hold_every_place() {
    let api = Api::start("slow-crowd");
    let begun: [&[u8]; 2] = [b"GET /live", b"POST /v1/reconcile HTTP/1.1\r\ncontent-length: 2\r\n\r\n{"];
    let _slow = api.crowd(1_536, &begun).await;
    // REGRESSION: each was taken for idle, and made room for the next.
    for mut client in api.crowd(300, &[&request("GET", "/livez", &[], None)]).await {
        assert_eq!(client.reply().await.status, 200);
    }
}

#[tokio::test]
async fn a_thousand_callers_that_wait_are_all_served() {
    let api = Api::start("waiters");
    api.create("slow-1").await;
    let mut waiting = Vec::new();
    for _ in 0..1_024 {
        let mut client = api.connect().await;
        client.send(&request("GET", "/v1/instances/slow-1?wait=1h&until=removed", &[], None)).await;
        waiting.push(client);
    }
    assert_eq!(api.ask("GET", "/livez", None).await.status, 200);
    api.ask("DELETE", "/v1/instances/slow-1?force=true", None).await;
    for mut client in waiting {
        assert_eq!(client.reply().await.status, 200);
    }
}

#[tokio::test]
async fn callers_that_wait_and_leave_make_room() {
    let api = Api::start("leavers");
    api.create("slow-1").await;
    let mut waiting = Vec::new();
    for _ in 0..1_536 {
        let mut client = api.connect().await;
        client.send(&request("GET", "/v1/instances/slow-1?wait=1h&until=removed", &[], None)).await;
        waiting.push(client);
    }
    api.ask("GET", "/livez", None).await.refused(503, "too_many_connections");
    drop(waiting);
    let begin = Instant::now();
    while api.ask("GET", "/livez", None).await.status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(20), "their places are still taken");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_that_tells_its_length_twice_is_refused_and_the_connection_closed() {
    let api = Api::start("twice");
    let (length, chunked) = ("Content-Length: 4", "transfer-encoding: chunked");
    let post = |headers: &[&str]| format!("POST /v1/reconcile HTTP/1.1\r\n{}\r\n\r\n0\r\n\r\n", headers.join("\r\n"));
    let sound = "POST /v1/reconcile HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}";
    for headers in [[length, chunked], [chunked, length], [length, "content-length: 5"], [length, "CONTENT-LENGTH:4"]] {
        let bytes = post(&headers);
        let mut client = api.connect().await;
        client.send(bytes.as_bytes()).await;
        client.reply().await.refused(400, "bad_argument");
        assert!(client.is_closed().await, "{headers:?}");
        // Also as the second request of a connection, and in pieces.
        let mut client = api.connect().await;
        client.send(sound.as_bytes()).await;
        assert_eq!(client.reply().await.status, 200);
        for piece in bytes.as_bytes().chunks(7) {
            client.send(piece).await;
        }
        client.reply().await.refused(400, "bad_argument");
        assert!(client.is_closed().await, "{headers:?}");
    }
    // Each alone is a request; behind a chunked one nothing is taken.
    let mut client = api.connect().await;
    client.send(b"POST /v1/reconcile HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 200);
    assert!(client.is_closed().await);
}
