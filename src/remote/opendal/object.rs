//! `azblob://container/prefix` and `gs://bucket/prefix`: stores that create objects conditionally and keep their MD5.
//!
//! Every put is one conditional request (`If-None-Match: *`, `ifGenerationMatch=0`), and the MD5 that the service says it
//! stored is compared with what was sent. What is sent was compared with its SHA-256 before: the services know no SHA-256, so
//! that whoever asks for one ([`Meta::checksum`]) gets none, and reads objects back.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use md5::{Digest, Md5};
use opendal::Lister;
use opendal::options::{DeleteOptions, ListOptions, WriteOptions};

use super::super::{
    Answer, Checksum, ErrorKind, Features, Key, LIST_MAX, Listed, Meta, Page, Put, Remote, RemoteError,
    Result, Source, check_replaceable, conflict, stored_checksum,
};
use super::transport::{Call, Rules, Seen};
use super::{ANSWER_MAX, Dal, check_source, explain};

/// A page of a listing has at most this: 5,000 names of Azure, each with its properties.
const LISTING_MAX: usize = 32 << 20;
/// Names in one page of ours.
const PAGE: usize = 1000;
/// What such a page has over the wire, about: names come with all that a service knows of an object. It may take the time that
/// so much takes at the slowest speed.
const PAGE_BYTES: u64 = 2 << 20;

/// Which service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Azure Blob Storage.
    #[cfg(feature = "azblob")]
    Azblob,
    /// Google Cloud Storage.
    #[cfg(feature = "gcs")]
    Gcs,
}

/// A container or a bucket, or a part of one.
#[derive(Debug)]
pub struct ObjectRemote {
    dal: Dal,
    kind: Kind,
    /// Where the last page ended: Azure can't be asked for what comes after a name, only for what comes after a page.
    listing: Mutex<Option<Listing>>,
}

/// A listing under way.
struct Listing {
    prefix: String,
    after: String,
    lister: Lister,
    call: Arc<Call>,
    /// The last name that was passed over, and how many there were.
    passed: String,
    count: usize,
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing")
            .field("prefix", &self.prefix)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

/// What must be true of a name when it is written.
enum Condition<'a> {
    /// It is free.
    Free,
    /// It still has the object that was read.
    Unchanged(&'a opendal::Metadata),
}

/// An object as Google describes it.
#[cfg(feature = "gcs")]
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    #[serde(default)]
    md5_hash: Option<String>,
    #[serde(default)]
    generation: Option<String>,
}

impl ObjectRemote {
    pub(super) fn new(dal: Dal, kind: Kind) -> Self {
        Self { dal, kind, listing: Mutex::new(None) }
    }

    /// Sends an object, and compares what the service says it stored with it.
    fn send(
        &self,
        key: &Key,
        body: &Arc<dyn Source>,
        checksum: &Checksum,
        condition: &Condition<'_>,
    ) -> Result<()> {
        let mut md5 = Md5::new();
        check_source(body.as_ref(), checksum, &mut |piece| md5.update(piece))
            .map_err(|e| e.context(key.as_str()))?;
        let md5 = data_encoding::BASE64.encode(&md5.finalize());
        let mut rules = Rules::new(format!("writing {key}"), ANSWER_MAX);
        let mut options = WriteOptions::default();
        let unchangeable = |what: &str| {
            let text =
                format!("{key}: the service gives objects no {what}, so that they can't be replaced safely");
            Err(RemoteError::new(ErrorKind::Unsupported, text))
        };
        match self.kind {
            #[cfg(feature = "azblob")]
            Kind::Azblob => {
                options.content_type = Some("application/octet-stream".into());
                match condition {
                    Condition::Free => options.if_not_exists = true,
                    Condition::Unchanged(was) => match was.etag() {
                        Some(tag) => options.if_match = Some(tag.to_string()),
                        None => return unchangeable("ETag"),
                    },
                }
            }
            // Told of the condition, OpenDAL would upload in pieces: many requests, one after another.
            #[cfg(feature = "gcs")]
            Kind::Gcs => {
                let generation = match condition {
                    Condition::Free => "0",
                    Condition::Unchanged(was) => match was.version() {
                        Some(version) if version.bytes().all(|b| b.is_ascii_digit()) => version,
                        _ => return unchangeable("generation"),
                    },
                };
                rules.query = Some(format!("ifGenerationMatch={generation}"));
                let hash = format!("md5={md5}").parse().expect("base64 is fit for a header");
                let name = http::HeaderName::from_static("x-goog-hash");
                rules = rules.header(opendal::raw::Operation::Write, name, hash);
            }
        }
        let seen = self.dal.put(rules, &self.dal.path(key.as_str()), body, checksum, options)?;
        let stored = match self.stored_md5(&seen) {
            Some(stored) => stored == md5,
            None => stored_checksum(self, key, body.len())? == *checksum,
        };
        if stored {
            return Ok(());
        }
        let text = format!("{key}: the endpoint stored other bytes than were sent");
        // It must not stay: it has the right name and the right length.
        let text = match self.take_back(key, &seen) {
            Ok(()) => format!("{text}; what it stored was removed"),
            Err(e) => format!("{text}: it is damaged there, and can't be removed ({e})"),
        };
        Err(RemoteError::new(ErrorKind::Corrupt, text))
    }

