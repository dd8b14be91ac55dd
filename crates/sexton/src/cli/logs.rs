//! `logs`: what an instance wrote, byte for byte, or made safe for a terminal.

use clap::Args;
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use serde_json::json;
use sexton_plan::id::Name;

use super::client::{Ask, Client, Known, with_query};
use super::failure::{Failure, exit};
use super::member::Member as _;
use super::out::{self, Tame};
use super::{Context, args, watch};
use crate::api::types::Stream;

/// How long one request waits for the next life.
const NEXT_WAIT: &str = "1m";

/// `sexton logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The instance.
    #[arg(value_parser = args::name)]
    name: Name,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    follow: bool,
    /// Stderr instead of stdout.
    #[arg(long)]
    stderr: bool,
    /// Only so many of the last lines.
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
}

/// Prints one stream.
pub async fn run(context: &Context, args: &LogsArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let stream = if args.stderr { Stream::Stderr } else { Stream::Stdout };
    let sink = if context.out.is_json() {
        Sink::lines(stream)
    } else if out::to_terminal() {
        Sink::Terminal(Tame::default())
    } else {
        Sink::Stdout
    };
    let instance = client.get(watch::path(&args.name)).await?;
    let life = instance.at("incarnation").as_str().unwrap_or_default().to_owned();
    let mut copy = Copy::new(client, args.name.clone(), life, stream, sink);
    copy.follow = args.follow;
    copy.tail = args.tail;
    loop {
        match copy.life().await? {
            Over::Whole if !args.follow => break,
            Over::Whole => {}
            Over::Unkept(failure) if !args.follow => return Err(failure),
            // Removed, or on a node that drains: nothing follows.
            Over::Unkept(_) if copy.which == Which::Next => break,
            // Dropped before all of it was read: more lives have come.
            Over::Unkept(_) => {}
        }
        copy.which = Which::Next;
    }
    copy.end().await?;
    Ok(exit::DONE)
}

/// Where the bytes go.
#[derive(Debug)]
pub enum Sink {
    /// Stdout, as they are.
    Stdout,
    /// Stderr, as they are.
    Stderr,
    /// A terminal, which must not obey them.
    Terminal(Tame),
    /// Stdout, a JSON object for each line.
    Lines {
        /// Which stream they are of.
        stream: Stream,
        /// A line that has not ended yet.
        open: Vec<u8>,
    },
}

impl Sink {
    /// One object a line.
    pub fn lines(stream: Stream) -> Sink {
        Sink::Lines { stream, open: Vec::new() }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Sink::Stdout => out::raw(bytes),
            Sink::Stderr => out::raw_error(bytes),
            Sink::Terminal(tame) => out::print(&tame.piece(bytes)),
            Sink::Lines { stream, open } => {
                open.extend_from_slice(bytes);
                while let Some(end) = open.iter().position(|byte| *byte == b'\n') {
                    let rest = open.split_off(end + 1);
                    let line = std::mem::replace(open, rest);
                    print_line(*stream, line.get(..end).unwrap_or_default())?;
                }
                Ok(())
            }
        }
    }

    fn end(&mut self) -> Result<(), Failure> {
        match self {
            Sink::Stdout | Sink::Stderr => Ok(()),
            Sink::Terminal(tame) => out::print(&tame.end()),
            Sink::Lines { open, .. } if open.is_empty() => Ok(()),
            Sink::Lines { stream, open } => print_line(*stream, &std::mem::take(open)),
        }
    }
}

fn print_line(stream: Stream, line: &[u8]) -> Result<(), Failure> {
    let value = json!({"stream": stream.as_str(), "line": String::from_utf8_lossy(line)});
    out::Out::new(out::Format::Json).line(&value, |_| String::new())
}

/// Which log a copy is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// That of its life.
    This,
    /// That of the life after it, once there is one.
    Next,
}

/// How the copy of a life ended.
#[derive(Debug)]
pub enum Over {
    /// Everything is copied.
    Whole,
    /// There is no such log, or no such instance any more.
    Unkept(Failure),
}

/// How one answer ended.
enum Pass {
    Over(Over),
    /// The connection was lost, or the reader was too slow for what is kept: to be taken up where it was.
    Cut,
    /// There is no next life yet.
    NotYet,
}

/// Copies one stream of an instance, a life at a time, and goes on where it was after the daemon hung up.
#[derive(Debug)]
pub struct Copy {
    client: Client,
    name: Name,
    life: String,
    stream: Stream,
    sink: Option<Sink>,
    /// Whether to go on with what is written from now on.
    pub follow: bool,
    /// Only so many of the last lines.
    pub tail: Option<u64>,
    /// Which log comes next.
    pub which: Which,
    /// The first byte of the life's log that is not copied yet; `None` until the daemon has told where it begins.
    offset: Option<u64>,
}

