//! `webdavs://user@host/path`: a collection on a WebDAV server.
//!
//! Servers look whether a name is free and then write: nothing that HTTP says makes the two one (neither `If-None-Match` nor
//! `Overwrite: F`, which Apache looks at first and then renames). So an object is written under a scratch name, read back,
//! and renamed while this process holds an exclusive lock that stands for its name. Servers grant locks one at a time; but
//! Apache with a threaded MPM was seen to grant one twice to requests of the same moment, so two *machines* that give one
//! name at the same moment are kept apart almost always, not always (names are hashes, but for the header's).
//! The lock is on a name of its own in `.incoming/`, since a lock on a name that is free makes an empty file there on many
//! servers. Where a server has no locks (its `DAV:` header has no class 2), the rename alone has to do, and
//! [`Remote::features`] says so.
//!
//! Servers keep no checksums and don't say when something is durable: objects are read back, which proves that they
//! arrived.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, IF_MATCH};
use http::{HeaderName, HeaderValue, Request, Response};
use opendal::options::WriteOptions;
use opendal::raw::Operation;
use opendal::{Buffer, Operator};
use zeroize::Zeroizing;

use super::super::location::{Location, Settings};
use super::super::secret::{credentials_file, read_private};
use super::super::walk::{DIR_ENTRIES_MAX, Entry, Pages, Tree, too_many};
use super::super::{
    Answer, Checksum, ErrorKind, Features, Key, Meta, Page, Put, Remote, RemoteError, Result, Source, Times,
    check_replaceable, checksum_of_pieces, conflict, stored_checksum,
};
use super::locks::{Gate, Held, Hold, Turn, granted_seconds, lock_name};
use super::propfind::{self, Member, Properties};
use super::stream::Stream;
use super::transport::{Call, Rules};
use super::{ANSWER_MAX, Dal, check_source, errors};
use crate::env::Env;

/// Where objects stand until they are whole.
const SCRATCH: &str = ".incoming";
/// Scratch files of interrupted runs are removed once they are this old, by the server's clock: a day.
const SCRATCH_SECONDS_MAX: i64 = 86_400;
/// A listing of one directory has at most this, a KiB for each entry; Apache needs half of that. It is not held in memory.
const LISTING_MAX: u64 = (DIR_ENTRIES_MAX as u64) << 10;
/// A server forgets a lock after so many seconds: its holder died, or never learned that it has it.
const LOCK_SECONDS: u64 = 180;
/// So long after a lock was granted nothing is done any more that relies on it; sooner if the server grants less than it was
/// asked for: after a third of that.
const LOCK_TRUSTED: Duration = Duration::from_secs(60);
/// A lock that ends sooner than this is of no use.
const LOCK_SECONDS_MIN: u64 = 30;
/// A lock that somebody else has is asked for again after this long, and then after twice as long, up to the second.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const LOCK_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Who waits for its turn waits for about so many requests of each that is before it: LOCK, PROPFIND, up to three MOVE,
/// PROPFIND, DELETE, UNLOCK. Where none gets an answer, that is one of them.
const NAMING_REQUESTS: u32 = 8;

const LOCK_BODY: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<D:lockinfo xmlns:D=\"DAV:\"><D:lockscope><D:exclusive/>\
    </D:lockscope><D:locktype><D:write/></D:locktype><D:owner>strongroom</D:owner></D:lockinfo>";

/// A collection on a WebDAV server.
#[derive(Debug)]
pub struct WebdavRemote {
    dal: Dal,
    origin: String,
    authorization: Option<HeaderValue>,
    read_back: bool,
    env: Arc<dyn Env>,
    /// Whether the server has locks; set once the collection was seen.
    locks: OnceLock<bool>,
    /// Directories that are there.
    dirs: Mutex<BTreeSet<String>>,
    swept: Mutex<bool>,
    pages: Pages,
    /// Which of [`DESTINATIONS`] the server took last.
    destination: AtomicUsize,
    /// One name is given at a time: a server whose locks are kept by threads may grant one twice at the same moment (Apache's
    /// lock database knows processes only), and most of those who ask at the same moment are threads of ours.
    naming: Gate,
}

