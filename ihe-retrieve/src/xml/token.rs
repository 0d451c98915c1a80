//! A strict pull tokenizer for the XML that SOAP allows: XML 1.0 without DTD, processing instructions and entities of its own.
//!
//! What XML calls a well-formedness constraint is checked here, token by token, except the matching of tags, which `scan` does.
//! It allocates one vector for the attributes of a start tag, which never holds more than the limit.

use super::XmlError;

/// One token; names and values are slices of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// `<name …>` or `<name …/>`; its attributes are in [`Tokenizer::attributes`].
    Start { name: &'a str, empty: bool },
    /// `</name>`
    End { name: &'a str },
    /// Character data with its references unexpanded.
    Text(&'a str),
    /// The inside of a CDATA section.
    Literal(&'a str),
    /// A comment, which nobody reads.
    Comment,
}

/// An attribute as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawAttribute<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a str,
}

pub(crate) struct Tokenizer<'a> {
    rest: &'a str,
    attributes: Vec<RawAttribute<'a>>,
    attributes_max: usize,
    work: usize,
}

impl<'a> Tokenizer<'a> {
    /// Begins after an optional byte order mark and XML declaration.
    pub(crate) fn new(text: &'a str, attributes_max: usize) -> Result<Self, XmlError> {
        let rest = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut tokenizer = Tokenizer { rest, attributes: Vec::new(), attributes_max, work: 0 };
        tokenizer.declaration()?;
        Ok(tokenizer)
    }

    /// The attributes of the start tag read last.
    pub(crate) fn attributes(&self) -> &[RawAttribute<'a>] {
        &self.attributes
    }

    /// Octets looked at and comparisons made, to show that the effort is linear.
    pub(crate) fn work(&self) -> usize {
        self.work
    }

    /// The next token, or `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Token<'a>>, XmlError> {
        match self.rest.as_bytes() {
            [] => Ok(None),
            [b'<', b'/', ..] => self.end_tag().map(Some),
            [b'<', b'!', b'-', b'-', ..] => self.comment().map(Some),
            [b'<', b'!', b'[', ..] => self.literal().map(Some),
            [b'<', b'!', ..] => Err(XmlError::Dtd),
            [b'<', b'?', ..] => Err(XmlError::ProcessingInstruction),
            [b'<', ..] => self.start_tag().map(Some),
            _ => self.text().map(Some),
        }
    }

    /// XML 1.0 section 2.8: version 1.0, UTF-8 or nothing said, standalone or nothing said, in that order.
    fn declaration(&mut self) -> Result<(), XmlError> {
        let Some(inside) = self.rest.strip_prefix("<?xml").filter(|inside| inside.starts_with(is_space)) else {
            return Ok(());
        };
        let (inside, rest) = inside.split_once("?>").ok_or(XmlError::Malformed)?;
        self.rest = inside;
        let mut expected = ["version", "encoding", "standalone"].iter();
        let mut first = true;
        while self.space() && !self.rest.is_empty() {
            let RawAttribute { name, value } = self.attribute()?;
            expected.by_ref().find(|e| **e == name).ok_or(XmlError::Malformed)?;
            let valid = match name {
                "version" => value == "1.0",
                "encoding" => value.eq_ignore_ascii_case("utf-8"),
                _ => !first && matches!(value, "yes" | "no"),
            };
            if !valid || (first && name != "version") {
                return Err(if name == "encoding" { XmlError::Encoding } else { XmlError::Malformed });
            }
            first = false;
        }
        if first || !self.rest.is_empty() {
            return Err(XmlError::Malformed);
        }
        self.rest = rest;
        Ok(())
    }

    fn start_tag(&mut self) -> Result<Token<'a>, XmlError> {
        self.advance(1);
        let name = self.qualified_name()?;
        self.attributes.clear();
        loop {
            let space = self.space();
            if self.take("/>") {
                return Ok(Token::Start { name, empty: true });
            }
            if self.take(">") {
                return Ok(Token::Start { name, empty: false });
            }
            if !space {
                return Err(XmlError::Malformed);
            }
            if self.attributes.len() == self.attributes_max {
                return Err(XmlError::TooManyAttributes);
            }
            let attribute = self.attribute()?;
            self.work += self.attributes.len();
            if self.attributes.iter().any(|earlier| earlier.name == attribute.name) {
                return Err(XmlError::Malformed);
            }
            self.attributes.push(attribute);
        }
    }

    fn attribute(&mut self) -> Result<RawAttribute<'a>, XmlError> {
        let name = self.qualified_name()?;
        self.space();
        if !self.take("=") {
            return Err(XmlError::Malformed);
        }
        self.space();
        let quote = match self.rest.as_bytes().first() {
            Some(b'"') => '"',
            Some(b'\'') => '\'',
            _ => return Err(XmlError::Malformed),
        };
        self.advance(1);
        let length = self.rest.find(quote).ok_or(XmlError::Malformed)?;
        let value = self.advance(length);
        self.advance(1);
        if value.contains('<') {
            return Err(XmlError::Malformed);
        }
        check_characters(value)?;
        check_references(value)?;
        Ok(RawAttribute { name, value })
    }

    fn end_tag(&mut self) -> Result<Token<'a>, XmlError> {
        self.advance(2);
        let name = self.qualified_name()?;
        self.space();
        if self.take(">") { Ok(Token::End { name }) } else { Err(XmlError::Malformed) }
    }

    fn comment(&mut self) -> Result<Token<'a>, XmlError> {
        self.advance(4);
        let length = self.rest.find("--").ok_or(XmlError::Malformed)?;
        check_characters(self.advance(length))?;
        if self.take("-->") { Ok(Token::Comment) } else { Err(XmlError::Malformed) }
    }

    fn literal(&mut self) -> Result<Token<'a>, XmlError> {
        if !self.take("<![CDATA[") {
            return Err(XmlError::Malformed);
        }
        let length = self.rest.find("]]>").ok_or(XmlError::Malformed)?;
        let inside = self.advance(length);
        self.advance(3);
        check_characters(inside)?;
        Ok(Token::Literal(inside))
    }

    fn text(&mut self) -> Result<Token<'a>, XmlError> {
        let length = self.rest.find('<').unwrap_or(self.rest.len());
        let text = self.advance(length);
        if text.contains("]]>") {
            return Err(XmlError::Malformed);
        }
        check_characters(text)?;
        check_references(text)?;
        Ok(Token::Text(text))
    }

    /// A QName of Namespaces in XML 1.0: at most one colon, and something on both sides of it.
    fn qualified_name(&mut self) -> Result<&'a str, XmlError> {
        let length = self.rest.find(|c| !is_name_char(c) && c != ':').unwrap_or(self.rest.len());
        let name = self.advance(length);
        let valid = match name.split_once(':') {
            Some((prefix, local)) => is_nc_name(prefix) && is_nc_name(local),
            None => is_nc_name(name),
        };
        if valid { Ok(name) } else { Err(XmlError::Malformed) }
    }

    fn space(&mut self) -> bool {
        let trimmed = self.rest.trim_start_matches(is_space);
        let found = self.rest.len() - trimmed.len();
        self.work += found;
        self.rest = trimmed;
        found > 0
    }

    fn take(&mut self, expected: &str) -> bool {
        let found = self.rest.starts_with(expected);
        if found {
            self.advance(expected.len());
        }
        found
    }

    /// Takes octets that are known to be there and to end between characters.
    fn advance(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.work += length;
        self.rest = rest;
        taken
    }
}

