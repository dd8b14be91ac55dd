//! Asking the daemon: HTTP/1.1 over its unix socket, one request a connection.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sexton_ledger::duration;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::failure::{Failure, exit};
use super::member::Member as _;
use crate::api::serve::connect;
use crate::refusal::Kind;

/// How long a request outlives the daemon: a new worker is there within a few seconds.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a request is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// The largest answer that is read whole. BOUND: a page has at most 1,000 instances, and a spec at most 1 MiB; more
/// than this is no answer of ours.
const ANSWER_MAX: usize = 1 << 30;

/// The way to one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    path: String,
    body: Option<Value>,
    headers: Vec<(&'static str, String)>,
    /// When a daemon that has not answered by then is taken for one that never will.
    due: Option<Instant>,
    /// Until when the daemon is to hold its answer, and for how long at most at a time.
    hold: Option<(Option<Instant>, Duration)>,
}

/// One answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; null where there is none.
    pub body: Value,
    /// Whether an earlier try was lost on the way, and may have been carried out.
    pub after_loss: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there, or not for this user; nothing was asked.
    #[error("could not reach the daemon at `{}`: {source}", socket.display())]
    Unreachable {
        /// Where it should listen.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The connection ended before the answer: whether it was carried out is not known.
    #[error("lost the daemon at `{}` before it answered: {why}", socket.display())]
    Lost {
        /// Where it listened.
        socket: PathBuf,
        /// What is known.
        why: String,
    },
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Failure {
        let hint = match &error {
            AskError::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "ask as root or the daemon's user, or be given a role in `[[access]]`"
            }
            AskError::Unreachable { .. } => {
                "is it running? `sexton serve` starts it; `--socket` or `--run-dir` says where it listens"
            }
            AskError::Lost { .. } => "whether it was carried out is not known: look before asking again",
        };
        Failure::new(exit::UNREACHABLE, error.to_string()).hint(hint)
    }
}

impl Ask {
    /// A question.
    pub fn get(path: impl Into<String>) -> Ask {
        Ask::new(Method::GET, path.into())
    }

    /// An order.
    pub fn post(path: impl Into<String>, body: Value) -> Ask {
        Ask { body: Some(body), ..Ask::new(Method::POST, path.into()) }
    }

    /// A removal.
    pub fn delete(path: impl Into<String>) -> Ask {
        Ask::new(Method::DELETE, path.into())
    }

    fn new(method: Method, path: String) -> Ask {
        Ask { method, path, body: None, headers: Vec::new(), due: None, hold: None }
    }

    /// Gives a daemon that is there and does not answer until `due` and a while: whoever said how long to wait is not
    /// kept longer by one that hangs.
    #[must_use]
    pub fn due(mut self, due: Option<Instant>) -> Ask {
        self.due = due.map(|due| due + PATIENCE);
        self
    }

    /// Has the daemon hold its answer until `deadline`, and for no more than `most` at a time; and as [`Ask::due`]. Where it
    /// is asked anew, it is to hold that for what is left then.
    #[must_use]
    pub fn held(self, deadline: Option<Instant>, most: Duration) -> Ask {
        Ask { hold: Some((deadline, most)), ..self.due(deadline) }
    }

    /// The path, with how long the answer is to be held from now on.
    fn target(&self) -> String {
        let Some((deadline, most)) = self.hold else { return self.path.clone() };
        let left = deadline.map_or(most, |deadline| deadline.saturating_duration_since(Instant::now()).min(most));
        let mark = if self.path.contains('?') { '&' } else { '?' };
        format!("{}{mark}wait={}", self.path, duration::format(left))
    }

    /// Adds a header, whose value the caller made.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Ask {
        self.headers.push((name, value.into()));
        self
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::builder().method(&self.method).uri(self.target()).header("host", "sexton");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = match &self.body {
            Some(value) => {
                request = request.header("content-type", "application/json");
                value.to_string()
            }
            None => String::new(),
        };
        request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())
    }
}

impl Answer {
    /// The body of a success, or the refusal.
    ///
    /// # Errors
    /// The daemon refused, or it was not the daemon that answered.
    pub fn into_body(self) -> Result<Value, Failure> {
        match self.status {
            200..300 if self.body.is_object() => Ok(self.body),
            200..300 => Err(Failure::new(exit::UNREACHABLE, "what answers there is no daemon of Sexton's")
                .hint("`--socket` or `--run-dir` says where it listens")),
            status => Err(Failure::of_answer(status, &self.body)),
        }
    }

    /// Whether it is the refusal that passes by itself: a worker that begins or ends.
    pub fn is_not_ready(&self) -> bool {
        self.status == Kind::NotReady.status() && self.body.at("code") == Kind::NotReady.code()
    }
}

impl Client {
    /// The way to the daemon that listens at `socket`.
    pub fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    fn lost(&self, why: impl ToString) -> AskError {
        AskError::Lost { socket: self.socket.clone(), why: why.to_string() }
    }

