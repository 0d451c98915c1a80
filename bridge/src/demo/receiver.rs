//! A viewer's storage SCP for the demonstration: takes what C-MOVE brings and keeps digests only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dicom_scp::dataset::DataSet;
use dicom_scp::matching::Query;
use dicom_scp::scp::{Destination, Selected, Services};
use dicom_scp::{
    AeTitle, AssociationRequest, Failure, ObjectStream, Operation, Reason, Rejection, StoreHead, StoreSink, Stored,
    TransferSyntax,
};
use futures::stream::{Empty, empty};
use sha2::{Digest, Sha256};

/// SHA-256 of the data set of every object received, by SOP Instance UID.
pub(super) type Received = Arc<Mutex<HashMap<String, [u8; 32]>>>;

/// Takes every object.
pub(super) struct Receiver(pub(super) Received);

pub(super) struct Sink {
    received: Received,
    uid: String,
    hash: Sha256,
}

impl StoreSink for Sink {
    async fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.hash.update(data);
        Ok(())
    }

    async fn finish(self) -> Result<Stored, Failure> {
        let digest = self.hash.finalize().into();
        self.received.lock().unwrap_or_else(PoisonError::into_inner).insert(self.uid, digest);
        Ok(Stored::default())
    }
}

fn only_storage() -> Failure {
    Failure::new(Reason::UnrecognizedOperation, "this receiver only takes objects")
}

impl Services for Receiver {
    type Session = ();
    type Sink = Sink;
    type Handle = ();
    type Matches = Empty<Result<DataSet, Failure>>;

    fn admit(&self, _request: &AssociationRequest) -> Result<(), Rejection> {
        Ok(())
    }

    async fn begin_store(&self, (): &(), head: &StoreHead) -> Result<Sink, Failure> {
        Ok(Sink { received: self.0.clone(), uid: head.sop_instance.to_string(), hash: Sha256::new() })
    }

    async fn find(&self, (): &(), _query: Query) -> Result<Self::Matches, Failure> {
        Ok(empty())
    }

    async fn select(&self, (): &(), _operation: Operation, _query: Query) -> Result<Vec<Selected<()>>, Failure> {
        Err(only_storage())
    }

    async fn open(&self, (): &(), (): &(), _wanted: &TransferSyntax) -> Result<ObjectStream, Failure> {
        Err(only_storage())
    }

    async fn destination(&self, (): &(), _title: &AeTitle) -> Result<Destination, Failure> {
        Err(only_storage())
    }
}
