//! The sealed container: one zstd frame inside one OpenPGP SEIPDv2 packet (RFC 9580 5.13.2), streamed both ways.
//!
//! Sealing is deterministic: the same plaintext, key, image id and [`SealOptions`] give the same bytes on every run of
//! the same build, so no ciphertext need survive a crash. Memory is bounded by a few megabytes whatever the object's
//! size.
//!
//! # Why one salt never covers two plaintexts
//! SEIPDv2 derives the message key and nonces from the session key and a 32-byte salt. If two different plaintexts were
//! ever encrypted under one (session key, salt), parts of both would leak. Here the salt is
//! `HMAC-SHA256(session key, label ‖ image id ‖ SHA-256 and length of the plain bytes ‖ everything else that shapes
//! the encrypted bytes: zstd's version, the level in effect, the padding)`. What is encrypted is a function of exactly
//! these inputs, so an equal salt means equal plaintext, short of a collision in SHA-256. The digest is not an argument
//! that a caller could get wrong: [`seal`] reads the source twice, first to digest it, then to encrypt it, and refuses
//! if the second reading differs ([`SealError::SourceChanged`]). Only in that case were bytes written that must be
//! discarded; hence nothing of the output may be published before `seal` returned `Ok`.
//!
//! The image id is inside the encryption too (as the literal packet's file name), so a container moved under another
//! name does not open there. This file knows nothing of pieces except the size to pad to.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

use hmac::{Hmac, Mac};
use pgp::crypto::aead::{AeadAlgorithm, ChunkSize, StreamDecryptor};
use pgp::crypto::sym::SymmetricKeyAlgorithm;
use pgp::packet::SymEncryptedProtectedData;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use sha2::{Digest, Sha256};
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::keys::SessionKey;
use super::packet::{self, PacketReader, PacketType, PacketWriter};
use super::{ImageId, Sha256Digest};

const CIPHER: SymmetricKeyAlgorithm = SymmetricKeyAlgorithm::AES256;
/// OCB is the mode every RFC 9580 implementation must have; GCM is optional there.
const AEAD: AeadAlgorithm = AeadAlgorithm::Ocb;
/// Small chunks keep a reader's buffers at 128 KiB; the tags cost 0.025 %.
const CHUNK: ChunkSize = ChunkSize::C64KiB;
const CHUNK_BYTES: u64 = CHUNK.as_byte_size() as u64;
const TAG_BYTES: u64 = 16;
/// SEIPD version, cipher, mode and chunk size octets (RFC 9580 5.13.2); the salt follows.
const PARAMETERS: [u8; 4] = [2, 9, 2, CHUNK as u8];
const SALT_BYTES: usize = 32;
/// Literal packet: format `b`, length of the name, 64 hexadecimal digits of the image id, date zero.
const LITERAL_HEADER_BYTES: usize = 2 + 64 + 4;
/// Everything is read and compressed in runs of this size, so that short reads of a source cannot change the result.
const RUN_BYTES: usize = 128 * 1024;
/// Largest zstd window accepted from a container: level 19's. Bounds a reader's memory at 8 MiB.
const WINDOW_LOG_MAX: u32 = 23;
const SALT_LABEL: &[u8] = b"pacs-bridge/seal/1/salt";
const PADDING_LABEL: &[u8] = b"pacs-bridge/seal/1/padding";

/// How to seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealOptions {
    /// zstd level, 1 to 19. Data that a probe finds incompressible is framed at a fast level instead.
    pub level: u8,
    /// Pad, inside the encryption, until the container is a multiple of this many bytes: the exact size of an object
    /// then stays hidden. `None` leaves the size as it is.
    pub pad_to_bytes: Option<u32>,
}

impl Default for SealOptions {
    fn default() -> Self {
        Self { level: 3, pad_to_bytes: None }
    }
}

/// The level for data that does not compress: little more than copying.
const LEVEL_INCOMPRESSIBLE: i32 = -5;
const LEVEL_MAX: u8 = 19;
/// Padding to more than this is a mistake in the configuration.
const PAD_BYTES_MAX: u32 = 16 * 1024 * 1024;
const PAD_BYTES_MIN: u32 = 1024;

/// What sealing produced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Length of the source.
    pub plain_bytes: u64,
    /// Length of the container.
    pub sealed_bytes: u64,
    /// SHA-256 of the source.
    pub plain_sha256: Sha256Digest,
}

