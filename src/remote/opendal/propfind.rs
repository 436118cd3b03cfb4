//! What a WebDAV server answers when it is asked what is in a collection, read while it comes: a directory may have a million
//! entries, and the answer a few hundred bytes for each.
//!
//! Elements are told apart by their local names: only what was asked for comes back, and servers choose prefixes as they like.

use std::io::{self, BufRead, Read};

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;

use super::super::{ErrorKind, RemoteError, Result};
use super::errors::printable;

/// The question, about no more than what is used: servers send less, and don't look for what may be expensive.
pub(super) const QUESTION: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<D:propfind xmlns:D=\"DAV:\"><D:prop>\
    <D:resourcetype/><D:getcontentlength/><D:getlastmodified/></D:prop></D:propfind>";

/// One tag, comment or text has at most about this, and so has what an element says in several of them.
const PART_MAX: usize = 64 << 10;
/// Elements stand in at most so many others.
const DEPTH_MAX: usize = 64;

/// What is said of one member of a collection, or of the collection itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Member {
    /// Its URL, or the path of it, as the server writes it.
    pub(super) href: String,
    /// Why the server gives no properties; 404: there is no such member.
    pub(super) status: Option<u16>,
    /// `None`: the server gave none.
    pub(super) found: Option<Properties>,
}

/// Those properties that a server has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Properties {
    pub(super) is_dir: bool,
    pub(super) len: Option<u64>,
    /// As HTTP writes dates.
    pub(super) modified: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Multistatus,
    Response,
    Href,
    Status,
    Propstat,
    Prop,
    Type,
    Collection,
    Length,
    Modified,
    Other,
}

impl Tag {
    fn of(name: &str) -> Self {
        match name {
            "multistatus" => Self::Multistatus,
            "response" => Self::Response,
            "href" => Self::Href,
            "status" => Self::Status,
            "propstat" => Self::Propstat,
            "prop" => Self::Prop,
            "resourcetype" => Self::Type,
            "collection" => Self::Collection,
            "getcontentlength" => Self::Length,
            "getlastmodified" => Self::Modified,
            _ => Self::Other,
        }
    }

    fn has_text(self) -> bool {
        matches!(self, Self::Href | Self::Status | Self::Length | Self::Modified)
    }
}

/// Shows all members that an answer tells of, as they come.
///
/// # Errors
/// `Corrupt`: it is no such answer, or not all of one. `Unavailable`: it could not be read. What `visit` says.
pub(super) fn read(
    what: &str,
    answer: impl BufRead,
    visit: &mut dyn FnMut(Member) -> Result<()>,
) -> Result<()> {
    let nonsense = |text: &str| {
        let text = format!("{what}: the endpoint's answer makes no sense ({})", printable(text));
        RemoteError::new(ErrorKind::Corrupt, text)
    };
    let mut reader = Reader::from_reader(Bounded { inner: answer, left: PART_MAX });
    let mut state = State::default();
    let mut buf = Vec::new();
    loop {
        buf.clear();
        reader.get_mut().left = PART_MAX;
        let event = match reader.read_event_into(&mut buf) {
            Ok(event) => event,
            Err(quick_xml::Error::Io(e)) if e.kind() != io::ErrorKind::InvalidData => {
                return Err(RemoteError::new(ErrorKind::Unavailable, format!("{what}: {e}")));
            }
            Err(e) => return Err(nonsense(&e.to_string())),
        };
        match event {
            Event::Start(tag) => state.begin(tag.local_name().into_inner()).map_err(nonsense)?,
            Event::Empty(tag) => {
                state.begin(tag.local_name().into_inner()).map_err(nonsense)?;
                state.end(visit)?;
            }
            // The reader has looked whether it ends what it should.
            Event::End(_) => state.end(visit)?,
            Event::Text(text) => state.text(&text.xml10_content()).map_err(nonsense)?,
            Event::CData(text) => state.text(&text.xml10_content()).map_err(nonsense)?,
            Event::GeneralRef(name) => {
                let mut one = [0; 4];
                let text = match name.resolve_char_ref() {
                    Ok(Some(c)) => Some(&*c.encode_utf8(&mut one)),
                    Ok(None) => resolve_predefined_entity(&name.xml10_content()),
                    Err(_) => None,
                };
                state.text(text.ok_or_else(|| nonsense("an unknown entity"))?).map_err(nonsense)?;
            }
            // It could say what entities stand for.
            Event::DocType(_) => return Err(nonsense("a document type")),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof if state.is_whole => return Ok(()),
            Event::Eof => return Err(nonsense("it is no multistatus, or not all of one")),
        }
    }
}

