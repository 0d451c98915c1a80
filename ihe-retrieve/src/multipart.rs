//! multipart/related (RFC 2387, RFC 2046 section 5.1): a strict reader that takes octets as they come, and a writer that knows its length before
//! it knows the documents.
//!
//! The reader keeps back no more than one part's headers or one delimiter. Strict means: no preamble but one line end, no text after the
//! end, no padding of delimiters, no transfer encoding that changes octets. Not known here: XML, SOAP.

use std::ops::Range;

use crate::limits::HEADER_BYTES_MAX;
use crate::media_type::{MediaType, is_token};

/// The longest boundary (RFC 2046 section 5.1.1).
const BOUNDARY_CHARS_MAX: usize = 70;

/// Why octets are not the multipart message they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    /// No boundary, or none that can be one.
    #[error("not a boundary")]
    Boundary,
    /// A delimiter is missing, misplaced, or followed by something else.
    #[error("a misplaced delimiter")]
    Delimiter,
    /// A header that cannot be read, is repeated, or is too long.
    #[error("a part's header")]
    Header,
    /// A transfer encoding other than 7bit, 8bit and binary.
    #[error("a transfer encoding")]
    TransferEncoding,
    /// More parts than the limit.
    #[error("too many parts")]
    TooManyParts,
    /// The end came too early.
    #[error("the message ends early")]
    Truncated,
}

/// What a part says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartHead {
    /// Content-Type.
    pub content_type: Option<MediaType>,
    /// Content-ID without its angle brackets.
    pub content_id: Option<String>,
    /// Content-Location.
    pub content_location: Option<String>,
}

/// What comes next in a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'r> {
    /// A part begins.
    Part(PartHead),
    /// Octets of the part.
    Data(&'r [u8]),
    /// The part is over.
    PartEnd,
    /// The message is over; nothing but white space may follow.
    End,
}

/// A [`Piece`] whose octets are still in the reader: [`Reader::data`] has them.
#[derive(Debug)]
pub enum Step {
    /// A part begins.
    Part(PartHead),
    /// Octets of the part.
    Data(Range<usize>),
    /// The part is over.
    PartEnd,
    /// The message is over; nothing but white space may follow.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// Behind a delimiter: `--` or a line end follows.
    Delimited,
    /// From that line end to the empty line.
    Headers,
    Body,
    Ended,
    Done,
}

/// Takes a message apart as it arrives: [`Reader::push`] octets, then call [`Reader::next_piece`] until it wants more.
#[derive(Debug)]
pub struct Reader {
    /// CRLF, two hyphens, boundary.
    delimiter: Vec<u8>,
    parts_left: usize,
    state: State,
    pending: Vec<u8>,
    at: usize,
    /// How much of `pending` after `at` was searched in vain.
    searched: usize,
}

impl Reader {
    /// A reader for a message with this boundary and at most so many parts.
    pub fn new(boundary: &str, parts_max: usize) -> Result<Reader, MultipartError> {
        let known = |c: char| c.is_ascii_alphanumeric() || "'()+_,-./:=? ".contains(c);
        let valid = !boundary.is_empty() && boundary.len() <= BOUNDARY_CHARS_MAX && boundary.chars().all(known);
        if !valid || boundary.ends_with(' ') {
            return Err(MultipartError::Boundary);
        }
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        let (pending, at, searched) = (Vec::new(), 0, 0);
        Ok(Reader { delimiter, parts_left: parts_max, state: State::Start, pending, at, searched })
    }

    /// Takes the next octets of the message.
    pub fn push(&mut self, octets: &[u8]) {
        self.pending.drain(..self.at);
        self.at = 0;
        self.pending.extend_from_slice(octets);
    }

