//! An arena of nodes in document order, with namespaces resolved. Comments are left out: neither canonicalisation without comments nor
//! text values look at them, and so text nodes that a comment separates stay two.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use super::token::{RawAttribute, Token, Tokenizer, reference};
use super::{XmlError, scan};
use crate::limits::XmlLimits;

/// The namespace of the prefix `xml`.
const XML: &str = "http://www.w3.org/XML/1998/namespace";
/// The namespace of the prefix `xmlns`, which nobody may bind.
const XMLNS: &str = "http://www.w3.org/2000/xmlns/";

/// A node of one document: its place in document order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// A namespace name of one document; equal numbers are equal names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Namespace(u32);

impl Namespace {
    /// No namespace.
    pub(super) const NONE: Namespace = Namespace(0);
}

/// A prefix of one document; the default namespace has the empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefix(u32);

impl Prefix {
    pub(super) const DEFAULT: Prefix = Prefix(0);
    pub(super) const XML: Prefix = Prefix(1);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
struct Node<'a> {
    parent: u32,
    /// The place after the last descendant.
    end: u32,
    kind: Kind<'a>,
}

#[derive(Debug)]
enum Kind<'a> {
    Element(Element<'a>),
    Text(Cow<'a, str>),
}

#[derive(Debug)]
pub(super) struct Element<'a> {
    /// As written, with its prefix.
    pub(super) name: &'a str,
    pub(super) prefix: Prefix,
    pub(super) namespace: Namespace,
    local: &'a str,
    attributes: Range<usize>,
    declarations: Range<usize>,
}

#[derive(Debug)]
pub(super) struct Attribute<'a> {
    /// As written, with its prefix.
    pub(super) name: &'a str,
    pub(super) prefix: Prefix,
    pub(super) namespace: Namespace,
    pub(super) local: &'a str,
    pub(super) value: Cow<'a, str>,
}

/// A parsed document.
#[derive(Debug)]
pub struct Document<'a> {
    nodes: Vec<Node<'a>>,
    attributes: Vec<Attribute<'a>>,
    declarations: Vec<(Prefix, Namespace)>,
    namespaces: Vec<Cow<'a, str>>,
    prefixes: Vec<&'a str>,
    prefix_numbers: HashMap<&'a str, Prefix>,
}

impl<'a> Document<'a> {
    /// Checks the limits and the form of a document, then builds its tree.
    pub fn parse(input: &'a [u8], limits: &XmlLimits) -> Result<Document<'a>, XmlError> {
        Document::parse_counted(input, limits).map(|(document, _)| document)
    }

    /// As [`Document::parse`], with the work done: octets looked at and comparisons made in both passes.
    pub(crate) fn parse_counted(input: &'a [u8], limits: &XmlLimits) -> Result<(Document<'a>, usize), XmlError> {
        if input.len() > limits.bytes {
            return Err(XmlError::TooLong);
        }
        let text = std::str::from_utf8(input).map_err(|_| XmlError::Encoding)?;
        let counts = scan(text, limits)?;
        let mut builder = Builder::new(counts.elements);
        let work = builder.build(Tokenizer::new(text, limits.attributes)?)?;
        Ok((builder.document, counts.work + work))
    }

    /// The root element.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// All elements in document order.
    pub fn elements(&self) -> impl Iterator<Item = NodeId> {
        (0..self.nodes.len() as u32).map(NodeId).filter(|id| self.element(*id).is_some())
    }

    /// The child elements of an element.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.child_nodes(id).filter(|child| self.element(*child).is_some())
    }

    /// Children of both kinds.
    pub(super) fn child_nodes(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let end = self.nodes[id.0 as usize].end;
        let first = (id.0 + 1 < end).then_some(id.0 + 1);
        std::iter::successors(first, move |at| Some(self.nodes[*at as usize].end).filter(|next| *next < end))
            .map(NodeId)
    }

    /// The parent element; the root has none.
    pub fn parent(&self, id: NodeId) -> Option<NodeId> {
        (id.0 > 0).then(|| NodeId(self.nodes[id.0 as usize].parent))
    }

    /// Whether a node is an element of this name.
    pub fn is(&self, id: NodeId, namespace: &str, local: &str) -> bool {
        self.element(id).is_some_and(|e| e.local == local && self.namespace(e.namespace) == namespace)
    }

    /// Namespace name and local name of an element.
    pub fn name(&self, id: NodeId) -> (&str, &str) {
        self.element(id).map_or(("", ""), |e| (self.namespace(e.namespace), e.local))
    }

    /// The value of an attribute; the empty namespace means an attribute without prefix.
    pub fn attribute(&self, id: NodeId, namespace: &str, local: &str) -> Option<&str> {
        let mut found = self.attributes(id).iter();
        let found = found.find(|a| a.local == local && self.namespace(a.namespace) == namespace);
        found.map(|a| a.value.as_ref())
    }

    /// Local names and values of all attributes of an element, whatever their namespace.
    pub(crate) fn attribute_values(&self, id: NodeId) -> impl Iterator<Item = (&str, &str)> {
        self.attributes(id).iter().map(|a| (a.local, a.value.as_ref()))
    }

