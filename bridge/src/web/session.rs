//! Who is logged in: a random name in a cookie, and the token or the key that was shown for it, or the person whom an issuer vouched for.
//!
//! Kept is the SHA-256 of the name, in memory alone: nobody is logged in after a restart. What a token is good for, and whether it is good
//! still, is looked up at every request and not kept here. Must not know what is asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use alloy::primitives::Address;
use axum::http::{HeaderMap, header};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::oidc::Person;

/// Sessions at once; then the one that was used least lately ends.
const SESSIONS_MAX: usize = 4096;
/// Sessions of one holder at once.
const SESSIONS_PER_HOLDER_MAX: usize = 32;
/// Characters of a name: 256 random bits, hexadecimal.
const NAME_CHARS: usize = 64;

/// What a session is kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

/// Who holds a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Whoever showed the token with this id.
    Token(String),
    /// Whoever signed with the key of this account.
    Owner(Address),
    /// Whoever an OpenID Connect issuer says that he is.
    Person(Arc<Person>),
}

#[derive(Debug)]
struct Session {
    holder: Holder,
    until: Instant,
    used: Instant,
    notice: Option<String>,
}

/// The sessions of a site.
#[derive(Debug)]
pub(crate) struct Sessions {
    cookie: String,
    secure: bool,
    lasts: Duration,
    open: Mutex<HashMap<Key, Session>>,
}

impl Sessions {
    /// `site` tells sites on one machine apart: browsers give cookies to every port of a host. `secure`: browsers reach this server over
    /// TLS alone.
    pub(super) fn new(site: &str, secure: bool, lasts: Duration) -> Self {
        let site = hex::encode(&Sha256::digest(site.as_bytes())[..4]);
        // Over TLS no other host and no page in the clear can set it (RFC 6265bis 4.1.3.2).
        let prefix = if secure { "__Host-" } else { "" };
        Self { cookie: format!("{prefix}pacs-bridge-{site}"), secure, lasts, open: Mutex::default() }
    }

    /// The session that a request is of, and who holds it.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Option<(Key, Holder)> {
        self.find_at(headers, Instant::now())
    }

    fn find_at(&self, headers: &HeaderMap, now: Instant) -> Option<(Key, Holder)> {
        let key = key_of(self.name(headers)?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let session = open.get_mut(&key).filter(|session| now < session.until)?;
        session.used = now;
        Some((key, session.holder.clone()))
    }

    /// Who holds a session, if it has not ended.
    pub(crate) fn holder(&self, key: Key) -> Option<Holder> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&key).filter(|session| Instant::now() < session.until).map(|session| session.holder.clone())
    }

    /// Begins a session, whose first page says `notice`, and returns what sets its cookie.
    pub(super) fn begin(&self, holder: Holder, notice: Option<&str>) -> Zeroizing<String> {
        self.begin_at(holder, notice, Instant::now())
    }

    fn begin_at(&self, holder: Holder, notice: Option<&str>, now: Instant) -> Zeroizing<String> {
        let mut random = Zeroizing::new([0; NAME_CHARS / 2]);
        rand::rngs::OsRng.fill_bytes(random.as_mut());
        let name = Zeroizing::new(hex::encode(random.as_ref()));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, session| now < session.until);
        make_room(&mut open, SESSIONS_MAX, |_| true);
        make_room(&mut open, SESSIONS_PER_HOLDER_MAX, |session| session.holder == holder);
        let session = Session { holder, until: now + self.lasts, used: now, notice: notice.map(str::to_owned) };
        open.insert(key_of(&name), session);
        Zeroizing::new(self.set_cookie(&name, self.lasts))
    }

    /// Ends a session.
    pub(crate) fn end(&self, key: Key) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// What has a browser forget its cookie.
    pub(super) fn forget(&self) -> String {
        self.set_cookie("", Duration::ZERO)
    }

    fn set_cookie(&self, name: &str, lasts: Duration) -> String {
        let secure = if self.secure { "; Secure" } else { "" };
        let seconds = lasts.as_secs();
        format!("{}={name}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}", self.cookie)
    }

    /// What forms of the session carry: who can read it can read the pages.
    pub(super) fn form_token(&self, headers: &HeaderMap) -> Option<String> {
        let name = self.name(headers)?;
        Some(hex::encode(Sha256::digest([b"pacs-bridge form ", name.as_bytes()].concat())))
    }

    /// Whether a form is of the session that sends it.
    pub(super) fn is_form_token(&self, headers: &HeaderMap, sent: &str) -> bool {
        self.form_token(headers).is_some_and(|ours| bool::from(ours.as_bytes().ct_eq(sent.as_bytes())))
    }

    /// Leaves something to be said on the next page.
    pub(super) fn tell(&self, key: Key, notice: &str) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = open.get_mut(&key) {
            session.notice = Some(notice.to_owned());
        }
    }

    /// Takes that.
    pub(super) fn told(&self, key: Key) -> Option<String> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&key)?.notice.take()
    }

    /// The name in the one cookie that is ours. Of two, one is somebody else's, and nobody can tell which.
    fn name<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let lists = headers.get_all(header::COOKIE).iter().filter_map(|list| list.to_str().ok());
        let pairs = lists.flat_map(|list| list.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut ours = pairs.filter(|(name, _)| *name == self.cookie).map(|(_, value)| value);
        let (one, None) = (ours.next()?, ours.next()) else { return None };
        (one.len() == NAME_CHARS && one.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(one)
    }
}

