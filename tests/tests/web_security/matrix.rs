//! Each resource by each caller, and by each method that it does not have.

use std::collections::BTreeSet;

use tests::http::Answer;

use crate::callers::{Caller, Maker, from_somewhere};
use crate::table::{Needs, Row, rows};
use crate::world::{Names, World};

/// What a request may be besides those of the table.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "PROPFIND"];

/// What is routed is in the table, with the methods that it has, and nothing else is.
pub(crate) fn the_table_is_whole(world: &World) {
    let served: BTreeSet<String> = bridge::http::places().into_iter().collect();
    let rows = rows();
    let tabled: BTreeSet<String> = rows.iter().map(|row| row.path.to_owned()).collect();
    assert_eq!(served, tabled, "a resource and no line for it, or the other way round: see web_security/table.rs");
    for path in served.iter().filter(|path| !path.contains("nowhere")) {
        let of_path: Vec<&Row> = rows.iter().filter(|row| row.path == path).collect();
        let mut expected: BTreeSet<&str> = of_path.iter().map(|row| row.method).collect();
        if expected.contains("GET") {
            expected.insert("HEAD");
        }
        let (filled, ..) = world.written(of_path[0], &world.one, "");
        let answer = world.by_operator("PROPFIND", &filled, "");
        let allowed: BTreeSet<&str> = answer.header("allow").unwrap_or_default().split(',').collect();
        assert_eq!((answer.status, allowed), (405, expected), "{path}");
    }
}

/// What everybody gets of everything, by principle. Refusals first: nothing is another afterwards.
pub(crate) fn each_resource_by_each_caller(world: &World) {
    let before = world.state();
    let everybody: Vec<&Caller> = world.strangers.iter().chain(&world.known).collect();
    let mut asked = 0;
    for row in &rows() {
        for caller in &everybody {
            if !is_for(row, caller) || row.needs == Needs::Public {
                refused_or_public(world, row, caller);
                asked += 1;
            }
        }
    }
    assert_eq!(world.state(), before, "what was refused did something");
    for row in &rows() {
        for caller in &everybody {
            if is_for(row, caller) && row.needs != Needs::Public {
                let answer = judged(world, row, &world.one, caller);
                is_answered(row, caller, &answer);
                of_another_is_absent(world, row, caller);
                asked += 1;
            }
        }
    }
    println!("{asked} of {} resources by {} callers", rows().len(), everybody.len());
}

/// Whether a caller gets what a resource is for. (Nobody is led elsewhere with the same status as some of those who are somebody.)
fn is_for(row: &Row, caller: &Caller) -> bool {
    caller.is_good_for(row).is_some() && row.expected(caller).contains(&row.good)
}

fn refused_or_public(world: &World, row: &Row, caller: &Caller) {
    let answer = judged(world, row, &world.one, caller);
    is_answered(row, caller, &answer);
    let (path, _, body) = world.written(row, &world.one, "");
    let own = if caller.names_it() { world.one.study.as_str() } else { "" };
    let told = world.told_anything(&answer, &format!("{path} {body} {own}"));
    assert!(told.is_empty(), "{} {path} tells {} {told:?}", row.method, caller.name);
    // Who sees the study may be told more of it than of none.
    if row.is_about_study() && (!caller.sees() || row.expected(caller).len() == 1) {
        let absent = judged(world, row, &world.absent, caller);
        assert_eq!(
            comparable(answer, &world.one),
            comparable(absent, &world.absent),
            "{} {path}: {} can tell what is hidden from what is not there",
            row.method,
            caller.name
        );
    }
}

/// The answer to a caller, with the status that he is to get, and nothing in it that he may not see.
fn judged(world: &World, row: &Row, names: &Names, caller: &Caller) -> Answer {
    let answer = world.ask(row, names, caller);
    let (path, _, body) = world.written(row, names, "");
    let what = format!("{} {path} by {}", row.method, caller.name);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let is_absent = names.study == world.absent.study;
    let expected = row.expected(caller);
    if !is_absent || !expected.contains(&row.good) {
        assert!(expected.contains(&answer.status), "{what}: {} instead of {expected:?}: {text}", answer.status);
    }
    let own = if caller.names_it() { names.study.as_str() } else { "" };
    let request = format!("{path} {body} {own}");
    if !caller.sees() {
        let told = world.told(&answer, &request);
        assert!(told.is_empty(), "{what} tells {told:?}: {text}");
    }
    if caller.is_link() || !caller.sees() {
        let told = world.told_said(&answer, &request);
        assert!(told.is_empty(), "{what} tells {told:?}: {text}");
    }
    answer
}

