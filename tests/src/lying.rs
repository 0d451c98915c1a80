//! An IPFS node's RPC API that lies about the bytes of files on order.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What is wrong with the bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    /// One bit in the middle is another.
    Altered,
    /// The end is missing, and the answer ends as a whole one does.
    Truncated,
    /// Something follows.
    Longer,
    /// There are none.
    Empty,
}

/// Passes requests on to a node, and lies. Lives as long as the test's process.
pub struct LyingIpfs {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    node: u16,
    lie: Mutex<Lie>,
    told: AtomicUsize,
}

impl LyingIpfs {
    /// In front of a node whose API is at a port.
    pub fn before(node: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { node, lie: Mutex::new(Lie::None), told: AtomicUsize::new(0) });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { port, shared }
    }

    pub fn set(&self, lie: Lie) {
        *self.shared.lie.lock().unwrap() = lie;
    }

    /// Files that were lied about.
    pub fn told(&self) -> usize {
        self.shared.told.load(Ordering::SeqCst)
    }
}

impl Shared {
    /// One request, without a body: the site behind this puts nothing into IPFS.
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let head = read_head(&mut BufReader::new(stream.try_clone().ok()?))?;
        let (headers, mut body) = self.ask(&head)?;
        let lie = *self.lie.lock().unwrap();
        if head[0].contains("/api/v0/cat?") && headers[0].contains(" 200 ") && lie != Lie::None {
            falsify(&mut body, lie);
            self.told.fetch_add(1, Ordering::SeqCst);
        }
        let own = format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let all = format!("{}\r\n{own}", headers.join("\r\n").replacen("HTTP/1.0", "HTTP/1.1", 1));
        stream.write_all(all.as_bytes()).and_then(|()| stream.write_all(&body)).ok()
    }

    /// Headers but those about the body's length, and the body, which ends with the connection because HTTP/1.0 has nothing else.
    fn ask(&self, head: &[String]) -> Option<(Vec<String>, Vec<u8>)> {
        let mut node = TcpStream::connect(("127.0.0.1", self.node)).ok()?;
        let request = head.join("\r\n").replacen("HTTP/1.1", "HTTP/1.0", 1);
        node.write_all(format!("{request}\r\n\r\n").as_bytes()).ok()?;
        let mut reader = BufReader::new(node);
        let mut headers = read_head(&mut reader)?;
        let is_own = |name: &str| ["content-length", "transfer-encoding", "connection", "trailer"].contains(&name);
        headers.retain(|line| !line.split_once(':').is_some_and(|(name, _)| is_own(&name.to_ascii_lowercase())));
        let mut body = Vec::new();
        reader.read_to_end(&mut body).ok()?;
        Some((headers, body))
    }
}

fn falsify(body: &mut Vec<u8>, lie: Lie) {
    let middle = body.len() / 2;
    match lie {
        Lie::None => {}
        Lie::Altered => body[middle] ^= 1,
        Lie::Truncated => body.truncate(middle),
        Lie::Longer => body.extend([0; 100]),
        Lie::Empty => body.clear(),
    }
}

fn read_head(reader: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return Some(head),
            line => head.push(line.to_owned()),
        }
    }
}
