//! Printing: the only place that does. What comes from outside is shown with its control characters escaped.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use serde_json::Value;

use super::failure::Failure;
use super::member::Member as _;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One document, or one object a line where it streams.
    Json,
}

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    format: Format,
}

/// Words of one row.
pub type Row = Vec<String>;

impl Out {
    /// Results go to stdout in `format`.
    pub const fn new(format: Format) -> Out {
        Out { format }
    }

    /// Whether JSON is wanted.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints `value` as the one document, or, for people, what `text` makes of it.
    ///
    /// # Errors
    /// Stdout took no more.
    pub fn document(self, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        match self.format {
            Format::Json => print(&(json(value, serde_json::to_string_pretty) + "\n")),
            Format::Table => print(&text(value)),
        }
    }

    /// Prints `value` as one line of a stream, or, for people, what `text` makes of it.
    ///
    /// # Errors
    /// Stdout took no more.
    pub fn line(self, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        match self.format {
            Format::Json => print(&(json(value, serde_json::to_string) + "\n")),
            Format::Table => print(&(text(value) + "\n")),
        }
    }
}

/// Prints a text whose parts from outside are escaped already.
///
/// # Errors
/// Stdout took no more.
pub fn print(text: &str) -> Result<(), Failure> {
    raw(text.as_bytes())
}

/// Writes bytes to stdout as they are, at once.
///
/// # Errors
/// Stdout took no more.
pub fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Failure::of_stdout(&error))
}

/// Writes bytes to stderr as they are, at once.
///
/// # Errors
/// Stderr took no more.
pub fn raw_error(bytes: &[u8]) -> Result<(), Failure> {
    let mut stderr = io::stderr().lock();
    stderr.write_all(bytes).and_then(|()| stderr.flush()).map_err(|error| Failure::of_stdout(&error))
}

impl Failure {
    /// Tells it, and gives the exit code.
    pub fn tell(&self) -> u8 {
        if let Some(message) = &self.message {
            error(message, self.hint.as_deref());
        }
        self.exit
    }
}

/// Tells a failure on stderr: `error: …`, and what to do next.
fn error(message: &str, hint: Option<&str>) {
    let (on, off) = if is_coloured(&io::stderr()) { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let mut text = format!("{on}error:{off} {}\n", escape(message));
    if let Some(hint) = hint {
        let _always = writeln!(text, "hint: {}", escape(hint));
    }
    // With stderr gone there is nobody to tell.
    let _told = io::stderr().lock().write_all(text.as_bytes());
}

/// Tells something that does not stop the command.
pub fn warning(message: &str) {
    let _told = io::stderr().lock().write_all(format!("warning: {}\n", escape(message)).as_bytes());
}

/// Writes a text of several lines that clap made to stderr.
pub fn usage(text: &str) {
    let _told = io::stderr().lock().write_all(escape_lines(text).as_bytes());
}

/// Whether stdout is a terminal.
pub fn to_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stdout takes colours: a terminal, and `NO_COLOR` is unset or empty.
pub fn in_colour() -> bool {
    is_coloured(&io::stdout())
}

fn is_coloured(stream: &impl io::IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// `text` on one line: control characters, and those that reorder or hide text, are written as escapes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        push(&mut escaped, c);
    }
    escaped
}

/// As [`escape`], but lines stay lines.
pub fn escape_lines(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' { escaped.push(c) } else { push(&mut escaped, c) }
    }
    escaped
}

fn push(escaped: &mut String, c: char) {
    let _always = match c {
        '\n' => write!(escaped, "\\n"),
        '\r' => write!(escaped, "\\r"),
        '\t' => write!(escaped, "\\t"),
        c if (c as u32) < 0x100 && c.is_control() => write!(escaped, "\\x{:02x}", c as u32),
        c if c.is_control() || is_invisible(c) => write!(escaped, "\\u{{{:x}}}", c as u32),
        c => write!(escaped, "{c}"),
    };
}

/// Marks that change the direction of text or separate lines: a name with them reads as another one.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// JSON text without a control character that a terminal would obey.
fn json(value: &Value, write: fn(&Value) -> serde_json::Result<String>) -> String {
    // Writing a `Value` into a string cannot fail; what JSON itself does not escape stands inside strings alone.
    escape_json(write(value).unwrap_or_default())
}

/// A JSON text that means the same, with what JSON lets stand as it is and [`escape`] does not written by number.
fn escape_json(text: String) -> String {
    let is_hidden = |c: char| matches!(c, '\x7f'..='\u{9f}') || is_invisible(c);
    if !text.contains(is_hidden) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        let _always = if is_hidden(c) { write!(escaped, "\\u{:04x}", c as u32) } else { write!(escaped, "{c}") };
    }
    escaped
}

