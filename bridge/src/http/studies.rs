//! Studies: the list, one in full, its pictures, who may read it, and what was said about it.

use std::sync::Arc;

use alloy::primitives::B256;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use dicom_scp::Uid;

use super::caller::{Asked, At, Known};
use super::model::{EventRow, GrantRow, Grants, History, OfObject, Page, Preview, Studies, Study, StudyInFull};
use super::problem::Problem;
use super::{Api, blocking, now_s, page, place, rows, tagged, tagged_bytes};
use crate::access::{Principal, Right, Shared, Visible};
use crate::archive::{Listing, StudyNames, StudySummary};
use crate::decide::{self, Told};
use crate::dicomweb;
use crate::follow::StudyInfo;
use crate::payload::manifest::ManifestPreview;
use crate::proof::{self, Proof};

/// A study that the caller sees.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Its names here, if the index here shows it.
    pub(crate) names: Option<StudyNames>,
    /// Its name on the ledger, once it has one.
    pub(crate) study_id: Option<B256>,
    /// What the ledger says of it, if that has come here.
    pub(crate) info: Option<StudyInfo>,
}

/// Finds a study by its UID or its name on the ledger, for a caller who uses a right. One that the caller may not see is not found, by
/// the same steps.
pub(crate) async fn find(api: &Api, known: &Known, right: Right, given: &str) -> Result<Found, Problem> {
    let visible = api.access().sees(known.caller(), right);
    let (site, given) = (api.site().clone(), given.to_owned());
    blocking(move || {
        let (names, given_id) = if given.starts_with("0x") {
            let id = given.parse::<B256>().map_err(|_| Problem::not_found())?;
            (site.archive().names_of_id(&id)?, Some(id))
        } else {
            let uid = Uid::new(&given).ok().filter(|uid| uid.as_str() == given).ok_or_else(Problem::not_found)?;
            (site.archive().names_of_uid(&uid)?, None)
        };
        let study_id = names.as_ref().and_then(|names| names.study_id).or(given_id);
        // Asked for in any case: no study has the name zero.
        let info = site.consents().study(study_id.unwrap_or_default())?;
        let is_somewhere = names.is_some() || info.is_some();
        if is_somewhere && visible.shows(names.as_ref().map(|names| &names.uid), info.map(|info| info.owner)) {
            Ok(Found { names, study_id, info })
        } else {
            Err(Problem::not_found())
        }
    })
    .await?
}

fn study(api: &Api, known: &Known, summary: StudySummary) -> Study {
    let (id, source) = (summary.study_id.map(|id| id.to_string()), summary.source.map(|source| source.to_string()));
    let operator = known.caller().principal == Principal::Operator;
    Study::of(api.site().row_of(summary), id, source, operator)
}

/// The studies that the caller sees.
#[utoipa::path(get, path = "/studies", operation_id = "listStudies", tag = "studies", params(Page),
    responses((status = 200, description = "a page of studies", body = Studies), (status = 304, description = "as known")))]
pub(super) async fn list(
    State(api): State<Api>,
    known: Known,
    Asked(asked): Asked<Page>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    known.must(&api, Right::Find)?;
    let (limit, after) = (rows(asked.limit)?, place(asked.after)?);
    let here = api.clone();
    let found = blocking(move || match here.access().sees(known.caller(), Right::Find) {
        Visible::OwnedBy(owner) => owned(&here, &known, owner, after.as_deref(), limit),
        Visible::Shared(shared) => one_shared(&here, &known, &shared),
        Visible::Everything | Visible::All => all(&here, &known, after.as_deref(), limit),
        Visible::Nothing => Ok(Studies { studies: Vec::new(), next: None }),
    });
    tagged(&headers, &found.await??)
}

fn all(api: &Api, known: &Known, after: Option<&str>, limit: u32) -> Result<Studies, Problem> {
    let after = after.map_or(Ok(0), |after| after.parse().map_err(|_| Problem::not_found()))?;
    let found = api.site().archive().summaries_after(after, limit + 1)?;
    let named = found.into_iter().map(|summary| (summary.number.to_string(), summary)).collect();
    let (found, next) = page(named, limit);
    Ok(Studies { studies: found.into_iter().map(|summary| study(api, known, summary)).collect(), next })
}

