//! Our own client against our own acceptor: every operation, with the cases DCMTK's tools cannot be made to do.
#![allow(clippy::unwrap_used)]

mod support;

use dicom_scp::{
    DataSet, Failure, Reason, Status, StoreHead, TransferSyntax, VR,
    matching::Level,
    scu::{Proposal, Receiver, Retrieved},
    sop_class::{STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE},
};
use std::{
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
};
use support::*;

const EXPLICIT: TransferSyntax = TransferSyntax::EXPLICIT_VR_LE;
const IMPLICIT: TransferSyntax = TransferSyntax::IMPLICIT_VR_LE;

fn study(number: u32) -> DataSet {
    identifier(Level::Study, &[(STUDY_UID, VR::UI, &format!("1.2.826.0.1.3680043.10.1449.{number}"))])
}

/// Takes objects into a site of its own, refusing the instance with this number.
struct Into {
    site: Arc<Site>,
    refused: Option<&'static str>,
}

impl Receiver for Into {
    type Sink = MemorySink;

    async fn begin(&mut self, head: &StoreHead) -> Result<MemorySink, Failure> {
        if self.refused.is_some_and(|suffix| head.sop_instance.as_str().ends_with(suffix)) {
            return Err(Failure::new(Reason::DataSetMismatch, "refused"));
        }
        self.site.open_sinks.fetch_add(1, Ordering::SeqCst);
        Ok(MemorySink { site: self.site.clone(), head: head.clone(), bytes: Vec::new() })
    }
}

async fn get(served: &Served, proposals: &[Proposal], refused: Option<&'static str>) -> (Retrieved, usize) {
    let mut association = served.associate(proposals).await;
    let site = Arc::new(Site::default());
    let mut receiver = Into { site: site.clone(), refused };
    let retrieved = association.get(&STUDY_ROOT_GET, &study(1), &mut receiver).await.unwrap();
    association.release().await.unwrap();
    for kept in site.objects.lock().unwrap().values() {
        assert_eq!(kept.bytes, served.site.objects.lock().unwrap()[&kept.head.sop_instance].bytes);
    }
    let received = site.objects.lock().unwrap().len();
    (retrieved, received)
}

async fn with_objects(count: u32) -> Served {
    let served = Served::default().await;
    (1..=count).for_each(|i| served.keep(&ct(1, 1, i, 200_000), EXPLICIT));
    served
}

