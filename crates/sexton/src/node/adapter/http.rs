//! The few requests that Firecracker and Cloud Hypervisor take on their sockets.

use std::path::PathBuf;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::SayError;

/// BOUND: bytes of an answer's head.
const LONGEST_HEAD: u64 = 1 << 14;

/// The socket that `flag` names: in the next argument or behind `=`, plain or as `path=PATH`.
pub(super) fn socket_of(argv: &[String], flag: &str) -> Option<PathBuf> {
    let next = argv.windows(2).find_map(|pair| match pair {
        [name, value] if name == flag => Some(value.as_str()),
        _ => None,
    });
    let given = next.or_else(|| argv.iter().find_map(|word| word.strip_prefix(flag)?.strip_prefix('=')))?;
    Some(PathBuf::from(given.strip_prefix("path=").unwrap_or(given)))
}

/// Sends one PUT, and hears whether it was taken.
pub(super) async fn put(mut stream: UnixStream, path: &str, body: &str) -> Result<(), SayError> {
    let request = format!(
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    // The whole head, so that the peer does not hear of a caller who left in the middle of its answer.
    let mut head = BufReader::new(stream.take(LONGEST_HEAD)).lines();
    let status = head.next_line().await?.unwrap_or_default();
    while head.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    if status.starts_with("HTTP/1.1 2") { Ok(()) } else { Err(SayError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_found_in_every_way_of_writing_it() {
        let argv = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for words in [&["fc", "--api-sock", "/f.sock"][..], &["fc", "--api-sock=/f.sock"]] {
            assert_eq!(socket_of(&argv(words), "--api-sock"), Some(PathBuf::from("/f.sock")), "{words:?}");
        }
        let path = socket_of(&argv(&["ch", "--api-socket", "path=/c.sock"]), "--api-socket");
        assert_eq!(path, Some(PathBuf::from("/c.sock")));
        assert_eq!(socket_of(&argv(&["fc", "--api-sock"]), "--api-sock"), None);
    }

    #[test]
    fn one_request_is_made_and_its_answer_heard() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            for (answer, taken) in [("HTTP/1.1 204 No Content\r\n\r\n", true), ("HTTP/1.1 400 Bad\r\n\r\n", false)] {
                let (ours, mut theirs) = UnixStream::pair().expect("a pair");
                theirs.write_all(answer.as_bytes()).await.expect("written");
                assert_eq!(put(ours, "/actions", "{}").await.is_ok(), taken, "{answer}");
                let mut text = String::new();
                theirs.read_to_string(&mut text).await.expect("read");
                assert!(text.starts_with("PUT /actions HTTP/1.1\r\n") && text.ends_with("\r\n\r\n{}"), "{text}");
            }
        });
    }
}