    /// Removes what a put has just stored, and nothing that took its place.
    fn take_back(&self, key: &Key, seen: &Seen) -> Result<()> {
        let path = self.dal.path(key.as_str());
        let rules = Rules::new(format!("removing {key}"), ANSWER_MAX);
        let unknown = || RemoteError::new(ErrorKind::Unsupported, "the endpoint does not say what it stored");
        let (rules, options) = match self.kind {
            #[cfg(feature = "azblob")]
            Kind::Azblob => {
                let tag = seen.headers.get(http::header::ETAG).and_then(|tag| tag.to_str().ok());
                let if_match = Some(tag.ok_or_else(unknown)?.to_string());
                (rules, DeleteOptions { if_match, ..DeleteOptions::default() })
            }
            #[cfg(feature = "gcs")]
            Kind::Gcs => {
                let stored = serde_json::from_slice::<Described>(&seen.body).ok();
                let generation = stored.and_then(|object| object.generation).ok_or_else(unknown)?;
                if generation.is_empty() || !generation.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(unknown());
                }
                let query = Some(format!("ifGenerationMatch={generation}"));
                (Rules { on: opendal::raw::Operation::Delete, query, ..rules }, DeleteOptions::default())
            }
        };
        self.dal.run(rules, 0, async |operator| operator.delete_options(&path, options).await).map(|_| ())
    }

    /// The MD5, in base64, of what was stored, as the answer to a put tells it.
    fn stored_md5(&self, seen: &Seen) -> Option<String> {
        match self.kind {
            #[cfg(feature = "azblob")]
            Kind::Azblob => {
                seen.headers.get("content-md5").and_then(|md5| md5.to_str().ok()).map(String::from)
            }
            #[cfg(feature = "gcs")]
            Kind::Gcs => {
                serde_json::from_slice::<Described>(&seen.body).ok().and_then(|object| object.md5_hash)
            }
        }
    }

    fn stat(&self, key: &Key) -> Result<opendal::Metadata> {
        self.dal.stat(format!("looking at {key}"), &self.dal.path(key.as_str()))
    }

    fn same(&self, key: &Key, len: u64, checksum: &Checksum) -> Result<Put> {
        let same = self.head(key)?.len == len && stored_checksum(self, key, len)? == *checksum;
        if same { Ok(Put::Same) } else { Err(conflict(key)) }
    }

    /// Begins a listing, where the service can at a name.
    fn begin(&self, prefix: &str, after: &str) -> Result<Listing> {
        let what = format!("listing {prefix:?}");
        let (operator, call) = self.dal.operator(Rules::new(what.clone(), LISTING_MAX));
        let mut options = ListOptions { recursive: true, limit: Some(PAGE), ..ListOptions::default() };
        if operator.info().capability().list_with_start_after && !after.is_empty() {
            options.start_after = Some(self.dal.path(after));
        }
        let path = self.dal.path(prefix);
        let lister = self.dal.wait(&what, 0, async {
            let lister = operator.lister_options(&path, options).await;
            lister.map_err(|e| explain(&what, &e, call.take_seen()))
        })?;
        let (prefix, after) = (prefix.to_string(), after.to_string());
        Ok(Listing { prefix, after, lister, call, passed: String::new(), count: 0 })
    }

    /// The next object; `None` at the end.
    fn next(&self, listing: &mut Listing) -> Result<Option<Listed>> {
        let what = format!("listing {:?}", listing.prefix);
        loop {
            // A service that sends empty pages for ever is cut off by the deadline.
            let entry = self.dal.wait(&what, PAGE_BYTES, async {
                let entry = listing.lister.next().await.transpose();
                entry.map_err(|e| explain(&what, &e, listing.call.take_seen()))
            })?;
            let Some(entry) = entry else { return Ok(None) };
            let Some(name) = entry.path().strip_prefix(self.dal.base.as_str()) else {
                let text = format!("{what}: names that were not asked for");
                return Err(RemoteError::new(ErrorKind::Corrupt, text));
            };
            // What consoles make to show a directory. There are fewer of them than of objects, and they are in order: else
            // they could go on for ever.
            if entry.path().ends_with('/') {
                listing.count += 1;
                if listing.count > LIST_MAX || entry.path() <= listing.passed.as_str() {
                    let text = format!("{what}: names of directories without end, or not in order");
                    return Err(RemoteError::new(ErrorKind::Corrupt, text));
                }
                entry.path().clone_into(&mut listing.passed);
                continue;
            }
            return Ok(Some(Listed { name: name.to_string(), len: entry.metadata().content_length() }));
        }
    }
}

