//! The log under crashes and under hands that change it: what was acknowledged stays, and whatever was done to it is found where it was done.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::chain::Head;
use super::list::{Listed, Wanted, page};
use super::log::{Found, Log, Reader, segments};
use super::verify::{Anchor, Finding, Report, Wrong, verify};
use super::{Audit, Event, Party, Source};

/// Small, so that logs have several files.
const SEGMENT_BYTES: u64 = 4096;

fn source() -> Source {
    Source { id: "SITE".into(), site: "hospital".into(), ae_title: "BRIDGE".into(), process: 7 }
}

/// Appends messages of these lengths, each batch with one sync, and returns the head after each batch.
fn written(dir: &Path, batches: &[Vec<u16>]) -> Vec<Head> {
    let (mut log, _) = Log::open(dir, SEGMENT_BYTES, None).unwrap();
    let mut heads = vec![log.head()];
    for batch in batches {
        let messages: Vec<_> = batch.iter().map(|length| "m".repeat(usize::from(*length))).collect();
        log.write(messages.iter().map(|message| (1_700_000_000_000, message.as_str()))).unwrap();
        log.sync().unwrap();
        heads.push(log.head());
    }
    heads
}

fn anchor(head: &Head) -> Anchor {
    Anchor { log: head.log.into(), head: head.digest.into(), records: head.records, time_s: 1 }
}

fn check(dir: &Path, anchors: &[Anchor]) -> Report {
    verify(dir, Some(anchors), None).unwrap()
}

fn first(report: &Report) -> &Finding {
    assert!(!report.is_intact(), "{report:?}");
    report.findings.iter().find(|finding| !finding.wrong.is_innocent()).unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    segments(dir).unwrap().into_iter().map(|segment| segment.path).collect()
}

/// Every record: its file, where it begins there, and its bytes with its end.
fn records(dir: &Path) -> Vec<(PathBuf, usize, Vec<u8>)> {
    let mut all = Vec::new();
    for path in files(dir) {
        let bytes = fs::read(&path).unwrap();
        let mut at = 0;
        for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            if number > 0 {
                all.push((path.clone(), at, line.to_vec()));
            }
            at += line.len();
        }
    }
    all
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
    let bytes = fs::read(path).unwrap();
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    change(&mut lines);
    fs::write(path, lines.concat()).unwrap();
}

