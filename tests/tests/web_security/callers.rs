//! Who asks: everybody who can be somebody, by a token or by a login, and everybody who only seems to be.

use std::sync::atomic::{AtomicU32, Ordering};

use alloy::primitives::Address;
use bridge::access::{Caller as Principal_, Principal, Right, Shared};
use bridge::tokens::{DATABASE, Tokens};
use dicom_scp::{AeTitle, Uid};
use sha2::{Digest as _, Sha256};
use tests::Bridge;
use tests::dicom::subject;
use tests::http::{Answer, Client, address, send};
use tests::person::Person;

use crate::table::Row;

/// How somebody says who he is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Token,
    Session,
}

/// Somebody who is known, and what follows for the study that is asked about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Who {
    pub(crate) rights: Vec<&'static str>,
    pub(crate) sees: bool,
    pub(crate) is_operator: bool,
    pub(crate) is_account: bool,
    pub(crate) is_link: bool,
    /// Its token names the study, which it may not see.
    pub(crate) names_it: bool,
}

/// Somebody who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) way: Way,
    pub(crate) token: Option<String>,
    pub(crate) cookie: Option<String>,
    /// None: nobody, whatever he shows.
    pub(crate) who: Option<Who>,
}

impl Caller {
    /// Who he is to a resource.
    pub(crate) fn is_good_for(&self, row: &Row) -> Option<&Who> {
        self.who.as_ref().filter(|_| row.takes(self.way))
    }

    pub(crate) fn sees(&self) -> bool {
        self.who.as_ref().is_some_and(|who| who.sees && !who.rights.is_empty())
    }

    pub(crate) fn names_it(&self) -> bool {
        self.who.as_ref().is_some_and(|who| who.names_it)
    }

    pub(crate) fn is_link(&self) -> bool {
        self.who.as_ref().is_some_and(|who| who.is_link)
    }

    /// What forms of the login carry. (What a page has is compared with it where pages are.)
    pub(crate) fn form_token(&self) -> String {
        let name = self.cookie.as_deref().and_then(|cookie| cookie.split_once('=')).map_or("", |(_, name)| name);
        hex::encode(Sha256::digest([b"pacs-bridge form ", name.as_bytes()].concat()))
    }

    pub(crate) fn headers(&self) -> Vec<(String, String)> {
        let bearer = self.token.iter().map(|token| ("Authorization".to_owned(), format!("Bearer {token}")));
        let cookie = self.cookie.iter().map(|cookie| ("Cookie".to_owned(), cookie.clone()));
        bearer.chain(cookie).collect()
    }
}

/// A place of its own for each request, so that nobody is refused for how many there were.
pub(crate) fn from_somewhere() -> (String, String) {
    static PLACES: AtomicU32 = AtomicU32::new(0);
    let number = PLACES.fetch_add(1, Ordering::Relaxed);
    ("X-Forwarded-For".to_owned(), std::net::Ipv4Addr::from(0x0A00_0000 + number).to_string())
}