    /// The next piece, or `None` when more octets are needed.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>, MultipartError> {
        Ok(self.step()?.map(|step| match step {
            Step::Part(head) => Piece::Part(head),
            Step::Data(range) => Piece::Data(self.data(range)),
            Step::PartEnd => Piece::PartEnd,
            Step::End => Piece::End,
        }))
    }

    /// The octets of a step, as long as nothing more was pushed.
    pub fn data(&self, range: Range<usize>) -> &[u8] {
        &self.pending[range]
    }

    /// As [`Reader::next_piece`], without borrowing.
    pub fn step(&mut self) -> Result<Option<Step>, MultipartError> {
        if self.state == State::Start && !self.start()? {
            return Ok(None);
        }
        if self.state == State::Delimited && !self.delimited()? {
            return Ok(None);
        }
        match self.state {
            State::Headers => Ok(self.headers()?.map(Step::Part)),
            State::Body => Ok(self.body()),
            State::Ended => {
                self.state = State::Done;
                Ok(Some(Step::End))
            }
            State::Start | State::Delimited | State::Done => self.epilogue(),
        }
    }

    /// Whether the message may end here.
    pub fn finish(&self) -> Result<(), MultipartError> {
        if self.state == State::Done { Ok(()) } else { Err(MultipartError::Truncated) }
    }

    fn rest(&self) -> &[u8] {
        &self.pending[self.at..]
    }

    fn skip(&mut self, octets: usize) {
        self.at += octets;
        self.searched = 0;
    }

    /// The first delimiter needs no line end before it; one is taken, because common writers begin with it.
    fn start(&mut self) -> Result<bool, MultipartError> {
        let skipped = if self.rest().first() == Some(&b'-') { 2 } else { 0 };
        let expected = &self.delimiter[skipped..];
        let seen = self.rest().len().min(expected.len());
        if self.rest()[..seen] != expected[..seen] {
            return Err(MultipartError::Delimiter);
        }
        let whole = seen == expected.len();
        if whole {
            self.skip(seen);
            self.state = State::Delimited;
        }
        Ok(whole)
    }

    fn delimited(&mut self) -> Result<bool, MultipartError> {
        match self.rest() {
            [b'-', b'-', ..] => {
                self.skip(2);
                self.state = State::Ended;
            }
            // The line end stays: it begins the empty line of a part without headers.
            [b'\r', b'\n', ..] => {
                self.parts_left = self.parts_left.checked_sub(1).ok_or(MultipartError::TooManyParts)?;
                self.state = State::Headers;
            }
            [] | [b'-'] | [b'\r'] => return Ok(false),
            _ => return Err(MultipartError::Delimiter),
        }
        Ok(true)
    }

    fn headers(&mut self) -> Result<Option<PartHead>, MultipartError> {
        let from = self.searched;
        let found = self.rest()[from..].windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + from);
        let length = found.unwrap_or(self.rest().len());
        if length > HEADER_BYTES_MAX {
            return Err(MultipartError::Header);
        }
        if found.is_none() {
            self.searched = length.saturating_sub(3);
            return Ok(None);
        }
        let head = part_head(&self.rest()[..length])?;
        self.skip(length + 4);
        self.state = State::Body;
        Ok(Some(head))
    }

    fn body(&mut self) -> Option<Step> {
        let found = find(self.rest(), &self.delimiter);
        if found == Some(0) {
            self.skip(self.delimiter.len());
            self.state = State::Delimited;
            return Some(Step::PartEnd);
        }
        let length = found.unwrap_or(self.rest().len().saturating_sub(self.delimiter.len() - 1));
        let from = self.at;
        self.skip(length);
        (length > 0).then(|| Step::Data(from..from + length))
    }

    fn epilogue(&mut self) -> Result<Option<Step>, MultipartError> {
        if !self.rest().iter().all(|b| b" \t\r\n".contains(b)) {
            return Err(MultipartError::Delimiter);
        }
        self.skip(self.rest().len());
        Ok(None)
    }
}