impl Copy {
    /// A copy of one stream of `life`, of which the daemon has told: it may go away from now on, and come back.
    pub fn new(client: Client, name: Name, life: String, stream: Stream, sink: Sink) -> Copy {
        let (sink, which) = (Some(sink), Which::This);
        Copy { client, name, life, stream, sink, follow: false, tail: None, which, offset: None }
    }

    /// Copies one life, to its end where that is followed.
    ///
    /// # Errors
    /// The daemon does not come back, or the output takes no more.
    pub async fn life(&mut self) -> Result<Over, Failure> {
        loop {
            match self.pass().await? {
                Pass::Over(over) => return Ok(over),
                Pass::NotYet => {}
                Pass::Cut => {
                    // Waits for the daemon, with the patience of every other question.
                    self.client.send_again(&Ask::get(watch::path(&self.name)), Known::Yes).await?;
                }
            }
        }
    }

    fn ask(&self) -> Ask {
        let tail = self.tail.map(|tail| tail.to_string());
        let offset = self.offset.map(|offset| offset.to_string());
        let mut query = vec![("stream", self.stream.as_str())];
        query.extend(self.follow.then_some(("follow", "true")));
        match (self.which, offset.as_deref(), tail.as_deref()) {
            (Which::Next, _, _) => query.extend([("after", self.life.as_str()), ("wait", NEXT_WAIT)]),
            (Which::This, Some(offset), _) => query.extend([("incarnation", self.life.as_str()), ("offset", offset)]),
            (Which::This, None, Some(tail)) => query.extend([("incarnation", self.life.as_str()), ("tail", tail)]),
            (Which::This, None, None) => query.push(("incarnation", self.life.as_str())),
        }
        Ask::get(with_query(&format!("{}/logs", watch::path(&self.name)), &query))
    }

    /// Copies what there is behind what is copied already, until the daemon or the connection ends it.
    async fn pass(&mut self) -> Result<Pass, Failure> {
        let Ok(response) = self.client.open(&self.ask()).await else { return Ok(Pass::Cut) };
        match response.status().as_u16() {
            200 => {}
            202 => return Ok(Pass::NotYet),
            503 if self.offset.is_some() => return Ok(Pass::Cut),
            status => {
                let refused = self.client.whole(status, response.into_body()).await?;
                if refused.is_not_ready() {
                    return Ok(Pass::Cut);
                }
                return match refused.into_body() {
                    Err(failure) if failure.exit == exit::NOT_FOUND => Ok(Pass::Over(Over::Unkept(failure))),
                    other => other.map(|_| Pass::Cut),
                };
            }
        }
        self.begin(response.headers())?;
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Ok(Pass::Cut) };
            let Ok(bytes) = frame.into_data() else { continue };
            self.offset = self.offset.map(|offset| offset + bytes.len() as u64);
            self.write(bytes).await?;
        }
        Ok(Pass::Over(Over::Whole))
    }

    /// Takes from an answer which life it is of, and where it begins.
    fn begin(&mut self, headers: &HeaderMap) -> Result<(), Failure> {
        let told = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (life, offset) = (told("sexton-incarnation"), told("sexton-offset").and_then(|text| text.parse().ok()));
        let (Some(life), Some(offset)) = (life, offset) else {
            return Err(Failure::new(exit::FAILED, "the daemon does not say which log it sends"));
        };
        (self.life, self.offset, self.which) = (life.to_owned(), Some(offset), Which::This);
        Ok(())
    }

    /// Writes on a thread that may block: a reader that is slow must not keep signals waiting.
    async fn write(&mut self, bytes: hyper::body::Bytes) -> Result<(), Failure> {
        self.blocking(move |sink| if bytes.is_empty() { Ok(()) } else { sink.write(&bytes) }).await
    }

    /// Writes what was held back.
    pub async fn end(&mut self) -> Result<(), Failure> {
        self.blocking(Sink::end).await
    }

    async fn blocking(
        &mut self,
        work: impl FnOnce(&mut Sink) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let Some(mut sink) = self.sink.take() else { return Ok(()) };
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut sink);
            (sink, result)
        });
        // It does not panic, and is not cancelled before the runtime is.
        let (sink, result) = done.await.map_err(|error| Failure::new(exit::FAILED, error.to_string()))?;
        self.sink = Some(sink);
        result
    }
}