/// Makes callers of a site.
pub(crate) struct Maker<'a> {
    bridge: &'a Bridge,
    tokens: Tokens,
    now_s: u64,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(bridge: &'a Bridge) -> Self {
        let tokens = Tokens::open(&bridge.data().join(DATABASE)).unwrap();
        Self { bridge, tokens, now_s: tests::consortium::now_s() }
    }

    pub(crate) fn token(
        &self,
        principal: Principal,
        narrowed: Option<Vec<Right>>,
        end_s: Option<u64>,
    ) -> (String, String) {
        let of = Principal_ { principal, narrowed };
        let (token, shown) = self.tokens.create("a token", &of, self.now_s, end_s).unwrap();
        (token.id, shown.to_string())
    }

    /// One with a name; returns its id and itself.
    pub(crate) fn named(&self, name: &str, principal: Principal) -> (String, String) {
        let of = Principal_ { principal, narrowed: None };
        let (token, shown) = self.tokens.create(name, &of, self.now_s, Some(self.now_s + 86_400)).unwrap();
        (token.id, shown.to_string())
    }

    /// Logs in; returns the cookie.
    fn log_in(&self, token: &str) -> String {
        let (name, place) = from_somewhere();
        let form = [("Content-Type", "application/x-www-form-urlencoded"), (name.as_str(), place.as_str())];
        let answer = send(address(self.bridge), "POST", "/ui/login", &form, format!("token={token}").as_bytes());
        assert_eq!(answer.status, 303, "{answer:?}");
        answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
    }

    fn both(&self, name: &str, token: &str, who: &Who) -> [Caller; 2] {
        let of = |way, token, cookie| {
            let name = format!("{name} by {way:?}");
            Caller { name, way, token, cookie, who: Some(who.clone()) }
        };
        [of(Way::Token, Some(token.to_owned()), None), of(Way::Session, None, Some(self.log_in(token)))]
    }

    /// Everybody who is somebody.
    pub(crate) fn known(&self, own: Address, other: Address) -> Vec<Caller> {
        const ALL: [&str; 8] = ["find", "retrieve", "store", "decide", "request", "break-glass", "status", "sources"];
        let peer = |title: &str| Principal::Peer(AeTitle::new(title).unwrap());
        let link = |number: u32, owner: Address| {
            let study = Uid::new(&subject(number).study_uid).unwrap();
            Principal::Shared(Shared { study, owner })
        };
        let sees = |rights: &[&'static str]| Who { rights: rights.to_vec(), sees: true, ..Who::default() };
        let operator = |rights: &[&'static str]| Who { is_operator: true, ..sees(rights) };
        let account = |sees| Who {
            rights: vec!["find", "retrieve", "decide", "sources"],
            sees,
            is_account: true,
            ..Who::default()
        };
        let linked = |sees| Who { rights: vec!["find", "retrieve"], sees, is_link: true, ..Who::default() };
        let narrow = |rights: &[&str]| Some(rights.iter().map(|right| Right::from_name(right).unwrap()).collect());
        let all: Vec<(&str, Principal, Option<Vec<Right>>, Who)> = vec![
            ("the operator", Principal::Operator, None, operator(&ALL)),
            ("the operator without a right", Principal::Operator, narrow(&[]), operator(&[])),
            ("the operator for the state alone", Principal::Operator, narrow(&["status"]), operator(&["status"])),
            (
                "the operator who reads",
                Principal::Operator,
                narrow(&["find", "retrieve"]),
                operator(&["find", "retrieve"]),
            ),
            ("a viewer", peer("VIEWER"), None, sees(&["find", "retrieve"])),
            ("a finder", peer("FINDER"), None, sees(&["find"])),
            ("a fetcher", peer("FETCHER"), None, sees(&["retrieve"])),
            ("a sender", peer("SENDER"), None, sees(&["store"])),
            ("a peer that may nothing", peer("NOTHING"), None, sees(&[])),
            ("a peer that no table names", peer("GONE"), None, sees(&[])),
            ("the owner", Principal::Account(own), None, account(true)),
            ("another owner", Principal::Account(other), None, account(false)),
            ("the owner of nothing", Principal::Account(Address::repeat_byte(0x77)), None, account(false)),
            ("a link to the study", link(1, own), None, linked(true)),
            ("a link to another study", link(2, other), None, linked(false)),
            (
                "a link of somebody who does not own it any more",
                link(1, other),
                None,
                Who { names_it: true, ..linked(false) },
            ),
            ("a link that was narrowed", link(1, own), narrow(&["find"]), Who { rights: vec!["find"], ..linked(true) }),
        ];
        let made = all.into_iter().flat_map(|(name, principal, narrowed, who)| {
            let (_, token) = self.token(principal, narrowed, None);
            self.both(name, &token, &who)
        });
        made.collect()
    }

    /// Everybody who is not.
    pub(crate) fn strangers(&self, own: Address) -> Vec<Caller> {
        let nobody = |name: &str, token: Option<&str>, cookie: Option<&str>| {
            let way = if cookie.is_some() { Way::Session } else { Way::Token };
            let (token, cookie) = (token.map(str::to_owned), cookie.map(str::to_owned));
            Caller { name: name.to_owned(), way, token, cookie, who: None }
        };
        let operator = || self.token(Principal::Operator, None, None);
        let (id, revoked) = operator();
        let revoked_login = self.log_in(&revoked);
        assert!(self.tokens.revoke(&id, self.now_s).unwrap());
        let (_, expired) = self.token(Principal::Account(own), None, Some(self.now_s - 1));
        let (_, shared) = self.token(Principal::Operator, None, None);
        let ended = self.log_in(&shared);
        self.log_out(&ended);
        let (name, _) = ended.split_once('=').unwrap();
        let good = self.log_in(&shared);
        let cut = &shared[..shared.len() - 1];
        vec![
            nobody("nobody", None, None),
            nobody("a wrong token", Some("pbt_0123456789abcdef_00"), None),
            nobody("no token at all", Some("\"; DROP TABLE token; --"), None),
            nobody("most of a token", Some(cut), None),
            nobody("a token that is over", Some(&expired), None),
            nobody("a token that was taken back", Some(&revoked), None),
            nobody("a login by a token that was taken back", None, Some(&revoked_login)),
            nobody("a login that ended", None, Some(&ended)),
            nobody("a login that was made up", None, Some(&format!("{name}={}", "0".repeat(64)))),
            nobody("a login of two", None, Some(&format!("{good}; {ended}"))),
            nobody("a login and a wrong token", Some("pbt_0123456789abcdef_00"), Some(&ended)),
        ]
    }

    fn log_out(&self, cookie: &str) {
        let caller =
            Caller { name: String::new(), way: Way::Session, token: None, cookie: Some(cookie.to_owned()), who: None };
        let form = [("Content-Type", "application/x-www-form-urlencoded"), ("Cookie", cookie)];
        let body = format!("form={}", caller.form_token());
        let answer = send(address(self.bridge), "POST", "/ui/logout", &form, body.as_bytes());
        assert_eq!(answer.header("location"), Some("/ui/login"), "{answer:?}");
    }

    /// A browser of somebody with this token.
    pub(crate) fn person(&self, token: &str) -> Person {
        let client = Client { to: address(self.bridge), token: Some(token.to_owned()), from: None };
        Person { client, cookie: Some(self.log_in(token)) }
    }
}

/// Whether an answer says something, in any case of its letters.
pub(crate) fn says(answer: &Answer, text: &str) -> bool {
    let lower = |bytes: &[u8]| bytes.to_ascii_lowercase();
    let (wanted, body) = (lower(text.as_bytes()), lower(&answer.body));
    let in_headers = || answer.headers.iter().any(|(_, value)| value.to_lowercase().contains(&text.to_lowercase()));
    body.windows(wanted.len()).any(|window| window == wanted) || in_headers()
}
