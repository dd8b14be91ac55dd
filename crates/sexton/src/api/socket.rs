//! A socket of either kind that is listened on, as one.

use std::io;
use std::os::fd::AsFd as _;
use std::task::{Context, Poll};

use tokio::net::{TcpStream, UnixStream};

/// A stream socket of one of the kinds that are listened on.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Unix(stream) => stream.poll_read_ready(cx),
            Socket::Tcp(stream) => stream.poll_read_ready(cx),
        }
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Unix(stream) => stream.poll_write_ready(cx),
            Socket::Tcp(stream) => stream.poll_write_ready(cx),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_read_ready(cx)).await
    }

    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.try_read(buffer),
            Socket::Tcp(stream) => stream.try_read(buffer),
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.try_write(bytes),
            Socket::Tcp(stream) => stream.try_write(bytes),
        }
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn end_writing(&self) -> io::Result<()> {
        let end = std::net::Shutdown::Write;
        match self {
            Socket::Unix(stream) => {
                std::os::unix::net::UnixStream::from(stream.as_fd().try_clone_to_owned()?).shutdown(end)
            }
            Socket::Tcp(stream) => std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?).shutdown(end),
        }
    }

    /// Whether the peer has closed its end altogether, not just the direction that it writes in.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            // KERNEL: a write of nothing tells: `unix_stream_sendmsg` looks for `SEND_SHUTDOWN`, which only a full
            // close sets, before it looks at the length.
            Socket::Unix(stream) => {
                matches!(stream.try_write(&[]), Err(error) if error.kind() == io::ErrorKind::BrokenPipe)
            }
            Socket::Tcp(_) => false,
        }
    }
}
