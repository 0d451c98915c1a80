//! RAD-69 and the key object selection document at the real binary: instances for whom the study or their series is open, and nothing that
//! tells anybody else more. Judges: a client that shares no code with the bridge, pydicom, DCMTK and dicom3tools.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use bridge::archive::FileMeta;
use bridge::demo::phantom::Phantom;
use serde_json::{Value, json};
use tests::dicom::{in_series, slices, subject};
use tests::wait_for;
use tests::xds::{Person, UNAVAILABLE, World, comparable, digest, start};

const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const IMPLICIT: &str = "1.2.840.10008.1.2";
const JPEG: &str = "1.2.840.10008.1.2.4.50";
const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const NO_SYNTAX: &str = "urn:dicom:wado:0007";

fn series(study: u32, number: u32) -> String {
    format!("{}.{number}", subject(study).study_uid)
}

/// An instance as the client in Python takes it.
fn named(study: u32, of: u32, instance: &str) -> String {
    format!("{}/{}/{instance}", subject(study).study_uid, series(study, of))
}

fn instance(phantom: &Phantom) -> String {
    phantom.sop_instance.to_string()
}

/// What became of each instance: the digest of its file, or the error.
type Outcomes = BTreeMap<String, String>;

struct Site {
    world: World,
    /// Series 1 and 2 of study 1.
    first: Vec<Phantom>,
    second: Vec<Phantom>,
}

impl Site {
    fn new() -> Option<Self> {
        let world = World::new(start)?;
        let (first, second) = (slices(1, 3, 64), in_series(1, slices(1, 2, 64), '1', '2'));
        let site = Self { world, first, second };
        site.world.store(&site.first);
        site.world.store(&site.second);
        site.world.store(&slices(2, 1, 64));
        site.world.a.wait_final(2);
        site.world.a.wait_filed(6);
        Some(site)
    }

    fn person(&self, name: &str, study: u32, more: Option<&[&str]>) -> Person {
        let person = Person::new(self.world.dir.path(), name);
        if let Some(more) = more {
            self.world.allow(study, &person, more);
        }
        person
    }

    fn all(&self) -> Vec<String> {
        let first = self.first.iter().map(|phantom| named(1, 1, &instance(phantom)));
        first.chain(self.second.iter().map(|phantom| named(1, 2, &instance(phantom)))).collect()
    }

    fn said(&self, person: &Person, instances: &[String], more: &[&str]) -> Value {
        let instances = instances.iter().flat_map(|one| ["--instance", one]);
        let said = self.world.ask(person, &[], &instances.chain(more.iter().copied()).collect::<Vec<_>>());
        assert_eq!(said["http_status"], 200, "{said}");
        said["response"].clone()
    }

    fn outcomes(&self, person: &Person, instances: &[String], more: &[&str]) -> Outcomes {
        let said = self.said(person, instances, more);
        assert_eq!(said["relates"], true, "{said}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let documents = said["documents"].as_array().unwrap().iter().map(|document| {
            assert_eq!(document["mime_type"], "application/dicom", "{document}");
            (text(&document["document"]), text(&document["sha256"]))
        });
        let errors = said["errors"].as_array().unwrap().iter();
        let outcomes = errors.map(|error| (text(&error["location"]), text(&error["errorCode"])));
        let outcomes: Vec<_> = documents.chain(outcomes).collect();
        assert_eq!(outcomes.len(), instances.len(), "one outcome each: {said}");
        outcomes.into_iter().collect()
    }

    /// The outcome for one instance.
    fn outcome(&self, person: &Person, one: &str, more: &[&str]) -> String {
        self.outcomes(person, &[one.to_owned()], more).into_values().next().unwrap()
    }

    /// A whole answer, but for what is random in it and the instance that it echoes.
    fn answer(&self, person: &Person, one: &str) -> String {
        let more = ["--instance", one, "--message-id", &format!("urn:uuid:{}", rand::random::<u64>())];
        let answer = self.world.send(&self.world.written(person, &[], &more, str::to_owned));
        assert_eq!(answer.status, 200, "{answer:?}");
        let heads: String =
            answer.text.split("\r\n\r\n").next().unwrap().lines().filter(|l| !l.contains("boundary")).collect();
        let text = comparable(&answer).replace(more[3], "").replace(one.rsplit('/').next().unwrap(), "");
        let length = heads.split("content-length: ").nth(1).unwrap().chars().take_while(char::is_ascii_digit).count();
        format!("{length} {text}")
    }
}

