//! Two sites, one patient, and nobody else: what the owner of a study allows is what another site sees, and a third never sees it.
//!
//! Four daemons: one that is only the ledger and the consortium's administrator, the source A, the grantee B, the stranger C.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use alloy::primitives::B256;
use contracts::messages::salted;
use dicom_scp::dataset::{Encoding, ReadOptions, read};
use dicom_scp::matching::Level;
use dicom_scp::{DataSet, Tag};
use tests::consortium::{Consortium, keyring, objects_here, store, store_all};
use tests::dicom::{get, in_series, slices, subject};
use tests::{Bridge, files_below, wait_for};

/// Previews whose pictures are here, and those whose pictures are not.
fn previews_here(site: &Bridge) -> (i64, i64) {
    let index = rusqlite::Connection::open(site.data().join("archive/index.sqlite")).unwrap();
    let count = |sql: &str| index.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let of = "SELECT count(*) FROM image WHERE kind = 2 AND plain IS";
    (count(&format!("{of} NOT NULL")), count(&format!("{of} NULL")))
}

/// Whether a file of the data directory holds these bytes.
fn holds(dir: &Path, needle: &[u8]) -> bool {
    let named = |bytes: Vec<u8>| bytes.windows(needle.len()).any(|window| window == needle);
    // The control socket cannot be read.
    files_below(dir).iter().any(|path| std::fs::read(path).is_ok_and(named))
}

/// Another implementation reads the object and decodes its pixels.
fn judged_by_pydicom(dir: &Path, capture: &DataSet, data_set: &[u8]) {
    let Some(python) = tests::peers::python() else { return };
    let meta = bridge::archive::FileMeta {
        sop_class: capture.uid(Tag(0x0008, 0x0016)).unwrap(),
        sop_instance: capture.uid(Tag(0x0008, 0x0018)).unwrap(),
        transfer_syntax: *dicom_scp::TransferSyntax::EXPLICIT_VR_LE.uid(),
    };
    let file = dir.join("capture.dcm");
    std::fs::write(&file, [meta.encode(), data_set.to_vec()].concat()).unwrap();
    let program = "import sys, pydicom; d = pydicom.dcmread(sys.argv[1]); print(d.PatientID, d.pixel_array.shape == (d.Rows, d.Columns), \
                   d.pixel_array.max() > d.pixel_array.min(), d.SOPClassUID.name)";
    let said = tests::peers::run(std::process::Command::new(python).args(["-c", program]).arg(&file));
    let said = String::from_utf8(said.stdout).unwrap();
    assert_eq!(said.trim(), format!("{} True True Secondary Capture Image Storage", subject(2).patient_id));
}

#[test]
fn what_the_owner_allows_is_what_another_site_sees() {
    let consortium = Consortium::found();
    let (mut a, mut b, c) = (consortium.join(true), consortium.join(false), consortium.join(false));
    let sent = store(&consortium.runtime, &a, 1);
    store(&consortium.runtime, &a, 2);
    a.wait_final(2);
    let source = keyring(&a);
    let study = |number: u32| {
        let uid = dicom_scp::Uid::new(&subject(number).study_uid).unwrap();
        let keys = source.study(&uid).unwrap().unwrap();
        (bridge::study::study_id(&keys.salt, uid.as_str()), source.owner(keys.owner_index).unwrap())
    };
    let (first, owner) = study(1);
    let (second, second_owner) = study(2);
    let grantee = keyring(&b);
    for site in [&b, &c] {
        assert!(consortium.find(site.dicom, Level::Study).is_empty(), "nothing is granted yet");
    }

    consortium.allow(&owner, first, &grantee, 2, 1);
    let uid = subject(1).study_uid;
    wait_for("the granted study at B", || consortium.find(b.dicom, Level::Study).contains(&uid));
    assert_eq!(objects_here(&b), 0, "it is found before any pixel came");
    wait_for("the previews at B", || previews_here(&b) == (1, 0));
    assert_eq!(consortium.find(b.dicom, Level::Patient), BTreeSet::from([subject(1).patient_id]));
    assert_eq!(consortium.find(b.dicom, Level::Study), BTreeSet::from([uid.clone()]));
    assert_eq!(consortium.find(b.dicom, Level::Series).len(), 1);
    assert_eq!(consortium.find(b.dicom, Level::Image), sent.keys().cloned().collect());

    // Previews alone: found, not given.
    consortium.allow(&second_owner, second, &grantee, 1, 1);
    let second_uid = subject(2).study_uid;
    wait_for("the second study at B", || consortium.find(b.dicom, Level::Study).contains(&second_uid));
    let mut given = None;
    wait_for("the preview to be an object at B", || {
        given = Some(consortium.runtime.block_on(get(b.dicom, &second_uid)));
        given.as_ref().is_some_and(|given| !given.data_sets.is_empty())
    });
    let given = given.unwrap();
    assert_eq!((given.data_sets.len(), given.failed.len()), (1, 0), "a viewer gets the preview, and asks for no more");
    let capture = DataSet::clone(
        &read(given.data_sets.values().next().unwrap(), Encoding::ExplicitLe, &ReadOptions::default()).unwrap().0,
    );
    assert_eq!(capture.text(Tag(0x0008, 0x0016)).unwrap(), "1.2.840.10008.5.1.4.1.1.7", "Secondary Capture");
    assert_eq!(capture.text(Tag(0x0010, 0x0010)).unwrap(), subject(2).patient_name);
    judged_by_pydicom(b.dir.path(), &capture, given.data_sets.values().next().unwrap());
    let verdicts = b.json(&["verify", &capture.text(Tag(0x0008, 0x0018)).unwrap()]);
    assert_eq!(verdicts[0]["proven"], true, "{verdicts}");

    // The source goes away; its pieces are on the ledger and its keys at B, also after a crash of B.
    a.kill();
    b.kill();
    b.run();
    let got = consortium.runtime.block_on(get(b.dicom, &uid));
    assert!(got.failed.is_empty() && got.data_sets == sent, "B gets the same bytes without A: {:?}", got.failed);
    assert!(consortium.find(c.dicom, Level::Study).is_empty(), "C sees nothing");
    assert!(consortium.runtime.block_on(get(c.dicom, &uid)).data_sets.is_empty(), "C gets nothing");

    consortium.revoke(&owner, first, grantee.source().address(), 2);
    wait_for("the study to be gone at B", || !consortium.find(b.dicom, Level::Study).contains(&uid));
    let got = consortium.runtime.block_on(get(b.dicom, &uid));
    assert!(got.data_sets.is_empty() && got.failed.is_empty(), "as if absent");
    assert!(consortium.find(b.dicom, Level::Image).is_empty());
    wait_for("the copies at B to be removed", || objects_here(&b) == 0);
    wait_for("the keys at B to be destroyed", || grantee.foreign(first).unwrap().is_none());
    assert!(grantee.foreign(second).unwrap().is_some(), "the other grant goes on");
    assert!(consortium.find(c.dicom, Level::Study).is_empty());
    assert!(!holds(c.data(), uid.as_bytes()), "nothing at C names the study");
}

