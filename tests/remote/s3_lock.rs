//! The test server's versions and Object Lock, as S3 has them: what is retained is deleted by nobody, and who may do what is
//! read from policies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result};

use super::iam::{Context, Policy};
use super::s3_server::{ACCESS_KEY, Backend, SECRET_KEY, State, fail, http_status};

/// What keeps a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub compliance: bool,
    /// Seconds since the epoch.
    pub until: i64,
}

impl Kept {
    /// Its name in the protocol: of what is asked for, and of what is answered.
    pub fn mode(&self) -> &'static str {
        if self.compliance { "COMPLIANCE" } else { "GOVERNANCE" }
    }
}

/// One version of an object, or a delete marker.
#[derive(Clone, Debug)]
pub struct Version {
    pub id: String,
    pub bytes: Arc<Vec<u8>>,
    pub sha256: Option<String>,
    pub deleted: bool,
    pub kept: Option<Kept>,
    pub storage_class: Option<String>,
    pub sse: Option<String>,
    pub sse_kms_key_id: Option<String>,
    /// The Content-MD5 with which it came.
    pub md5: Option<String>,
}

/// Somebody with keys.
#[derive(Clone, Debug)]
pub struct User {
    pub secret: String,
    pub policy: Policy,
}

pub fn denied(text: &str) -> S3Error {
    say("AccessDenied", 403, text)
}

pub fn say(code: &str, status: u16, text: &str) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::from_bytes(code.as_bytes()).expect("a code"));
    error.set_status_code(http_status(status));
    error.set_message(text.to_string());
    error
}

pub fn seconds(time: &Timestamp) -> i64 {
    let mut text = Vec::new();
    time.format(TimestampFormat::EpochSeconds, &mut text).expect("a time");
    String::from_utf8(text).expect("digits").parse::<f64>().expect("a number") as i64
}

pub fn timestamp(secs: i64) -> Timestamp {
    Timestamp::parse(TimestampFormat::EpochSeconds, &secs.to_string()).expect("a time")
}

impl State {
    pub fn now(&self) -> i64 {
        let real = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        self.clock.unwrap_or_else(|| i64::try_from(real()).expect("small"))
    }

    /// What a put asks for.
    pub fn wanted(&self, mode: Option<&str>, until: Option<&Timestamp>) -> S3Result<Option<Kept>> {
        let (mode, until) = match (mode, until) {
            (None, None) => return Ok(None),
            (Some(mode), Some(until)) => (mode, seconds(until)),
            _ => return Err(say("InvalidArgument", 400, "both a mode and a date are needed")),
        };
        if !self.object_lock {
            return Err(say("InvalidRequest", 400, "Bucket is missing Object Lock Configuration"));
        }
        if until <= self.now() {
            return Err(say("InvalidArgument", 400, "The retain until date must be in the future!"));
        }
        Ok(Some(Kept { compliance: mode == ObjectLockMode::COMPLIANCE, until }))
    }

    /// Whether what keeps a version may be changed into something else, or given up.
    pub fn may_change(&self, was: Option<&Kept>, to: Option<&Kept>, bypass: bool) -> S3Result<()> {
        let Some(was) = was.filter(|was| was.until > self.now()) else { return Ok(()) };
        let stricter = to.is_some_and(|to| to.until >= was.until && (to.compliance || !was.compliance));
        match stricter || (bypass && !was.compliance) || self.defects.breaks_locks {
            true => Ok(()),
            false => Err(denied("Access Denied because object protected by object lock.")),
        }
    }

    pub fn version(&self, key: &str, id: Option<&str>) -> S3Result<&Version> {
        let Some(id) = id else { return self.newest(key).ok_or_else(|| fail("NoSuchKey", 404)) };
        let found = self.objects.get(key).into_iter().flatten().find(|version| version.id == id);
        match found {
            Some(version) if version.deleted => Err(fail("MethodNotAllowed", 405)),
            other => other.ok_or_else(|| fail("NoSuchVersion", 404)),
        }
    }

    /// Deletes, or puts a marker.
    pub fn delete(&mut self, key: &str, id: Option<&str>, bypass: bool) -> S3Result<()> {
        if let Some(id) = id {
            let versions = self.objects.get(key).into_iter().flatten();
            if let Some(version) = versions.clone().find(|version| version.id == id) {
                self.may_change(version.kept.as_ref(), None, bypass)?;
            }
            if let Some(versions) = self.objects.get_mut(key) {
                versions.retain(|version| version.id != id);
            }
            self.objects.retain(|_, versions| !versions.is_empty());
        } else if self.versioned {
            let id = self.fresh_id();
            let marker = Version {
                id,
                bytes: Arc::default(),
                sha256: None,
                deleted: true,
                kept: None,
                storage_class: None,
                sse: None,
                sse_kms_key_id: None,
                md5: None,
            };
            self.objects.entry(key.to_string()).or_default().push(marker);
        } else {
            self.objects.remove(key);
        }
        Ok(())
    }

