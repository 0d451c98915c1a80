//! Local bearer tokens: who may call the HTTP API, and as whom. And claim codes, with which a patient takes a study over once.
//!
//! A token is shown once, when it is made. Kept is its SHA-256 (its secret part has 256 random bits, so nothing slower is
//! needed), in a database of its own that the daemon and the command line may have open at the same time; a revoked or expired
//! token is refused at the next request. What a token's principal may do is for [`crate::access`] to say. Must not know HTTP.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use dicom_scp::{AeTitle, Uid};
use rand::RngCore as _;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::access::{Caller, Principal, Right, Shared};

/// The database, in the data directory.
pub const DATABASE: &str = "tokens.sqlite";
/// What every token begins with, so that one that leaked is recognised.
const PREFIX: &str = "pbt_";
/// Longest token worth looking at, in bytes.
const TOKEN_BYTES_MAX: usize = 128;
/// The last use is written no more often than this, in seconds.
const USED_EVERY_S: u64 = 60;
/// How long a writer waits for another one.
const BUSY: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
BEGIN;
CREATE TABLE IF NOT EXISTS token (
  id TEXT PRIMARY KEY,
  sha256 BLOB NOT NULL,        -- of the whole token
  name TEXT NOT NULL,
  principal TEXT NOT NULL,     -- operator, peer:AETITLE, account:0x... or study:UID@0x...
  rights TEXT,                 -- names with commas; null: all that the principal has
  created_s INTEGER NOT NULL,  -- seconds since 1970, as all times here
  expires_s INTEGER,           -- the first second at which it is refused
  revoked_s INTEGER,
  used_s INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claim (
  sha256 BLOB PRIMARY KEY,     -- of the code
  study BLOB NOT NULL,         -- its name on the ledger
  created_s INTEGER NOT NULL,
  expires_s INTEGER NOT NULL,
  used_s INTEGER
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
COMMIT;";

/// What claim codes are written with: Crockford's base 32, whose characters are not taken for each other.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters of a claim code: 125 random bits.
const CODE_CHARS: usize = 25;

/// Why tokens cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The database failed.
    #[error("the database of tokens")]
    Database(#[from] rusqlite::Error),
    /// Its file cannot be made.
    #[error("the database of tokens {0}")]
    File(PathBuf, #[source] std::io::Error),
    /// It was written by another version.
    #[error("the database of tokens has format {0}, this program knows 1")]
    Version(i64),
    /// The asker: nobody can be named like this.
    #[error("\"{0}\" is neither \"operator\" nor peer:AETITLE nor account:0x and 40 hexadecimal digits")]
    Principal(String),
}

/// A token, without what opens anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is called here; the second part of the token itself.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Who shows it, and what it leaves of the principal's rights.
    pub caller: Caller,
    /// When it was made, seconds since 1970.
    pub created_s: u64,
    /// The first second at which it is refused, if it ends.
    pub expires_s: Option<u64>,
    /// When it was revoked.
    pub revoked_s: Option<u64>,
    /// When it was used last, to the minute.
    pub used_s: Option<u64>,
}

impl Token {
    /// Whether it is taken at a time, in seconds since 1970.
    #[must_use]
    pub fn is_good(&self, now_s: u64) -> bool {
        self.revoked_s.is_none() && self.expires_s.is_none_or(|end| now_s < end)
    }
}

/// The tokens of a site. Cheap to clone.
#[derive(Clone)]
pub struct Tokens(Arc<Mutex<Connection>>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// Opens the database, making it, readable by its owner only, if it is not there.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let made = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        made.map_err(|e| TokenError::File(path.to_owned(), e))?;
        let database = Connection::open(path)?;
        database.busy_timeout(BUSY)?;
        // Readers go on while the command line writes. Side files get the mode of the database.
        database.pragma_update(None, "journal_mode", "WAL")?;
        match database.query_row("PRAGMA user_version", [], |row| row.get(0))? {
            0 => database.execute_batch(SCHEMA)?,
            1 => {}
            other => return Err(TokenError::Version(other)),
        }
        Ok(Self(Arc::new(Mutex::new(database))))
    }

    /// Makes a token and returns it; it cannot be had again.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub fn create(
        &self,
        name: &str,
        caller: &Caller,
        now_s: u64,
        expires_s: Option<u64>,
    ) -> Result<(Token, Zeroizing<String>), TokenError> {
        let mut random = Zeroizing::new([0; 40]);
        rand::rngs::OsRng.fill_bytes(random.as_mut());
        let (id, secret) = random.split_at(8);
        let id = hex::encode(id);
        let whole = Zeroizing::new(format!("{PREFIX}{id}_{}", hex::encode(secret)));
        let rights =
            caller.narrowed.as_ref().map(|rights| rights.iter().map(|r| r.name()).collect::<Vec<_>>().join(","));
        self.database().execute(
            "INSERT INTO token (id, sha256, name, principal, rights, created_s, expires_s) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                id,
                Sha256::digest(whole.as_bytes()).as_slice(),
                name,
                principal_text(&caller.principal),
                rights,
                bits(now_s),
                expires_s.map(bits)
            ],
        )?;
        let (name, caller) = (name.to_owned(), caller.clone());
        let token = Token { id, name, caller, created_s: now_s, expires_s, revoked_s: None, used_s: None };
        Ok((token, whole))
    }

    /// Every token that was ever made, the oldest first.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub fn list(&self) -> Result<Vec<Token>, TokenError> {
        let database = self.database();
        let mut query = database.prepare_cached(&format!("{SELECT} ORDER BY created_s, id"))?;
        let rows = query.query_map([], |row| Ok(token(row)?.0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The links to a study that are good, the oldest first.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub fn links_to(&self, study: &Uid, now_s: u64) -> Result<Vec<Token>, TokenError> {
        let database = self.database();
        // Of the characters of a UID none means anything to LIKE.
        let sql = format!("{SELECT} WHERE principal LIKE ?1 || '%' AND revoked_s IS NULL ORDER BY created_s, id");
        let mut query = database.prepare_cached(&sql)?;
        let rows = query.query_map([shared_text(study)], |row| Ok(token(row)?.0))?;
        let mut links: Vec<Token> = rows.collect::<Result<_, _>>()?;
        links.retain(|link| link.is_good(now_s));
        Ok(links)
    }

    /// Ends a token for ever. `false` when there is none with this id.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub fn revoke(&self, id: &str, now_s: u64) -> Result<bool, TokenError> {
        let sql = "UPDATE token SET revoked_s = coalesce(revoked_s, ?2) WHERE id = ?1";
        Ok(self.database().execute(sql, params![id, bits(now_s)])? == 1)
    }

    /// The token that somebody shows, if it is good now. Takes the same time for every wrong secret of a known or unknown id.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub fn check(&self, shown: &str, now_s: u64) -> Result<Option<Token>, TokenError> {
        if shown.len() > TOKEN_BYTES_MAX {
            return Ok(None);
        }
        let id = shown.strip_prefix(PREFIX).and_then(|rest| rest.split('_').next()).unwrap_or_default();
        let digest: [u8; 32] = Sha256::digest(shown.as_bytes()).into();
        let (found, kept) = match self.find(id)? {
            Some((token, kept)) => (Some(token), kept),
            None => (None, [0; 32]),
        };
        let same = bool::from(digest.ct_eq(&kept));
        let Some(mut token) = found.filter(|token| same && token.is_good(now_s)) else { return Ok(None) };
        if token.used_s.is_none_or(|used| used.saturating_add(USED_EVERY_S) <= now_s) {
            self.database().execute("UPDATE token SET used_s = ?2 WHERE id = ?1", params![token.id, bits(now_s)])?;
            token.used_s = Some(now_s);
        }
        Ok(Some(token))
    }

    /// A token that was good, if it is good still.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub fn still_good(&self, id: &str, now_s: u64) -> Result<Option<Token>, TokenError> {
        Ok(self.find(id)?.map(|(token, _)| token).filter(|token| token.is_good(now_s)))
    }

    /// Makes a code with which a patient can take a study over once, and returns it; it cannot be had again.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub fn create_claim(&self, study: B256, now_s: u64, expires_s: u64) -> Result<Zeroizing<String>, TokenError> {
        let mut random = Zeroizing::new([0; CODE_CHARS]);
        rand::rngs::OsRng.fill_bytes(random.as_mut());
        let code: Zeroizing<String> =
            Zeroizing::new(random.iter().map(|byte| char::from(DIGITS[usize::from(byte & 31)])).collect());
        self.database().execute(
            "INSERT INTO claim (sha256, study, created_s, expires_s) VALUES (?1, ?2, ?3, ?4)",
            params![Sha256::digest(code.as_bytes()).as_slice(), study.as_slice(), bits(now_s), bits(expires_s)],
        )?;
        let groups: Vec<&str> = (0..CODE_CHARS).step_by(5).map(|at| &code[at..at + 5]).collect();
        Ok(Zeroizing::new(groups.join("-")))
    }

    /// The study that a code is for, if it is good now. It stays good until [`Tokens::use_claim`].
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub fn claimed_by(&self, code: &str, now_s: u64) -> Result<Option<B256>, TokenError> {
        let Some(digest) = code_digest(code) else { return Ok(None) };
        let sql = "SELECT study FROM claim WHERE sha256 = ?1 AND used_s IS NULL AND expires_s > ?2";
        let wanted = params![digest.as_slice(), bits(now_s)];
        let found = self.database().query_row(sql, wanted, |row| Ok(B256::from(row.get::<_, [u8; 32]>(0)?)));
        Ok(found.optional()?)
    }

    /// Ends a code, and every other code for its study: who has taken it over need not share it.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub fn use_claim(&self, study: B256, now_s: u64) -> Result<(), TokenError> {
        let sql = "UPDATE claim SET used_s = ?2 WHERE study = ?1 AND used_s IS NULL";
        self.database().execute(sql, params![study.as_slice(), bits(now_s)])?;
        Ok(())
    }

    fn find(&self, id: &str) -> Result<Option<(Token, [u8; 32])>, TokenError> {
        let database = self.database();
        let mut query = database.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?;
        Ok(query.query_row([id], token).optional()?)
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A code as it is hashed and signed, from how people type it: in small letters, with other gaps, with letters for digits.
#[must_use]
pub fn plain_code(typed: &str) -> Zeroizing<String> {
    let plain = typed.chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    });
    Zeroizing::new(plain.collect())
}

