//! DICOMweb (PS3.18): studies for viewers in browsers and for programs, over the port of the HTTP API.
//!
//! * [`search`]: QIDO-RS. [`metadata`], [`objects`], [`frames`], [`bulk`], [`pictures`]: WADO-RS. [`store`]: STOW-RS, with [`upload`] and [`made`]. [`uri`]: WADO-URI.
//! * [`json`], [`from_json`]: the JSON model. [`negotiate`]: what a client accepts. [`multipart`], [`body`]: what it gets.
//!
//! Who may see what is asked of [`crate::access`] as everywhere; what a caller may not see is absent. Must not know SQL, pieces or keys.

mod ask;
mod body;
mod bulk;
mod frames;
mod from_json;
mod json;
mod made;
mod metadata;
mod multipart;
mod negotiate;
mod objects;
mod pictures;
mod search;
mod store;
mod trail;
mod upload;
mod uri;

use axum::routing::get;

use crate::http::Routes;
pub(crate) use ask::{owned, relational, shared_study, shows};
pub(crate) use body::{Out, streamed};
pub(crate) use trail::Trail;

/// Where every resource is.
pub(crate) const PREFIX: &str = "/dicomweb";

/// Whether a path below [`PREFIX`] is a search: it ends with what is searched for, not with a name.
pub(crate) fn is_search(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    segments.len() % 2 == 1 && matches!(segments.last(), Some(&("studies" | "series" | "instances")))
}

/// Whether a request sends objects, which takes as long as there are many.
pub(crate) fn is_upload(request: &axum::extract::Request) -> bool {
    let path = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
    request.method() == axum::http::Method::POST && path.starts_with("/studies")
}

/// Whether a name is a parameter of searches, which cannot be a person's name.
pub(crate) fn is_of_searches(name: &str) -> bool {
    matches!(name, "limit" | "offset" | "includefield" | "fuzzymatching" | "accept") || search::is_attribute(name)
}

/// The resources, by level of the information model (PS3.18 10.1.1).
pub(crate) fn routes() -> Routes {
    const STUDY: &str = "/dicomweb/studies/{study}";
    const SERIES: &str = "/dicomweb/studies/{study}/series/{series}";
    const INSTANCE: &str = "/dicomweb/studies/{study}/series/{series}/instances/{instance}";
    const FRAMES: &str = "/dicomweb/studies/{study}/series/{series}/instances/{instance}/frames/{frames}";
    let mut routes = Routes::new()
        .route("/dicomweb/studies", get(search::studies).post(store::store))
        .route("/dicomweb/wado", get(uri::retrieve))
        .route("/dicomweb/series", get(search::series))
        .route("/dicomweb/instances", get(search::instances))
        .route(&format!("{STUDY}/series"), get(search::series))
        .route(&format!("{STUDY}/instances"), get(search::instances))
        .route(&format!("{SERIES}/instances"), get(search::instances))
        .route(FRAMES, get(frames::retrieve))
        .route(&format!("{FRAMES}/rendered"), get(pictures::rendered))
        .route(&format!("{FRAMES}/thumbnail"), get(pictures::thumbnail))
        .route(&format!("{INSTANCE}/bulkdata/{{*place}}"), get(bulk::retrieve));
    for level in [STUDY, SERIES, INSTANCE] {
        routes = routes
            .route(
                level,
                if level == STUDY { get(objects::retrieve).post(store::store) } else { get(objects::retrieve) },
            )
            .route(&format!("{level}/metadata"), get(metadata::retrieve))
            .route(&format!("{level}/rendered"), get(pictures::rendered))
            .route(&format!("{level}/thumbnail"), get(pictures::thumbnail));
    }
    routes
}