fn batches() -> impl Strategy<Value = Vec<Vec<u16>>> {
    proptest::collection::vec(proptest::collection::vec(0..600_u16, 1..6), 2..9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_verifies_with_every_anchor_and_is_read_back(batches in batches()) {
        let dir = tempfile::tempdir().unwrap();
        let heads = written(dir.path(), &batches);
        let anchors: Vec<_> = heads[1..].iter().map(anchor).collect();
        let report = check(dir.path(), &anchors);
        prop_assert_eq!(&report.findings, &vec![]);
        let last = heads.last().unwrap();
        prop_assert_eq!(report.logs.len(), 1);
        prop_assert_eq!((report.logs[0].records, &report.logs[0].head), (last.records, &hex::encode(last.digest)));
        prop_assert_eq!((report.logs[0].anchors, report.logs[0].anchored), (anchors.len() as u64, last.records));
        let lengths: Vec<usize> = batches.concat().iter().map(|length| usize::from(*length)).collect();
        for from in 1..=last.records {
            let mut reader = Reader::new(dir.path(), 1, from);
            let mut read = Vec::new();
            while let Some(entry) = reader.entry(last.records).unwrap() {
                read.push(entry.message.len());
            }
            prop_assert_eq!(&read[..], &lengths[usize::try_from(from).unwrap() - 1..]);
        }
        // Opened again it goes on.
        let again = written(dir.path(), &[vec![3]]);
        prop_assert_eq!(again[0], *last);
        prop_assert!(check(dir.path(), &anchors).is_intact());
    }

    #[test]
    fn one_flipped_bit_is_found_at_its_record(batches in batches(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let dir = tempfile::tempdir().unwrap();
        let heads = written(dir.path(), &batches);
        let all = records(dir.path());
        let record = at.index(all.len());
        let (path, begin, line) = &all[record];
        let mut bytes = fs::read(path).unwrap();
        let byte = begin + usize::from(bit) * 31 % line.len();
        bytes[byte] ^= 1 << bit;
        fs::write(path, &bytes).unwrap();
        let report = check(dir.path(), &[anchor(heads.last().unwrap())]);
        let found = first(&report);
        prop_assert_eq!(found.record, record as u64 + 1, "{:?}", report);
        // The last line without its end looks like one that was being written. That it had been acknowledged, the anchor tells.
        let lost_its_end = byte + 1 == bytes.len();
        prop_assert!(lost_its_end || found.offset == *begin as u64, "{:?}", report);
        prop_assert_eq!(PathBuf::from(&found.file), PathBuf::from(path.file_name().unwrap()));
    }

    #[test]
    fn a_flipped_bit_in_a_files_first_line_is_found(batches in batches(), bit in 0..8_u8, at in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let heads = written(dir.path(), &batches);
        let path = at.get(&files(dir.path())).clone();
        let mut bytes = fs::read(&path).unwrap();
        let length = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        bytes[usize::from(bit) * 31 % length] ^= 1 << bit;
        fs::write(&path, &bytes).unwrap();
        prop_assert!(!check(dir.path(), &[anchor(heads.last().unwrap())]).is_intact());
    }

    #[test]
    fn a_deleted_record_is_found(batches in batches(), at in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let heads = written(dir.path(), &batches);
        let all = records(dir.path());
        let record = at.index(all.len());
        let (path, begin, line) = &all[record];
        rewrite(path, |lines| { let place = lines.iter().position(|l| l == line).unwrap(); lines.remove(place); });
        let report = check(dir.path(), &[anchor(heads.last().unwrap())]);
        let found = first(&report);
        prop_assert_eq!(found.record, record as u64 + 1);
        let expected = if record + 1 == all.len() { Wrong::Truncated } else { Wrong::Deleted };
        prop_assert_eq!(found.wrong, expected);
        prop_assert!(record + 1 == all.len() || path.file_name() != Some(found.file.as_ref()) || found.offset == *begin as u64);
    }

    #[test]
    fn two_records_in_another_order_are_found(batches in batches(), at in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let heads = written(dir.path(), &batches);
        let all = records(dir.path());
        let pairs: Vec<_> = (1..all.len()).filter(|n| all[n - 1].0 == all[*n].0).collect();
        prop_assume!(!pairs.is_empty());
        let second = *at.get(&pairs);
        let (path, begin, line) = &all[second - 1];
        rewrite(path, |lines| { let place = lines.iter().position(|l| l == line).unwrap(); lines.swap(place, place + 1); });
        let report = check(dir.path(), &[anchor(heads.last().unwrap())]);
        let found = first(&report);
        prop_assert_eq!((found.wrong, found.record, found.offset), (Wrong::Reordered, second as u64, *begin as u64));
        prop_assert_eq!(report.findings.len(), 1, "what follows is as it was written: {:?}", report);
    }

    #[test]
    fn an_inserted_record_is_found(batches in batches(), at in any::<prop::sample::Index>(), forged in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let heads = written(dir.path(), &batches);
        let all = records(dir.path());
        let record = at.index(all.len());
        let (path, begin, line) = &all[record];
        let number = record as u64 + 1;
        // A forger can chain his own record to the one before, but not what follows to his.
        let inserted = if forged { format!("{number} 1 {} forged\n", "ab".repeat(32)).into_bytes() } else { line.clone() };
        rewrite(path, |lines| { let place = lines.iter().position(|l| l == line).unwrap(); lines.insert(place, inserted.clone()); });
        let report = check(dir.path(), &[anchor(heads.last().unwrap())]);
        let found = first(&report);
        let place = if forged { *begin } else { begin + line.len() };
        prop_assert_eq!((found.wrong, found.offset), (Wrong::Inserted, place as u64), "{:?}", report);
    }

    #[test]
    fn a_log_that_lost_its_end_is_found_by_its_anchor_alone(batches in batches(), keep in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let heads = written(dir.path(), &batches);
        let all = records(dir.path());
        let keep = keep.index(all.len());
        let kept_in = all[keep].0.clone();
        for path in files(dir.path()).into_iter().rev().take_while(|path| *path != kept_in) {
            fs::remove_file(path).unwrap();
        }
        let bytes = fs::read(&kept_in).unwrap();
        fs::write(&kept_in, &bytes[..all[keep].1]).unwrap();
        prop_assert!(verify(dir.path(), None, None).unwrap().is_intact(), "without the ledger nobody can tell");
        let report = check(dir.path(), &[anchor(heads.last().unwrap())]);
        prop_assert_eq!((first(&report).wrong, first(&report).record), (Wrong::Truncated, keep as u64 + 1));
        let report = verify(dir.path(), None, Some((1, heads.last().unwrap().records))).unwrap();
        prop_assert_eq!(first(&report).wrong, Wrong::Truncated, "what the repository has got is missing");
    }

    #[test]
    fn a_log_written_anew_is_found_by_its_anchor_alone(batches in batches()) {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let heads = written(dir.path(), &batches);
        let last = anchor(heads.last().unwrap());
        written(other.path(), &batches);
        let report = check(other.path(), &[last]);
        prop_assert_eq!(first(&report).wrong, Wrong::Missing);
        // And under the old name: the first record is another, and everything after it fits.
        fs::remove_dir_all(dir.path()).unwrap();
        fs::create_dir(dir.path()).unwrap();
        let mut head = Head::empty(last.log.0);
        let mut bytes = super::chain::Header::after(&head).line().into_bytes();
        for _ in 0..last.records {
            head.push(1, "forged", &mut bytes);
        }
        fs::write(dir.path().join("0001-000000000001.log"), bytes).unwrap();
        let report = check(dir.path(), &[last]);
        prop_assert_eq!((first(&report).wrong, first(&report).record), (Wrong::NotAsAnchored, last.records));
        prop_assert!(verify(dir.path(), None, None).unwrap().is_intact());
    }
}

/// A crash leaves the first bytes of what was being written, wherever it comes. What was acknowledged before stays, and the log goes on.
#[test]
fn a_crash_at_every_byte_of_the_tail() {
    let whole = tempfile::tempdir().unwrap();
    let heads = written(whole.path(), &[vec![20, 0, 33], vec![5], vec![40, 11]]);
    let path = files(whole.path()).remove(0);
    let bytes = fs::read(&path).unwrap();
    let begins: Vec<_> =
        records(whole.path()).into_iter().map(|(_, begin, line)| (begin, begin + line.len())).collect();
    let acknowledged = &heads[2];
    let from = begins[usize::try_from(acknowledged.records).unwrap() - 1].1;
    for cut in from..=bytes.len() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join(path.file_name().unwrap());
        fs::write(&copy, &bytes[..cut]).unwrap();
        let anchors = [anchor(acknowledged)];
        assert!(check(dir.path(), &anchors).is_intact(), "cut at {cut}");
        let (mut log, found) = Log::open(dir.path(), SEGMENT_BYTES, None).unwrap();
        let complete = begins.iter().rfind(|(_, end)| *end <= cut).unwrap().1;
        let torn = (cut - complete) as u64;
        assert_eq!(found, if torn > 0 { Found::Torn(torn) } else { Found::Whole }, "cut at {cut}");
        assert!(log.head().records >= acknowledged.records);
        log.write([(1, "after the crash")]).and_then(|()| log.sync()).unwrap();
        let report = check(dir.path(), &anchors);
        assert_eq!((report.findings, report.logs[0].records), (vec![], log.head().records), "cut at {cut}");
    }
}

/// A log that was changed is not gone on with and not thrown away: another begins, and both are told of.
#[test]
fn a_damaged_log_stays_as_it_is_and_another_begins() {
    let dir = tempfile::tempdir().unwrap();
    let before = written(dir.path(), &[vec![20], vec![30], vec![40]]);
    let path = files(dir.path()).remove(0);
    rewrite(&path, |lines| lines[2][90] ^= 1);
    let changed = fs::read(&path).unwrap();
    let (mut log, found) = Log::open(dir.path(), SEGMENT_BYTES, None).unwrap();
    assert_eq!(found, Found::Damaged { file: "0001-000000000001.log".into(), record: 2 });
    log.write([(1, "of the second log")]).and_then(|()| log.sync()).unwrap();
    assert_ne!(log.head().log, before[0].log);
    assert_eq!(fs::read(&path).unwrap(), changed);
    let report = check(dir.path(), &[anchor(before.last().unwrap()), anchor(&log.head())]);
    assert_eq!(report.logs.iter().map(|log| (log.number, log.records)).collect::<Vec<_>>(), [(1, 3), (2, 1)]);
    assert_eq!((first(&report).record, first(&report).wrong), (2, Wrong::Changed));
    assert_eq!(report.findings.len(), 1, "the second log is good");
}

/// Nobody can make a running bridge go on from an earlier place.
#[tokio::test]
async fn a_log_that_is_cut_under_a_running_bridge_is_left_and_another_begins() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path(), SEGMENT_BYTES, source()).unwrap();
    audit.durable(vec![Event::started(), Event::stopped()]).await.unwrap();
    let (path, begin, _) = records(dir.path()).remove(1);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..begin]).unwrap();
    // The first try notices, the next begins anew.
    assert!(audit.durable(vec![Event::started()]).await.is_err());
    audit.durable(vec![Event::started()]).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), whole[..begin]);
    let report = check(dir.path(), &[]);
    assert_eq!(report.logs.iter().map(|log| log.records).collect::<Vec<_>>(), [1, 3], "and the second says so first");
    audit.close().await;
}