    /// All character data directly inside an element, comments ignored; `None` when it has child elements.
    pub fn text(&self, id: NodeId) -> Option<String> {
        let mut value = String::new();
        for child in self.child_nodes(id) {
            value.push_str(self.character_data(child)?);
        }
        Some(value)
    }

    /// Whether an element holds child elements and white space only.
    pub fn has_only_elements(&self, id: NodeId) -> bool {
        let mut texts = self.child_nodes(id).filter_map(|child| self.character_data(child));
        texts.all(|text| text.chars().all(super::is_space))
    }

    /// Whether a node is the only node inside its parent.
    pub(crate) fn is_sole_child(&self, id: NodeId) -> bool {
        self.parent(id).is_some_and(|parent| self.child_nodes(parent).eq([id]))
    }

    /// Puts character data in the place of an element that has no children.
    pub(crate) fn replace_empty_element(&mut self, id: NodeId, text: String) -> bool {
        let node = &mut self.nodes[id.0 as usize];
        let empty = node.end == id.0 + 1;
        if empty {
            node.kind = Kind::Text(Cow::Owned(text));
        }
        empty
    }

    pub(super) fn element(&self, id: NodeId) -> Option<&Element<'a>> {
        match &self.nodes[id.0 as usize].kind {
            Kind::Element(element) => Some(element),
            Kind::Text(_) => None,
        }
    }

    pub(super) fn character_data(&self, id: NodeId) -> Option<&str> {
        match &self.nodes[id.0 as usize].kind {
            Kind::Element(_) => None,
            Kind::Text(text) => Some(text),
        }
    }

    pub(super) fn attributes(&self, id: NodeId) -> &[Attribute<'a>] {
        self.element(id).map_or(&[], |e| &self.attributes[e.attributes.clone()])
    }

    pub(super) fn declarations(&self, id: NodeId) -> &[(Prefix, Namespace)] {
        self.element(id).map_or(&[], |e| &self.declarations[e.declarations.clone()])
    }

    pub(super) fn namespace(&self, namespace: Namespace) -> &str {
        &self.namespaces[namespace.0 as usize]
    }

    pub(super) fn prefix(&self, prefix: Prefix) -> &'a str {
        self.prefixes[prefix.index()]
    }

    pub(super) fn find_prefix(&self, name: &str) -> Option<Prefix> {
        self.prefix_numbers.get(name).copied()
    }

    pub(super) fn prefix_count(&self) -> usize {
        self.prefixes.len()
    }
}

/// A tree on its way. Names are numbered and every prefix has a stack of its bindings, so that no lookup depends on how much is declared.
struct Builder<'a> {
    document: Document<'a>,
    namespaces: HashMap<Cow<'a, str>, Namespace>,
    bindings: Vec<Vec<Namespace>>,
    open: Vec<NodeId>,
    comparisons: usize,
}

impl<'a> Builder<'a> {
    fn new(elements: usize) -> Self {
        let document = Document {
            nodes: Vec::with_capacity(2 * elements),
            attributes: Vec::new(),
            declarations: Vec::new(),
            namespaces: Vec::new(),
            prefixes: Vec::new(),
            prefix_numbers: HashMap::new(),
        };
        let namespaces = HashMap::new();
        let mut builder = Builder { document, namespaces, bindings: vec![], open: vec![], comparisons: 0 };
        for (prefix, namespace) in [("", ""), ("xml", XML)] {
            let (prefix, namespace) = (builder.prefix(prefix), builder.namespace(Cow::Borrowed(namespace)));
            builder.bindings[prefix.index()].push(namespace);
        }
        builder
    }

    /// Consumes tokens that `scan` has found to be well-formed; returns the work done.
    fn build(&mut self, mut tokens: Tokenizer<'a>) -> Result<usize, XmlError> {
        while let Some(token) = tokens.next()? {
            match token {
                Token::Start { name, empty } => {
                    self.start(name, tokens.attributes())?;
                    if empty {
                        self.end();
                    }
                }
                Token::End { .. } => self.end(),
                Token::Text(raw) => self.text(character_data(raw)?),
                Token::Literal(raw) => self.text(line_ends(raw)),
                Token::Comment => {}
            }
        }
        Ok(tokens.work() + self.comparisons)
    }