impl WebdavRemote {
    /// A remote; the first request connects.
    ///
    /// # Errors
    /// `Misconfigured`, `NoCredentials`, `UnsafeFile`.
    pub fn open(settings: &Settings, times: Times, env: Arc<dyn Env>) -> Result<Self> {
        let Location::Webdav { tls, user, authority, path } = settings.location()? else {
            return Err(RemoteError::new(ErrorKind::Misconfigured, "no WebDAV server"));
        };
        let origin = format!("{}://{authority}", if tls { "https" } else { "http" });
        let login = match credentials_file(settings)? {
            Some(path) => Some(read_login(&path, user.as_deref())?),
            None if user.is_some() => {
                let text = format!("{}: a user, but no --credentials-file with the password", settings.url);
                return Err(RemoteError::new(ErrorKind::NoCredentials, text));
            }
            None => None,
        };
        let authorization = login.as_ref().map(|login| {
            let text = format!("Basic {}", data_encoding::BASE64.encode(login.as_bytes()));
            let mut value = HeaderValue::try_from(text).expect("base64 is fit for a header");
            value.set_sensitive(true);
            value
        });
        let mut builder = opendal::services::Webdav::default().endpoint(&origin).disable_create_dir(true);
        if let Some((user, password)) = login.as_ref().and_then(|login| login.split_once(':')) {
            builder = builder.username(user).password(password);
        }
        let base = if path.is_empty() { String::new() } else { format!("{path}/") };
        let place = format!("{origin}/{base}");
        let dal = Dal::new(settings, place, base, times, || Operator::new(builder))?;
        Ok(Self {
            dal,
            origin,
            authorization,
            read_back: !settings.no_read_back,
            env,
            locks: OnceLock::new(),
            dirs: Mutex::default(),
            swept: Mutex::default(),
            pages: Pages::default(),
            destination: AtomicUsize::new(0),
            naming: Gate::default(),
        })
    }

    /// A request that OpenDAL has no words for.
    fn request(
        &self,
        what: &str,
        method: &str,
        path: &str,
        headers: &[(&'static str, HeaderValue)],
        body: &'static str,
    ) -> Result<Request<Buffer>> {
        let url = format!("{}/{}", self.origin, opendal::raw::percent_encode_path(path));
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(HeaderName::from_static(name), value);
        }
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/xml; charset=utf-8");
        }
        request
            .extension(Operation::Info)
            .body(Buffer::from(body))
            .map_err(|e| RemoteError::new(ErrorKind::Local, format!("{what}: {e}")))
    }

