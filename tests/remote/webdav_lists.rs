//! WebDAV's listings: long ones, slow ones, and those of servers that lie.

use std::sync::atomic::Ordering;
use std::time::Duration;

use strongroom::remote::{self, ErrorKind, OpenOptions, Times};

use super::scripted::{Reply, Scripted};
use super::webdav::{open, scripted};
use super::{names, once};

/// A collection with these children, as PROPFIND tells it.
pub fn multistatus(children: &[&str]) -> Vec<u8> {
    let mut text = collection("/vault/");
    for href in children {
        text += &format!(
            "<D:response><D:href>{href}</D:href><D:propstat><D:prop><D:resourcetype/><D:getcontentlength>5</D:getcontentlength>\
             <D:getlastmodified>Sat, 21 Nov 2026 10:00:00 GMT</D:getlastmodified></D:prop><D:status>HTTP/1.1 200 OK</D:status>\
             </D:propstat></D:response>"
        );
    }
    multistatus_of(&text).into_bytes()
}

fn multistatus_of(responses: &str) -> String {
    format!("<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\">{responses}</D:multistatus>")
}

pub fn collection(href: &str) -> String {
    format!(
        "<D:response><D:href>{href}</D:href><D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype>\
         <D:getlastmodified>Sat, 21 Nov 2026 10:00:00 GMT</D:getlastmodified></D:prop><D:status>HTTP/1.1 200 OK</D:status>\
         </D:propstat></D:response>"
    )
}

/// A server whose collection is fine and whose listing is this.
fn lists(listing: impl Fn() -> Reply + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |asked| match asked.method.as_str() {
        "OPTIONS" => Reply::new("200 OK", "DAV: 1,2\r\n", b""),
        // The first one looks whether the collection is there.
        _ if asked.n == 0 => Reply::new("207 Multi-Status", "", &multistatus(&[])),
        _ => listing(),
    })
}

#[test]
fn hostile_listings_are_refused_and_bounded() {
    let listed = |server: &Scripted| {
        remote::list(open(&scripted(server)).as_ref(), "", &mut |_| Ok(())).map_err(|e| (e.kind, e.message))
    };
    let fine = lists(|| Reply::new("207 Multi-Status", "", &multistatus(&["/vault/vault.json"])));
    assert_eq!(listed(&fine), Ok(()));
    assert_eq!(names(open(&scripted(&fine)).as_ref(), ""), ["vault.json"]);
    // More than OpenDAL can hold of one file.
    let long = format!("/vault/{}", "x".repeat(70_000));
    for children in [
        &["/elsewhere/x"][..],
        &[long.as_str()],
        &["/"],
        &[""],
        &["x"],
        &["/vault/../x"],
        &["/vault/a/b"],
        &["http://127.0.0.1/vault/"],
        &["http://127.0.0.1/vault/x"],
        &["/vaul\u{e9}"],
        &["%2f"],
        &["/vault/%ff"],
    ] {
        let children: Vec<String> = children.iter().map(ToString::to_string).collect();
        let text: Vec<&str> = children.iter().map(String::as_str).collect();
        let body = multistatus(&text);
        let server = lists(move || Reply::new("207 Multi-Status", "", &body));
        let ended = listed(&server);
        // Names that can't be ours are passed over, as in every directory.
        let good = match children[0].as_str() {
            "/vault/%ff" => ended == Ok(()),
            // Servers may write whole URLs, and as they know themselves.
            name if name.starts_with("http:") => ended == Ok(()),
            _ => matches!(&ended, Err((ErrorKind::Corrupt, _))),
        };
        assert!(good, "{children:?}: {ended:?}");
    }
    // What is no listing, or not all of one, must not pass for an empty place.
    let fine = String::from_utf8(multistatus(&["/vault/vault.json"])).unwrap();
    let bare = multistatus_of(&"<D:response><D:href>/vault/x</D:href></D:response>".repeat(2));
    for body in [
        "",
        "no XML",
        "<html></html>",
        "<D:multistatus xmlns:D=\"DAV:\"><D:response>",
        "<D:multistatus xmlns:D=\"DAV:\"/>",
        "<a><b></a></b>",
        &fine[..fine.len() - 1],
        &fine[..fine.len() / 2],
        &fine.replace(&collection("/vault/"), ""),
        &fine.replace("<D:getcontentlength>5</D:getcontentlength>", ""),
        &fine.replace("HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found"),
        &bare,
    ] {
        let text = body.to_string();
        let server = lists(move || Reply::new("207 Multi-Status", "", text.as_bytes()));
        let ended = listed(&server);
        assert!(matches!(&ended, Err((ErrorKind::Corrupt, _))), "{body}: {ended:?}");
    }
    // Nor what the connection did not bring.
    let server = lists(move || {
        let head = format!("HTTP/1.1 207 Multi-Status\r\nContent-Length: {}\r\n\r\n", fine.len());
        Reply::Bytes([head.as_bytes(), &fine.as_bytes()[..fine.len() / 2]].concat())
    });
    assert_eq!(listed(&server).unwrap_err().0, ErrorKind::Unavailable);
    for (status, kind) in [("403 Forbidden", ErrorKind::Denied), ("404 Not Found", ErrorKind::Misconfigured)]
    {
        let server = lists(move || Reply::new(status, "", b""));
        assert_eq!(listed(&server).unwrap_err().0, kind, "{status}");
    }
    // A member that may not be looked at is not left out; one that has just been removed is.
    for (status, ended) in [("403 Forbidden", Some(ErrorKind::Denied)), ("404 Not Found", None)] {
        let one = format!(
            "<D:response><D:href>/vault/x</D:href><D:status>HTTP/1.1 {status}</D:status></D:response>"
        );
        let body = multistatus_of(&(collection("/vault/") + &one));
        let server = lists(move || Reply::new("207 Multi-Status", "", body.as_bytes()));
        assert_eq!(listed(&server).err().map(|error| error.0), ended, "{status}");
    }
}