#[test]
fn a_deleted_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let heads = written(dir.path(), &vec![vec![500; 4]; 8]);
    let all = files(dir.path());
    assert!(all.len() >= 3);
    let firsts: Vec<u64> = segments(dir.path()).unwrap().into_iter().map(|segment| segment.first).collect();
    fs::remove_file(&all[1]).unwrap();
    let report = check(dir.path(), &[anchor(heads.last().unwrap())]);
    assert_eq!((first(&report).wrong, first(&report).record), (Wrong::Deleted, firsts[1]));
    fs::remove_file(&all[0]).unwrap();
    let report = check(dir.path(), &[anchor(heads.last().unwrap())]);
    assert_eq!((first(&report).wrong, first(&report).record), (Wrong::Deleted, 1));
}

#[tokio::test]
async fn what_was_waited_for_is_on_the_disk_and_the_rest_soon() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path(), SEGMENT_BYTES, source()).unwrap();
    for _ in 0..10 {
        audit.record(Event::started());
    }
    audit.durable(vec![Event::stopped(), Event::stopped()]).await.unwrap();
    assert_eq!(records(dir.path()).len(), 12, "a record that is waited for takes along what came before it");
    audit.record(Event::started());
    audit.close().await;
    assert_eq!(records(dir.path()).len(), 13);
    assert!(audit.durable(vec![Event::stopped()]).await.is_err(), "the writer has ended");
    assert!(check(dir.path(), &[]).is_intact());
}

