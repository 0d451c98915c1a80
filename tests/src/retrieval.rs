//! The client of the bridge's own wire crate over TLS: what it asks for comes as octets, and nothing of it is kept.

use std::net::SocketAddr;

use alloy::signers::k256::ecdsa::signature::hazmat::PrehashSigner as _;
use alloy::signers::k256::ecdsa::{self, Signature};
use alloy::signers::local::PrivateKeySigner;
use bridge::exchange::tls::client_config;
use ihe_retrieve::key::RequesterKey;
use ihe_retrieve::request::{DocumentRequest, Retrieve};
use ihe_retrieve::requester::{TokenPlacement, UnsignedRequest, certificate, sign};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

/// Octets read at once.
const RUN_BYTES: usize = 256 * 1024;

/// A TLS 1.3 connection to whoever has the key with this SHA-256.
pub async fn connect(address: SocketAddr, tls_key: [u8; 32]) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let connector = TlsConnector::from(client_config(tls_key).unwrap());
    connector.connect(ServerName::try_from("a.example").unwrap(), stream).await.unwrap()
}

/// A signed request as a whole HTTP message, and its message id.
pub fn request(signer: &PrivateKeySigner, to: &str, retrieve: &Retrieve) -> (Vec<u8>, String) {
    let key = signer.credential();
    let by_key = |digest: &[u8; 32]| -> Result<[u8; 64], ecdsa::Error> {
        let signature: Signature = key.sign_prehash(digest)?;
        Ok(signature.to_bytes().into())
    };
    let public_key = RequesterKey::Secp256k1(key.verifying_key().into());
    let token = certificate(&public_key, &signer.address().into(), by_key).unwrap();
    let message_id = format!("urn:uuid:{:032x}", rand::random::<u128>());
    let created_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let expires_ms = created_ms + 300_000;
    let unsigned = UnsignedRequest { to, message_id: &message_id, created_ms, expires_ms, retrieve };
    let signed = sign(&unsigned, &token, TokenPlacement::Part, rand::random(), by_key).unwrap();
    let head = format!(
        "POST /iti43 HTTP/1.1\r\nHost: a.example\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
        signed.content_type,
        signed.body.len()
    );
    ([head.into_bytes(), signed.body].concat(), message_id)
}

/// One document of a repository.
pub fn document(repository: &str, document: &str) -> Retrieve {
    Retrieve::Documents(vec![DocumentRequest {
        repository_unique_id: repository.to_owned(),
        document_unique_id: document.to_owned(),
        home_community_id: None,
    }])
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    pub content_type: String,
    /// Content-Length.
    pub bytes: u64,
}

/// Sends a message and hands on every octet of the answer's body as it comes.
pub async fn converse<S>(stream: &mut S, message: &[u8], mut take: impl FnMut(&Head, &[u8])) -> Head
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(message).await.unwrap();
    stream.flush().await.unwrap();
    let (mut run, mut begun) = (vec![0; RUN_BYTES], Vec::new());
    let (head, at) = loop {
        let count = stream.read(&mut run).await.unwrap();
        assert!(count > 0, "no answer: {}", String::from_utf8_lossy(&begun));
        begun.extend_from_slice(&run[..count]);
        if let Some(at) = begun.windows(4).position(|window| window == b"\r\n\r\n") {
            break (read_head(&begun[..at]), at + 4);
        }
    };
    let mut left = head.bytes;
    let mut hand_on = |octets: &[u8]| {
        left = left.checked_sub(octets.len() as u64).unwrap();
        take(&head, octets);
        left
    };
    let mut missing = hand_on(&begun[at..]);
    while missing > 0 {
        let count = stream.read(&mut run).await.unwrap();
        assert!(count > 0, "broken off {missing} bytes before the end");
        missing = hand_on(&run[..count]);
    }
    head
}

fn read_head(head: &[u8]) -> Head {
    let text = std::str::from_utf8(head).unwrap();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("", |(_, value)| value).to_owned()
    };
    Head {
        status: text[9..12].parse().unwrap(),
        content_type: field("content-type:"),
        bytes: field("content-length:").parse().unwrap(),
    }
}
