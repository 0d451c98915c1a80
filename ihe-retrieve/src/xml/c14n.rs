//! Exclusive XML Canonicalisation 1.0 without comments (`http://www.w3.org/2001/10/xml-exc-c14n#`) of one element and all in it.

use super::tree::{Document, Namespace, NodeId, Prefix};
use super::{attribute, text};

/// More canonical octets than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the canonical form is too long")]
pub struct CanonicalError;

/// The canonical form of the element `apex`. `inclusive` are the prefixes of `ec:InclusiveNamespaces`, `#default` among them where listed;
/// no more than `bytes_max` octets come out.
pub fn exclusive(
    document: &Document<'_>,
    apex: NodeId,
    inclusive: &[&str],
    bytes_max: usize,
) -> Result<Vec<u8>, CanonicalError> {
    let mut writer = Writer {
        document,
        inclusive: inclusive_set(document, inclusive),
        rendered: vec![None; document.prefix_count()],
        out: Vec::new(),
        bytes_max,
    };
    // Where nothing was rendered, the default namespace is none, and `xmlns=""` would be superfluous.
    writer.rendered[Prefix::DEFAULT.index()] = Some(Namespace::NONE);
    let inherited = writer.inherited(apex);
    writer.element(apex, inherited)?;
    Ok(writer.out)
}

/// By prefix, whether it is in the list. A listed prefix that the document does not know does not matter.
fn inclusive_set(document: &Document<'_>, listed: &[&str]) -> Vec<bool> {
    let mut set = vec![false; document.prefix_count()];
    for name in listed {
        let name = if *name == "#default" { "" } else { name };
        if let Some(prefix) = document.find_prefix(name) {
            set[prefix.index()] = true;
        }
    }
    set
}

struct Writer<'d, 'a> {
    document: &'d Document<'a>,
    inclusive: Vec<bool>,
    /// By prefix, what the nearest ancestor in the output that says something about it says.
    rendered: Vec<Option<Namespace>>,
    out: Vec<u8>,
    bytes_max: usize,
}

impl<'d, 'a> Writer<'d, 'a> {
    /// What is in scope at `apex`, of listed prefixes, from its ancestors and itself: the nearest declaration of each.
    fn inherited(&self, apex: NodeId) -> Vec<(Prefix, Namespace)> {
        let mut seen = vec![false; self.inclusive.len()];
        let mut found = Vec::new();
        let mut at = Some(apex);
        while let Some(id) = at {
            for (prefix, namespace) in self.document.declarations(id) {
                if self.inclusive[prefix.index()] && !std::mem::replace(&mut seen[prefix.index()], true) {
                    found.push((*prefix, *namespace));
                }
            }
            at = self.document.parent(id);
        }
        found
    }

    /// One element. `listed` are the namespaces of listed prefixes that may have to be written here although nothing uses them.
    fn element(&mut self, id: NodeId, listed: Vec<(Prefix, Namespace)>) -> Result<(), CanonicalError> {
        let Some(element) = self.document.element(id) else { return Ok(()) };
        let declared = self.newly_rendered(id, listed);
        self.out.push(b'<');
        self.out.extend_from_slice(element.name.as_bytes());
        for (prefix, namespace, _) in &declared {
            self.declaration(*prefix, *namespace);
        }
        self.attributes(id);
        self.out.push(b'>');
        for child in self.document.child_nodes(id) {
            match self.document.character_data(child) {
                Some(data) => text(&mut self.out, data),
                None => self.element(child, self.listed(child))?,
            }
        }
        self.out.extend_from_slice(b"</");
        self.out.extend_from_slice(element.name.as_bytes());
        self.out.push(b'>');
        for (prefix, _, before) in declared {
            self.rendered[prefix.index()] = before;
        }
        // One element adds at most what it and its namespaces are in the input, so looking here is soon enough.
        if self.out.len() > self.bytes_max { Err(CanonicalError) } else { Ok(()) }
    }

    /// What an element declares of listed prefixes: below the apex nothing else about them can be new.
    fn listed(&self, id: NodeId) -> Vec<(Prefix, Namespace)> {
        let declarations = self.document.declarations(id).iter();
        declarations.filter(|(prefix, _)| self.inclusive[prefix.index()]).copied().collect()
    }

    /// The namespaces an element must declare, in canonical order, each with what was rendered for its prefix before.
    fn newly_rendered(
        &mut self,
        id: NodeId,
        listed: Vec<(Prefix, Namespace)>,
    ) -> Vec<(Prefix, Namespace, Option<Namespace>)> {
        let document = self.document;
        let own = document.element(id).map(|e| (e.prefix, e.namespace));
        let qualified = document.attributes(id).iter().filter(|a| a.prefix != Prefix::DEFAULT);
        let used = own.into_iter().chain(qualified.map(|a| (a.prefix, a.namespace))).chain(listed);
        let mut declared = Vec::new();
        for (prefix, namespace) in used {
            let before = self.rendered[prefix.index()];
            if prefix != Prefix::XML && before != Some(namespace) {
                self.rendered[prefix.index()] = Some(namespace);
                declared.push((prefix, namespace, before));
            }
        }
        declared.sort_unstable_by_key(|(prefix, _, _)| document.prefix(*prefix));
        declared
    }

    fn declaration(&mut self, prefix: Prefix, namespace: Namespace) {
        self.out.extend_from_slice(b" xmlns");
        if prefix != Prefix::DEFAULT {
            self.out.push(b':');
            self.out.extend_from_slice(self.document.prefix(prefix).as_bytes());
        }
        self.value(self.document.namespace(namespace));
    }

    fn attributes(&mut self, id: NodeId) {
        let document = self.document;
        let mut sorted: Vec<_> = document.attributes(id).iter().collect();
        sorted.sort_unstable_by_key(|a| (document.namespace(a.namespace), a.local));
        for attribute in sorted {
            self.out.push(b' ');
            self.out.extend_from_slice(attribute.name.as_bytes());
            self.value(&attribute.value);
        }
    }

    fn value(&mut self, value: &str) {
        self.out.extend_from_slice(b"=\"");
        attribute(&mut self.out, value);
        self.out.push(b'"');
    }
}
