//! What instances say, in words for people.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use sexton_ledger::duration;
use sexton_sys::signal::Signal;

use super::member::Member as _;
use super::out;

/// States that nothing but `start` and `rm` leads on from.
pub fn is_terminal(state: &str) -> bool {
    matches!(state, "exited" | "failed" | "lost")
}

/// The state of an instance.
pub fn state(instance: &Value) -> &str {
    instance.at("state").as_str().unwrap_or("unknown")
}

/// How the main process ended, in words: `exited with code 3`, `ended by SIGTERM`; `None` while that is not known.
pub fn exit(instance: &Value) -> Option<String> {
    let exit = instance.at("exit").as_object()?;
    let number = |key: &str| exit.get(key).and_then(Value::as_u64).and_then(|number| u8::try_from(number).ok());
    match (number("code"), number("signal").and_then(Signal::new)) {
        (Some(code), _) => Some(format!("exited with code {code}")),
        (None, Some(signal)) => Some(format!("ended by {signal}")),
        (None, None) => None,
    }
}

/// The exit code of a shell for how the main process ended; `None` while that is not known.
pub fn exit_code(instance: &Value) -> Option<u8> {
    let exit = instance.at("exit").as_object()?;
    let number = |key: &str| exit.get(key).and_then(Value::as_u64).and_then(|number| u8::try_from(number).ok());
    number("code").or_else(|| number("signal").and_then(|signal| signal.checked_add(128)))
}

/// Where an instance is, in one sentence without a name.
pub fn summary(instance: &Value) -> String {
    let state = state(instance);
    let mut text = match exit(instance) {
        Some(exit) if state == "exited" => exit,
        Some(exit) => format!("{state}, {exit}"),
        None => state.to_owned(),
    };
    if let Some(reason) = instance.at("reason").as_str() {
        text.push_str(&format!(" ({reason})"));
    }
    text
}

/// When an instance came to where it is, as far as it tells.
pub fn since(instance: &Value) -> Option<&str> {
    ["ended_at", "started_at", "created_at"].iter().find_map(|key| instance.at(key).as_str())
}

/// How long ago `at` was, roughly, or how long it is until then.
pub fn relative(at: &str, now: Timestamp) -> Option<String> {
    let at: Timestamp = at.parse().ok()?;
    let passed = at.duration_until(now);
    let about = rough(passed.unsigned_abs());
    Some(if passed.is_negative() { format!("in {about}") } else { format!("{about} ago") })
}

/// A duration by its two largest units.
pub fn rough(span: Duration) -> String {
    let seconds = span.as_secs();
    let unit = match seconds {
        0 => 1,
        1..60 => 1_000,
        60..86_400 => {
            if seconds < 3_600 {
                1_000
            } else {
                60_000
            }
        }
        _ => 3_600_000,
    };
    let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    duration::format(Duration::from_millis(ms - ms % unit))
}

/// Bytes in the largest binary unit that keeps them readable.
pub fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| count >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (u128::from(count) * 10) >> shift;
            format!("{}.{}{unit}", tenths / 10, tenths % 10)
        }
        None => format!("{count}B"),
    }
}

/// An argument list as one could type it.
pub fn command(argv: &Value) -> String {
    let words = argv.as_array().map(Vec::as_slice).unwrap_or_default();
    words.iter().filter_map(Value::as_str).map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-._/=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// One event as a line.
pub fn event(event: &Value) -> String {
    let text = |key: &str| out::escape(event.at(key).as_str().unwrap_or("-"));
    let data = match event.at("data") {
        Value::Null => String::new(),
        Value::Object(members) if members.is_empty() => String::new(),
        data @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_)) => {
            format!("  {}", out::escape(&out::word(data)))
        }
    };
    format!("{:<6}  {}  {:<24}  {}{data}", out::word(event.at("seq")), text("at"), text("kind"), text("instance"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ends_are_told_in_words() {
        let cases = [
            (json!({"state": "exited", "exit": {"code": 3, "signal": null}}), "exited with code 3", Some(3)),
            (json!({"state": "exited", "exit": {"code": null, "signal": 15}}), "ended by SIGTERM", Some(143)),
            (
                json!({"state": "stopping", "exit": {"code": 0, "signal": null}}),
                "stopping, exited with code 0",
                Some(0),
            ),
            (json!({"state": "lost", "exit": null, "reason": "reboot"}), "lost (reboot)", None),
            (json!({"state": "running", "exit": null, "reason": null}), "running", None),
            (json!({"state": "exited", "exit": {"code": null, "signal": null}}), "exited", None),
        ];
        for (instance, words, code) in cases {
            assert_eq!((summary(&instance).as_str(), exit_code(&instance)), (words, code));
        }
    }

    #[test]
    fn times_are_rough() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        for (at, told) in [
            ("2026-01-01T11:59:57.2Z", "2s ago"),
            ("2026-01-01T11:00:00Z", "1h ago"),
            ("2026-01-01T10:29:30Z", "1h30m ago"),
            ("2025-12-30T10:29:30Z", "2d1h ago"),
            ("2026-01-01T12:00:05Z", "in 5s"),
        ] {
            assert_eq!(relative(at, now).as_deref(), Some(told), "{at}");
        }
        assert_eq!(relative("yesterday", now), None);
    }

    #[test]
    fn sizes_and_commands_can_be_read() {
        assert_eq!(
            (bytes(512).as_str(), bytes(1536).as_str(), bytes(64 << 20).as_str()),
            ("512B", "1.5KiB", "64.0MiB")
        );
        assert_eq!(command(&json!(["sh", "-c", "echo 'a b'", ""])), r"sh -c 'echo '\''a b'\''' ''");
    }

    #[test]
    fn an_event_cannot_write_over_its_line() {
        let line = event(
            &json!({"seq": 7, "at": "t", "kind": "instance.lost", "instance": "a\x1b[2J", "data": {"reason": "x\ny"}}),
        );
        assert_eq!(line, "7       t  instance.lost             a\\x1b[2J  reason=x\\ny");
    }
}
