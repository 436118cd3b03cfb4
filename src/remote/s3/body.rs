//! Bodies of requests and limits on those of responses.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextMut, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc::{Receiver, channel};

use super::super::{Checksum, Source, read_piece};

/// Bytes that go to the socket at a time.
const FRAME: usize = 256 << 10;
/// Frames that are read ahead of the socket.
const AHEAD: usize = 4;

/// A source as the body of a request. It is read on a thread that may block.
pub(in crate::remote) struct Body {
    frames: Receiver<std::io::Result<Bytes>>,
    left: u64,
}

/// Returns the body of a request that sends `source`.
pub(super) fn stream(source: &Arc<dyn Source>) -> ByteStream {
    ByteStream::from_body_1_x(read_ahead(source))
}

/// Begins to read `source` for a request. To be called on a runtime.
pub(in crate::remote) fn read_ahead(source: &Arc<dyn Source>) -> Body {
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

/// Signs the body's hash with the request, so that every endpoint has to check the body against it.
#[derive(Debug)]
pub(super) struct SignBody(pub(super) Checksum);

impl Intercept for SignBody {
    fn name(&self) -> &'static str {
        "SignBody"
    }

    fn read_before_signing(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let hex = data_encoding::HEXLOWER.encode(&self.0.0);
        cfg.interceptor_state().store_put(PayloadSigningOverride::Precomputed(hex));
        Ok(())
    }
}

/// Bounds what a response may have: an endpoint must not be able to fill our memory.
#[derive(Debug)]
pub(super) struct BoundResponse(pub(super) usize);

impl Intercept for BoundResponse {
    fn name(&self) -> &'static str {
        "BoundResponse"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        let whole = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(http_body_util::Limited::new(whole, self.0));
        Ok(())
    }
}
