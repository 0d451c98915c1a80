//! A C-MOVE destination that does nothing but count: the same for every system, inside the bench process, so that it bounds
//! none of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dicom_scp::dataset::DataSet;
use dicom_scp::matching::Query;
use dicom_scp::scp::{Destination, ScpOptions, Selected, Services, serve};
use dicom_scp::{
    AeTitle, AssociationRequest, Failure, ObjectStream, Operation, Reason, Rejection, StoreHead, StoreSink, Stored,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running sink; it ends when this is dropped.
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    bytes: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl Sink {
    pub(crate) fn start(runtime: &Runtime) -> Self {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (bytes, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let counter = Arc::new(Counter(bytes.clone()));
        runtime.spawn(serve(listener, ScpOptions::default(), counter, stop.clone()));
        Self { address, bytes, _stop: stop.drop_guard() }
    }

    /// Bytes received since the last question.
    pub(crate) fn take_bytes(&self) -> u64 {
        self.bytes.swap(0, Ordering::Relaxed)
    }
}

struct Counter(Arc<AtomicU64>);

struct Counted(Arc<AtomicU64>);

impl StoreSink for Counted {
    async fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.0.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn finish(self) -> Result<Stored, Failure> {
        Ok(Stored::default())
    }
}

fn only_storage() -> Failure {
    Failure::new(Reason::UnrecognizedOperation, "this receiver only takes objects")
}

impl Services for Counter {
    type Session = ();
    type Sink = Counted;
    type Handle = ();
    type Matches = futures::stream::Empty<Result<DataSet, Failure>>;

    fn admit(&self, _: &AssociationRequest) -> Result<(), Rejection> {
        Ok(())
    }

    async fn begin_store(&self, (): &(), _: &StoreHead) -> Result<Counted, Failure> {
        Ok(Counted(self.0.clone()))
    }

    async fn find(&self, (): &(), _: Query) -> Result<Self::Matches, Failure> {
        Err(only_storage())
    }

    async fn select(&self, (): &(), _: Operation, _: Query) -> Result<Vec<Selected<()>>, Failure> {
        Err(only_storage())
    }

    async fn open(&self, (): &(), (): &(), _wanted: &dicom_scp::TransferSyntax) -> Result<ObjectStream, Failure> {
        Err(only_storage())
    }

    async fn destination(&self, (): &(), _: &AeTitle) -> Result<Destination, Failure> {
        Err(only_storage())
    }
}