/// The digest of the file that the archive made of an object.
fn filed(phantom: &Phantom) -> String {
    let meta = FileMeta {
        sop_class: phantom.sop_class,
        sop_instance: phantom.sop_instance,
        transfer_syntax: phantom.transfer_syntax,
    };
    digest(&[meta.encode(), phantom.bytes.clone()].concat())
}

fn files(phantoms: &[Phantom]) -> Outcomes {
    phantoms.iter().map(|phantom| (instance(phantom), filed(phantom))).collect()
}

#[test]
fn instances_go_to_whom_the_study_or_their_series_is_open_and_nothing_tells_others_of_them() {
    let Some(mut site) = Site::new() else { return };
    let (both, unknown) = ([site.first.clone(), site.second.clone()].concat(), named(1, 1, "1.2.3.4"));
    let whole = site.person("whole", 1, Some(&[]));
    let of_series = site.person("series", 1, Some(&["--series", &series(1, 1)]));
    let previews = site.person("previews", 1, Some(&["--preview-only"]));
    let nobody = site.person("nobody", 1, None);
    let ended = site.person("ended", 1, Some(&[]));
    site.world.revoke(1, &ended);

    // Every file of the study as it was received, however the source is named.
    assert_eq!(site.outcomes(&whole, &site.all(), &[]), files(&both));
    let location = ihe_retrieve_oid(&site.world.repository());
    assert_eq!(site.outcomes(&whole, &site.all(), &["--repository", &location]), files(&both));
    let (of_first, of_second) = (named(1, 1, &instance(&site.first[0])), named(1, 2, &instance(&site.second[0])));
    let astray = named(1, 2, &instance(&site.first[0]));
    assert_eq!(site.outcome(&whole, &astray, &[]), "XDSIRequestError");
    assert_eq!(site.outcome(&whole, &named(1, 9, &instance(&site.first[0])), &[]), "XDSIRequestError");
    assert_eq!(site.outcome(&whole, &unknown, &[]), UNAVAILABLE);
    let said = site.said(&whole, &[of_first.clone(), unknown.clone()], &[]);
    assert!(said["status"].as_str().unwrap().ends_with(":PartialSuccess"), "{said}");
    let elsewhere = ["--repository", &nobody.account.to_string()];
    assert_eq!(site.outcome(&whole, &of_first, &elsewhere), "XDSIUnknownIdsUid");
    assert_eq!(site.outcome(&whole, &of_first, &["--home", "urn:oid:1.2.3"]), "XDSUnknownCommunity");

    // One series: its instances and no word about others.
    let outcomes = site.outcomes(&of_series, &site.all(), &[]);
    let mut expected = files(&site.first);
    expected.extend(site.second.iter().map(|phantom| (instance(phantom), UNAVAILABLE.to_owned())));
    assert_eq!(outcomes, expected);

    // Refusals do not differ but in the instance that they echo.
    let no_study = format!("1.2.3/1.2.3.4/{}", instance(&site.first[0]));
    let of_another = named(2, 1, &instance(&slices(2, 1, 64)[0]));
    let refused: Vec<(&Person, &String)> = vec![
        (&whole, &unknown),
        (&whole, &of_another),
        (&of_series, &of_second),
        (&of_series, &astray),
        (&of_series, &unknown),
        (&previews, &of_first),
        (&previews, &unknown),
        (&ended, &of_first),
        (&nobody, &of_first),
        (&nobody, &astray),
        (&nobody, &unknown),
        (&nobody, &no_study),
        (&nobody, &of_another),
    ];
    let answers: Vec<_> = refused.iter().map(|(person, one)| site.answer(person, one)).collect();
    assert!(answers[0].contains(UNAVAILABLE), "{}", answers[0]);
    for (answer, (_, one)) in answers.iter().zip(&refused) {
        assert_eq!(answer, &answers[0], "{one}");
    }

    // A message counts once here too.
    let message = site.world.written(&whole, &[], &["--instance", &of_first], str::to_owned);
    assert!(site.world.send(&message).text.contains("application/dicom"));
    site.world.faults("replay", &message, 400, "wsse:FailedCheck");
    let altered = ["--instance", &of_first, "--alter", &instance(&site.first[0]), &instance(&site.first[1])];
    site.world.faults("altered", &site.world.written(&whole, &[], &altered, str::to_owned), 400, "wsse:FailedCheck");

    // What was evicted comes from the ledger. What is taken away is gone at once.
    site.world.a.json(&["evict", &subject(1).study_uid]);
    assert_eq!(site.outcomes(&whole, &site.all(), &[]), files(&both));
    site.world.revoke(1, &whole);
    site.world.revoke(1, &of_series);
    assert_eq!(site.answer(&whole, &of_first), answers[0]);
    assert_eq!(site.answer(&of_series, &of_first), answers[0]);
    assert!(site.world.a.terminate().success());
}

