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