    /// Sends such a request. A refusal is an answer.
    fn ask(
        &self,
        what: &str,
        method: &str,
        path: &str,
        headers: &[(&'static str, HeaderValue)],
        body: &'static str,
    ) -> Result<Response<Bytes>> {
        let request = self.request(what, method, path, headers, body)?;
        self.dal.wait(what, 0, self.call(what).send(request))
    }

    fn call(&self, what: &str) -> Call {
        Call::new(Arc::clone(&self.dal.http), Rules::new(what.to_string(), ANSWER_MAX))
    }

    /// Makes sure, once, that the collection is there, and asks whether the server has locks.
    fn has_locks(&self) -> Result<bool> {
        if let Some(locks) = self.locks.get() {
            return Ok(*locks);
        }
        let there = match self
            .dal
            .stat("looking at the collection".into(), &format!("{}/", self.dal.base.trim_end_matches('/')))
        {
            Ok(meta) => meta,
            Err(e) if e.kind == ErrorKind::NotFound => return Err(self.missing("no such collection")),
            Err(e) if e.kind == ErrorKind::Unsupported => {
                return Err(RemoteError::new(
                    ErrorKind::Misconfigured,
                    format!("{}: is it WebDAV?", e.message),
                ));
            }
            Err(e) => return Err(e),
        };
        if !there.is_dir() {
            return Err(self.missing("no collection"));
        }
        let what = "asking what the server can do";
        let answer = self.ask(what, "OPTIONS", &self.dal.base, &[], "")?;
        let status = answer.status();
        // What failed says nothing; a server that does not know the question has nothing beyond what it must have.
        let unknown =
            matches!(status, http::StatusCode::METHOD_NOT_ALLOWED | http::StatusCode::NOT_IMPLEMENTED);
        if !status.is_success() && !unknown {
            return Err(errors::of_answer(what, status, answer.headers(), answer.body()));
        }
        let classes = answer.headers().get_all("dav").iter().filter_map(|value| value.to_str().ok());
        let locks = !unknown && classes.flat_map(|value| value.split(',')).any(|class| class.trim() == "2");
        if !locks {
            tracing::warn!(url = %self.dal.url, "the server has no locks");
        }
        Ok(*self.locks.get_or_init(|| locks))
    }

    fn missing(&self, what: &str) -> RemoteError {
        let text = format!("{}: {what} there. It is never made by itself", self.dal.url);
        RemoteError::new(ErrorKind::Misconfigured, text)
    }

    /// Makes the directories above a name.
    fn make_dirs(&self, name: &str) -> Result<()> {
        for (end, _) in name.match_indices('/') {
            let dir = &name[..end];
            if self.dirs.lock().unwrap_or_else(PoisonError::into_inner).contains(dir) {
                continue;
            }
            let what = format!("making the directory {dir}");
            let answer = self.ask(&what, "MKCOL", &self.dal.path(&format!("{dir}/")), &[], "")?;
            // 405: there is something of this name already. Whom somebody else was ahead of by a moment gets another answer:
            // 403 from Apache, which looks first, and then its mkdir fails.
            let there =
                answer.status().is_success() || answer.status() == http::StatusCode::METHOD_NOT_ALLOWED;
            if !there && !self.is_collection(&what, dir) {
                return Err(errors::of_answer(&what, answer.status(), answer.headers(), answer.body()));
            }
            self.dirs.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.to_string());
        }
        Ok(())
    }

    /// Whether a directory is there for sure.
    fn is_collection(&self, what: &str, dir: &str) -> bool {
        self.dal.stat(what.to_string(), &self.dal.path(&format!("{dir}/"))).is_ok_and(|there| there.is_dir())
    }

    /// Sends a body to a name and reads it back.
    fn send(&self, name: &str, body: &Arc<dyn Source>, checksum: &Checksum, was: Option<&str>) -> Result<()> {
        let what = format!("writing {name}");
        let mut rules = Rules::new(what.clone(), ANSWER_MAX);
        if let Some(tag) = was.and_then(|tag| HeaderValue::from_str(tag).ok()) {
            rules = rules.header(Operation::Write, IF_MATCH, tag);
        }
        let path = self.dal.path(name);
        self.dal
            .put(rules, &path, body, checksum, WriteOptions::default())
            .inspect_err(|error| self.forget_dirs_after(error))?;
        let there = self.dal.stat(what.clone(), &path)?;
        let wrong = || RemoteError::new(ErrorKind::Corrupt, "the server stored other bytes than were sent");
        if !there.is_file() || there.content_length() != body.len() {
            return Err(wrong());
        }
        let stored = || checksum_of_pieces(body.len(), &|range| self.dal.get(&what, &path, range));
        if self.read_back && stored()? != *checksum {
            return Err(wrong());
        }
        Ok(())
    }

    /// Writes a body under a scratch name and reads it back. On error nothing is left, if that is possible.
    fn write_scratch(&self, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<String> {
        check_source(body.as_ref(), checksum, &mut |_| ())?;
        let mut random = [0; 16];
        self.env.random(&mut random);
        let name = format!("{SCRATCH}/{}", data_encoding::HEXLOWER.encode(&random));
        self.make_dirs(&name)?;
        match self.send(&name, body, checksum, None) {
            Ok(()) => {
                self.sweep(&name);
                Ok(name)
            }
            Err(error) => {
                self.drop_scratch(&name, &error);
                Err(error)
            }
        }
    }

    /// Removes a scratch file on the way out of a failure, which is what gets reported. Who does not answer is not asked.
    fn drop_scratch(&self, name: &str, failure: &RemoteError) {
        if matches!(failure.kind, ErrorKind::Timeout | ErrorKind::Unreachable | ErrorKind::NoCredentials) {
            return;
        }
        if let Err(error) = self.dal.delete(format!("removing {name}"), &self.dal.path(name)) {
            tracing::debug!(name, %error, "a scratch file stays");
        }
    }

    /// Removes, once, what interrupted runs left. `fresh` was just written, and tells the server's time.
    fn sweep(&self, fresh: &str) {
        if std::mem::replace(&mut *self.swept.lock().unwrap_or_else(PoisonError::into_inner), true) {
            return;
        }
        let seconds = |found: &Properties| {
            let time = jiff::fmt::rfc2822::parse(found.modified.as_deref()?).ok()?;
            Some(time.timestamp().as_second())
        };
        let mut files = Vec::new();
        let swept = self.list(SCRATCH, &mut |name, found| {
            if !found.is_dir && is_scratch(&name) {
                files.push((seconds(&found), name));
            }
            Ok(())
        });
        let swept = swept.and_then(|()| {
            let now = files.iter().find(|(_, name)| fresh.ends_with(name.as_str()));
            let Some(now) = now.and_then(|(time, _)| *time) else { return Ok(()) };
            for (time, name) in &files {
                if time.is_some_and(|time| time.saturating_add(SCRATCH_SECONDS_MAX) < now) {
                    let path = format!("{SCRATCH}/{name}");
                    self.dal.delete(format!("removing {path}"), &self.dal.path(&path))?;
                }
            }
            Ok(())
        });
        if let Err(error) = swept {
            tracing::debug!(%error, "scratch files were not looked through");
        }
    }

    /// Shows the entries of a directory, in any order: names without slashes.
    fn list(&self, dir: &str, visit: &mut dyn FnMut(String, Properties) -> Result<()>) -> Result<()> {
        let what = format!("listing {dir:?}");
        let path = match dir {
            "" => self.dal.base.clone(),
            dir => self.dal.path(&format!("{dir}/")),
        };
        let depth = [("depth", HeaderValue::from_static("1"))];
        let request = self.request(&what, "PROPFIND", &path, &depth, propfind::QUESTION)?;
        let body = self.dal.wait(&what, 0, self.call(&what).begin(request))?;
        let mut stream = Stream::new(&self.dal, self.env.as_ref(), &what, body, LISTING_MAX);
        let (mut count, mut is_there) = (0, false);
        let read = propfind::read(&what, &mut stream, &mut |member| {
            count += 1;
            // One is the directory itself.
            if count > DIR_ENTRIES_MAX + 1 {
                return Err(too_many(dir));
            }
            let Some(name) = propfind::name_in(&path, &member.href) else {
                let text = format!("{what}: names that were not asked for");
                return Err(RemoteError::new(ErrorKind::Corrupt, text));
            };
            is_there |= name.is_empty();
            match found_of(&what, &name, member)? {
                Some(found) if !name.is_empty() => visit(name, found),
                _ => Ok(()),
            }
        });
        if let Some(failure) = stream.failure.take() {
            return Err(failure);
        }
        read?;
        // An answer about nothing must not pass for an empty directory.
        if !is_there {
            let text = format!("{what}: the answer says nothing of the directory itself");
            return Err(RemoteError::new(ErrorKind::Corrupt, text));
        }
        Ok(())
    }

    /// Does something while nobody else who asks for the same lock does.
    fn while_locked<T>(&self, key: &Key, act: impl FnOnce(&Hold) -> Result<T>) -> Result<T> {
        if !self.has_locks()? {
            return act(&Hold::new(None));
        }
        let name = format!("{SCRATCH}/{}", lock_name(key));
        self.make_dirs(&name)?;
        let (held, _turn) = self.lock(key, &name)?;
        let hold = Hold::new(Some(held.until));
        let done = act(&hold);
        // Else the lock is left to its end; it is for this name only.
        if !hold.may_go_on(&done)
            && let Err(error) = self.unlock(&held)
        {
            tracing::debug!(%key, %error, "a lock stays until it ends");
        }
        done
    }

    /// Takes a lock, and with it the turn to give a name: what follows is a few requests, each with a deadline. While somebody
    /// else has the lock, others of us go on.
    fn lock(&self, key: &Key, name: &str) -> Result<(Held, Turn<'_>)> {
        let what = format!("locking the name {key}");
        let path = self.dal.path(name);
        let headers = [
            ("depth", HeaderValue::from_static("0")),
            ("timeout", HeaderValue::try_from(format!("Second-{LOCK_SECONDS}")).expect("letters and digits")),
        ];
        let mut start = None;
        let mut pause = LOCK_PAUSE;
        loop {
            let turn = self.naming.enter(&what, self.dal.times.answer * NAMING_REQUESTS)?;
            let since = self.env.monotonic();
            let start = *start.get_or_insert(since);
            let answer = self.ask(&what, "LOCK", &path, &headers, LOCK_BODY)?;
            let status = answer.status();
            if status.is_success() {
                let made = status == http::StatusCode::CREATED;
                let token = answer.headers().get("lock-token").cloned();
                let token = token
                    .filter(|token| token.as_bytes().starts_with(b"<") && token.as_bytes().ends_with(b">"));
                let Some(token) = token else {
                    let text = format!("{what}: a lock without a token");
                    return Err(RemoteError::new(ErrorKind::Corrupt, text));
                };
                // Servers may grant less than they were asked for.
                let granted = granted_seconds(answer.body());
                let trusted = Duration::from_secs(granted.unwrap_or(0) / 3).min(LOCK_TRUSTED);
                let held = Held { path, token, made, until: since.saturating_add(trusted) };
                if granted.is_some_and(|seconds| seconds >= LOCK_SECONDS_MIN) {
                    return Ok((held, turn));
                }
                if let Err(error) = self.unlock(&held) {
                    tracing::debug!(%key, %error, "a lock stays until it ends");
                }
                let text = match granted {
                    Some(seconds) => format!("the server's lock is good for {seconds} seconds only"),
                    None => "the server does not say how long its lock is good for".into(),
                };
                return Err(RemoteError::new(ErrorKind::Unsupported, format!("{what}: {text}")));
            }
            let error = errors::of_answer(&what, status, answer.headers(), answer.body());
            if status != http::StatusCode::LOCKED {
                self.forget_dirs_after(&error);
                return Err(error);
            }
            drop(turn);
            if self.env.monotonic().saturating_sub(start) > self.dal.times.answer {
                let text = format!("{what}: somebody else holds it, or held it when it broke off");
                return Err(RemoteError::new(ErrorKind::Unavailable, text));
            }
            // Whoever has it only renames a file.
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOCK_PAUSE_MAX);
        }
    }

    fn unlock(&self, held: &Held) -> Result<()> {
        let what = "unlocking";
        if held.made {
            // Removing the file that was made for the lock ends the lock as well.
            let mut condition = b"(".to_vec();
            condition.extend_from_slice(held.token.as_bytes());
            condition.push(b')');
            let condition = HeaderValue::from_bytes(&condition).expect("it came in a header");
            let answer = self.ask(what, "DELETE", &held.path, &[("if", condition)], "")?;
            if answer.status().is_success() {
                return Ok(());
            }
        }
        let answer = self.ask(what, "UNLOCK", &held.path, &[("lock-token", held.token.clone())], "")?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(errors::of_answer(what, answer.status(), answer.headers(), answer.body())),
        }
    }

