//! The database: canonical events, the newest headers, and what was derived from them.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use alloy::primitives::{Address, B256, Bytes};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use tokio::sync::watch;

use super::event::{Event, Mode, What};
use super::{
    AccessRequest, Asked, Chain, Decision, Envelope, FollowError, Grant, Head, KeyBinding, Logged, Question,
    SourceInfo, StudyInfo, fold,
};

/// Headers kept for finding the place where two branches part. A longer reorganisation is followed from the beginning.
const HEADERS_KEPT: u64 = 1024;

const SCHEMA: &str = "
BEGIN;
CREATE TABLE chain (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  genesis BLOB NOT NULL,
  registry BLOB NOT NULL,
  chain_id INTEGER NOT NULL,
  key_bindings BLOB NOT NULL
) STRICT;
CREATE TABLE header (number INTEGER PRIMARY KEY, hash BLOB NOT NULL, parent BLOB NOT NULL) STRICT;
-- As the node gave it: what is derived can be derived again, by this version or a later one.
CREATE TABLE event (
  block INTEGER NOT NULL,
  log_index INTEGER NOT NULL,
  block_hash BLOB NOT NULL,
  tx BLOB NOT NULL,
  contract BLOB NOT NULL,
  study BLOB,                  -- null, and binding too: about sources
  binding BLOB,                -- account and key
  topics BLOB NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (block, log_index)
) STRICT, WITHOUT ROWID;
CREATE INDEX event_study ON event (study, block, log_index);
CREATE INDEX event_binding ON event (binding, block, log_index) WHERE binding IS NOT NULL;
CREATE TABLE study (
  id BLOB PRIMARY KEY,
  owner BLOB NOT NULL,
  source BLOB NOT NULL,
  custodial INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  version INTEGER NOT NULL,
  image BLOB NOT NULL,
  root BLOB NOT NULL,
  tombstoned INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE pair (
  grantee BLOB NOT NULL,
  study BLOB NOT NULL,
  mode INTEGER NOT NULL,
  series BLOB NOT NULL,
  not_before INTEGER NOT NULL, -- times are the bits of a u64
  not_after INTEGER NOT NULL,
  purpose INTEGER NOT NULL,
  encryption_key BLOB NOT NULL,
  seq INTEGER NOT NULL,
  decision INTEGER NOT NULL,
  asked INTEGER NOT NULL,
  deny_reason INTEGER NOT NULL,
  emergency_until INTEGER NOT NULL,
  request_number INTEGER NOT NULL,
  request_mode INTEGER NOT NULL,
  request_purpose INTEGER NOT NULL,
  request_notes BLOB NOT NULL,
  request_key BLOB NOT NULL,
  request_block INTEGER NOT NULL,
  question BLOB NOT NULL,      -- key of the open question for keys, empty if there is none
  envelope_key BLOB NOT NULL,  -- of the question that the envelope answers
  envelope_until INTEGER NOT NULL,
  envelope BLOB NOT NULL,      -- empty if there is none
  PRIMARY KEY (grantee, study)
) STRICT, WITHOUT ROWID;
CREATE INDEX pair_study ON pair (study);
CREATE INDEX pair_asked ON pair (asked, study);
CREATE INDEX pair_question ON pair (study) WHERE length(question) > 0;
CREATE TABLE source (
  identity BLOB PRIMARY KEY,
  endpoint TEXT NOT NULL,
  tls_key BLOB NOT NULL,
  encryption_key BLOB NOT NULL,
  openpgp_key BLOB NOT NULL,
  defined INTEGER NOT NULL,
  suspended INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE operator (account BLOB PRIMARY KEY, source BLOB NOT NULL) STRICT, WITHOUT ROWID;
-- Proven ones only.
CREATE TABLE binding (
  key BLOB NOT NULL,
  account BLOB NOT NULL,
  not_after INTEGER NOT NULL,
  block INTEGER NOT NULL,
  log_index INTEGER NOT NULL,
  PRIMARY KEY (key, account)
) STRICT, WITHOUT ROWID;
CREATE INDEX binding_account ON binding (account);
PRAGMA user_version = 3;
COMMIT;";

/// All of it is what the chain says, so what another version derived is followed again: version 2 did not listen to KeyBindings.
const DROP_OLDER: &str =
    "DROP TABLE chain; DROP TABLE header; DROP TABLE event; DROP TABLE study; DROP TABLE pair; DROP TABLE source;
  DROP TABLE operator;";

const DELETE_ALL: &str =
    "DELETE FROM header; DELETE FROM event; DELETE FROM study; DELETE FROM pair; DELETE FROM source;
  DELETE FROM operator; DELETE FROM binding;";

/// What the chain says about consent. Cheap to clone.
#[derive(Clone)]
pub struct Consents(Arc<Inner>);

/// How old may be what access is granted on, in seconds. The node is asked more often by far.
pub const CURRENT_S_MAX: u64 = 60;

struct Inner {
    database: Mutex<Connection>,
    /// Changed while the database is held, so that both are of one moment.
    ahead: Mutex<Known>,
    changed: watch::Sender<u64>,
    followed: watch::Sender<Option<u64>>,
    current: Mutex<Option<Current>>,
}

/// What blocks say that do not count yet, because they may be replaced.
#[derive(Debug, Default, Clone)]
pub struct Ahead {
    /// All events of the followed contracts in the blocks above the newest one that counts, in chain order.
    pub events: Vec<Logged>,
    /// Transactions of this site, which it sends again until they are final, whatever becomes of the blocks.
    pub carried: HashSet<B256>,
}

/// The same, read.
#[derive(Debug, Default)]
struct Known {
    events: Vec<Event>,
    carried: HashSet<B256>,
}

impl Known {
    fn of(ahead: Ahead) -> Self {
        let read = |logged: Logged| {
            let what = What::decode(&logged.topics, &logged.data)?;
            let Logged { block, block_hash, transaction, log_index, .. } = logged;
            Some(Event { block, block_hash, transaction, log_index, what })
        };
        Self { events: ahead.events.into_iter().filter_map(read).collect(), carried: ahead.carried }
    }

    fn about(&self, study: B256) -> Vec<Event> {
        self.events.iter().filter(|event| event.what.study() == Some(study)).cloned().collect()
    }

    /// Whether a source is suspended in them; that it is not any more counts later.
    fn suspends(&self, account: Address) -> bool {
        let suspends = |event: &Event| matches!(event.what, What::SourceSuspended { source } if source == account);
        self.events.iter().any(suspends)
    }
}

/// When the node last answered and had nothing that is not here: by the clock of this machine, and by one that nobody sets. A clock that was
/// wrong and is put right must not make old news of revocations count as new.
#[derive(Clone, Copy)]
struct Current {
    now_s: u64,
    at: Instant,
}

impl std::fmt::Debug for Consents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consents").field("followed", &*self.0.followed.borrow()).finish_non_exhaustive()
    }
}

