//! A server that speaks as much of Google Cloud Storage's JSON API as is used, and enforces what the real one enforces:
//! preconditions, hashes, ranges, pages of listings. (The emulators that can be installed ignore `ifGenerationMatch`.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use data_encoding::BASE64;
use md5::{Digest, Md5};
use serde_json::{Value, json};
use strongroom::remote::Settings;

use super::private_file;
use super::scripted::{Asked, Reply, Scripted};

/// Missing objects of such a bucket are missing objects, whatever the message that names them says.
pub const BUCKET: &str = "my-bucket";
const SUBJECT: &str = "a token of somebody else's";
const ACCESS: &str = "ya29.an-access-token";

/// What the server does that it should not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Defects {
    /// It stores other bytes, and says so in its MD5.
    pub stores_other_bytes: bool,
    /// It says nothing of an MD5.
    pub knows_no_md5: bool,
    /// It creates what is there already.
    pub overwrites: bool,
    /// Nothing may be deleted.
    pub keeps_everything: bool,
    /// It knows nobody's access token.
    pub forgets_tokens: bool,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (u64, Vec<u8>)>,
    generation: u64,
    defects: Defects,
}

/// A running server; it ends with this value.
pub struct GcsServer {
    server: Scripted,
    state: Arc<Mutex<State>>,
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = (first == b'%')
            .then(|| u8::from_str_radix(std::str::from_utf8(&tail[..2]).unwrap(), 16).unwrap());
        bytes.push(hex.unwrap_or(first));
        rest = if hex.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap()
}

fn error(status: &str, reason: &str, message: &str) -> Reply {
    let code: u16 = status[..3].parse().unwrap();
    let body = json!({ "error": { "code": code, "message": message, "errors": [{ "reason": reason, "message": message }] } });
    Reply::new(status, "Content-Type: application/json\r\n", body.to_string().as_bytes())
}

fn ok(body: &Value) -> Reply {
    Reply::new("200 OK", "Content-Type: application/json\r\n", body.to_string().as_bytes())
}

impl State {
    fn describe(&self, name: &str) -> Value {
        let (generation, bytes) = &self.objects[name];
        let mut object = json!({
            "kind": "storage#object", "name": name, "bucket": BUCKET, "size": bytes.len().to_string(),
            "generation": generation.to_string(), "metageneration": "1", "etag": format!("tag{generation}"),
            "updated": "2026-11-21T10:00:00.000Z", "contentType": "application/octet-stream",
        });
        if !self.defects.knows_no_md5 {
            object["md5Hash"] = BASE64.encode(&Md5::digest(bytes)).into();
        }
        object
    }