    /// Asks, and gives the answer as soon as its head is there; the body comes as it is made.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn open(&self, ask: &Ask) -> Result<Response<Incoming>, AskError> {
        let unreachable = |source| AskError::Unreachable { socket: self.socket.clone(), source };
        let request = ask.request().map_err(|why| self.lost(why))?;
        // A unix socket that listens takes or refuses a connection at once.
        let stream = connect(&self.socket).and_then(|stream| {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        });
        let stream = stream.map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.lost(chain(&error)))?;
        // It ends with the answer's body, or when that is dropped.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| self.lost(chain(&error)))
    }

    /// Asks, and waits for the whole answer.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn send(&self, ask: &Ask) -> Result<Answer, AskError> {
        let answer = async {
            let response = self.open(ask).await?;
            let status = response.status().as_u16();
            self.whole(status, response.into_body()).await
        };
        match ask.due {
            Some(due) => timeout_at(due, answer).await.unwrap_or_else(|_| Err(self.lost("it hangs"))),
            None => answer.await,
        }
    }

    /// The rest of an answer.
    ///
    /// # Errors
    /// It was cut off.
    pub async fn whole(&self, status: u16, body: Incoming) -> Result<Answer, AskError> {
        let body = http_body_util::Limited::new(body, ANSWER_MAX).collect().await;
        let body = body.map_err(|error| self.lost(error))?.to_bytes();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap_or(Value::Null) };
        Ok(Answer { status, body, after_loss: false })
    }

    /// Asks what does no harm when it is asked twice; a daemon that was there and went away is given time to come back.
    ///
    /// # Errors
    /// [`AskError`]: at once where nobody listened from the beginning.
    pub async fn send_again(&self, ask: &Ask, known: Known) -> Result<Answer, AskError> {
        let mut known = known;
        let mut until: Option<Instant> = None;
        let mut after_loss = false;
        loop {
            let result = self.send(ask).await.map(|answer| Answer { after_loss, ..answer });
            match &result {
                Ok(answer) if !answer.is_not_ready() => return result,
                Ok(_) => known = Known::Yes,
                Err(AskError::Lost { .. }) => (known, after_loss) = (Known::Yes, true),
                Err(AskError::Unreachable { .. }) if known == Known::No => return result,
                Err(AskError::Unreachable { .. }) => {}
            }
            let until = *until.get_or_insert_with(|| Instant::now() + PATIENCE);
            let until = ask.due.map_or(until, |due| due.min(until));
            if Instant::now() + PAUSE > until {
                return result;
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks what may be asked twice, and gives the body of a success.
    ///
    /// # Errors
    /// The daemon refused, or is not there.
    pub async fn ask(&self, ask: &Ask) -> Result<Value, Failure> {
        self.send_again(ask, Known::No).await?.into_body()
    }

    /// Reads what the daemon has at hand: one that does not tell it for a while hangs.
    ///
    /// # Errors
    /// The daemon refused, hangs, or is not there.
    pub async fn get(&self, path: impl Into<String>) -> Result<Value, Failure> {
        self.ask(&Ask::get(path).due(Some(Instant::now()))).await
    }

    /// All pages of a list.
    ///
    /// # Errors
    /// The daemon refused, or is not there.
    pub async fn list(&self, path: &str, query: &[(&str, &str)]) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut pairs = query.to_vec();
            if let Some(after) = &after {
                pairs.push(("after", after));
            }
            let mut page = self.get(with_query(path, &pairs)).await?;
            if let Some(Value::Array(found)) = page.get_mut("items").map(Value::take) {
                items.extend(found);
            }
            match next_of(&page) {
                // A page that leads to itself would never end.
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                Some(_) | None => return Ok(items),
            }
        }
    }
}

/// Whether the daemon has answered before, so that its absence is a passing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It has.
    Yes,
    /// This is the first request.
    No,
}

/// What `after` takes for the page behind `page`.
pub fn next_of(page: &Value) -> Option<String> {
    match page.at("next") {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => Some(other.to_string()),
    }
}

/// `path` with a query, whose values are percent-encoded.
pub fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut text = path.to_owned();
    for (number, (key, value)) in pairs.iter().enumerate() {
        text.push(if number == 0 { '?' } else { '&' });
        text.push_str(&format!("{key}={}", encode(value)));
    }
    text
}

/// Percent-encodes what must not stand as it is in a query's value.
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(
            with_query("/v1/x", &[("label", "a=b c/ü"), ("limit", "1")]),
            "/v1/x?label=a%3Db%20c%2F%C3%BC&limit=1"
        );
        assert_eq!(with_query("/v1/x", &[]), "/v1/x");
    }

    #[test]
    fn an_answer_that_is_none_of_ours_is_no_success() {
        let of = |status, body| Answer { status, body, after_loss: false }.into_body();
        assert!(of(200, serde_json::json!({"name": "a"})).is_ok());
        for body in [Value::Null, serde_json::json!([]), serde_json::json!("removed")] {
            assert_eq!(of(200, body.clone()).unwrap_err().exit, exit::UNREACHABLE, "{body}");
        }
        assert_eq!(of(404, Value::Null).unwrap_err().exit, exit::NOT_FOUND);
    }

    #[test]
    fn the_next_page_is_text_or_number_and_the_last_has_none() {
        assert_eq!(next_of(&serde_json::json!({"next": "vm-1"})), Some("vm-1".to_owned()));
        assert_eq!(next_of(&serde_json::json!({"next": 17})), Some("17".to_owned()));
        assert_eq!(next_of(&serde_json::json!({"next": null})), None);
    }
}