    /// Gives a scratch file its name; `false`: the name is taken.
    fn give_name(&self, scratch: &str, key: &Key) -> Result<bool> {
        self.make_dirs(key.as_str())?;
        self.while_locked(key, |hold| {
            match self.meta(key) {
                Err(e) if e.kind == ErrorKind::NotFound => {}
                other => return other.map(|_| false),
            }
            let what = format!("naming {key}");
            let (answer, way) = self.rename(&what, scratch, key, hold)?;
            match answer.status() {
                // Behind a proxy that changes paths, another way to say where to may mean another place: it becomes the
                // first one to be tried only where it means this one.
                http::StatusCode::CREATED if way != self.destination.load(Ordering::Relaxed) => {
                    self.meta(key).map_err(|e| match e.kind {
                        ErrorKind::NotFound => {
                            let text = format!(
                                "{what}: the server says that it was done, and nothing has that name"
                            );
                            RemoteError::new(ErrorKind::Unsupported, text)
                        }
                        _ => e,
                    })?;
                    self.destination.store(way, Ordering::Relaxed);
                    return Ok(true);
                }
                http::StatusCode::CREATED => return Ok(true),
                // It was free a moment ago, and something was replaced, or so it says: whose bytes have the name is looked at.
                http::StatusCode::OK | http::StatusCode::NO_CONTENT => return Ok(false),
                http::StatusCode::PRECONDITION_FAILED => return Ok(false),
                status if status.is_success() => {
                    let text = format!("{key}: it was not renamed as it should be ({})", status.as_u16());
                    return Err(RemoteError::new(ErrorKind::Corrupt, text));
                }
                _ => {}
            }
            let mut error = errors::of_answer(&what, answer.status(), answer.headers(), answer.body());
            if is_about_destination(answer.status()) {
                error.message += " (to a rename, however its Destination was written)";
            }
            self.forget_dirs_after(&error);
            Err(error)
        })
    }

