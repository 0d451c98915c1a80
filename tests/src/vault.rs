//! A server for the two requests of Web3Signer that the bridge makes, with one key: no Web3Signer is at hand.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use alloy::primitives::{Address, keccak256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};

/// The signer; it answers until the test ends.
pub struct Vault {
    pub account: Address,
    at: SocketAddr,
}

impl Vault {
    pub fn open() -> Self {
        let key = PrivateKeySigner::random();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (account, at) = (key.address(), listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let key = key.clone();
                std::thread::spawn(move || drop(answer(stream, &key)));
            }
        });
        Self { account, at }
    }

    /// For a site's `[ledger]`.
    pub fn lines(&self) -> String {
        format!("remote_signer_url = \"http://{}\"\nremote_signer_address = \"{}\"\n", self.at, self.account)
    }
}

fn answer(mut stream: TcpStream, key: &PrivateKeySigner) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let said = if body.is_empty() {
        let point = key.credential().verifying_key().to_encoded_point(false);
        json!([format!("0x{}", hex::encode(point.as_bytes()))]).to_string()
    } else {
        let asked: Value = serde_json::from_slice(&body)?;
        let data = hex::decode(asked["data"].as_str().unwrap().trim_start_matches("0x")).unwrap();
        format!("0x{}", hex::encode(key.sign_hash_sync(&keccak256(data)).unwrap().as_bytes()))
    };
    write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{said}", said.len())
}
