//! An answer that is read while it comes, by who may wait: for listings, which are long, and of which most is thrown away.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::super::{ErrorKind, RemoteError};
use super::Dal;
use super::transport::broke;
use crate::env::Env;

/// The rest of an answer.
pub(super) struct Stream<'a> {
    dal: &'a Dal,
    env: &'a dyn Env,
    what: &'a str,
    body: Incoming,
    piece: Bytes,
    start: Duration,
    /// What has come, in bytes, and the most that may.
    came: u64,
    max: u64,
    /// Why reading failed: [`io::Error`]s don't say it.
    pub(super) failure: Option<RemoteError>,
}

impl<'a> Stream<'a> {
    /// Reads the body of an answer that has begun to come.
    pub(super) fn new(dal: &'a Dal, env: &'a dyn Env, what: &'a str, body: Incoming, max: u64) -> Self {
        let start = env.monotonic();
        Self { dal, env, what, body, piece: Bytes::new(), start, came: 0, max, failure: None }
    }

    /// Waits for the next piece; `None` at the end.
    fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        let times = &self.dal.times;
        let spent = self.env.monotonic().saturating_sub(self.start);
        // However long it is: it only has to come fast enough.
        let limit = times.answer + Duration::from_secs(self.came / times.slowest.max(1));
        let frame = self.dal.wait_for(self.what, limit.saturating_sub(spent), async {
            self.body.frame().await.transpose().map_err(|e| broke(self.what, &e))
        });
        match frame {
            Ok(Some(frame)) => {
                // Trailers are none.
                let piece = frame.into_data().unwrap_or_default();
                self.came += piece.len() as u64;
                if self.came > self.max {
                    let text = format!("{}: an answer of more than {} bytes", self.what, self.max);
                    return Err(RemoteError::new(ErrorKind::Corrupt, text));
                }
                Ok(Some(piece))
            }
            Ok(None) => Ok(None),
            Err(e) if e.kind == ErrorKind::Timeout => {
                let text = format!(
                    "{}: the answer comes too slowly: {} bytes in {} seconds",
                    self.what,
                    self.came,
                    limit.as_secs()
                );
                Err(RemoteError::new(ErrorKind::Timeout, text))
            }
            Err(e) => Err(e),
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Stream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.next() {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => break,
                Err(error) => {
                    let told = io::Error::other(error.message.clone());
                    self.failure = Some(error);
                    return Err(told);
                }
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, n: usize) {
        self.piece.advance(n);
    }
}
