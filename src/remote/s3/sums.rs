//! Checksums beside objects, and endpoints that refuse requests with headers for them, as Backblaze B2 did.
//!
//! Such an endpoint is found out by its first refusal that names one of the headers. From then on it gets none, and what is
//! stored is verified all the same: the bytes are hashed once more before they are sent, their MD5 goes with them
//! (Content-MD5, which is much older than those headers, and will do where objects are locked), their SHA-256 is still signed
//! with the request, and the ETag is compared with the MD5. What has another ETag is read back.

use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use md5::{Digest, Md5};

use super::super::{Checksum, ErrorKind, Key, RemoteError, Result, Source};
use super::S3Remote;

/// Whether requests have headers for checksums.
#[derive(Debug, Default)]
pub(super) struct Sums {
    refused: AtomicBool,
}

impl Sums {
    pub(super) fn are_sent(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    /// From now on there are none.
    pub(super) fn stop(&self, url: &str) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                url,
                "the endpoint refuses headers for checksums: MD5, or reading back, has to do"
            );
        }
    }
}

/// A request that failed.
pub(super) struct Failed {
    pub(super) error: RemoteError,
    /// Because it had headers for checksums.
    pub(super) minds_sums: bool,
}

impl From<RemoteError> for Failed {
    fn from(error: RemoteError) -> Self {
        Self { error, minds_sums: false }
    }
}

/// What came of a request.
pub(super) type Tried<T> = std::result::Result<T, Failed>;

impl S3Remote {
    /// Makes a request with headers for checksums; and if they are refused, or are known to be, without.
    pub(super) fn with_or_without_sums<T>(&self, request: impl Fn(bool) -> Tried<T>) -> Result<T> {
        let sums = self.sums.are_sent();
        match request(sums) {
            Err(failed) if sums && failed.minds_sums => {
                self.sums.stop(&self.url);
                request(false).map_err(|failed| failed.error)
            }
            other => other.map_err(|failed| failed.error),
        }
    }
}

/// An MD5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Md5Sum([u8; 16]);

impl Md5Sum {
    fn of(bytes: &[u8]) -> Self {
        Self(Md5::digest(bytes).into())
    }

    /// As ETags have it.
    pub(super) fn hex(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// As Content-MD5 has it.
    pub(super) fn base64(self) -> String {
        data_encoding::BASE64.encode(&self.0)
    }
}

/// Reads what is to be sent, or was, and returns its MD5.
///
/// # Errors
/// `Corrupt` where it is not what its checksum says; `Local` where it can't be read.
pub(super) fn md5_of(key: &Key, body: &dyn Source, checksum: &Checksum) -> Result<Md5Sum> {
    let mut md5 = Md5::new();
    let sha256 = Checksum::of_source(body, &mut |piece| md5.update(piece));
    if sha256.map_err(|e| RemoteError::source(&e))? != *checksum {
        let text = format!("{key}: what is sent is not what its checksum says");
        return Err(RemoteError::new(ErrorKind::Corrupt, text));
    }
    Ok(Md5Sum(md5.finalize().into()))
}

/// Reads a SHA-256 as the protocol has it.
pub(super) fn decode_checksum(text: &str) -> Option<Checksum> {
    let bytes = data_encoding::BASE64.decode(text.as_bytes()).ok()?;
    bytes.try_into().ok().map(Checksum)
}

/// Puts Content-MD5 in the place of the checksum that the SDK adds by itself where the protocol demands one.
#[derive(Debug)]
pub(super) struct OnlyMd5;

impl Intercept for OnlyMd5 {
    fn name(&self) -> &'static str {
        "OnlyMd5"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _cfg: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let request = context.request_mut();
        let md5 = request.body().bytes().map(Md5Sum::of).ok_or("a body that is not in memory")?;
        let headers = request.headers_mut();
        let is_sum =
            |name: &str| name.starts_with("x-amz-checksum-") || name.starts_with("x-amz-sdk-checksum-");
        let sums: Vec<String> =
            headers.iter().map(|(name, _)| name).filter(|name| is_sum(name)).map(String::from).collect();
        for name in sums {
            headers.remove(name);
        }
        headers.insert("content-md5", md5.base64());
        Ok(())
    }
}
