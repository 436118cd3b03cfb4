//! `s3://bucket/prefix`: AWS and whatever speaks its protocol.
//!
//! Every put is conditional (`If-None-Match: *`), carries a SHA-256 that the endpoint must check (as
//! `x-amz-checksum-sha256`, and signed as the body's hash), and what the endpoint says it stored is compared with it. One
//! that keeps no SHA-256 is judged by its MD5 (ETag), and one that keeps neither by reading the object back. One that refuses
//! requests with headers for checksums gets none: see `sums`.
//!
//! Where objects are locked, each put sets its retention, and everything is read by version: see `versions`.
//!
//! A pack has at most 1 GiB, so an object is one request: no multipart uploads, which can't be conditional everywhere, keep
//! checksums of parts only, and leave parts that cost money when they are given up.

mod body;
mod client;
mod errors;
mod look;
mod retain;
mod sums;
mod versions;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::put_object::PutObjectOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::types::{
    BucketVersioningStatus, ChecksumAlgorithm, ObjectLockEnabled, ServerSideEncryption, StorageClass,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use tokio::runtime::Runtime;

use super::location::Settings;
use super::{
    Answer, Checksum, ErrorKind, Features, Findings, Key, Listed, Lock, Locked, Meta, Page, Put, Remote,
    RemoteError, Result, Retention, Source, Version, Versions, check_replaceable, conflict, only_version,
    stored_checksum,
};
use crate::env::Env;
use body::{BoundResponse, SignBody, stream};
use errors::{Said, classify};
use look::Why;
use sums::{Failed, Md5Sum, Sums, Tried, decode_checksum};
use versions::{Known, may_change};

/// The longest time until an answer to a request with no body.
const ANSWER: Duration = Duration::from_secs(60);
/// A response that is no object has at most this: 1,000 names of 1 KiB each, in XML.
const RESPONSE_MAX: usize = 8 << 20;
/// Names in one page.
const PAGE: i32 = 1000;
/// A name is deleted by so many times as many versions as are looked at together.
const DELETE_ROUNDS_MAX: usize = 1 << 10;
/// Objects with names like this go to the storage class that was chosen; everything else stays where it can be read at once.
const PACKS: &str = "packs/";

/// A bucket, or a part of one.
#[derive(Debug)]
pub struct S3Remote {
    url: String,
    client: Client,
    runtime: Runtime,
    bucket: String,
    prefix: String,
    storage_class: Option<StorageClass>,
    sse: Option<ServerSideEncryption>,
    sse_kms_key_id: Option<String>,
    times: Times,
    /// The endpoint has said that it knows no conditional create: existing names are looked up first instead.
    unconditional: AtomicBool,
    sums: Sums,
    why: Why,
    lock: Option<Lock>,
    place: String,
    env: Arc<dyn Env>,
    /// Whether reading by version is to be tried where nothing is locked; and whether it can be.
    try_versions: bool,
    versions: OnceLock<bool>,
    /// Why not, where that is worth a word.
    unversioned: OnceLock<String>,
    /// The endpoint was seen to keep what was locked.
    lock_proved: AtomicBool,
    known: Known,
}

/// What is put.
struct Object<'a> {
    body: &'a Arc<dyn Source>,
    checksum: &'a Checksum,
    retention: Option<&'a Retention>,
}

/// When to put.
#[derive(Clone, Copy, Debug)]
enum If<'a> {
    /// If there is nothing of this name.
    Absent,
    /// If what is there has this tag.
    Tag(&'a str),
    Whatever,
}

/// What was put; and its MD5, if that was needed.
struct Sent {
    answer: PutObjectOutput,
    md5: Option<Md5Sum>,
}

/// How to put: with headers for checksums, and with a condition. Who does not know one of them need not say which one it is
/// (501), so that they are left out in turn: checksums first, since without them nothing is at risk.
const WAYS: [(bool, bool); 4] = [(true, true), (false, true), (true, false), (false, false)];

/// How patient to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Until an answer, counted from when the last byte could have been sent.
    pub answer: Duration,
    /// Slower than this, in bytes a second, a transfer is given up.
    pub slowest: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self { answer: ANSWER, slowest: 16 << 10 }
    }
}

