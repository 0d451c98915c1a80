#![allow(clippy::unwrap_used)]
//! Strongest first: what was destroyed is nowhere in the files, and one word of an owner begins one epoch.

use std::collections::HashMap;

use super::*;
use crate::config::Config;
use crate::payload::envelope::seal_envelope;
use crate::payload::keys::Recipient;

const OWNERS_WORD: (Address, u32) = (Address::repeat_byte(7), 2);

fn keys() -> config::Keys {
    Config::parse("", HashMap::new()).unwrap().keys
}

fn uid(number: u32) -> Uid {
    Uid::new(&format!("1.2.826.0.1.99.{number}")).unwrap()
}

/// Everything in the database's file and in its journal.
fn bytes(dir: &Path) -> Vec<u8> {
    let journal = fs::read(dir.join(format!("{DATABASE}-journal"))).unwrap_or_default();
    [fs::read(dir.join(DATABASE)).unwrap(), journal].concat()
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn nothing_of_destroyed_keys_is_in_the_files_and_their_neighbours_stay() {
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    // Rows around it, so that pages are split and shared.
    for number in 0..60 {
        keyring.study_or_new(&uid(number)).unwrap();
    }
    for seq in 0..20 {
        keyring.study_after(&uid(30), &[(OWNERS_WORD.0, seq)]).unwrap();
    }
    let database = Connection::open(dir.path().join(DATABASE)).unwrap();
    let mut secrets: Vec<Vec<u8>> = {
        let mut rows = database.prepare("SELECT wrapped FROM study_epoch WHERE study_uid = ?1").unwrap();
        let rows = rows.query_map([uid(30).as_str()], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    };
    drop(database);
    let erased = keyring.study(&uid(30)).unwrap().unwrap();
    assert_eq!((secrets.len(), erased.epoch()), (21, 20));
    secrets.push(erased.salt.as_bytes().to_vec());
    secrets.push(uid(30).as_str().as_bytes().to_vec());
    assert!(secrets.iter().all(|secret| holds(&bytes(dir.path()), secret)), "the search itself works");

    keyring.erase_study(erased.owner_index).unwrap();
    let left = bytes(dir.path());
    assert!(!secrets.iter().any(|secret| holds(&left, secret)), "something is left");
    assert!(keyring.study(&uid(30)).unwrap().is_none());
    let neighbour = keyring.study(&uid(31)).unwrap().unwrap();
    keyring.erase_study(erased.owner_index).unwrap();
    drop(keyring);
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    assert_eq!(keyring.study(&uid(31)).unwrap().unwrap().salt, neighbour.salt);

    // The same study again is another one, and nobody's owner key is used twice.
    let again = keyring.study_or_new(&uid(30)).unwrap();
    assert!(again.salt != erased.salt && again.owner_index == 60 && again.epoch() == 0);
}

#[test]
fn the_owner_key_of_the_newest_study_is_not_given_again_after_its_erasure() {
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    assert_eq!(keyring.study_or_new(&uid(1)).unwrap().owner_index, 0);
    keyring.erase_study(0).unwrap();
    assert_eq!(keyring.study_or_new(&uid(2)).unwrap().owner_index, 1);
}

#[test]
fn a_word_begins_one_epoch_across_restarts_and_the_keys_of_all_epochs_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut keyring = Keyring::open(dir.path(), &keys()).unwrap();
    let first = keyring.study_after(&uid(1), &[]).unwrap();
    assert_eq!(first.epoch(), 0);
    for _ in 0..3 {
        assert_eq!(keyring.study_after(&uid(1), &[OWNERS_WORD]).unwrap().epoch(), 1);
        drop(keyring);
        keyring = Keyring::open(dir.path(), &keys()).unwrap();
    }
    let (b, c) = (Address::repeat_byte(8), Address::repeat_byte(9));
    let third = keyring.study_after(&uid(1), &[OWNERS_WORD, (b, 4), (c, 2)]).unwrap();
    assert_eq!(third.epoch(), 2, "words that come together begin one epoch");
    // One of them leaves with a reorganisation and comes back.
    assert_eq!(keyring.study_after(&uid(1), &[OWNERS_WORD, (c, 2)]).unwrap().epoch(), 2);
    assert_eq!(keyring.study_after(&uid(1), &[OWNERS_WORD, (b, 4), (c, 2)]).unwrap().epoch(), 2);
    let keys: Vec<_> = third.epochs().map(|(_, key)| key.clone()).collect();
    assert!(keys[0] == *first.session_key(0).unwrap() && keys[0] != keys[1] && keys[1] != keys[2]);
    assert!(third.sealing(ImageKind::Object, Some(&uid(5))) == keys[2].of_series(&uid(5)));
    assert!(third.opening(ImageKind::Manifest, None, 1).unwrap() == keys[1].preview_key());
    assert!(third.opening(ImageKind::Object, None, 3).is_none() && third.salt == first.salt);
    assert_eq!(keyring.study_after(&uid(2), &[]).unwrap().epoch(), 0, "other studies stay in their epoch");
}

#[test]
fn a_database_of_version_2_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    let recipient = keyring.0.recipient.recipient().unwrap();
    drop(keyring);
    let path = dir.path().join(DATABASE);
    fs::remove_file(&path).unwrap();
    let database = Connection::open(&path).unwrap();
    for (version, step) in (1..).zip(&MIGRATIONS[..2]) {
        database.execute_batch(&format!("{step} PRAGMA user_version = {version};")).unwrap();
    }
    let session_keys: Vec<_> = (0..3).map(|_| SessionKey::random()).collect();
    for (number, key) in (0u8..).zip(&session_keys) {
        let wrapped = key.wrap(&recipient).unwrap();
        let sql = "INSERT INTO study_key (study_uid, owner_index, epoch, salt, wrapped) VALUES (?1, ?2, 0, ?3, ?4)";
        let study = uid(u32::from(number));
        database.execute(sql, params![study.as_str(), number, [number; 32], wrapped]).unwrap();
    }
    drop(database);
    for _ in 0..2 {
        let keyring = Keyring::open(dir.path(), &keys()).unwrap();
        for (number, key) in (0u8..).zip(&session_keys) {
            let kept = keyring.study(&uid(u32::from(number))).unwrap().unwrap();
            assert_eq!((kept.owner_index, kept.epoch()), (u32::from(number), 0));
            assert!(kept.sealing(ImageKind::Object, None) == *key && kept.salt == Salt::from_bytes([number; 32]));
        }
    }
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    assert_eq!(keyring.study_or_new(&uid(9)).unwrap().owner_index, 3);
    assert_eq!(keyring.study_after(&uid(0), &[OWNERS_WORD]).unwrap().epoch(), 1);
}

