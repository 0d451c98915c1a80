//! Bad input: a clear status or abort, and service goes on for others.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::time::Duration;

use bridge::demo::phantom::Phantom;
use dicom_scp::dataset::{Encoding, ReadOptions, Tag, VR, read};
use dicom_scp::scu::{Association, Proposal, Receiver, ScuError, ScuOptions};
use dicom_scp::{AeTitle, Failure, Reason, Rejection, Status, StoreHead, StoreSink, Stored, Uid, sop_class};
use tests::Bridge;
use tests::dicom::{connect, slices, store};

/// A receiver that must not be asked.
struct Nothing;

impl StoreSink for Nothing {
    async fn write(&mut self, _data: &[u8]) -> Result<(), Failure> {
        Err(Failure::new(Reason::Internal, "nothing is taken here"))
    }
    async fn finish(self) -> Result<Stored, Failure> {
        Err(Failure::new(Reason::Internal, "nothing is taken here"))
    }
}

impl Receiver for Nothing {
    type Sink = Self;
    async fn begin(&mut self, _head: &StoreHead) -> Result<Self, Failure> {
        Err(Failure::new(Reason::Internal, "nothing is taken here"))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn edited(phantom: &Phantom, edit: impl FnOnce(&mut dicom_scp::DataSet)) -> Phantom {
    let mut set = read(&phantom.bytes, Encoding::ExplicitLe, &ReadOptions::default()).unwrap().0;
    edit(&mut set);
    Phantom { bytes: set.write(Encoding::ExplicitLe), ..phantom.clone() }
}

#[test]
fn every_bad_object_has_its_answer_and_the_association_goes_on() {
    let bridge = Bridge::start("[publish]\nenabled = false\n");
    let good = slices(1, 3, 32);
    let no_study = edited(&good[0], |set| drop(set.remove(Tag(0x0020, 0x000D))));
    let other_uid = edited(&good[0], |set| set.put_text(Tag(0x0008, 0x0018), VR::UI, "1.2.3.4"));
    let garbage = Phantom { bytes: vec![0xFF; 5000], ..good[0].clone() };
    let empty = Phantom { bytes: Vec::new(), ..good[0].clone() };
    let differing = edited(&good[1], |set| set.put_text(Tag(0x0010, 0x0010), VR::PN, "Somebody^Else"));
    let statuses = runtime().block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        let mut statuses = Vec::new();
        for phantom in [&no_study, &other_uid, &garbage, &empty, &good[0], &good[1], &differing, &good[1], &good[2]] {
            statuses.push(store(&mut open, phantom).await.expect("the association goes on"));
        }
        open.release().await.unwrap();
        statuses
    });
    let (ok, mismatch, not_understood) = (Status::SUCCESS, Status::DATA_SET_MISMATCH, Status::CANNOT_UNDERSTAND);
    assert_eq!(statuses[0], not_understood, "no StudyInstanceUID");
    assert_eq!(statuses[1], mismatch, "another SOP Instance UID than announced");
    assert!(statuses[2] == not_understood || statuses[2] == mismatch, "garbage: {:?}", statuses[2]);
    assert!(statuses[3] == not_understood || statuses[3] == mismatch, "empty: {:?}", statuses[3]);
    assert_eq!(statuses[4..6], [ok, ok]);
    assert_eq!(statuses[6], not_understood, "a duplicate with other content");
    assert_eq!(statuses[7..], [ok, ok], "the same object again, and another");
    assert_eq!(bridge.json(&["status"])["instances"], 3);
}

#[test]
fn noise_and_silence_on_the_port_do_not_stop_the_others() {
    let bridge = Bridge::start("[dicom]\nartim_timeout_ms = 60000\nassociations_max = 4\n[publish]\nenabled = false\n");
    let mut noisy: Vec<TcpStream> = Vec::new();
    let noises: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xFC],
        &[0x01, 0x00, 0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0x01],
        &[0x01, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00],
        &[0x04, 0x00, 0x00, 0x00, 0x00, 0x08, 0, 0, 0, 4, 1, 3, 0, 0],
        &[0xFF; 4096],
    ];
    for round in 0..20 {
        for noise in noises {
            let mut stream = TcpStream::connect(bridge.dicom).unwrap();
            stream.write_all(noise).unwrap();
            if round % 2 == 0 {
                noisy.push(stream);
            }
        }
    }
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(bridge.dicom).unwrap()).collect();
    let status = runtime().block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.expect("an association in spite of the noise");
        store(&mut open, &slices(1, 1, 64)[0]).await
    });
    assert_eq!(status, Some(Status::SUCCESS));
    // A length of 4 GiB is not waited for.
    let mut stream = TcpStream::connect(bridge.dicom).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&[0x01, 0x00, 0xFF, 0xFF, 0xFF, 0xFF]).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the connection is ended, not left open");
    drop((silent, noisy));
}

