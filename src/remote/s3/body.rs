//! Bodies of requests and limits on those of responses.

use std::sync::Arc;

use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextMut, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_smithy_runtime_api::client::orchestrator::Metadata;

use super::super::body::read_ahead;
use super::super::{Checksum, Source};

/// Returns the body of a request that sends `source`.
pub(super) fn stream(source: &Arc<dyn Source>) -> ByteStream {
    ByteStream::from_body_1_x(read_ahead(source))
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

/// Bounds what a response may have, in bytes: an endpoint must not be able to fill our memory.
#[derive(Debug)]
pub(super) struct BoundResponse(pub(super) usize);

impl BoundResponse {
    fn bound(&self, context: &mut BeforeDeserializationInterceptorContextMut<'_>) {
        let body = context.response_mut().body_mut();
        let whole = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(http_body_util::Limited::new(whole, self.0));
    }
}

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
        self.bound(context);
        Ok(())
    }
}

/// [`BoundResponse`] for a whole client: for every operation but one. What a range of an object may have depends on the
/// range, so whoever asks for one bounds it.
#[derive(Debug)]
pub(super) struct BoundResponses(pub(super) BoundResponse);

impl Intercept for BoundResponses {
    fn name(&self) -> &'static str {
        "BoundResponses"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if cfg.load::<Metadata>().is_none_or(|operation| operation.name() != "GetObject") {
            self.0.bound(context);
        }
        Ok(())
    }
}