// ---- following ---------------------------------------------------------------------------------------------------------------

impl Consents {
    /// Opens the database, making it if it is not there.
    ///
    /// # Errors
    /// [`FollowError::Version`] when a later version wrote it.
    pub fn open(path: &Path) -> Result<Self, FollowError> {
        let database = Connection::open(path)?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        // A power cut may take the newest blocks along, never half of one; they are followed again.
        database.pragma_update(None, "synchronous", "NORMAL")?;
        match database.query_row("PRAGMA user_version", [], |row| row.get(0))? {
            0 => database.execute_batch(SCHEMA)?,
            1 | 2 => database.execute_batch(&SCHEMA.replacen("BEGIN;", &format!("BEGIN; {DROP_OLDER}"), 1))?,
            3 => {}
            other => return Err(FollowError::Version(other)),
        }
        // Databases of earlier releases lack it; it holds nothing that is not in the table.
        database.execute_batch("CREATE INDEX IF NOT EXISTS study_owner ON study (owner, id)")?;
        let cursor = cursor(&database)?;
        Ok(Self(Arc::new(Inner {
            database: Mutex::new(database),
            ahead: Mutex::default(),
            changed: watch::Sender::new(0),
            followed: watch::Sender::new(cursor.map(|head| head.number)),
            current: Mutex::new(None),
        })))
    }

