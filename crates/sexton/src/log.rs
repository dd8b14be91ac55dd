//! The daemon's own log: lines on stderr, their level by `SEXTON_LOG`, control bytes escaped.

use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, io};

use sexton_sys::poll::offer;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry};

/// The variable that says what is logged: a level, or a list such as `info,sexton::api=debug`.
const VARIABLE: &str = "SEXTON_LOG";

/// Starts the log of this process. A second call changes nothing.
pub fn start() {
    let wanted = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let filter = wanted.as_deref().map(str::parse::<Targets>);
    let is_bad = matches!(filter, Some(Err(_)));
    let filter = filter.and_then(Result::ok).unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Unwaited).event_format(Plain);
    // A process has one log; whoever began it keeps it.
    let _is_first = Registry::default().with(lines.with_filter(filter)).try_init();
    if is_bad {
        tracing::warn!("{VARIABLE} is not understood; the level is info");
    }
}

/// Stderr, never waited for: whoever does not read the log must not be able to stop the daemon. A line that is not taken
/// at the moment is left out, and the next one that is tells how many were.
struct Unwaited;

static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

impl io::Write for Unwaited {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Of threads that found room for one line two would wait.
        let stderr = io::stderr().lock();
        let before = LEFT_OUT.swap(0, Ordering::Relaxed);
        let told =
            if before > 0 { format!("{before} lines were left out here: nobody took them\n") } else { String::new() };
        if !offer(stderr.as_raw_fd(), &[told.as_bytes(), line].concat()) {
            LEFT_OUT.fetch_add(before + 1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `2026-01-02T03:04:05.678Z  INFO message key=value`, whatever bytes the values hold.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let now = jiff::Timestamp::now();
        write!(writer, "{now:.3} {:>5}", event.metadata().level())?;
        let mut line = Line::default();
        event.record(&mut line);
        writeln!(writer, " {}{}", line.message, line.fields)
    }
}

/// One event's message and fields, escaped.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = escape(&format!("{value:?}"));
        if field.name() == "message" {
            self.message = text;
        } else {
            self.fields.push_str(&format!(" {}={text}", field.name()));
        }
    }
}

/// `text` with every control character escaped, those of the C1 range and those that reorder text among them.
pub fn escape(text: &str) -> String {
    let is_plain = |c: char| !c.is_control() && !is_reordering(c);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    text.chars().map(|c| if is_plain(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// Whether a character changes the direction or order of what is around it on a screen.
fn is_reordering(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_moves_a_cursor_is_escaped_and_what_is_text_is_not() {
        assert_eq!(escape("a\x1b[2J\n\r\u{9b}\u{202e}b"), "a\\u{1b}[2J\\n\\r\\u{9b}\\u{202e}b");
        assert_eq!(escape("grün `x` \"y\""), "grün `x` \"y\"");
    }
}
