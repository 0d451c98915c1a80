//! A node's JSON-RPC with faults on order: slow, erring, standing still, or taking transactions and passing none or not all on; and a place where
//! a request is stopped on its way, so that whoever asked can be killed just there.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use alloy::primitives::{Bytes, keccak256};
use serde_json::{Value, json};

use crate::PATIENCE;

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
    /// Of three transactions the first is taken and thrown away.
    SwallowsSome,
}

/// Where a request is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The node never gets it.
    Before,
    /// The node has answered, and nobody gets the answer.
    After,
}

/// A request that is to be stopped. Whoever sent it waits until it is released, and gets no answer then either.
pub struct Step {
    method: String,
    /// How many requests of the method come before it.
    before: AtomicUsize,
    moment: Moment,
    place: Mutex<Place>,
    changed: Condvar,
}

#[derive(Default)]
struct Place {
    stopped: Option<Value>,
    released: bool,
}

impl Step {
    /// Waits until the request is there; what it says.
    pub fn wait(&self) -> Value {
        let place = self.place.lock().unwrap();
        let (place, _) = self.changed.wait_timeout_while(place, PATIENCE, |place| place.stopped.is_none()).unwrap();
        let stopped = place.stopped.clone();
        stopped.unwrap_or_else(|| panic!("waited in vain for a request of {}", self.method))
    }

    /// Ends the connection on which it came.
    pub fn release(&self) {
        self.place.lock().unwrap().released = true;
        self.changed.notify_all();
    }

    fn is_this(&self, request: &Value) -> bool {
        let less = |before: usize| before.checked_sub(1);
        request["method"] == self.method.as_str()
            && self.before.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_err()
    }

    fn stop(&self, request: Value) {
        let mut place = self.place.lock().unwrap();
        place.stopped = Some(request);
        self.changed.notify_all();
        drop(self.changed.wait_timeout_while(place, PATIENCE, |place| !place.released).unwrap());
    }
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
    /// Transactions that came since the fault was set.
    offers: AtomicUsize,
    /// Requests so far, by method; a transaction that is offered again does not count again.
    asked: Mutex<HashMap<String, usize>>,
    offered: Mutex<HashSet<String>>,
    step: Mutex<Option<Arc<Step>>>,
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
            offers: AtomicUsize::new(0),
            asked: Mutex::default(),
            offered: Mutex::default(),
            step: Mutex::default(),
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
        self.shared.offers.store(0, Ordering::SeqCst);
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Stops the `number`-th request of a method that comes from now on; 1 is the first.
    pub fn stop_at(&self, method: &str, number: usize, moment: Moment) -> Arc<Step> {
        let (before, place, changed) = (AtomicUsize::new(number - 1), Mutex::default(), Condvar::new());
        let step = Arc::new(Step { method: method.to_owned(), before, moment, place, changed });
        *self.shared.step.lock().unwrap() = Some(step.clone());
        step
    }

    /// How many requests of a method there were; of `eth_sendRawTransaction`, how many transactions.
    pub fn asked(&self, method: &str) -> usize {
        self.shared.asked.lock().unwrap().get(method).copied().unwrap_or_default()
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
        let method = request["method"].as_str().unwrap_or_default().to_owned();
        let is_again = method == "eth_sendRawTransaction"
            && !self.offered.lock().unwrap().insert(request["params"][0].to_string());
        if !is_again {
            *self.asked.lock().unwrap().entry(method.clone()).or_default() += 1;
        }
        if let Some(step) = self.step_for(&request) {
            if step.moment == Moment::After {
                self.ask(body)?;
            }
            step.stop(request);
            return None;
        }
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
            Fault::Swallows | Fault::SwallowsSome if method == "eth_sendRawTransaction" => {
                let offers = self.offers.fetch_add(1, Ordering::SeqCst);
                if fault == Fault::Swallows || offers.is_multiple_of(3) {
                    return self.swallow(&request);
                }
            }
            Fault::Stands if is_about_the_newest(&request) => return self.frozen_answer(&request),
            Fault::None | Fault::Swallows | Fault::SwallowsSome | Fault::Stands => {}
        }
        Some(("200 OK", self.ask(body)?))
    }

    /// Whether this is the request that is to be stopped.
    fn step_for(&self, request: &Value) -> Option<Arc<Step>> {
        self.step.lock().unwrap().take_if(|step| step.is_this(request))
    }

    fn swallow(&self, request: &Value) -> Option<(&'static str, Vec<u8>)> {
        let raw: Bytes = request["params"][0].as_str()?.parse().ok()?;
        self.swallowed.fetch_add(1, Ordering::SeqCst);
        let answer = json!({ "jsonrpc": "2.0", "id": request["id"], "result": keccak256(raw) });
        Some(("200 OK", answer.to_string().into_bytes()))
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
