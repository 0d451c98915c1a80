//! `type/subtype; name=value; name="value"` (RFC 2045 section 5.1, RFC 9110 section 8.3), as far as strictly written.

use crate::limits::HEADER_BYTES_MAX;

/// A media type with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaType {
    essence: String,
    parameters: Vec<(String, String)>,
}

impl MediaType {
    /// Reads a field value; `None` when it is not one, repeats a parameter, or is too long.
    pub fn parse(field: &str) -> Option<MediaType> {
        if field.len() > HEADER_BYTES_MAX || !field.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) {
            return None;
        }
        let (essence, mut rest) = field.split_at(field.find(';').unwrap_or(field.len()));
        let essence = trim(essence);
        let (kind, subtype) = essence.split_once('/')?;
        if !is_token(kind) || !is_token(subtype) {
            return None;
        }
        let mut media_type = MediaType { essence: essence.to_ascii_lowercase(), parameters: Vec::new() };
        while let Some(after) = rest.strip_prefix(';') {
            rest = media_type.add_parameter(trim(after))?;
        }
        rest.is_empty().then_some(media_type)
    }

    /// Type and subtype in lower case.
    pub fn essence(&self) -> &str {
        &self.essence
    }

    /// A parameter's value, unquoted; the name in lower case.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Takes one parameter and returns what follows it; nothing between two semicolons is allowed (RFC 9110 section 5.6.6).
    fn add_parameter<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        if text.is_empty() || text.starts_with(';') {
            return Some(text);
        }
        let (name, rest) = text.split_once('=')?;
        let name = name.to_ascii_lowercase();
        if !is_token(&name) || self.parameter(&name).is_some() {
            return None;
        }
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted)?,
            None => plain(rest)?,
        };
        self.parameters.push((name, value));
        Some(trim(rest))
    }
}

/// A token as a value. Slashes and colons, which need quotes, are let through because boundaries are seen written with them.
fn plain(text: &str) -> Option<(String, &str)> {
    let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
    let value = &text[..end];
    let valid = !value.is_empty() && value.chars().all(|c| is_token_char(c) || matches!(c, '/' | ':' | '='));
    valid.then(|| (value.to_owned(), &text[end..]))
}

/// What is in a quoted string whose opening quote is taken, and what follows it.
fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// Whether a text is a token of RFC 9110 section 5.6.2.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_token_char)
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_plain_quoted_and_escaped() {
        let t =
            MediaType::parse("Multipart/Related ; Type=\"application/xop+xml\";boundary=uuid:a=b; x=\"a\\\"; b\" ;")
                .expect("valid");
        assert_eq!(t.essence(), "multipart/related");
        assert_eq!(t.parameter("type"), Some("application/xop+xml"));
        assert_eq!(t.parameter("boundary"), Some("uuid:a=b"));
        assert_eq!(t.parameter("x"), Some("a\"; b"));
    }

    #[test]
    fn what_is_not_a_media_type() {
        for text in [
            "",
            "multipart",
            "multipart/",
            "/related",
            "a/b; c",
            "a/b; c=",
            "a/b; =d",
            "a/b; c=\"d",
            "a/b; c=d; C=e",
            "a/b; c=d e=f",
            "a/b; c=\"d\"e",
            "a/b\r\n",
            "a/\u{e9}",
            "a/b; c=\"\\",
            "a b/c",
            "a/b;c=<d>",
        ] {
            assert_eq!(MediaType::parse(text), None, "{text:?}");
        }
        assert_eq!(MediaType::parse(&format!("a/b; c={}", "d".repeat(HEADER_BYTES_MAX))), None);
    }
}