    /// Takes note that at this moment, in seconds since 1970, the node had nothing that is not here.
    pub fn note_current(&self, now_s: u64) {
        *self.0.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Current { now_s, at: Instant::now() });
    }

    /// Whether what is here was all there is within the last [`CURRENT_S_MAX`] seconds. Who lets somebody in asks this first: a site that is
    /// cut off from the ledger does not learn what was revoked.
    #[must_use]
    pub fn is_current(&self, now_s: u64) -> bool {
        self.is_current_within(now_s, CURRENT_S_MAX)
    }

    /// As [`Consents::is_current`], within so many seconds.
    #[must_use]
    pub fn is_current_within(&self, now_s: u64, age_s_max: u64) -> bool {
        let current = *self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.is_some_and(|current| {
            current.at.elapsed().as_secs() <= age_s_max && now_s.abs_diff(current.now_s) <= age_s_max
        })
    }

    /// Says which chain and which consortium is followed. Another one than before, and everything begins anew.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn begin(&self, chain: &Chain) -> Result<(), FollowError> {
        let mut database = self.database();
        if followed_chain(&database)?.as_ref() == Some(chain) {
            return Ok(());
        }
        let work = database.transaction()?;
        work.execute_batch(&format!("{DELETE_ALL} DELETE FROM chain;"))?;
        work.execute(
            "INSERT INTO chain (one, genesis, registry, chain_id, key_bindings) VALUES (1, ?1, ?2, ?3, ?4)",
            params![
                chain.genesis.as_slice(),
                chain.registry.as_slice(),
                bits(chain.chain_id),
                chain.key_bindings.as_slice()
            ],
        )?;
        work.commit()?;
        self.look_ahead(Ahead::default());
        drop(database);
        self.told(None, true);
        Ok(())
    }

    /// Which chain and which consortium is followed, if any was.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn chain(&self) -> Result<Option<Chain>, FollowError> {
        Ok(followed_chain(&self.database())?)
    }

    /// The newest block applied.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn cursor(&self) -> Result<Option<Head>, FollowError> {
        Ok(cursor(&self.database())?)
    }

    /// The newest block applied at or below a height whose header is still kept.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn header_below(&self, number: u64) -> Result<Option<Head>, FollowError> {
        let sql = "SELECT number, hash, parent FROM header WHERE number <= ?1 ORDER BY number DESC LIMIT 1";
        Ok(self.database().query_row(sql, [bits(number)], head).optional()?)
    }

    /// Whether a block that was followed is known to have left the branch.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn has_left(&self, number: u64, hash: B256) -> Result<bool, FollowError> {
        let kept = self.header_below(number)?;
        Ok(kept.is_some_and(|kept| kept.number == number && kept.hash != hash))
    }

    /// Applies consecutive blocks, oldest first, with all their events of the followed contracts. The first must follow the cursor,
    /// or have the cursor's height and hash or lie below it, which counts as applied. Blocks without events may be left out before
    /// a block when the caller knows that they are on its branch. Returns whether anything was said.
    ///
    /// # Errors
    /// [`FollowError::Gap`] when a block is not a child of the one before.
    pub fn apply(&self, blocks: &[Head], events: &[Logged]) -> Result<bool, FollowError> {
        self.apply_with(blocks, events, Ahead::default())
    }

    /// As [`Consents::apply`], with what the blocks above say that do not count yet, in one step. It takes the place of what was known of
    /// such blocks before.
    ///
    /// # Errors
    /// [`FollowError::Gap`] when a block is not a child of the one before.
    pub fn apply_with(&self, blocks: &[Head], events: &[Logged], ahead: Ahead) -> Result<bool, FollowError> {
        let mut database = self.database();
        let at = cursor(&database)?;
        let new: Vec<&Head> = blocks.iter().filter(|b| at.is_none_or(|at| b.number > at.number)).collect();
        let Some(newest) = new.last().map(|head| **head) else {
            let said = self.look_ahead(ahead);
            drop(database);
            self.told(at.map(|head| head.number), said);
            return Ok(said);
        };
        check_branch(at, &new)?;
        let work = database.transaction()?;
        for block in new.iter().rev().take(usize::try_from(HEADERS_KEPT).unwrap_or(usize::MAX)) {
            put_header(&work, block)?;
        }
        work.execute("DELETE FROM header WHERE number <= ?1", [bits(newest.number.saturating_sub(HEADERS_KEPT))])?;
        let mut touched = Touched::default();
        for event in events.iter().filter(|e| at.is_none_or(|at| e.block > at.number)) {
            touched.add(&work, event)?;
        }
        let said = touched.any();
        touched.derive(&work)?;
        work.commit()?;
        let said = self.look_ahead(ahead) || said;
        drop(database);
        self.told(Some(newest.number), said);
        Ok(said)
    }

    /// Takes back every block above a height.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn rewind(&self, to: u64) -> Result<(), FollowError> {
        // What took their place is not here yet: until it is, a revocation in it is not known.
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut database = self.database();
        let work = database.transaction()?;
        let touched = Touched::above(&work, to)?;
        work.execute("DELETE FROM event WHERE block > ?1", [bits(to)])?;
        work.execute("DELETE FROM header WHERE number > ?1", [bits(to)])?;
        let said = touched.any();
        touched.derive(&work)?;
        let at = cursor(&work)?;
        work.commit()?;
        let said = self.look_ahead(Ahead::default()) || said;
        drop(database);
        self.told(at.map(|head| head.number), said);
        Ok(())
    }

    /// Takes back everything.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn forget(&self) -> Result<(), FollowError> {
        let database = self.database();
        database.execute_batch(&format!("BEGIN; {DELETE_ALL} COMMIT;"))?;
        self.look_ahead(Ahead::default());
        drop(database);
        self.told(None, true);
        Ok(())
    }

    /// Whoever calls holds the database. Returns whether it says something else than before.
    fn look_ahead(&self, ahead: Ahead) -> bool {
        let new = Known::of(ahead);
        let mut known = self.ahead();
        let differs = known.events != new.events || known.carried != new.carried;
        *known = new;
        differs
    }

    fn ahead(&self) -> MutexGuard<'_, Known> {
        self.0.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, followed: Option<u64>, said: bool) {
        self.0.followed.send_replace(followed);
        if said {
            self.0.changed.send_modify(|count| *count += 1);
        }
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.0.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rises whenever something was said or taken back.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Height of the newest block applied.
    #[must_use]
    pub fn followed(&self) -> watch::Receiver<Option<u64>> {
        self.0.followed.subscribe()
    }
}

/// The blocks must be one branch. Only gaps are checked where the caller left blocks out.
fn check_branch(at: Option<Head>, new: &[&Head]) -> Result<(), FollowError> {
    let mut before = at;
    for block in new {
        if let Some(last) = before
            && (block.number <= last.number || (block.number == last.number + 1 && block.parent != last.hash))
        {
            return Err(FollowError::Gap { cursor: last.number, given: block.number });
        }
        before = Some(**block);
    }
    Ok(())
}

/// What an event is about.
enum Subject {
    Sources,
    Study(B256),
    Binding(Address, B256),
}

impl Subject {
    fn of(what: &What) -> Self {
        match (what.study(), what.binding()) {
            (Some(study), _) => Self::Study(study),
            (None, Some((account, key))) => Self::Binding(account, key),
            (None, None) => Self::Sources,
        }
    }

    /// As a row of events has it.
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        if let Some(study) = row.get::<_, Option<[u8; 32]>>(0)? {
            return Ok(Self::Study(study.into()));
        }
        let binding = row.get::<_, Option<[u8; 52]>>(1)?;
        Ok(binding.map_or(Self::Sources, |binding| {
            let (account, key) = binding.split_at(20);
            Self::Binding(Address::from_slice(account), B256::from_slice(key))
        }))
    }
}

/// How a row of events names an account and a key.
fn binding_column(account: Address, key: B256) -> Vec<u8> {
    [account.as_slice(), key.as_slice()].concat()
}

/// Studies (and whether sources) and bindings whose events have changed.
#[derive(Default)]
struct Touched {
    studies: BTreeSet<B256>,
    bindings: BTreeSet<(Address, B256)>,
    sources: bool,
}

impl Touched {
    fn any(&self) -> bool {
        self.sources || !self.studies.is_empty() || !self.bindings.is_empty()
    }