fn is_answered(row: &Row, caller: &Caller, answer: &Answer) {
    let leads_to_login = answer.header("location").is_some_and(|place| place.starts_with("/ui/login"));
    let is_nobody = caller.is_good_for(row).is_none();
    if row.needs != Needs::Public && row.is_page() && answer.status == 303 && row.path != "/ui/logout" {
        assert_eq!(leads_to_login, is_nobody, "{} {} by {}", row.method, row.path, caller.name);
    }
    if answer.status == 401 && !row.is_page() {
        assert!(answer.header("www-authenticate").is_some(), "{} {}", row.method, row.path);
    }
    if row.path != "/ui/logout" && row.path != "/ui/login" {
        assert!(answer.header("set-cookie").is_none(), "{} {} by {}", row.method, row.path, caller.name);
    }
}

/// Parts of a study that are another's are not there, whoever asks and may see both.
fn of_another_is_absent(world: &World, row: &Row, caller: &Caller) {
    for (named, part) in [("{series}", 0), ("{instance}", 1), ("{picture}", 2), ("{link}", 3)] {
        let text = format!("{}{}", row.path, row.query);
        if !text.contains(named) {
            continue;
        }
        let (one, two) = (&world.one, &world.two);
        let mut mixed = one.clone();
        match part {
            0 => mixed.series.clone_from(&two.series),
            1 => mixed.instance.clone_from(&two.instance),
            2 => mixed.picture.clone_from(&two.picture),
            _ => mixed.link.clone_from(&two.link),
        }
        let answer = world.ask(row, &mixed, caller);
        let what = format!("{text} with {named} of another study by {}", caller.name);
        let absent = if matches!(row.needs, Needs::Search(_)) { 204 } else { 404 };
        assert_eq!(answer.status, absent, "{what}: {}", String::from_utf8_lossy(&answer.body));
    }
}

/// An answer without what differs in any case: the time, and the name that was asked for.
fn comparable(mut answer: Answer, names: &Names) -> (u16, Vec<(String, String)>, String) {
    let plain = |text: &str| text.replace(&names.study, "STUDY").replace(&names.id, "ID").replace(&names.link, "LINK");
    answer.headers.retain(|(name, _)| name != "date" && name != "content-length");
    let headers = answer.headers.iter().map(|(name, value)| (name.clone(), plain(value))).collect();
    (answer.status, headers, plain(&String::from_utf8_lossy(&answer.body)))
}

/// What a resource does not have as a method does nothing, even for who may do everything.
pub(crate) fn other_methods_do_nothing(world: &World) {
    let maker = Maker::new(&world.bridge);
    let operator = maker.person(world.operator.token.as_deref().unwrap());
    let caller =
        Caller { cookie: operator.cookie.clone(), token: world.operator.token.clone(), ..world.known[0].clone() };
    let before = world.state();
    let rows = rows();
    for row in &rows {
        let has = |method: &str| rows.iter().any(|other| other.path == row.path && other.method == method);
        for method in METHODS {
            let is_head = method == "HEAD" && has("GET");
            if has(method) || is_head && row.method != "GET" {
                continue;
            }
            let (path, kind, body) = world.written(row, &world.one, &caller.form_token());
            let mut headers = caller.headers();
            headers.push(from_somewhere());
            headers.push(("X-HTTP-Method-Override".to_owned(), "POST".to_owned()));
            headers.extend(kind.map(|kind| ("Content-Type".to_owned(), kind.to_owned())));
            let answer = world.send(method, &path, &headers, &body);
            let expected = match (row.path.contains("nowhere"), is_head) {
                (true, _) => 404,
                (false, true) => world.ask(row, &world.one, &caller).status,
                (false, false) => 405,
            };
            assert_eq!(answer.status, expected, "{method} {path}");
            assert!(method != "HEAD" || answer.body.is_empty(), "{method} {path}");
        }
    }
    // What is no resource has no method.
    for method in METHODS {
        for path in ["/", "/index.html", "/api/v1", "/api/v1/nowhere", "/dicomweb", "/dicomweb/nowhere", "*"] {
            let answer = world.by_operator(method, path, "");
            let is_viewers = matches!(path, "/" | "/index.html") && matches!(method, "GET" | "HEAD");
            assert!(is_viewers || matches!(answer.status, 400 | 404 | 405), "{method} {path}: {}", answer.status);
        }
    }
    assert_eq!(world.state(), before, "a method that there is not did something");
    assert_eq!(operator.get("/ui/").status, 200, "still logged in");
}
