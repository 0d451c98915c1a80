//! A request, as every resource needs it: who asks, for what of which study, in what form, and by what address this server is known to him.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Tag, VR};
use dicom_scp::matching::{self, Level, QueryContext};

use super::PREFIX;
use super::negotiate::Accepted;
use crate::access::{Right, Shared, Visible};
use crate::archive::{Archive, ArchiveError, Stored};
use crate::follow::{Consents, FollowError};
use crate::http::{Api, Known, Problem, blocking};

const QUERY_RETRIEVE_LEVEL: Tag = Tag(0x0008, 0x0052);
/// Studies of an owner that are looked through in one go.
const OWNED_PAGE: u32 = 500;

/// What is asked for: a study, a series of it, or an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Target {
    pub(super) study: Option<Uid>,
    pub(super) series: Option<Uid>,
    pub(super) instance: Option<Uid>,
}

/// One request.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) known: Known,
    pub(super) target: Target,
    /// Frames asked for, or the place of bulk data: what the path says besides.
    pub(super) rest: String,
    /// Query parameters but `accept`, in order.
    pub(super) parameters: Vec<(String, String)>,
    pub(super) accepted: Accepted,
    pub(super) headers: HeaderMap,
    /// The path, for the audit trail.
    pub(super) path: String,
    /// Scheme and authority by which the client reached this server, as far as can be told.
    origin: Option<String>,
    public_url: String,
}

impl FromRequestParts<Api> for Ask {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let known = Known::from_request_parts(parts, api).await?;
        let raw = RawPathParams::from_request_parts(parts, api).await.map_err(|_| Problem::not_found())?;
        let mut named: BTreeMap<&str, &str> = raw.iter().collect();
        // What is no UID names nothing that is here.
        let mut uid = |name| match named.remove(name) {
            None => Ok(None),
            Some(text) => {
                Uid::new(text).ok().filter(|uid| uid.as_str() == text).map(Some).ok_or_else(Problem::not_found)
            }
        };
        let target = Target { study: uid("study")?, series: uid("series")?, instance: uid("instance")? };
        let rest = named.into_values().next().unwrap_or_default().to_owned();
        let all = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        let Query(all) = all.map_err(|error| Problem::bad_request(error.body_text()))?;
        let accepted = Accepted::of(&all, &parts.headers);
        let parameters = all.into_iter().filter(|(name, _)| !name.eq_ignore_ascii_case("accept")).collect();
        Ok(Self {
            known,
            target,
            rest,
            parameters,
            accepted,
            origin: origin(&parts.headers, api.is_encrypted(), api.settings().behind_proxy),
            public_url: api.settings().dicomweb.public_url.clone(),
            headers: parts.headers.clone(),
            path: parts.uri.path().to_owned(),
        })
    }
}

impl Ask {
    /// Where resources are as references in what is sent: below the configured public address, else by path alone, which is right wherever
    /// the client sees this server (PS3.18 F.2.2 allows references).
    pub(super) fn root(&self) -> String {
        match self.public_url.as_str() {
            "" => PREFIX.to_owned(),
            configured => configured.to_owned(),
        }
    }

    /// The same as URLs that stand for themselves, as far as the client's way here is known.
    pub(super) fn url_root(&self) -> String {
        match (&self.origin, self.public_url.as_str()) {
            (Some(origin), "") => format!("{origin}{PREFIX}"),
            _ => self.root(),
        }
    }

    /// The objects that are asked for, in the order of the index, once the audit trail knows that somebody reads them.
    pub(super) async fn objects(&self, api: &Api) -> Result<Vec<Stored>, Problem> {
        self.known.must(api, Right::Retrieve)?;
        let study = self.target.study.ok_or_else(Problem::not_found)?;
        let visible = api.access().sees(self.known.caller(), Right::Retrieve);
        let (site, target) = (api.site().clone(), self.target);
        let objects = blocking(move || {
            if !shows(visible, &study, site.archive(), site.consents())? {
                return Ok(Vec::new());
            }
            let query = target.query().ok_or_else(Problem::not_found)?;
            Ok::<_, Problem>(site.archive().select(&query)?)
        });
        let objects = objects.await??;
        if objects.is_empty() {
            return Err(Problem::not_found());
        }
        api.dicomweb_trail().reads(api.site().audit(), &self.known.party(), &study, &self.path).await?;
        Ok(objects)
    }

    /// The one object that is asked for.
    pub(super) async fn object(&self, api: &Api) -> Result<Stored, Problem> {
        self.objects(api).await?.into_iter().next().ok_or_else(Problem::not_found)
    }

    /// A query parameter.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

impl Target {
    fn query(&self) -> Option<matching::Query> {
        let mut keys = DataSet::new();
        let level = match (&self.series, &self.instance) {
            (None, _) => Level::Study,
            (Some(_), None) => Level::Series,
            (Some(_), Some(_)) => Level::Image,
        };
        for (level, uid) in [(Level::Study, self.study), (Level::Series, self.series), (Level::Image, self.instance)] {
            if let Some(uid) = uid {
                keys.put_uid(level.unique_key(), &uid);
            }
        }
        keys.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, level.as_str());
        matching::Query::parse_retrieve(&keys, &relational()).ok()
    }
}