impl Remote for ObjectRemote {
    fn url(&self) -> String {
        self.dal.url.clone()
    }

    fn place(&self) -> String {
        self.dal.place.clone()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        match self.send(key, body, checksum, &Condition::Free) {
            Ok(()) => Ok(Put::Created),
            Err(e) if e.kind == ErrorKind::Conflict => self.same(key, body.len(), checksum),
            Err(e) => Err(e),
        }
    }

    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        // What identifies it is asked for before its bytes: who changes them in between is found out.
        let there = self.stat(key)?;
        check_replaceable(key, there.content_length())?;
        if stored_checksum(self, key, there.content_length())? != *was {
            return Err(conflict(key));
        }
        self.send(key, body, checksum, &Condition::Unchanged(&there)).map_err(|e| match e.kind {
            ErrorKind::Conflict => conflict(key),
            _ => e,
        })
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.dal.get(&format!("reading {key}"), &self.dal.path(key.as_str()), range)
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        Ok(Meta { len: self.stat(key)?.content_length(), checksum: None })
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        let kept = self.listing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut listing = match kept.filter(|kept| kept.prefix == prefix && kept.after == after) {
            Some(kept) if !after.is_empty() => kept,
            _ => self.begin(prefix, after)?,
        };
        let mut page = Page::default();
        let mut passed = String::new();
        for _ in 0..LIST_MAX {
            let Some(item) = self.next(&mut listing)? else { return Ok(page) };
            // Azure begins at the beginning.
            if page.items.is_empty() && item.name.as_str() <= after {
                if item.name <= passed {
                    let text = format!("listing {prefix:?}: names that are not in order");
                    return Err(RemoteError::new(ErrorKind::Corrupt, text));
                }
                passed = item.name;
                continue;
            }
            page.items.push(item);
            if page.items.len() == PAGE {
                break;
            }
        }
        let Some(last) = page.items.last() else {
            let text = format!("listing {prefix:?}: more objects than any vault has");
            return Err(RemoteError::new(ErrorKind::Corrupt, text));
        };
        listing.after.clone_from(&last.name);
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = Some(listing);
        page.more = true;
        Ok(page)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.dal.delete(format!("deleting {key}"), &self.dal.path(key.as_str()))
    }

    fn features(&self) -> Result<Features> {
        let (condition, lock) = match self.kind {
            #[cfg(feature = "azblob")]
            Kind::Azblob => ("If-None-Match", "immutability policies"),
            #[cfg(feature = "gcs")]
            Kind::Gcs => ("ifGenerationMatch", "retention policies"),
        };
        Ok(Features {
            create_only: Answer::Yes(format!("conditional create ({condition})")),
            versioning: Answer::Unknown("not asked: this program reads no versions there".into()),
            object_lock: Answer::NotApplicable(format!(
                "this program does not use {lock}; the bucket may have them"
            )),
            verification: "the MD5 of what the service stored is compared with what was sent".into(),
        })
    }
}