/// For every grant there can be: what it opens, and that it opens nothing else.
#[test]
fn keys_that_were_granted_open_what_was_granted_and_nothing_else() {
    use ImageKind::{Manifest, Object, Preview, SeriesManifest};
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    keyring.study_or_new(&uid(1)).unwrap();
    let own = keyring.study_after(&uid(1), &[OWNERS_WORD]).unwrap();
    let (one, other) = (uid(11), uid(12));
    let session = |epoch: u32| own.session_key(epoch).unwrap();
    let of = |make: &dyn Fn(&SessionKey) -> Vec<ForeignKey>, series| {
        let epochs = (0..2).flat_map(|epoch| make(session(epoch)).into_iter().map(move |key| (epoch, key))).collect();
        ForeignKeys { salt: own.salt.clone(), series, epochs }
    };
    let grants = [
        of(&|key| vec![ForeignKey::Session(key.clone())], None),
        of(&|key| vec![ForeignKey::Preview(key.preview_key())], None),
        of(
            &|key| {
                let previews = ForeignKey::Preview(key.preview_key().of_series(&one));
                vec![previews, ForeignKey::Session(key.of_series(&one))]
            },
            Some(one),
        ),
        of(&|key| vec![ForeignKey::Preview(key.preview_key().of_series(&one))], Some(one)),
    ];
    // Kind, series, and which of the grants open it. Images without a series are of before series had keys, but for the manifest.
    let images = [
        (Object, Some(&one), [true, false, true, false]),
        (Object, Some(&other), [true, false, false, false]),
        (Object, None, [true, false, false, false]),
        (Preview, Some(&one), [true; 4]),
        (Preview, Some(&other), [true, true, false, false]),
        (Preview, None, [true, true, false, false]),
        (Manifest, None, [true, true, false, false]),
        (SeriesManifest, Some(&one), [true; 4]),
        (SeriesManifest, Some(&other), [true, true, false, false]),
    ];
    for (number, granted) in (0u8..).zip(&grants) {
        let study_id = B256::repeat_byte(number);
        keyring.keep_foreign(study_id, granted).unwrap();
        let kept = keyring.foreign(study_id).unwrap().unwrap();
        assert_eq!(kept.series, granted.series);
        for (kind, series, opens) in images {
            for epoch in 0..3 {
                let expected = own.opening(kind, series, epoch).filter(|_| opens[usize::from(number)]);
                assert!(
                    granted.opening(kind, series, epoch) == expected,
                    "grant {number}, {kind:?} {series:?} {epoch}"
                );
                assert!(kept.opening(kind, series, epoch) == expected, "and again after it was kept");
            }
        }
    }
}