    pub fn fresh_id(&mut self) -> String {
        self.ids += 1;
        match self.versioned {
            true => format!("v{:06}", self.ids),
            false => "null".into(),
        }
    }

    pub fn list_versions(&self, input: &ListObjectVersionsInput) -> ListObjectVersionsOutput {
        let prefix = input.prefix.clone().unwrap_or_default();
        let max = usize::try_from(input.max_keys.unwrap_or(1000)).expect("a count");
        let (after, after_id) =
            (input.key_marker.clone().unwrap_or_default(), input.version_id_marker.clone());
        let mut skipping = after_id.is_some();
        let mut found: Vec<(&String, &Version, bool)> = Vec::new();
        for (key, versions) in
            self.objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key >= after)
        {
            if *key == after && after_id.is_none() && !after.is_empty() {
                continue;
            }
            for (n, version) in versions.iter().rev().enumerate() {
                if *key == after && skipping {
                    skipping = Some(&version.id) != after_id.as_ref();
                    continue;
                }
                found.push((key, version, n == 0));
            }
        }
        let truncated = found.len() > max || self.defects.versions_in_circles;
        found.truncate(max);
        let last = found.last().map(|(key, version, _)| ((*key).clone(), version.id.clone()));
        let mut versions = Vec::new();
        let mut markers = Vec::new();
        for (key, version, latest) in found {
            let (key, id, latest) = (Some(key.clone()), Some(version.id.clone()), Some(latest));
            if version.deleted {
                markers.push(DeleteMarkerEntry {
                    key,
                    version_id: id,
                    is_latest: latest,
                    ..Default::default()
                });
            } else {
                versions.push(ObjectVersion {
                    key,
                    version_id: id,
                    is_latest: latest,
                    size: i64::try_from(version.bytes.len()).ok(),
                    e_tag: Some(version.etag()),
                    ..Default::default()
                });
            }
        }
        if self.defects.lists_strangers {
            let strange = Some("elsewhere/x".to_string());
            versions.push(ObjectVersion {
                key: strange,
                size: Some(1),
                version_id: Some("v".into()),
                ..Default::default()
            });
        }
        let next = match self.defects.versions_in_circles {
            true => Some((input.key_marker.clone().unwrap_or("a".into()), "v".into())),
            false => last.filter(|_| truncated),
        };
        ListObjectVersionsOutput {
            is_truncated: Some(truncated),
            next_key_marker: next.clone().map(|(key, _)| key),
            next_version_id_marker: next.map(|(_, id)| id),
            versions: Some(versions),
            delete_markers: Some(markers),
            ..Default::default()
        }
    }
}

#[async_trait::async_trait]
impl S3Auth for Backend {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == ACCESS_KEY {
            return Ok(SECRET_KEY.into());
        }
        let secret = self.state().users.get(access_key).map(|user| user.secret.clone());
        secret.map(SecretKey::from).ok_or_else(|| fail("InvalidAccessKeyId", 403))
    }
}

/// Whether a query has a member; `versions` and `versionId=x` are such.
fn query(uri: &hyper::Uri, name: &str) -> Option<String> {
    let mut members = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .map(|member| member.split_once('=').unwrap_or((member, "")));
    members.find(|(key, _)| *key == name).map(|(_, value)| value.replace("%2F", "/"))
}

impl Backend {
    fn check_headers(&self, cx: &S3AccessContext<'_>) -> S3Result<()> {
        let is_refused =
            |name: &&str| name.starts_with("x-amz-checksum-") || name.starts_with("x-amz-sdk-checksum-");
        let mut state = self.state();
        if let Some((code, status, text)) = state.answer {
            return Err(say(code, status, text));
        }
        let Some(name) = cx.headers().keys().map(|name| name.as_str()).find(is_refused) else {
            return Ok(());
        };
        if !state.defects.refuses_checksum_headers {
            return Ok(());
        }
        state.refused_checksum_headers += 1;
        let text = format!("Unsupported header '{name}' received for this API call.");
        match state.defects.refuses_silently {
            true => Err(fail("NotImplemented", 501)),
            false => Err(say("InvalidArgument", 400, &text)),
        }
    }

    /// Whether who signed may do this.
    fn authorize(
        &self,
        access_key: Option<&str>,
        action: &str,
        resource: &str,
        context: &Context,
    ) -> S3Result<()> {
        let Some(access_key) = access_key else { return Err(denied("not signed")) };
        if access_key == ACCESS_KEY {
            return Ok(());
        }
        let mut state = self.state();
        let allowed =
            state.users.get(access_key).is_some_and(|user| user.policy.allows(action, resource, context));
        state.asked.entry(access_key.to_string()).or_default().insert((action.to_string(), allowed));
        match allowed {
            true => Ok(()),
            false => Err(denied(&format!("{access_key} may not {action} {resource}"))),
        }
    }

