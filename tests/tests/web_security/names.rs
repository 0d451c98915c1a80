//! Names that anybody may have chosen are text: on every page, in every table, in every document.

use bridge::demo::phantom::{Phantom, Subject, ct_series};
use dicom_scp::dataset::{Encoding, ReadOptions, Tag, VR, read};
use serde_json::{Value, json};
use tests::dicom::subject;
use tests::http::Answer;
use tests::person::{Person, text};

use crate::callers::{Maker, from_somewhere};
use crate::world::{GRANTEE, World, send_objects};

/// What somebody may call himself on an association: a formula, and an end of an attribute.
pub(crate) const TITLE: &str = "=1+1|\"><b>x";
/// What somebody may have configured.
pub(crate) const SITE_NAME: &str = "</b><script src=//evil.example></script>";
/// Other titles that a spreadsheet would take for something else.
const TITLES: [&str; 4] = ["@SUM(1)", "-2+3|cmd", "+A1", "'\"><svg/onload=x"];
/// Turned around (UAX 9), and not.
const TURNED: [char; 4] = ['\u{202e}', '\u{202a}', '\u{2066}', '\u{2067}'];

/// Somebody whose every name is an attack.
pub(crate) fn hostile() -> Subject {
    Subject {
        patient_name: "\"><script>alert(1)</script>^<img src=x onerror=alert(2)>\u{202e}\u{2066}".into(),
        patient_id: "'-\"><b>&amp;{{7*7}}${7}".into(),
        description: "</title><script src=//evil.example/x.js></script>\u{2028}".into(),
        accession: "javascript:x\">".into(),
        ..subject(9)
    }
}

/// The others: what is not all in a subject, what is very long, and what is nothing.
fn others() -> Vec<Phantom> {
    let edited = |number: u32, values: &[(Tag, VR, &str)]| {
        let phantom = ct_series(&subject(number), 1, 32, 9).remove(0);
        let mut set = read(&phantom.bytes, Encoding::ExplicitLe, &ReadOptions::default()).unwrap().0;
        values.iter().for_each(|(tag, vr, text)| set.put_text(*tag, *vr, text));
        Phantom { bytes: set.write(Encoding::ExplicitLe), ..phantom }
    };
    let long = "<script>".repeat(7_000);
    let (name, id, description) = (Tag(0x0010, 0x0010), Tag(0x0010, 0x0020), Tag(0x0008, 0x1030));
    let of_series = [(Tag(0x0008, 0x103E), VR::LO), (Tag(0x0008, 0x0060), VR::CS), (Tag(0x0008, 0x0020), VR::DA)];
    let marked: Vec<_> = of_series.iter().map(|(tag, vr)| (*tag, *vr, "\"><i>\u{202e}")).collect();
    vec![
        edited(11, &[(name, VR::PN, &long), (id, VR::LO, &long), (description, VR::LO, &long)]),
        edited(12, &[(name, VR::PN, "^^^=^=\0\u{1b}[2J\u{7}"), (id, VR::LO, "\0"), (description, VR::LO, "null")]),
        edited(13, &marked),
        edited(14, &[(name, VR::PN, "__proto__"), (id, VR::LO, "\u{fffe}\u{ffff}"), (description, VR::LO, "--><!--")]),
    ]
}

pub(crate) fn names_are_text(world: &World) {
    for title in TITLES {
        send_objects(&world.bridge, title, &others());
    }
    world.bridge.wait_final(7);
    let maker = Maker::new(&world.bridge);
    let (id, token) = maker.named("<b>a token</b>", bridge::access::Principal::Operator);
    let operator = maker.person(&token);
    let mut seen = Vec::new();
    for path in pages(world) {
        let page = world_page(world, &operator, &path);
        assert!(page.contains("&lt;b&gt;a token"), "who looks: {path}");
        seen.push((path, page));
    }
    seen.push(("/ui/consent".to_owned(), world_page(world, &world.patient, "/ui/consent")));
    seen.extend(said_back(world, &operator));
    for (path, page) in &seen {
        is_text(path, page);
    }
    let all = seen.iter().map(|(_, page)| page.as_str()).collect::<String>();
    for shown in [
        "&quot;&gt;&lt;script&gt;alert(1)",
        "&lt;/title&gt;&lt;script",
        "&lt;/b&gt;&lt;script",
        "&lt;img src=x&gt;",
        "=1+1|&quot;",
    ] {
        assert!(all.contains(shown), "{shown} is nowhere: what is to be judged is not shown");
    }
    tables(world, &operator);
    documents(world);
    bridge_revokes(world, &id);
}

fn bridge_revokes(world: &World, id: &str) {
    world.bridge.json(&["token", "revoke", id]);
}

