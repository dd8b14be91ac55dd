//! A conversation with the monitor of a QEMU guest.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};
use sexton_testkit::{SOON, eventually};

#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects as soon as the guest listens.
    pub fn open(socket: &Path) -> Monitor {
        let stream = eventually("the guest's monitor listens", SOON, || {
            UnixStream::connect(socket).map_err(|error| error.to_string())
        });
        stream.set_read_timeout(Some(SOON)).expect("timeout");
        let mut monitor = Monitor { stream: BufReader::new(stream) };
        let greeting = monitor.said();
        assert!(greeting["QMP"]["version"].is_object(), "{greeting}");
        assert_eq!(monitor.ask("qmp_capabilities"), json!({}));
        monitor
    }

    pub fn ask(&mut self, command: &str) -> Value {
        // In one piece: whoever is told to quit reads no further.
        let question = format!("{}\n", json!({ "execute": command }));
        self.stream.get_mut().write_all(question.as_bytes()).expect("asked");
        let answer = self.said();
        assert!(answer["error"].is_null(), "{command}: {answer}");
        answer["return"].clone()
    }

    /// The next line that is no event: those come whenever they like, before the greeting too.
    fn said(&mut self) -> Value {
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("the guest answers");
            let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: `{line}`"));
            if said["event"].is_null() {
                return said;
            }
        }
    }
}