#[tokio::test(flavor = "multi_thread")]
async fn get_with_and_without_roles() {
    let served = with_objects(3).await;
    let with_roles = [Proposal::plain(STUDY_ROOT_GET), Proposal::receiving(CT, [EXPLICIT])];
    let (retrieved, received) = get(&served, &with_roles, None).await;
    assert_eq!((retrieved.outcome.status, retrieved.progress.completed, received), (Status::SUCCESS, 3, 3));
    let without = [Proposal::plain(STUDY_ROOT_GET), Proposal::new(CT, [EXPLICIT])];
    let (retrieved, received) = get(&served, &without, None).await;
    assert_eq!((retrieved.outcome.status, received), (Status::SUCCESS, 3), "lenient by default");
    served.stop().await;

    let options = dicom_scp::scp::ScpOptions { get_without_roles: false, ..Default::default() };
    let strict = Served::start(options).await;
    strict.keep(&ct(1, 1, 1, 64), EXPLICIT);
    let (retrieved, received) = get(&strict, &with_roles, None).await;
    assert_eq!((retrieved.outcome.status, received), (Status::SUCCESS, 1));
    let (retrieved, received) = get(&strict, &without, None).await;
    assert_eq!((retrieved.outcome.status, received), (Status::CANNOT_PERFORM_SUBOPERATIONS, 0));
    strict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_suboperation_does_not_stop_the_rest() {
    let served = with_objects(3).await;
    let proposals = [Proposal::plain(STUDY_ROOT_GET), Proposal::receiving(CT, [EXPLICIT])];
    let (retrieved, received) = get(&served, &proposals, Some(".2")).await;
    assert_eq!(retrieved.outcome.status, Status::SUBOPERATIONS_WITH_FAILURES);
    assert_eq!((retrieved.progress.completed, retrieved.progress.failed, received), (2, 1, 2));
    assert_eq!(retrieved.failed_instances, [ct(1, 1, 2, 0).uid(SOP_INSTANCE).unwrap()]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_without_a_context_fail_alone() {
    let served = with_objects(2).await;
    let mut mr = ct(1, 2, 9, 64);
    mr.put_text(SOP_CLASS, VR::UI, MR.as_str());
    served.keep(&mr, EXPLICIT);
    let jpeg = TransferSyntax::of(&uid("1.2.840.10008.1.2.4.70")).unwrap();
    served.keep(&ct(1, 2, 10, 64), jpeg);
    let proposals = [Proposal::plain(STUDY_ROOT_GET), Proposal::receiving(CT, [EXPLICIT])];
    let (retrieved, received) = get(&served, &proposals, None).await;
    assert_eq!(retrieved.outcome.status, Status::SUBOPERATIONS_WITH_FAILURES);
    assert_eq!((retrieved.progress.failed, received), (2, 2));
    served.stop().await;
}

/// A peer without the codec: what can be decoded here is, and nothing that the peer takes as it is stored.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_has_no_codec_for_is_made_into_what_it_takes() {
    let jpeg = TransferSyntax::of(&uid("1.2.840.10008.1.2.4.70")).unwrap();
    let served = Served::default().await;
    *served.site.others.lock().unwrap() = vec![EXPLICIT, IMPLICIT];
    (1..=3).for_each(|i| served.keep(&ct(1, 1, i, 64), jpeg));
    for (takes, comes) in
        [(vec![EXPLICIT], EXPLICIT), (vec![IMPLICIT], IMPLICIT), (vec![jpeg], jpeg), (vec![EXPLICIT, jpeg], jpeg)]
    {
        let mut association = served
            .associate(&takes.iter().fold(vec![Proposal::plain(STUDY_ROOT_GET)], |mut all, syntax| {
                all.push(Proposal::receiving(CT, [*syntax]));
                all
            }))
            .await;
        let site = Arc::new(Site::default());
        let mut receiver = Into { site: site.clone(), refused: None };
        let retrieved = association.get(&STUDY_ROOT_GET, &study(1), &mut receiver).await.unwrap();
        assert_eq!((retrieved.outcome.status, retrieved.progress.completed), (Status::SUCCESS, 3));
        for kept in site.objects.lock().unwrap().values() {
            let expected = ct(1, 1, 1, 64).write(comes.encoding()).len();
            assert_eq!((kept.head.transfer_syntax, kept.bytes.len()), (comes, expected));
        }
        association.release().await.unwrap();
    }
    served.stop().await;
}

/// Half an object cannot be taken back, so its association ends; the destination gets the others over another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_goes_on_behind_an_object_that_breaks_off() {
    let unheard_of = TransferSyntax::private(uid("1.2.3.4.5"), dicom_scp::Encoding::ExplicitLe, true, false);
    let (source, target) = (Served::default().await, Served::default().await);
    *source.site.others.lock().unwrap() = vec![IMPLICIT];
    (1..=4).for_each(|i| source.keep(&ct(1, 1, i, 64), unheard_of));
    let broken = ct(1, 1, 2, 64).uid(SOP_INSTANCE).unwrap();
    *source.site.breaks.lock().unwrap() = Some(broken);
    source.site.destinations.lock().unwrap().insert(ae("TARGET"), ("127.0.0.1".into(), target.port()));
    let mut association = source.associate(&[Proposal::plain(STUDY_ROOT_MOVE)]).await;
    let go_on = |_| ControlFlow::Continue(());
    let moved = association.r#move(&STUDY_ROOT_MOVE, &ae("TARGET"), &study(1), go_on).await.unwrap();
    assert_eq!(moved.outcome.status, Status::SUBOPERATIONS_WITH_FAILURES);
    assert_eq!((moved.progress.completed, moved.failed_instances), (3, vec![broken]));
    assert_eq!(target.count(), 3);
    assert!(target.site.objects.lock().unwrap().values().all(|kept| kept.head.transfer_syntax == IMPLICIT));
    association.release().await.unwrap();
    source.stop().await;
    target.stop().await;
}

/// What the default transfer syntax is for (PS3.5 10.1): the peer takes only the encoding that the objects are not stored in.
#[tokio::test(flavor = "multi_thread")]
async fn uncompressed_objects_are_transcoded_where_needed() {
    for (stored, taken) in [(EXPLICIT, IMPLICIT), (IMPLICIT, EXPLICIT)] {
        let served = Served::default().await;
        (1..=3).for_each(|i| served.keep(&ct(1, 1, i, 131_000 + i as usize * 32), stored));
        let mut association =
            served.associate(&[Proposal::plain(STUDY_ROOT_GET), Proposal::receiving(CT, [taken])]).await;
        let site = Arc::new(Site::default());
        let mut receiver = Into { site: site.clone(), refused: None };
        let retrieved = association.get(&STUDY_ROOT_GET, &study(1), &mut receiver).await.unwrap();
        assert_eq!((retrieved.outcome.status, retrieved.progress.completed), (Status::SUCCESS, 3));
        for kept in site.objects.lock().unwrap().values() {
            let original = served.site.objects.lock().unwrap()[&kept.head.sop_instance].header.clone();
            assert_eq!(kept.head.transfer_syntax, taken);
            assert!(kept.bytes == original.write(taken.encoding()));
        }
        association.release().await.unwrap();
        served.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_source_is_covered_by_pending_responses() {
    let options = dicom_scp::scp::ScpOptions { pending_interval_ms: 20, ..Default::default() };
    let (source, target) = (Served::start(options).await, Served::default().await);
    source.keep(&ct(1, 1, 1, 64), EXPLICIT);
    source.site.destinations.lock().unwrap().insert(ae("TARGET"), ("127.0.0.1".into(), target.port()));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    *source.site.open_gate.lock().unwrap() = Some(gate.clone());
    let mut association = source.associate(&[Proposal::plain(STUDY_ROOT_MOVE)]).await;
    let mut pending = 0;
    let still_there = |progress: dicom_scp::dimse::Progress| {
        assert_eq!((progress.remaining, progress.completed), (Some(1), 0));
        pending += 1;
        if pending == 3 {
            gate.add_permits(1);
        }
        ControlFlow::Continue(())
    };
    let moved = association.r#move(&STUDY_ROOT_MOVE, &ae("TARGET"), &study(1), still_there).await.unwrap();
    assert_eq!((moved.outcome.status, target.count()), (Status::SUCCESS, 1));
    assert!(pending >= 3);
    association.release().await.unwrap();
    source.stop().await;
    target.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn find_streams_and_cancels() {
    let served = with_objects(3).await;
    let mut association = served.associate(&[Proposal::plain(STUDY_ROOT_FIND)]).await;
    let mut found = Vec::new();
    let keys = identifier(Level::Study, &[(STUDY_UID, VR::UI, ""), (PATIENT_NAME, VR::PN, "test^*")]);
    let outcome = association
        .find(&STUDY_ROOT_FIND, &keys, |entity| {
            found.push(entity);
            ControlFlow::Continue(())
        })
        .await
        .unwrap();
    assert_eq!(outcome.status, Status::SUCCESS);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].text(PATIENT_NAME).unwrap(), "Test^Patient1");

    served.site.endless_find.store(true, Ordering::SeqCst);
    let mut count = 0;
    let outcome = association
        .find(&STUDY_ROOT_FIND, &keys, |_| {
            count += 1;
            if count == 10 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .await
        .unwrap();
    assert_eq!(outcome.status, Status::CANCEL);
    served.site.endless_find.store(false, Ordering::SeqCst);
    // The association is still good.
    let outcome = association.find(&STUDY_ROOT_FIND, &keys, |_| ControlFlow::Continue(())).await.unwrap();
    assert_eq!(outcome.status, Status::SUCCESS);
    association.release().await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn move_tells_its_originator_and_counts() {
    let (source, target) = (with_objects(3).await, Served::default().await);
    source.keep(&ct(1, 2, 10, 64), IMPLICIT);
    source.site.destinations.lock().unwrap().insert(ae("TARGET"), ("127.0.0.1".into(), target.port()));
    let mut association = source.associate(&[Proposal::plain(STUDY_ROOT_MOVE)]).await;
    let mut pending = Vec::new();
    let moved = association
        .r#move(&STUDY_ROOT_MOVE, &ae("TARGET"), &study(1), |progress| {
            pending.push((progress.remaining.unwrap(), progress.completed));
            ControlFlow::Continue(())
        })
        .await
        .unwrap();
    assert_eq!(moved.outcome.status, Status::SUCCESS);
    assert_eq!((moved.progress.completed, moved.progress.failed, moved.progress.remaining), (4, 0, None));
    assert_eq!(pending, [(3, 1), (2, 2), (1, 3)]);
    assert_eq!(target.count(), 4);
    for kept in target.site.objects.lock().unwrap().values() {
        let originator = kept.head.move_originator.clone().unwrap();
        assert_eq!((originator.ae_title, originator.message_id), (ae("TESTER"), 1));
        let original = source.site.objects.lock().unwrap()[&kept.head.sop_instance].clone();
        assert_eq!((&kept.bytes, kept.head.transfer_syntax), (&original.bytes, original.head.transfer_syntax));
    }
    association.release().await.unwrap();
    source.stop().await;
    target.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_that_cannot_work() {
    let source = with_objects(2).await;
    let mut association = source.associate(&[Proposal::plain(STUDY_ROOT_MOVE)]).await;
    let go_on = |_| ControlFlow::Continue(());
    let moved = association.r#move(&STUDY_ROOT_MOVE, &ae("NOWHERE"), &study(1), go_on).await.unwrap();
    assert_eq!(moved.outcome.status, Status::MOVE_DESTINATION_UNKNOWN);

    // A destination where nobody listens: the port was ours a moment ago.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    source.site.destinations.lock().unwrap().insert(ae("GONE"), ("127.0.0.1".into(), gone));
    let moved = association.r#move(&STUDY_ROOT_MOVE, &ae("GONE"), &study(1), go_on).await.unwrap();
    assert_eq!(moved.outcome.status, Status::CANNOT_PERFORM_SUBOPERATIONS);
    assert_eq!((moved.progress.failed, moved.failed_instances.len()), (2, 2));

    // Nothing matches.
    let target = Served::default().await;
    source.site.destinations.lock().unwrap().insert(ae("TARGET"), ("127.0.0.1".into(), target.port()));
    let moved = association.r#move(&STUDY_ROOT_MOVE, &ae("TARGET"), &study(9), go_on).await.unwrap();
    assert_eq!((moved.outcome.status, moved.progress.completed), (Status::SUCCESS, 0));

    // The destination refuses one.
    *target.site.begin_failure.lock().unwrap() = Some(Failure::new(Reason::DataSetMismatch, ""));
    let moved = association.r#move(&STUDY_ROOT_MOVE, &ae("TARGET"), &study(1), go_on).await.unwrap();
    assert_eq!(moved.outcome.status, Status::SUBOPERATIONS_WITH_FAILURES);
    assert_eq!((moved.progress.completed, moved.progress.failed, target.count()), (1, 1, 1));
    association.release().await.unwrap();
    source.stop().await;
    target.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn move_is_cancelled_between_objects() {
    let (source, target) = (with_objects(60).await, Served::default().await);
    source.site.destinations.lock().unwrap().insert(ae("TARGET"), ("127.0.0.1".into(), target.port()));
    let mut association = source.associate(&[Proposal::plain(STUDY_ROOT_MOVE)]).await;
    let stop = |_| ControlFlow::Break(());
    let moved = association.r#move(&STUDY_ROOT_MOVE, &ae("TARGET"), &study(1), stop).await.unwrap();
    assert_eq!(moved.outcome.status, Status::CANCEL);
    let (remaining, completed) = (moved.progress.remaining.unwrap(), moved.progress.completed);
    assert_eq!(remaining + completed, 60);
    assert!(remaining > 0 && usize::from(completed) == target.count());
    association.release().await.unwrap();
    source.stop().await;
    target.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn select_is_cancelled() {
    let served = Served::default().await;
    served.site.slow_select.store(true, Ordering::SeqCst);
    served.site.destinations.lock().unwrap().insert(ae("TARGET"), ("127.0.0.1".into(), 1));
    let association = served.associate(&[Proposal::plain(STUDY_ROOT_MOVE)]).await;
    // Leaving in the middle of an operation ends it and gives everything back.
    let site = served.site.clone();
    let moving = tokio::spawn(async move {
        let mut association = association;
        association.r#move(&STUDY_ROOT_MOVE, &ae("TARGET"), &study(1), |_| ControlFlow::Continue(())).await
    });
    site.select_started.notified().await;
    moving.abort();
    assert!(moving.await.unwrap_err().is_cancelled());
    served.stop().await;
}