/// A directory that cannot be written: whoever waits is refused, nobody else waits, and what was recorded meanwhile is there afterwards.
#[tokio::test]
async fn a_log_that_cannot_be_written_refuses_and_keeps() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("audit");
    // A file where the directory must be.
    fs::write(&dir, "").unwrap();
    let audit = Audit::open(&dir, SEGMENT_BYTES, source()).unwrap();
    assert!(audit.writable().is_err());
    assert!(audit.durable(vec![Event::stopped()]).await.is_err());
    audit.record(Event::started());
    fs::remove_file(&dir).unwrap();
    while audit.writable().is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    audit.durable(vec![Event::stopped()]).await.unwrap();
    let kept: Vec<_> = records(&dir).into_iter().map(|(_, _, line)| String::from_utf8(line).unwrap()).collect();
    let said = ["Audit Recording Stopped", "Application Start", "Application Stop"];
    assert!(kept.len() == 3 && kept.iter().zip(said).all(|(line, said)| line.contains(said)), "{kept:?}");
    assert_eq!(audit.status().unwrap().lost, 0);
    audit.close().await;
}

/// The record of ITI-43 as section 3.43.6 of ITI TF-2 wants it, byte for byte.
#[test]
fn a_document_handed_out_is_written_as_ever() {
    let (to, document) =
        (Party::asking("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", "192.0.2.7".parse().ok()), "ab".repeat(32));
    let event =
        Event::documents("https://a.example/iti43", &to, &["0x11".into()], std::slice::from_ref(&document), None);
    let expected = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><AuditMessage><EventIdentification EventActionCode=\"R\" \
         EventDateTime=\"2023-11-14T22:13:20.000Z\" EventOutcomeIndicator=\"0\"><EventID csd-code=\"110106\" codeSystemName=\"DCM\" \
         originalText=\"Export\"/><EventTypeCode csd-code=\"ITI-43\" codeSystemName=\"IHE Transactions\" \
         originalText=\"Retrieve Document Set\"/></EventIdentification><ActiveParticipant UserID=\"https://a.example/iti43\" \
         AlternativeUserID=\"7\" UserIsRequestor=\"false\"><RoleIDCode csd-code=\"110153\" codeSystemName=\"DCM\" \
         originalText=\"Source Role ID\"/></ActiveParticipant><ActiveParticipant \
         UserID=\"0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266\" UserIsRequestor=\"true\" NetworkAccessPointID=\"192.0.2.7\" \
         NetworkAccessPointTypeCode=\"2\"><RoleIDCode csd-code=\"110152\" codeSystemName=\"DCM\" \
         originalText=\"Destination Role ID\"/></ActiveParticipant><AuditSourceIdentification AuditSourceID=\"SITE\" \
         AuditEnterpriseSiteID=\"hospital\"><AuditSourceTypeCode csd-code=\"4\"/></AuditSourceIdentification>\
         <ParticipantObjectIdentification ParticipantObjectID=\"{document}\" ParticipantObjectTypeCode=\"2\" \
         ParticipantObjectTypeCodeRole=\"3\"><ParticipantObjectIDTypeCode csd-code=\"9\" codeSystemName=\"RFC-3881\" \
         originalText=\"Report Number\"/><ParticipantObjectName>Report Number</ParticipantObjectName><ParticipantObjectDetail \
         type=\"Repository Unique ID\" value=\"MHgxMQ==\"/></ParticipantObjectIdentification></AuditMessage>"
    );
    assert_eq!(super::xml::message(&event, 1_700_000_000_000, &source()), expected);
}