/// Where the delimiter, which begins with a carriage return, is in `octets`.
fn find(octets: &[u8], delimiter: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = octets[from..].iter().position(|b| *b == b'\r') {
        from += at;
        if octets[from..].starts_with(delimiter) {
            return Some(from);
        }
        from += 1;
    }
    None
}

/// Reads the headers of a part: a line end before each.
fn part_head(block: &[u8]) -> Result<PartHead, MultipartError> {
    let block = std::str::from_utf8(block).map_err(|_| MultipartError::Header)?;
    if !block.chars().all(|c| matches!(c, '\t' | '\r' | '\n' | ' '..='~')) {
        return Err(MultipartError::Header);
    }
    let unfolded = block.replace("\r\n ", " ").replace("\r\n\t", " ");
    let mut head = PartHead::default();
    let mut encoded = false;
    for line in unfolded.split("\r\n").filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(MultipartError::Header)?;
        if !is_token(name) || value.contains(['\r', '\n']) {
            return Err(MultipartError::Header);
        }
        let value = value.trim_matches([' ', '\t']);
        let repeated = match name.to_ascii_lowercase().as_str() {
            "content-type" => {
                head.content_type.replace(MediaType::parse(value).ok_or(MultipartError::Header)?).is_some()
            }
            "content-id" => {
                head.content_id.replace(bracketed(value).ok_or(MultipartError::Header)?.to_owned()).is_some()
            }
            "content-location" => head.content_location.replace(value.to_owned()).is_some(),
            "content-transfer-encoding" => {
                check_encoding(value)?;
                std::mem::replace(&mut encoded, true)
            }
            _ => false,
        };
        if repeated {
            return Err(MultipartError::Header);
        }
    }
    Ok(head)
}

fn check_encoding(value: &str) -> Result<(), MultipartError> {
    let known = ["binary", "8bit", "7bit"].iter().any(|known| value.eq_ignore_ascii_case(known));
    if known { Ok(()) } else { Err(MultipartError::TransferEncoding) }
}

/// The inside of `<…>`.
pub(crate) fn bracketed(value: &str) -> Option<&str> {
    let inside = value.strip_prefix('<')?.strip_suffix('>')?;
    (!inside.is_empty() && !inside.contains(['<', '>', ' '])).then_some(inside)
}

/// The Content-ID that a `cid:` URL names (RFC 2392): percent-encoded, without angle brackets.
pub(crate) fn content_id_of_url(url: &str) -> Option<String> {
    let mut rest = url.strip_prefix("cid:")?;
    let mut decoded = Vec::with_capacity(rest.len());
    while let Some(byte) = rest.bytes().next() {
        let escape = (byte == b'%').then(|| rest.get(1..3).and_then(|two| hex::decode(two).ok()));
        match escape {
            Some(escape) => {
                decoded.extend_from_slice(&escape?);
                rest = &rest[3..];
            }
            None => {
                decoded.push(byte);
                rest = rest.get(1..)?;
            }
        }
    }
    String::from_utf8(decoded).ok()
}

/// A part that follows the root part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartPlan {
    /// Content-ID without angle brackets: letters, digits, `.`, `-`, `_` and `@`.
    pub content_id: String,
    /// Content-Type.
    pub content_type: &'static str,
    /// Exactly how many octets the part will have.
    pub bytes: u64,
}

/// An MTOM message of which everything is known but the octets of its documents, so that a daemon can send the length first and stream them:
/// [`Plan::head`], then for each part [`Plan::part_head`] and its octets, then [`Plan::tail`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    boundary: String,
    head: Vec<u8>,
    parts: Vec<PartPlan>,
}

/// Content-ID of the root part.
const ROOT_ID: &str = "root@pacs-bridge";

