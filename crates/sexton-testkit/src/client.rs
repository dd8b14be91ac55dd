//! A small blocking client of HTTP/1.1 over a unix socket, which shares no code with the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long a single answer may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Asks one daemon, each time over a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// One kept connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// As in the status line.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// As it came.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as JSON; `null` where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first header of that name, written in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON, if the status is `status`.
    ///
    /// # Panics
    /// With the whole answer, if it is another.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }
}

impl Client {
    /// A client of the daemon that listens at `socket`.
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned() }
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// Nobody listens, or the answer was cut off.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Result<Response> {
        let body = body.map(|body| body.to_string().into_bytes());
        Connection::open(&self.socket)?.ask(method, path, headers, body.as_deref())
    }

    /// As [`Client::ask`], for `GET`.
    ///
    /// # Errors
    /// Nobody listens, or the answer was cut off.
    pub fn get(&self, path: &str) -> Result<Response> {
        self.ask("GET", path, &[], None)
    }

    /// As [`Client::ask`], for `POST`.
    ///
    /// # Errors
    /// Nobody listens, or the answer was cut off.
    pub fn post(&self, path: &str, body: &Value) -> Result<Response> {
        self.ask("POST", path, &[], Some(body))
    }

    /// As [`Client::ask`], for `PUT`.
    ///
    /// # Errors
    /// Nobody listens, or the answer was cut off.
    pub fn put(&self, path: &str, body: &Value) -> Result<Response> {
        self.ask("PUT", path, &[], Some(body))
    }

    /// As [`Client::ask`], for `DELETE`.
    ///
    /// # Errors
    /// Nobody listens, or the answer was cut off.
    pub fn delete(&self, path: &str) -> Result<Response> {
        self.ask("DELETE", path, &[], None)
    }

    /// Every item of a list, page by page.
    ///
    /// # Errors
    /// An answer other than 200, or none.
    pub fn list(&self, path: &str) -> Result<Vec<Value>> {
        self.list_after(path, Value::Null)
    }

    /// As [`Client::list`], from what comes after `after`.
    ///
    /// # Errors
    /// An answer other than 200, or none.
    pub fn list_after(&self, path: &str, mut after: Value) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        loop {
            let sign = if path.contains('?') { '&' } else { '?' };
            let mut page = format!("{path}{sign}limit=1000");
            if !after.is_null() {
                page.push_str(&format!("&after={}", after.as_str().map_or(after.to_string(), str::to_owned)));
            }
            let answer = self.get(&page)?;
            ensure!(answer.status == 200, "{page}: {} {}", answer.status, answer.text());
            let mut page = answer.json();
            let found = page.get_mut("items").and_then(Value::as_array_mut).context("a list has items")?;
            items.append(found);
            after = page.get("next").cloned().unwrap_or_default();
            if after.is_null() {
                return Ok(items);
            }
        }
    }
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn open(socket: &Path) -> Result<Connection> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Asks, and reads the whole answer; the connection can then be used again.
    ///
    /// # Errors
    /// The connection broke, or the answer is no HTTP.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Result<Response> {
        self.send(method, path, headers, body)?;
        self.answer()
    }

    /// Asks, and leaves the answer to be read by [`Connection::answer`].
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: sexton\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = body {
            head.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut message = head.into_bytes();
        message.extend_from_slice(body.unwrap_or_default());
        self.send_raw(&message)
    }

    /// Sends bytes as they are, for what is no request.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// Reads one answer.
    ///
    /// # Errors
    /// The connection broke, or the answer is no HTTP.
    pub fn answer(&mut self) -> Result<Response> {
        let mut response = self.head()?;
        response.body = self.body(&response)?;
        Ok(response)
    }

    /// Reads the head of one answer, whose body is then read by [`Connection::chunk`].
    ///
    /// # Errors
    /// The connection broke, or the answer is no HTTP.
    pub fn head(&mut self) -> Result<Response> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("no status in `{status_line}`"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Response { status, headers, body: Vec::new() })
    }

    fn body(&mut self, head: &Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        if let Some(length) = head.header("content-length") {
            body.resize(length.parse()?, 0);
            self.stream.read_exact(&mut body)?;
        } else if head.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
            }
        } else if head.status >= 200 && head.status != 204 && head.status != 304 {
            self.stream.read_to_end(&mut body)?;
        }
        Ok(body)
    }

    /// The next chunk of a chunked body; `None` after the last.
    ///
    /// # Errors
    /// The connection broke.
    pub fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let size = usize::from_str_radix(self.line()?.trim(), 16)?;
        let mut chunk = vec![0; size];
        self.stream.read_exact(&mut chunk)?;
        self.line()?;
        Ok((size > 0).then_some(chunk))
    }

    /// One line, without its end.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}