/// What the operator can look at.
fn pages(world: &World) -> Vec<String> {
    let studies = [
        &world.hostile.study_uid,
        &subject(11).study_uid,
        &subject(12).study_uid,
        &subject(13).study_uid,
        &subject(14).study_uid,
    ]
    .map(|uid| format!("/ui/studies/{uid}"));
    let asked = [
        "/ui/?patient=%22%3E%3Cscript%3Ealert(1)",
        "/ui/?id=%22%27%3E%3Cb%3E&accession=%E2%80%AE&from=1977-07-07&modality=%22%3E%3Ci%3E&state=%3Cb%3E",
        "/ui/?from=%3Cscript%3E",
        "/ui/audit?who=%3Cscript%3E%E2%80%AE",
        "/ui/audit?kind=110104",
        "/ui/requests",
        "/ui/ledger",
        "/ui/operations",
        "/ui/audit",
        "/ui/",
    ];
    studies.into_iter().chain(asked.map(str::to_owned)).collect()
}

fn world_page(world: &World, person: &Person, path: &str) -> String {
    let answer = get(world, person, path);
    assert_eq!(answer.status, 200, "{path}: {}", text(&answer));
    text(&answer)
}

fn get(world: &World, person: &Person, path: &str) -> Answer {
    let cookie = ("Cookie".to_owned(), person.cookie.clone().unwrap());
    let agent = ("User-Agent".to_owned(), "<script>alert(9)</script>".to_owned());
    world.send("GET", path, &[cookie, agent, from_somewhere()], "")
}

/// What is said back to somebody, though it was refused.
fn said_back(world: &World, operator: &Person) -> Vec<(String, String)> {
    let hostile = "\"><script>alert(3)</script>\u{202e}";
    let stranger = Person::stranger(&world.bridge);
    let mut all = Vec::new();
    for (path, field) in [
        ("/ui/login", "token"),
        ("/ui/login", "next"),
        ("/ui/login/key", "number"),
        ("/ui/login/key", "account"),
        ("/ui/claim", "code"),
        ("/ui/claim", "account"),
    ] {
        all.push((path.to_owned(), text(&stranger.post(path, &[(field, hostile), ("token", hostile)], &[]))));
    }
    let study = format!("/ui/studies/{}", world.hostile.study_uid);
    for (path, fields) in [
        ("/ui/operations/echo".to_owned(), vec![("peer", hostile)]),
        ("/ui/requests".to_owned(), vec![("study", hostile), ("mode", hostile), ("purpose", hostile)]),
        (format!("{study}/decisions"), vec![("kind", hostile), ("grantee", hostile)]),
        (format!("{study}/decisions"), vec![("kind", "revoke"), ("grantee", hostile)]),
        (
            format!("{study}/decisions"),
            vec![("kind", "allow"), ("mode", "full"), ("grantee", GRANTEE), ("until", hostile)],
        ),
    ] {
        all.push((path.clone(), text(&operator.submit(&path, &fields))));
    }
    for query in ["study=%3Cscript%3E", "kind=%22%3E%3Cb%3E", "from=%22%3E%3Cb%3E", "before=%3Cb%3E", "outcome=%3Cb%3E"]
    {
        let path = format!("/ui/audit?{query}");
        all.push((path.clone(), text(&get(world, operator, &path))));
    }
    // Of a patient's choice, in the patient's words; and of a link, by its name.
    let id = world.bridge.json(&["study", "show", &world.hostile.study_uid])["study_id"].as_str().unwrap().to_owned();
    let choice = [("kind", "revoke"), ("study", id.as_str()), ("grantee", GRANTEE)];
    let chosen = world.patient.submit_from("/ui/consent", "/ui/consent/choices", &choice);
    assert_eq!(chosen.status, 200, "{}", text(&chosen));
    all.push(("/ui/consent/choices".to_owned(), text(&chosen)));
    let link = [("name", "<script>a friend</script>\u{202e}"), ("until", &in_days(3))];
    let made = world.patient.submit_from("/ui/consent", &format!("{study}/links"), &link);
    assert_eq!(made.status, 200, "{}", text(&made));
    all.push((format!("{study}/links"), text(&made)));
    all.push((study.clone(), world_page(world, &world.patient, &study)));
    // A name by which nobody calls this server.
    for host in ["\"><script>x</script>", "evil.example\"onload=x", "<b>"] {
        let headers = [("X-Forwarded-Host".to_owned(), host.to_owned()), from_somewhere()];
        all.push((format!("/ui/login by {host}"), text(&world.send("GET", "/ui/login", &headers, ""))));
    }
    all
}

