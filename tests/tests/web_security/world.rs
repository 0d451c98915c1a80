//! The site under test: studies of two patients with keys of their own and of one with hostile names, a viewer, and what is known of them.

use std::path::PathBuf;

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use bridge::access::{Principal, Shared};
use bridge::demo::phantom::{Phantom, Subject, ct_series};
use dicom_scp::Uid;
use serde_json::{Value, json};
use tests::Bridge;
use tests::dicom::{connect, slices, store, subject};
use tests::http::{Answer, Client, address, send};
use tests::person::Person;

use crate::callers::{Caller, Maker, from_somewhere, says};
use crate::rules;
use crate::table::{Row, Sent};

pub(crate) const GRANTEE: &str = "0x2d3e9c41a7b5f608192a3b4c5d6e7f8091a2b3c4";
const KEY_HASH: &str = "0x3333333333333333333333333333333333333333333333333333333333333333";
pub(crate) const ABSENT_ID: &str = "0x4444444444444444444444444444444444444444444444444444444444444444";
/// Beside the viewer's folder, and not in it.
pub(crate) const SECRET: &str = "what is not for the web";

const TOML: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n\
    [http]\nbind = \"127.0.0.1:0\"\nbehind_proxy = true\nrequests_per_minute = 10000000\nreceive_timeout_ms = 2000\n";

/// The names of a study in a request.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) study: String,
    pub(crate) id: String,
    pub(crate) series: String,
    pub(crate) instance: String,
    pub(crate) picture: String,
    pub(crate) link: String,
}

pub(crate) struct World {
    pub(crate) bridge: Bridge,
    pub(crate) known: Vec<Caller>,
    pub(crate) strangers: Vec<Caller>,
    /// The study that is asked about, that of another patient, and none.
    pub(crate) one: Names,
    pub(crate) two: Names,
    pub(crate) absent: Names,
    pub(crate) operator: Client,
    /// The patient of the hostile names.
    pub(crate) patient: Person,
    pub(crate) hostile: Subject,
    /// A file that every page loads.
    pub(crate) asset: String,
    /// What tells the study from all others.
    secrets: Vec<String>,
    /// What it shares with those of the same house.
    common: Vec<String>,
    /// What was said about the study, which links do not show.
    said: Vec<String>,
}

fn peers() -> String {
    let peer = |title: &str, allow: &str| format!("[[peer]]\nae_title = '{title}'\nallow = [{allow}]\n");
    [
        peer("VIEWER", "\"find\", \"get\""),
        peer("FINDER", "\"find\""),
        peer("FETCHER", "\"get\""),
        peer("SENDER", "\"store\""),
        peer("NOTHING", "\"echo\""),
        peer("<img src=x>", "\"echo\""),
    ]
    .concat()
}

/// A viewer's folder, with links that lead out of it.
fn viewer(dir: &std::path::Path) -> PathBuf {
    let folder = dir.join("viewer");
    std::fs::create_dir_all(folder.join("assets")).unwrap();
    std::fs::create_dir(dir.join("beside")).unwrap();
    std::fs::write(folder.join("index.html"), "<html><script>window.a = 1</script>the viewer</html>").unwrap();
    std::fs::write(folder.join("assets/app.js"), "the script").unwrap();
    std::fs::write(dir.join("beside/secret.txt"), SECRET).unwrap();
    std::os::unix::fs::symlink(dir.join("beside/secret.txt"), folder.join("link.txt")).unwrap();
    std::os::unix::fs::symlink("../../beside/secret.txt", folder.join("assets/link.js")).unwrap();
    std::os::unix::fs::symlink(dir.join("beside"), folder.join("out")).unwrap();
    folder
}