/// More names than anybody can sort out, and answers without end: what was read is not held, and it says what to do.
#[test]
fn heavy_a_directory_without_end_is_given_up() {
    let again = "<response><href>/vault/.</href><propstat><status>H 200</status></propstat></response>";
    for (again, kind) in [(again, ErrorKind::Unsupported), ("<response>", ErrorKind::Corrupt)] {
        let again = again.repeat(1000);
        let server = lists(move || {
            let head = "HTTP/1.1 207 Multi-Status\r\nConnection: close\r\n\r\n<multistatus>";
            Reply::Endless(head.into(), again.clone().into_bytes())
        });
        let error =
            remote::list(open(&scripted(&server)).as_ref(), "", &mut |_| Ok(())).expect_err("it has no end");
        assert_eq!(error.kind, kind, "{error}");
        let says = error.message.contains("remove from it what is no part of the vault");
        assert_eq!(says, kind == ErrorKind::Unsupported, "{error}");
        assert!(server.sent.load(Ordering::SeqCst) < 160 << 20, "{}", server.sent.load(Ordering::SeqCst));
    }
}

/// Tens of thousands of snapshots, or of what somebody planted there: they are all read, once, and not page by page.
#[test]
fn a_directory_of_very_many_names_is_read_once() {
    let many: Vec<String> = (0..40_000).map(|n| format!("/vault/snapshots/{n:08}")).collect();
    let text: Vec<&str> = many.iter().map(String::as_str).collect();
    // Answers to "all properties" are as long as this.
    let padding = format!("<D:x>{}</D:x></D:prop>", "x".repeat(600));
    let body = String::from_utf8(multistatus(&text)).unwrap().replace("</D:prop>", &padding);
    let body =
        body.replace(&collection("/vault/").replace("</D:prop>", &padding), &collection("/vault/snapshots/"));
    assert!(body.len() > 33 << 20, "{}", body.len());
    let body = body.into_bytes();
    let server = lists(move || Reply::new("207 Multi-Status", "", &body));
    let remote = open(&scripted(&server));
    let found = names(remote.as_ref(), "snapshots/");
    assert!(found.iter().zip(&many).all(|(found, path)| path.ends_with(found.as_str())));
    assert_eq!(found.len(), many.len());
    // One looked at the collection, one asked what the server can do.
    assert_eq!(server.requests.load(Ordering::SeqCst), 3);
    // Another listing is another question.
    assert_eq!(names(remote.as_ref(), "snapshots/").len(), many.len());
    assert_eq!(server.requests.load(Ordering::SeqCst), 4);
}

/// A long listing takes its time; only one that does not come along is given up.
#[test]
fn a_listing_may_take_longer_than_an_answer() {
    let lists_slowly = |first: usize, slowest: u64| {
        let children: Vec<String> = (0..100).map(|n| format!("/vault/{n:03}")).collect();
        let text: Vec<&str> = children.iter().map(String::as_str).collect();
        let body = multistatus(&text);
        let server = lists(move || {
            let head = format!("HTTP/1.1 207 Multi-Status\r\nContent-Length: {}\r\n\r\n", body.len());
            let start = [head.as_bytes(), &body[..first]].concat();
            Reply::Pause(start, Duration::from_millis(2500), body[first..].to_vec())
        });
        let times = Times { answer: Duration::from_millis(1500), slowest };
        let remote = remote::open(&scripted(&server), &OpenOptions { times, ..once() }).unwrap();
        let mut count = 0;
        remote::list(remote.as_ref(), "", &mut |_| {
            count += 1;
            Ok(())
        })
        .map(|()| count)
        .map_err(|e| (e.kind, e.message.contains("too slowly")))
    };
    assert_eq!(lists_slowly(5000, 1), Ok(100));
    assert_eq!(lists_slowly(500, 16 << 10), Err((ErrorKind::Timeout, true)));
}
