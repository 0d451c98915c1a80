//! What is served over HTTP, and to whom. Each resource is one line; what each caller gets is computed from it.

use serde_json::{Value, json};

use crate::callers::{Caller, Way};

/// Whom a resource answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Everybody, alike.
    Public,
    /// Whoever is somebody.
    Login,
    /// One of these rights.
    Right(&'static [&'static str]),
    /// A right, and to see the study.
    Study(&'static str),
    /// The same of a search, in which a study that is not seen is not found.
    Search(&'static str),
    /// `find`, and to be no link: what was said, in lists.
    Told,
    /// The same about a study.
    ToldOf,
    /// The operator with `decide`, for a study that he sees.
    Custody,
    /// An account with `decide`.
    Account,
    /// The same, for a study that it owns.
    Owner,
    /// The operator with these rights.
    Operator(&'static [&'static str]),
}

/// What is sent.
#[derive(Debug, Clone)]
pub(crate) enum Sent {
    Nothing,
    Json(Value),
    /// Fields besides that of the login.
    Form(&'static [(&'static str, &'static str)]),
    /// A form of somebody who need not be logged in.
    Open(&'static [(&'static str, &'static str)]),
    /// Media type and content.
    Raw(&'static str, &'static str),
}

/// A resource and a method.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) method: &'static str,
    /// As the router has it.
    pub(crate) path: &'static str,
    /// Query parameters.
    pub(crate) query: &'static str,
    pub(crate) needs: Needs,
    pub(crate) sent: Sent,
    /// What it answers to those whom it answers.
    pub(crate) good: u16,
}

impl Row {
    /// What a caller gets: one of these.
    pub(crate) fn expected(&self, caller: &Caller) -> Vec<u16> {
        let Some(who) = caller.is_good_for(self) else { return vec![self.nobody()] };
        let has = |right: &str| who.rights.contains(&right);
        let of_study = |right: &str, absent: u16| match (has(right), who.sees) {
            (false, _) => 403,
            (true, false) => absent,
            (true, true) => self.good,
        };
        let only = |allowed: bool| if allowed { self.good } else { 403 };
        match self.needs {
            Needs::Public | Needs::Login => vec![self.good],
            Needs::Right(any) => vec![only(any.iter().any(|right| has(right)))],
            Needs::Study(right) => vec![of_study(right, 404)],
            Needs::Search(right) => vec![of_study(right, 204)],
            Needs::Told => vec![only(has("find") && !who.is_link)],
            Needs::ToldOf if who.is_link => vec![403],
            Needs::ToldOf => vec![of_study("find", 404)],
            Needs::Account => vec![only(has("decide") && who.is_account)],
            Needs::Operator(all) => vec![only(who.is_operator && all.iter().all(|right| has(right)))],
            // Whether it is asked first who decides or about what does not matter: both tell nothing.
            Needs::Custody if who.is_operator => vec![of_study("decide", 404)],
            Needs::Owner if who.is_account => vec![of_study("decide", 404)],
            Needs::Custody | Needs::Owner => vec![403, 404],
        }
    }

    fn nobody(&self) -> u16 {
        match (self.needs, self.is_page()) {
            (Needs::Public, _) => self.good,
            // Led to where he logs in.
            (_, true) => 303,
            (_, false) => 401,
        }
    }

    pub(crate) fn is_page(&self) -> bool {
        self.path.starts_with("/ui")
    }

    /// Whether a study is named.
    pub(crate) fn is_about_study(&self) -> bool {
        let text = format!("{}{}{:?}", self.path, self.query, self.sent);
        text.contains("{study}") || text.contains("{id}")
    }

