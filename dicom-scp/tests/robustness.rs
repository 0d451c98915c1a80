//! Peers that break the protocol, vanish or never speak: what they are told, and that nothing of them stays behind.
#![allow(clippy::unwrap_used)]

mod support;

use dicom_scp::{
    DataSet, Failure, Reason, Rejection, Status, TransferSyntax,
    dimse::{Command, EchoRq, Response, StoreRq, UnknownRq},
    matching::Level,
    scp::ScpOptions,
    scu::{Association, Proposal, ScuError, ScuOptions, StoreRequest},
    sop_class::{STUDY_ROOT_FIND, STUDY_ROOT_GET, VERIFICATION},
};
use dicom_ul::pdu::{
    AssociationRJResult, AssociationRQ, PDataValue, PDataValueType, Pdu, PresentationContextProposed, UserVariableItem,
    read_pdu, write_pdu,
};
use std::{sync::atomic::Ordering, time::Duration};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A peer that speaks in raw PDUs.
struct Raw {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    async fn connect(served: &Served) -> Raw {
        let stream = TcpStream::connect(served.address).await.unwrap();
        Raw { stream, received: Vec::new() }
    }

    /// Tries again while the permit of the peer before is on its way back.
    async fn associate(served: &Served) -> Raw {
        for _ in 0..10_000 {
            let mut raw = Raw::connect(served).await;
            raw.send(&Pdu::AssociationRQ(request("SITE", 16_384))).await;
            match raw.receive().await {
                Some(Pdu::AssociationAC(_)) => return raw,
                Some(Pdu::AssociationRJ(rejection)) => assert_eq!(rejection.result, AssociationRJResult::Transient),
                other => panic!("{other:?}"),
            }
        }
        panic!("a permit was stranded");
    }