fn code_digest(typed: &str) -> Option<[u8; 32]> {
    if typed.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let code = plain_code(typed);
    (code.len() == CODE_CHARS).then(|| Sha256::digest(code.as_bytes()).into())
}

/// SQLite keeps signed numbers.
fn bits(number: u64) -> i64 {
    number.cast_signed()
}

const SELECT: &str = "SELECT id, sha256, name, principal, rights, created_s, expires_s, revoked_s, used_s FROM token";

fn token(row: &Row<'_>) -> rusqlite::Result<(Token, [u8; 32])> {
    let as_written = |column, text: &str| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, format!("\"{text}\"").into())
    };
    let time = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(i64::cast_unsigned));
    let principal: String = row.get(3)?;
    let principal = parse_principal(&principal).map_err(|_| as_written(3, &principal))?;
    let rights: Option<String> = row.get(4)?;
    // A right of a later version is none here.
    let narrowed = rights.map(|names| names.split(',').filter_map(Right::from_name).collect());
    let token = Token {
        id: row.get(0)?,
        name: row.get(2)?,
        caller: Caller { principal, narrowed },
        created_s: row.get::<_, i64>(5)?.cast_unsigned(),
        expires_s: time(6)?,
        revoked_s: time(7)?,
        used_s: time(8)?,
    };
    Ok((token, row.get(1)?))
}