    /// Whether a way to be somebody counts here at all: pages take logins, the others take them for reading.
    pub(crate) fn takes(&self, way: Way) -> bool {
        match (self.is_page(), way) {
            (true, way) => way == Way::Session,
            (false, Way::Session) => self.method == "GET",
            (false, Way::Token) => true,
        }
    }
}

pub(crate) const FIND: &str = "find";
const GRANTEE: &str = "0x2d3e9c41a7b5f608192a3b4c5d6e7f8091a2b3c4";

fn row(method: &'static str, path: &'static str, needs: Needs, sent: Sent, good: u16) -> Row {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    Row { method, path, query, needs, sent, good }
}

fn get(path: &'static str, needs: Needs) -> Row {
    row("GET", path, needs, Sent::Nothing, 200)
}

fn post(path: &'static str, needs: Needs, sent: Sent, good: u16) -> Row {
    row("POST", path, needs, sent, good)
}

/// Every resource. Those that end something come last.
pub(crate) fn rows() -> Vec<Row> {
    [api(), dicomweb(), pages()].concat()
}

fn api() -> Vec<Row> {
    use Needs::*;
    let decision = || json!({ "study": "{id}", "decision": { "kind": "revoke", "grantee": GRANTEE } });
    let glass = json!({ "study": "{id}", "reason": "legal-order", "seconds": 0 });
    let ask = json!({ "study": "{id}", "mode": "full", "purpose": "TREAT" });
    let claim = json!({ "code": "ABCDE-ABCDE-ABCDE-ABCDE-ABCDE", "owner": GRANTEE, "signature": "0x" });
    vec![
        get("/api/v1/openapi.json", Public),
        get("/api/v1/health/live", Public),
        get("/api/v1/health/ready", Public),
        get("/api/v1/me", Login),
        get("/api/v1/studies", Right(&[FIND])),
        get("/api/v1/studies/{study}", Study(FIND)),
        get("/api/v1/studies/{study}/preview/{number}", Study("retrieve")),
        get("/api/v1/studies/{study}/proof?instance={instance}", Study("retrieve")),
        get("/api/v1/studies/{study}/grants", ToldOf),
        get("/api/v1/studies/{study}/history", ToldOf),
        get("/api/v1/requests?state=all", Told),
        get("/api/v1/events", Right(&[FIND])),
        get("/api/v1/sources", Right(&["sources"])),
        get("/api/v1/status", Operator(&["status"])),
        post("/api/v1/actions/submit", Public, Sent::Json(json!({ "signature": "0x" })), 400),
        post("/api/v1/claims", Public, Sent::Json(claim), 403),
        post("/api/v1/actions", Study("decide"), Sent::Json(decision()), 200),
        post("/api/v1/decisions", Custody, Sent::Json(decision()), 409),
        post("/api/v1/break-glass", Operator(&["break-glass"]), Sent::Json(glass), 400),
        post("/api/v1/requests", Study("request"), Sent::Json(ask), 200),
    ]
}

fn dicomweb() -> Vec<Row> {
    use Needs::*;
    // Who may store is told that this is nothing to be stored.
    let letter = || Sent::Raw("text/plain", "a letter");
    let mut rows = vec![
        get("/dicomweb/studies?StudyInstanceUID={study}", Search(FIND)),
        get("/dicomweb/series?StudyInstanceUID={study}", Search(FIND)),
        get("/dicomweb/instances?StudyInstanceUID={study}", Search(FIND)),
        get("/dicomweb/studies/{study}/series", Search(FIND)),
        get("/dicomweb/studies/{study}/instances", Search(FIND)),
        get("/dicomweb/studies/{study}/series/{series}/instances", Search(FIND)),
        post("/dicomweb/studies", Right(&["store"]), letter(), 415),
        post("/dicomweb/studies/{study}", Right(&["store"]), letter(), 415),
    ];
    for path in [
        "/dicomweb/studies/{study}",
        "/dicomweb/studies/{study}/metadata",
        "/dicomweb/studies/{study}/rendered?accept=multipart/related",
        "/dicomweb/studies/{study}/thumbnail",
        "/dicomweb/studies/{study}/series/{series}",
        "/dicomweb/studies/{study}/series/{series}/metadata",
        "/dicomweb/studies/{study}/series/{series}/rendered?accept=multipart/related",
        "/dicomweb/studies/{study}/series/{series}/thumbnail",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/metadata",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/rendered",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/thumbnail",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/bulkdata/{*place}",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/frames/{frames}/rendered",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/frames/{frames}/thumbnail",
        "/dicomweb/wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}",
    ] {
        rows.push(get(path, Study("retrieve")));
    }
    rows
}

fn pages() -> Vec<Row> {
    use Needs::*;
    const REVOKE: Sent = Sent::Form(&[("kind", "revoke"), ("grantee", GRANTEE), ("study", "{id}")]);
    const NOBODY: &[(&str, &str)] = &[("code", "x"), ("account", GRANTEE), ("signature", "0x"), ("number", "x.1.00")];
    let trail = &[FIND, "status"];
    vec![
        row("GET", "/ui", Public, Sent::Nothing, 303),
        get("/ui/login", Public),
        // Where no issuer is configured, nothing is there (tests/oidc.rs has one).
        row("GET", "/ui/login/issuer", Public, Sent::Nothing, 404),
        row("GET", "/ui/login/callback", Public, Sent::Nothing, 404),
        get("/ui/claim", Public),
        get("/ui/shared", Public),
        get("/ui/assets/{name}", Public),
        row("GET", "/ui/{*nowhere}", Public, Sent::Nothing, 404),
        post("/ui/login", Public, Sent::Open(&[("token", "pbt_0123456789abcdef_00")]), 401),
        post("/ui/login/key", Public, Sent::Open(NOBODY), 401),
        post("/ui/claim", Public, Sent::Open(NOBODY), 403),
        get("/ui/", Right(&[FIND])),
        get("/ui/studies/{study}", Study(FIND)),
        get("/ui/studies/{study}/pictures/{picture}", Study("retrieve")),
        get("/ui/consent", Account),
        get("/ui/requests", Right(&["request"])),
        get("/ui/ledger", Right(&["status", "sources"])),
        get("/ui/audit", Operator(trail)),
        get("/ui/audit.csv", Operator(trail)),
        get("/ui/operations", Operator(&["status"])),
        post("/ui/consent/choices", Owner, REVOKE, 200),
        post("/ui/consent/signed", Account, Sent::Form(&[("action", "{}")]), 400),
        post("/ui/requests", Right(&["request"]), Sent::Form(&[("study", "{id}"), ("mode", "all")]), 400),
        post("/ui/studies/{study}/verification", Study("retrieve"), Sent::Form(&[]), 303),
        post("/ui/studies/{study}/decisions", Custody, REVOKE, 409),
        post("/ui/studies/{study}/code", Custody, Sent::Form(&[]), 409),
        post("/ui/studies/{study}/links", Owner, Sent::Form(&[("name", "x"), ("until", "never")]), 400),
        post("/ui/studies/{study}/links/{link}", Owner, Sent::Form(&[]), 303),
        post("/ui/audit/verification", Operator(trail), Sent::Form(&[]), 303),
        post("/ui/operations/echo", Operator(&["status"]), Sent::Form(&[("peer", "NOBODY")]), 400),
        post("/ui/logout", Login, Sent::Form(&[]), 303),
    ]
}
