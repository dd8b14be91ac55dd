//! What the library has to say: to the host's callback, or in one line each on stderr.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::{Once, PoisonError, RwLock};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::{User, guard_quietly};

/// Who gets each line: 1 error, 2 warning, 3 information.
#[allow(non_camel_case_types, reason = "the header's name")]
pub type sexton_on_log = Option<unsafe extern "C" fn(level: c_int, line: *const c_char, user: *mut c_void)>;

static SINK: RwLock<(sexton_on_log, User)> = RwLock::new((None, User(std::ptr::null_mut())));

/// Sends the library's log to `on_log`, or to stderr again where that is null.
///
/// # Safety
/// `on_log` may be called on any thread until it is replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_log(on_log: sexton_on_log, user: *mut c_void) {
    guard_quietly(|| {
        install();
        *SINK.write().unwrap_or_else(PoisonError::into_inner) = (on_log, User(user));
    });
}

/// Listens to the library, unless the program, being one in Rust, has a listener of its own.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _theirs_stays = tracing::subscriber::set_global_default(Lines);
    });
}

/// A listener that knows events and no spans.
struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("sexton")
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        send(*event.metadata().level(), &format!("{}{}", line.message, line.fields));
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a `String` cannot fail.
        let _written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

fn send(level: Level, line: &str) {
    let (number, name) = match level {
        Level::ERROR => (1, "error"),
        Level::WARN => (2, "warning"),
        Level::INFO | Level::DEBUG | Level::TRACE => (3, "info"),
    };
    let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
    match &sink.0 {
        Some(on_log) => {
            let line = CString::new(line.replace('\0', " ")).unwrap_or_default();
            // SAFETY: the caller's promise to `sexton_log`; the line lives until the call returns.
            unsafe { on_log(number, line.as_ptr(), sink.1.pointer()) };
        }
        // A host whose stderr is closed wants no log.
        None => drop(writeln!(std::io::stderr(), "sexton: {name}: {line}")),
    }
}
