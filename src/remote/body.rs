//! Bodies of HTTP requests that are read from a [`Source`] while they are sent.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc::{Receiver, channel};

use super::{Source, read_piece};

/// Bytes that go to the socket at a time.
const FRAME: usize = 256 << 10;
/// Frames that are read ahead of the socket.
const AHEAD: usize = 4;

/// A source as the body of a request. It is read on a thread that may block.
pub(super) struct Body {
    frames: Receiver<std::io::Result<Bytes>>,
    left: u64,
}

/// Begins to read `source` for a request. To be called on a runtime.
pub(super) fn read_ahead(source: &Arc<dyn Source>) -> Body {
    let (sender, frames) = channel(AHEAD);
    let source = Arc::clone(source);
    let left = source.len();
    // Ends by itself: when everything was sent, or when the request was given up and nobody receives any more.
    drop(tokio::task::spawn_blocking(move || {
        let mut off = 0;
        while off < source.len() {
            let mut buf = vec![0; FRAME];
            let frame = read_piece(source.as_ref(), &mut buf, off).map(|n| {
                buf.truncate(n);
                off += n as u64;
                Bytes::from(buf)
            });
            let failed = frame.is_err();
            if sender.blocking_send(frame).is_err() || failed {
                return;
            }
        }
    }));
    Body { frames, left }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.frames.poll_recv(cx) {
            Poll::Ready(Some(Ok(bytes))) => {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