/// The one that a link opens.
fn one_shared(api: &Api, known: &Known, shared: &Shared) -> Result<Studies, Problem> {
    let (archive, consents) = (api.site().archive(), api.site().consents());
    let is_seen = dicomweb::shows(Visible::Shared(*shared), &shared.study, archive, consents)?;
    let found = if is_seen { archive.summary(shared.study.as_str())? } else { None };
    Ok(Studies { studies: found.into_iter().map(|summary| study(api, known, summary)).collect(), next: None })
}

/// An owner's, as far as they are here.
fn owned(
    api: &Api,
    known: &Known,
    owner: alloy::primitives::Address,
    after: Option<&str>,
    limit: u32,
) -> Result<Studies, Problem> {
    let after = after.map(|after| after.parse::<B256>().map_err(|_| Problem::not_found())).transpose()?;
    let ids = api.site().consents().studies_of(owner, after, limit + 1)?;
    let (ids, next) = page(ids.into_iter().map(|id| (id.to_string(), id)).collect(), limit);
    let mut studies = Vec::with_capacity(ids.len());
    for id in ids {
        let Some(names) = api.site().archive().names_of_id(&id)? else { continue };
        let summary = api.site().archive().summary(names.uid.as_str())?;
        studies.extend(summary.map(|summary| study(api, known, summary)));
    }
    Ok(Studies { studies, next })
}

/// One study in full.
#[utoipa::path(get, path = "/studies/{study}", operation_id = "getStudy", tag = "studies",
    params(("study" = String, Path, description = "StudyInstanceUID, or the study's name on the ledger")),
    responses((status = 200, description = "the study", body = StudyInFull), (status = 304, description = "as known")))]
pub(super) async fn one(
    State(api): State<Api>,
    known: Known,
    At(given): At<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    known.must(&api, Right::Find)?;
    let found = find(&api, &known, Right::Find, &given).await?;
    let names = found.names.ok_or_else(Problem::not_found)?;
    let here = api.clone();
    let full = blocking(move || {
        let archive = here.site().archive();
        let summary = archive.summary(names.uid.as_str())?.ok_or_else(Problem::not_found)?;
        let listing = listing(&here, &names.uid)?;
        let previews = listing.iter().flat_map(|listing| &listing.manifest().previews);
        Ok::<_, Problem>(StudyInFull {
            study: study(&here, &known, summary),
            owner: found.info.map(|info| info.owner.to_string()),
            custodial: found.info.map(|info| info.custodial),
            tombstoned: found.info.is_some_and(|info| info.tombstoned),
            previews: previews.enumerate().map(|(number, preview)| shown(number, preview)).collect(),
        })
    });
    tagged(&headers, &full.await??)
}

/// The newest manifest of a study that is shown, if there is one. Blocks.
fn listing(api: &Api, uid: &Uid) -> Result<Option<Arc<Listing>>, Problem> {
    Ok(api.site().archive().shown_listing(uid)?)
}

fn shown(number: usize, preview: &ManifestPreview) -> Preview {
    Preview {
        number,
        shows: preview.kind.into(),
        subject: preview.subject.to_string(),
        media_type: preview.media_type.clone(),
        width: preview.width,
        height: preview.height,
        sha256: hex::encode(preview.sha256),
    }
}

/// A picture of a study, as it is kept.
#[utoipa::path(get, path = "/studies/{study}/preview/{number}", operation_id = "getPreview", tag = "studies",
    params(
        ("study" = String, Path, description = "StudyInstanceUID, or the study's name on the ledger"),
        ("number" = u32, Path, description = "`number` of one of the study's previews"),
    ),
    responses(
        (status = 200, description = "the picture", content((Vec<u8> = "image/jpeg"), (Vec<u8> = "image/png"))),
        (status = 304, description = "as known"),
    ))]
pub(super) async fn preview(
    State(api): State<Api>,
    known: Known,
    At((given, number)): At<(String, usize)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    known.must(&api, Right::Retrieve)?;
    let found = find(&api, &known, Right::Retrieve, &given).await?;
    let names = found.names.ok_or_else(Problem::not_found)?;
    let here = api.clone();
    let picture = blocking(move || {
        let listing = listing(&here, &names.uid)?.ok_or_else(Problem::not_found)?;
        let preview = listing.manifest().previews.get(number).cloned().ok_or_else(Problem::not_found)?;
        // Of another site's study it may not have come yet.
        let kept = here.site().archive().image(&preview.image)?.and_then(|(_, plain)| plain);
        Ok::<_, Problem>((preview, kept.ok_or_else(Problem::not_found)?))
    });
    let (preview, bytes) = picture.await??;
    Ok(tagged_bytes(&headers, &preview.media_type, &hex::encode(preview.sha256), || bytes))
}