/// Where in an answer we are, and what is known of the member there.
#[derive(Default)]
struct State {
    path: Vec<Tag>,
    text: String,
    member: Member,
    /// What stands in this propstat, which may be about properties that there are not.
    propstat: Properties,
    propstat_status: Option<u16>,
    is_whole: bool,
}

impl State {
    fn begin(&mut self, name: &str) -> std::result::Result<(), &'static str> {
        let tag = Tag::of(name);
        if self.path.is_empty() && (self.is_whole || tag != Tag::Multistatus) {
            return Err("it is no multistatus");
        }
        if self.path.len() == DEPTH_MAX {
            return Err("elements in elements without end");
        }
        self.path.push(tag);
        self.text.clear();
        match self.path[..] {
            [Tag::Multistatus, Tag::Response] => self.member = Member::default(),
            [Tag::Multistatus, Tag::Response, Tag::Propstat] => {
                (self.propstat, self.propstat_status) = (Properties::default(), None);
            }
            _ => {}
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> std::result::Result<(), &'static str> {
        if self.path.last().is_some_and(|tag| tag.has_text()) {
            if self.text.len() + text.len() > PART_MAX {
                return Err("names without end");
            }
            self.text.push_str(text);
        } else if self.path.is_empty() && !text.trim().is_empty() {
            return Err("it is no XML");
        }
        Ok(())
    }

    fn end(&mut self, visit: &mut dyn FnMut(Member) -> Result<()>) -> Result<()> {
        use Tag::{Collection, Href, Length, Modified, Multistatus, Prop, Propstat, Response, Status, Type};
        let text = self.text.trim();
        match self.path[..] {
            [Multistatus, Response, Href] => self.member.href = text.into(),
            [Multistatus, Response, Status] => self.member.status = status_of(text),
            [Multistatus, Response, Propstat, Status] => self.propstat_status = status_of(text),
            [Multistatus, Response, Propstat, Prop, Length] => self.propstat.len = text.parse().ok(),
            [Multistatus, Response, Propstat, Prop, Modified] => self.propstat.modified = Some(text.into()),
            [Multistatus, Response, Propstat, Prop, Type, Collection] => self.propstat.is_dir = true,
            [Multistatus, Response, Propstat] => {
                // What the server does not have stands in another one, with another status.
                if self.propstat_status.is_some_and(|status| (200..300).contains(&status)) {
                    let found = self.member.found.get_or_insert_default();
                    let more = std::mem::take(&mut self.propstat);
                    found.is_dir |= more.is_dir;
                    found.len = more.len.or(found.len);
                    found.modified = more.modified.or(found.modified.take());
                } else if self.propstat_status != Some(404) && self.member.status.is_none() {
                    // 404 is about the properties.
                    self.member.status = self.propstat_status;
                }
            }
            [Multistatus, Response] => visit(std::mem::take(&mut self.member))?,
            [Multistatus] => self.is_whole = true,
            _ => {}
        }
        self.path.pop();
        self.text.clear();
        Ok(())
    }
}

/// `HTTP/1.1 200 OK`
fn status_of(line: &str) -> Option<u16> {
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The name that a URL, or a path, means in the directory at `dir`; empty: that directory. `None`: something else.
pub(super) fn name_in(dir: &str, href: &str) -> Option<String> {
    // Servers may name themselves as they like.
    let path = match href.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => href,
    };
    let path = opendal::raw::percent_decode_path(path);
    let rest = path.strip_prefix('/')?;
    let dir = dir.trim_end_matches('/');
    let name = match rest.strip_prefix(dir)? {
        "" | "/" => return Some(String::new()),
        below if dir.is_empty() => below,
        below => below.strip_prefix('/')?,
    };
    let name = name.strip_suffix('/').unwrap_or(name);
    (!name.is_empty() && !name.contains('/')).then(|| name.to_string())
}

/// A reader that gives up instead of filling our memory with one part of a document.
struct Bounded<R> {
    inner: R,
    /// What this part may still have.
    left: usize,
}

