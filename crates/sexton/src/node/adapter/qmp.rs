//! QEMU's monitor: lines of JSON.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::SayError;

/// BOUND: one line of the monitor.
const LONGEST_LINE: u64 = 1 << 16;
/// BOUND: events that may come before an answer.
const MOST_EVENTS: usize = 64;

/// The socket of `-qmp unix:PATH,…`, or of the socket `-chardev` that a `-mon` in control mode names.
pub(super) fn socket_of(argv: &[String]) -> Option<PathBuf> {
    let values = |flag: &'static str| {
        argv.windows(2).filter_map(move |pair| match pair {
            [name, value] if name.trim_start_matches('-') == flag && name.starts_with('-') => Some(value.as_str()),
            _ => None,
        })
    };
    let short =
        values("qmp").chain(values("qmp-pretty")).find_map(|value| value.strip_prefix("unix:")?.split(',').next());
    let long = || {
        let controls = values("mon").filter(|value| option(value, "mode") == Some("control"));
        let names: Vec<&str> =
            controls.map(|value| option(value, "chardev").or(value.split(',').next()).unwrap_or_default()).collect();
        let named = |value: &&str| option(value, "id").is_some_and(|id| names.contains(&id));
        values("chardev")
            .filter(|value| value.starts_with("socket,"))
            .find(named)
            .and_then(|value| option(value, "path"))
    };
    short.or_else(long).map(PathBuf::from)
}

/// What stands behind `key=` in a list of options.
fn option<'a>(options: &'a str, key: &str) -> Option<&'a str> {
    options.split(',').find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
}

/// Has one command carried out by the monitor behind `stream`.
pub(super) async fn execute(stream: UnixStream, command: &str) -> Result<(), SayError> {
    let mut stream = BufReader::new(stream);
    if line(&mut stream).await?.get("QMP").is_none() {
        return Err(SayError::Malformed);
    }
    for command in ["qmp_capabilities", command] {
        let text = format!("{}\n", json!({ "execute": command }));
        stream.get_mut().write_all(text.as_bytes()).await?;
        answer(&mut stream).await?;
    }
    Ok(())
}

/// Hears the answer to one command, and whatever happens before it.
async fn answer(stream: &mut BufReader<UnixStream>) -> Result<(), SayError> {
    for _ in 0..MOST_EVENTS {
        let answer = line(stream).await?;
        if answer.get("return").is_some() {
            return Ok(());
        }
        if answer.get("event").is_none() {
            return Err(SayError::Malformed);
        }
    }
    Err(SayError::Malformed)
}

async fn line(stream: &mut BufReader<UnixStream>) -> Result<Value, SayError> {
    let mut line = Vec::new();
    stream.take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
    serde_json::from_slice(&line).map_err(|_| SayError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_socket_is_the_one_of_the_control_monitor() {
        let long = ["q", "-chardev", "socket,id=a,path=/a.sock", "-chardev", "socket,id=m,path=/m.sock,server=on"];
        for (words, path) in [
            (vec!["q", "-name", "x", "-qmp", "unix:q.sock,server=on,wait=off"], Some("q.sock")),
            (vec!["q", "--qmp", "unix:/q.sock"], Some("/q.sock")),
            ([&long[..], &["-mon", "chardev=m,mode=control"]].concat(), Some("/m.sock")),
            ([&long[..], &["-mon", "m,mode=control"]].concat(), Some("/m.sock")),
            ([&long[..], &["-mon", "chardev=m,mode=readline"]].concat(), None),
            (vec!["q", "-qmp", "tcp:localhost:4444"], None),
            (vec!["q", "-monitor", "unix:m.sock"], None),
            (vec!["q", "-qmp"], None),
        ] {
            assert_eq!(socket_of(&argv(&words)), path.map(PathBuf::from), "{words:?}");
        }
    }

    #[test]
    fn a_command_is_carried_out_whatever_happens_meanwhile() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let events = "{\"event\":\"SHUTDOWN\"}\n";
        for (told, is_done) in [
            (format!("{{\"QMP\":{{}}}}\n{{\"return\":{{}}}}\n{events}{{\"return\":{{}}}}\n"), true),
            ("{\"QMP\":{}}\n{\"return\":{}}\n{\"error\":{}}\n".to_owned(), false),
            ("SSH-2.0\n".to_owned(), false),
            (String::new(), false),
        ] {
            runtime.block_on(async {
                let (ours, mut theirs) = UnixStream::pair().expect("a pair");
                theirs.write_all(told.as_bytes()).await.expect("written");
                theirs.shutdown().await.expect("shut");
                assert_eq!(execute(ours, "quit").await.is_ok(), is_done, "{told}");
            });
        }
    }
}
