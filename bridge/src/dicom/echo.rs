//! C-ECHO towards a peer, and in words why it does not come off (PS3.4 A, PS3.8 9.3.4).
//!
//! Must not know who asks, nor how what came of it is shown.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use dicom_scp::scu::{Association, Proposal, ScuError, ScuOptions};
use dicom_scp::status::{Status, StatusKind};
use dicom_scp::{AeTitle, Rejection, sop_class};

use super::encrypted;
use crate::config::Peer;
use crate::tls::TlsError;

/// Longest wait of somebody who looks at a page: for the connection, for the association and for the response, each. In milliseconds.
const SOON_MS: u64 = 5_000;

/// What a peer answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Echoed {
    /// The status of its response.
    pub status: Status,
    /// From before the connection until the association was released.
    pub after: Duration,
}

impl Echoed {
    /// Whether it verified the association.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status.kind() == StatusKind::Success
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum EchoError {
    /// The operator: the files for TLS towards the peer are not good.
    #[error("TLS towards the peer")]
    Tls(#[from] TlsError),
    /// The peer or the network.
    #[error(transparent)]
    Scu(#[from] ScuError),
}

/// Associates, verifies, and releases.
///
/// # Errors
/// [`ScuError`].
pub async fn echo(host: &str, port: u16, options: &ScuOptions) -> Result<Echoed, ScuError> {
    let begun = Instant::now();
    let proposals = [Proposal::plain(sop_class::VERIFICATION)];
    let mut association = Association::connect(host, port, options, &proposals).await?;
    let outcome = association.echo().await?;
    association.release().await?;
    Ok(Echoed { status: outcome.status, after: begun.elapsed() })
}

/// The same towards a peer of the configuration, for somebody who waits for it.
///
/// # Errors
/// [`EchoError`].
pub async fn echo_peer(ours: &AeTitle, peer: &Peer) -> Result<Echoed, EchoError> {
    let options = ScuOptions {
        connect_timeout_ms: SOON_MS,
        association_timeout_ms: SOON_MS,
        dimse_timeout_ms: SOON_MS,
        secure: encrypted::towards(peer)?,
        ..ScuOptions::new(ours.clone(), peer.ae_title.clone())
    };
    Ok(echo(&peer.host, peer.port, &options).await?)
}

/// Why there was no answer, and who has to do something, for people in hospitals.
#[must_use]
pub fn words(error: &EchoError) -> String {
    match error {
        EchoError::Scu(ScuError::Connect(io)) => unconnected(io),
        EchoError::Scu(ScuError::Timeout(what)) => format!("no answer in time, waiting for {what}"),
        EchoError::Scu(ScuError::Rejected(rejection)) => format!("association rejected: {}", rejected(*rejection)),
        EchoError::Scu(ScuError::NoContext(_)) => {
            "it associates, and does not take the Verification SOP class in any transfer syntax of ours".to_owned()
        }
        EchoError::Scu(ScuError::Terms) => "it accepts the association on terms that cannot be kept".to_owned(),
        other => crate::chain_of(other),
    }
}

fn unconnected(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused: nothing listens at this address and port".to_owned(),
        ErrorKind::TimedOut => "no answer in time, waiting for the connection".to_owned(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            format!("no way to this address: {error}")
        }
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => "it ended the connection".to_owned(),
        _ => format!("no connection: {error}"),
    }
}

/// The reason of A-ASSOCIATE-RJ, and what it means here.
fn rejected(rejection: Rejection) -> String {
    let advice = match rejection {
        Rejection::CallingAeTitle => ": it does not know our AE title",
        Rejection::CalledAeTitle => ": it is called something else",
        Rejection::LocalLimitExceeded | Rejection::TemporaryCongestion => ": it is busy, try again",
        Rejection::NoReason | Rejection::ApplicationContext | Rejection::ProtocolVersion | Rejection::Other => "",
    };
    format!("{rejection}{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_must_act_is_told_why() {
        let said = |error| words(&EchoError::Scu(error));
        assert_eq!(
            said(ScuError::Rejected(Rejection::CallingAeTitle)),
            "association rejected: calling ae title not recognized: it does not know our AE title"
        );
        assert_eq!(said(ScuError::Timeout("the association")), "no answer in time, waiting for the association");
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        assert!(said(ScuError::Connect(refused)).starts_with("connection refused"));
        let unknown = std::io::Error::other("failed to lookup address information");
        assert_eq!(said(ScuError::Connect(unknown)), "no connection: failed to lookup address information");
    }
}
