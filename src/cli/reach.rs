//! How a remote is reached: the flags of everything that takes its URL.

use std::path::PathBuf;

use clap::Args;

use super::values::{absolute, speed};
use crate::remote::Settings;

/// How a remote is reached: settings of `remote add`, and of everything that takes a URL.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReachArgs {
    /// S3: the bucket's region
    #[arg(long)]
    pub(super) region: Option<String>,
    /// Azure: the storage account
    #[arg(long, value_name = "NAME")]
    pub(super) account: Option<String>,
    /// S3, Azure, Google: the endpoint's URL, where it is not their own
    #[arg(long, value_name = "URL")]
    pub(super) endpoint: Option<String>,
    /// Speak http:// to another machine all the same; only in a network that you trust
    #[arg(long)]
    pub(super) allow_http: bool,
    /// S3: profile of ~/.aws/config and ~/.aws/credentials
    #[arg(long)]
    pub(super) profile: Option<String>,
    /// Take credentials from this file, which only its owner may read. S3: as ~/.aws/credentials; WebDAV:
    /// USER:PASSWORD; Azure: an account key, a SAS or a connection string; Google: its JSON
    #[arg(long, value_name = "FILE", conflicts_with = "s3_credential")]
    pub(super) credentials_file: Option<PathBuf>,
    /// Take credentials from this systemd credential, which is such a file
    #[arg(long, value_name = "NAME", visible_alias = "remote-credential")]
    pub(super) s3_credential: Option<String>,
    /// S3: put the bucket into the path, as most servers of one's own want it
    #[arg(long)]
    pub(super) path_style: bool,
    /// SFTP: log in with this private key
    #[arg(long, value_name = "FILE")]
    pub(super) identity_file: Option<PathBuf>,
    /// SFTP: the host's key is in this file, instead of ~/.ssh/known_hosts
    #[arg(long, value_name = "FILE")]
    pub(super) known_hosts: Option<PathBuf>,
    /// SFTP: use this ssh_config
    #[arg(long, value_name = "FILE")]
    pub(super) ssh_config: Option<PathBuf>,
    /// Receive at most so much a second: 500k, 10M
    #[arg(long, value_name = "SPEED", value_parser = speed)]
    pub(super) limit_download: Option<u64>,
}

impl ReachArgs {
    /// The settings of a remote at this URL.
    pub(crate) fn settings(&self, url: &str) -> Settings {
        Settings {
            url: url.to_string(),
            region: self.region.clone(),
            account: self.account.clone(),
            endpoint: self.endpoint.clone(),
            allow_http: self.allow_http,
            profile: self.profile.clone(),
            credentials_file: absolute(self.credentials_file.as_ref()),
            credential: self.s3_credential.clone(),
            path_style: self.path_style,
            identity_file: absolute(self.identity_file.as_ref()),
            known_hosts: absolute(self.known_hosts.as_ref()),
            ssh_config: absolute(self.ssh_config.as_ref()),
            limit_download: self.limit_download,
            ..Settings::default()
        }
    }
}
