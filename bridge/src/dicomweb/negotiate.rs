//! What a client accepts (PS3.18 8.7, RFC 9110 12.5.1), and what it gets of what there is.
//!
//! Pure: must not know resources.

use std::cmp::Reverse;

use axum::http::{HeaderMap, header};

/// Most ranges that are looked at of one request.
const RANGES_MAX: usize = 64;

/// One range of media types that a client accepts, most wanted first in [`Accepted`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    /// In parts of a multipart body, as opposed to a body of its own.
    pub(super) multipart: bool,
    /// Of the body, or of each part: `type/subtype`, in lower case; `*/*` for any.
    pub(super) media_type: String,
    /// Transfer Syntax UID; `*` for whatever it is stored in; none where the client says nothing.
    pub(super) transfer_syntax: Option<String>,
    /// In thousandths.
    quality: u16,
}

/// What a client accepts, most wanted first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Accepted(Vec<Range>);

impl Accepted {
    /// By the query parameters `accept`, which win over the header because links and images cannot set that (PS3.18 8.3.3.1). Who says nothing
    /// accepts anything.
    pub(super) fn of(parameters: &[(String, String)], headers: &HeaderMap) -> Self {
        let asked = parameters.iter().filter(|(name, _)| name.eq_ignore_ascii_case("accept"));
        let by_query: Vec<&str> =
            asked.map(|(_, value)| value.as_str()).filter(|value| !value.trim().is_empty()).collect();
        let stated = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let lists = if by_query.is_empty() { stated.collect() } else { by_query };
        let ranges = lists.into_iter().flat_map(|list| outside_quotes(list, ',')).take(RANGES_MAX).filter_map(range);
        let mut ranges: Vec<Range> = ranges.filter(|range| range.quality > 0).collect();
        if ranges.is_empty() {
            let media_type = "*/*".to_owned();
            ranges.push(Range { multipart: false, media_type, transfer_syntax: None, quality: 1000 });
        }
        ranges.sort_by_key(|range| Reverse(range.quality));
        Self(ranges)
    }

    /// As a header field would say it.
    pub(super) fn written(field: &str) -> Self {
        Self::of(&[("accept".to_owned(), field.to_owned())], &HeaderMap::new())
    }

    /// The ranges, most wanted first.
    pub(super) fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.0.iter()
    }

    /// The first of some media types for bodies of their own that is accepted.
    pub(super) fn one_of<'a>(&self, offered: &[&'a str]) -> Option<&'a str> {
        let fits = |range: &Range| offered.iter().copied().find(|offer| !range.multipart && range.covers(offer));
        self.0.iter().find_map(fits)
    }
}

impl Range {
    /// Whether a media type is in this range.
    pub(super) fn covers(&self, media_type: &str) -> bool {
        match self.media_type.split_once('/') {
            Some(("*", "*")) => true,
            Some((kind, "*")) => media_type.split('/').next() == Some(kind),
            _ => self.media_type == media_type,
        }
    }

    /// Whether it names no media type at all.
    pub(super) fn is_any(&self) -> bool {
        self.media_type == "*/*"
    }
}

fn range(text: &str) -> Option<Range> {
    let mut parts = outside_quotes(text, ';').into_iter();
    let outer = parts.next()?.trim().to_ascii_lowercase();
    if !outer.contains('/') {
        return None;
    }
    let (mut inner, mut transfer_syntax, mut quality) = (None, None, 1000);
    for parameter in parts {
        let Some((name, value)) = parameter.split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "type" => inner = Some(value.to_ascii_lowercase()),
            "transfer-syntax" => transfer_syntax = Some(value.to_owned()),
            "q" => quality = value.parse::<f32>().map_or(1000, |q| (q.clamp(0.0, 1.0) * 1000.0) as u16),
            _ => {}
        }
    }
    let multipart = outer == "multipart/related" || outer == "multipart/*";
    let media_type = if multipart { inner.unwrap_or_else(|| "*/*".to_owned()) } else { outer };
    media_type.contains('/').then_some(Range { multipart, media_type, transfer_syntax, quality })
}

/// The parts of a list, where what is in quotes is whole.
fn outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    text.split(|c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn accepted(query: &[&str], header: &[&str]) -> Vec<(bool, String, Option<String>)> {
        let parameters: Vec<_> = query.iter().map(|value| ("accept".to_owned(), (*value).to_owned())).collect();
        let mut headers = HeaderMap::new();
        for value in header {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        let all = Accepted::of(&parameters, &headers).0;
        all.into_iter().map(|range| (range.multipart, range.media_type, range.transfer_syntax)).collect()
    }

    fn row(multipart: bool, media_type: &str, transfer_syntax: Option<&str>) -> (bool, String, Option<String>) {
        (multipart, media_type.to_owned(), transfer_syntax.map(str::to_owned))
    }

    #[test]
    fn what_viewers_send_is_understood() {
        let frames = "multipart/related; type=application/octet-stream; transfer-syntax=*";
        assert_eq!(accepted(&[], &[frames]), [row(true, "application/octet-stream", Some("*"))]);
        let bulk = "multipart/related; type=\"application/octet-stream\"";
        assert_eq!(accepted(&[], &[bulk]), [row(true, "application/octet-stream", None)]);
        assert_eq!(accepted(&["image/jpeg"], &[bulk]), [row(false, "image/jpeg", None)], "the parameter wins");
        assert_eq!(accepted(&[], &[]), [row(false, "*/*", None)]);
        assert_eq!(accepted(&[""], &["*/*;q=0"]), [row(false, "*/*", None)]);
        let image = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8";
        assert_eq!(accepted(&[], &[image]).last(), Some(&row(false, "*/*", None)));
        let several = "multipart/related; type=\"application/dicom\"; q=0.5, application/zip, image/jp2;q=0.7";
        let expected =
            [row(false, "application/zip", None), row(false, "image/jp2", None), row(true, "application/dicom", None)];
        assert_eq!(accepted(&[], &[several]), expected);
        assert_eq!(accepted(&[], &["multipart/related", "text/plain"])[0], row(true, "*/*", None));
        assert_eq!(accepted(&[], &["nonsense, a/b; x=\"1,2;3\", "]), [row(false, "a/b", None)]);
    }

    #[test]
    fn the_first_that_is_wanted_is_chosen() {
        let choose = |accept: &str, offered: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            Accepted::of(&[], &headers).one_of(offered)
        };
        assert_eq!(choose("image/*", &["application/json", "image/png"]), Some("image/png"));
        assert_eq!(
            choose("application/json;q=0.1, application/dicom+json", &["application/dicom+json", "application/json"]),
            Some("application/dicom+json")
        );
        assert_eq!(choose("*/*", &["application/dicom+json"]), Some("application/dicom+json"));
        assert_eq!(choose("multipart/related; type=\"application/dicom+xml\"", &["application/dicom+json"]), None);
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_upsets_it(text in "[ -~]{0,80}") {
            let parameters = [("accept".to_owned(), text)];
            prop_assert!(Accepted::of(&parameters, &HeaderMap::new()).ranges().count() > 0);
        }
    }
}
