//! A node's JSON-RPC with faults on order: slow, erring, standing still, or taking transactions and passing none on.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{Bytes, keccak256};
use serde_json::{Value, json};

/// What is wrong with the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Every answer takes so long.
    Slow(Duration),
    /// Of three requests one gets an error of JSON-RPC, of HTTP, or a connection that breaks off.
    Errs,
    /// The newest block stays what it was.
    Stands,
    /// Transactions are taken and thrown away.
    Swallows,
}

/// Passes requests on to a node, with faults. Lives as long as the test's process.
pub struct FaultyRpc {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    node: String,
    fault: Mutex<Fault>,
    /// Answers about the newest block from when the node began to stand still.
    frozen: Mutex<HashMap<String, Value>>,
    requests: AtomicUsize,
    swallowed: AtomicUsize,
}

impl FaultyRpc {
    /// In front of a node at a URL.
    pub fn before(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            node: url.trim_start_matches("http://").trim_end_matches('/').to_owned(),
            fault: Mutex::new(Fault::None),
            frozen: Mutex::default(),
            requests: AtomicUsize::new(0),
            swallowed: AtomicUsize::new(0),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { url: own, shared }
    }

    pub fn set(&self, fault: Fault) {
        self.shared.frozen.lock().unwrap().clear();
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Transactions that were taken and thrown away.
    pub fn swallowed(&self) -> usize {
        self.shared.swallowed.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut writer = stream;
        loop {
            let body = read_body(&mut reader)?;
            let (status, answer) = self.answer(&body)?;
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&answer)).ok()?;
        }
    }

    /// Status and body; none to break the connection off.
    fn answer(&self, body: &[u8]) -> Option<(&'static str, Vec<u8>)> {
        let request: Value = serde_json::from_slice(body).ok()?;
        let fault = *self.fault.lock().unwrap();
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::Slow(how) => std::thread::sleep(how),
            Fault::Errs => match number % 9 {
                0 => return None,
                3 => return Some(("503 Service Unavailable", b"come again".to_vec())),
                6 => {
                    let error = json!({ "code": -32603, "message": "Internal error" });
                    let answer = json!({ "jsonrpc": "2.0", "id": request["id"], "error": error });
                    return Some(("200 OK", answer.to_string().into_bytes()));
                }
                _ => {}
            },
            Fault::Swallows if request["method"] == "eth_sendRawTransaction" => {
                let raw: Bytes = request["params"][0].as_str()?.parse().ok()?;
                self.swallowed.fetch_add(1, Ordering::SeqCst);
                let answer = json!({ "jsonrpc": "2.0", "id": request["id"], "result": keccak256(raw) });
                return Some(("200 OK", answer.to_string().into_bytes()));
            }
            Fault::Stands if is_about_the_newest(&request) => return self.frozen_answer(&request),
            Fault::None | Fault::Swallows | Fault::Stands => {}
        }
        Some(("200 OK", self.ask(body)?))
    }

    fn frozen_answer(&self, request: &Value) -> Option<(&'static str, Vec<u8>)> {
        let mut frozen = self.frozen.lock().unwrap();
        let key = format!("{} {}", request["method"], request["params"]);
        if !frozen.contains_key(&key) {
            let answer: Value = serde_json::from_slice(&self.ask(request.to_string().as_bytes())?).ok()?;
            frozen.insert(key.clone(), answer);
        }
        let mut answer = frozen[&key].clone();
        answer["id"] = request["id"].clone();
        Some(("200 OK", answer.to_string().into_bytes()))
    }

    /// What the node answers. It ends its answers by closing, because HTTP/1.0 has nothing else.
    fn ask(&self, body: &[u8]) -> Option<Vec<u8>> {
        let mut node = TcpStream::connect(&self.node).ok()?;
        let head = format!(
            "POST / HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.node,
            body.len()
        );
        node.write_all(head.as_bytes()).and_then(|()| node.write_all(body)).ok()?;
        let mut answer = Vec::new();
        node.read_to_end(&mut answer).ok()?;
        let begin = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        Some(answer.split_off(begin))
    }
}

fn is_about_the_newest(request: &Value) -> bool {
    match request["method"].as_str() {
        Some("eth_blockNumber") => true,
        Some("eth_getBlockByNumber") => request["params"][0] == "latest",
        _ => false,
    }
}

fn read_body(reader: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}
