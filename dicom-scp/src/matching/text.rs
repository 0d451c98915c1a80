//! Text matching (PS3.4 C.2.2.2.1, C.2.2.2.4): person names without regard to case, everything else with; accents always count.

use crate::VR;

/// A single text value to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    value: String,
    person_name: bool,
}

impl Text {
    pub(super) fn new(value: &str, vr: VR) -> Self {
        let person_name = vr == VR::PN;
        let value = if person_name { folded(value) } else { value.to_owned() };
        Text { value, person_name }
    }

    /// The value to compare with; of person names the lower case form without trailing empty components.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Case does not count, and each component group of a stored name may match on its own (VR PN).
    pub fn is_person_name(&self) -> bool {
        self.person_name
    }

    /// Whether a stored value (without padding) is this one.
    pub fn matches(&self, value: &str) -> bool {
        if !self.person_name {
            return value == self.value;
        }
        let value = folded(value);
        value == self.value || value.split('=').any(|group| group == self.value)
    }
}

/// A text with wildcards. `%` and `_` are ordinary characters, so a back end must not hand this to SQL's `LIKE` unescaped;
/// [`Pattern::prefix`] serves an index, [`Pattern::matches`] decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    tokens: Vec<Token>,
    person_name: bool,
}

/// An element of a [`Pattern`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// This character.
    Literal(char),
    /// `?`: any one character.
    One,
    /// `*`: any characters, or none. Never two in a row.
    Any,
}

impl Pattern {
    pub(super) fn new(text: &str, vr: VR) -> Self {
        let person_name = vr == VR::PN;
        let text = if person_name { text.to_lowercase() } else { text.to_owned() };
        let mut tokens: Vec<Token> = Vec::new();
        for c in text.chars() {
            let token = match c {
                '*' => Token::Any,
                '?' => Token::One,
                c => Token::Literal(c),
            };
            if !(token == Token::Any && tokens.last() == Some(&Token::Any)) {
                tokens.push(token);
            }
        }
        Pattern { tokens, person_name }
    }

    /// What every match begins with; in lower case for person names. A name that matches with a later component group need not begin so.
    pub fn prefix(&self) -> String {
        let literal = |token: &Token| match token {
            Token::Literal(c) => Some(*c),
            _ => None,
        };
        self.tokens.iter().map_while(literal).collect()
    }

    /// The pattern, in lower case for person names.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Case does not count, and each component group of a stored name may match on its own (VR PN).
    pub fn is_person_name(&self) -> bool {
        self.person_name
    }

    /// Whether a stored value (without padding) matches.
    pub fn matches(&self, value: &str) -> bool {
        if !self.person_name {
            return glob(&self.tokens, value);
        }
        // Trailing delimiters of empty components may be there or not (PS3.5 6.2).
        let (lower, folded) = (value.to_lowercase(), folded(value));
        glob(&self.tokens, &lower)
            || glob(&self.tokens, &folded)
            || folded.contains('=') && folded.split('=').any(|group| glob(&self.tokens, group))
    }
}

/// Greedy matching with one point of return: time proportional to pattern times text at worst.
fn glob(pattern: &[Token], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(Token::Any) => {
                retry = Some((p, t));
                p += 1;
            }
            Some(Token::One) => (p, t) = (p + 1, t + 1),
            Some(Token::Literal(c)) if text.get(t) == Some(c) => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((star, from)) => {
                    retry = Some((star, from + 1));
                    (p, t) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|token| *token == Token::Any)
}

/// Lower case, without the delimiters of trailing empty components and component groups.
fn folded(name: &str) -> String {
    let lower = name.to_lowercase();
    let groups: Vec<&str> = lower.split('=').map(|group| group.trim_end_matches(['^', ' '])).collect();
    groups.join("=").trim_end_matches('=').to_owned()
}
