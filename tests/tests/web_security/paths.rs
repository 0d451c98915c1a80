//! Paths that lead elsewhere lead nowhere.

use crate::callers::from_somewhere;
use crate::table::{Row, rows};
use crate::world::{SECRET, World};

/// What may stand in the place of a name.
fn astray() -> Vec<String> {
    let up = [
        "..",
        ".",
        "%2e%2e",
        "%2E%2e/%2e%2e",
        "..%2f..%2f..%2fetc%2fpasswd",
        "..%5c..%5cetc%5cpasswd",
        "%252e%252e%252fetc%252fpasswd",
        "..%c0%af..%c0%afetc",
        "..;/..;",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "//etc/passwd",
        "%00",
        "x%00.dcm",
        "%0d%0aX-Injected:%20y",
        "%0a",
        "%ff%fe",
        "%e2%80%ae",
        "%",
        "%zz",
        "~root",
        "file:%2f%2f%2fetc%2fpasswd",
        "0x",
        "-1",
        "99999999999999999999999999",
        "1.2.3'%20OR%20'1'='1",
        "1.2.3%22%3Bdrop",
        "*",
        "%25",
        "<script>",
    ];
    let long = ["1".repeat(65), format!("1.{}", "2".repeat(8000)), "../".repeat(1000), "%2e%2e%2f".repeat(800)];
    up.into_iter().map(str::to_owned).chain(long).collect()
}

pub(crate) fn paths_lead_nowhere_else(world: &World) {
    let before = world.state();
    parameters(world);
    viewers_files(world);
    assert_eq!(world.state(), before);
}

/// In the place of each part of each path that is a name.
fn parameters(world: &World) {
    let operator = world.known.iter().find(|caller| caller.name == "the operator by Token").unwrap();
    let session = world.known.iter().find(|caller| caller.name == "a viewer by Session").unwrap();
    for row in rows().iter().filter(|row| row.method == "GET" && row.path.contains('{')) {
        for name in row.path.split(['{', '}']).skip(1).step_by(2) {
            for astray in astray() {
                let changed = row.path.replace(&format!("{{{name}}}"), &astray);
                let place: &'static str = Box::leak(changed.into_boxed_str());
                let row = Row { path: place, ..row.clone() };
                let caller = if row.is_page() { session } else { operator };
                let (path, ..) = world.written(&row, &world.one, "");
                let headers = [caller.headers(), vec![from_somewhere()]].concat();
                let path = path.replace(' ', "%20");
                let answer = world.send("GET", &path, &headers, "");
                // What names another resource of the same kind without leaving it is that one.
                let is_refused = matches!(answer.status, 400 | 403 | 404 | 405 | 414 | 431 | 204 | 303);
                assert!(is_refused, "{path}: {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
                assert!(leads_nowhere(&answer), "{path}: {answer:?}");
            }
        }
    }
}

fn leads_nowhere(answer: &tests::http::Answer) -> bool {
    let tells = |text: &str| crate::callers::says(answer, text);
    !tells("root:") && !tells(SECRET) && answer.header("x-injected").is_none()
}

/// Of the viewer's folder only what is in it; its page for whatever a browser asks for besides.
fn viewers_files(world: &World) {
    let get = |path: &str, accept: &str| {
        let headers = [("Accept".to_owned(), accept.to_owned()), from_somewhere()];
        world.send("GET", path, &headers, "")
    };
    assert_eq!(get("/assets/app.js", "*/*").body, b"the script");
    let mut all: Vec<String> = [
        "link.txt",
        "assets/link.js",
        "out/secret.txt",
        "out",
        "out/",
        "assets",
        "assets/",
        "assets/../../beside/secret.txt",
        "../beside/secret.txt",
        "%2e%2e/beside/secret.txt",
        "..%2fbeside%2fsecret.txt",
        "..\\beside\\secret.txt",
        "assets/..%5c..%5cbeside%5csecret.txt",
        "assets/app.js/",
        "assets/app.js%00",
        "assets//..//..//beside/secret.txt",
        "./../beside/secret.txt",
        "/proc/self/environ",
        "bridge.toml",
        "../bridge.toml",
        "../data/tokens.sqlite",
    ]
    .map(str::to_owned)
    .to_vec();
    all.extend(astray());
    for name in &all {
        let path = format!("/{name}").replace(' ', "%20");
        let answer = get(&path, "*/*");
        assert!(leads_nowhere(&answer), "{path}: {answer:?}");
        let is_file = answer.status == 200 && answer.body == b"the script";
        assert!(matches!(answer.status, 400 | 404 | 414 | 431) || is_file && name.ends_with('/'), "{path}: {answer:?}");
        let answer = get(&path, "text/html");
        assert!(leads_nowhere(&answer), "{path}: {answer:?}");
        assert!(answer.status != 200 || crate::callers::says(&answer, "the viewer") || is_file, "{path}: {answer:?}");
    }
}