/// Searches and retrieves name keys of any level (PS3.18 10.6.1.2), and dates with their times as one.
pub(crate) fn relational() -> QueryContext {
    QueryContext { model: dicom_scp::sop_class::Model::StudyRoot, relational: true, combined_date_time: true }
}

/// Whether somebody sees the study with this UID. What was received here and granted as well is shown as one study: an owner sees it
/// if all of it is his.
pub(crate) fn shows(visible: Visible, study: &Uid, archive: &Archive, consents: &Consents) -> Result<bool, Problem> {
    match visible {
        Visible::Everything | Visible::All => Ok(true),
        Visible::Nothing => Ok(false),
        Visible::OwnedBy(owner) => Ok(is_owned(owner, study, archive, consents)?),
        Visible::Shared(shared) => Ok(shared.study == *study && is_owned(shared.owner, study, archive, consents)?),
    }
}

/// The study that a link opens, if it still does.
pub(crate) fn shared_study(shared: &Shared, archive: &Archive, consents: &Consents) -> Result<Vec<Uid>, Problem> {
    let is_seen = shows(Visible::Shared(*shared), &shared.study, archive, consents)?;
    Ok(if is_seen { vec![shared.study] } else { Vec::new() })
}

fn is_owned(owner: Address, study: &Uid, archive: &Archive, consents: &Consents) -> Result<bool, OwnedError> {
    let ids = archive.ids_of_uid(study)?;
    for id in &ids {
        let Some(id) = id else { return Ok(false) };
        if consents.study(*id)?.is_none_or(|info| info.owner != owner) {
            return Ok(false);
        }
    }
    Ok(!ids.is_empty())
}

/// The studies here that somebody owns.
pub(crate) fn owned(owner: Address, archive: &Archive, consents: &Consents) -> Result<Vec<Uid>, Problem> {
    let (mut uids, mut after) = (Vec::new(), None::<B256>);
    loop {
        let ids = consents.studies_of(owner, after, OWNED_PAGE)?;
        let Some(last) = ids.last() else { return Ok(uids) };
        after = Some(*last);
        for id in &ids {
            let Some(names) = archive.names_of_id(id)? else { continue };
            if !uids.contains(&names.uid) && is_owned(owner, &names.uid, archive, consents)? {
                uids.push(names.uid);
            }
        }
    }
}

/// Why it cannot be told whose a study is.
enum OwnedError {
    Archive(ArchiveError),
    Follow(FollowError),
}

impl From<ArchiveError> for OwnedError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

impl From<FollowError> for OwnedError {
    fn from(error: FollowError) -> Self {
        Self::Follow(error)
    }
}

impl From<OwnedError> for Problem {
    fn from(error: OwnedError) -> Self {
        match error {
            OwnedError::Archive(error) => error.into(),
            OwnedError::Follow(error) => error.into(),
        }
    }
}

/// Scheme and authority as the client has them: what the proxy in front of us says (RFC 7239, or the older headers), else what the client says
/// itself. None when that is nothing that can be in a URL.
fn origin(headers: &HeaderMap, is_encrypted: bool, behind_proxy: bool) -> Option<String> {
    let said = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    let last = |text: String| text.rsplit(',').next().unwrap_or_default().trim().to_owned();
    let forwarded = if behind_proxy { said("forwarded").map(last) } else { None };
    let pair = |name: &str| {
        let pairs = forwarded.as_deref()?.split(';').filter_map(|pair| pair.trim().split_once('='));
        let found = pairs.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim_matches('"').to_owned())
    };
    let older = |name: &str| if behind_proxy { said(name).map(last) } else { None };
    let host = pair("host").or_else(|| older("x-forwarded-host")).or_else(|| said(header::HOST.as_str()))?;
    let proto = pair("proto").or_else(|| older("x-forwarded-proto"));
    let scheme = match proto.as_deref() {
        Some("https") => "https",
        Some("http") => "http",
        // A proxy that does not say speaks TLS: that is what it is for.
        _ if is_encrypted || behind_proxy => "https",
        _ => "http",
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    (!host.is_empty() && host.chars().all(plain)).then(|| format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_way_here_is_the_proxys_word_before_the_clients() {
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
        };
        let host = ("host", "bridge.example:8080");
        assert_eq!(origin(&headers(&[host]), false, false).unwrap(), "http://bridge.example:8080");
        assert_eq!(origin(&headers(&[host]), true, false).unwrap(), "https://bridge.example:8080");
        let spoofed = headers(&[host, ("x-forwarded-host", "evil.example"), ("forwarded", "host=evil.example")]);
        assert_eq!(
            origin(&spoofed, false, false).unwrap(),
            "http://bridge.example:8080",
            "nobody said that there is a proxy"
        );
        let forwarded =
            headers(&[host, ("forwarded", "host=a.example, for=1.2.3.4;host=\"pacs.example\";proto=https")]);
        assert_eq!(origin(&forwarded, false, true).unwrap(), "https://pacs.example");
        let older = headers(&[host, ("x-forwarded-host", "pacs.example"), ("x-forwarded-proto", "http")]);
        assert_eq!(origin(&older, false, true).unwrap(), "http://pacs.example");
        assert_eq!(origin(&headers(&[("host", "a\"b")]), false, false), None);
        assert_eq!(origin(&HeaderMap::new(), false, false), None);
    }
}
