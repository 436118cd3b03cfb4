//! Settings to a client: region, endpoint, credentials, timeouts.

use std::path::Path;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};

use super::super::location::Settings;
use super::super::{ErrorKind, RemoteError, Result};

/// Waits for a connection this long.
const CONNECT: Duration = Duration::from_secs(10);
/// Where an endpoint is named, but no region: most of them take any.
const REGION_OF_OTHERS: &str = "us-east-1";

/// Makes a client.
pub(super) async fn connect(settings: &Settings) -> Result<Client> {
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
        .build();
    Ok(Client::from_conf(config))
}

/// An endpoint that is not AWS needs a region only for signatures.
fn region_of_environment(settings: &Settings) -> Option<String> {
    settings.endpoint.as_ref()?;
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")).or_else(|| Some(REGION_OF_OTHERS.into()))
}

fn credentials_file(settings: &Settings) -> Result<Option<std::path::PathBuf>> {
    match (&settings.credentials_file, &settings.credential) {
        (Some(path), _) => Ok(Some(path.clone())),
        (None, Some(name)) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
            Some(dir) => Ok(Some(Path::new(&dir).join(name))),
            None => Err(RemoteError::new(
                ErrorKind::NoCredentials,
                format!(
                    "the credential {name} was not passed: CREDENTIALS_DIRECTORY is not set (systemd's LoadCredential=)"
                ),
            )),
        },
        (None, None) => Ok(None),
    }
}

/// Refuses a file with secrets that others can read.
fn require_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(path).map_err(|e| {
        RemoteError::new(ErrorKind::NoCredentials, format!("the credentials file {}: {e}", path.display()))
    })?;
    if meta.permissions().mode() & 0o077 != 0 {
        let text = format!("the credentials file {} can be read by group or others", path.display());
        return Err(RemoteError::new(ErrorKind::UnsafeFile, text));
    }
    Ok(())
}