#[test]
fn an_object_cut_off_half_way_leaves_nothing_and_frees_its_place() {
    let bridge = Bridge::start("[dicom]\nassociations_max = 2\n[publish]\nenabled = false\n");
    let runtime = runtime();
    for _ in 0..8 {
        let mut open = None;
        tests::wait_for("the place of the one before", || {
            open = runtime.block_on(connect(bridge.dicom, "CT1"));
            open.is_some()
        });
        runtime.block_on(async {
            let mut open = open.unwrap();
            let phantom = &slices(1, 1, 512)[0];
            // The store is dropped in the middle, and the connection with it.
            let _ = tokio::time::timeout(Duration::from_micros(300), store(&mut open, phantom)).await;
        });
    }
    let phantom = &slices(2, 1, 64)[0];
    tests::wait_for("a place", || {
        runtime.block_on(async {
            match connect(bridge.dicom, "CT1").await {
                Some(mut open) => store(&mut open, phantom).await == Some(Status::SUCCESS),
                None => false,
            }
        })
    });
    let stored = bridge.json(&["status"])["instances"].as_u64().unwrap();
    bridge.wait_filed(stored);
}

#[test]
fn strangers_get_what_the_configuration_allows() {
    let peer = "[[peer]]\nae_title = \"VIEWER\"\nhost = \"127.0.0.1\"\nallow = [\"find\"]\n";
    let bridge = Bridge::start(&format!("{peer}[publish]\nenabled = false\n"));
    runtime().block_on(async {
        let address = bridge.dicom.ip().to_string();
        let port = bridge.dicom.port();
        let title = |text| AeTitle::new(text).unwrap();
        let find = [Proposal::plain(sop_class::STUDY_ROOT_FIND)];
        let mut identifier = dicom_scp::DataSet::default();
        identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
        identifier.put_text(Tag(0x0020, 0x000D), VR::UI, "");
        for (calling, expected) in [("STRANGER", Status::NOT_AUTHORIZED), ("VIEWER", Status::SUCCESS)] {
            let options = ScuOptions::new(title(calling), title("PACSBRIDGE"));
            let mut open = Association::connect(&address, port, &options, &find).await.unwrap();
            let outcome =
                open.find(&sop_class::STUDY_ROOT_FIND, &identifier, |_| ControlFlow::Continue(())).await.unwrap();
            assert_eq!(outcome.status, expected, "{calling}");
        }
        let mut viewer = connect(bridge.dicom, "VIEWER").await.unwrap();
        assert_eq!(store(&mut viewer, &slices(1, 1, 32)[0]).await, Some(Status::NOT_AUTHORIZED));

        // C-GET is not C-MOVE is not C-FIND: each has its own word in `allow`.
        for model in [sop_class::STUDY_ROOT_GET, sop_class::STUDY_ROOT_MOVE] {
            let options = ScuOptions::new(title("VIEWER"), title("PACSBRIDGE"));
            let mut open = Association::connect(&address, port, &options, &[Proposal::plain(model)]).await.unwrap();
            let mut identifier = identifier.clone();
            identifier.put_text(Tag(0x0020, 0x000D), VR::UI, "1.2.3");
            let status = if model == sop_class::STUDY_ROOT_GET {
                open.get(&model, &identifier, &mut Nothing).await.unwrap().outcome.status
            } else {
                let to = title("VIEWER");
                open.r#move(&model, &to, &identifier, |_| ControlFlow::Continue(())).await.unwrap().outcome.status
            };
            assert_eq!(status, Status::NOT_AUTHORIZED, "{model}");
        }

        let options = ScuOptions::new(title("VIEWER"), title("ANOTHER"));
        let refused = Association::connect(&address, port, &options, &find).await;
        assert!(matches!(refused, Err(ScuError::Rejected(Rejection::CalledAeTitle))), "{:?}", refused.err());
    });
}

#[test]
fn a_move_to_an_unknown_destination_says_what_to_add() {
    let bridge = Bridge::start("[dicom]\nunknown_peers = [\"move\", \"store\"]\n[publish]\nenabled = false\n");
    runtime().block_on(async {
        let options = ScuOptions::new(AeTitle::new("V").unwrap(), AeTitle::new("PACSBRIDGE").unwrap());
        let proposals = [Proposal::plain(sop_class::STUDY_ROOT_MOVE)];
        let host = bridge.dicom.ip().to_string();
        let mut open = Association::connect(&host, bridge.dicom.port(), &options, &proposals).await.unwrap();
        let mut identifier = dicom_scp::DataSet::default();
        identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
        identifier.put_uid(Tag(0x0020, 0x000D), &Uid::new("1.2.3").unwrap());
        let nowhere = AeTitle::new("NOWHERE").unwrap();
        let moved = open
            .r#move(&sop_class::STUDY_ROOT_MOVE, &nowhere, &identifier, |_| ControlFlow::Continue(()))
            .await
            .unwrap();
        assert_eq!(moved.outcome.status, Status::MOVE_DESTINATION_UNKNOWN);
        assert!(moved.outcome.comment.unwrap().contains("NOWHERE"));
    });
}