fn in_days(days: u64) -> String {
    bridge::decide::moment(tests::consortium::now_s() + days * 86_400).chars().take(10).collect()
}

/// A page in which nothing is markup but ours.
fn is_text(path: &str, page: &str) {
    let lower = page.to_lowercase();
    let scripts = lower.matches("<script").count();
    let ours = lower.matches("<script type=\"module\" src=\"/ui/assets/").count();
    assert!(scripts == ours && (1..=2).contains(&ours), "{path}: {scripts} scripts, {ours} of them ours: {page}");
    let mut quoted = false;
    for tag in lower.split('<').skip(1) {
        // Within a tag a quote ends a value, and outside of one it is text.
        let inside: String = tag
            .chars()
            .take_while(|c| {
                quoted ^= *c == '"';
                quoted || *c != '>'
            })
            .collect();
        quoted = false;
        assert!(
            !inside.contains("alert(") || inside.contains("&lt;") || inside.contains("&quot;"),
            "{path}: <{inside}>"
        );
        for attribute in inside.split('"').step_by(2) {
            let is_handler = attribute.split_whitespace().any(|word| word.starts_with("on") && word.contains('='));
            assert!(!is_handler && !attribute.contains("style="), "{path}: <{inside}>");
        }
        for part in inside
            .split("href=\"")
            .skip(1)
            .chain(inside.split("src=\"").skip(1))
            .chain(inside.split("action=\"").skip(1))
        {
            let is_here =
                part.starts_with('/') && !part.starts_with("//") || part.starts_with('#') || part.starts_with('?');
            assert!(is_here || part.starts_with("data:image/png;base64,"), "{path}: <{inside}>");
        }
        for markup in ["img src=x", "svg/", "b>a token", "i>\u{fffd}"] {
            assert!(!inside.starts_with(markup), "{path}: <{inside}>");
        }
    }
    let odd = page.chars().find(|c| TURNED.contains(c) || (c.is_control() && !matches!(c, '\n' | '\r' | '\t')));
    assert!(odd.is_none(), "{path} has {odd:?}");
    assert!(page.ends_with("</html>"), "{path} is not whole");
}

/// Tables for spreadsheets: no cell is a formula.
fn tables(world: &World, operator: &Person) {
    let answer = get(world, operator, "/ui/audit.csv");
    assert_eq!(answer.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    assert!(answer.header("content-disposition").unwrap().starts_with("attachment; "), "{answer:?}");
    let table = joined(&answer.body);
    let cells: Vec<&str> =
        table.trim_start_matches('\u{feff}').split("\r\n").flat_map(|line| line.split("\",\"")).collect();
    for cell in &cells {
        let begins = cell.trim_start_matches(['"', ' ']);
        assert!(!begins.starts_with(['=', '+', '-', '@', '\t']), "a formula: {cell}");
    }
    for title in TITLES.iter().chain([&TITLE]) {
        let doubled = title.replace('"', "\"\"");
        assert!(cells.iter().any(|cell| cell.contains(&doubled)), "{title} is not in the table: {table}");
    }
}

fn joined(body: &[u8]) -> String {
    String::from_utf8(body.to_vec()).unwrap()
}

/// JSON is JSON, whatever is in it, and nothing that a browser would show.
fn documents(world: &World) {
    let uids = [9, 11, 12, 13, 14].map(|number| subject(number).study_uid);
    let mut paths: Vec<String> =
        ["/studies", "/requests?state=all", "/sources", "/status", "/me"].map(|path| format!("/api/v1{path}")).to_vec();
    paths.extend(
        ["studies?includefield=all", "series?includefield=all", "instances"].map(|path| format!("/dicomweb/{path}")),
    );
    for uid in &uids {
        paths.extend(["", "/grants", "/history"].map(|rest| format!("/api/v1/studies/{uid}{rest}")));
        paths.push(format!("/dicomweb/studies/{uid}/metadata"));
    }
    let mut found = String::new();
    for path in &paths {
        let answer = world.by_operator("GET", path, "");
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").unwrap().ends_with("json"), "{path}: {answer:?}");
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}"));
        found.push_str(&value.to_string());
    }
    let name = json!(world.hostile.description).to_string();
    assert!(found.contains(name.trim_matches('"')), "{name} is nowhere");
    // What was asked for wrongly is said back as JSON, too.
    for path in [
        "/api/v1/studies?limit=%3Cscript%3E",
        "/dicomweb/studies?%3Cscript%3E=1",
        "/dicomweb/wado?requestType=%3Cscript%3E",
    ] {
        let answer = world.by_operator("GET", path, "");
        assert_eq!((answer.status, answer.header("content-type")), (400, Some("application/problem+json")), "{path}");
    }
}