    fn note(&mut self, subject: Subject) {
        match subject {
            Subject::Study(study) => drop(self.studies.insert(study)),
            Subject::Binding(account, key) => drop(self.bindings.insert((account, key))),
            Subject::Sources => self.sources = true,
        }
    }

    fn add(&mut self, work: &Transaction<'_>, event: &Logged) -> rusqlite::Result<()> {
        let Some(what) = What::decode(&event.topics, &event.data) else { return Ok(()) };
        let topics: Vec<u8> = event.topics.iter().flat_map(|topic| topic.0).collect();
        let study = what.study();
        let mut put = work.prepare_cached(
            "INSERT OR REPLACE INTO event (block, log_index, block_hash, tx, contract, study, topics, data, binding)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        put.execute(params![
            bits(event.block),
            bits(event.log_index),
            event.block_hash.as_slice(),
            event.transaction.as_slice(),
            event.contract.as_slice(),
            study.as_ref().map(B256::as_slice),
            topics,
            event.data.as_ref(),
            what.binding().map(|(account, key)| binding_column(account, key)),
        ])?;
        self.note(Subject::of(&what));
        Ok(())
    }

    fn above(work: &Transaction<'_>, height: u64) -> rusqlite::Result<Self> {
        let mut touched = Self::default();
        let mut query = work.prepare("SELECT DISTINCT study, binding FROM event WHERE block > ?1")?;
        for subject in query.query_map([bits(height)], Subject::read)? {
            touched.note(subject?);
        }
        Ok(touched)
    }

    fn derive(self, work: &Transaction<'_>) -> rusqlite::Result<()> {
        if self.sources {
            put_sources(work, &fold::sources(&events_of(work, None)?))?;
        }
        for study in self.studies {
            put_study(work, study, &fold::study(&events_of(work, Some(study))?))?;
        }
        if self.bindings.is_empty() {
            return Ok(());
        }
        let Some(chain) = followed_chain(work)? else { return Ok(()) };
        for (account, key) in self.bindings {
            let newest = newest_about(work, account, key)?;
            put_binding(work, account, key, newest.and_then(|newest| fold::key_binding(&chain, &newest)))?;
        }
        Ok(())
    }
}

fn put_header(work: &Transaction<'_>, block: &Head) -> rusqlite::Result<()> {
    let mut put = work.prepare_cached("INSERT OR REPLACE INTO header (number, hash, parent) VALUES (?1, ?2, ?3)")?;
    put.execute(params![bits(block.number), block.hash.as_slice(), block.parent.as_slice()])?;
    Ok(())
}

fn put_study(work: &Transaction<'_>, id: B256, known: &fold::Study) -> rusqlite::Result<()> {
    work.prepare_cached("DELETE FROM pair WHERE study = ?1")?.execute([id.as_slice()])?;
    work.prepare_cached("DELETE FROM study WHERE id = ?1")?.execute([id.as_slice()])?;
    let Some(info) = &known.info else { return Ok(()) };
    let mut put = work.prepare_cached(
        "INSERT INTO study (id, owner, source, custodial, seq, version, image, root, tombstoned)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    put.execute(params![
        id.as_slice(),
        info.owner.as_slice(),
        info.source.as_slice(),
        info.custodial,
        info.seq,
        info.version,
        info.manifest_image.as_slice(),
        info.manifest_root.as_slice(),
        info.tombstoned,
    ])?;
    let mut put = work.prepare_cached(
        "INSERT INTO pair (grantee, study, mode, series, not_before, not_after, purpose, encryption_key, seq, decision, asked,
           deny_reason, emergency_until, request_number, request_mode, request_purpose, request_notes, request_key, request_block,
           question, envelope_key, envelope_until, envelope)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)",
    )?;
    for (grantee, pair) in &known.pairs {
        let (request, envelope) = (pair.request.as_ref(), pair.envelope.as_ref());
        put.execute(params![
            grantee.as_slice(),
            id.as_slice(),
            pair.mode.number(),
            pair.series.as_slice(),
            bits(pair.not_before),
            bits(pair.not_after),
            pair.purpose,
            pair.encryption_key.as_slice(),
            pair.seq,
            decision_number(pair.decision),
            asked_number(pair.asked),
            pair.deny_reason,
            bits(pair.emergency_until),
            request.map_or(0, |r| r.number),
            request.map_or(0, |r| r.mode.number()),
            request.map_or(0, |r| r.purpose),
            request.map_or(B256::ZERO, |r| r.notes).as_slice(),
            request.map_or(&[][..], |r| r.encryption_key.as_ref()),
            bits(request.map_or(0, |r| r.block)),
            pair.question.as_ref().map_or(&[][..], |key| key.as_ref()),
            envelope.map_or(B256::ZERO, |e| e.one_time_key).as_slice(),
            bits(envelope.map_or(0, |e| e.until)),
            envelope.map_or(&[][..], |e| e.bytes.as_ref()),
        ])?;
    }
    Ok(())
}

fn put_sources(work: &Transaction<'_>, known: &fold::Sources) -> rusqlite::Result<()> {
    work.execute_batch("DELETE FROM source; DELETE FROM operator;")?;
    let mut put = work.prepare_cached(
        "INSERT INTO source (identity, endpoint, tls_key, encryption_key, openpgp_key, defined, suspended)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for source in known.sources.values() {
        put.execute(params![
            source.identity.as_slice(),
            source.endpoint,
            source.tls_key,
            source.encryption_key.as_slice(),
            source.openpgp_key.as_ref(),
            source.defined,
            source.suspended,
        ])?;
    }
    let mut put = work.prepare_cached("INSERT INTO operator (account, source) VALUES (?1, ?2)")?;
    for (account, source) in &known.operators {
        put.execute(params![account.as_slice(), source.as_slice()])?;
    }
    Ok(())
}