/// Rows under `headers`, in columns.
pub fn table(headers: &[&str], rows: Vec<Row>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(headers.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|word| escape(word)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// The members of an object, one a line, their names aligned.
pub fn members(value: &Value) -> String {
    let Value::Object(members) = value else { return format!("{}\n", word(value)) };
    let width = members.keys().map(|key| key.chars().count()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (key, value) in members {
        let key = format!("{}:", escape(key));
        let _always = writeln!(text, "{key:<width$} {}", escape(&word(value)));
    }
    text
}

/// Objects as a table: one column for each member that any of them has.
pub fn objects(items: &[Value]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for key in items.iter().filter_map(Value::as_object).flat_map(|object| object.keys()) {
        if !columns.contains(&key.as_str()) {
            columns.push(key);
        }
    }
    let rows = items.iter().map(|item| columns.iter().map(|key| word(item.at(key))).collect()).collect();
    let headers: Vec<String> = columns.iter().map(|key| escape(&key.to_uppercase())).collect();
    table(&headers.iter().map(String::as_str).collect::<Vec<_>>(), rows)
}

/// A value as a word of a table: text without quotes, `-` for nothing.
pub fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            items.iter().map(word).collect::<Vec<_>>().join(",")
        }
        Value::Object(members) if members.is_empty() => "-".to_owned(),
        Value::Object(members) if members.values().all(|value| !value.is_object() && !value.is_array()) => {
            members.iter().map(|(key, value)| format!("{key}={}", word(value))).collect::<Vec<_>>().join(",")
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Lines that others write to stdout, made safe for a terminal.
#[derive(Debug, Default)]
pub struct Lines {
    tame: Tame,
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = self.tame.piece(bytes);
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}

/// Lines that others write to stdout, each as an object that holds it; empty ones are left out.
#[derive(Debug, Default)]
pub struct LinesAsJson {
    /// A line that has not ended yet.
    open: Vec<u8>,
}

impl io::Write for LinesAsJson {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let lines = whole_lines(&mut self.open, bytes);
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            writeln!(io::stdout().lock(), "{}", json(&serde_json::json!({ "line": line }), serde_json::to_string))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}

/// Lines of JSON that others write to stdout, made safe for a terminal and still JSON.
#[derive(Debug, Default)]
pub struct JsonLines {
    /// A line that has not ended yet.
    open: Vec<u8>,
}

impl io::Write for JsonLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let lines = whole_lines(&mut self.open, bytes);
        io::stdout().lock().write_all(escape_json(lines).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}

/// The lines that `bytes` end; a line that they leave open stays in `open` for the next.
fn whole_lines(open: &mut Vec<u8>, bytes: &[u8]) -> String {
    open.extend_from_slice(bytes);
    let ends = open.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let lines: Vec<u8> = open.drain(..ends).collect();
    String::from_utf8_lossy(&lines).into_owned()
}

/// Makes a workload's bytes safe for a terminal, whatever the pieces they come in.
#[derive(Debug, Default)]
pub struct Tame {
    /// The begin of a character whose end has not come yet.
    open: Vec<u8>,
}

impl Tame {
    /// The next piece, escaped; lines and tabs stay.
    pub fn piece(&mut self, bytes: &[u8]) -> String {
        self.open.extend_from_slice(bytes);
        let taken = std::mem::take(&mut self.open);
        let mut text = String::with_capacity(taken.len());
        let mut rest = taken.as_slice();
        for chunk in taken.utf8_chunks() {
            push_log(&mut text, chunk.valid());
            rest = rest.get(chunk.valid().len() + chunk.invalid().len()..).unwrap_or_default();
            if rest.is_empty() && is_begun(chunk.invalid()) {
                self.open = chunk.invalid().to_vec();
            } else {
                push_bytes(&mut text, chunk.invalid());
            }
        }
        text
    }

    /// What was held back, at the end.
    pub fn end(&mut self) -> String {
        let mut text = String::new();
        push_bytes(&mut text, &std::mem::take(&mut self.open));
        text
    }
}

/// Whether these bytes may still become one character.
fn is_begun(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _always = write!(text, "\\x{byte:02x}");
    }
}

fn push_log(text: &mut String, piece: &str) {
    let mut chars = piece.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => text.push(c),
            // A line may end in two characters; alone, a return would write over what stands there.
            '\r' if chars.peek() == Some(&'\n') => {}
            c => push(text, c),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(escape("a\x1b[31mb\nc\u{9b}d\u{202e}e\x7f"), "a\\x1b[31mb\\nc\\x9bd\\u{202e}e\\x7f");
        assert_eq!(escape("grün 日本"), "grün 日本");
        assert_eq!(escape_lines("a\nb\x07"), "a\nb\\x07");
    }

    #[test]
    fn json_holds_no_control_character_and_means_the_same() {
        let value = json!({"a": "\u{9b}31m\x7f\x1b\u{202e}\u{2028}\u{feff}"});
        let text = json(&value, serde_json::to_string);
        assert!(text.is_ascii() && !text.bytes().any(|b| b.is_ascii_control()), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let text = table(
            &["NAME", "STATE"],
            vec![vec!["a".into(), "running".into()], vec!["long-name".into(), "\x1b".into()]],
        );
        assert_eq!(text, "NAME       STATE\na          running\nlong-name  \\x1b\n");
    }

    #[test]
    fn a_log_in_pieces_is_the_same_as_whole() {
        let log = "grün\x1b[0m\r\n日本\tx\r!".as_bytes();
        let mut whole = Tame::default();
        let expected = whole.piece(log) + &whole.end();
        assert_eq!(expected, "grün\\x1b[0m\n日本\tx\\r!");
        for cut in 0..log.len() {
            let mut parts = Tame::default();
            let (first, second) = log.split_at(cut);
            let text = parts.piece(first) + &parts.piece(second) + &parts.end();
            assert!(text == expected || first.ends_with(b"\r"), "cut at {cut}: {text}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_numbers() {
        let mut tame = Tame::default();
        assert_eq!(tame.piece(b"a\xffb\xe2\x82"), "a\\xffb");
        assert_eq!(tame.end(), "\\xe2\\x82");
    }

    #[test]
    fn values_become_words() {
        for (value, expected) in [
            (json!(null), "-"),
            (json!("x"), "x"),
            (json!(["a", 1]), "a,1"),
            (json!({"a": "b", "c": 2}), "a=b,c=2"),
            (json!([{"a": 1}]), "[{\"a\":1}]"),
            (json!(true), "true"),
        ] {
            assert_eq!(word(&value), expected);
        }
    }
}