impl Plan {
    /// A message with this root part. `nonce` makes the boundary; it must be random, so that no document contains it.
    pub fn new(nonce: [u8; 16], root: &[u8], parts: Vec<PartPlan>) -> Plan {
        let boundary = format!("pacs-bridge-{}", hex::encode(nonce));
        let mut head = format!(
            "--{boundary}\r\nContent-Type: application/xop+xml; charset=UTF-8; type=\"application/soap+xml\"\r\n\
             Content-Transfer-Encoding: binary\r\nContent-ID: <{ROOT_ID}>\r\n\r\n"
        )
        .into_bytes();
        head.extend_from_slice(root);
        Plan { boundary, head, parts }
    }

    /// The Content-Type of the HTTP message.
    pub fn content_type(&self) -> String {
        format!(
            "multipart/related; type=\"application/xop+xml\"; start=\"<{ROOT_ID}>\"; start-info=\"application/soap+xml\"; \
             boundary=\"{}\"",
            self.boundary
        )
    }

    /// The Content-Length of the HTTP message.
    pub fn content_length(&self) -> u64 {
        let parts: u64 = self.parts.iter().map(|part| self.part_head(part).len() as u64 + part.bytes).sum();
        self.head.len() as u64 + parts + self.tail().len() as u64
    }

    /// The parts after the root part, in order.
    pub fn parts(&self) -> &[PartPlan] {
        &self.parts
    }

    /// Everything up to the end of the root part.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// What goes before the octets of a part.
    pub fn part_head(&self, part: &PartPlan) -> Vec<u8> {
        format!(
            "\r\n--{}\r\nContent-Type: {}\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <{}>\r\n\r\n",
            self.boundary, part.content_type, part.content_id
        )
        .into_bytes()
    }

    /// What ends the message.
    pub fn tail(&self) -> Vec<u8> {
        format!("\r\n--{}--\r\n", self.boundary).into_bytes()
    }