    /// Asks for a rename that replaces nothing, in all ways to say where to while the server takes none of them. Returns
    /// also the way that was answered so.
    fn rename(&self, what: &str, from: &str, to: &Key, hold: &Hold) -> Result<(Response<Bytes>, usize)> {
        let path = format!("/{}", opendal::raw::percent_encode_path(&self.dal.path(to.as_str())));
        let from = self.dal.path(from);
        let start = self.destination.load(Ordering::Relaxed);
        let mut refusal: Option<(Response<Bytes>, usize)> = None;
        for at in (start..start + DESTINATIONS.len()).map(|at| at % DESTINATIONS.len()) {
            let destination = HeaderValue::try_from(DESTINATIONS[at](&self.origin, &path))
                .map_err(|e| RemoteError::new(ErrorKind::Local, format!("{what}: {e}")))?;
            let headers = [("destination", destination), ("overwrite", HeaderValue::from_static("F"))];
            hold.check(self.env.as_ref())?;
            let answer = self.ask(what, "MOVE", &from, &headers, "")?;
            let status = answer.status();
            if status.is_success() || status == http::StatusCode::PRECONDITION_FAILED {
                return Ok((answer, at));
            }
            // 502 may be a proxy's that gave up waiting, and then the rename may have been done all the same: what comes after
            // it fails for reasons of its own.
            let is_first =
                refusal.as_ref().is_none_or(|(first, _)| first.status() != http::StatusCode::BAD_GATEWAY);
            if !is_about_destination(status) {
                return Ok(if is_first { (answer, at) } else { refusal.unwrap_or((answer, at)) });
            }
            if is_first {
                refusal = Some((answer, at));
            }
        }
        Ok(refusal.expect("each of them was refused, and there are some"))
    }