/// The strongest thing about envelopes: afterwards this site itself cannot open one, with everything that it has.
#[test]
fn an_envelope_opens_until_its_key_is_destroyed_and_nothing_of_that_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    let (study, other) = (B256::repeat_byte(1), B256::repeat_byte(2));
    let certificate = keyring.one_time_key(study).unwrap();
    assert_eq!(keyring.one_time_key(study).unwrap(), certificate, "one until it is destroyed");
    assert!(keyring.one_time_key(other).unwrap() != certificate);
    let lasting = Recipient::from_bytes(&keyring.payload_certificate().unwrap()).unwrap();
    let one_time = Recipient::from_bytes(&certificate).unwrap();
    let envelope = seal_envelope(b"keys", &study, &lasting, &one_time).unwrap();
    drop(keyring);
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    assert_eq!(keyring.open_envelope(study, &envelope).unwrap(), b"keys");
    assert!(keyring.open_envelope(other, &envelope).is_err());
    let database = Connection::open(dir.path().join(DATABASE)).unwrap();
    let secret = "SELECT wrapped, sealed FROM made_key WHERE study_id = ?1";
    let secret: (Vec<u8>, Vec<u8>) =
        database.query_row(secret, [study.as_slice()], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    drop(database);
    assert!(holds(&bytes(dir.path()), &secret.0) && keyring.foreign_studies().unwrap() == [study, other]);

    keyring.forget_one_time_key(study).unwrap();
    let left = bytes(dir.path());
    assert!(!holds(&left, &secret.0) && !holds(&left, &secret.1[..64]), "something is left");
    assert!(matches!(keyring.open_envelope(study, &envelope), Err(KeyringError::OneTimeKeyGone)));
    assert!(keyring.one_time_key(study).unwrap() != certificate && keyring.open_envelope(study, &envelope).is_err());
    keyring.erase_foreign(other).unwrap();
    keyring.erase_foreign(study).unwrap();
    assert!(keyring.foreign_studies().unwrap().is_empty());
}