fn key_of(name: &str) -> Key {
    Key(Sha256::digest(name.as_bytes()).into())
}

/// Ends those that were used least lately until there is room for one more.
fn make_room(open: &mut HashMap<Key, Session>, max: usize, counts: impl Fn(&Session) -> bool) {
    loop {
        let counted = || open.iter().filter(|(_, session)| counts(session));
        if counted().count() < max {
            return;
        }
        let Some(oldest) = counted().min_by_key(|(_, session)| session.used).map(|(key, _)| *key) else { return };
        open.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn token(id: &str) -> Holder {
        Holder::Token(id.to_owned())
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn with_cookie(set: &str) -> HeaderMap {
        let pair = set.split(';').next().unwrap();
        HeaderMap::from_iter([(header::COOKIE, format!("other=1; {pair}").parse().unwrap())])
    }

    #[test]
    fn a_session_lasts_as_long_as_it_may_and_its_name_is_not_kept() {
        let (sessions, now) = (Sessions::new("0xsite", false, HOUR), Instant::now());
        let set = sessions.begin_at(token("t1"), None, now);
        let asked = with_cookie(&set);
        let (key, holder) = sessions.find_at(&asked, now + HOUR / 2).unwrap();
        assert_eq!(holder, token("t1"));
        assert!(sessions.find_at(&asked, now + HOUR).is_none(), "being used makes it no longer");
        let name = set.split(['=', ';']).nth(1).unwrap();
        assert!(name.len() == NAME_CHARS && !format!("{sessions:?}").contains(name));
        sessions.end(key);
        assert!(sessions.find_at(&asked, now).is_none() && sessions.holder(key).is_none());
    }

    #[test]
    fn cookies_are_for_this_site_alone() {
        let (plain, over_tls) = (Sessions::new("a", false, HOUR), Sessions::new("a", true, HOUR));
        let (set, secure) = (plain.begin(token("t"), None), over_tls.begin(token("t"), None));
        for set in [&set, &secure] {
            assert!(set.contains("; HttpOnly; SameSite=Strict") && set.contains("; Path=/;"), "{}", **set);
        }
        assert!(secure.starts_with("__Host-") && secure.ends_with("; Secure"));
        assert!(Sessions::new("b", false, HOUR).find(&with_cookie(&set)).is_none());
        let mut two = with_cookie(&set);
        two.append(header::COOKIE, with_cookie(&plain.begin(token("u"), None))[header::COOKIE].clone());
        assert!(plain.find(&two).is_none(), "one of two is somebody else's");
        assert!(plain.forget().contains("Max-Age=0"));
    }

    #[test]
    fn a_form_is_of_one_session() {
        let sessions = Sessions::new("a", false, HOUR);
        let (one, other) =
            (with_cookie(&sessions.begin(token("t"), None)), with_cookie(&sessions.begin(token("t"), None)));
        let token = sessions.form_token(&one).unwrap();
        assert!(sessions.is_form_token(&one, &token) && !sessions.is_form_token(&other, &token));
        assert!(!sessions.is_form_token(&one, "") && !sessions.is_form_token(&HeaderMap::new(), ""));
    }

    #[test]
    fn there_are_only_so_many_sessions() {
        let (sessions, now) = (Sessions::new("a", false, HOUR), Instant::now());
        let own = with_cookie(&sessions.begin_at(token("patient"), None, now));
        let sets: Vec<_> = (0..=SESSIONS_PER_HOLDER_MAX)
            .map(|number| sessions.begin_at(token("script"), None, now + Duration::from_millis(number as u64)))
            .collect();
        assert!(sessions.find(&with_cookie(&sets[0])).is_none() && sessions.find(&with_cookie(&sets[1])).is_some());
        assert!(sessions.find(&own).is_some(), "another's are left alone");
    }

    #[test]
    fn what_is_told_is_told_once() {
        let sessions = Sessions::new("a", false, HOUR);
        let (key, _) = sessions.find(&with_cookie(&sessions.begin(token("t"), None))).unwrap();
        sessions.tell(key, "done");
        assert_eq!((sessions.told(key).as_deref(), sessions.told(key)), (Some("done"), None));
    }
}