    async fn send(&mut self, pdu: &Pdu) {
        let mut bytes = Vec::new();
        write_pdu(&mut bytes, pdu).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn send_value(&mut self, context_id: u8, value_type: PDataValueType, is_last: bool, data: &[u8]) {
        let value = PDataValue { presentation_context_id: context_id, value_type, is_last, data: data.to_vec() };
        self.send(&Pdu::PData { data: vec![value] }).await;
    }

    /// The next PDU, or `None` when the connection ends.
    async fn receive(&mut self) -> Option<Pdu> {
        loop {
            if let Some(pdu) = read_pdu(&self.received[..], 1 << 20, true).unwrap() {
                let length = u32::from_be_bytes(self.received[2..6].try_into().unwrap()) as usize;
                self.received.drain(..length + 6);
                return Some(pdu);
            }
            let read = self.stream.read_buf(&mut self.received);
            match tokio::time::timeout(Duration::from_secs(10), read).await.unwrap() {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn response(&mut self) -> Response {
        match self.receive().await {
            Some(Pdu::PData { data }) => match Command::parse(&data[0].data).unwrap().command {
                Command::Response(response) => response,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    async fn is_aborted(&mut self) -> bool {
        matches!(self.receive().await, Some(Pdu::AbortRQ { .. })) && self.receive().await.is_none()
    }
}

/// Verification on context 1, CT storage on 3, study root find on 5.
fn request(called: &str, pdu_bytes_max: u32) -> AssociationRQ {
    let context = |id, class: &dicom_scp::Uid| PresentationContextProposed {
        id,
        abstract_syntax: class.to_string(),
        transfer_syntaxes: vec!["1.2.840.10008.1.2".into()],
    };
    AssociationRQ {
        protocol_version: 1,
        calling_ae_title: "RAW".into(),
        called_ae_title: called.into(),
        application_context_name: "1.2.840.10008.3.1.1.1".into(),
        presentation_contexts: vec![context(1, &VERIFICATION), context(3, &CT), context(5, &STUDY_ROOT_FIND)],
        user_variables: vec![UserVariableItem::MaxLength(pdu_bytes_max)],
    }
}

fn echo_rq(message_id: u16) -> Vec<u8> {
    Command::EchoRq(EchoRq { message_id, sop_class: VERIFICATION }).encode(false)
}

fn store_rq(message_id: u16, object: &DataSet) -> Vec<u8> {
    Command::StoreRq(StoreRq {
        message_id,
        sop_class: CT,
        sop_instance: object.uid(SOP_INSTANCE).unwrap(),
        priority: Default::default(),
        move_originator: None,
    })
    .encode(true)
}

async fn echo(served: &Served) {
    let mut association = served.associate(&[Proposal::plain(VERIFICATION)]).await;
    assert_eq!(association.echo().await.unwrap().status, Status::SUCCESS);
    association.release().await.unwrap();
}

/// One association at a time, so that a permit that is not given back is noticed.
async fn single() -> Served {
    Served::start(ScpOptions { associations_max: 1, ..ScpOptions::default() }).await
}

/// Associates as soon as the permit of the peer before is back.
async fn echo_soon(served: &Served) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let options = ScuOptions::new(ae("TESTER"), ae("SITE"));
        match Association::connect("127.0.0.1", served.port(), &options, &[Proposal::plain(VERIFICATION)]).await {
            Ok(mut association) => {
                assert_eq!(association.echo().await.unwrap().status, Status::SUCCESS);
                return association.release().await.unwrap();
            }
            Err(ScuError::Rejected(Rejection::LocalLimitExceeded)) if tokio::time::Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn message_ids_are_echoed() {
    let served = Served::default().await;
    let mut raw = Raw::associate(&served).await;
    for message_id in [7, 1, 65_535] {
        raw.send_value(1, PDataValueType::Command, true, &echo_rq(message_id)).await;
        assert_eq!(raw.response().await.responding_to, message_id);
    }
    raw.send(&Pdu::ReleaseRQ).await;
    assert_eq!(raw.receive().await, Some(Pdu::ReleaseRP));
    drop(raw);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_protocols_are_aborted_and_give_back_their_permit() {
    let served = single().await;
    let garbage_pdus: [&[u8]; 5] = [
        b"\x04\0\xff\xff\xff\xff",                // a P-DATA-TF of 4 GiB
        b"\x04\0\0\0\0\x06\0\0\0\x40\x01\x03",    // a value longer than its PDU
        b"\x04\0\0\0\0\x09\0\0\0\x05\x01\x03abc", // an undecodable command set
        b"\x09\0\0\0\0\0",                        // no PDU type
        b"\x01\0\0\0\0\x04\0\0\0\0",              // a second association request
    ];
    for garbage in garbage_pdus {
        let mut raw = Raw::associate(&served).await;
        raw.stream.write_all(garbage).await.unwrap();
        assert!(raw.is_aborted().await, "{garbage:02x?}");
        echo_soon(&served).await;
    }
    // Data on a context that was not accepted, data without a command, a response to nothing.
    for (context, kind) in [(9, PDataValueType::Command), (3, PDataValueType::Data)] {
        let mut raw = Raw::associate(&served).await;
        raw.send_value(context, kind, true, &echo_rq(1)).await;
        assert!(raw.is_aborted().await);
        echo_soon(&served).await;
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_association_request_is_aborted() {
    let served = single().await;
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        b"\x01\0\xff\xff\xff\xff",
        b"\x01\0\0\0\0\x02ab",
        b"\x05\0\0\0\0\x04\0\0\0\0",
    ] {
        let mut raw = Raw::connect(&served).await;
        raw.stream.write_all(garbage).await.unwrap();
        assert!(matches!(raw.receive().await, Some(Pdu::AbortRQ { .. })), "{garbage:02x?}");
        drop(raw);
        echo_soon(&served).await;
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_vanish_leave_nothing_behind() {
    let served = single().await;
    let object = ct(1, 1, 1, 1000);
    for abort in [true, false] {
        let mut raw = Raw::associate(&served).await;
        raw.send_value(3, PDataValueType::Command, true, &store_rq(1, &object)).await;
        raw.send_value(3, PDataValueType::Data, false, &object.write(dicom_scp::Encoding::ImplicitLe)[..500]).await;
        if abort {
            raw.send(&Pdu::AbortRQ { source: dicom_ul::pdu::AbortRQSource::ServiceUser }).await;
        } else {
            // Half a PDU, then gone.
            raw.stream.write_all(b"\x04\0\0\0\x10\0abc").await.unwrap();
        }
        drop(raw);
        echo_soon(&served).await;
        assert_eq!(served.count(), 0, "half an object is no object");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_associations_are_rejected_as_transient() {
    let served = single().await;
    let first = served.associate(&[Proposal::plain(VERIFICATION)]).await;
    let options = ScuOptions::new(ae("TESTER"), ae("SITE"));
    let second = Association::connect("127.0.0.1", served.port(), &options, &[Proposal::plain(VERIFICATION)]).await;
    assert!(matches!(second, Err(ScuError::Rejected(Rejection::LocalLimitExceeded))));
    first.release().await.unwrap();
    echo_soon(&served).await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_do_not_stop_service() {
    let options = ScpOptions { associations_max: 2, artim_timeout_ms: 3_600_000, ..ScpOptions::default() };
    let served = Served::start(options).await;
    let mut silent = Vec::new();
    // Far more than there are places for handshakes, none of which ends by itself within the hour.
    for _ in 0..1_000 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    echo(&served).await;
    drop(silent);
    echo(&served).await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_peers_are_disconnected_by_artim() {
    let options = ScpOptions { artim_timeout_ms: 50, handshakes_max: 1, ..ScpOptions::default() };
    let served = Served::start(options).await;
    let mut silent = Raw::connect(&served).await;
    silent.stream.write_all(b"\x01\0").await.unwrap();
    assert!(silent.receive().await.is_none());
    // With a single place for handshakes this also shows that it was given back.
    echo(&served).await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_and_stalled_peers_are_aborted() {
    let options = ScpOptions { idle_timeout_ms: 50, dimse_timeout_ms: 50, ..ScpOptions::default() };
    let served = Served::start(options).await;
    let mut idle = Raw::associate(&served).await;
    assert!(idle.is_aborted().await);
    let mut stalled = Raw::associate(&served).await;
    stalled.send_value(3, PDataValueType::Command, true, &store_rq(1, &ct(1, 1, 1, 64))).await;
    assert!(stalled.is_aborted().await);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn called_ae_titles_are_checked() {
    let served = Served::start(ScpOptions { called_ae_titles: vec![ae("SITE")], ..ScpOptions::default() }).await;
    let options = ScuOptions::new(ae("TESTER"), ae("OTHER"));
    let wrong = Association::connect("127.0.0.1", served.port(), &options, &[Proposal::plain(VERIFICATION)]).await;
    assert!(matches!(wrong, Err(ScuError::Rejected(Rejection::CalledAeTitle))));
    echo(&served).await;
    *served.site.refuse.lock().unwrap() = Some(Rejection::CallingAeTitle);
    let options = ScuOptions::new(ae("TESTER"), ae("SITE"));
    let refused = Association::connect("127.0.0.1", served.port(), &options, &[Proposal::plain(VERIFICATION)]).await;
    assert!(matches!(refused, Err(ScuError::Rejected(Rejection::CallingAeTitle))));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pathological_pdu_sizes() {
    let served = Served::default().await;
    for tiny in [1, 5, 6, 7, 1023] {
        let mut raw = Raw::connect(&served).await;
        raw.send(&Pdu::AssociationRQ(request("SITE", tiny))).await;
        assert!(matches!(raw.receive().await, Some(Pdu::AssociationRJ(_))), "{tiny}");
    }
    for fine in [0, 1024, u32::MAX] {
        let mut raw = Raw::connect(&served).await;
        raw.send(&Pdu::AssociationRQ(request("SITE", fine))).await;
        assert!(matches!(raw.receive().await, Some(Pdu::AssociationAC(_))), "{fine}");
        raw.send_value(1, PDataValueType::Command, true, &echo_rq(1)).await;
        assert_eq!(raw.response().await.outcome.status, Status::SUCCESS);
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_impossible_requests_are_answered() {
    let served = Served::default().await;
    let mut raw = Raw::associate(&served).await;
    // N-CREATE-RQ with a data set.
    let unknown =
        Command::Unknown(UnknownRq { field: 0x0140, message_id: 11, sop_class: Some(CT), sop_instance: None });
    raw.send_value(3, PDataValueType::Command, true, &unknown.encode(true)).await;
    raw.send_value(3, PDataValueType::Data, true, b"whatever").await;
    let Some(Pdu::PData { data }) = raw.receive().await else { panic!("an answer") };
    // (0000,0100) Command Field = 8140H, (0000,0120) = 11, (0000,0900) Status = 0211H.
    let (answer, _) =
        dicom_scp::dataset::read(&data[0].data, dicom_scp::Encoding::ImplicitLe, &Default::default()).unwrap();
    let number = |element| answer.int(dicom_scp::Tag(0x0000, element)).unwrap();
    assert_eq!((number(0x0100), number(0x0120), number(0x0900)), (0x8140, 11, 0x0211));

    // An echo on a storage context, a store on the verification context, an undecodable identifier.
    raw.send_value(3, PDataValueType::Command, true, &echo_rq(12)).await;
    assert_eq!(raw.response().await.outcome.status, Status::CLASS_NOT_SUPPORTED);
    raw.send_value(1, PDataValueType::Command, true, &store_rq(13, &ct(1, 1, 1, 0))).await;
    raw.send_value(1, PDataValueType::Data, true, b"").await;
    assert_eq!(raw.response().await.outcome.status, Status::CLASS_NOT_SUPPORTED);
    let find = Command::FindRq(dicom_scp::dimse::QueryRq {
        message_id: 14,
        sop_class: STUDY_ROOT_FIND,
        priority: Default::default(),
    });
    raw.send_value(5, PDataValueType::Command, true, &find.encode(true)).await;
    raw.send_value(5, PDataValueType::Data, true, b"\x08\0\x52\0\xff\0\0\0STUDY").await;
    let response = raw.response().await;
    assert_eq!((response.responding_to, response.outcome.status), (14, Status::CANNOT_UNDERSTAND));
    // The association is still good.
    raw.send_value(1, PDataValueType::Command, true, &echo_rq(15)).await;
    assert_eq!(raw.response().await.outcome.status, Status::SUCCESS);
    drop(raw);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_stored_is_read_to_its_end_and_answered() {
    let served = Served::default().await;
    let proposals = [Proposal::new(CT, [TransferSyntax::EXPLICIT_VR_LE])];
    let mut association = served.associate(&proposals).await;
    let object = ct(1, 1, 1, 300_000);
    let bytes = object.write(dicom_scp::Encoding::ExplicitLe);
    let request = StoreRequest {
        sop_class: CT,
        sop_instance: object.uid(SOP_INSTANCE).unwrap(),
        transfer_syntax: TransferSyntax::EXPLICIT_VR_LE,
        bytes: bytes.len() as u64,
        priority: Default::default(),
        move_originator: None,
    };
    *served.site.disk_bytes.lock().unwrap() = Some(150_000);
    let outcome = association.store(&request, &mut bytes.as_slice()).await.unwrap();
    assert_eq!((outcome.status, outcome.comment.as_deref()), (Status::OUT_OF_RESOURCES, Some("disk full")));
    *served.site.disk_bytes.lock().unwrap() = None;

    *served.site.begin_failure.lock().unwrap() = Some(Failure::new(Reason::NotAuthorized, "no"));
    let outcome = association.store(&request, &mut bytes.as_slice()).await.unwrap();
    assert_eq!(outcome.status, Status::NOT_AUTHORIZED);

    // The command names another instance than the data set.
    let other = StoreRequest { sop_instance: uid("1.2.3"), ..request.clone() };
    let outcome = association.store(&other, &mut bytes.as_slice()).await.unwrap();
    assert_eq!((outcome.status, outcome.offending), (Status::DATA_SET_MISMATCH, vec![SOP_INSTANCE]));

    // Not a data set at all.
    let nonsense = StoreRequest { bytes: 9, ..request.clone() };
    let outcome = association.store(&nonsense, &mut b"\xfe\xff\x00\xe0\0\0\0\0x".as_slice()).await.unwrap();
    assert_eq!(outcome.status, Status::CANNOT_UNDERSTAND);

    let outcome = association.store(&request, &mut bytes.as_slice()).await.unwrap();
    assert_eq!(outcome.status, Status::SUCCESS);
    assert_eq!(served.count(), 1);
    association.release().await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_source_never_becomes_half_an_object() {
    let served = single().await;
    let mut association = served.associate(&[Proposal::new(CT, [TransferSyntax::EXPLICIT_VR_LE])]).await;
    let object = ct(1, 1, 1, 300_000);
    let bytes = object.write(dicom_scp::Encoding::ExplicitLe);
    let request = StoreRequest {
        sop_class: CT,
        sop_instance: object.uid(SOP_INSTANCE).unwrap(),
        transfer_syntax: TransferSyntax::EXPLICIT_VR_LE,
        bytes: bytes.len() as u64,
        priority: Default::default(),
        move_originator: None,
    };
    let mut short = &bytes[..bytes.len() - 1];
    assert!(matches!(association.store(&request, &mut short).await, Err(ScuError::Transport(_))));
    drop(association);
    echo_soon(&served).await;
    assert_eq!(served.count(), 0);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_the_operation_in_hand() {
    let served = Served::default().await;
    let object = ct(1, 1, 1, 1000);
    let bytes = object.write(dicom_scp::Encoding::ImplicitLe);
    let mut raw = Raw::associate(&served).await;
    let mut idle = Raw::associate(&served).await;
    raw.send_value(3, PDataValueType::Command, true, &store_rq(5, &object)).await;
    raw.send_value(3, PDataValueType::Data, false, &bytes[..100]).await;
    while served.site.open_sinks.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    served.shutdown.cancel();
    assert!(idle.is_aborted().await, "nothing in hand there");
    raw.send_value(3, PDataValueType::Data, true, &bytes[100..]).await;
    assert_eq!(raw.response().await.outcome.status, Status::SUCCESS);
    assert!(raw.is_aborted().await);
    assert_eq!(served.count(), 1);
    served.stop().await;
}

/// PS3.8 9.3.1: items of unknown type are ignored.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_association_items_are_ignored() {
    let served = Served::default().await;
    let mut bytes = Vec::new();
    write_pdu(&mut bytes, &Pdu::AssociationRQ(request("SITE", 0))).unwrap();
    bytes.extend(b"\x77\0\0\x03abc");
    let length = (bytes.len() - 6) as u32;
    bytes[2..6].copy_from_slice(&length.to_be_bytes());
    let mut raw = Raw::connect(&served).await;
    raw.stream.write_all(&bytes).await.unwrap();
    assert!(matches!(raw.receive().await, Some(Pdu::AssociationAC(_))));
    drop(raw);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn get_is_cancelled_while_an_object_is_under_way() {
    let served = Served::default().await;
    (1..=3).for_each(|i| served.keep(&ct(1, 1, i, 100), TransferSyntax::IMPLICIT_VR_LE));
    let mut rq = request("SITE", 0);
    rq.presentation_contexts[2].abstract_syntax = STUDY_ROOT_GET.to_string();
    let mut raw = Raw::connect(&served).await;
    raw.send(&Pdu::AssociationRQ(rq)).await;
    assert!(matches!(raw.receive().await, Some(Pdu::AssociationAC(_))));
    let get = Command::GetRq(dicom_scp::dimse::QueryRq {
        message_id: 21,
        sop_class: STUDY_ROOT_GET,
        priority: Default::default(),
    });
    let keys = identifier(Level::Study, &[(STUDY_UID, dicom_scp::VR::UI, &ct(1, 1, 1, 0).text(STUDY_UID).unwrap())]);
    raw.send_value(5, PDataValueType::Command, true, &get.encode(true)).await;
    raw.send_value(5, PDataValueType::Data, true, &keys.write(dicom_scp::Encoding::ImplicitLe)).await;
    let Some(Pdu::PData { data }) = raw.receive().await else { panic!("a c-store") };
    let Command::StoreRq(store) = Command::parse(&data[0].data).unwrap().command else { panic!("a c-store") };
    // The object's data set, then our cancel crosses it, then the response to the store.
    assert!(matches!(raw.receive().await, Some(Pdu::PData { .. })));
    let cancel = Command::CancelRq { responding_to: 21 };
    raw.send_value(5, PDataValueType::Command, true, &cancel.encode(false)).await;
    let stored = Command::Response(Response {
        operation: dicom_scp::Operation::Store,
        responding_to: store.message_id,
        sop_class: Some(store.sop_class),
        sop_instance: Some(store.sop_instance),
        outcome: Status::SUCCESS.into(),
        progress: None,
    });
    raw.send_value(3, PDataValueType::Command, true, &stored.encode(false)).await;
    let response = raw.response().await;
    assert_eq!((response.responding_to, response.outcome.status), (21, Status::CANCEL));
    let progress = response.progress.unwrap();
    assert_eq!((progress.remaining, progress.completed, progress.failed), (Some(2), 1, 0));
    drop(raw);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlong_identifier_is_read_to_its_end_and_answered() {
    let served = Served::start(ScpOptions { identifier_bytes_max: 1000, ..ScpOptions::default() }).await;
    let mut association = served.associate(&[Proposal::plain(STUDY_ROOT_FIND)]).await;
    let find = |length: usize| identifier(Level::Study, &[(PATIENT_NAME, dicom_scp::VR::PN, &"x".repeat(length))]);
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let outcome = association.find(&STUDY_ROOT_FIND, &find(300_000), go_on).await.unwrap();
    assert_eq!(outcome.status, Status::OUT_OF_RESOURCES);
    let outcome = association.find(&STUDY_ROOT_FIND, &find(100), go_on).await.unwrap();
    assert_eq!(outcome.status, Status::SUCCESS);
    association.release().await.unwrap();
    served.stop().await;
}

/// Stands for TLS: takes a magic word off the front of the connection and vouches for the peer.
struct MagicWord;

impl dicom_scp::scp::Upgrade for MagicWord {
    type Stream = TcpStream;

    async fn upgrade(&self, mut tcp: TcpStream) -> std::io::Result<dicom_scp::scp::Upgraded<TcpStream>> {
        let mut word = [0; 5];
        tcp.read_exact(&mut word).await?;
        if &word != b"magic" {
            return Err(std::io::ErrorKind::PermissionDenied.into());
        }
        Ok(dicom_scp::scp::Upgraded {
            stream: tcp,
            is_encrypted: true,
            peer_certificate: Some(b"certificate".to_vec()),
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_can_be_upgraded() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (site, shutdown) = (std::sync::Arc::new(Site::default()), tokio_util::sync::CancellationToken::new());
    let front = std::sync::Arc::new(Front(site.clone()));
    let options = ScpOptions::default();
    let room = dicom_scp::scp::Room::new(&options);
    let served = dicom_scp::scp::serve_upgraded(listener, options, room, front, shutdown.clone(), MagicWord);
    let task = tokio::spawn(served);
    for (word, accepted) in [(b"magic", true), (b"wrong", false)] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(word).await.unwrap();
        let options = ScuOptions::new(ae("TESTER"), ae("SITE"));
        let associated = Association::establish(stream, address, &options, &[Proposal::plain(VERIFICATION)]).await;
        assert_eq!(associated.is_ok(), accepted);
    }
    let requests = site.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].is_encrypted);
    assert_eq!(requests[0].peer_certificate.as_deref(), Some(b"certificate".as_slice()));
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_gives_up_at_the_deadline() {
    let served = Served::start(ScpOptions { drain_timeout_ms: 50, ..ScpOptions::default() }).await;
    served.site.slow_select.store(true, Ordering::SeqCst);
    let mut association = served.associate(&[Proposal::plain(STUDY_ROOT_GET)]).await;
    let keys = identifier(Level::Study, &[(STUDY_UID, dicom_scp::VR::UI, "1.2")]);
    struct Nothing;
    impl dicom_scp::scu::Receiver for Nothing {
        type Sink = MemorySink;
        async fn begin(&mut self, _: &dicom_scp::StoreHead) -> Result<MemorySink, Failure> {
            Err(Failure::new(Reason::Internal, "nothing is expected"))
        }
    }
    let get = tokio::spawn(async move { association.get(&STUDY_ROOT_GET, &keys, &mut Nothing).await });
    served.site.select_started.notified().await;
    served.shutdown.cancel();
    let drained = tokio::time::timeout(Duration::from_secs(10), served.task).await.unwrap().unwrap();
    assert_eq!(drained.abandoned, 1);
    assert!(get.await.unwrap().is_err());
}
