//! Google Cloud Storage: where it is, and who asks.

use opendal::Operator;
use opendal::services::Gcs;

use super::super::location::Settings;
use super::super::secret::{credentials_file, require_private};
use super::super::{ErrorKind, RemoteError, Result, Times};
use super::Dal;
use super::object::{Kind, ObjectRemote};

/// Google's own endpoint.
const ENDPOINT: &str = "https://storage.googleapis.com";

impl ObjectRemote {
    /// Makes a client for a bucket; nothing is asked yet.
    ///
    /// Credentials come from the file of the settings (JSON, of any kind that Google's tools write), or else from where those
    /// tools look: `GOOGLE_APPLICATION_CREDENTIALS`, the file of `gcloud auth application-default login`, the metadata
    /// server.
    ///
    /// # Errors
    /// `Misconfigured`, `NoCredentials`, `UnsafeFile`.
    pub fn gcs(settings: &Settings, bucket: &str, prefix: String, times: Times) -> Result<Self> {
        let mut builder = Gcs::default().bucket(bucket);
        if let Some(path) = credentials_file(settings)? {
            require_private(&path)?;
            let Some(path) = path.to_str() else {
                let text = format!("the credentials file {}: its name is no UTF-8", path.display());
                return Err(RemoteError::new(ErrorKind::Misconfigured, text));
            };
            // Only this file: the environment must not overrule what was chosen for this remote.
            builder = builder.credential_path(path).disable_config_load().disable_vm_metadata();
        }
        let endpoint = settings.endpoint.as_deref().unwrap_or(ENDPOINT).trim_end_matches('/');
        let builder = builder.endpoint(endpoint);
        let place = format!("{endpoint}/{bucket}/{prefix}");
        let dal = Dal::new(settings, place, prefix, times, || Operator::new(builder))?;
        Ok(Self::new(dal, Kind::Gcs))
    }
}
