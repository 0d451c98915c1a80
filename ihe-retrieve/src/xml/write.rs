//! Escaping, by the rules of canonical XML, for what we write and for what we digest.

/// Appends character data.
pub(crate) fn text(out: &mut Vec<u8>, value: &str) {
    escaped(out, value, |byte| match byte {
        b'&' => Some("&amp;"),
        b'<' => Some("&lt;"),
        b'>' => Some("&gt;"),
        b'\r' => Some("&#xD;"),
        _ => None,
    });
}

/// Appends the inside of an attribute's double quotes.
pub(crate) fn attribute(out: &mut Vec<u8>, value: &str) {
    escaped(out, value, |byte| match byte {
        b'&' => Some("&amp;"),
        b'<' => Some("&lt;"),
        b'"' => Some("&quot;"),
        b'\t' => Some("&#x9;"),
        b'\n' => Some("&#xA;"),
        b'\r' => Some("&#xD;"),
        _ => None,
    });
}

fn escaped(out: &mut Vec<u8>, value: &str, replacement: impl Fn(u8) -> Option<&'static str>) {
    let bytes = value.as_bytes();
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if let Some(escape) = replacement(*byte) {
            out.extend_from_slice(&bytes[from..at]);
            out.extend_from_slice(escape.as_bytes());
            from = at + 1;
        }
    }
    out.extend_from_slice(&bytes[from..]);
}
