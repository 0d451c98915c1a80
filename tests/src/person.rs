//! A browser without scripts.

use crate::Bridge;
use crate::http::{Answer, Client, address, send};

/// Somebody with a browser that has no scripts: it keeps cookies and fills in forms.
#[derive(Debug, Clone)]
pub struct Person {
    pub client: Client,
    pub cookie: Option<String>,
}

impl Person {
    pub fn stranger(bridge: &Bridge) -> Self {
        Self { client: Client { to: address(bridge), token: None, from: None }, cookie: None }
    }

    pub fn with_token(bridge: &Bridge, arguments: &[&str]) -> Self {
        let client = Client::with_token(bridge, arguments);
        let mut person = Self { client, cookie: None };
        let answer = person.log_in("");
        assert_eq!((answer.status, answer.header("location")), (303, Some("/ui/")), "{answer:?}");
        person
    }

    pub fn log_in(&mut self, next: &str) -> Answer {
        let token = self.client.token.clone().unwrap();
        let answer = self.post("/ui/login", &[("token", &token), ("next", next)], &[]);
        self.keep_cookie(&answer);
        answer
    }

    /// Keeps the cookie that an answer sets.
    pub fn keep_cookie(&mut self, answer: &Answer) {
        if let Some(set) = answer.header("set-cookie") {
            self.cookie = Some(set.split(';').next().unwrap().to_owned());
        }
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut all: Vec<(&str, &str)> = headers.to_vec();
        all.extend(self.cookie.iter().map(|cookie| ("Cookie", cookie.as_str())));
        all.extend(self.client.from.iter().map(|from| ("X-Forwarded-For", from.as_str())));
        send(self.client.to, method, path, &all, body.as_bytes())
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    pub fn page(&self, path: &str) -> String {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", text(&answer));
        text(&answer)
    }

    pub fn post(&self, path: &str, fields: &[(&str, &str)], headers: &[(&str, &str)]) -> Answer {
        let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let body: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        let form = [("Content-Type", "application/x-www-form-urlencoded")];
        self.send("POST", path, &[&form, headers].concat(), &body.join("&"))
    }

    /// What the forms of its login carry, as the ledger's page has it.
    pub fn form_token(&self) -> String {
        self.token_on("/ui/ledger")
    }

    /// The same, as another page has it.
    pub fn token_on(&self, path: &str) -> String {
        let page = self.page(path);
        page.split("name=\"form\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    }

    /// Fills in a form of ours.
    pub fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.submit_from("/ui/ledger", path, fields)
    }

    /// Fills in a form of a page.
    pub fn submit_from(&self, page: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let token = self.token_on(page);
        self.post(path, &[&[("form", token.as_str())], fields].concat(), &[])
    }
}

/// The body of a page.
pub fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.clone()).unwrap()
}
