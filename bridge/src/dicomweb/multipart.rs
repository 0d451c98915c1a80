//! Bodies of several parts (RFC 2387), as PS3.18 8.6.1.2 has them. Must not know what is in the parts.

use rand::RngCore as _;

/// What parts are parted by: 128 random bits, which no content has by chance and nobody can foresee.
#[derive(Debug, Clone)]
pub(super) struct Boundary(String);

impl Boundary {
    pub(super) fn random() -> Self {
        let mut bits = [0; 16];
        rand::rngs::OsRng.fill_bytes(&mut bits);
        Self(hex::encode(bits))
    }

    /// The Content-Type of a body whose parts are of one type.
    pub(super) fn content_type(&self, part: &str) -> String {
        format!("multipart/related; type=\"{part}\"; boundary={}", self.0)
    }

    /// What goes before a part's content. `bytes` is its length, where that is known.
    pub(super) fn part(&self, content_type: &str, location: Option<&str>, bytes: Option<u64>) -> String {
        let mut head = format!("\r\n--{}\r\nContent-Type: {content_type}\r\n", self.0);
        if let Some(location) = location {
            head.push_str(&format!("Content-Location: {location}\r\n"));
        }
        if let Some(bytes) = bytes {
            head.push_str(&format!("Content-Length: {bytes}\r\n"));
        }
        head.push_str("\r\n");
        head
    }

    /// What goes after the last part.
    pub(super) fn end(&self) -> String {
        format!("\r\n--{}--\r\n", self.0)
    }
}
