//! An S3 server in memory, on loopback. It enforces what a good endpoint enforces (conditional writes, checksums, versions,
//! Object Lock), misbehaves on command, and checks signatures.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use md5::Md5;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use sha2::{Digest, Sha256};

use super::s3_lock::{Kept, User, Version, say, timestamp};

pub const ACCESS_KEY: &str = "test-access-key";
pub const SECRET_KEY: &str = "test-secret-key";
pub const BUCKET: &str = "backups";

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// An error with this code and status, and no effect.
    Before(&'static str, u16),
    /// The effect, then an error.
    After(&'static str, u16),
    /// No answer, ever.
    Stall,
    /// No answer yet: the same question is asked again a little later.
    NotYet,
    /// A get sends half of its bytes, then the connection breaks.
    Cut,
}

/// Lasting defects of an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Defects {
    /// If-None-Match is ignored: every put overwrites.
    pub overwrites: bool,
    /// If-None-Match is answered with 501.
    pub knows_no_conditions: bool,
    /// If-Match is compared with a bare tag, its quotes and all.
    pub minds_quotes: bool,
    /// If-Match is never so.
    pub compares_nothing: bool,
    /// Where no versions are kept, nobody may name one: not even as the listing does.
    pub knows_no_null: bool,
    /// Checksums are neither checked nor kept.
    pub knows_no_checksums: bool,
    /// The same, and requests with headers for them are refused, in the words of Backblaze B2.
    pub refuses_checksum_headers: bool,
    /// If so, they are refused with 501, and it does not say why.
    pub refuses_silently: bool,
    /// What is stored is not what was sent.
    pub stores_other_bytes: bool,
    /// Range is ignored: every get sends the whole object.
    pub ignores_ranges: bool,
    /// Deleting is not allowed.
    pub forbids_delete: bool,
    /// Nothing but objects: questions about the bucket are not allowed.
    pub forbids_questions: bool,
    /// A listing has a name that was not asked for.
    pub lists_strangers: bool,
    /// Listings of versions have no end.
    pub versions_in_circles: bool,
    /// What is to be locked is stored, and not locked.
    pub forgets_locks: bool,
    /// How long an object is locked can't be asked, only seen beside its length.
    pub hides_retention: bool,
    /// The same, but the question is answered, with nothing.
    pub blurs_retention: bool,
    /// A lock can be shortened, and what is locked be deleted.
    pub breaks_locks: bool,
    /// A put locks in the other mode than it was told to.
    pub locks_otherwise: bool,
}

impl Defects {
    fn keeps_checksums(&self) -> bool {
        !self.knows_no_checksums && !self.refuses_checksum_headers
    }
}

impl Version {
    pub fn etag(&self) -> ETag {
        ETag::Strong(data_encoding::HEXLOWER.encode(&Md5::digest(self.bytes.as_slice())))
    }
}

type Choose = dyn Fn(u64, &str, &str) -> Option<Trouble> + Send + Sync;

#[derive(Default)]
pub struct State {
    /// Versions, oldest first.
    pub objects: BTreeMap<String, Vec<Version>>,
    pub versioned: bool,
    pub object_lock: bool,
    pub defects: Defects,
    trouble: Option<Box<Choose>>,
    /// What all are answered: code, status, message.
    pub answer: Option<(&'static str, u16, &'static str)>,
    requests: u64,
    /// How often each operation was asked for.
    ops: BTreeMap<String, u64>,
    /// How often headers for checksums were refused.
    pub refused_checksum_headers: u64,
    /// Seconds since the epoch; `None`: the real clock.
    pub clock: Option<i64>,
    pub ids: u64,
    /// By access key.
    pub users: BTreeMap<String, User>,
    /// What each of them asked for, and whether it was allowed.
    pub asked: BTreeMap<String, BTreeSet<(String, bool)>>,
}

impl State {
    pub fn newest(&self, key: &str) -> Option<&Version> {
        self.objects.get(key).and_then(|versions| versions.last()).filter(|version| !version.deleted)
    }

    /// Puts a version over what is there.
    fn push(&mut self, key: &str, mut version: Version) -> Version {
        version.id = self.fresh_id();
        let versions = self.objects.entry(key.to_string()).or_default();
        if !self.versioned {
            versions.clear();
        }
        versions.push(version.clone());
        version
    }
}

fn plain(bytes: &[u8]) -> Version {
    Version {
        id: String::new(),
        bytes: Arc::new(bytes.to_vec()),
        sha256: None,
        deleted: false,
        kept: None,
        storage_class: None,
        sse: None,
        sse_kms_key_id: None,
        md5: None,
    }
}