/// Two sites that cannot reach each other: keys go over the ledger, in envelopes that open once.
#[test]
fn keys_go_over_the_ledger_where_sites_cannot_reach_each_other() {
    const ENVELOPES: &str = "[exchange]\nenvelopes = true\n";
    let consortium = Consortium::found();
    // None of them has a port at which another could ask. B asks with a key that is for this study alone.
    let per_study = format!("{ENVELOPES}key_per_study = true\n");
    let (a, mut b, c) =
        (consortium.join_with(ENVELOPES), consortium.join_with(&per_study), consortium.join_with(ENVELOPES));
    let runtime = &consortium.runtime;
    let mut sent = store(runtime, &a, 1);
    a.wait_final(1);
    let (source, grantee) = (keyring(&a), keyring(&b));
    let uid = dicom_scp::Uid::new(&subject(1).study_uid).unwrap();
    let keys = source.study(&uid).unwrap().unwrap();
    let study = bridge::study::study_id(&keys.salt, uid.as_str());
    let grantee_keys = b.data().join("keys.sqlite");
    let (study_name, account) = (study.to_string(), grantee.source().address().to_string());
    wait_for("B to know the study's name", || b.cli(&["request", &study_name]).status.success());
    wait_for("A to know of the request", || a.cli(&["allow", uid.as_str(), &account]).status.success());
    wait_for("the granted study at B", || consortium.find(b.dicom, Level::Study).contains(uid.as_str()));
    let got = runtime.block_on(get(b.dicom, uid.as_str()));
    assert!(got.failed.is_empty() && got.data_sets == sent, "{:?}", got.failed);

    // Who has every byte of the ledger and B's keys of afterwards opens no envelope.
    let envelopes = |site: &Bridge| {
        let history = site.json(&["trace", &study_name]);
        let said = |row: &&serde_json::Value| row["event"] == "keys delivered";
        history["history"].as_array().unwrap().iter().filter(said).count()
    };
    let trace = a.json(&["trace", &study_name]);
    assert_eq!(envelopes(&a), 1, "{trace}");
    for row in
        trace["history"].as_array().unwrap().iter().filter(|row| row["event"].as_str().unwrap().starts_with("keys"))
    {
        assert!(row["gas"].as_u64().unwrap() < 100_000, "more than the configuration says: {row}");
    }
    let made_keys = || {
        let keys = rusqlite::Connection::open(grantee_keys.clone()).unwrap();
        let mut rows = keys.prepare("SELECT made_for FROM made_key").unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().collect::<Result<Vec<i64>, _>>().unwrap()
    };
    assert_eq!(made_keys(), [2], "the key for the envelope is destroyed, the one for the study stays");

    // A restart asks for nothing that is here; a new version does, with another key.
    b.kill();
    b.run();
    let late = slices(1, 6, 64).pop().unwrap();
    sent.extend(store_all(runtime, &a, vec![late]));
    wait_for("the late object at B", || consortium.find(b.dicom, Level::Image) == sent.keys().cloned().collect());
    wait_for("A to see its second answer", || envelopes(&a) == 2);
    let got = runtime.block_on(get(b.dicom, uid.as_str()));
    assert!(got.failed.is_empty() && got.data_sets == sent, "{:?}", got.failed);

    assert!(a.cli(&["revoke", uid.as_str(), &account]).status.success());
    wait_for("the study to be gone at B", || consortium.find(b.dicom, Level::Study).is_empty());
    wait_for("the keys at B to be destroyed", || grantee.foreign(study).unwrap().is_none() && made_keys().is_empty());
    assert!(consortium.find(c.dicom, Level::Study).is_empty());
    assert!(!holds(c.data(), uid.as_str().as_bytes()), "nothing at C names the study");
}

