//! Azure Blob Storage: where it is, and who asks.

use opendal::Operator;
use opendal::services::Azblob;
use zeroize::Zeroizing;

use super::super::location::Settings;
use super::super::secret::{credentials_file, read_private};
use super::super::{ErrorKind, RemoteError, Result, Times};
use super::Dal;
use super::object::{Kind, ObjectRemote};

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
        let (secret, from) = match credentials_file(settings)? {
            Some(path) => (Some(read_private(&path)?), "the credentials file"),
            None => {
                let text = set("AZURE_STORAGE_CONNECTION_STRING").map(Zeroizing::new);
                (text, "AZURE_STORAGE_CONNECTION_STRING")
            }
        };
        let wrong =
            |kind: ErrorKind, text: String| RemoteError::new(kind, format!("{}: {text}", settings.url));
        let known = set("AZBLOB_ACCOUNT_NAME")
            .or_else(|| set("AZURE_STORAGE_ACCOUNT_NAME"))
            .or_else(|| set("AZURE_STORAGE_ACCOUNT"));
        let secret = match secret.as_deref() {
            Some(text) => Some(
                Secret::read(text.trim())
                    .map_err(|what| wrong(ErrorKind::NoCredentials, format!("{from}: {what}")))?,
            ),
            None => None,
        };
        // What was chosen for this remote may lack a name, but not more than that.
        let known = known.filter(|_| match &secret {
            None => true,
            Some(Secret::Connection { .. }) => false,
            Some(_) => settings.endpoint.as_deref().and_then(account_of_host).is_none(),
        });
        let named = match &secret {
            Some(Secret::Connection { account, .. }) => account.as_deref(),
            _ => None,
        };
        // A connection string is of one account, and so is what the environment has.
        let account = match (settings.account.as_deref(), named, known.as_deref()) {
            (Some(wanted), Some(other), _) if wanted != other => {
                let text = format!("--account {wanted}, but {from} is for {other}");
                return Err(wrong(ErrorKind::Misconfigured, text));
            }
            (Some(wanted), None, Some(other)) if wanted != other && secret.is_none() => {
                let text =
                    format!("--account {wanted}, but the credentials of the environment are for {other}");
                return Err(wrong(ErrorKind::Misconfigured, text));
            }
            (Some(account), ..) | (None, Some(account), _) | (None, None, Some(account)) => Some(account),
            (None, None, None) => None,
        };
        let endpoint = match (&settings.endpoint, &secret, account) {
            (Some(endpoint), ..) => Some(endpoint.clone()),
            (None, Some(Secret::Connection { endpoint: Some(endpoint), .. }), _) => Some(endpoint.clone()),
            (None, _, Some(account)) => Some(format!("https://{account}.blob.core.windows.net")),
            (None, _, None) => None,
        };
        let Some(endpoint) = endpoint else {
            let text = "which storage account? `remote add --account NAME`";
            return Err(wrong(ErrorKind::Misconfigured, text.into()));
        };
        let endpoint = endpoint.trim_end_matches('/').to_string();
        if let (Some(account), Some(host)) = (account, account_of_host(&endpoint))
            && !account.eq_ignore_ascii_case(&host)
        {
            let text = format!("the account is {account}, but the endpoint {endpoint} is of {host}");
            return Err(wrong(ErrorKind::Misconfigured, text));
        }
        // What was chosen is all that is used: OpenDAL looks elsewhere only where it was given nothing.
        let mut builder = Azblob::default();
        match &secret {
            Some(Secret::Key(key) | Secret::Connection { credential: Credential::Key(key), .. }) => {
                let Some(account) = account.map(str::to_string).or_else(|| account_of_host(&endpoint)) else {
                    let text = format!("{from}: an account key needs --account NAME");
                    return Err(wrong(ErrorKind::NoCredentials, text));
                };
                builder = builder.account_name(&account).account_key(key);
            }
            Some(Secret::Sas(sas) | Secret::Connection { credential: Credential::Sas(sas), .. }) => {
                builder = builder.sas_token(sas);
            }
            None => {}
        }
        settings.check_plain(&endpoint).map_err(|text| RemoteError::new(ErrorKind::Misconfigured, text))?;
        let builder = builder.endpoint(&endpoint).container(container);
        let place = format!("{endpoint}/{container}/{prefix}");
        let dal = Dal::new(settings, place, prefix, times, || Operator::new(builder))?;
        Ok(Self::new(dal, Kind::Azblob))
    }
}

/// What a credentials file has.
#[derive(PartialEq)]
#[cfg_attr(test, derive(Debug))]
enum Secret {
    /// The key of an account.
    Key(Zeroizing<String>),
    /// A shared access signature.
    Sas(Zeroizing<String>),
    /// A connection string: one of the two, and where to use it.
    Connection { account: Option<String>, endpoint: Option<String>, credential: Credential },
}

#[derive(PartialEq)]
#[cfg_attr(test, derive(Debug))]
enum Credential {
    Key(Zeroizing<String>),
    Sas(Zeroizing<String>),
}