impl S3Remote {
    /// Makes a client; nothing is asked yet.
    ///
    /// # Errors
    /// `Misconfigured`, `NoCredentials`, `UnsafeFile`.
    pub fn open(
        settings: &Settings,
        bucket: &str,
        prefix: &str,
        times: Times,
        env: Arc<dyn Env>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|e| RemoteError::new(ErrorKind::Local, format!("starting threads: {e}")))?;
        let (client, place) = runtime.block_on(client::connect(settings, bucket))?;
        Ok(Self {
            url: settings.url.clone(),
            client,
            runtime,
            bucket: bucket.to_string(),
            prefix: prefix.to_string(),
            storage_class: settings.storage_class.as_deref().map(StorageClass::from),
            sse: settings.sse.as_deref().map(ServerSideEncryption::from),
            sse_kms_key_id: settings.sse_kms_key_id.clone(),
            times,
            unconditional: AtomicBool::new(false),
            sums: Sums::default(),
            why: Why::default(),
            lock: settings.lock,
            place: format!("{place} {}", settings.url),
            env,
            try_versions: settings.by_version,
            versions: OnceLock::new(),
            unversioned: OnceLock::new(),
            lock_proved: AtomicBool::new(false),
            known: Known::default(),
        })
    }

    fn name(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Waits for an answer, but not for ever: `bytes` go over the wire in one direction or the other.
    fn within<T>(&self, bytes: u64, call: impl Future<Output = T>) -> std::result::Result<T, Said> {
        let limit = self.times.answer + Duration::from_secs(bytes / self.times.slowest.max(1));
        self.runtime.block_on(async {
            tokio::time::timeout(limit, call).await.map_err(|_| {
                Said::unanswered(ErrorKind::Timeout, &format!("no answer within {} seconds", limit.as_secs()))
            })
        })
    }

    /// Makes a request; of a failure it tells what is known.
    fn ask<T, E>(
        &self,
        what: &str,
        bytes: u64,
        call: impl Future<Output = std::result::Result<T, SdkError<E, HttpResponse>>>,
    ) -> std::result::Result<T, Said>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        self.within(bytes, call)?.map_err(|e| errors::read(what, e))
    }

    /// Makes a request whose failure `failed` tells.
    fn wait<T, E>(
        &self,
        what: &str,
        bytes: u64,
        call: impl Future<Output = std::result::Result<T, E>>,
        failed: impl FnOnce(E) -> RemoteError,
    ) -> Result<T> {
        self.within(bytes, call).map_err(|said| said.error(what))?.map_err(failed)
    }

    /// Everything of a put but its body. `md5`: the endpoint refuses headers for checksums, and gets this one, which is
    /// older than they are.
    fn put_request(
        &self,
        key: &Key,
        object: &Object<'_>,
        condition: If<'_>,
        md5: Option<&str>,
    ) -> Result<PutObjectFluentBuilder> {
        let len = i64::try_from(object.body.len())
            .map_err(|_| RemoteError::new(ErrorKind::Local, format!("{key} is too long")))?;
        let class = self.storage_class.clone().filter(|_| key.as_str().starts_with(PACKS));
        let retention = object.retention;
        let sha256 = md5.is_none().then(|| data_encoding::BASE64.encode(&object.checksum.0));
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.name(key))
            .content_length(len)
            .content_type("application/octet-stream")
            .set_checksum_sha256(sha256)
            // Where something is locked the protocol wants the algorithm to be named beside its checksum, or an MD5.
            .set_checksum_algorithm(retention.filter(|_| md5.is_none()).map(|_| ChecksumAlgorithm::Sha256))
            .set_content_md5(md5.map(String::from))
            .set_storage_class(class)
            .set_server_side_encryption(self.sse.clone())
            .set_ssekms_key_id(self.sse_kms_key_id.clone())
            .set_object_lock_mode(retention.map(|retention| retain::put_mode(retention.mode)))
            .set_object_lock_retain_until_date(retention.map(|retention| retain::date(retention.until)));
        Ok(match condition {
            If::Absent => request.if_none_match("*"),
            If::Tag(tag) => request.if_match(tag),
            If::Whatever => request,
        })
    }

    /// Puts, with headers for checksums unless the endpoint is known to refuse them.
    fn send_put(&self, key: &Key, object: &Object<'_>, condition: If<'_>) -> Result<Sent> {
        self.with_or_without_sums(|sums| self.try_put(key, object, condition, sums))
    }

    fn try_put(&self, key: &Key, object: &Object<'_>, condition: If<'_>, sums: bool) -> Tried<Sent> {
        let md5 = match sums {
            true => None,
            false => Some(sums::md5_of(key, object.body.as_ref(), object.checksum)?),
        };
        let request = self.put_request(key, object, condition, md5.map(|md5| md5.base64()).as_deref())?;
        let what = format!("writing {key}");
        let call = async {
            // Made in here: reading the body takes the runtime's threads.
            let request = request.body(stream(object.body)).customize();
            request.interceptor(SignBody(*object.checksum)).send().await
        };
        match self.ask(&what, object.body.len(), call) {
            Ok(answer) => Ok(Sent { answer, md5 }),
            Err(said) => {
                let error = self.explain_clock(said.error(&what));
                Err(Failed { error, minds_sums: said.minds_sums })
            }
        }
    }

    /// Remembers what an endpoint can do without.
    fn learn(&self, sums: bool, conditional: bool) {
        if !sums {
            self.sums.stop(&self.url);
        }
        if !conditional && !self.unconditional.swap(true, Ordering::Relaxed) {
            tracing::warn!(url = %self.url, "the endpoint knows no conditional create");
        }
    }

    /// Puts over the object that has this tag.
    ///
    /// Ceph RGW 16 compares the tag as it is sent, quotes and all, with a bare one; and where versions are kept with nothing, so
    /// that it always refuses. Who is refused while the tag is still there tries without quotes, then, but only if what is
    /// replaced is kept as a version, without a condition.
    fn put_over(&self, key: &Key, tag: &str, object: &Object<'_>) -> Result<Sent> {
        let mut kept = false;
        for condition in [tag, tag.trim_matches('"')] {
            match self.send_put(key, object, If::Tag(condition)) {
                Err(e) if e.kind == ErrorKind::Conflict => {}
                sent => return sent,
            }
            let there = self.ask_head(key, None)?;
            if there.e_tag() != Some(tag) {
                return Err(conflict(key));
            }
            kept = there.version_id().is_some_and(|id| id != "null");
        }
        if !kept {
            let text = format!(
                "{key} is to be replaced, but the endpoint compares no tags and keeps no versions: what somebody else \
                 puts there meanwhile would be lost"
            );
            return Err(RemoteError::new(ErrorKind::Unsupported, text));
        }
        tracing::warn!(url = %self.url, "the endpoint can't compare what it replaces");
        self.send_put(key, object, If::Whatever)
    }

    /// Compares what the endpoint says it stored with what was sent.
    fn verify(&self, key: &Key, sent: &Sent, object: &Object<'_>) -> Result<()> {
        let (body, checksum) = (object.body.as_ref(), object.checksum);
        let wrong = || {
            RemoteError::new(
                ErrorKind::Corrupt,
                format!("{key}: the endpoint stored other bytes than were sent"),
            )
        };
        if let Some(said) = sent.answer.checksum_sha256() {
            return if decode_checksum(said) == Some(*checksum) { Ok(()) } else { Err(wrong()) };
        }
        let meta = self.head(key)?;
        if meta.len != body.len() {
            return Err(wrong());
        }
        if let Some(kept) = meta.checksum {
            return if kept == *checksum { Ok(()) } else { Err(wrong()) };
        }
        // It checks nothing that we know of: that the bytes sent were the right ones is ours to see as well.
        let md5 = match sent.md5 {
            Some(md5) => md5,
            None => sums::md5_of(key, body, checksum)?,
        };
        if sent.answer.e_tag().map(|etag| etag.trim_matches('"')) == Some(md5.hex().as_str()) {
            return Ok(());
        }
        if stored_checksum(self, key, body.len())? == *checksum { Ok(()) } else { Err(wrong()) }
    }

    fn same(&self, key: &Key, body: &dyn Source, checksum: &Checksum) -> Result<Put> {
        let meta = self.head(key)?;
        let same = meta.len == body.len()
            && match meta.checksum {
                Some(kept) => kept == *checksum,
                None => stored_checksum(self, key, body.len())? == *checksum,
            };
        if same { Ok(Put::Same) } else { Err(conflict(key)) }
    }

    fn get_version(&self, key: &Key, range: Range<u64>, version: Option<&str>) -> Result<Vec<u8>> {
        let want = range.end.saturating_sub(range.start);
        if want == 0 {
            return Ok(Vec::new());
        }
        let what = format!("reading {key}");
        let other = |text: String| Err(RemoteError::new(ErrorKind::Corrupt, format!("{what}: {text}")));
        let size = usize::try_from(want)
            .map_err(|_| RemoteError::new(ErrorKind::Local, "a range larger than memory"))?;
        let call = async {
            let request = self
                .client
                .get_object()
                .bucket(&self.bucket)
                .key(self.name(key))
                .range(format!("bytes={}-{}", range.start, range.end - 1))
                .set_version_id(version.map(String::from))
                .customize();
            let limit = size.max(RESPONSE_MAX);
            let mut answer =
                request.interceptor(BoundResponse(limit)).send().await.map_err(|e| classify(&what, e))?;
            let len = answer.content_length().and_then(|len| u64::try_from(len).ok());
            let begins = |said: &str| said.starts_with(&format!("bytes {}-", range.start));
            if len != Some(want) || !answer.content_range().is_none_or(begins) {
                return other(format!("{want} bytes were asked for, the endpoint sends {len:?}"));
            }
            let mut bytes = Vec::with_capacity(size);
            while let Some(piece) = answer.body.next().await {
                let broke = |e| {
                    RemoteError::new(ErrorKind::Unavailable, format!("{what}: the connection broke: {e}"))
                };
                let piece = piece.map_err(broke)?;
                if bytes.len() + piece.len() > size {
                    return other("more bytes than were asked for".into());
                }
                bytes.extend_from_slice(&piece);
            }
            match bytes.len() == size {
                true => Ok(bytes),
                false => {
                    Err(RemoteError::new(ErrorKind::Unavailable, format!("{what}: the connection broke")))
                }
            }
        };
        self.wait(&what, want, call, |e| e)
    }

    fn head_version(&self, key: &Key, version: Option<&str>) -> Result<Meta> {
        let head = self.ask_head(key, version)?;
        let len = head.content_length().and_then(|len| u64::try_from(len).ok());
        let missing = || RemoteError::new(ErrorKind::Corrupt, format!("looking at {key}: no length"));
        Ok(Meta { len: len.ok_or_else(missing)?, checksum: head.checksum_sha256().and_then(decode_checksum) })
    }

    fn delete_version(&self, key: &Key, version: Option<&str>) -> Result<()> {
        let what = format!("deleting {key}");
        let call = async {
            self.client
                .delete_object()
                .bucket(&self.bucket)
                .key(self.name(key))
                .set_version_id(version.map(String::from))
                .send()
                .await
        };
        match self.wait(&what, 0, call, |e| classify(&what, e)) {
            Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

impl Remote for S3Remote {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        // Under a delete marker a name looks free.
        if self.known.get(key).is_some() && !may_change(key.as_str()) {
            return self.same(key, body.as_ref(), checksum);
        }
        let retention = self.retention_now();
        let object = Object { body, checksum, retention: retention.as_ref() };
        let mut refused = None;
        for (sums, conditional) in WAYS {
            if (sums && !self.sums.are_sent()) || (conditional && self.unconditional.load(Ordering::Relaxed))
            {
                continue;
            }
            let condition = if conditional { If::Absent } else { If::Whatever };
            if !conditional {
                match self.same(key, body.as_ref(), checksum) {
                    Err(e) if e.kind == ErrorKind::NotFound => {}
                    other => return other,
                }
            }
            let tried = self.try_put(key, &object, condition, sums);
            match &tried {
                Err(e) if e.error.kind == ErrorKind::Unsupported || (sums && e.minds_sums) => {
                    if e.minds_sums {
                        self.sums.stop(&self.url);
                    }
                    refused.get_or_insert(e.error.clone());
                    continue;
                }
                // It was understood.
                Ok(_) => self.learn(sums, conditional),
                Err(e) if e.error.kind == ErrorKind::Conflict => self.learn(sums, conditional),
                Err(_) => {}
            }
            return match tried {
                Ok(sent) => {
                    self.was_put(key, sent.answer.version_id(), body.len(), retention.as_ref())?;
                    self.verify(key, &sent, &object)?;
                    Ok(Put::Created)
                }
                Err(e) if e.error.kind == ErrorKind::Conflict => self.same(key, body.as_ref(), checksum),
                Err(e) => Err(e.error),
            };
        }
        let none = || RemoteError::new(ErrorKind::Unsupported, format!("writing {key}: there is no way to"));
        Err(refused.unwrap_or_else(none))
    }

    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        if self.lock.is_some() {
            return self.replace_locked(key, was, body, checksum);
        }
        let head = self.ask_head(key, None)?;
        let Some(tag) = head.e_tag() else {
            let text =
                format!("{key}: the endpoint gives objects no ETag, so that they can't be replaced safely");
            return Err(RemoteError::new(ErrorKind::Unsupported, text));
        };
        let len = u64::try_from(head.content_length().unwrap_or(0)).unwrap_or(0);
        check_replaceable(key, len)?;
        if stored_checksum(self, key, len)? != *was {
            return Err(conflict(key));
        }
        // The tag that was there before the bytes were read: who changed them in between is found out.
        let object = Object { body, checksum, retention: None };
        let sent = self.put_over(key, tag, &object)?;
        self.verify(key, &sent, &object)
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.with_version(key, |version| self.get_version(key, range.clone(), version))
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        self.with_version(key, |version| self.head_version(key, version))
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        if self.is_by_version()? {
            return self.list_versions_page(prefix, after);
        }
        let what = format!("listing {prefix:?}");
        let call = async {
            let start = (!after.is_empty()).then(|| format!("{}{after}", self.prefix));
            self.client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(format!("{}{prefix}", self.prefix))
                // By name, not by token: a page can be asked for again, and an endpoint can't lead us in circles.
                .set_start_after(start)
                .max_keys(PAGE)
                .send()
                .await
        };
        let answer = self.wait(&what, 0, call, |e| classify(&what, e))?;
        let mut page = Page { items: Vec::new(), more: answer.is_truncated().unwrap_or(false) };
        for object in answer.contents() {
            let name = object.key().and_then(|name| name.strip_prefix(self.prefix.as_str()));
            let len = object.size().and_then(|len| u64::try_from(len).ok());
            let (Some(name), Some(len)) = (name, len) else {
                return Err(RemoteError::new(
                    ErrorKind::Corrupt,
                    format!("{what}: an object without name or size"),
                ));
            };
            page.items.push(Listed { name: name.to_string(), len });
        }
        Ok(page)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        if self.lock.is_none() {
            return self.delete_version(key, None);
        }
        self.known.forget(key);
        for _ in 0..DELETE_ROUNDS_MAX {
            // The oldest one first: while that is retained nothing is deleted.
            let ids = self.some_versions(key)?;
            if ids.is_empty() {
                return Ok(());
            }
            for id in ids {
                self.delete_version(key, Some(&id))?;
            }
        }
        Err(RemoteError::new(ErrorKind::Corrupt, format!("{key} has ever more versions")))
    }

    fn features(&self) -> Result<Features> {
        let what = "asking for the bucket's versioning";
        let call = async { self.client.get_bucket_versioning().bucket(&self.bucket).send().await };
        let versioning = match self.wait(what, 0, call, |e| classify(what, e)) {
            Ok(answer) if answer.status() == Some(&BucketVersioningStatus::Enabled) => {
                Answer::Yes("enabled".into())
            }
            Ok(_) => Answer::No("not enabled: an overwritten object is gone".into()),
            Err(e) => unless_it_does_not_say(e)?,
        };
        let what = "asking for the bucket's Object Lock";
        let call = async { self.client.get_object_lock_configuration().bucket(&self.bucket).send().await };
        let object_lock = match self.wait(what, 0, call, |e| classify(what, e)) {
            Ok(answer) => {
                let on = answer.object_lock_configuration().and_then(|lock| lock.object_lock_enabled());
                match on == Some(&ObjectLockEnabled::Enabled) {
                    true => Answer::Yes("enabled".into()),
                    false => Answer::No("not enabled".into()),
                }
            }
            // AWS says ObjectLockConfigurationNotFoundError, with this status.
            Err(e) if e.kind == ErrorKind::NotFound => {
                Answer::No("not enabled: it is chosen when a bucket is made".into())
            }
            Err(e) => unless_it_does_not_say(e)?,
        };
        let create_only = match self.unconditional.load(Ordering::Relaxed) {
            true => Answer::No(
                "the endpoint knows no conditional create: names are looked up first, and two writers at the same moment are not \
                 kept apart"
                    .into(),
            ),
            false => Answer::Yes("conditional create (If-None-Match)".into()),
        };
        let verification = match self.sums.are_sent() {
            true => "a SHA-256 goes with every object, and is compared with what the endpoint stored",
            false => {
                "the endpoint refuses headers for SHA-256: the MD5 of every object goes with it (Content-MD5), and is compared \
                 with the ETag; what has another ETag, or was there already, is read back"
            }
        };
        Ok(Features { create_only, versioning, object_lock, verification: verification.into() })
    }

    fn lock(&self) -> Option<Locked> {
        self.lock.map(|lock| Locked { lock, place: self.place.clone(), now: self.env.now() })
    }

    fn require_lock(&self) -> Result<()> {
        match self.lock {
            Some(_) => self.check_lock(),
            None => Ok(()),
        }
    }

    fn retention(&self, key: &Key, version: Option<&str>) -> Result<Option<Retention>> {
        match version {
            Some(version) => self.ask_retention(key, version),
            None => self.ask_retention(key, &self.ours(key)?.id),
        }
    }

    fn retain(&self, key: &Key, version: Option<&str>, retention: &Retention) -> Result<()> {
        if let Some(version) = version {
            return self.set_retention(key, version, retention);
        }
        let ours = self.ours(key)?;
        self.set_retention(key, &ours.id, retention)?;
        self.known.remember(key.as_str(), &ours.id, ours.len, Some(*retention));
        Ok(())
    }

    fn known_retention(&self, key: &Key) -> Option<Retention> {
        self.known.get(key).and_then(|ours| ours.retention)
    }

    fn versions(&self, key: &Key, max: u64) -> Result<Vec<Version>> {
        match self.is_by_version()? {
            true => Ok(self.read_versions(key, max, false)?.list),
            false => only_version(self, key, max),
        }
    }

    fn all_versions(&self, key: &Key, max: u64) -> Result<Versions> {
        match self.is_by_version()? {
            true => self.read_versions(key, max, true),
            false => Ok(Versions { list: only_version(self, key, max)?, left_out: 0 }),
        }
    }

    fn findings(&self) -> Findings {
        Findings { unversioned: self.unversioned.get().cloned(), ..self.known.findings() }
    }
}

/// Ship needs no right to ask such questions, and not every endpoint knows them.
fn unless_it_does_not_say(error: RemoteError) -> Result<Answer> {
    match error.kind {
        ErrorKind::Denied => Ok(Answer::Unknown("the credentials may not ask".into())),
        ErrorKind::Unsupported | ErrorKind::NotFound => {
            Ok(Answer::Unknown("the endpoint does not say".into()))
        }
        ErrorKind::Corrupt => Ok(Answer::Unknown("the endpoint's answer makes no sense".into())),
        _ => Err(error),
    }
}