fn put_binding(work: &Transaction<'_>, account: Address, key: B256, now: Option<KeyBinding>) -> rusqlite::Result<()> {
    let mut delete = work.prepare_cached("DELETE FROM binding WHERE key = ?1 AND account = ?2")?;
    delete.execute([key.as_slice(), account.as_slice()])?;
    let Some(now) = now else { return Ok(()) };
    let mut put = work.prepare_cached(
        "INSERT INTO binding (key, account, not_after, block, log_index) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let (not_after, block, log_index) = (bits(now.not_after), bits(now.block), bits(now.log_index));
    put.execute(params![key.as_slice(), account.as_slice(), not_after, block, log_index])?;
    Ok(())
}

// ---- asking ------------------------------------------------------------------------------------------------------------------

const GRANT: &str =
    "SELECT p.grantee, p.study, p.mode, p.series, p.not_before, p.not_after, p.purpose, p.encryption_key, p.seq,
    p.decision, p.asked, p.deny_reason, p.emergency_until, s.owner, s.source, s.version, s.image, s.root, s.tombstoned,
    coalesce((SELECT suspended FROM source WHERE identity = p.grantee), 0)
  FROM pair p JOIN study s ON s.id = p.study";

impl Consents {
    /// What was said about a study, one grant per grantee, whether it holds or not.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn grants_of(&self, study_id: B256) -> Result<Vec<Grant>, FollowError> {
        Ok(grants(&self.database(), &format!("{GRANT} WHERE p.study = ?1 ORDER BY p.grantee"), study_id.as_slice())?)
    }

    /// What was said about a study and a grantee.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn grant(&self, study_id: B256, grantee: Address) -> Result<Option<Grant>, FollowError> {
        Ok(grant_of(&self.database(), study_id, grantee)?)
    }

    /// By what a grantee is let in now, or is not: what was said about it and a study, and what newer blocks say that may be replaced yet. In
    /// those, whatever takes something away counts at once. What gives something counts when it is final, except an owner's word
    /// that this site itself carries to the ledger: that is sent again until it is there, whatever becomes of the block that holds it now.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn in_effect(&self, study_id: B256, grantee: Address) -> Result<Option<Grant>, FollowError> {
        let database = self.database();
        let ahead = self.ahead();
        let carried = |event: &Event| ahead.carried.contains(&event.transaction);
        grant_ahead(&database, &ahead, study_id, grantee, carried)
    }

    /// By what a grantee is let in, one grant per study in any order, whether it holds or not, for the grantee itself: as [`Consents::in_effect`], but an owner's
    /// word counts at once whoever carries it, because the study's source decides by itself before it hands out anything.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn open_to(&self, grantee: Address) -> Result<Vec<Grant>, FollowError> {
        let database = self.database();
        let mut grants =
            grants(&database, &format!("{GRANT} WHERE p.grantee = ?1 ORDER BY p.study"), grantee.as_slice())?;
        let ahead = self.ahead();
        let known: HashSet<B256> = match ahead.events.is_empty() {
            true => HashSet::new(),
            false => grants.iter().map(|grant| grant.study_id).collect(),
        };
        let about = |event: &Event| {
            event.what.study().filter(|study| event.what.grantee() == Some(grantee) || known.contains(study))
        };
        let said: BTreeSet<B256> = ahead.events.iter().filter_map(about).collect();
        if !said.is_empty() {
            grants.retain(|grant| !said.contains(&grant.study_id));
        }
        for study in said {
            grants.extend(grant_ahead(&database, &ahead, study, grantee, |_| true)?);
        }
        if ahead.suspends(grantee) {
            grants.iter_mut().for_each(|grant| grant.suspended = true);
        }
        Ok(grants)
    }

    /// A study.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn study(&self, study_id: B256) -> Result<Option<StudyInfo>, FollowError> {
        let sql = "SELECT id, owner, source, custodial, seq, version, image, root, tombstoned FROM study WHERE id = ?1";
        let row = self.database().query_row(sql, [study_id.as_slice()], |row| {
            Ok(StudyInfo {
                study_id: word(row, 0)?,
                owner: account(row, 1)?,
                source: account(row, 2)?,
                custodial: row.get(3)?,
                seq: row.get(4)?,
                version: row.get(5)?,
                manifest_image: word(row, 6)?,
                manifest_root: word(row, 7)?,
                tombstoned: row.get(8)?,
            })
        });
        Ok(row.optional()?)
    }

    /// Studies that an account owns, in the order of their names, after one of them.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn studies_of(&self, owner: Address, after: Option<B256>, limit: u32) -> Result<Vec<B256>, FollowError> {
        let database = self.database();
        let sql = "SELECT id FROM study WHERE owner = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        let after = after.as_ref().map_or(&[][..], B256::as_slice);
        let mut query = database.prepare_cached(sql)?;
        let rows = query.query_map(params![owner.as_slice(), after, limit], |row| word(row, 0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Events about studies in blocks above a height, in chain order.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn events_above(&self, height: u64, limit: u32) -> Result<Vec<Event>, FollowError> {
        let database = self.database();
        let sql = "SELECT block, log_index, block_hash, tx, topics, data FROM event
          WHERE block > ?1 AND study IS NOT NULL ORDER BY block, log_index LIMIT ?2";
        let mut query = database.prepare_cached(sql)?;
        let rows = query.query_map(params![bits(height), limit], event)?;
        Ok(rows.filter_map(Result::transpose).collect::<Result<_, _>>()?)
    }

    /// A source by its identity.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn source(&self, identity: Address) -> Result<Option<SourceInfo>, FollowError> {
        let sql = format!("{SOURCE} WHERE identity = ?1");
        Ok(self.database().query_row(&sql, [identity.as_slice()], source).optional()?)
    }

    /// Every source that was ever admitted.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn sources(&self) -> Result<Vec<SourceInfo>, FollowError> {
        let database = self.database();
        let mut query = database.prepare_cached(&format!("{SOURCE} ORDER BY identity"))?;
        Ok(query.query_map([], source)?.collect::<Result<_, _>>()?)
    }

    /// The active source for which an account acts, as `Sources.sourceOf`.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn source_of(&self, operator: Address) -> Result<Option<Address>, FollowError> {
        let sql = "SELECT o.source FROM operator o JOIN source s ON s.identity = o.source
          WHERE o.account = ?1 AND s.defined AND NOT s.suspended";
        Ok(self.database().query_row(sql, [operator.as_slice()], |row| account(row, 0)).optional()?)
    }

    /// The account for which a P-256 key signs at a time, in seconds since 1970: of the proven bindings that hold, that of the oldest
    /// (block, log index).
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn account_of(&self, key: B256, now_s: u64) -> Result<Option<Address>, FollowError> {
        let bindings = self.key_bindings("WHERE key = ?1 ORDER BY block, log_index", key.as_slice())?;
        Ok(bindings.into_iter().find(|binding| now_s <= binding.not_after).map(|binding| binding.account))
    }

    /// The proven bindings of an account, over or not, in the order in which they were said.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn bindings_of(&self, account: Address) -> Result<Vec<KeyBinding>, FollowError> {
        self.key_bindings("WHERE account = ?1 ORDER BY block, log_index", account.as_slice())
    }

    /// Whether an account ever said something about a key, whatever it was and whether it holds.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn was_spoken_of(&self, account: Address, key: B256) -> Result<bool, FollowError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM event WHERE binding = ?1)";
        Ok(self.database().query_row(sql, [binding_column(account, key)], |row| row.get(0))?)
    }

    fn key_bindings(&self, which: &str, named: &[u8]) -> Result<Vec<KeyBinding>, FollowError> {
        let database = self.database();
        let sql = format!("SELECT key, account, not_after, block, log_index FROM binding {which}");
        let mut query = database.prepare_cached(&sql)?;
        let rows = query.query_map([named], |row| {
            Ok(KeyBinding {
                key: word(row, 0)?,
                account: account(row, 1)?,
                not_after: time(row, 2)?,
                block: time(row, 3)?,
                log_index: time(row, 4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// For whom an account speaks when it asks for what was granted: for the source whose operator it is, and for itself unless it is a source,
    /// because a source is spoken for by its operators.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn spoken_for_by(&self, account: Address) -> Result<Vec<Address>, FollowError> {
        let mut grantees: Vec<Address> = self.source_of(account)?.into_iter().collect();
        if self.source(account)?.is_none() {
            grantees.push(account);
        }
        Ok(grantees)
    }

    /// The newest request of every grantee, of one study or of all, that waits for an owner or was answered by one.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn requests(&self, study_id: Option<B256>) -> Result<Vec<AccessRequest>, FollowError> {
        self.requests_where(study_id, None)
    }

    /// As [`Consents::requests`], for all studies that an account owns.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn requests_to(&self, owner: Address) -> Result<Vec<AccessRequest>, FollowError> {
        self.requests_where(None, Some(owner))
    }

    fn requests_where(&self, study: Option<B256>, owner: Option<Address>) -> Result<Vec<AccessRequest>, FollowError> {
        let sql = "SELECT p.study, p.grantee, p.request_number, p.request_mode, p.request_purpose, p.request_notes,
            p.request_key, p.asked, p.request_block,
            EXISTS (SELECT 1 FROM source s WHERE s.identity = p.grantee AND s.defined AND NOT s.suspended)
          FROM pair p WHERE p.asked > 0 AND (?1 IS NULL OR p.study = ?1)
            AND (?2 IS NULL OR p.study IN (SELECT id FROM study WHERE owner = ?2))
          ORDER BY p.request_block, p.study, p.grantee";
        let database = self.database();
        let mut query = database.prepare_cached(sql)?;
        let wanted = params![study.as_ref().map(B256::as_slice), owner.as_ref().map(|owner| owner.as_slice())];
        let rows = query.query_map(wanted, |row| {
            Ok(AccessRequest {
                study_id: word(row, 0)?,
                grantee: account(row, 1)?,
                number: row.get(2)?,
                mode: mode(row.get(3)?),
                purpose: row.get(4)?,
                notes: word(row, 5)?,
                encryption_key: Bytes::from(row.get::<_, Vec<u8>>(6)?),
                asked: asked(row.get(7)?),
                block: time(row, 8)?,
                known: row.get(9)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Questions for the keys of studies of a source that it has not answered.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn questions_to(&self, source: Address) -> Result<Vec<Question>, FollowError> {
        let sql = "SELECT p.study, p.grantee, p.question FROM pair p JOIN study s ON s.id = p.study
          WHERE length(p.question) > 0 AND s.source = ?1 ORDER BY p.study, p.grantee";
        let database = self.database();
        let mut query = database.prepare_cached(sql)?;
        let rows = query.query_map([source.as_slice()], question)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The question of a grantee for the keys of a study, while it is open.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn question(&self, study_id: B256, grantee: Address) -> Result<Option<Question>, FollowError> {
        let sql =
            "SELECT study, grantee, question FROM pair WHERE length(question) > 0 AND study = ?1 AND grantee = ?2";
        let row = self.database().query_row(sql, [study_id.as_slice(), grantee.as_slice()], question);
        Ok(row.optional()?)
    }

    /// The newest answer to a grantee's questions for the keys of a study.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn envelope(&self, study_id: B256, grantee: Address) -> Result<Option<Envelope>, FollowError> {
        let sql = "SELECT envelope_key, envelope_until, envelope FROM pair
          WHERE length(envelope) > 0 AND study = ?1 AND grantee = ?2";
        let row = self.database().query_row(sql, [study_id.as_slice(), grantee.as_slice()], |row| {
            let bytes = Bytes::from(row.get::<_, Vec<u8>>(2)?);
            Ok(Envelope { one_time_key: word(row, 0)?, until: time(row, 1)?, bytes })
        });
        Ok(row.optional()?)
    }

    /// The owner's words that took something away from a grantee who had it, by grantee and number, in chain order. A number is used
    /// once, so a word that comes back on another branch is the same one.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn withdrawals(&self, study_id: B256) -> Result<Vec<(Address, u32)>, FollowError> {
        Ok(fold::withdrawals(&self.history(study_id)?))
    }

    /// Everything that was said about a study, in chain order.
    ///
    /// # Errors
    /// [`FollowError::Database`].
    pub fn history(&self, study_id: B256) -> Result<Vec<Event>, FollowError> {
        Ok(events_of(&self.database(), Some(study_id))?)
    }
}

fn grants(database: &Connection, sql: &str, key: &[u8]) -> rusqlite::Result<Vec<Grant>> {
    let mut query = database.prepare_cached(sql)?;
    let rows = query.query_map([key], grant)?;
    rows.collect()
}

fn grant_of(database: &Connection, study_id: B256, grantee: Address) -> rusqlite::Result<Option<Grant>> {
    let mut query = database.prepare_cached(&format!("{GRANT} WHERE p.study = ?1 AND p.grantee = ?2"))?;
    query.query_row([study_id.as_slice(), grantee.as_slice()], grant).optional()
}

/// What is recorded about a study and a grantee, and what newer blocks say.
fn grant_ahead(
    database: &Connection,
    ahead: &Known,
    study_id: B256,
    grantee: Address,
    trusted: impl Fn(&Event) -> bool,
) -> Result<Option<Grant>, FollowError> {
    let suspended = ahead.suspends(grantee);
    let newer = ahead.about(study_id);
    if newer.is_empty() {
        let known = grant_of(database, study_id, grantee)?;
        return Ok(known.map(|known| Grant { suspended: known.suspended || suspended, ..known }));
    }
    let study = fold::study_ahead(&events_of(database, Some(study_id))?, &newer, trusted);
    let sql = "SELECT suspended FROM source WHERE identity = ?1";
    let known: Option<bool> = database.query_row(sql, [grantee.as_slice()], |row| row.get(0)).optional()?;
    let suspended = suspended || known.unwrap_or(false);
    Ok(study.info.zip(study.pairs.get(&grantee)).map(|(info, pair)| pair.grant(&info, grantee, suspended)))
}

const SOURCE: &str = "SELECT identity, endpoint, tls_key, encryption_key, openpgp_key, defined, suspended FROM source";

fn source(row: &Row<'_>) -> rusqlite::Result<SourceInfo> {
    let (defined, suspended) = (row.get(5)?, row.get(6)?);
    Ok(SourceInfo {
        identity: account(row, 0)?,
        endpoint: row.get(1)?,
        tls_key: row.get(2)?,
        encryption_key: word(row, 3)?,
        openpgp_key: Bytes::from(row.get::<_, Vec<u8>>(4)?),
        defined,
        suspended,
        active: defined && !suspended,
    })
}

fn grant(row: &Row<'_>) -> rusqlite::Result<Grant> {
    Ok(Grant {
        grantee: account(row, 0)?,
        study_id: word(row, 1)?,
        mode: mode(row.get(2)?),
        series: word(row, 3)?,
        not_before: time(row, 4)?,
        not_after: time(row, 5)?,
        purpose: row.get(6)?,
        encryption_key: word(row, 7)?,
        seq: row.get(8)?,
        decision: match row.get::<_, i64>(9)? {
            1 => Decision::Allowed,
            2 => Decision::Revoked,
            _ => Decision::Unsaid,
        },
        asked: asked(row.get(10)?),
        deny_reason: row.get(11)?,
        emergency_until: time(row, 12)?,
        owner: account(row, 13)?,
        source: account(row, 14)?,
        version: row.get(15)?,
        manifest_image: word(row, 16)?,
        manifest_root: word(row, 17)?,
        tombstoned: row.get(18)?,
        suspended: row.get(19)?,
    })
}

fn question(row: &Row<'_>) -> rusqlite::Result<Question> {
    let one_time_key = Bytes::from(row.get::<_, Vec<u8>>(2)?);
    Ok(Question { study_id: word(row, 0)?, grantee: account(row, 1)?, one_time_key })
}

fn events_of(database: &Connection, study: Option<B256>) -> rusqlite::Result<Vec<Event>> {
    let sql = "SELECT block, log_index, block_hash, tx, topics, data FROM event WHERE study IS ?1 AND binding IS NULL
         ORDER BY block, log_index";
    let mut query = database.prepare_cached(sql)?;
    let rows = query.query_map([study.as_ref().map(B256::as_slice)], event)?;
    rows.filter_map(Result::transpose).collect()
}

/// An account's newest word about a key.
fn newest_about(database: &Connection, account: Address, key: B256) -> rusqlite::Result<Option<Event>> {
    let sql = "SELECT block, log_index, block_hash, tx, topics, data FROM event WHERE binding = ?1
      ORDER BY block DESC, log_index DESC LIMIT 1";
    let mut query = database.prepare_cached(sql)?;
    Ok(query.query_row([binding_column(account, key)], event).optional()?.flatten())
}

/// None for an event that this version does not know.
fn event(row: &Row<'_>) -> rusqlite::Result<Option<Event>> {
    let topics: Vec<u8> = row.get(4)?;
    let topics: Vec<B256> = topics.chunks_exact(32).map(B256::from_slice).collect();
    let data: Vec<u8> = row.get(5)?;
    let Some(what) = What::decode(&topics, &data) else { return Ok(None) };
    let (block, log_index) = (time(row, 0)?, time(row, 1)?);
    Ok(Some(Event { block, log_index, block_hash: word(row, 2)?, transaction: word(row, 3)?, what }))
}

fn followed_chain(database: &Connection) -> rusqlite::Result<Option<Chain>> {
    let sql = "SELECT genesis, registry, chain_id, key_bindings FROM chain";
    let read = |row: &Row<'_>| {
        Ok(Chain {
            genesis: word(row, 0)?,
            registry: account(row, 1)?,
            chain_id: time(row, 2)?,
            key_bindings: account(row, 3)?,
        })
    };
    database.query_row(sql, [], read).optional()
}

fn cursor(database: &Connection) -> rusqlite::Result<Option<Head>> {
    let sql = "SELECT number, hash, parent FROM header ORDER BY number DESC LIMIT 1";
    database.query_row(sql, [], head).optional()
}

fn head(row: &Row<'_>) -> rusqlite::Result<Head> {
    Ok(Head { number: time(row, 0)?, hash: word(row, 1)?, parent: word(row, 2)? })
}

/// SQLite keeps signed numbers: the bits of the number given. Heights stay in order, being far below 2^63.
fn bits(number: u64) -> i64 {
    number.cast_signed()
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.cast_unsigned())
}

fn word(row: &Row<'_>, column: usize) -> rusqlite::Result<B256> {
    Ok(B256::from(row.get::<_, [u8; 32]>(column)?))
}

fn account(row: &Row<'_>, column: usize) -> rusqlite::Result<Address> {
    Ok(Address::from(row.get::<_, [u8; 20]>(column)?))
}

fn mode(number: u8) -> Mode {
    Mode::from_number(number).unwrap_or(Mode::Preview)
}

fn decision_number(decision: Decision) -> i64 {
    match decision {
        Decision::Unsaid => 0,
        Decision::Allowed => 1,
        Decision::Revoked => 2,
    }
}

fn asked_number(asked: Asked) -> i64 {
    match asked {
        Asked::Nothing => 0,
        Asked::Open => 1,
        Asked::Accepted => 2,
        Asked::Denied => 3,
    }
}

fn asked(number: i64) -> Asked {
    match number {
        1 => Asked::Open,
        2 => Asked::Accepted,
        3 => Asked::Denied,
        _ => Asked::Nothing,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_clock_that_is_set_makes_no_old_news_new() {
        let dir = tempfile::tempdir().unwrap();
        let consents = Consents::open(&dir.path().join("consent.sqlite")).unwrap();
        assert!(!consents.is_current(0), "nothing is known yet");
        consents.note_current(1_000_000);
        assert!(consents.is_current(1_000_000 + CURRENT_S_MAX) && !consents.is_current(1_000_001 + CURRENT_S_MAX));
        assert!(!consents.is_current(1_000_000 - 86_400), "the clock was set back by a day");
        consents.note_current(1_000_000 - 86_400);
        assert!(consents.is_current(1_000_000 - 86_400) && !consents.is_current(1_000_000));
    }

    #[test]
    fn while_blocks_are_replaced_nothing_is_current_and_it_is_known_which_left() {
        let dir = tempfile::tempdir().unwrap();
        let consents = Consents::open(&dir.path().join("consent.sqlite")).unwrap();
        let hash = |number: u64, branch: u8| {
            let mut hash = B256::repeat_byte(branch);
            hash.0[..8].copy_from_slice(&number.to_be_bytes());
            hash
        };
        let block = |number: u64, branch: u8| Head {
            number,
            hash: hash(number, branch),
            parent: number.checked_sub(1).map_or(B256::ZERO, |before| hash(before, 0)),
        };
        consents.apply(&[block(0, 0), block(1, 0), block(2, 0)], &[]).unwrap();
        consents.note_current(1_000_000);
        assert!(consents.is_current(1_000_000) && !consents.has_left(2, hash(2, 0)).unwrap());
        consents.rewind(1).unwrap();
        assert!(!consents.is_current(1_000_000), "what is in the other block is not known yet");
        consents.apply(&[block(2, 7)], &[]).unwrap();
        assert!(consents.has_left(2, hash(2, 0)).unwrap() && !consents.has_left(2, hash(2, 7)).unwrap());
        assert!(!consents.has_left(3, hash(3, 0)).unwrap(), "of that nothing is known");
        consents.note_current(1_000_001);
        assert!(consents.is_current(1_000_001));
    }
}