impl Secret {
    /// Reads it; the error says what is wrong, without the secret.
    fn read(text: &str) -> std::result::Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty".into());
        }
        let secret = |text: &str| Zeroizing::new(text.to_string());
        // The keys of accounts are base64: they may end in `sig==`, but have no `;` and no `&`.
        if text.contains("AccountKey=") || text.contains("SharedAccessSignature=") {
            let field = |name: &str| {
                let value = text.split(';').find_map(|field| field.trim().strip_prefix(name));
                value.map(str::trim).filter(|value| !value.is_empty())
            };
            let account = field("AccountName=").map(String::from);
            let credential = match (field("SharedAccessSignature="), field("AccountKey=")) {
                (Some(sas), _) => Credential::Sas(secret(sas.trim_start_matches('?'))),
                (None, Some(key)) => Credential::Key(secret(key)),
                (None, None) => return Err("a connection string without a credential".into()),
            };
            return Ok(Self::Connection { account, endpoint: endpoint_of(&field)?, credential });
        }
        let sas = text.trim_start_matches('?');
        Ok(match sas.starts_with("sig=") || sas.contains("&sig=") {
            true => Self::Sas(secret(sas)),
            false => Self::Key(secret(text)),
        })
    }
}

/// The endpoint that a connection string names.
fn endpoint_of<'a>(field: &dyn Fn(&str) -> Option<&'a str>) -> std::result::Result<Option<String>, String> {
    if let Some(endpoint) = field("BlobEndpoint=") {
        // It becomes part of names and messages: there may be no secret in it.
        if endpoint.contains(['?', '#', '@']) {
            return Err("a connection string whose BlobEndpoint has more than scheme, host and path".into());
        }
        return Ok(Some(endpoint.to_string()));
    }
    let protocol = field("DefaultEndpointsProtocol=").unwrap_or("https");
    if !matches!(protocol, "http" | "https") {
        return Err("a connection string whose DefaultEndpointsProtocol is neither http nor https".into());
    }
    let suffix = field("EndpointSuffix=").unwrap_or("core.windows.net");
    Ok(field("AccountName=").map(|account| format!("{protocol}://{account}.blob.{suffix}")))
}

/// The account whose host an endpoint of Azure is; other endpoints don't tell.
fn account_of_host(endpoint: &str) -> Option<String> {
    let (_, rest) = endpoint.split_once("://")?;
    let host = rest.split(['/', ':']).next()?.to_ascii_lowercase();
    let (account, service) = host.split_once('.')?;
    // Accounts in a zone of DNS have it between the two: `account.z01.blob.storage.azure.net`. Second regions have a suffix.
    let azure =
        [".core.windows.net", ".core.usgovcloudapi.net", ".core.chinacloudapi.cn", ".storage.azure.net"];
    let ours = azure.iter().any(|end| service.ends_with(end));
    ours.then(|| account.strip_suffix("-secondary").unwrap_or(account).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Credential {
        Credential::Key(Zeroizing::new(text.into()))
    }

    #[test]
    fn connection_strings_say_where_the_account_is() {
        let read = |text: &str| match Secret::read(text) {
            Ok(Secret::Connection { account, endpoint, credential }) => (account, endpoint, credential),
            other => panic!("{text}: {other:?}"),
        };
        let some = |text: &str| Some(text.to_string());
        assert_eq!(
            read("DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=a==;EndpointSuffix=core.example"),
            (some("acc"), some("https://acc.blob.core.example"), key("a=="))
        );
        assert_eq!(
            read("BlobEndpoint=https://x.example/acc;SharedAccessSignature=?sv=1&sig=2"),
            (None, some("https://x.example/acc"), Credential::Sas(Zeroizing::new("sv=1&sig=2".into())))
        );
        assert_eq!(
            read("AccountName=acc;AccountKey=a=="),
            (some("acc"), some("https://acc.blob.core.windows.net"), key("a=="))
        );
        assert_eq!(read("AccountKey=a=="), (None, None, key("a==")));
        assert!(Secret::read("AccountName=acc;AccountKey=;").is_err(), "it gives no credential");
        for end in ["?sv=1&sig=2", "#x"] {
            let error = Secret::read(&format!("BlobEndpoint=https://x.example/{end};AccountKey=a==")).err();
            assert!(error.is_some_and(|text| text.contains("BlobEndpoint") && !text.contains(end)), "{end}");
        }
        assert!(Secret::read("DefaultEndpointsProtocol=ftp;AccountName=acc;AccountKey=a==").is_err());
    }

    #[test]
    fn keys_are_told_from_signatures() {
        for text in ["AAAAsig=", "AAAAsig==", "sigAsig=", "AAAA"] {
            assert_eq!(Secret::read(text), Ok(Secret::Key(Zeroizing::new(text.into()))));
        }
        for text in ["?sv=1&sig=x%3D", "sv=1&sig=x%3D", "?sig=x&sv=1", "sig=x"] {
            let sas = text.trim_start_matches('?');
            assert_eq!(Secret::read(text), Ok(Secret::Sas(Zeroizing::new(sas.into()))));
        }
        assert!(Secret::read("").is_err());
    }

    #[test]
    fn hosts_of_azure_tell_the_account() {
        for (endpoint, account) in [
            ("https://acc.blob.core.windows.net", Some("acc")),
            ("https://Acc-secondary.blob.core.windows.net:443/", Some("acc")),
            ("https://acc.z01.blob.storage.azure.net/", Some("acc")),
            ("http://127.0.0.1:10000/acc", None),
            ("https://blobs.example/acc", None),
            ("https://core.windows.net.example", None),
        ] {
            assert_eq!(account_of_host(endpoint).as_deref(), account, "{endpoint}");
        }
    }
}