#[derive(Clone)]
pub struct Backend(Arc<Mutex<State>>);

/// Who is connected.
#[derive(Default)]
struct Connections {
    open: usize,
    /// Ports of all that ever were.
    seen: BTreeSet<u16>,
}

/// A running server; it ends with this value.
pub struct Server {
    connections: Arc<Mutex<Connections>>,
    backend: Backend,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    pub fn start() -> Self {
        let backend = Backend(Arc::default());
        let mut builder = S3ServiceBuilder::new(backend.clone());
        builder.set_auth(backend.clone());
        builder.set_access(backend.clone());
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let listener =
            runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port on loopback");
        let address = listener.local_addr().expect("its address");
        let connections: Arc<Mutex<Connections>> = Arc::default();
        let counted = Arc::clone(&connections);
        runtime.spawn(async move {
            while let Ok((socket, peer)) = listener.accept().await {
                let (service, connections) = (service.clone(), Arc::clone(&counted));
                {
                    let mut connections = connections.lock().expect("no test panics inside");
                    connections.open += 1;
                    connections.seen.insert(peer.port());
                }
                tokio::spawn(async move {
                    // A client that went away is no matter.
                    drop(http1::Builder::new().serve_connection(TokioIo::new(socket), service).await);
                    connections.lock().expect("no test panics inside").open -= 1;
                });
            }
        });
        Self { connections, backend, address, runtime: Some(runtime) }
    }

    /// Waits until all is done that clients have asked for who are gone by now.
    pub fn settle(&self) {
        // Those that wait to be accepted come before this one.
        let last = std::net::TcpStream::connect(self.address).expect("the server listens");
        let port = last.local_addr().expect("its address").port();
        drop(last);
        crate::common::wait_until("what was asked for is done", || {
            let connections = self.connections.lock().expect("no test panics inside");
            connections.open == 0 && connections.seen.contains(&port)
        });
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.backend.0.lock().expect("no test panics inside")
    }

    pub fn set_defects(&self, defects: Defects) {
        self.state().defects = defects;
    }

    pub fn set_bucket(&self, versioned: bool, object_lock: bool) {
        let mut state = self.state();
        (state.versioned, state.object_lock) = (versioned, object_lock);
    }

    /// Chooses what happens to the `n`-th request from now on, by its operation and key.
    pub fn set_trouble(&self, choose: impl Fn(u64, &str, &str) -> Option<Trouble> + Send + Sync + 'static) {
        let mut state = self.state();
        state.trouble = Some(Box::new(choose));
        state.requests = 0;
    }

    /// Answers whatever is asked with this.
    pub fn say_to_all(&self, answer: Option<(&'static str, u16, &'static str)>) {
        self.state().answer = answer;
    }

    pub fn calm(&self) {
        self.state().trouble = None;
    }

    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// What is stored under a key now.
    pub fn stored(&self, key: &str) -> Option<Vec<u8>> {
        self.state().newest(key).map(|version| version.bytes.to_vec())
    }

    pub fn keys(&self) -> Vec<String> {
        let state = self.state();
        state.objects.keys().filter(|key| state.newest(key).is_some()).cloned().collect()
    }

    /// Puts bytes behind everybody's back; older versions stay.
    pub fn plant(&self, key: &str, bytes: &[u8]) {
        self.state().push(key, plain(bytes));
    }

    /// Hides an object under a delete marker.
    pub fn hide(&self, key: &str) {
        self.state().delete(key, None, false).expect("a marker can always be put");
    }

    /// Takes an object away with all its versions, as who may do anything.
    pub fn remove(&self, key: &str) {
        self.state().objects.remove(key).expect("something to remove");
    }

    /// All versions of a key, oldest first.
    pub fn versions(&self, key: &str) -> Vec<Version> {
        self.state().objects.get(key).cloned().unwrap_or_default()
    }

    /// Names of all objects that have a version.
    pub fn all_keys(&self) -> Vec<String> {
        let state = self.state();
        let has = |versions: &[Version]| versions.iter().any(|version| !version.deleted);
        state.objects.iter().filter(|(_, versions)| has(versions)).map(|(key, _)| key.clone()).collect()
    }

    /// What keeps the oldest version of a key.
    pub fn kept(&self, key: &str) -> Option<Kept> {
        self.versions(key).into_iter().find(|version| !version.deleted).and_then(|version| version.kept)
    }

    pub fn set_kept(&self, key: &str, kept: Option<Kept>) {
        let mut state = self.state();
        for version in state.objects.get_mut(key).into_iter().flatten() {
            version.kept.clone_from(&kept);
        }
    }