/// A proof that an object of a study is on the ledger, which whoever has it can check without this site (`pacs-bridge verify --proof`).
#[utoipa::path(get, path = "/studies/{study}/proof", operation_id = "getProof", tag = "studies",
    params(("study" = String, Path, description = "StudyInstanceUID, or the study's name on the ledger"), OfObject),
    responses((status = 200, description = "the proof", body = Proof), (status = 409, description = "it is not final yet", body = Problem)))]
pub(super) async fn proof(
    State(api): State<Api>,
    known: Known,
    At(given): At<String>,
    Asked(asked): Asked<OfObject>,
) -> Result<axum::Json<Proof>, Problem> {
    known.must(&api, Right::Retrieve)?;
    let found = find(&api, &known, Right::Retrieve, &given).await?;
    let study = found.names.ok_or_else(Problem::not_found)?.uid;
    let object = Uid::new(&asked.instance).map_err(|_| Problem::not_found())?;
    let (here, visible) = (api.clone(), api.access().sees(known.caller(), Right::Retrieve));
    let is_of_it = blocking(move || {
        let (archive, consents) = (here.site().archive(), here.site().consents());
        let of_study = archive.instance(&object)?.is_some_and(|stored| stored.study_uid == study);
        Ok::<_, Problem>(of_study && dicomweb::shows(visible, &study, archive, consents)?)
    });
    if !is_of_it.await?? {
        return Err(Problem::not_found());
    }
    Ok(axum::Json(proof::make(api.site(), &object).await?))
}

/// Who may read a study until when, and who may not.
#[utoipa::path(get, path = "/studies/{study}/grants", operation_id = "listGrants", tag = "studies",
    params(("study" = String, Path, description = "StudyInstanceUID, or the study's name on the ledger"), Page),
    responses((status = 200, description = "a page of grants", body = Grants), (status = 304, description = "as known")))]
pub(super) async fn grants(
    State(api): State<Api>,
    known: Known,
    At(given): At<String>,
    Asked(asked): Asked<Page>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    known.must_see_consent(&api)?;
    let (limit, after) = (rows(asked.limit)?, place(asked.after)?);
    let found = find(&api, &known, Right::Find, &given).await?;
    let after = match after.map(|after| after.parse::<alloy::primitives::Address>()) {
        None => None,
        Some(Ok(after)) => Some(after),
        Some(Err(_)) => return Err(Problem::not_found()),
    };
    let (site, id) = (api.site().clone(), found.study_id.unwrap_or_default());
    let grants = blocking(move || site.consents().grants_of(id)).await??;
    let now = now_s();
    let of_page = grants.iter().filter(|grant| after.is_none_or(|after| grant.grantee > after));
    let (grants, next) = page(of_page.map(|g| (g.grantee.to_string(), GrantRow::of(g, now))).collect(), limit);
    tagged(&headers, &Grants { grants, next })
}

/// What was said about a study on the ledger.
#[utoipa::path(get, path = "/studies/{study}/history", operation_id = "listHistory", tag = "studies",
    params(("study" = String, Path, description = "StudyInstanceUID, or the study's name on the ledger"), Page),
    responses((status = 200, description = "a page of events", body = History), (status = 304, description = "as known")))]
pub(super) async fn history(
    State(api): State<Api>,
    known: Known,
    At(given): At<String>,
    Asked(asked): Asked<Page>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    known.must_see_consent(&api)?;
    let (limit, after) = (rows(asked.limit)?, place(asked.after)?);
    let found = find(&api, &known, Right::Find, &given).await?;
    let after: usize = after.map_or(Ok(0), |after| after.parse().map_err(|_| Problem::not_found()))?;
    let Some(info) = found.info else { return tagged(&headers, &History { history: Vec::new(), next: None }) };
    let ask = decide::Ask::Trace { study: info.study_id.to_string(), grantee: None };
    let told = decide::answer(api.site(), ask, &known.party()).await?;
    let Told::Trace(report) = told else { return Err(Problem::not_found()) };
    let numbered = report.history.into_iter().enumerate().skip(after);
    let named = numbered.map(|(at, row)| ((at + 1).to_string(), EventRow::from(row))).collect();
    let (history, next) = page(named, limit);
    tagged(&headers, &History { history, next })
}
