//! DCMTK's clients as judges of the acceptor.
#![allow(clippy::unwrap_used)]

mod support;

use dicom_scp::{
    DataSet, TransferSyntax, Uid,
    scu::{Association, Proposal, ScuOptions},
};
use std::{
    path::Path,
    process::{Command, Stdio},
    sync::atomic::Ordering,
    time::Duration,
};
use support::*;

fn objects(count: u32, pixels: usize) -> Vec<DataSet> {
    (1..=count).map(|i| ct(1 + i % 2, 1, i, pixels)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn echoscu() {
    if !has_tool("echoscu") {
        return;
    }
    let served = Served::default().await;
    let output = run("echoscu", args(&["-v", "-aec", "SITE", "127.0.0.1", &served.port().to_string()])).await;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("Success"), "{}", text(&output));
    assert_eq!(served.site.requests.lock().unwrap()[0].calling, ae("ECHOSCU"));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storescu_keeps_every_byte() {
    if !has_tool("storescu") {
        return;
    }
    let served = Served::default().await;
    let directory = tempfile::tempdir().unwrap();
    // More than one PDU each, and an odd number of them.
    let sent = objects(41, 40_000);
    write_files(directory.path(), &sent, TransferSyntax::EXPLICIT_VR_LE);
    let port = served.port().to_string();
    let output = run("storescu", args(&["+sd", "127.0.0.1", &port, directory.path().to_str().unwrap()])).await;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(served.count(), sent.len());
    for object in &sent {
        let kept = served.site.objects.lock().unwrap()[&object.uid(SOP_INSTANCE).unwrap()].clone();
        // DCMTK re-encodes what it sends (group lengths, padding), so elements are compared.
        let (received, _) = dicom_scp::dataset::read(
            &kept.bytes,
            kept.head.transfer_syntax.encoding(),
            &dicom_scp::dataset::ReadOptions::default(),
        )
        .unwrap();
        assert_eq!(&received, object);
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storescu_in_other_transfer_syntaxes() {
    if !has_tool("storescu") {
        return;
    }
    let served = Served::default().await;
    let directory = tempfile::tempdir().unwrap();
    for (number, syntax, option) in
        [(1, TransferSyntax::IMPLICIT_VR_LE, "-xi"), (2, TransferSyntax::EXPLICIT_VR_BE, "-xb")]
    {
        let object = ct(number, 1, 1, 3000);
        let file = directory.path().join("object.dcm");
        std::fs::write(&file, part10(&object, syntax)).unwrap();
        let port = served.port().to_string();
        let output = run("storescu", args(&[option, "127.0.0.1", &port, file.to_str().unwrap()])).await;
        assert!(output.status.success(), "{}", text(&output));
        let kept = served.site.objects.lock().unwrap()[&object.uid(SOP_INSTANCE).unwrap()].clone();
        assert_eq!(kept.head.transfer_syntax, syntax);
        assert_eq!(kept.header.text(PATIENT_NAME), object.text(PATIENT_NAME));
    }
    served.stop().await;
}

fn find_arguments(port: u16, directory: &Path, model: &str, keys: &[&str]) -> Vec<String> {
    let mut arguments = args(&[model, "-X", "-od", directory.to_str().unwrap(), "127.0.0.1", &port.to_string()]);
    arguments.extend(keys.iter().flat_map(|key| args(&["-k", key])));
    arguments
}

/// The responses that findscu wrote, as data sets.
fn found_in(directory: &Path) -> Vec<DataSet> {
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let found = files.iter().map(|file| {
        let data_set = data_set_of(&std::fs::read(file).unwrap());
        dicom_scp::dataset::read(&data_set, dicom_scp::Encoding::ExplicitLe, &Default::default()).unwrap().0
    });
    let found = found.collect();
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn findscu_at_each_level() {
    if !has_tool("findscu") {
        return;
    }
    let served = Served::default().await;
    for (study, series, instance) in [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1)] {
        served.keep(&ct(study, series, instance, 64), TransferSyntax::EXPLICIT_VR_LE);
    }
    let mut foreign = ct(3, 1, 1, 64);
    foreign.put_text(PATIENT_NAME, dicom_scp::VR::PN, "Müller^Jörg");
    served.keep(&foreign, TransferSyntax::EXPLICIT_VR_LE);
    let directory = tempfile::tempdir().unwrap();
    let study = "StudyInstanceUID=1.2.826.0.1.3680043.10.1449.1";
    let series = "SeriesInstanceUID=1.2.826.0.1.3680043.10.1449.1.1";
    let cases: [(&str, &[&str], usize); 7] = [
        ("-P", &["QueryRetrieveLevel=PATIENT", "PatientName=test*", "PatientID"], 2),
        ("-S", &["QueryRetrieveLevel=STUDY", "StudyInstanceUID", "PatientName"], 3),
        ("-S", &["QueryRetrieveLevel=STUDY", "StudyDate=20260102-20260103", "StudyInstanceUID"], 2),
        ("-P", &["QueryRetrieveLevel=STUDY", "PatientID=P1", "StudyInstanceUID"], 1),
        ("-S", &["QueryRetrieveLevel=SERIES", study, "SeriesInstanceUID", "Modality"], 2),
        ("-S", &["QueryRetrieveLevel=IMAGE", study, series, "SOPInstanceUID", "InstanceNumber"], 2),
        ("-S", &["QueryRetrieveLevel=IMAGE", study, series, "SOPInstanceUID", "InstanceNumber=2"], 1),
    ];
    for (model, keys, expected) in cases {
        let output = run("findscu", find_arguments(served.port(), directory.path(), model, keys)).await;
        assert!(output.status.success(), "{keys:?}: {}", text(&output));
        let found = found_in(directory.path());
        assert_eq!(found.len(), expected, "{keys:?}: {}", text(&output));
        for reply in found {
            assert!(reply.contains(SPECIFIC_CHARACTER_SET), "{reply:?}");
            assert_eq!(reply.text(dicom_scp::Tag(0x0008, 0x0054)).unwrap(), "ANY-SCP", "retrieve ae title");
            if reply.text(STUDY_UID).is_some_and(|uid| uid.ends_with(".3")) && reply.contains(PATIENT_NAME) {
                assert_eq!(reply.text(PATIENT_NAME).unwrap(), "Müller^Jörg");
                assert_eq!(reply.text(SPECIFIC_CHARACTER_SET).unwrap(), "ISO_IR 192");
            }
        }
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn findscu_with_a_bad_identifier_is_answered() {
    if !has_tool("findscu") {
        return;
    }
    let served = Served::default().await;
    let directory = tempfile::tempdir().unwrap();
    let mut arguments = find_arguments(served.port(), directory.path(), "-S", &["QueryRetrieveLevel=SERIES"]);
    arguments.insert(0, "-v".into());
    let output = run("findscu", arguments).await;
    assert!(text(&output).contains("DataSetDoesNotMatchSOPClass"), "{}", text(&output));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn findscu_cancels() {
    if !has_tool("findscu") {
        return;
    }
    let served = Served::default().await;
    served.site.endless_find.store(true, Ordering::SeqCst);
    let keys = ["-v", "-S", "--cancel", "3", "127.0.0.1", &served.port().to_string(), "-k", "QueryRetrieveLevel=STUDY"];
    let output = run("findscu", args(&keys)).await;
    let said = text(&output);
    assert!(said.contains("MatchingTerminatedDueToCancelRequest"), "{said}");
    served.site.find_dropped.notified().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn getscu_receives_every_object() {
    if !has_tool("getscu") {
        return;
    }
    let served = Served::default().await;
    let kept: Vec<DataSet> = (1..=7).map(|i| ct(1, 1, i, 50_000)).collect();
    kept.iter().for_each(|object| served.keep(object, TransferSyntax::EXPLICIT_VR_LE));
    served.keep(&ct(2, 1, 1, 100), TransferSyntax::EXPLICIT_VR_LE);
    let directory = tempfile::tempdir().unwrap();
    let study = format!("StudyInstanceUID={}", kept[0].text(STUDY_UID).unwrap());
    let port = served.port().to_string();
    let (od, level) = (directory.path().to_str().unwrap(), "QueryRetrieveLevel=STUDY");
    let output =
        run("getscu", args(&["-v", "-S", "+B", "-od", od, "127.0.0.1", &port, "-k", level, "-k", &study])).await;
    assert!(output.status.success(), "{}", text(&output));
    let received = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut received: Vec<Vec<u8>> = received.map(|file| data_set_of(&std::fs::read(file).unwrap())).collect();
    let mut expected: Vec<Vec<u8>> = kept.iter().map(|object| object.write(dicom_scp::Encoding::ExplicitLe)).collect();
    received.sort();
    expected.sort();
    assert_eq!(received.len(), expected.len(), "{}", text(&output));
    assert!(received == expected, "bit preserving");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn movescu_to_storescp() {
    if !has_tool("movescu") || !has_tool("storescp") {
        return;
    }
    let served = Served::default().await;
    let kept: Vec<DataSet> = (1..=5).map(|i| ct(1, 1, i, 50_000)).collect();
    kept.iter().for_each(|object| served.keep(object, TransferSyntax::EXPLICIT_VR_LE));
    let directory = tempfile::tempdir().unwrap();
    let (_storescp, port) = start_storescp(directory.path()).await;
    served.site.destinations.lock().unwrap().insert(ae("STORESCP"), ("127.0.0.1".into(), port));
    let study = format!("StudyInstanceUID={}", kept[0].text(STUDY_UID).unwrap());
    let own = served.port().to_string();
    let arguments = |destination: &str| {
        args(&["-v", "-S", "-aem", destination, "127.0.0.1", &own, "-k", "QueryRetrieveLevel=STUDY", "-k", &study])
    };
    let output = run("movescu", arguments("STORESCP")).await;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("Success"), "{}", text(&output));
    let received = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut received: Vec<Vec<u8>> = received.map(|file| data_set_of(&std::fs::read(file).unwrap())).collect();
    let mut expected: Vec<Vec<u8>> = kept.iter().map(|object| object.write(dicom_scp::Encoding::ExplicitLe)).collect();
    received.sort();
    expected.sort();
    assert!(received == expected, "{} objects arrived: {}", received.len(), text(&output));

    let output = run("movescu", arguments("NOWHERE")).await;
    let said = text(&output).to_lowercase();
    assert!(said.contains("a801") || said.contains("movedestinationunknown"), "{said}");
    served.stop().await;
}

/// storescp cannot tell which port it got, so one that was free a moment ago is given to it; a new one is tried if it was taken meanwhile.
async fn start_storescp(directory: &Path) -> (Background, u16) {
    for _ in 0..5 {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Background(
            Command::new("storescp")
                .args(["+B", "-od", directory.to_str().unwrap(), &port.to_string()])
                .env("TCP_NODELAY", "1")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        for _ in 0..200 {
            if child.0.try_wait().unwrap().is_some() {
                break;
            }
            let options = ScuOptions::new(ae("PROBE"), ae("STORESCP"));
            let proposals = [Proposal::plain(dicom_scp::sop_class::VERIFICATION)];
            if let Ok(mut association) = Association::connect("127.0.0.1", port, &options, &proposals).await {
                association.echo().await.unwrap();
                association.release().await.unwrap();
                return (child, port);
            }
            // Another process starts: there is nothing to wait on but its port.
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
    panic!("storescp does not start");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_stores_to_storescp() {
    if !has_tool("storescp") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (_storescp, port) = start_storescp(directory.path()).await;
    let options = ScuOptions::new(ae("US"), ae("STORESCP"));
    let proposals = [Proposal::new(CT, [TransferSyntax::EXPLICIT_VR_LE])];
    let mut association = Association::connect("127.0.0.1", port, &options, &proposals).await.unwrap();
    let mut expected = Vec::new();
    for i in 0..3 {
        let object = ct(1, 1, i, 100_000);
        let bytes = object.write(dicom_scp::Encoding::ExplicitLe);
        let request = store_request(&object, TransferSyntax::EXPLICIT_VR_LE, bytes.len());
        let outcome = association.store(&request, &mut bytes.as_slice()).await.unwrap();
        assert!(dicom_scp::scu::is_stored(&outcome), "{outcome:?}");
        expected.push(bytes);
    }
    association.release().await.unwrap();
    let received = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut received: Vec<Vec<u8>> = received.map(|file| data_set_of(&std::fs::read(file).unwrap())).collect();
    received.sort();
    expected.sort();
    assert!(received == expected);
}

fn store_request(object: &DataSet, transfer_syntax: TransferSyntax, bytes: usize) -> dicom_scp::scu::StoreRequest {
    dicom_scp::scu::StoreRequest {
        sop_class: object.uid(SOP_CLASS).unwrap(),
        sop_instance: object.uid(SOP_INSTANCE).unwrap_or(Uid::literal("1.2")),
        transfer_syntax,
        bytes: bytes as u64,
        priority: Default::default(),
        move_originator: None,
    }
}
