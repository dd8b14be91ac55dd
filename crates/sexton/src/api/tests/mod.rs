//! The API as its callers meet it: a real unix socket, a real ledger, and a driver that answers from a map.

mod abuse;
mod fake;
mod meaning;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sexton_ledger::{Batch, EventKind, Ledger, NewEvent, OpenOptions, Urgency};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Context;
use super::serve::{Listener, listen, serve_all};
use crate::config::{Flags, Settings, Surroundings, resolve_in};
use crate::node::request::Node;

/// Nothing here takes as long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// An API over a fake driver, in a directory of its own.
pub(super) struct Api {
    pub dir: PathBuf,
    pub socket: PathBuf,
    pub ledger: Ledger,
    pub settings: Arc<Settings>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        std::fs::remove_dir_all(&self.dir).expect("removed");
    }
}

impl Api {
    pub fn start(name: &str) -> Api {
        Api::with_role(name, true)
    }

    /// An API whose caller is root or the daemon's own user, or is known by an `[[access]]` table alone.
    pub fn with_role(name: &str, is_own: bool) -> Api {
        let dir = std::env::temp_dir().join(format!("sexton-api-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("made");
        let text = |path: PathBuf| Some(path.display().to_string());
        let flags = Flags {
            config: Some("/dev/null".into()),
            state_dir: text(dir.join("state")),
            run_dir: text(dir.join("run")),
            ..Flags::default()
        };
        let settings = Arc::new(resolve_in(&flags, &Surroundings::default()).expect("resolved"));
        for dir in [&settings.state_dir, &settings.run_dir] {
            std::fs::create_dir_all(dir).expect("made");
        }
        let boot = "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().expect("a UUID");
        let (ledger, _) = Ledger::open(&settings.state_dir, OpenOptions::new(boot)).expect("opened");
        let (seq, last_seq) = watch::channel(0);
        ledger.subscribe(move |newest| {
            seq.send_replace(newest);
        });
        let (node, requests) = Node::channel();
        let mut context = Context::without_host(node, settings.clone(), ledger.reader(), last_seq);
        context.is_root_let_in = is_own;
        if !is_own {
            context.own_uid = u32::MAX;
        }
        let socket = settings.listen_path();
        let listener = tokio::net::UnixListener::from_std(listen(&socket).expect("listening")).expect("registered");
        let serving = tokio::spawn(serve_all(vec![Listener::Unix(listener)], Arc::new(context)));
        let driving = tokio::spawn(fake::drive(requests));
        Api { dir, socket, ledger, settings, tasks: vec![serving, driving] }
    }

    pub async fn connect(&self) -> Client {
        Client { stream: UnixStream::connect(&self.socket).await.expect("connected"), read: Vec::new() }
    }

    /// As many connections, which send one of `begun` each, in turns.
    pub async fn crowd(&self, count: usize, begun: &[&[u8]]) -> Vec<Client> {
        let mut crowd = Vec::new();
        for begun in begun.iter().cycle().take(count) {
            let mut client = self.connect().await;
            client.send(begun).await;
            crowd.push(client);
        }
        crowd
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Reply {
        self.ask_with(method, path, &[("content-type", "application/json")], body).await
    }

    pub async fn ask_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Reply {
        let mut client = self.connect().await;
        client.send(&request(method, path, headers, body)).await;
        client.reply_to(method).await
    }

    pub async fn create(&self, name: &str) {
        let body = format!(r#"{{"name":"{name}","argv":["/bin/true"]}}"#);
        let reply = self.ask("POST", "/v1/instances", Some(&body)).await;
        assert_eq!(reply.status, 201, "{reply:?}");
    }

    pub fn record_events(&self, count: usize) {
        let event = |n| NewEvent::of_node(EventKind::NodeStatus, serde_json::json!({ "n": n }));
        let batch = Batch { events: (0..count).map(event).collect(), ..Batch::default() };
        self.ledger.commit_now(batch, Urgency::Refusable).expect("recorded");
    }
}

pub(super) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body.unwrap_or(""));
    text.into_bytes()
}

/// A connection that speaks bytes.
pub(super) struct Client {
    pub stream: UnixStream,
    read: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)))
            .map(|(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it is a problem document with this status.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Reply {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["code"], code, "{problem}");
        assert!(
            problem["title"].is_string() && problem["detail"].as_str().is_some_and(|text| !text.is_empty()),
            "{problem}"
        );
        self
    }
}

impl Client {
    pub async fn send(&mut self, bytes: &[u8]) {
        // The peer may refuse the rest; what it answers tells.
        let _all = self.stream.write_all(bytes).await;
    }

    async fn fill(&mut self) -> usize {
        let mut piece = vec![0; 16 * 1_024];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut piece)).await.expect("in time");
        let count = read.unwrap_or(0);
        self.read.extend_from_slice(&piece[..count]);
        count
    }

    /// Reads up to and including `mark`, or to the end.
    pub async fn until(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.read.windows(mark.len()).position(|window| window == mark) {
                return self.read.drain(..at + mark.len()).collect();
            }
            if self.fill().await == 0 {
                return std::mem::take(&mut self.read);
            }
        }
    }

    pub async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    pub async fn reply_to(&mut self, method: &str) -> Reply {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await).expect("ASCII");
        let status =
            head.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no status: {head:?}"));
        let mut reply = Reply { status, head, body: Vec::new() };
        let length: Option<usize> = reply.header("content-length").map(|text| text.parse().expect("a number"));
        if method == "HEAD" {
            return reply;
        }
        match length {
            Some(length) => {
                while self.read.len() < length && self.fill().await > 0 {}
                reply.body = self.read.drain(..length.min(self.read.len())).collect();
            }
            None => reply.body = self.chunks().await,
        }
        reply
    }

    /// A chunked body, put together.
    async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n").await;
            let size = std::str::from_utf8(&line).ok().and_then(|line| usize::from_str_radix(line.trim(), 16).ok());
            let size = size.unwrap_or_else(|| panic!("no chunk: {line:?}"));
            while self.read.len() < size + 2 && self.fill().await > 0 {}
            body.extend(self.read.drain(..size));
            self.read.drain(..2);
            if size == 0 {
                return body;
            }
        }
    }

    /// Whether the other side has closed.
    pub async fn is_closed(&mut self) -> bool {
        self.fill().await == 0
    }
}