pub(crate) fn send_objects(bridge: &Bridge, title: &str, phantoms: &[Phantom]) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(bridge.dicom, title).await.unwrap();
        for phantom in phantoms {
            assert_eq!(store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = viewer(dir.path());
        let named = format!("[web.site_names]\n\"{GRANTEE}\" = '{}'\n", crate::names::SITE_NAME);
        let toml = format!("{TOML}[dicomweb]\nohif_dir = {folder:?}\n{named}{}", peers());
        let bridge = Bridge::start_in(dir, &toml);
        let hostile = crate::names::hostile();
        send_objects(&bridge, "CT1", &[slices(1, 2, 32), slices(2, 1, 32)].concat());
        send_objects(&bridge, crate::names::TITLE, &ct_series(&hostile, 1, 32, 9));
        bridge.wait_final(3);
        let operator = Client::with_token(&bridge, &["--as", "operator"]);
        // Somebody is let in to the study that is asked about, and nobody to that of the other patient.
        [&subject(1).study_uid, &hostile.study_uid].iter().for_each(|study| allow(&operator, study));
        let owners = [1, 2].map(|number| hand_over(&bridge, &subject(number).study_uid));
        let third = hand_over(&bridge, &hostile.study_uid);
        let maker = Maker::new(&bridge);
        let (known, strangers) = (maker.known(owners[0], owners[1]), maker.strangers(owners[0]));
        let (_, token) = maker.token(Principal::Account(third), None, None);
        let patient = maker.person(&token);
        let [one, two] = [1, 2].map(|number| names_of(&bridge, &maker, &operator, number, owners[number as usize - 1]));
        let absent = Names {
            study: format!("{}.999", one.study),
            id: ABSENT_ID.to_owned(),
            link: "0".repeat(16),
            ..one.clone()
        };
        let subject = tests::dicom::subject(1);
        let (family, given) = subject.patient_name.split_once('^').unwrap();
        let common = vec![family.to_owned(), subject.description, two.study.clone()];
        let mut secrets = vec![given.to_owned(), subject.patient_id, subject.accession, subject.study_uid];
        secrets.extend([&one.id, &one.series, &one.instance, &one.picture].map(Clone::clone));
        let asset = asset(&bridge);
        let said = vec![GRANTEE.to_owned(), "Confidant's link".to_owned()];
        Self { bridge, known, strangers, one, two, absent, operator, patient, hostile, asset, secrets, common, said }
    }

    /// A request as a row has it, by somebody, from a place of its own.
    pub(crate) fn ask(&self, row: &Row, names: &Names, caller: &Caller) -> Answer {
        let (path, kind, body) = self.written(row, names, &caller.form_token());
        let mut headers = caller.headers();
        headers.push(from_somewhere());
        headers.extend(kind.map(|kind| ("Content-Type".to_owned(), kind.to_owned())));
        self.send(row.method, &path, &headers, &body)
    }

    /// What a request says: path, media type and body.
    pub(crate) fn written(&self, row: &Row, names: &Names, form_token: &str) -> (String, Option<&'static str>, String) {
        let path = match row.query {
            "" => self.filled(row.path, names),
            query => self.filled(&format!("{}?{query}", row.path), names),
        };
        let form = |fields: &[(&str, &str)], token: Option<&str>| {
            let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let all = token.iter().map(|token| ("form", *token)).chain(fields.iter().copied());
            let pairs: Vec<_> =
                all.map(|(name, value)| format!("{name}={}", escape(&self.filled(value, names)))).collect();
            (Some("application/x-www-form-urlencoded"), pairs.join("&"))
        };
        let (kind, body) = match &row.sent {
            Sent::Nothing => (None, String::new()),
            Sent::Json(value) => (Some("application/json"), self.filled(&value.to_string(), names)),
            Sent::Form(fields) => form(fields, Some(form_token)),
            Sent::Open(fields) => form(fields, None),
            Sent::Raw(kind, content) => (Some(*kind), (*content).to_owned()),
        };
        (path, kind, body)
    }

    /// Sends and judges what every answer must have.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(String, String)], body: &str) -> Answer {
        let pairs: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = send(address(&self.bridge), method, path, &pairs, body.as_bytes());
        rules::judge(&format!("{method} {path}"), path, &answer);
        answer
    }

    /// The same by the operator: with a token, from somewhere.
    pub(crate) fn by_operator(&self, method: &str, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {}", self.operator.token.as_ref().unwrap());
        self.send(method, path, &[("Authorization".to_owned(), bearer), from_somewhere()], body)
    }

    fn filled(&self, text: &str, names: &Names) -> String {
        let parts = [
            ("{study}", names.study.as_str()),
            ("{id}", &names.id),
            ("{series}", &names.series),
            ("{instance}", &names.instance),
            ("{picture}", &names.picture),
            ("{link}", &names.link),
            ("{number}", "0"),
            ("{frames}", "1"),
            ("{*place}", "7FE00010"),
            ("{name}", &self.asset),
            ("{*nowhere}", "nowhere"),
        ];
        parts.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// What an answer says of the study that the request did not say itself.
    pub(crate) fn told<'a>(&'a self, answer: &Answer, request: &str) -> Vec<&'a str> {
        told_of(&self.secrets, answer, request)
    }

    /// What it says of any study.
    pub(crate) fn told_anything<'a>(&'a self, answer: &Answer, request: &str) -> Vec<&'a str> {
        [self.told(answer, request), told_of(&self.common, answer, request)].concat()
    }

    /// What it says of what was said about the study.
    pub(crate) fn told_said<'a>(&'a self, answer: &Answer, request: &str) -> Vec<&'a str> {
        told_of(&self.said, answer, request)
    }

    /// All that could change by a request that should change nothing.
    pub(crate) fn state(&self) -> Value {
        let get = |path: &str| self.by_operator("GET", &format!("/api/v1{path}"), "").json();
        let mut tokens = self.bridge.json(&["token", "list"]);
        for token in tokens.as_array_mut().unwrap() {
            token["used_s"] = Value::Null;
        }
        let files = tests::files_below(&self.bridge.data().join("archive/objects"));
        let studies = [&self.one, &self.two]
            .map(|names| ["", "/grants", "/history"].map(|rest| get(&format!("/studies/{}{rest}", names.study))));
        let echo = |name: &str| self.by_operator("GET", name, "").status;
        json!({ "all": get("/studies"), "studies": studies, "requests": get("/requests?state=all"), "sources": get("/sources"),
            "tokens": tokens, "files": files.len(), "live": echo("/api/v1/health/live") })
    }

    /// Nothing of all that was a fault of the site.
    pub(crate) fn is_well(&self) {
        let log = self.bridge.log();
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
        let told: Vec<_> =
            self.secrets.iter().filter(|secret| !secret.starts_with("0x") && log.contains(*secret)).collect();
        assert!(told.is_empty(), "the log tells {told:?}");
    }
}