    /// The whole message, when all parts are at hand; `None` unless there is one document of the right length for each part.
    pub fn assemble(&self, documents: &[&[u8]]) -> Option<Vec<u8>> {
        let fits = self.parts.len() == documents.len()
            && self.parts.iter().zip(documents).all(|(part, octets)| part.bytes == octets.len() as u64);
        if !fits {
            return None;
        }
        let mut message = self.head.clone();
        for (part, octets) in self.parts.iter().zip(documents) {
            message.extend_from_slice(&self.part_head(part));
            message.extend_from_slice(octets);
        }
        message.extend_from_slice(&self.tail());
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All parts of a message that arrives in chunks of `size` octets.
    fn read(message: &[u8], size: usize) -> Result<Vec<(PartHead, Vec<u8>)>, MultipartError> {
        let mut reader = Reader::new("b", 3)?;
        let mut parts: Vec<(PartHead, Vec<u8>)> = Vec::new();
        for chunk in message.chunks(size) {
            reader.push(chunk);
            while let Some(piece) = reader.next_piece()? {
                match piece {
                    Piece::Part(head) => parts.push((head, Vec::new())),
                    Piece::Data(data) => parts.last_mut().expect("a part began").1.extend_from_slice(data),
                    Piece::PartEnd | Piece::End => {}
                }
            }
        }
        reader.finish().map(|()| parts)
    }

    #[test]
    fn every_chunking_gives_the_same_parts() {
        let message = b"\r\n--b\r\nContent-ID: <1>\r\nX: y\r\n\r\n\r\none\r\n--\r\n--c\r\n--b\r\n\r\n\r\n--b\r\ncontent-type: a/b;\r\n c=d\r\n\r\n\
            \r\n--b--\r\n";
        let whole = read(message, message.len()).expect("valid");
        assert_eq!(whole.len(), 3);
        assert_eq!(whole[0].1, b"\r\none\r\n--\r\n--c");
        assert_eq!(whole[0].0.content_id.as_deref(), Some("1"));
        assert_eq!(whole[2].0.content_type.as_ref().and_then(|t| t.parameter("c")), Some("d"));
        for size in 1..message.len() {
            assert_eq!(read(message, size).as_ref(), Ok(&whole), "chunks of {size}");
        }
    }

    #[test]
    fn what_is_not_a_multipart_message() {
        use MultipartError::*;
        let long = format!("--b\r\nX: {}\r\n\r\n\r\n--b--", "x".repeat(HEADER_BYTES_MAX));
        for (message, error) in [
            ("", Truncated),
            ("--b", Truncated),
            ("--b\r\n\r\n", Truncated),
            ("--b\r\n\r\nx\r\n--b", Truncated),
            ("--b\r\n\r\nx\r\n--b-", Truncated),
            ("--b\r\n\r\nx\r\n--B--", Truncated),
            ("preamble\r\n--b\r\n\r\n\r\n--b--", Delimiter),
            ("--b\r\n\r\nx\r\n--bc\r\n", Delimiter),
            ("--b \r\n\r\nx\r\n--b--", Delimiter),
            ("--b\n\nx\n--b--", Delimiter),
            ("--b\r\n\r\nx\r\n--b--\r\nepilogue", Delimiter),
            ("--b\r\nX\r\n\r\n\r\n--b--", Header),
            ("--b\r\nX y: z\r\n\r\n\r\n--b--", Header),
            ("--b\r\nX: \u{e9}\r\n\r\n\r\n--b--", Header),
            ("--b\r\nContent-ID: 1\r\n\r\n\r\n--b--", Header),
            ("--b\r\nContent-ID: <1>\r\nContent-Id: <1>\r\n\r\n\r\n--b--", Header),
            ("--b\r\nContent-Type: a\r\n\r\n\r\n--b--", Header),
            ("--b\r\nX: y\nZ: z\r\n\r\n\r\n--b--", Header),
            ("--b\r\nContent-Transfer-Encoding: base64\r\n\r\n\r\n--b--", TransferEncoding),
            (&long, Header),
            ("--b\r\n\r\n\r\n--b\r\n\r\n\r\n--b\r\n\r\n\r\n--b\r\n\r\n\r\n--b--", TooManyParts),
        ] {
            for size in [1, 7, 10_000] {
                assert_eq!(read(message.as_bytes(), size), Err(error), "{message:?}");
            }
        }
        for boundary in ["", "a ", "a\r\nb", "a\"b", &"b".repeat(71)] {
            assert_eq!(Reader::new(boundary, 1).err(), Some(Boundary), "{boundary:?}");
        }
    }

    #[test]
    fn a_plan_is_as_long_as_it_says_and_reads_back() {
        let part = PartPlan { content_id: "1@x".into(), content_type: "application/zip", bytes: 5 };
        let plan =
            Plan::new([7; 16], b"<root/>", vec![part.clone(), PartPlan { content_id: "2@x".into(), bytes: 0, ..part }]);
        let message = plan.assemble(&[b"a\r\n--", b""]).expect("fits");
        assert_eq!(message.len() as u64, plan.content_length());
        assert_eq!(plan.assemble(&[b"a", b""]), None);
        let boundary = MediaType::parse(&plan.content_type()).expect("valid");
        let mut reader = Reader::new(boundary.parameter("boundary").expect("there"), 3).expect("valid");
        reader.push(&message);
        let mut data = Vec::new();
        while let Some(piece) = reader.next_piece().expect("valid") {
            if let Piece::Data(octets) = piece {
                data.push(octets.to_vec());
            }
        }
        assert_eq!((data, reader.finish()), (vec![b"<root/>".to_vec(), b"a\r\n--".to_vec()], Ok(())));
    }

    #[test]
    fn content_ids_in_urls() {
        assert_eq!(content_id_of_url("cid:a%40b").as_deref(), Some("a@b"));
        for url in ["http:a", "cid:%4", "cid:%zz", "cid:%ff", "CID:a"] {
            assert_eq!(content_id_of_url(url), None, "{url}");
        }
    }
}