    /// Sets the server's clock.
    pub fn set_clock(&self, secs: i64) {
        self.state().clock = Some(secs);
    }

    pub fn now(&self) -> i64 {
        self.state().now()
    }

    /// Somebody who may do what a policy says.
    pub fn add_user(&self, access_key: &str, user: User) {
        self.state().users.insert(access_key.to_string(), user);
    }

    /// What somebody asked for: action, and whether it was allowed.
    pub fn asked(&self, access_key: &str) -> BTreeSet<(String, bool)> {
        self.state().asked.get(access_key).cloned().unwrap_or_default()
    }

    /// How often an operation was asked for since [`Server::forget_ops`].
    pub fn ops(&self, op: &str) -> u64 {
        self.state().ops.get(op).copied().unwrap_or(0)
    }

    /// How often headers for checksums were refused.
    pub fn refused_checksum_headers(&self) -> u64 {
        self.state().refused_checksum_headers
    }

    pub fn all_ops(&self) -> u64 {
        self.state().ops.values().sum()
    }

    pub fn forget_ops(&self) {
        self.state().ops.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn fail(code: &str, status: u16) -> S3Error {
    let code = S3ErrorCode::from_bytes(code.as_bytes()).expect("a code");
    let mut error = S3Error::new(code);
    error.set_status_code(http_status(status));
    error.set_message("as the test wants it");
    error
}

pub fn http_status(status: u16) -> hyper::StatusCode {
    hyper::StatusCode::from_u16(status).expect("a status")
}

impl Backend {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics inside")
    }

    /// Counts a request and makes its trouble; the error that comes after the effect is returned.
    async fn trouble(&self, op: &str, key: &str) -> S3Result<Option<Trouble>> {
        let choose = |n| self.state().trouble.as_ref().and_then(|choose| choose(n, op, key));
        let n = {
            let mut state = self.state();
            state.requests += 1;
            *state.ops.entry(op.to_string()).or_default() += 1;
            state.requests
        };
        let mut trouble = choose(n);
        while trouble == Some(Trouble::NotYet) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            trouble = choose(n);
        }
        match trouble {
            Some(Trouble::Before(code, status)) => Err(fail(code, status)),
            Some(Trouble::Stall) => std::future::pending().await,
            other => Ok(other),
        }
    }

    fn store(&self, input: &PutObjectInput, mut bytes: Vec<u8>) -> S3Result<Version> {
        let mut state = self.state();
        if input.bucket != BUCKET {
            return Err(fail("NoSuchBucket", 404));
        }
        let none_match = input.if_none_match.as_ref().is_some_and(ETagCondition::is_any);
        if none_match && state.defects.knows_no_conditions {
            return Err(fail("NotImplemented", 501));
        }
        if none_match && !state.defects.overwrites && state.newest(&input.key).is_some() {
            return Err(fail("PreconditionFailed", 412));
        }
        if let Some(wanted) = input.if_match.as_ref().and_then(ETagCondition::as_etag) {
            match state.newest(&input.key) {
                None => return Err(fail("NoSuchKey", 404)),
                Some(version) if version.etag() != *wanted => return Err(fail("PreconditionFailed", 412)),
                Some(_) => {}
            }
        }
        let sha256 = data_encoding::BASE64.encode(&Sha256::digest(&bytes));
        if state.defects.keeps_checksums()
            && input.checksum_sha256.as_ref().is_some_and(|said| *said != sha256)
        {
            return Err(fail("BadDigest", 400));
        }
        let md5 = data_encoding::BASE64.encode(&Md5::digest(&bytes));
        if input.content_md5.as_ref().is_some_and(|said| *said != md5) {
            return Err(fail("BadDigest", 400));
        }
        if state.defects.stores_other_bytes
            && let Some(first) = bytes.first_mut()
        {
            *first ^= 1;
        }
        let sha256 =
            (state.defects.keeps_checksums()).then(|| data_encoding::BASE64.encode(&Sha256::digest(&bytes)));
        let mode = input.object_lock_mode.as_ref().map(ObjectLockMode::as_str);
        let kept = state.wanted(mode, input.object_lock_retain_until_date.as_ref())?;
        let version = Version {
            sha256,
            kept: kept
                .filter(|_| !state.defects.forgets_locks)
                .map(|kept| Kept { compliance: kept.compliance != state.defects.locks_otherwise, ..kept }),
            storage_class: input.storage_class.as_ref().map(|class| class.as_str().to_string()),
            sse: input.server_side_encryption.as_ref().map(|sse| sse.as_str().to_string()),
            sse_kms_key_id: input.ssekms_key_id.clone(),
            md5: input.content_md5.clone(),
            ..plain(&bytes)
        };
        Ok(state.push(&input.key, version))
    }