fn told_of<'a>(secrets: &'a [String], answer: &Answer, request: &str) -> Vec<&'a str> {
    let unasked = secrets.iter().filter(|secret| !request.contains(secret.as_str()));
    unasked.filter(|secret| says(answer, secret)).map(String::as_str).collect()
}

/// Lets somebody see a study.
fn allow(operator: &Client, study: &str) {
    let allow = json!({ "study": study, "decision":
        { "kind": "allow", "grantee": GRANTEE, "mode": "preview", "encryption_key": KEY_HASH } });
    let done = operator.post("/decisions", &allow);
    assert_eq!(done.status, 200, "{}", done.json());
}

/// Hands a study over to a key that the site does not have.
fn hand_over(bridge: &Bridge, study: &str) -> Address {
    let owner = PrivateKeySigner::random().address();
    bridge.json(&["claim", study, "--owner", &owner.to_string()]);
    owner
}

fn names_of(bridge: &Bridge, maker: &Maker<'_>, operator: &Client, number: u32, owner: Address) -> Names {
    let study = subject(number).study_uid;
    let phantom = &slices(number, 1, 32)[0];
    let id = bridge.json(&["study", "show", &study])["study_id"].as_str().unwrap().to_owned();
    let shared = Shared { study: Uid::new(&study).unwrap(), owner };
    let (link, _) = maker.named("Confidant's link", Principal::Shared(shared));
    let page = maker.person(operator.token.as_deref().unwrap()).page(&format!("/ui/studies/{study}"));
    let picture = page.split("/pictures/").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let instance = phantom.sop_instance.to_string();
    let series = instance.rsplit_once('.').unwrap().0.to_owned();
    Names { study, id, series, instance, picture, link }
}

fn asset(bridge: &Bridge) -> String {
    let page = Person::stranger(bridge).page("/ui/login");
    page.split("/ui/assets/").nth(1).unwrap().split('"').next().unwrap().to_owned()
}