#[test]
fn a_study_that_is_no_uid_is_not_repeated() {
    let event = Event::erased(&Party::named("x"), "DOE^JANE", None);
    let message = super::xml::message(&event, 0, &source());
    assert!(!message.contains("DOE") && message.contains("ParticipantObjectID=\"unreadable\""));
}

/// All pages of so many records each, one after the other.
fn paged(dir: &Path, wanted: &Wanted, rows_max: usize, bytes_max: u64) -> Vec<Listed> {
    let (mut all, mut from) = (Vec::new(), None);
    loop {
        let found = page(dir, wanted, from, rows_max, bytes_max).unwrap();
        assert!(found.rows.len() <= rows_max);
        all.extend(found.rows);
        // As it comes back from an address.
        from = found.next.map(|place| place.to_string().parse().unwrap());
        if from.is_none() {
            return all;
        }
    }
}

#[test]
fn pages_have_every_record_once_and_the_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let lengths: Vec<u16> = (0..60).map(|number| number * 37 % 1500).collect();
    written(dir.path(), &lengths.chunks(7).map(<[u16]>::to_vec).collect::<Vec<_>>());
    assert!(files(dir.path()).len() > 3, "over several files");
    let numbers: Vec<u64> = (1..=60).rev().collect();
    for (rows_max, bytes_max) in [(1, u64::MAX), (7, u64::MAX), (60, u64::MAX), (100, u64::MAX), (100, 1), (3, 2000)] {
        let all = paged(dir.path(), &Wanted::default(), rows_max, bytes_max);
        assert_eq!(all.iter().map(|row| row.number).collect::<Vec<_>>(), numbers, "{rows_max} {bytes_max}");
        assert!(all.iter().all(|row| row.log == all[0].log && row.log.len() == 64));
    }
    // A page that begins at a place stays what it is while the log grows, also when what grows is half written.
    let second = |dir: &Path| {
        page(dir, &Wanted::default(), page(dir, &Wanted::default(), None, 5, u64::MAX).unwrap().next, 5, u64::MAX)
    };
    let place = page(dir.path(), &Wanted::default(), None, 5, u64::MAX).unwrap().next;
    let before = second(dir.path()).unwrap();
    written(dir.path(), &[vec![10, 20]]);
    let last = files(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&last).unwrap();
    bytes.extend_from_slice(b"63 1700000000000 abcdef");
    fs::write(&last, bytes).unwrap();
    assert_eq!(page(dir.path(), &Wanted::default(), place, 5, u64::MAX).unwrap(), before);
    assert_eq!(paged(dir.path(), &Wanted::default(), 9, u64::MAX)[0].number, 62, "what has no end is no record");
}