impl<R: BufRead> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Bounded<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "tags or texts without end"));
        }
        let piece = self.inner.fill_buf()?;
        Ok(&piece[..piece.len().min(self.left)])
    }

    fn consume(&mut self, n: usize) {
        self.left = self.left.saturating_sub(n);
        self.inner.consume(n);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn members(answer: &[u8]) -> Result<Vec<Member>> {
        let mut found = Vec::new();
        // In small pieces, as they may come from a network.
        let answer = io::BufReader::with_capacity(7, answer);
        read("listing", answer, &mut |member| {
            found.push(member);
            Ok(())
        })?;
        Ok(found)
    }

    fn found(is_dir: bool, len: Option<u64>, modified: Option<&str>) -> Option<Properties> {
        Some(Properties { is_dir, len, modified: modified.map(String::from) })
    }

    /// As Apache answers: a namespace for each property, what it does not have in a propstat of its own.
    #[test]
    fn collections_and_files_of_apache() {
        let answer = br#"<?xml version="1.0" encoding="utf-8"?>
<D:multistatus xmlns:D="DAV:" xmlns:ns0="DAV:">
<D:response xmlns:lp1="DAV:" xmlns:lp2="http://apache.org/dav/props/">
<D:href>/vault/</D:href>
<D:propstat>
<D:prop>
<lp1:resourcetype><D:collection/></lp1:resourcetype>
<lp1:getlastmodified>Sat, 21 Nov 2026 10:00:00 GMT</lp1:getlastmodified>
</D:prop>
<D:status>HTTP/1.1 200 OK</D:status>
</D:propstat>
<D:propstat>
<D:prop>
<D:getcontentlength/></D:prop>
<D:status>HTTP/1.1 404 Not Found</D:status>
</D:propstat>
</D:response>
<D:response xmlns:lp1="DAV:">
<D:href>/vault/a&amp;b&#x21;%20c</D:href>
<D:propstat><D:prop><lp1:resourcetype/><lp1:getcontentlength>17</lp1:getcontentlength></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat>
</D:response>
</D:multistatus>
"#;
        let when = Some("Sat, 21 Nov 2026 10:00:00 GMT");
        let [dir, file] = &members(answer).unwrap()[..] else { panic!() };
        assert_eq!((dir.href.as_str(), &dir.found), ("/vault/", &found(true, None, when)));
        assert_eq!((file.href.as_str(), &file.found), ("/vault/a&b!%20c", &found(false, Some(17), None)));
    }

    /// Default namespaces, CDATA, comments, foreign elements: what counts is where something stands.
    #[test]
    fn other_servers_write_it_in_other_ways() {
        let answer = b"<multistatus xmlns='DAV:'><!-- <response> --><?x?><sync-token>http://x</sync-token><response>\
            <propstat><status>HTTP/1.1 200 OK</status><prop><resourcetype/></prop></propstat>\
            <propstat><prop><getcontentlength> 5 </getcontentlength><x><getcontentlength>6</getcontentlength></x></prop>\
            <status>HTTP/2 200</status></propstat><propstat><prop><getcontentlength>7</getcontentlength></prop></propstat>\
            <href><![CDATA[/a&b]]></href></response><response><href>/c</href><status>HTTP/1.1 403 Forbidden</status>\
            </response><response><href>/d</href><propstat><prop/><status>HTTP/1.1 404 Not Found</status></propstat></response>\
            </multistatus>\n\n";
        let [file, refused, bare] = &members(answer).unwrap()[..] else { panic!() };
        assert_eq!((bare.href.as_str(), bare.status, &bare.found), ("/d", None, &None), "it is not gone");
        assert_eq!((file.href.as_str(), &file.found), ("/a&b", &found(false, Some(5), None)));
        assert_eq!((refused.href.as_str(), refused.status, &refused.found), ("/c", Some(403), &None));
    }

    #[test]
    fn what_is_no_answer_or_not_all_of_one_is_refused() {
        let one = "<multistatus><response><href>/x</href></response>";
        for text in [
            "",
            "no XML",
            "<html></html>",
            "<multistatus>",
            one,
            "<multistatus><response></multistatus>",
            "<multistatus/>x",
            "<multistatus/><multistatus/>",
            "<a><b></a></b>",
            "<!DOCTYPE a [<!ENTITY x 'y'>]><multistatus/>",
            "<multistatus><response><href>&x;</href></response></multistatus>",
            "<multistatus><response><href>&#0;&#x110000;</href></response></multistatus>",
            "<multistatus><response><href>a&b</href></response></multistatus>",
        ] {
            assert_eq!(members(text.as_bytes()).unwrap_err().kind, ErrorKind::Corrupt, "{text}");
        }
        assert_eq!(members(b"<multistatus><a>\xff</a></multistatus>").unwrap_err().kind, ErrorKind::Corrupt);
        assert_eq!(members(format!("{one}</multistatus>").as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn what_urls_mean_in_a_directory() {
        for (dir, href, name) in [
            ("vault/packs/", "/vault/packs/", Some("")),
            ("vault/packs/", "/vault/packs", Some("")),
            ("vault/packs/", "/vault/packs/ab", Some("ab")),
            ("vault/packs/", "/vault/packs/ab/", Some("ab")),
            ("vault/packs/", "/v%61ult/packs/a%20b", Some("a b")),
            ("vault/packs/", "http://other.example:1/vault/packs/ab", Some("ab")),
            ("vault/packs/", "http://other.example", None),
            ("vault/packs/", "/vault/packs/ab/c", None),
            ("vault/packs/", "/vault/packs/ab%2Fc", None),
            ("vault/packs/", "/vault/packs//", None),
            ("vault/packs/", "/vault/packs2", None),
            ("vault/packs/", "/vault/", None),
            ("vault/packs/", "vault/packs/ab", None),
            ("vault/packs/", "", None),
            ("", "/", Some("")),
            ("", "", None),
            ("", "/ab/", Some("ab")),
            ("", "///", None),
            ("", "/a/b", None),
        ] {
            assert_eq!(name_in(dir, href).as_deref(), name, "{dir} {href}");
        }
    }

    /// Any of these repeated for ever must not fill our memory.
    #[test]
    fn nothing_is_held_that_has_no_end() {
        for (start, again) in [
            ("<multistatus>", "<a>"),
            ("<multistatus>", "x"),
            ("<multistatus><", "x"),
            ("<multistatus><!--", "x"),
            ("<multistatus><response><href>", "x"),
            ("<multistatus><response><href>", "x<!---->"),
            ("<multistatus><response><href>", "&amp;"),
            ("<multistatus><response><href>&", "x"),
        ] {
            let endless = io::Read::chain(start.as_bytes(), Again(again.as_bytes(), 0, 64 << 20));
            let error = read("listing", io::BufReader::new(endless), &mut |_| Ok(())).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{start}{again}: {error}");
            assert!(!error.message.contains("not all of one"), "{start}{again}: {error}");
        }
    }

    /// The same bytes again and again.
    struct Again(&'static [u8], usize, usize);

    impl Read for Again {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = buf.len().min(self.2);
            for byte in &mut buf[..n] {
                *byte = self.0[self.1 % self.0.len()];
                self.1 += 1;
            }
            self.2 -= n;
            Ok(n)
        }
    }

    #[test]
    fn failures_to_read_and_of_who_looks_are_passed_on() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("it broke"))
            }
        }
        let broken = io::BufReader::new(io::Read::chain(&b"<multistatus>"[..], Broken));
        let error = read("listing", broken, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error, RemoteError::new(ErrorKind::Unavailable, "listing: it broke"));
        let answer = b"<multistatus><response/><response/></multistatus>";
        let mut seen = 0;
        let error = read("listing", &answer[..], &mut |_| {
            seen += 1;
            Err(RemoteError::new(ErrorKind::Full, "enough"))
        });
        assert_eq!((error.unwrap_err().kind, seen), (ErrorKind::Full, 1));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            parts in prop::collection::vec(prop::sample::select(vec![
                "<multistatus>", "</multistatus>", "<response>", "</response>", "<href>", "</href>", "<propstat>", "</propstat>",
                "<prop>", "</prop>", "<status>", "HTTP/1.1 200 OK", "</status>", "<getcontentlength>", "5", "</getcontentlength>",
                "<collection/>", "&amp;", "&#65;", "&", "<", ">", "/", "\"", "'", "<![CDATA[", "]]>", "<!--", "-->", "\u{e9}", " ",
            ]), 0..40),
            junk in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let text = [parts.concat().as_bytes(), &junk].concat();
            if let Err(error) = members(&text) {
                prop_assert_eq!(error.kind, ErrorKind::Corrupt);
            }
        }
    }
}
