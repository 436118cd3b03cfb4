//! Azure Blob Storage: where it is, and who asks.

use opendal::Operator;
use opendal::services::Azblob;

use super::super::location::Settings;
use super::super::s3::client::{credentials_file, require_private};
use super::super::{ErrorKind, RemoteError, Result, Times};
use super::object::{Kind, ObjectRemote};
use super::{Dal, errors, read_secret};

impl ObjectRemote {
    /// Makes a client for a container; nothing is asked yet.
    ///
    /// Credentials come from the file of the settings (an account key, a SAS, or a connection string), or else from the
    /// environment: `AZURE_STORAGE_CONNECTION_STRING`, `AZURE_STORAGE_ACCOUNT_NAME` and `..._KEY`, and what OpenDAL finds
    /// (workload identity, managed identity).
    ///
    /// # Errors
    /// `Misconfigured`, `NoCredentials`, `UnsafeFile`.
    pub fn azblob(settings: &Settings, container: &str, prefix: String, times: Times) -> Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let secret = match credentials_file(settings)? {
            Some(path) => {
                require_private(&path)?;
                Some(read_secret(&path)?)
            }
            None => set("AZURE_STORAGE_CONNECTION_STRING").map(zeroize::Zeroizing::new),
        };
        let wrong =
            |text: String| RemoteError::new(ErrorKind::NoCredentials, format!("{}: {text}", settings.url));
        let account = settings
            .account
            .clone()
            .or_else(|| set("AZURE_STORAGE_ACCOUNT_NAME"))
            .or_else(|| set("AZURE_STORAGE_ACCOUNT"));
        let mut builder = Azblob::default();
        match secret.as_deref().map(|secret| secret.trim()) {
            Some(text) if text.contains("AccountKey=") || text.contains("SharedAccessSignature=") => {
                builder = Azblob::from_connection_string(text).map_err(|e| {
                    wrong(format!("no connection string: {}", errors::printable(e.message())))
                })?;
            }
            Some(text) if text.contains("sig=") => {
                builder = builder.sas_token(text.trim_start_matches('?'));
            }
            Some("") => return Err(wrong("the credentials file is empty".into())),
            Some(key) => {
                let Some(account) = &account else {
                    return Err(wrong("an account key needs --account NAME".into()));
                };
                builder = builder.account_name(account).account_key(key);
            }
            None => {}
        }
        let endpoint = match (&settings.endpoint, &account) {
            (Some(endpoint), _) => Some(endpoint.clone()),
            (None, Some(account)) => Some(format!("https://{account}.blob.core.windows.net")),
            (None, None) => secret.as_deref().and_then(|secret| endpoint_of(secret)),
        };
        let Some(endpoint) = endpoint else {
            let text = format!("{}: which storage account? `remote add --account NAME`", settings.url);
            return Err(RemoteError::new(ErrorKind::Misconfigured, text));
        };
        settings.check_plain(&endpoint).map_err(|text| RemoteError::new(ErrorKind::Misconfigured, text))?;
        let builder = builder.endpoint(&endpoint).container(container);
        let place = format!("{}/{container}/{prefix}", endpoint.trim_end_matches('/'));
        let dal = Dal::new(settings, place, prefix, times, || Operator::new(builder))?;
        Ok(Self::new(dal, Kind::Azblob))
    }
}

/// The endpoint that a connection string names.
fn endpoint_of(text: &str) -> Option<String> {
    let field = |name: &str| {
        text.split(';')
            .find_map(|field| field.trim().strip_prefix(name))
            .map(str::trim)
            .filter(|v| !v.is_empty())
    };
    if let Some(endpoint) = field("BlobEndpoint=") {
        return Some(endpoint.to_string());
    }
    let protocol = field("DefaultEndpointsProtocol=").unwrap_or("https");
    let suffix = field("EndpointSuffix=").unwrap_or("core.windows.net");
    field("AccountName=").map(|account| format!("{protocol}://{account}.blob.{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_say_where_the_account_is() {
        let some = |text: &str| Some(text.to_string());
        assert_eq!(
            endpoint_of(
                "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=a==;EndpointSuffix=core.windows.net"
            ),
            some("https://acc.blob.core.windows.net")
        );
        assert_eq!(
            endpoint_of("BlobEndpoint=https://x.example/acc;SharedAccessSignature=sv=1&sig=2"),
            some("https://x.example/acc")
        );
        assert_eq!(endpoint_of("AccountName=acc;AccountKey=a=="), some("https://acc.blob.core.windows.net"));
        assert_eq!(endpoint_of("AccountKey=a=="), None);
    }
}