#[test]
fn a_page_may_look_at_so_much_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &[vec![400; 40]]);
    let nothing = Wanted { kind: Some("110112".into()), ..Wanted::default() };
    let found = page(dir.path(), &nothing, None, 50, 2_000).unwrap();
    assert!(found.rows.is_empty() && found.next.is_some() && found.looked_to.is_some(), "{found:?}");
    assert_eq!(page(dir.path(), &nothing, None, 50, u64::MAX).unwrap(), super::list::Page::default());
    // A time that is over for all of them is found to be so in a few bytes.
    let long_ago = Wanted { until_ms: Some(1_600_000_000_000), ..Wanted::default() };
    assert_eq!(page(dir.path(), &long_ago, None, 50, 1).unwrap(), super::list::Page::default());
    let later = Wanted { since_ms: Some(1_800_000_000_000), ..Wanted::default() };
    assert_eq!(page(dir.path(), &later, None, 50, 1).unwrap(), super::list::Page::default());
}

#[test]
fn a_place_that_somebody_made_up_shows_nothing_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &[vec![100; 30]]);
    let all = paged(dir.path(), &Wanted::default(), 100, u64::MAX);
    for made_up in ["1.1.77", "1.1.0", "1.1.99999999", "1.5.100", "9.9.9", "0.0.0", "1.1.18446744073709551615"] {
        let found = page(dir.path(), &Wanted::default(), Some(made_up.parse().unwrap()), 100, u64::MAX).unwrap();
        assert!(found.rows.iter().all(|row| all.contains(row)), "{made_up}");
    }
}

#[test]
fn what_is_too_long_to_be_a_record_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &[vec![100; 3]]);
    let last = files(dir.path()).pop().unwrap();
    let whole = fs::read(&last).unwrap();
    let at = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut bytes = whole[..at].to_vec();
    bytes.extend(std::iter::repeat_n(b'x', 3 << 20));
    bytes.push(b'\n');
    bytes.extend_from_slice(&whole[at..]);
    fs::write(&last, bytes).unwrap();
    let numbers: Vec<u64> = paged(dir.path(), &Wanted::default(), 2, u64::MAX).iter().map(|row| row.number).collect();
    assert_eq!(numbers, [3, 2, 1]);
}