/// A principal as the command line and the database write it.
#[must_use]
pub fn principal_text(principal: &Principal) -> String {
    match principal {
        Principal::Operator => "operator".to_owned(),
        Principal::Peer(title) => format!("peer:{title}"),
        Principal::Unknown(title) => format!("unknown:{title}"),
        Principal::Account(account) => format!("account:{account}"),
        Principal::Shared(shared) => format!("{}{}", shared_text(&shared.study), shared.owner),
    }
}

/// What the principals of all links to a study begin with.
fn shared_text(study: &Uid) -> String {
    format!("study:{study}@")
}

fn parse_shared(text: &str) -> Option<Shared> {
    let (study, owner) = text.split_once('@')?;
    Some(Shared { study: Uid::new(study).ok()?, owner: owner.parse().ok()? })
}

/// The inverse of [`principal_text`], for principals that a token may have.
///
/// # Errors
/// [`TokenError::Principal`].
pub fn parse_principal(text: &str) -> Result<Principal, TokenError> {
    let unknown = || TokenError::Principal(text.to_owned());
    match text.split_once(':') {
        None if text == "operator" => Ok(Principal::Operator),
        Some(("peer", title)) => AeTitle::new(title).map(Principal::Peer).map_err(|_| unknown()),
        Some(("account", account)) => account.parse::<Address>().map(Principal::Account).map_err(|_| unknown()),
        Some(("study", shared)) => parse_shared(shared).map(Principal::Shared).ok_or_else(unknown),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn patient() -> Caller {
        Caller { principal: Principal::Account(Address::repeat_byte(0xab)), narrowed: Some(vec![Right::Find]) }
    }

    #[test]
    fn links_to_a_study_are_found_while_they_are_good() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&dir.path().join(DATABASE)).unwrap();
        let uid = |text: &str| Uid::new(text).unwrap();
        let link = |study: &str, owner: u8, end: Option<u64>| {
            let shared = Shared { study: uid(study), owner: Address::repeat_byte(owner) };
            let caller = Caller { principal: Principal::Shared(shared), narrowed: None };
            assert_eq!(parse_principal(&principal_text(&caller.principal)).unwrap(), caller.principal);
            tokens.create("Dr X", &caller, 100, end).unwrap().0.id
        };
        let (first, second) = (link("1.2.3", 1, Some(200)), link("1.2.3", 2, Some(300)));
        link("1.2.34", 1, Some(300));
        link("1.2", 1, Some(300));
        tokens.create("phone", &patient(), 100, None).unwrap();
        let found =
            |now| tokens.links_to(&uid("1.2.3"), now).unwrap().into_iter().map(|link| link.id).collect::<Vec<_>>();
        let mut both = vec![first, second.clone()];
        both.sort();
        assert_eq!(found(199), both);
        assert_eq!(found(200), [second.as_str()]);
        tokens.revoke(&second, 200).unwrap();
        assert!(found(200).is_empty());
        for wrong in ["study:1.2.3", "study:@0x0000000000000000000000000000000000000001", "study:1.2@0x1", "study:x@y"]
        {
            assert!(parse_principal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_is_good_until_it_ends_and_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE);
        let tokens = Tokens::open(&path).unwrap();
        let (made, shown) = tokens.create("phone", &patient(), 100, Some(200)).unwrap();
        assert_eq!(tokens.check(&shown, 199).unwrap().unwrap().caller, patient());
        assert!(tokens.check(&shown, 200).unwrap().is_none());
        // Another process, such as the command line, ends it.
        let other = Tokens::open(&path).unwrap();
        assert!(other.revoke(&made.id, 150).unwrap() && !other.revoke("0000000000000000", 150).unwrap());
        assert!(tokens.check(&shown, 160).unwrap().is_none());
        assert!(tokens.still_good(&made.id, 160).unwrap().is_none());
        let kept = &other.list().unwrap()[0];
        assert_eq!((kept.revoked_s, kept.used_s, kept.name.as_str()), (Some(150), Some(199), "phone"));
        drop((tokens, other));
        let secret = shown.rsplit('_').next().unwrap();
        for file in fs::read_dir(dir.path()).unwrap() {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn nothing_but_the_whole_token_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&dir.path().join(DATABASE)).unwrap();
        let caller = Caller { principal: Principal::Operator, narrowed: None };
        let (made, shown) = tokens.create("ops", &caller, 1, None).unwrap();
        let other = tokens.create("ops", &caller, 1, None).unwrap().1;
        let secret = shown.rsplit('_').next().unwrap();
        let wrong = [
            String::new(),
            PREFIX.to_owned(),
            format!("{PREFIX}{}", made.id),
            format!("{PREFIX}{}_", made.id),
            format!("{PREFIX}{}_{}", made.id, other.rsplit('_').next().unwrap()),
            format!("{PREFIX}0000000000000000_{secret}"),
            shown[..shown.len() - 1].to_owned(),
            format!("{}0", *shown),
            shown.to_uppercase(),
            "x".repeat(100_000),
        ];
        for wrong in wrong {
            assert!(tokens.check(&wrong, 2).unwrap().is_none(), "{wrong}");
        }
        assert!(tokens.check(&shown, u64::MAX >> 1).unwrap().is_some());
    }

    #[test]
    fn a_claim_code_is_typed_as_people_type_and_good_once() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&dir.path().join(DATABASE)).unwrap();
        let study = B256::repeat_byte(7);
        let code = tokens.create_claim(study, 100, 200).unwrap();
        let other = tokens.create_claim(study, 100, 200).unwrap();
        assert_eq!(code.len(), 29);
        let typed = code.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
        for good in [code.as_str(), typed.as_str(), other.as_str()] {
            assert_eq!(tokens.claimed_by(good, 199).unwrap(), Some(study), "{good}");
        }
        assert_eq!(tokens.claimed_by(&code, 200).unwrap(), None);
        for wrong in ["", "-----", &code[1..], &"A".repeat(25), &"A".repeat(100_000)] {
            assert_eq!(tokens.claimed_by(wrong, 150).unwrap(), None, "{wrong}");
        }
        tokens.use_claim(study, 150).unwrap();
        assert_eq!((tokens.claimed_by(&code, 160).unwrap(), tokens.claimed_by(&other, 160).unwrap()), (None, None));
    }

    #[test]
    fn principals_are_written_and_read() {
        for text in ["operator", "peer:VIEWER", "account:0xabABabABabABabABabABabABabABabABabABabAB"] {
            let read = parse_principal(text).unwrap();
            assert!(principal_text(&read).eq_ignore_ascii_case(text));
        }
        for text in ["", "root", "peer:", "peer:SEVENTEEN LETTERS", "account:0x12", "unknown:CT1"] {
            assert!(parse_principal(text).is_err(), "{text}");
        }
    }
}