/// Who may see one series learns nothing of the others: not their objects, not their headers, not their names.
#[test]
fn a_series_that_is_granted_is_all_that_another_site_learns() {
    const STUDY: u32 = 1;
    let consortium = Consortium::found();
    let (mut a, b) = (consortium.join(true), consortium.join(false));
    let runtime = &consortium.runtime;
    // Two series, and of each an object that comes late.
    let mut first = slices(STUDY, 4, 64);
    let mut second = in_series(STUDY, first.clone(), '1', '2');
    let late = [first.pop().unwrap(), second.pop().unwrap()];
    let (mut first, mut second) = (store_all(runtime, &a, first), store_all(runtime, &a, second));
    a.wait_final(1);
    let (source, grantee) = (keyring(&a), keyring(&b));
    let uid = dicom_scp::Uid::new(&subject(STUDY).study_uid).unwrap();
    let keys = source.study(&uid).unwrap().unwrap();
    let owner = source.owner(keys.owner_index).unwrap();
    let salt = B256::from(*keys.salt.as_bytes());
    let study = bridge::study::study_id(&keys.salt, uid.as_str());
    let (one, other) = (format!("{uid}.1"), format!("{uid}.2"));
    let part = |series: &str| salted(salt, series.as_bytes());
    let shown = || {
        let series = consortium.find(b.dicom, Level::Series);
        (series, consortium.find(b.dicom, Level::Study).len())
    };
    let images = |series: &str| consortium.images(b.dicom, series);
    let names = |objects: &BTreeMap<String, Vec<u8>>| objects.keys().cloned().collect::<BTreeSet<String>>();
    let only = |series: &String| (BTreeSet::from([series.clone()]), 1);

    consortium.allow_part(&owner, study, part(&one), &grantee, 2, 1);
    wait_for("the granted series at B", || images(&one) == names(&first));
    assert_eq!(shown(), only(&one));
    let got = runtime.block_on(get(b.dicom, uid.as_str()));
    assert!(got.failed.is_empty() && got.data_sets == first, "the series' bytes: {:?}", got.failed);
    wait_for("its preview", || previews_here(&b) == (1, 0));

    // What comes later, in the other series and in this one.
    let [late_first, late_second] = late;
    second.extend(store_all(runtime, &a, vec![late_second]));
    a.wait_final(1);
    first.extend(store_all(runtime, &a, vec![late_first]));
    a.wait_final(1);
    wait_for("the late object at B", || images(&one) == names(&first));
    assert_eq!(shown(), only(&one));
    assert!(!holds(b.data(), other.as_bytes()), "B has the name of the other series");
    let verdicts = b.json(&["verify", uid.as_str()]);
    let verdicts = verdicts.as_array().unwrap();
    assert!(verdicts.len() == first.len() && verdicts.iter().all(|one| one["proven"] == true), "{verdicts:?}");

    // The other series instead; the copies of this one go.
    consortium.allow_part(&owner, study, part(&other), &grantee, 2, 2);
    wait_for("the other series at B", || images(&other) == names(&second));
    assert_eq!(shown(), only(&other));
    wait_for("the copies of the first series to go", || objects_here(&b) == 0);
    let got = runtime.block_on(get(b.dicom, uid.as_str()));
    assert!(got.failed.is_empty() && got.data_sets == second, "{:?}", got.failed);

    // Its previews alone, which a viewer gets as an object.
    consortium.allow_part(&owner, study, part(&other), &grantee, 1, 3);
    wait_for("the preview to be an object at B", || {
        let got = runtime.block_on(get(b.dicom, uid.as_str()));
        got.data_sets.len() == 1 && got.failed.is_empty()
    });
    assert_eq!(objects_here(&b), 0, "no copy stays");

    // A series that does not exist; then everything.
    consortium.allow_part(&owner, study, part("1.2.3"), &grantee, 2, 4);
    wait_for("the series to go", || shown() == (BTreeSet::new(), 0));
    consortium.allow(&owner, study, &grantee, 2, 5);
    wait_for("the whole study at B", || shown().0 == BTreeSet::from([one.clone(), other.clone()]));
    a.kill();
    let got = runtime.block_on(get(b.dicom, uid.as_str()));
    first.extend(second);
    assert!(got.failed.is_empty() && got.data_sets == first, "B gets everything without A: {:?}", got.failed);
}
