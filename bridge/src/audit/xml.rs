//! Audit messages as XML of the DICOM schema (PS3.15 A.5.1), on one line; and back, as far as a list of them needs. Pure.

use super::event::{Code, Event, Object, Party, Who};

/// Who makes these messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// AuditSourceID.
    pub id: String,
    /// AuditEnterpriseSiteID; none when empty.
    pub site: String,
    /// Our AE title.
    pub ae_title: String,
    /// Process id.
    pub process: u32,
}

/// The message of an event that happened at `time_ms` (since 1970).
#[must_use]
pub fn message(event: &Event, time_ms: u64, source: &Source) -> String {
    let mut xml = Writer(String::with_capacity(2048));
    xml.0.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
    xml.open("AuditMessage", &[]);
    xml.identification(event, time_ms);
    for (who, role) in &event.participants {
        xml.participant(who, role.as_ref(), source);
    }
    let mut attributes = vec![("AuditSourceID", source.id.as_str())];
    if !source.site.is_empty() {
        attributes.push(("AuditEnterpriseSiteID", &source.site));
    }
    xml.open("AuditSourceIdentification", &attributes);
    // Application server process tier.
    xml.empty("AuditSourceTypeCode", &[("csd-code", "4")]);
    xml.close("AuditSourceIdentification");
    event.objects.iter().for_each(|object| xml.object(object));
    xml.close("AuditMessage");
    xml.0
}

struct Writer(String);

impl Writer {
    fn tag(&mut self, name: &str, attributes: &[(&str, &str)], end: &str) {
        self.0.push('<');
        self.0.push_str(name);
        for (name, value) in attributes {
            self.0.push(' ');
            self.0.push_str(name);
            self.0.push_str("=\"");
            escape(value, &mut self.0);
            self.0.push('"');
        }
        self.0.push_str(end);
    }

    fn open(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.tag(name, attributes, ">");
    }

    fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.tag(name, attributes, "/>");
    }

    fn close(&mut self, name: &str) {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    fn text(&mut self, name: &str, text: &str) {
        self.open(name, &[]);
        escape(text, &mut self.0);
        self.close(name);
    }

    fn code(&mut self, name: &str, code: &Code) {
        self.empty(name, &[("csd-code", code.value), ("codeSystemName", code.system), ("originalText", code.meaning)]);
    }

    fn identification(&mut self, event: &Event, time_ms: u64) {
        let outcome = (event.outcome as u8).to_string();
        let (action, time) = (event.action.to_string(), instant(time_ms));
        self.open(
            "EventIdentification",
            &[("EventActionCode", &action), ("EventDateTime", &time), ("EventOutcomeIndicator", &outcome)],
        );
        self.code("EventID", &event.id);
        event.types.iter().for_each(|code| self.code("EventTypeCode", code));
        if let Some(why) = &event.why {
            self.text("EventOutcomeDescription", why);
        }
        self.close("EventIdentification");
    }

    fn participant(&mut self, who: &Who, role: Option<&Code>, source: &Source) {
        let (process, titles) = (source.process.to_string(), format!("AETITLES={}", source.ae_title));
        let this;
        let party = match who {
            Who::Party(party) => party,
            Who::Node => {
                this = Party { alternative: Some(titles), ..Party::named(&source.ae_title) };
                &this
            }
            Who::Process => {
                this = Party { alternative: Some(process), ..Party::named(&source.ae_title) };
                &this
            }
            Who::Endpoint(url) => {
                this = Party { alternative: Some(process), ..Party::named(url) };
                &this
            }
        };
        let mut attributes = vec![("UserID", party.id.as_str())];
        attributes.extend(party.alternative.as_deref().map(|alternative| ("AlternativeUserID", alternative)));
        attributes.push(("UserIsRequestor", if party.is_requestor { "true" } else { "false" }));
        if let Some(address) = &party.address {
            let kind = if address.parse::<std::net::IpAddr>().is_ok() { "2" } else { "1" };
            attributes.extend([("NetworkAccessPointID", address.as_str()), ("NetworkAccessPointTypeCode", kind)]);
        }
        match role {
            None => self.empty("ActiveParticipant", &attributes),
            Some(role) => {
                self.open("ActiveParticipant", &attributes);
                self.code("RoleIDCode", role);
                self.close("ActiveParticipant");
            }
        }
    }

    fn object(&mut self, object: &Object) {
        let kind = object.kind.to_string();
        let role = object.role.to_string();
        let mut attributes = vec![
            ("ParticipantObjectID", object.id.as_str()),
            ("ParticipantObjectTypeCode", &kind),
            ("ParticipantObjectTypeCodeRole", &role),
        ];
        let life = object.life_cycle.map(|stage| stage.to_string());
        attributes.extend(life.as_deref().map(|stage| ("ParticipantObjectDataLifeCycle", stage)));
        self.open("ParticipantObjectIdentification", &attributes);
        self.code("ParticipantObjectIDTypeCode", &object.id_type);
        match &object.query {
            Some(query) => self.text("ParticipantObjectQuery", &base64(query)),
            // The schema demands a name or a query. Nobody's name belongs here, so it says what kind of thing this is.
            None => self.text("ParticipantObjectName", object.id_type.meaning),
        }
        for (kind, value) in &object.details {
            self.empty("ParticipantObjectDetail", &[("type", kind), ("value", &base64(value.as_bytes()))]);
        }
        if !object.classes.is_empty() {
            self.open("ParticipantObjectDescription", &[]);
            for (class, count) in &object.classes {
                self.empty("SOPClass", &[("UID", class), ("NumberOfInstances", &count.to_string())]);
            }
            self.close("ParticipantObjectDescription");
        }
        self.close("ParticipantObjectIdentification");
    }
}

