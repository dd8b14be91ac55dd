//! `logs`: what an instance wrote, byte for byte, or made safe for a terminal.

use clap::Args;
use http_body_util::BodyExt as _;
use serde_json::json;
use sexton_plan::id::Name;

use super::client::{Ask, AskError, Client, Known, with_query};
use super::failure::{Failure, exit};
use super::member::Member as _;
use super::out::{self, Tame};
use super::{Context, args, watch};
use crate::api::types::Stream;

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
        Sink::Lines { stream, open: Vec::new() }
    } else if out::to_terminal() {
        Sink::Terminal(Tame::default())
    } else {
        Sink::Stdout
    };
    let life = life(&client, &args.name, Known::No).await?;
    let mut copy = Copy::new(client.clone(), args.name.clone(), stream, sink);
    copy.follow = args.follow;
    copy.tail = args.tail;
    loop {
        match copy.pass().await? {
            Ended::Whole if !args.follow || is_last(&client, &args.name).await? => break,
            // Followed to its end: removed, or the daemon hung up.
            Ended::Whole | Ended::Cut => {}
        }
        let now = match self::life(&client, &args.name, Known::Yes).await {
            Err(failure) if failure.exit == exit::NOT_FOUND && args.follow => break,
            other => other?,
        };
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        // From here on only the number of bytes says where it was, so they must be those of the same life, from its
        // beginning.
        if now != life || args.tail.is_some() {
            return Err(Failure::new(
                exit::UNREACHABLE,
                "the daemon hung up, and the log cannot be taken up where it was",
            )
            .hint("ask again; `--tail` shows the last lines"));
        }
    }
    copy.end().await?;
    Ok(exit::DONE)
}

/// Whether nothing can follow what was read: the instance is over, and its node takes no new work.
async fn is_last(client: &Client, name: &Name) -> Result<bool, Failure> {
    let node = client.send_again(&Ask::get("/v1/node"), Known::Yes).await?.into_body()?;
    if node.at("status") != "draining" {
        return Ok(false);
    }
    match client.send_again(&Ask::get(watch::path(name)), Known::Yes).await?.into_body() {
        Ok(instance) => Ok(matches!(instance.at("state").as_str(), Some("exited" | "failed" | "lost"))),
        Err(failure) if failure.exit == exit::NOT_FOUND => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// The newest life of an instance.
async fn life(client: &Client, name: &Name, known: Known) -> Result<String, Failure> {
    let instance = client.send_again(&Ask::get(watch::path(name)), known).await?.into_body()?;
    Ok(instance.at("incarnation").as_str().unwrap_or_default().to_owned())
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

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The daemon said that this is all.
    Whole,
    /// The connection was lost.
    Cut,
}

/// Copies one stream, and goes on where it was after the daemon hung up.
#[derive(Debug)]
pub struct Copy {
    client: Client,
    name: Name,
    stream: Stream,
    sink: Option<Sink>,
    /// Whether to go on with what is written from now on.
    pub follow: bool,
    /// Only so many of the last lines.
    pub tail: Option<u64>,
    /// Only what this life wrote; then it ends with it.
    pub life: Option<String>,
    written: u64,
    known: Known,
}

impl Copy {
    /// A copy of one stream of the newest life.
    pub fn new(client: Client, name: Name, stream: Stream, sink: Sink) -> Copy {
        let sink = Some(sink);
        Copy { client, name, stream, sink, follow: false, tail: None, life: None, written: 0, known: Known::No }
    }

    fn ask(&self) -> Ask {
        let tail = self.tail.map(|tail| tail.to_string());
        let mut query = vec![("stream", self.stream.as_str())];
        query.extend(self.follow.then_some(("follow", "true")));
        query.extend(tail.as_deref().map(|tail| ("tail", tail)));
        query.extend(self.life.as_deref().map(|life| ("incarnation", life)));
        Ask::get(with_query(&format!("{}/logs", watch::path(&self.name)), &query))
    }

    /// Copies what there is behind what is copied already, until the daemon or the connection ends it.
    pub async fn pass(&mut self) -> Result<Ended, Failure> {
        let response = match self.client.open(&self.ask()).await {
            Ok(response) => response,
            Err(AskError::Lost { .. } | AskError::Unreachable { .. }) if self.known == Known::Yes => {
                return Ok(Ended::Cut);
            }
            Err(error) => return Err(error.into()),
        };
        self.known = Known::Yes;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if status != 200 {
            return self.client.whole(status, body).await?.into_body().map(|_| Ended::Whole);
        }
        let mut skip = self.written;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Ok(Ended::Cut) };
            let Ok(mut bytes) = frame.into_data() else { continue };
            let skipped = bytes.split_to(usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len()));
            skip -= skipped.len() as u64;
            self.written += bytes.len() as u64;
            self.write(bytes).await?;
        }
        Ok(Ended::Whole)
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
