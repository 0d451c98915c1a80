//! DICOM over TLS: the handshake on either side, and words for whoever must act when it fails (PS3.15 B.12).
//!
//! Must not know who may do what; what a caller's certificate is good for is asked elsewhere.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dicom_scp::Stream;
use dicom_scp::scp::{Upgrade, Upgraded};
use dicom_scp::scu::Secure;
use futures::future::BoxFuture;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error as Tls};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::server::TlsStream;

use crate::audit::{Audit, Event, Party};
use crate::config::Peer;
use crate::tls::{self, TlsError};

/// What a caller gets to hear why it is turned away, before the connection is closed on it.
const GOODBYE: Duration = Duration::from_secs(1);
/// The type of a record that carries a handshake (RFC 8446 5.1): with it every TLS connection begins.
const HANDSHAKE_RECORD: u8 = 0x16;
/// The type of A-ASSOCIATE-RQ (PS3.8 9.3.2): with it every plain DICOM connection begins.
const ASSOCIATE_RQ: u8 = 0x01;

/// Callers over TLS.
pub struct Encrypted(pub Arc<tls::Server>, pub Audit);

impl Upgrade for Encrypted {
    type Stream = TlsStream<TcpStream>;

    async fn upgrade(&self, tcp: TcpStream) -> io::Result<Upgraded<Self::Stream>> {
        let peer = tcp.peer_addr()?;
        let mut first = [0];
        let begun = tcp.peek(&mut first).await? == 1;
        if begun && first != [HANDSHAKE_RECORD] {
            return Err(turn_away(tcp, peer, first == [ASSOCIATE_RQ]).await);
        }
        match self.0.acceptor().accept(tcp).into_fallible().await {
            Ok(stream) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let peer_certificate = certificate.map(|certificate| certificate.to_vec());
                Ok(Upgraded { stream, is_encrypted: true, peer_certificate })
            }
            Err((error, mut tcp)) => {
                let advice = advice(&error, Side::Answering);
                tracing::info!(%peer, %error, advice, "a TLS handshake failed");
                let caller = Party::asking("unknown", Some(peer.ip()));
                self.1.record(Event::association_refused(&caller, &format!("TLS handshake: {error}")));
                // The alert that says so must arrive.
                let _ = tokio::time::timeout(GOODBYE, dicom_scp::scp::close(&mut tcp)).await;
                Err(error)
            }
        }
    }
}

async fn turn_away(mut tcp: TcpStream, peer: SocketAddr, is_dicom: bool) -> io::Error {
    if is_dicom {
        tracing::info!(%peer, "plain DICOM on the TLS port; let the caller use TLS, or the port for plain DICOM if there is one");
    } else {
        tracing::info!(%peer, "neither TLS nor DICOM on the TLS port");
    }
    let _ = tokio::time::timeout(GOODBYE, dicom_scp::scp::close(&mut tcp)).await;
    io::Error::new(io::ErrorKind::InvalidData, "not TLS")
}

/// TLS towards a peer.
pub struct Towards {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Towards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Towards").field("name", &self.name).finish_non_exhaustive()
    }
}

/// TLS towards a peer, if it is to be spoken. The files are read now, so that what changed in them holds from the next call on.
///
/// # Errors
/// [`TlsError`].
pub fn towards(peer: &Peer) -> Result<Option<Arc<dyn Secure>>, TlsError> {
    let Some(settings) = &peer.tls else { return Ok(None) };
    let (config, name) = tls::dicom_client(settings, &peer.tls_certificate_sha256)?;
    Ok(Some(Arc::new(Towards { config, name })))
}

impl Secure for Towards {
    fn secure(&self, tcp: TcpStream) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let connector = TlsConnector::from(self.config.clone());
            match connector.connect(self.name.clone(), tcp).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Stream>),
                Err(error) => {
                    let advice = advice(&error, Side::Calling);
                    Err(io::Error::new(error.kind(), format!("{error}; {advice}")))
                }
            }
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Answering,
    Calling,
}

/// What to do about a handshake that failed.
fn advice(error: &io::Error, side: Side) -> &'static str {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) else {
        return "the connection ended first; the other side may have refused our certificate, or speak no TLS";
    };
    match (error, side) {
        (Tls::NoCertificatesPresented, _) => {
            "let the caller present its certificate, as dicom.tls.client_certificates asks"
        }
        (Tls::InvalidCertificate(error), side) => certificate_advice(error, side),
        (Tls::PeerIncompatible(_), _) | (Tls::AlertReceived(AlertDescription::ProtocolVersion), _) => {
            "the other side must speak TLS 1.2 or 1.3 with a cipher suite of BCP 195"
        }
        (Tls::AlertReceived(AlertDescription::CertificateRequired), _) => {
            "the other side wants a certificate: set tls_client_certificate_file of the [[peer]], or [dicom.tls]"
        }
        (Tls::AlertReceived(_), _) => {
            "the other side refused; its log says why, often that it does not trust our certificate"
        }
        (Tls::InvalidMessage(_), _) => "the other side does not speak TLS there",
        _ => "see the other side's log too",
    }
}

fn certificate_advice(error: &CertificateError, side: Side) -> &'static str {
    use CertificateError as E;
    match (error, side) {
        (E::Expired | E::ExpiredContext { .. }, _) => "the other side needs a new certificate, or a clock is wrong",
        (E::NotValidYet | E::NotValidYetContext { .. }, _) => "a clock is wrong, or the certificate is used too early",
        (E::UnknownIssuer, Side::Answering) => {
            "if the caller is to be trusted, add its authority to dicom.tls.client_ca_files"
        }
        (E::UnknownIssuer, Side::Calling) => {
            "if the peer is to be trusted, add its authority to tls_ca_files of the [[peer]]"
        }
        (E::NotValidForName | E::NotValidForNameContext { .. }, _) => {
            "set tls_server_name to a name in the peer's certificate"
        }
        (E::ApplicationVerificationFailure, _) => {
            "the peer shows a certificate that tls_certificate_sha256 does not list; if that is right, add its SHA-256"
        }
        _ => "the other side's certificate is not fit for this",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_must_act_is_told() {
        let told = |error: Tls, side| advice(&io::Error::new(io::ErrorKind::InvalidData, error), side);
        let unknown = || Tls::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(told(unknown(), Side::Answering).contains("client_ca_files"));
        assert!(told(unknown(), Side::Calling).contains("tls_ca_files of the [[peer]]"));
        assert!(told(Tls::NoCertificatesPresented, Side::Answering).contains("present its certificate"));
        let alert = Tls::AlertReceived(AlertDescription::CertificateRequired);
        assert!(told(alert, Side::Calling).contains("tls_client_certificate_file"));
        assert!(advice(&io::ErrorKind::UnexpectedEof.into(), Side::Calling).contains("ended first"));
    }
}
