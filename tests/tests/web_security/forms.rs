//! Forms of other sites' pages do nothing.

use tests::http::Answer;
use tests::person::Person;

use crate::callers::{Caller, Maker, from_somewhere};
use crate::table::{Row, Sent, rows};
use crate::world::World;

/// A browser that is logged in and sends a form from a page of somebody else.
pub(crate) fn forms_of_others_do_nothing(world: &World) {
    let maker = Maker::new(&world.bridge);
    let token = world.operator.token.as_deref().unwrap();
    let (person, other) = (maker.person(token), maker.person(token));
    let caller = |person: &Person| Caller { cookie: person.cookie.clone(), token: None, ..world.known[0].clone() };
    let (ours, theirs) = (caller(&person), caller(&other));
    assert_eq!(ours.form_token(), person.token_on("/ui/"), "what the table's callers send is what pages have");
    let before = world.state();
    let mut forms = 0;
    for row in rows().iter().filter(|row| row.is_page() && row.method == "POST") {
        forms += 1;
        let sent = |token: &str, more: &[(&str, &str)]| send(world, row, &ours, token, more);
        let refused = |what: &str, answer: &Answer| {
            assert_eq!(answer.status, 403, "{} {what}", row.path);
            assert!(answer.header("set-cookie").is_none(), "{} {what}", row.path);
            assert_eq!(person.get("/ui/").status, 200, "{} {what}: still logged in", row.path);
        };
        let good = ours.form_token();
        let host = person.client.to;
        let neighbour = format!("https://127.0.0.1:{}", host.port() ^ 1);
        let near =
            [format!("http://{host}.evil.example"), format!("http://evil.example/{host}"), format!("http://x@{host}")];
        for origin in ["https://evil.example", "null", "", "file://", neighbour.as_str()]
            .into_iter()
            .chain(near.iter().map(String::as_str))
        {
            refused(origin, &sent(&good, &[("Origin", origin)]));
        }
        let origin = format!("https://{host}");
        for site in ["cross-site", "same-site", "none", "", "Same-Origin", "same-origin, cross-site"] {
            refused(site, &sent(&good, &[("Origin", &origin), ("Sec-Fetch-Site", site)]));
        }
        if matches!(row.sent, Sent::Form(_)) {
            for wrong in ["", "0", &theirs.form_token(), &good[1..], &good.to_uppercase()] {
                refused(wrong, &sent(wrong, &[("Origin", &origin), ("Sec-Fetch-Site", "same-origin")]));
            }
            let nobody = Caller { cookie: None, ..ours.clone() };
            let answer = send(world, row, &nobody, &good, &[]);
            assert_eq!((answer.status, answer.header("location")), (303, Some("/ui/login")), "{}", row.path);
        }
        // Forms whose kind needs no asking first, and what a link or a picture sends.
        for kind in ["text/plain", "multipart/form-data; boundary=x", "application/json", ""] {
            let answer = send_as(world, row, &ours, &good, kind, &[]);
            assert_eq!(answer.status, 400, "{} as {kind}", row.path);
        }
        by_a_link(world, row, &ours);
    }
    assert!(forms >= 14, "{forms}");
    assert_eq!(world.state(), before, "a form of somebody else did something");
    decisions_by_a_login(world, &ours);
}

/// What a form says, in the address: nothing is done by a GET.
fn by_a_link(world: &World, row: &Row, caller: &Caller) {
    let (path, _, body) = world.written(row, &world.one, &caller.form_token());
    let headers = [caller.headers(), vec![from_somewhere()]].concat();
    let answer = world.send("GET", &format!("{path}?{body}"), &headers, "");
    let has_page = rows().iter().any(|other| other.path == row.path && other.method == "GET");
    assert!(answer.status == if has_page { 200 } else { 405 }, "{path}: {}", answer.status);
    assert!(answer.header("set-cookie").is_none(), "{path}");
}

/// A login is no token: what changes something over the API needs one, which no page of somebody else has.
fn decisions_by_a_login(world: &World, caller: &Caller) {
    for row in rows().iter().filter(|row| !row.is_page() && row.method == "POST") {
        if row.needs == crate::table::Needs::Public {
            continue;
        }
        for site in ["same-origin", "cross-site"] {
            let (path, kind, body) = world.written(row, &world.one, "");
            let mut headers = [caller.headers(), vec![from_somewhere()]].concat();
            headers.push(("Sec-Fetch-Site".to_owned(), site.to_owned()));
            headers.extend(kind.map(|kind| ("Content-Type".to_owned(), kind.to_owned())));
            assert_eq!(world.send("POST", &path, &headers, &body).status, 401, "{path} {site}");
        }
    }
    // Nor does it read for a page of somebody else.
    for path in ["/api/v1/studies", "/dicomweb/studies", "/dicomweb/series"] {
        for (site, status) in [("same-origin", 200), ("none", 200), ("same-site", 401), ("cross-site", 401), ("", 401)]
        {
            let mut headers = [caller.headers(), vec![from_somewhere()]].concat();
            headers.push(("Sec-Fetch-Site".to_owned(), site.to_owned()));
            assert_eq!(world.send("GET", path, &headers, "").status, status, "{path} {site}");
        }
    }
}

fn send(world: &World, row: &Row, caller: &Caller, token: &str, more: &[(&str, &str)]) -> Answer {
    send_as(world, row, caller, token, "application/x-www-form-urlencoded", more)
}

fn send_as(world: &World, row: &Row, caller: &Caller, token: &str, kind: &str, more: &[(&str, &str)]) -> Answer {
    let (path, _, body) = world.written(row, &world.one, token);
    let mut headers = [caller.headers(), vec![from_somewhere()]].concat();
    headers.push(("Content-Type".to_owned(), kind.to_owned()));
    headers.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    world.send("POST", &path, &headers, &body)
}