    /// Somebody may have removed a directory: that is 409, or 404 at some servers.
    fn forget_dirs_after(&self, error: &RemoteError) {
        if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::NotFound) {
            self.dirs.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn meta(&self, key: &Key) -> Result<Meta> {
        let there = self.dal.stat(format!("looking at {key}"), &self.dal.path(key.as_str()))?;
        match there.is_file() {
            true => Ok(Meta { len: there.content_length(), checksum: None }),
            false => Err(RemoteError::new(ErrorKind::Corrupt, format!("{key} is no file there"))),
        }
    }

    fn same(&self, key: &Key, len: u64, checksum: &Checksum) -> Result<Put> {
        let same = self.meta(key)?.len == len && stored_checksum(self, key, len)? == *checksum;
        if same { Ok(Put::Same) } else { Err(conflict(key)) }
    }

    /// Whether the server gives one lock to one client: it is asked for the same lock twice.
    fn probe_locks(&self) -> Result<Answer> {
        if !self.has_locks()? {
            return Ok(Answer::No(
                "the server has no locks (DAV class 2): a rename that should replace nothing is all there is, and two writers of \
                 one name at the same moment are not kept apart"
                    .into(),
            ));
        }
        let mut random = [0; 16];
        self.env.random(&mut random);
        let key = Key::new(&data_encoding::HEXLOWER.encode(&random)).expect("hexadecimal digits");
        let answer = self.while_locked(&key, |_| {
            let path = self.dal.path(&format!("{SCRATCH}/{}", lock_name(&key)));
            let depth = [("depth", HeaderValue::from_static("0"))];
            self.ask("trying to lock twice", "LOCK", &path, &depth, LOCK_BODY)
        })?;
        Ok(match answer.status() == http::StatusCode::LOCKED {
            true => Answer::Yes("an exclusive lock, and a rename that replaces nothing".into()),
            false => Answer::No("the server gives one lock to several clients at a time".into()),
        })
    }
}

/// How a Destination can be written, given where the server is and the path. Most take a URL. nginx and others behind a proxy
/// that speaks TLS for them don't know themselves by an https:// URL, but take a path; Apache takes no path, but the http:// URL
/// that it would have without the proxy.
const DESTINATIONS: [fn(&str, &str) -> String; 3] = [
    |origin, path| format!("{origin}{path}"),
    |_, path| path.into(),
    |origin, path| match origin.strip_prefix("https:") {
        Some(rest) => format!("http:{rest}{path}"),
        None => format!("https:{}{path}", origin.strip_prefix("http:").unwrap_or(origin)),
    },
];

/// What servers answer who can't do anything with a Destination: 502 where they take it for another server's, else 400. Proxies
/// answer 502 for any reason.
fn is_about_destination(status: http::StatusCode) -> bool {
    matches!(status, http::StatusCode::BAD_REQUEST | http::StatusCode::BAD_GATEWAY)
}

/// What is known of a member; `None`: it went away meanwhile.
fn found_of(what: &str, name: &str, member: Member) -> Result<Option<Properties>> {
    if let Some(found) = member.found {
        return Ok(Some(found));
    }
    let status = member.status.and_then(|status| http::StatusCode::from_u16(status).ok());
    match status {
        Some(http::StatusCode::NOT_FOUND) => Ok(None),
        Some(status) if !status.is_success() => {
            Err(errors::of_answer(&format!("{what}: {name:?}"), status, &http::HeaderMap::new(), b""))
        }
        _ => {
            let text = format!("{what}: the answer says nothing of {name:?}");
            Err(RemoteError::new(ErrorKind::Corrupt, text))
        }
    }
}

/// The names that are made in [`SCRATCH`].
fn is_scratch(name: &str) -> bool {
    let random = name.strip_prefix("lock-").unwrap_or(name);
    random.len() == 32 && random.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Reads `USER:PASSWORD`. The URL's user, if it has one, has to be the same.
fn read_login(path: &Path, user: Option<&str>) -> Result<Zeroizing<String>> {
    let text = read_private(path)?;
    let wrong = |what: &str| {
        let text = format!("the credentials file {}: {what}", path.display());
        Err(RemoteError::new(ErrorKind::NoCredentials, text))
    };
    let Some((name, password)) = text.split_once(':') else {
        return wrong("it should be one line, USER:PASSWORD");
    };
    if name.is_empty() || password.is_empty() || text.chars().any(char::is_control) {
        return wrong("it should be one line, USER:PASSWORD");
    }
    if user.is_some_and(|user| user != name) {
        return wrong("it is for another user than the URL's");
    }
    Ok(text)
}

impl Remote for WebdavRemote {
    fn url(&self) -> String {
        self.dal.url.clone()
    }

    fn place(&self) -> String {
        self.dal.place.clone()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        self.has_locks()?;
        match self.same(key, body.len(), checksum) {
            Err(e) if e.kind == ErrorKind::NotFound => {}
            other => return other,
        }
        let scratch = self.write_scratch(body, checksum).map_err(|e| e.context(key.as_str()))?;
        match self.give_name(&scratch, key) {
            Ok(true) => Ok(Put::Created),
            Ok(false) => {
                self.drop_scratch(&scratch, &conflict(key));
                self.same(key, body.len(), checksum)
            }
            Err(error) => {
                self.drop_scratch(&scratch, &error);
                Err(error)
            }
        }
    }

    /// Servers write beside a file and rename, where they are good; so this is a put under the file's own name, and not a
    /// rename: for that, Apache removes the old file first.
    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        check_source(body.as_ref(), checksum, &mut |_| ())?;
        self.while_locked(key, |hold| {
            let path = self.dal.path(key.as_str());
            let there = self.dal.stat(format!("looking at {key}"), &path)?;
            check_replaceable(key, there.content_length())?;
            if stored_checksum(self, key, there.content_length())? != *was {
                return Err(conflict(key));
            }
            // A weak tag matches nothing.
            let tag = there.etag().filter(|tag| tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"'));
            let tag = tag.filter(|tag| HeaderValue::from_str(tag).is_ok());
            if tag.is_none() && hold.until.is_none() {
                let text = format!(
                    "{key}: the server has neither locks nor strong ETags: it can't be replaced safely"
                );
                return Err(RemoteError::new(ErrorKind::Unsupported, text));
            }
            hold.check(self.env.as_ref())?;
            self.send(key.as_str(), body, checksum, tag).map_err(|e| match e.kind {
                ErrorKind::Conflict => conflict(key),
                _ => e.context(key.as_str()),
            })
        })
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.dal.get(&format!("reading {key}"), &self.dal.path(key.as_str()), range)
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        self.meta(key)
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        self.has_locks()?;
        self.pages.page(self, prefix, after)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.dal.delete(format!("deleting {key}"), &self.dal.path(key.as_str()))
    }

    fn features(&self) -> Result<Features> {
        let none = |what: &str| Answer::NotApplicable(format!("WebDAV has no {what}"));
        let verification = match self.read_back {
            true => "every object is read back before it gets its name; servers don't say when it is durable"
                .into(),
            false => {
                "objects are not read back (--no-read-back): the network and the server are trusted".into()
            }
        };
        Ok(Features {
            create_only: self.probe_locks()?,
            versioning: none("versions that this program could read"),
            object_lock: none("locks that keep anything: whoever can write there can delete"),
            verification,
        })
    }
}

impl Tree for WebdavRemote {
    fn entries(&self, dir: &str) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.list(dir, &mut |name, found| {
            // Other names are none of ours: no need to remember them.
            if Key::new(&name).is_none() {
                return Ok(());
            }
            let len = match (found.is_dir, found.len) {
                (true, _) => 0,
                (false, Some(len)) => len,
                (false, None) => {
                    let text = format!("listing {dir:?}: no length of {name}");
                    return Err(RemoteError::new(ErrorKind::Corrupt, text));
                }
            };
            entries.push(Entry { name, is_dir: found.is_dir, len });
            Ok(())
        })
        .map_err(|e| match e.kind {
            ErrorKind::NotFound if dir.is_empty() => self.missing("no such collection"),
            _ => e,
        })?;
        Ok(entries)
    }
}