/// The name that a source has where only a UID fits.
fn ihe_retrieve_oid(address: &str) -> String {
    let mut bytes = [0; 20];
    hex::decode_to_slice(&address[2..], &mut bytes).unwrap();
    ihe_retrieve::identifier::RepositoryUniqueId::at(bytes).oid()
}

#[test]
fn an_instance_comes_in_a_transfer_syntax_of_the_request_or_not_at_all() {
    let Some(site) = Site::new() else { return };
    let whole = site.person("whole", 1, Some(&[]));
    let (one, dir) = (named(1, 1, &instance(&site.first[0])), site.world.dir.path());
    let syntaxes = |list: &[&str], more: &[&str]| {
        let list: Vec<&str> = list.iter().flat_map(|syntax| ["--transfer-syntax", syntax]).collect();
        site.outcome(&whole, &one, &[&list, more].concat())
    };
    let stored = filed(&site.first[0]);
    for list in [&[EXPLICIT][..], &[IMPLICIT, EXPLICIT], &[JPEG, EXPLICIT, "nonsense"]] {
        assert_eq!(syntaxes(list, &[]), stored, "{list:?}");
    }
    for list in [&[JPEG][..], &["1.2.840.10008.1.2.2"], &["nonsense"]] {
        assert_eq!(syntaxes(list, &[]), NO_SYNTAX, "{list:?}");
    }
    let implicit = syntaxes(&[JPEG, IMPLICIT], &["--save", dir.to_str().unwrap()]);
    assert!(implicit.len() == 64 && implicit != stored, "{implicit}");
    assert_eq!(syntaxes(&[IMPLICIT], &[]), implicit, "the same bytes every time");
    let original = dir.join("original.dcm");
    let head = FileMeta {
        sop_class: site.first[0].sop_class,
        sop_instance: site.first[0].sop_instance,
        transfer_syntax: site.first[0].transfer_syntax,
    };
    std::fs::write(&original, [head.encode(), site.first[0].bytes.clone()].concat()).unwrap();
    let program = "import sys, pydicom\na, b = map(pydicom.dcmread, sys.argv[1:])\n\
                   assert b.file_meta.TransferSyntaxUID == '1.2.840.10008.1.2'\n\
                   assert a == b and a.PixelData == b.PixelData and len(a) > 30\n";
    tests::peers::run(Command::new(&site.world.python).args(["-c", program]).arg(&original).arg(dir.join("1.bin")));
    // Who may not have it is not told in which transfer syntaxes it is not.
    let nobody = site.person("nobody", 1, None);
    let refused = site.outcome(&nobody, &one, &["--transfer-syntax", JPEG]);
    assert_eq!(refused, UNAVAILABLE);
}

fn read_selection(python: &Path, file: &Path) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("py/key_objects.py");
    serde_json::from_slice(&tests::peers::run(Command::new(python).arg(script).arg(file)).stdout).unwrap()
}

/// Evidence as it should be: series, and in each its CT objects.
fn evidence(series: &[(u32, &[Phantom])]) -> Value {
    let of_series = |(number, phantoms): &(u32, &[Phantom])| {
        let mut objects: Vec<_> = phantoms.iter().map(|phantom| json!([CT, instance(phantom)])).collect();
        objects.sort_by_key(Value::to_string);
        (self::series(1, *number), Value::from(objects))
    };
    Value::Object(series.iter().map(of_series).collect())
}