    fn start(&mut self, name: &'a str, raw: &[RawAttribute<'a>]) -> Result<(), XmlError> {
        let declarations = self.document.declarations.len();
        for attribute in raw {
            if let Some(prefix) = declared_prefix(attribute.name) {
                self.declare(prefix, attribute.value)?;
            }
        }
        let attributes = self.document.attributes.len();
        for attribute in raw.iter().filter(|a| declared_prefix(a.name).is_none()) {
            self.attribute(attribute, attributes)?;
        }
        let (prefix, local) = split(name);
        let prefix = self.known_prefix(prefix)?;
        let element = Element {
            name,
            prefix,
            namespace: self.bound(prefix)?,
            local,
            attributes: attributes..self.document.attributes.len(),
            declarations: declarations..self.document.declarations.len(),
        };
        let id = self.push(Kind::Element(element));
        self.open.push(id);
        Ok(())
    }

    fn end(&mut self) {
        let Some(id) = self.open.pop() else { return };
        let end = self.document.nodes.len() as u32;
        self.document.nodes[id.0 as usize].end = end;
        let Kind::Element(element) = &self.document.nodes[id.0 as usize].kind else { return };
        for (prefix, _) in &self.document.declarations[element.declarations.clone()] {
            self.bindings[prefix.index()].pop();
        }
    }

    fn text(&mut self, text: Cow<'a, str>) {
        if !self.open.is_empty() && !text.is_empty() {
            self.push(Kind::Text(text));
        }
    }

    fn push(&mut self, kind: Kind<'a>) -> NodeId {
        let at = self.document.nodes.len() as u32;
        let parent = self.open.last().map_or(0, |id| id.0);
        self.document.nodes.push(Node { parent, end: at + 1, kind });
        NodeId(at)
    }

    /// Namespaces in XML 1.0, sections 2.2 and 3: reserved names, and no undeclaring of prefixes. A namespace name that is no URI or a relative one is
    /// refused; what becomes of the latter in canonical XML is not defined.
    fn declare(&mut self, prefix: &'a str, value: &'a str) -> Result<(), XmlError> {
        let name = attribute_value(value)?;
        let reserved = prefix == "xmlns" || name == XMLNS || (prefix == "xml") != (name == XML);
        let undeclares = name.is_empty() && !prefix.is_empty();
        if reserved || undeclares || !(name.is_empty() || is_absolute(&name)) {
            return Err(XmlError::Malformed);
        }
        let (prefix, namespace) = (self.prefix(prefix), self.namespace(name));
        self.bindings[prefix.index()].push(namespace);
        self.document.declarations.push((prefix, namespace));
        Ok(())
    }

    fn attribute(&mut self, raw: &RawAttribute<'a>, first: usize) -> Result<(), XmlError> {
        let (prefix, local) = split(raw.name);
        let prefix = self.known_prefix(prefix)?;
        // The default namespace does not apply to attributes.
        let namespace = if prefix == Prefix::DEFAULT { Namespace::NONE } else { self.bound(prefix)? };
        let siblings = &self.document.attributes[first..];
        self.comparisons += siblings.len();
        if siblings.iter().any(|a| a.namespace == namespace && a.local == local) {
            return Err(XmlError::Malformed);
        }
        let value = attribute_value(raw.value)?;
        self.document.attributes.push(Attribute { name: raw.name, prefix, namespace, local, value });
        Ok(())
    }

    fn prefix(&mut self, name: &'a str) -> Prefix {
        *self.document.prefix_numbers.entry(name).or_insert_with(|| {
            self.document.prefixes.push(name);
            self.bindings.push(Vec::new());
            Prefix(self.document.prefixes.len() as u32 - 1)
        })
    }

    fn known_prefix(&self, name: &str) -> Result<Prefix, XmlError> {
        self.document.find_prefix(name).ok_or(XmlError::Malformed)
    }

    fn bound(&self, prefix: Prefix) -> Result<Namespace, XmlError> {
        self.bindings[prefix.index()].last().copied().ok_or(XmlError::Malformed)
    }

    fn namespace(&mut self, name: Cow<'a, str>) -> Namespace {
        if let Some(known) = self.namespaces.get(&name) {
            return *known;
        }
        let namespace = Namespace(self.document.namespaces.len() as u32);
        self.document.namespaces.push(name.clone());
        self.namespaces.insert(name, namespace);
        namespace
    }
}

fn split(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or(("", name))
}

/// The prefix that an attribute of this name declares, when it is a namespace declaration.
fn declared_prefix(name: &str) -> Option<&str> {
    if name == "xmlns" { Some("") } else { name.strip_prefix("xmlns:") }
}

/// Whether a namespace name is a URI (RFC 3986 sections 2 and 3.1), as far as its characters and its scheme say.
fn is_absolute(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=%".contains(c);
    name.chars().all(known)
        && name.split_once(':').is_some_and(|(scheme, _)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        })
}

/// Line ends as XML 1.0 section 2.11 has them.
fn line_ends(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\r') {
        return Cow::Borrowed(raw);
    }
    Cow::Owned(raw.replace("\r\n", "\n").replace('\r', "\n"))
}

fn character_data(raw: &str) -> Result<Cow<'_, str>, XmlError> {
    expanded(line_ends(raw))
}

/// An attribute's value as XML 1.0 section 3.3.3 normalises it without a DTD: white space as written becomes a space, as a reference it stays.
fn attribute_value(raw: &str) -> Result<Cow<'_, str>, XmlError> {
    let spaced = if raw.contains(['\t', '\n', '\r']) {
        Cow::Owned(line_ends(raw).replace(['\t', '\n'], " "))
    } else {
        Cow::Borrowed(raw)
    };
    expanded(spaced)
}

fn expanded(text: Cow<'_, str>) -> Result<Cow<'_, str>, XmlError> {
    if !text.contains('&') {
        return Ok(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let (character, after) = reference(&rest[at..])?;
        out.push(character);
        rest = after;
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}