/// White space as XML 1.0 defines it.
pub(crate) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// Whether a text is an NCName.
pub(crate) fn is_nc_name(text: &str) -> bool {
    text.starts_with(is_name_start) && text.chars().all(is_name_char)
}

fn is_name_start(c: char) -> bool {
    matches!(c, 'A'..='Z' | 'a'..='z' | '_' | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{2ff}'
        | '\u{370}'..='\u{37d}' | '\u{37f}'..='\u{1fff}' | '\u{200c}'..='\u{200d}' | '\u{2070}'..='\u{218f}'
        | '\u{2c00}'..='\u{2fef}' | '\u{3001}'..='\u{d7ff}' | '\u{f900}'..='\u{fdcf}' | '\u{fdf0}'..='\u{fffd}'
        | '\u{10000}'..='\u{effff}')
}

fn is_name_char(c: char) -> bool {
    is_name_start(c) || matches!(c, '-' | '.' | '0'..='9' | '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{203f}'..='\u{2040}')
}

fn is_character(c: char) -> bool {
    !matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
}

fn check_characters(text: &str) -> Result<(), XmlError> {
    // Nearly all text is plain ASCII, which needs no decoding.
    let plain = |b: &u8| matches!(b, b' '..=b'~' | b'\t' | b'\n' | b'\r');
    let valid = text.as_bytes().iter().all(plain) || text.chars().all(is_character);
    if valid { Ok(()) } else { Err(XmlError::Malformed) }
}

fn check_references(text: &str) -> Result<(), XmlError> {
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        rest = reference(&rest[at..])?.1;
    }
    Ok(())
}

/// The longest reference there is, `&#x10FFFF;` with some leading zeros.
const REFERENCE_BYTES_MAX: usize = 16;

/// The character that the reference at the start of a text stands for, and what follows it. Only the five predefined entities and numbers.
pub(crate) fn reference(text: &str) -> Result<(char, &str), XmlError> {
    let head = &text.as_bytes()[..text.len().min(REFERENCE_BYTES_MAX)];
    let end = head.iter().position(|b| *b == b';').ok_or(XmlError::Entity)?;
    let (name, rest) = (text.get(1..end).ok_or(XmlError::Entity)?, &text[end + 1..]);
    let character = match name {
        "lt" => '<',
        "gt" => '>',
        "amp" => '&',
        "quot" => '"',
        "apos" => '\'',
        _ => numeric(name)?,
    };
    Ok((character, rest))
}

fn numeric(name: &str) -> Result<char, XmlError> {
    let number = name.strip_prefix('#').ok_or(XmlError::Entity)?;
    let (digits, radix) = number.strip_prefix('x').map_or((number, 10), |hex| (hex, 16));
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(XmlError::Malformed);
    }
    let code = u32::from_str_radix(digits, radix).map_err(|_| XmlError::Malformed)?;
    char::from_u32(code).filter(|c| is_character(*c)).ok_or(XmlError::Malformed)
}