#[test]
fn the_key_object_selection_names_the_newest_version_and_other_software_reads_it() {
    let Some(site) = Site::new() else { return };
    let (world, dir) = (&site.world, site.world.dir.path().to_owned());
    let whole = site.person("whole", 1, Some(&[]));
    let document = format!("{}^kos", world.study(1));
    let save = ["--save", dir.to_str().unwrap()];
    let said = world.ask(&whole, &[&document], &save)["response"]["documents"][0].clone();
    assert_eq!((&said["mime_type"], &said["document"]), (&json!("application/dicom"), &json!(document)), "{said}");
    let file = dir.join("first.dcm");
    std::fs::rename(dir.join("1.bin"), &file).unwrap();
    let read = read_selection(&world.python, &file);
    assert_eq!(read["sop_class"], "1.2.840.10008.5.1.4.1.1.88.59");
    assert_eq!(read["sop_instance"], read["meta_sop_instance"]);
    assert_eq!(read["title"], json!(["113030", "DCM", "Manifest"]));
    assert_eq!((&read["template"], &read["modality"]), (&json!(["DCMR", "2010"]), &json!("KO")));
    let of = subject(1);
    assert_eq!(read["patient"], json!([of.patient_name, of.patient_id, of.accession]));
    assert_eq!(read["study"], json!([of.study_uid, of.study_uid]));
    let mut listed = read["evidence"].clone();
    for objects in listed.as_object_mut().unwrap().values_mut() {
        objects.as_array_mut().unwrap().sort_by_key(Value::to_string);
    }
    assert_eq!(listed, evidence(&[(1, &site.first), (2, &site.second)]));
    let content = read["content"].as_array().unwrap();
    let evident: usize = listed.as_object().unwrap().values().map(|o| o.as_array().unwrap().len()).sum();
    assert!(content.len() == evident && content.iter().all(|item| item[0] == "CONTAINS" && item[1] == "IMAGE"));

    // What it says is enough to get everything by RAD-69.
    let location = read["locations"][0].as_str().unwrap();
    assert_eq!(read["locations"].as_array().unwrap().len(), 1, "{read}");
    let both = [site.first.clone(), site.second.clone()].concat();
    let instances: Vec<String> = listed
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(series, objects)| {
            let named =
                move |object: &Value| format!("{}/{series}/{}", subject(1).study_uid, object[1].as_str().unwrap());
            objects.as_array().unwrap().iter().map(named).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(site.outcomes(&whole, &instances, &["--repository", location]), files(&both));

    // Other people's readers.
    if tests::have("dsrdump") {
        let said = tests::peers::run(Command::new("dsrdump").arg(&file));
        let said = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        // It warns of what it cannot check itself.
        let complains = said.lines().any(|line| line.starts_with("E:"));
        assert!(said.contains("Manifest") && !complains, "{said}");
    }
    if tests::have("dciodvfy") {
        let said = Command::new("dciodvfy").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
        assert!(said.contains("KeyObjectSelectionDocument") && !said.contains("Error"), "{said}");
    }

    // The same version is the same bytes; another has another document.
    let digest_now = || world.ask(&whole, &[&document], &save)["response"]["documents"][0]["sha256"].clone();
    assert_eq!(digest_now(), said["sha256"]);
    let late = in_series(1, slices(1, 3, 64), '1', '2').pop().unwrap();
    world.store(std::slice::from_ref(&late));
    world.a.wait_final(2);
    wait_for("another version", || digest_now() != said["sha256"]);
    let newer = read_selection(&world.python, &dir.join("1.bin"));
    assert!(newer["sop_instance"] != read["sop_instance"] && newer["series"] == read["series"], "{newer}");
    assert!(newer["evidence"].to_string().contains(&instance(&late)), "{newer}");
    let late = named(1, 2, &instance(&late));
    assert_eq!(site.outcome(&whole, &late, &[]).len(), 64, "the newest version counts");

    // Without a grant of the whole study it is as unknown as any.
    let (unknown, one_series) = (format!("{}^kos", "ab".repeat(32)), series(1, 1));
    let others = [
        site.person("series", 1, Some(&["--series", &one_series])),
        site.person("previews", 1, Some(&["--preview-only"])),
        site.person("nobody", 1, None),
    ];
    let answer = |person: &Person, document: &str| {
        let answer = world.send(&world.written(person, &[document], &["--message-id", "urn:uuid:same"], str::to_owned));
        assert!(answer.text.contains(UNAVAILABLE), "{answer:?}");
        comparable(&answer).replace(document, "")
    };
    let expected = answer(&others[2], &unknown);
    for person in &others {
        assert_eq!(answer(person, &document), expected);
    }
}