    fn find(&self, bucket: &str, key: &str, id: Option<&str>) -> S3Result<Version> {
        let state = self.state();
        if bucket != BUCKET {
            return Err(fail("NoSuchBucket", 404));
        }
        if id.is_some() && !state.versioned && state.defects.knows_no_null {
            return Err(fail("InvalidArgument", 400));
        }
        state.version(key, id).cloned()
    }
}

fn length(bytes: usize) -> Option<i64> {
    i64::try_from(bytes).ok()
}

#[async_trait::async_trait]
impl S3 for Backend {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let quoted = request.headers.get("if-match").is_some_and(|tag| tag.as_bytes().starts_with(b"\""));
        let summed =
            ["content-md5", "x-amz-sdk-checksum-algorithm"].map(|name| request.headers.contains_key(name));
        let mut input = request.input;
        let trouble = self.trouble("put", &input.key).await?;
        let defects = self.state().defects;
        if quoted && defects.minds_quotes || input.if_match.is_some() && defects.compares_nothing {
            return Err(fail("PreconditionFailed", 412));
        }
        if input.object_lock_mode.is_some() && summed == [false; 2] {
            // What the reference of PutObject says. Moto insists on it as well.
            let text = "Content-MD5 or x-amz-sdk-checksum-algorithm is required with Object Lock";
            return Err(say("InvalidRequest", 400, text));
        }
        let body = input.body.take().expect("a body");
        let bytes =
            Body::from(body).collect().await.map_err(|_| fail("IncompleteBody", 400))?.to_bytes().to_vec();
        let version = self.store(&input, bytes)?;
        if let Some(Trouble::After(code, status)) = trouble {
            return Err(fail(code, status));
        }
        let output = PutObjectOutput {
            e_tag: Some(version.etag()),
            version_id: self.state().versioned.then_some(version.id.clone()),
            checksum_sha256: version.sha256,
            ..PutObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let trouble = self.trouble("get", &input.key).await?;
        let version = self.find(&input.bucket, &input.key, input.version_id.as_deref())?;
        let whole = version.bytes.len() as u64;
        let ignored = self.state().defects.ignores_ranges;
        let range = match input.range.as_ref().filter(|_| !ignored) {
            Some(range) => range.check(whole).map_err(|_| fail("InvalidRange", 416))?,
            None => 0..whole,
        };
        let slice = |n: u64| usize::try_from(n).expect("small");
        let bytes = version.bytes[slice(range.start)..slice(range.end)].to_vec();
        let len = length(bytes.len());
        let body = match trouble {
            Some(Trouble::Cut) => {
                let half = bytes::Bytes::from(bytes[..bytes.len() / 2].to_vec());
                let frames = [Ok(half), Err(std::io::Error::other("cut"))];
                StreamingBlob::wrap(futures::stream::iter(frames))
            }
            _ => StreamingBlob::from(Body::from(bytes)),
        };
        let output = GetObjectOutput {
            body: Some(body),
            content_length: len,
            content_range: (!ignored)
                .then(|| format!("bytes {}-{}/{whole}", range.start, range.end.saturating_sub(1))),
            e_tag: Some(version.etag()),
            ..GetObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        self.trouble("head", &input.key).await?;
        let version = self.find(&input.bucket, &input.key, input.version_id.as_deref())?;
        let output = HeadObjectOutput {
            content_length: length(version.bytes.len()),
            e_tag: Some(version.etag()),
            version_id: self.state().versioned.then_some(version.id.clone()),
            checksum_sha256: version.sha256.filter(|_| input.checksum_mode.is_some()),
            object_lock_mode: version.kept.as_ref().map(|kept| ObjectLockMode::from_static(kept.mode())),
            object_lock_retain_until_date: version.kept.as_ref().map(|kept| timestamp(kept.until)),
            ..HeadObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        self.trouble("list", &prefix).await?;
        if input.bucket != BUCKET {
            return Err(fail("NoSuchBucket", 404));
        }
        let after = input.start_after.unwrap_or_default();
        let max = usize::try_from(input.max_keys.unwrap_or(1000)).expect("a count");
        let state = self.state();
        let mut found: Vec<Object> = state
            .objects
            .keys()
            .filter(|key| key.starts_with(&prefix) && **key > after)
            .filter_map(|key| Some((key, state.newest(key)?)))
            .take(max + 1)
            .map(|(key, version)| Object {
                key: Some(key.clone()),
                size: length(version.bytes.len()),
                ..Object::default()
            })
            .collect();
        let truncated = found.len() > max;
        found.truncate(max);
        if state.defects.lists_strangers {
            found.push(Object { key: Some("elsewhere/x".into()), size: Some(1), ..Object::default() });
        }
        let output = ListObjectsV2Output {
            is_truncated: Some(truncated),
            key_count: i32::try_from(found.len()).ok(),
            contents: Some(found),
            ..ListObjectsV2Output::default()
        };
        Ok(S3Response::new(output))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = request.input;
        self.trouble("delete", &input.key).await?;
        let mut state = self.state();
        if state.defects.forbids_delete {
            return Err(fail("AccessDenied", 403));
        }
        let bypass = input.bypass_governance_retention.unwrap_or(false);
        state.delete(&input.key, input.version_id.as_deref(), bypass)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn get_bucket_versioning(
        &self,
        _request: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        self.trouble("versioning", "").await?;
        let state = self.state();
        if state.defects.forbids_questions {
            return Err(fail("AccessDenied", 403));
        }
        let status =
            state.versioned.then(|| BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED));
        Ok(S3Response::new(GetBucketVersioningOutput { status, ..GetBucketVersioningOutput::default() }))
    }

    async fn get_object_lock_configuration(
        &self,
        _request: S3Request<GetObjectLockConfigurationInput>,
    ) -> S3Result<S3Response<GetObjectLockConfigurationOutput>> {
        self.trouble("lock", "").await?;
        let state = self.state();
        if state.defects.forbids_questions {
            return Err(fail("AccessDenied", 403));
        }
        if !state.object_lock {
            return Err(fail("ObjectLockConfigurationNotFoundError", 404));
        }
        let configuration = ObjectLockConfiguration {
            object_lock_enabled: Some(ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED)),
            rule: None,
        };
        Ok(S3Response::new(GetObjectLockConfigurationOutput {
            object_lock_configuration: Some(configuration),
        }))
    }

    async fn list_object_versions(
        &self,
        request: S3Request<ListObjectVersionsInput>,
    ) -> S3Result<S3Response<ListObjectVersionsOutput>> {
        let input = request.input;
        self.trouble("versions", input.prefix.as_deref().unwrap_or_default()).await?;
        if input.bucket != BUCKET {
            return Err(fail("NoSuchBucket", 404));
        }
        Ok(S3Response::new(self.state().list_versions(&input)))
    }

    async fn put_object_retention(
        &self,
        request: S3Request<PutObjectRetentionInput>,
    ) -> S3Result<S3Response<PutObjectRetentionOutput>> {
        let summed = request.headers.contains_key("content-md5")
            || request.headers.keys().any(|name| name.as_str().starts_with("x-amz-checksum-"));
        let input = request.input;
        self.trouble("retain", &input.key).await?;
        if !summed {
            let text = "Missing required header for this request: Content-MD5";
            return Err(say("InvalidRequest", 400, text));
        }
        let mut state = self.state();
        let retention = input.retention.expect("a retention");
        let mode = retention.mode.as_ref().map(ObjectLockRetentionMode::as_str);
        let wanted = state.wanted(mode, retention.retain_until_date.as_ref())?;
        let id = state.version(&input.key, input.version_id.as_deref())?.id.clone();
        let was = state.version(&input.key, Some(&id))?.kept.clone();
        let bypass = input.bypass_governance_retention.unwrap_or(false);
        state.may_change(was.as_ref(), wanted.as_ref(), bypass)?;
        let versions = state.objects.get_mut(&input.key).into_iter().flatten();
        for version in versions.filter(|version| version.id == id) {
            version.kept.clone_from(&wanted);
        }
        Ok(S3Response::new(PutObjectRetentionOutput::default()))
    }

    async fn get_object_retention(
        &self,
        request: S3Request<GetObjectRetentionInput>,
    ) -> S3Result<S3Response<GetObjectRetentionOutput>> {
        let input = request.input;
        self.trouble("retention", &input.key).await?;
        let state = self.state();
        if state.defects.hides_retention {
            return Err(fail("NotImplemented", 501));
        }
        if state.defects.blurs_retention {
            return Ok(S3Response::new(GetObjectRetentionOutput::default()));
        }
        let version = state.version(&input.key, input.version_id.as_deref())?;
        let Some(kept) = &version.kept else { return Err(fail("NoSuchObjectLockConfiguration", 404)) };
        let retention = ObjectLockRetention {
            mode: Some(ObjectLockRetentionMode::from_static(kept.mode())),
            retain_until_date: Some(timestamp(kept.until)),
        };
        Ok(S3Response::new(GetObjectRetentionOutput { retention: Some(retention) }))
    }
}
