//! Reading and writing the PDUs of the association phase (PS3.8 9.3.2 to 9.3.4), before there is a [`crate::transport::Transport`].
//!
//! No time limits here: the caller knows which timer runs.

use crate::transport::Stream;
use bytes::{Buf, BytesMut};
use dicom_ul::pdu::{MAXIMUM_PDU_SIZE, Pdu, read_pdu, write_pdu};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The longest association PDU accepted, in bytes. 128 contexts with every transfer syntax stay far below.
const ASSOCIATION_PDU_BYTES_MAX: usize = 1 << 20;
const HEADER_BYTES: usize = 6;

/// Why no association PDU could be read.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection ended or broke.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// Something else than an association PDU, or an overlong one.
    #[error("not an association pdu (type {kind:02X}H, {bytes} bytes)")]
    Unexpected {
        /// The PDU type.
        kind: u8,
        /// Its length, in bytes.
        bytes: u32,
    },
    /// An association PDU that makes no sense.
    #[error("malformed association pdu")]
    Malformed,
}

/// One PDU of the association phase, undecoded.
pub(crate) struct RawPdu {
    pub(crate) kind: u8,
    /// The whole PDU with its header.
    bytes: BytesMut,
}

impl RawPdu {
    /// The PDU decoded by dicom-ul.
    pub(crate) fn decode(&self) -> Result<Pdu, HandshakeError> {
        match read_pdu(&self.bytes[..], MAXIMUM_PDU_SIZE, false) {
            Ok(Some(pdu)) => Ok(pdu),
            Ok(None) | Err(_) => Err(HandshakeError::Malformed),
        }
    }

    /// What follows the header.
    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
}

/// Reads one association PDU; what the peer sent beyond it stays in `buffer`.
pub(crate) async fn read(stream: &mut impl Stream, buffer: &mut BytesMut) -> Result<RawPdu, HandshakeError> {
    loop {
        if let Some(&[kind, _, a, b, c, d]) = buffer.first_chunk::<HEADER_BYTES>() {
            let length = u32::from_be_bytes([a, b, c, d]);
            if !(1..=7).contains(&kind) || kind == 4 || length as usize > ASSOCIATION_PDU_BYTES_MAX {
                return Err(HandshakeError::Unexpected { kind, bytes: length });
            }
            let whole = HEADER_BYTES + length as usize;
            if buffer.remaining() >= whole {
                return Ok(RawPdu { kind, bytes: buffer.split_to(whole) });
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Writes one PDU.
pub(crate) async fn write(stream: &mut impl Stream, pdu: &Pdu) -> Result<(), HandshakeError> {
    let mut bytes = Vec::new();
    write_pdu(&mut bytes, pdu).map_err(|_| HandshakeError::Malformed)?;
    stream.write_all(&bytes).await?;
    Ok(stream.flush().await?)
}
