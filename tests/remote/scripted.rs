//! An HTTP server that answers what a test says, or stands before a real one and gets in the way.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A request that has come in.
pub struct Asked {
    /// How many came before it.
    pub n: u64,
    pub method: String,
    /// Path and query.
    pub path: String,
    head: Vec<u8>,
    pub body: Vec<u8>,
}

impl Asked {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.head);
        text.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_string())
        })
    }
}

/// What is answered.
pub enum Reply {
    /// These bytes, head and body, and then the connection is closed.
    Bytes(Vec<u8>),
    /// These bytes, and then the others again and again: at most a quarter of a GiB.
    Endless(Vec<u8>, Vec<u8>),
    /// These bytes, and after this time the others.
    Pause(Vec<u8>, Duration, Vec<u8>),
    /// Nothing at all.
    Stall,
    /// What the server at this port answers.
    Forward(u16),
    /// The same, with one text in the head of the request replaced by another.
    ForwardAs(u16, String, String),
    /// The first half of it.
    Half(u16),
}

impl Reply {
    /// An answer with this status, headers (lines, each with its end) and body.
    pub fn new(status: &str, headers: &str, body: &[u8]) -> Self {
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        Self::Bytes(bytes)
    }
}

/// A running server; it ends with this value.
pub struct Scripted {
    pub port: u16,
    /// Requests that came, and bytes that were sent.
    pub requests: Arc<AtomicU64>,
    pub sent: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

const ENDLESS_MAX: u64 = 256 << 20;

impl Scripted {
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, sent): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let ended = Arc::new(AtomicBool::new(false));
        let answer = Arc::new(answer);
        let server = Self { port, requests: requests.clone(), sent: sent.clone(), ended: ended.clone() };
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(socket), answer) = (socket, Arc::clone(&answer)) else { continue };
                let (requests, sent, ended) = (requests.clone(), sent.clone(), ended.clone());
                // A client that goes away in the middle is what many tests are about.
                std::thread::spawn(move || drop(serve(socket, answer.as_ref(), &requests, &sent, &ended)));
            }
        });
        server
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn serve(
    mut socket: TcpStream,
    answer: &dyn Fn(&Asked) -> Reply,
    requests: &AtomicU64,
    sent: &AtomicU64,
    ended: &AtomicBool,
) -> std::io::Result<()> {
    let Some(mut asked) = read_request(&mut socket)? else { return Ok(()) };
    asked.n = requests.fetch_add(1, Ordering::SeqCst);
    match answer(&asked) {
        Reply::Bytes(bytes) => {
            socket.write_all(&bytes)?;
            sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        }
        Reply::Endless(start, again) => {
            socket.write_all(&start)?;
            while sent.load(Ordering::SeqCst) < ENDLESS_MAX {
                socket.write_all(&again)?;
                sent.fetch_add(again.len() as u64, Ordering::SeqCst);
            }
        }
        Reply::Pause(start, time, rest) => {
            socket.write_all(&start)?;
            std::thread::sleep(time);
            socket.write_all(&rest)?;
        }
        Reply::Stall => {
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let mut byte = [0];
            // Until the client gives up.
            while !ended.load(Ordering::SeqCst) && !matches!(socket.read(&mut byte), Ok(0)) {}
        }
        Reply::Forward(port) => socket.write_all(&forward(&asked, port)?)?,
        Reply::ForwardAs(port, from, to) => {
            asked.head = String::from_utf8_lossy(&asked.head).replacen(&from, &to, 1).into_bytes();
            socket.write_all(&forward(&asked, port)?)?;
        }
        Reply::Half(port) => {
            let whole = forward(&asked, port)?;
            socket.write_all(&whole[..whole.len() / 2])?;
        }
    }
    socket.shutdown(Shutdown::Write)
}

fn forward(asked: &Asked, port: u16) -> std::io::Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(("127.0.0.1", port))?;
    // One request a connection.
    let end = asked.head.len() - 2;
    upstream.write_all(&asked.head[..end])?;
    upstream.write_all(b"Connection: close\r\n\r\n")?;
    upstream.write_all(&asked.body)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    // The client must not use this connection again either.
    let at = answer.windows(2).position(|pair| pair == b"\r\n").unwrap_or(0);
    answer.splice(at..at, b"\r\nConnection: close".iter().copied());
    Ok(answer)
}

fn read_request(socket: &mut TcpStream) -> std::io::Result<Option<Asked>> {
    let mut bytes = Vec::new();
    let mut buf = [0; 64 << 10];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        match socket.read(&mut buf)? {
            0 => return Ok(None),
            n => bytes.extend_from_slice(&buf[..n]),
        }
    };
    let mut body = bytes.split_off(end);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let len = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    while body.len() < len.unwrap_or(0) {
        match socket.read(&mut buf)? {
            0 => return Ok(None),
            n => body.extend_from_slice(&buf[..n]),
        }
    }
    let mut words = text.split(' ').map(String::from);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Some(Asked { n: 0, method, path, head: bytes, body }))
}
