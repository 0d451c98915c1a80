//! XML as SOAP needs it and no more: no DTD, no processing instructions, no entities but the predefined ones, UTF-8 only.
//!
//! [`Document::parse`] looks at the tokens first, with counts and nothing else, and builds its tree only from a text that kept
//! the limits. Both passes take time linear in the input; the tree takes memory in proportion to it. Not known here: SOAP, signatures.

mod c14n;
mod token;
mod tree;
mod write;

pub use c14n::{CanonicalError, exclusive};
pub(crate) use token::{is_nc_name, is_space};
pub use tree::{Document, NodeId};
pub(crate) use write::{attribute, text};

use crate::limits::XmlLimits;
use token::{Token, Tokenizer};

/// Why a text is not XML that is taken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// Not UTF-8, or another encoding is declared.
    #[error("not UTF-8")]
    Encoding,
    /// Not well-formed, with or without namespaces.
    #[error("not well-formed")]
    Malformed,
    /// A document type declaration.
    #[error("a document type declaration")]
    Dtd,
    /// A processing instruction.
    #[error("a processing instruction")]
    ProcessingInstruction,
    /// A reference to an entity that is not predefined.
    #[error("a reference to an entity")]
    Entity,
    /// More octets than the limit.
    #[error("too long")]
    TooLong,
    /// Elements nested deeper than the limit.
    #[error("too deep")]
    TooDeep,
    /// More elements than the limit.
    #[error("too many elements")]
    TooManyElements,
    /// An element with more attributes than the limit.
    #[error("too many attributes")]
    TooManyAttributes,
}

/// What one pass over the tokens counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) elements: usize,
    pub(crate) work: usize,
}

/// Reads all tokens and builds nothing: limits, well-formedness, matching tags, one root.
pub(crate) fn scan(text: &str, limits: &XmlLimits) -> Result<Counts, XmlError> {
    if text.len() > limits.bytes {
        return Err(XmlError::TooLong);
    }
    let mut tokens = Tokenizer::new(text, limits.attributes)?;
    let mut open: Vec<&str> = Vec::with_capacity(limits.depth);
    let mut elements = 0;
    while let Some(token) = tokens.next()? {
        match token {
            Token::Start { name, empty } => {
                if open.is_empty() && elements > 0 {
                    return Err(XmlError::Malformed);
                }
                elements += 1;
                if elements > limits.elements {
                    return Err(XmlError::TooManyElements);
                }
                if open.len() == limits.depth {
                    return Err(XmlError::TooDeep);
                }
                if !empty {
                    open.push(name);
                }
            }
            Token::End { name } if open.pop() == Some(name) => {}
            Token::End { .. } => return Err(XmlError::Malformed),
            Token::Text(text) if open.is_empty() && !text.chars().all(is_space) => return Err(XmlError::Malformed),
            Token::Literal(_) if open.is_empty() => return Err(XmlError::Malformed),
            Token::Text(_) | Token::Literal(_) | Token::Comment => {}
        }
    }
    if elements == 0 || !open.is_empty() {
        return Err(XmlError::Malformed);
    }
    Ok(Counts { elements, work: tokens.work() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::REQUEST_XML;

    /// Documents made to be slow to read, of about so many octets each.
    fn adversarial(bytes: usize) -> Vec<(&'static str, String)> {
        let times = |unit: &str| unit.repeat(bytes / unit.len());
        let numbered = |unit: &dyn Fn(usize) -> String| {
            let mut out = String::new();
            for n in 0.. {
                if out.len() > bytes {
                    break;
                }
                out.push_str(&unit(n));
            }
            out
        };
        let attributes = |name: &str| {
            numbered(&|_| format!("<b {}/>", (0..60).map(|n| format!("{name}{n}='urn:{n}' ")).collect::<String>()))
        };
        // As many prefixes as there is room for, each bound at one level, and used by the innermost elements over and over.
        let scope: String = (0..28)
            .map(|d| format!("<a {}>", (0..60).map(|n| format!("xmlns:p{d}-{n}='u:' ")).collect::<String>()))
            .collect();
        let used = numbered(&|n| format!("<p{}-{}:b/>", n % 28, n % 60));
        vec![
            ("attributes", attributes("a")),
            ("declarations", attributes("xmlns:a")),
            ("references", times("&amp;")),
            ("ampersands", times("<b a='&#38;&#38;&#38;&#38;&#38;'/>")),
            ("carriage returns", times("\r")),
            ("brackets", times("] ]")),
            ("comments", times("<!-- - - -->")),
            ("sections", times("<![CDATA[]]]]>")),
            ("spaces", times("<b                                            />")),
            ("elements", times("<b/>")),
            ("long name", format!("<{0}></{0}>", "b".repeat(bytes / 2))),
            ("scope", format!("{scope}{used}{}", "</a>".repeat(28))),
        ]
    }

    #[test]
    fn work_is_linear_in_the_input() {
        let limits = XmlLimits { bytes: usize::MAX, elements: usize::MAX, ..REQUEST_XML };
        for (small, large) in adversarial(60_000).into_iter().zip(adversarial(480_000)) {
            let work = |(name, inside): (&str, String)| {
                let document = format!("<r>{inside}</r>");
                let parsed = Document::parse_counted(document.as_bytes(), &limits);
                let (_, work) = parsed.unwrap_or_else(|e| panic!("{name}: {e}"));
                work as f64 / document.len() as f64
            };
            let name = small.0;
            let (small, large) = (work(small), work(large));
            assert!(small < 12.0 && large < 12.0, "{name}: {small} and {large} steps an octet");
            assert!(large < 1.2 * small, "{name}: {small} steps an octet, then {large}");
        }
    }

    /// Counts alone end the reading: nothing is built, and what follows is not even looked at.
    #[test]
    fn floods_end_at_the_limit() {
        let flood = |unit: &str| format!("<r>{}", unit.repeat(30_000));
        for (document, error) in [
            (flood("<b/>"), XmlError::TooManyElements),
            (flood("<b>"), XmlError::TooDeep),
            (
                format!("<r {}>", (0..9_000).map(|n| format!("a{n}='' ")).collect::<String>()),
                XmlError::TooManyAttributes,
            ),
            ("x".repeat(REQUEST_XML.bytes + 1), XmlError::TooLong),
        ] {
            assert_eq!(scan(&document[..document.len().min(REQUEST_XML.bytes + 1)], &REQUEST_XML).err(), Some(error));
        }
    }

    #[test]
    fn values_ignore_comments_and_elements_have_none() {
        let input = b"<a b=' c\td '>x<!-- y --><![CDATA[z]]>&#x21;<d/></a>";
        let document = Document::parse(input, &REQUEST_XML).expect("well-formed");
        assert_eq!(document.text(document.root()), None);
        assert_eq!(document.attribute(document.root(), "", "b"), Some(" c d "));
        let document = Document::parse(b"<a>x<!-- y --><![CDATA[z]]>&#x21;</a>", &REQUEST_XML).expect("well-formed");
        assert_eq!(document.text(document.root()).as_deref(), Some("xz!"));
    }
}