#[test]
fn a_key_for_one_study_opens_what_is_wrapped_to_it_until_it_goes_with_the_grant() {
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    let (study, other) = (B256::repeat_byte(1), B256::repeat_byte(2));
    assert_eq!(keyring.study_certificate(study).unwrap(), None);
    let certificate = keyring.study_certificate_or_new(study).unwrap();
    assert_eq!(keyring.study_certificate(study).unwrap().as_ref(), Some(&certificate));
    assert_eq!(keyring.study_certificate_or_new(study).unwrap(), certificate);
    let (of_study, key) = (Recipient::from_bytes(&certificate).unwrap(), SessionKey::random());
    let wrapped = key.wrap(&of_study).unwrap();
    assert!(keyring.unwrap_for(study, &wrapped).unwrap() == key);
    assert!(keyring.unwrap(&wrapped).is_err() && keyring.unwrap_for(other, &wrapped).is_err());
    let of_site = Recipient::from_bytes(&keyring.payload_certificate().unwrap()).unwrap();
    assert!(keyring.unwrap_for(study, &key.wrap(&of_site).unwrap()).unwrap() == key, "the site's own goes on");
    let one_time = Recipient::from_bytes(&keyring.one_time_key(study).unwrap()).unwrap();
    for lasting in [&of_study, &of_site] {
        let envelope = seal_envelope(b"keys", &study, lasting, &one_time).unwrap();
        assert_eq!(keyring.open_envelope(study, &envelope).unwrap(), b"keys");
    }
    keyring.forget_one_time_key(study).unwrap();
    assert!(keyring.foreign_studies().unwrap().is_empty(), "it waits for the owner's word");
    keyring.erase_foreign(study).unwrap();
    assert!(keyring.unwrap_for(study, &wrapped).is_err() && keyring.study_certificate(study).unwrap().is_none());
}

#[test]
fn keys_of_other_sites_studies_of_version_3_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    let recipient = keyring.0.recipient.recipient().unwrap();
    drop(keyring);
    let path = dir.path().join(DATABASE);
    fs::remove_file(&path).unwrap();
    let database = Connection::open(&path).unwrap();
    for (version, step) in (1..).zip(&MIGRATIONS[..3]) {
        database.execute_batch(&format!("{step} PRAGMA user_version = {version};")).unwrap();
    }
    let (full, preview) = (SessionKey::random(), SessionKey::random());
    for (study, preview_only, key) in [(1, false, &full), (2, true, &preview)] {
        let sql = "INSERT INTO foreign_key (study_id, epoch, salt, preview_only, wrapped) VALUES (?1, 0, ?2, ?3, ?4)";
        let study_id = B256::repeat_byte(study);
        let wrapped = key.wrap(&recipient).unwrap();
        database.execute(sql, params![study_id.as_slice(), [7u8; 32], preview_only, wrapped]).unwrap();
    }
    drop(database);
    let keyring = Keyring::open(dir.path(), &keys()).unwrap();
    let kept = |study| keyring.foreign(B256::repeat_byte(study)).unwrap().unwrap();
    assert!(kept(1).opening(ImageKind::Object, None, 0).unwrap() == full);
    assert!(kept(2).opening(ImageKind::Preview, None, 0).unwrap() == preview);
    assert!(kept(2).opening(ImageKind::Object, None, 0).is_none() && kept(2).series.is_none());
}

#[test]
fn a_backup_brings_the_keys_of_every_epoch_back() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let keyring = Keyring::open(here.path(), &keys()).unwrap();
    let kept = keyring.study_after(&uid(1), &[OWNERS_WORD]).unwrap();
    let file = here.path().join("backup");
    crate::keys::backup(here.path(), &keys(), &file, "a good password").unwrap();
    crate::keys::restore(there.path(), &file, "a good password").unwrap();
    let restored = Keyring::open(there.path(), &keys()).unwrap();
    let again = restored.study(&uid(1)).unwrap().unwrap();
    assert!(kept.epoch() == 1 && again.epochs().eq(kept.epochs()) && again.salt == kept.salt);
    assert_eq!(restored.study_after(&uid(1), &[OWNERS_WORD]).unwrap().epoch(), 1, "what began an epoch is known too");
}