    fn authorize_retention(
        &self,
        access_key: Option<&str>,
        resource: &str,
        mode: Option<&str>,
        until: Option<&Timestamp>,
        bypass: bool,
    ) -> S3Result<()> {
        let Some(until) = until else { return Ok(()) };
        let days = (seconds(until) - self.state().now()).max(0) as f64 / 86_400.0;
        let mut context = BTreeMap::new();
        context.insert("s3:object-lock-remaining-retention-days".into(), days.ceil().to_string());
        context.insert("s3:object-lock-mode".into(), mode.unwrap_or_default().to_string());
        if bypass {
            self.authorize(access_key, "s3:BypassGovernanceRetention", resource, &context)?;
        }
        self.authorize(access_key, "s3:PutObjectRetention", resource, &context)
    }
}

#[async_trait::async_trait]
impl S3Access for Backend {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        self.check_headers(cx)?;
        let version = query(cx.uri(), "versionId").is_some();
        let bypass = cx.headers().contains_key("x-amz-bypass-governance-retention");
        let action = match cx.s3_op().name() {
            "GetObject" | "HeadObject" if version => "s3:GetObjectVersion",
            "GetObject" | "HeadObject" => "s3:GetObject",
            "PutObject" => "s3:PutObject",
            "DeleteObject" if version => "s3:DeleteObjectVersion",
            "DeleteObject" => "s3:DeleteObject",
            "ListObjectsV2" => "s3:ListBucket",
            "ListObjectVersions" => "s3:ListBucketVersions",
            "GetObjectRetention" => "s3:GetObjectRetention",
            // Below, where the date is known.
            "PutObjectRetention" => return Ok(()),
            "GetBucketVersioning" => "s3:GetBucketVersioning",
            "GetObjectLockConfiguration" => "s3:GetBucketObjectLockConfiguration",
            other => panic!("a request that no policy was made for: {other}"),
        };
        let mut context = Context::new();
        for (header, key) in [
            ("if-none-match", "s3:if-none-match"),
            ("if-match", "s3:if-match"),
            ("x-amz-storage-class", "s3:x-amz-storage-class"),
            ("x-amz-object-lock-mode", "s3:object-lock-mode"),
            (
                "x-amz-server-side-encryption-customer-algorithm",
                "s3:x-amz-server-side-encryption-customer-algorithm",
            ),
            ("x-amz-server-side-encryption-aws-kms-key-id", "s3:x-amz-server-side-encryption-aws-kms-key-id"),
        ] {
            if let Some(value) = cx.headers().get(header) {
                context.insert(key.into(), value.to_str().expect("text").into());
            }
        }
        context.extend(query(cx.uri(), "prefix").map(|prefix| ("s3:prefix".to_string(), prefix)));
        let resource = match cx.s3_path().as_object() {
            Some((bucket, key)) => format!("{bucket}/{key}"),
            None => cx.s3_path().as_bucket().unwrap_or_default().to_string(),
        };
        let who = cx.credentials().map(|credentials| credentials.access_key.clone());
        if bypass {
            self.authorize(who.as_deref(), "s3:BypassGovernanceRetention", &resource, &context)?;
        }
        self.authorize(who.as_deref(), action, &resource, &context)
    }

    async fn put_object(&self, request: &mut S3Request<PutObjectInput>) -> S3Result<()> {
        let input = &request.input;
        let resource = format!("{}/{}", input.bucket, input.key);
        let who = request.credentials.as_ref().map(|credentials| credentials.access_key.as_str());
        let mode = input.object_lock_mode.as_ref().map(ObjectLockMode::as_str);
        self.authorize_retention(who, &resource, mode, input.object_lock_retain_until_date.as_ref(), false)
    }

    async fn put_object_retention(&self, request: &mut S3Request<PutObjectRetentionInput>) -> S3Result<()> {
        let input = &request.input;
        let resource = format!("{}/{}", input.bucket, input.key);
        let who = request.credentials.as_ref().map(|credentials| credentials.access_key.as_str());
        let retention = input.retention.as_ref();
        let mode =
            retention.and_then(|retention| retention.mode.as_ref()).map(ObjectLockRetentionMode::as_str);
        let until = retention.and_then(|retention| retention.retain_until_date.as_ref());
        self.authorize_retention(
            who,
            &resource,
            mode,
            until,
            input.bypass_governance_retention.unwrap_or(false),
        )
    }
}