/// Text of an attribute or element. What XML 1.0 has no way to say becomes the replacement character.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' => out.push_str("&#9;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\0'..='\u{1f}' | '\u{7f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A moment in UTC as XML Schema's dateTime and RFC 3339 write it, with milliseconds.
#[must_use]
pub fn instant(time_ms: u64) -> String {
    let (days, rest) = (time_ms / 86_400_000, time_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute) = (rest / 3_600_000, rest / 60_000 % 60);
    let (second, millisecond) = (rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted in eras of 400 years from March, so that the leap day is the last of a year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The start tags of a message of ours, in order: name and attributes. Whatever else is in it is passed over.
pub(super) fn tags(xml: &str) -> impl Iterator<Item = (&str, Vec<(&str, String)>)> {
    // Of what we write, no attribute holds a `>`.
    xml.split('<').skip(1).filter_map(|piece| {
        let (tag, _) = piece.split_once('>')?;
        let tag = tag.trim_end_matches('/');
        let name = tag.split(' ').next().filter(|name| !name.starts_with(['/', '?']))?;
        Some((name, attributes(&tag[name.len()..])))
    })
}

/// The text of the first element of a name in a message of ours, if there is one.
pub(super) fn text_of(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split('<').next().map(unescape)
}

fn attributes(mut text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let Some((value, rest)) = rest.split_once('"') else { break };
        found.push((name.trim(), unescape(value)));
        text = rest;
    }
    found
}

fn unescape(text: &str) -> String {
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#9;", "\t"), ("&#10;", "\n"), ("&#13;", "\r")];
    let plain = pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    plain.replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        assert_eq!(instant(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(instant(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(instant(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(instant(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(instant(1_709_210_096_789), "2024-02-29T12:34:56.789Z");
    }

    #[test]
    fn nothing_from_outside_can_end_an_attribute_or_a_line() {
        let hostile = "a\"b<c>&d\n\r\t\u{0}\u{7}é\u{fffe}";
        let mut escaped = String::new();
        escape(hostile, &mut escaped);
        assert_eq!(escaped, "a&quot;b&lt;c&gt;&amp;d&#10;&#13;&#9;\u{fffd}\u{fffd}é\u{fffd}");
        let mut writer = Writer(String::new());
        writer.empty("X", &[("A", hostile), ("B", "&lt;")]);
        let read: Vec<_> = tags(&writer.0).collect();
        let plain = "a\"b<c>&d\n\r\t\u{fffd}\u{fffd}é\u{fffd}";
        assert_eq!(read, [("X", vec![("A", plain.to_owned()), ("B", "&lt;".to_owned())])]);
    }
}
