//! A small HTTP/1.1 client that can misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::{Bridge, PATIENCE};

/// Where every resource is.
pub const PREFIX: &str = "/api/v1";

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {}: {}", self.status, String::from_utf8_lossy(&self.body)))
    }
}

/// Where the bridge serves its API.
pub fn address(bridge: &Bridge) -> SocketAddr {
    bridge.ready("http=").parse().unwrap()
}

pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request and reads the answer to its end.
pub fn send(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    let mut stream = connect(to);
    stream.write_all(text.as_bytes()).unwrap();
    // The server may have answered and closed before it read all.
    let _ = stream.write_all(body);
    read_answer(stream)
}

/// Reads an answer to the end of the connection, or to the end of its head when it never ends.
pub fn read_answer(stream: TcpStream) -> Answer {
    let mut reader = BufReader::new(stream);
    let (status, headers) = read_head(&mut reader).expect("an answer");
    let mut answer = Answer { status, headers, body: Vec::new() };
    if answer.header("content-type") != Some("text/event-stream") {
        let _ = reader.read_to_end(&mut answer.body);
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = joined(&answer.body);
        }
    }
    answer
}

/// What is in chunks (RFC 9112 7.1), which must be whole.
fn joined(mut chunks: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = chunks.windows(2).position(|pair| pair == b"\r\n").expect("the length of a chunk");
        let length = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).unwrap(), 16).expect("a length");
        let content = &chunks[end + 2..];
        if length == 0 {
            return whole;
        }
        whole.extend_from_slice(&content[..length]);
        chunks = &content[length + 2..];
    }
}

/// Status and headers, their names in lower case; none when the connection ends first.
pub fn read_head(reader: &mut impl BufRead) -> Option<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_lowercase(), value.trim().to_owned())),
            None => return Some((status, headers)),
        }
    }
}

/// A caller with a token.
#[derive(Debug, Clone)]
pub struct Client {
    pub to: SocketAddr,
    pub token: Option<String>,
    /// What a proxy says of the caller's address.
    pub from: Option<String>,
}

impl Client {
    /// Makes a token by the command line.
    pub fn with_token(bridge: &Bridge, arguments: &[&str]) -> Self {
        let made = bridge.json(&[&["token", "new", "--name", "test"], arguments].concat());
        Self { to: address(bridge), token: Some(made["token"].as_str().unwrap().to_owned()), from: None }
    }

    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut headers: Vec<(&str, &str)> = bearer.iter().map(|b| ("Authorization", b.as_str())).collect();
        headers.extend(self.from.iter().map(|from| ("X-Forwarded-For", from.as_str())));
        if body.is_some() {
            headers.push(("Content-Type", "application/json"));
        }
        let bytes = body.map(Value::to_string).unwrap_or_default();
        send(self.to, method, &format!("{PREFIX}{path}"), &headers, bytes.as_bytes())
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, Some(body))
    }

    /// Listens to events.
    pub fn listen(&self) -> Listener {
        let mut stream = connect(self.to);
        let token = self.token.as_deref().unwrap_or_default();
        let head = format!("GET {PREFIX}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut listener = Listener { stream, text: String::new() };
        listener.wait_for(|text| text.contains("listening"));
        assert!(listener.text.starts_with("HTTP/1.1 200"), "{}", listener.text);
        listener
    }
}

/// A stream of events, as text.
pub struct Listener {
    stream: TcpStream,
    pub text: String,
}

impl Listener {
    /// Reads until what came satisfies.
    pub fn wait_for(&mut self, satisfied: impl Fn(&str) -> bool) {
        let begun = std::time::Instant::now();
        let mut bytes = [0; 4096];
        while !satisfied(&self.text) {
            assert!(begun.elapsed() < PATIENCE, "waited in vain; came: {}", self.text);
            match self.stream.read(&mut bytes) {
                Ok(0) => panic!("the stream ended; came: {}", self.text),
                Ok(count) => self.text.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(error) => panic!("{error}; came: {}", self.text),
            }
        }
    }
}