    fn answer(&mut self, asked: &Asked) -> Reply {
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let query: BTreeMap<&str, String> =
            query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k, decode(v))).collect();
        if path == "/token" {
            let body = String::from_utf8(asked.body.clone()).unwrap();
            let subject = SUBJECT.replace(' ', "+").replace('\'', "%27");
            if !body.contains(&format!("subject_token={subject}")) {
                return Reply::new("400 Bad Request", "", br#"{"error":"invalid_grant"}"#);
            }
            let token = json!({ "access_token": ACCESS, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                                "token_type": "Bearer", "expires_in": 3600 });
            return ok(&token);
        }
        if asked.header("authorization") != Some(format!("Bearer {ACCESS}")) || self.defects.forgets_tokens {
            return error("401 Unauthorized", "authError", "Invalid Credentials");
        }
        if path == format!("/upload/storage/v1/b/{BUCKET}/o") {
            return self.insert(asked, &query);
        }
        let Some(rest) = path.strip_prefix(&format!("/storage/v1/b/{BUCKET}/o")) else {
            return error("404 Not Found", "notFound", "The specified bucket does not exist.");
        };
        let Some(name) = rest.strip_prefix('/').map(decode) else { return self.list(&query) };
        if !self.objects.contains_key(&name) {
            return error("404 Not Found", "notFound", &format!("No such object: {BUCKET}/{name}"));
        }
        match asked.method.as_str() {
            "DELETE" if self.defects.keeps_everything => error("403 Forbidden", "forbidden", "no"),
            "DELETE" => {
                if let Some(wanted) = query.get("ifGenerationMatch")
                    && *wanted != self.objects[&name].0.to_string()
                {
                    return error("412 Precondition Failed", "conditionNotMet", "no");
                }
                self.objects.remove(&name);
                Reply::new("204 No Content", "", b"")
            }
            "GET" if query.get("alt").is_some_and(|alt| alt == "media") => self.read(asked, &name),
            "GET" => ok(&self.describe(&name)),
            _ => error("405 Method Not Allowed", "methodNotAllowed", "no"),
        }
    }

    fn insert(&mut self, asked: &Asked, query: &BTreeMap<&str, String>) -> Reply {
        assert_eq!((asked.method.as_str(), query["uploadType"].as_str()), ("POST", "media"));
        let name = query["name"].clone();
        let now = self.objects.get(&name).map_or(0, |(generation, _)| *generation);
        // Nothing may be written without a condition.
        let wanted: u64 = query["ifGenerationMatch"].parse().unwrap();
        if wanted != now && !self.defects.overwrites {
            return error(
                "412 Precondition Failed",
                "conditionNotMet",
                "At least one of the pre-conditions you specified did not hold.",
            );
        }
        let md5 = BASE64.encode(&Md5::digest(&asked.body));
        if asked.header("x-goog-hash").is_some_and(|hash| hash != format!("md5={md5}")) {
            return error(
                "400 Bad Request",
                "invalid",
                "Provided MD5 hash doesn't match calculated MD5 hash.",
            );
        }
        let mut bytes = asked.body.clone();
        if self.defects.stores_other_bytes {
            bytes.iter_mut().for_each(|b| *b ^= 1);
        }
        self.generation += 1;
        self.objects.insert(name.clone(), (self.generation, bytes));
        ok(&self.describe(&name))
    }

    fn read(&self, asked: &Asked, name: &str) -> Reply {
        let (generation, bytes) = &self.objects[name];
        let tag = format!("x-goog-generation: {generation}\r\n");
        let Some(range) = asked.header("range") else { return Reply::new("200 OK", &tag, bytes) };
        let (start, end) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).unwrap();
        let start: usize = start.parse().unwrap();
        let end: usize = end.parse::<usize>().map_or(bytes.len(), |end| (end + 1).min(bytes.len()));
        if start >= bytes.len() {
            return error("416 Requested range not satisfiable", "requestedRangeNotSatisfiable", "no");
        }
        let said = format!("{tag}Content-Range: bytes {start}-{}/{}\r\n", end - 1, bytes.len());
        Reply::new("206 Partial Content", &said, &bytes[start..end])
    }

    fn list(&self, query: &BTreeMap<&str, String>) -> Reply {
        let from = query.get("pageToken").or_else(|| query.get("startOffset")).cloned().unwrap_or_default();
        let max: usize = query.get("maxResults").map_or(1000, |max| max.parse().unwrap());
        let prefix = query.get("prefix").cloned().unwrap_or_default();
        let found: Vec<&String> = self
            .objects
            .range(from..)
            .map(|(name, _)| name)
            .filter(|name| name.starts_with(&prefix))
            .collect();
        // Fewer than asked for, as Google may do at any time.
        let page: Vec<Value> = found.iter().take(max.min(300)).map(|name| self.describe(name)).collect();
        let mut answer = json!({ "kind": "storage#objects" });
        if let Some(next) = found.get(page.len()) {
            answer["nextPageToken"] = next.as_str().into();
        }
        answer["items"] = page.into();
        ok(&answer)
    }
}

impl GcsServer {
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        Self { server: Scripted::start(move |asked| shared.lock().unwrap().answer(asked)), state }
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    pub fn set_defects(&self, defects: Defects) {
        self.state.lock().unwrap().defects = defects;
    }

    pub fn keys(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().cloned().collect()
    }

    pub fn stored(&self, name: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().objects.get(name).map(|(_, bytes)| bytes.clone())
    }

    pub fn plant(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.generation += 1;
        let generation = state.generation;
        state.objects.insert(name.into(), (generation, bytes.into()));
    }

    /// A credentials file, of somebody whom another identity provider knows: the kind that asks a server for each token.
    pub fn credentials(&self, dir: &Path, subject: Option<&str>) -> PathBuf {
        let token = dir.join("subject");
        private_file(&token, subject.unwrap_or(SUBJECT));
        let file = dir.join("credentials.json");
        let text = json!({
            "type": "external_account", "audience": "//iam.googleapis.com/x",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("http://127.0.0.1:{}/token", self.port()),
            "credential_source": { "file": token, "format": { "type": "text" } },
        });
        private_file(&file, &text.to_string());
        file
    }

    /// Settings for a bucket of this server, or of what stands before it.
    pub fn settings(&self, dir: &Path, port: u16) -> Settings {
        Settings {
            url: format!("gs://{BUCKET}/some/vault"),
            endpoint: Some(format!("http://127.0.0.1:{port}")),
            credentials_file: Some(self.credentials(dir, None)),
            ..Settings::default()
        }
    }
}
