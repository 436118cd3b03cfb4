//! Settings to a client: region, endpoint, credentials, timeouts.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    ConfigBag, Intercept, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
};
use aws_sdk_s3::error::{BoxError, DisplayErrorContext};

use super::super::location::Settings;
use super::super::secret::{credentials_file, require_private};
use super::super::{ErrorKind, RemoteError, Result};
use super::RESPONSE_MAX;
use super::body::{BoundResponse, BoundResponses};

/// Waits for a connection this long.
const CONNECT: Duration = Duration::from_secs(10);
/// Where an endpoint is named, but no region: most of them take any.
const REGION_OF_OTHERS: &str = "us-east-1";

/// Makes a client, and tells where requests for a bucket go.
pub(super) async fn connect(settings: &Settings, bucket: &str) -> Result<(Client, String)> {
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        // Retries are ours: they are the same for every kind of remote, and tests drive their clock.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build());
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(endpoint) = &settings.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(path) = credentials_file(settings)? {
        require_private(&path)?;
        let files = EnvConfigFiles::builder()
            .include_default_config_file(true)
            .with_file(EnvConfigFileKind::Credentials, &path)
            .build();
        // Only this file: the environment must not overrule what was chosen for this remote.
        let provider = aws_config::profile::ProfileFileCredentialsProvider::builder()
            .profile_files(files)
            .profile_name(settings.profile.as_deref().unwrap_or("default"))
            .build();
        loader = loader.credentials_provider(provider);
    }
    let given = settings.region.clone().or_else(|| region_of_environment(settings));
    if let Some(region) = given {
        loader = loader.region(Region::new(region));
    }
    let shared = loader.load().await;
    // Not only the settings name endpoints.
    let elsewhere = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|_| settings.endpoint.is_none());
    for url in shared.endpoint_url().into_iter().chain(elsewhere.as_deref()) {
        settings.check_plain(url).map_err(|text| RemoteError::new(ErrorKind::Misconfigured, text))?;
    }
    if shared.region().is_none() {
        return Err(RemoteError::new(
            ErrorKind::Misconfigured,
            format!("{}: the bucket's region is not known", settings.url),
        ));
    }
    let config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(settings.path_style)
        // Every put carries a SHA-256 of ours; anything else would confuse endpoints that don't know it.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .interceptor(BoundResponses(BoundResponse(RESPONSE_MAX)))
        .build();
    let client = Client::from_conf(config);
    let place = place_of(&client, settings, bucket).await?;
    // A profile may name an endpoint for S3 alone.
    settings.check_plain(&place).map_err(|text| RemoteError::new(ErrorKind::Misconfigured, text))?;
    Ok((client, place))
}

/// The URL that requests for a bucket have: environment, profiles, region and settings have a say in it, and only the SDK knows
/// how much. So a request is begun, looked at and given up. It needs no credentials, and nothing is sent.
async fn place_of(client: &Client, settings: &Settings, bucket: &str) -> Result<String> {
    let seen = Arc::new(OnceLock::new());
    let nobody = Credentials::new("nobody", "nobody", None, None, "place");
    let request = client
        .head_bucket()
        .bucket(bucket)
        .customize()
        .config_override(aws_sdk_s3::config::Builder::new().credentials_provider(nobody))
        .interceptor(SeeUrl(Arc::clone(&seen)));
    let failed = request.send().await.err();
    let why = || failed.map_or("a request that was not begun".into(), |e| DisplayErrorContext(e).to_string());
    seen.get().cloned().ok_or_else(|| {
        RemoteError::new(ErrorKind::Misconfigured, format!("{}: no endpoint: {}", settings.url, why()))
    })
}

/// Notes a request's URL, and gives the request up.
#[derive(Debug)]
struct SeeUrl(Arc<OnceLock<String>>);

impl Intercept for SeeUrl {
    fn name(&self) -> &'static str {
        "SeeUrl"
    }

    fn read_before_signing(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _cfg: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        self.0.get_or_init(|| context.request().uri().to_string());
        Err("only its URL was wanted".into())
    }
}

/// An endpoint that is not AWS needs a region only for signatures.
fn region_of_environment(settings: &Settings) -> Option<String> {
    settings.endpoint.as_ref()?;
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")).or_else(|| Some(REGION_OF_OTHERS.into()))
}