/// Why a source could not be sealed. Whatever was written so far must be discarded.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The configuration asks for something this format does not have.
    #[error("zstd level must be 1 to {LEVEL_MAX} and padding {PAD_BYTES_MIN} to {PAD_BYTES_MAX} bytes")]
    Options,
    /// The source had other bytes at its second reading.
    #[error("source changed while it was being sealed")]
    SourceChanged,
    /// Reading the source, compressing or writing failed.
    #[error("sealing failed")]
    Io(#[from] io::Error),
    /// The cryptographic library refused our parameters.
    #[error("openpgp library failed")]
    Library(#[source] pgp::errors::Error),
}

/// Seals everything in `source`, from its beginning, into `out`.
///
/// # Errors
/// See [`SealError`]; on any error the bytes already in `out` must be discarded, never published.
pub fn seal<R: Read + Seek, W: Write>(
    source: &mut R,
    key: &SessionKey,
    image: &ImageId,
    options: SealOptions,
    out: &mut W,
) -> Result<Sealed, SealError> {
    let shape = Shape::of(source, options)?;
    let salt: [u8; SALT_BYTES] = shape.mac(SALT_LABEL, key, image);
    source.seek(SeekFrom::Start(0))?;
    let mut padding = options.pad_to_bytes.map(|bytes| Padding {
        multiple: u64::from(bytes),
        random: ChaCha20Rng::from_seed(shape.mac(PADDING_LABEL, key, image)),
    });
    let mut inner = Inner::begin(source, image, &shape, padding.as_mut())?;
    let sealed_bytes = encrypt(&mut inner, key, salt, out)?;
    let (plain_bytes, digest) = (inner.plain_bytes, inner.digest.finalize());
    let plain_sha256: Sha256Digest = digest.into();
    if plain_sha256 != shape.sha256 || plain_bytes != shape.bytes {
        return Err(SealError::SourceChanged);
    }
    Ok(Sealed { plain_bytes, sealed_bytes, plain_sha256 })
}

/// [`seal`] for bytes in memory.
///
/// # Errors
/// As [`seal`].
pub fn seal_bytes(
    plain: &[u8],
    key: &SessionKey,
    image: &ImageId,
    options: SealOptions,
) -> Result<(Vec<u8>, Sealed), SealError> {
    let mut out = Vec::with_capacity(plain.len() / 2 + 512);
    let sealed = seal(&mut io::Cursor::new(plain), key, image, options, &mut out)?;
    Ok((out, sealed))
}

fn encrypt<R: Read, W: Write>(
    inner: &mut R,
    key: &SessionKey,
    salt: [u8; SALT_BYTES],
    out: &mut W,
) -> Result<u64, SealError> {
    let mut counted = Counted { out, bytes: 0 };
    let mut writer = PacketWriter::begin(&mut counted, PacketType::Seipd)?;
    writer.append(&PARAMETERS)?;
    writer.append(&salt)?;
    let mut encryptor =
        SymEncryptedProtectedData::encrypt_seipdv2_stream(CIPHER, AEAD, CHUNK, key.expose(), salt, inner)
            .map_err(SealError::Library)?;
    let mut run = vec![0; RUN_BYTES];
    loop {
        let count = encryptor.read(&mut run)?;
        if count == 0 {
            break;
        }
        writer.append(&run[..count])?;
    }
    writer.end()?;
    Ok(counted.bytes)
}

struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Everything that decides what will be encrypted, known before the first byte is.
struct Shape {
    sha256: Sha256Digest,
    bytes: u64,
    level: i32,
    pad_to_bytes: u32,
}

impl Shape {
    /// First reading of the source: digest, length, and whether it compresses.
    fn of<R: Read + Seek>(source: &mut R, options: SealOptions) -> Result<Self, SealError> {
        let pad = options.pad_to_bytes;
        if !(1..=LEVEL_MAX).contains(&options.level)
            || pad.is_some_and(|bytes| !(PAD_BYTES_MIN..=PAD_BYTES_MAX).contains(&bytes))
        {
            return Err(SealError::Options);
        }
        let total = source.seek(SeekFrom::End(0))?;
        source.seek(SeekFrom::Start(0))?;
        let mut probe = Probe::for_length(total);
        let (mut digest, mut bytes, mut run) = (Sha256::new(), 0, vec![0; RUN_BYTES]);
        loop {
            let count = fill(source, &mut run)?;
            digest.update(&run[..count]);
            probe.see(bytes, &run[..count]);
            bytes += count as u64;
            if count < RUN_BYTES {
                break;
            }
        }
        let level = if probe.shrinks()? { i32::from(options.level) } else { LEVEL_INCOMPRESSIBLE };
        Ok(Self { sha256: digest.finalize().into(), bytes, level, pad_to_bytes: pad.unwrap_or(0) })
    }

    fn mac(&self, label: &[u8], key: &SessionKey, image: &ImageId) -> [u8; 32] {
        let mut mac = keyed(key);
        mac.update(label);
        mac.update(image.as_slice());
        mac.update(&self.sha256);
        mac.update(&self.bytes.to_be_bytes());
        mac.update(&zstd::zstd_safe::version_number().to_be_bytes());
        mac.update(&self.level.to_be_bytes());
        mac.update(&self.pad_to_bytes.to_be_bytes());
        mac.finalize().into_bytes().into()
    }
}

fn keyed(key: &SessionKey) -> Hmac<Sha256> {
    match Hmac::<Sha256>::new_from_slice(key.expose()) {
        Ok(mac) => mac,
        // HMAC takes a key of any length (RFC 2104), so this arm cannot be reached.
        Err(_) => unreachable!("hmac accepts keys of every length"),
    }
}

/// Reads until `run` is full or the source ends.
fn fill<R: Read>(source: &mut R, run: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < run.len() {
        match source.read(&mut run[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Keeps three samples of the source and tells whether they are worth compressing.
struct Probe {
    at: [u64; 3],
    samples: Vec<u8>,
}

impl Probe {
    const SAMPLE_BYTES: usize = 64 * 1024;
    /// Shorter sources are compressed without asking.
    const SOURCE_BYTES_MIN: u64 = 8 * RUN_BYTES as u64;

    fn for_length(total: u64) -> Self {
        let quarter = if total >= Self::SOURCE_BYTES_MIN { total / 4 } else { u64::MAX / 4 };
        Self { at: [quarter, 2 * quarter, 3 * quarter].map(|at| at - at % RUN_BYTES as u64), samples: Vec::new() }
    }

    fn see(&mut self, offset: u64, run: &[u8]) {
        if self.at.contains(&offset) {
            self.samples.extend_from_slice(&run[..run.len().min(Self::SAMPLE_BYTES)]);
        }
    }

    fn shrinks(&self) -> io::Result<bool> {
        if self.samples.is_empty() {
            return Ok(true);
        }
        let compressed = zstd::bulk::compress(&self.samples, 1)?;
        Ok(compressed.len() < self.samples.len() / 100 * 97)
    }
}

const PADDING_HEADER_BYTES: u64 = 6;

struct Padding {
    multiple: u64,
    random: ChaCha20Rng,
}

impl Padding {
    /// A padding packet (RFC 9580 5.14) that brings the container to a multiple of `multiple` bytes, given the
    /// encrypted bytes before it.
    fn packet(&mut self, before: u64) -> Vec<u8> {
        let header = PADDING_HEADER_BYTES;
        let mut target = sealed_bytes_for(before + header).next_multiple_of(self.multiple);
        let body = loop {
            // Chunk tags and block headers make a few totals unreachable; then the next multiple is taken.
            match body_reaching(before + header, target) {
                Some(body) => break body,
                None => target += self.multiple,
            }
        };
        // At most two multiples plus the overhead, far below 4 GiB.
        let mut packet = packet::fixed_header(PacketType::Padding, body as u32).to_vec();
        packet.resize(packet.len() + body as usize, 0);
        self.random.fill_bytes(&mut packet[header as usize..]);
        packet
    }
}

/// Size of the container when `inner` bytes are encrypted in it.
fn sealed_bytes_for(inner: u64) -> u64 {
    let tags = inner.div_ceil(CHUNK_BYTES) + 1;
    packet::framed_bytes((PARAMETERS.len() + SALT_BYTES) as u64 + inner + tags * TAG_BYTES)
}

/// Longest plaintext that is sure to need no more than `piece_bytes` when sealed, whatever it contains: the budget of a
/// preview. `None` if nothing fits, or if padding cannot reach exactly `piece_bytes` (a few sizes just above a multiple of
/// 64 KiB are like that).
#[must_use]
pub fn plain_bytes_fitting(piece_bytes: u32, options: SealOptions) -> Option<usize> {
    let piece = u64::from(piece_bytes);
    let padding = if options.pad_to_bytes.is_some() { PADDING_HEADER_BYTES } else { 0 };
    let sealed = |plain: usize| {
        let frame = zstd::zstd_safe::compress_bound(plain) as u64;
        sealed_bytes_for(packet::framed_bytes(LITERAL_HEADER_BYTES as u64 + frame) + padding)
    };
    let reachable = options
        .pad_to_bytes
        .is_none_or(|multiple| piece.is_multiple_of(u64::from(multiple.max(1))) && body_reaching(0, piece).is_some());
    if !reachable || sealed(0) > piece {
        return None;
    }
    let (mut fits, mut too_long) = (0, piece_bytes as usize);
    while too_long - fits > 1 {
        let middle = fits + (too_long - fits) / 2;
        if sealed(middle) <= piece { fits = middle } else { too_long = middle }
    }
    Some(fits)
}

/// How many bytes after `inner` make the container exactly `target` bytes long, if any number does.
fn body_reaching(inner: u64, target: u64) -> Option<u64> {
    let (mut low, mut high) = (0, target.saturating_sub(sealed_bytes_for(inner)));
    while low < high {
        let middle = low + (high - low) / 2;
        if sealed_bytes_for(inner + middle) < target { low = middle + 1 } else { high = middle }
    }
    (sealed_bytes_for(inner + low) == target).then_some(low)
}

/// The bytes to be encrypted, pulled by the encryptor: a literal packet around one zstd frame, then perhaps padding.
struct Inner<'a, R> {
    source: &'a mut R,
    encoder: Encoder<'static>,
    digest: Sha256,
    plain_bytes: u64,
    run: Vec<u8>,
    compressed: Vec<u8>,
    /// `None` once the literal packet is complete.
    literal: Option<PacketWriter<Vec<u8>>>,
    padding: Option<&'a mut Padding>,
    ready: Vec<u8>,
    taken: usize,
    made_bytes: u64,
}

impl<'a, R: Read> Inner<'a, R> {
    fn begin(
        source: &'a mut R,
        image: &ImageId,
        shape: &Shape,
        padding: Option<&'a mut Padding>,
    ) -> Result<Self, SealError> {
        let mut encoder = Encoder::new(shape.level)?;
        encoder.set_pledged_src_size(Some(shape.bytes))?;
        encoder.set_parameter(CParameter::ContentSizeFlag(true))?;
        encoder.set_parameter(CParameter::ChecksumFlag(false))?;
        let mut literal = PacketWriter::begin(Vec::new(), PacketType::Literal)?;
        literal.append(&literal_header(image))?;
        Ok(Self {
            source,
            encoder,
            digest: Sha256::new(),
            plain_bytes: 0,
            run: vec![0; RUN_BYTES],
            compressed: vec![0; RUN_BYTES],
            literal: Some(literal),
            padding,
            ready: Vec::new(),
            taken: 0,
            made_bytes: 0,
        })
    }

    /// Compresses one run of the source, or closes the frame and the packet when it has ended.
    fn advance(&mut self) -> io::Result<()> {
        let Some(mut literal) = self.literal.take() else { return Ok(()) };
        let count = fill(self.source, &mut self.run)?;
        self.digest.update(&self.run[..count]);
        self.plain_bytes += count as u64;
        let mut input = InBuffer::around(&self.run[..count]);
        while input.pos() < count {
            let mut output = OutBuffer::around(self.compressed.as_mut_slice());
            self.encoder.run(&mut input, &mut output)?;
            literal.append(output.as_slice())?;
        }
        let ended = count < RUN_BYTES;
        if ended {
            finish_frame(&mut self.encoder, &mut self.compressed, &mut literal)?;
        }
        self.ready = std::mem::take(literal.output());
        self.taken = 0;
        if ended {
            self.ready.extend(literal.end()?);
            self.made_bytes += self.ready.len() as u64;
            if let Some(padding) = self.padding.take() {
                self.ready.extend(padding.packet(self.made_bytes));
            }
        } else {
            self.made_bytes += self.ready.len() as u64;
            self.literal = Some(literal);
        }
        Ok(())
    }
}

fn finish_frame(
    encoder: &mut Encoder<'static>,
    compressed: &mut [u8],
    literal: &mut PacketWriter<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let mut output = OutBuffer::around(&mut *compressed);
        let left = encoder.finish(&mut output, true)?;
        literal.append(output.as_slice())?;
        if left == 0 {
            return Ok(());
        }
    }
}

fn literal_header(image: &ImageId) -> [u8; LITERAL_HEADER_BYTES] {
    let mut header = [0; LITERAL_HEADER_BYTES];
    header[0] = b'b';
    header[1] = 64;
    header[2..66].copy_from_slice(hex::encode(image).as_bytes());
    header
}

impl<R: Read> Read for Inner<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.ready.len() && self.literal.is_some() {
            self.advance()?;
        }
        let count = out.len().min(self.ready.len() - self.taken);
        out[..count].copy_from_slice(&self.ready[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// What unsealing produced. Compare the digest with the one expected before releasing the bytes to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Unsealed {
    /// Length of what was written.
    pub plain_bytes: u64,
    /// SHA-256 of what was written.
    pub plain_sha256: Sha256Digest,
}

/// Why a container could not be unsealed. Whatever was written so far is incomplete and must be discarded.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// The bytes are not a container of this format.
    #[error("not a sealed container of a known format: {0}")]
    Format(&'static str),
    /// The bytes were changed, cut short, or sealed under another key.
    #[error("sealed container is damaged, cut short, or under another key")]
    Damaged(#[source] io::Error),
    /// The container belongs to another image.
    #[error("sealed container belongs to another image")]
    WrongImage,
    /// The content is longer than the caller allows.
    #[error("sealed content is longer than {plain_bytes_max} bytes")]
    TooLong {
        /// The limit given.
        plain_bytes_max: u64,
    },
    /// The authentic content is not exactly one zstd frame.
    #[error("sealed content is not one zstd frame")]
    Compression(#[source] Option<io::Error>),
    /// The sealed bytes could not be read.
    #[error("sealed bytes could not be read")]
    Read(#[source] io::Error),
    /// The output refused bytes.
    #[error("unsealed bytes could not be written")]
    Write(#[source] io::Error),
}

/// Unseals one container into `out`, which must be a staging place: only `Ok` means that all of it is authentic and
/// complete. Never writes more than `plain_bytes_max` bytes.
///
/// # Errors
/// See [`UnsealError`].
pub fn unseal<R: Read, W: Write>(
    sealed: R,
    key: &SessionKey,
    image: &ImageId,
    plain_bytes_max: u64,
    out: &mut W,
) -> Result<Unsealed, UnsealError> {
    let source = Source { inner: BufReader::with_capacity(RUN_BYTES, sealed), failure: None };
    let mut body = PacketReader::begin(source, PacketType::Seipd).map_err(not_a_container)?;
    let salt = read_parameters(&mut body)?;
    let mut decryptor = StreamDecryptor::new_rfc9580(CIPHER, AEAD, CHUNK, &salt, key.expose(), body)
        .map_err(|_| UnsealError::Format("unsupported cipher"))?;
    let result = unseal_content(&mut decryptor, image, plain_bytes_max, out);
    let mut source = decryptor.into_inner().into_inner();
    if let Some(failure) = source.failure.take() {
        return Err(UnsealError::Read(failure));
    }
    let unsealed = result?;
    match source.fill_buf() {
        Ok([]) => Ok(unsealed),
        Ok(_) => Err(UnsealError::Format("bytes after the container")),
        Err(error) => Err(UnsealError::Read(error)),
    }
}

/// [`unseal`] for bytes in memory.
///
/// # Errors
/// As [`unseal`].
pub fn unseal_bytes(
    sealed: &[u8],
    key: &SessionKey,
    image: &ImageId,
    plain_bytes_max: u64,
) -> Result<Vec<u8>, UnsealError> {
    let mut out = Vec::new();
    let _digest = unseal(sealed, key, image, plain_bytes_max, &mut out)?;
    Ok(out)
}

fn not_a_container(error: io::Error) -> UnsealError {
    match error.kind() {
        io::ErrorKind::InvalidData => UnsealError::Format("no seipd packet"),
        io::ErrorKind::UnexpectedEof => UnsealError::Damaged(error),
        _ => UnsealError::Read(error),
    }
}

fn read_parameters<R: BufRead>(body: &mut PacketReader<R>) -> Result<[u8; SALT_BYTES], UnsealError> {
    let mut parameters = [0; PARAMETERS.len()];
    body.read_exact(&mut parameters).map_err(UnsealError::Damaged)?;
    if parameters != PARAMETERS {
        return Err(UnsealError::Format("unsupported seipd version, cipher, mode or chunk size"));
    }
    let mut salt = [0; SALT_BYTES];
    body.read_exact(&mut salt).map_err(UnsealError::Damaged)?;
    Ok(salt)
}

/// Remembers a failure of the source itself, so that a broken disk is not reported as a forged container.
struct Source<R> {
    inner: BufReader<R>,
    failure: Option<io::Error>,
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.inner.fill_buf() {
            Ok(_) => Ok(self.inner.buffer()),
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(out.len());
        out[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

fn unseal_content<R: BufRead, W: Write>(
    decrypted: &mut R,
    image: &ImageId,
    plain_bytes_max: u64,
    out: &mut W,
) -> Result<Unsealed, UnsealError> {
    let mut literal = PacketReader::begin(&mut *decrypted, PacketType::Literal).map_err(UnsealError::Damaged)?;
    let mut header = [0; LITERAL_HEADER_BYTES];
    literal.read_exact(&mut header).map_err(UnsealError::Damaged)?;
    if header != literal_header(image) {
        return Err(UnsealError::WrongImage);
    }
    let unsealed = decompress(&mut literal, plain_bytes_max, out)?;
    match literal.fill_buf() {
        Ok([]) => {}
        Ok(_) => return Err(UnsealError::Compression(None)),
        Err(error) => return Err(UnsealError::Damaged(error)),
    }
    skip_padding(decrypted)?;
    Ok(unsealed)
}

/// Reads to the end of the encrypted bytes, which is where the last tag is verified. Only a padding packet may follow.
fn skip_padding<R: BufRead>(decrypted: &mut R) -> Result<(), UnsealError> {
    if decrypted.fill_buf().map_err(UnsealError::Damaged)?.is_empty() {
        return Ok(());
    }
    let mut header = [0; 6];
    decrypted.read_exact(&mut header).map_err(UnsealError::Damaged)?;
    let body = u32::from_be_bytes([header[2], header[3], header[4], header[5]]);
    if header != packet::fixed_header(PacketType::Padding, body) {
        return Err(UnsealError::Format("unexpected packet after the content"));
    }
    let skipped = io::copy(decrypted, &mut io::sink()).map_err(UnsealError::Damaged)?;
    if skipped != u64::from(body) {
        return Err(UnsealError::Format("padding has a wrong length"));
    }
    Ok(())
}

fn decompress<R: BufRead, W: Write>(
    literal: &mut R,
    plain_bytes_max: u64,
    out: &mut W,
) -> Result<Unsealed, UnsealError> {
    let broken = |error| UnsealError::Compression(Some(error));
    let mut decoder = Decoder::new().map_err(broken)?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(broken)?;
    let (mut digest, mut plain_bytes, mut run) = (Sha256::new(), 0_u64, vec![0; RUN_BYTES]);
    let mut frame_ended = false;
    while !frame_ended {
        let compressed = literal.fill_buf().map_err(UnsealError::Damaged)?;
        let at_end = compressed.is_empty();
        let mut input = InBuffer::around(compressed);
        let mut output = OutBuffer::around(run.as_mut_slice());
        let hint = decoder.run(&mut input, &mut output).map_err(broken)?;
        let (consumed, produced) = (input.pos(), output.pos());
        literal.consume(consumed);
        frame_ended = hint == 0;
        if at_end && produced == 0 && !frame_ended {
            return Err(UnsealError::Compression(None));
        }
        plain_bytes += produced as u64;
        if plain_bytes > plain_bytes_max {
            return Err(UnsealError::TooLong { plain_bytes_max });
        }
        digest.update(&run[..produced]);
        out.write_all(&run[..produced]).map_err(UnsealError::Write)?;
    }
    Ok(Unsealed { plain_bytes, plain_sha256: digest.finalize().into() })
}
