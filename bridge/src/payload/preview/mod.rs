//! Previews: one frame of an object as a small picture, windowed as a viewer would show it.
//!
//! Nothing here loads an object: the header is read, then the bytes of the one frame, found by arithmetic or through the
//! offset tables. Codecs run inside a guard, because a preview of a damaged object may fail but must not take the
//! daemon with it. Frames beyond [`PIXELS_MAX`] or [`FRAME_BYTES_MAX`] are refused. Must not know of sealing, pieces or
//! studies; whoever calls decides which instances get previews and where they go.

mod codec;
mod encode;
mod frame;
mod jpeg12;
mod jpegls;
mod lut;
mod native;
mod picture;
mod render;
mod rle;
mod sheet;
mod stored;
#[cfg(test)]
mod tests;

use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use encode::{Preview, decode, encode, jpeg, png};
pub use native::{Native, is_decodable};
pub use picture::{Pixels, Rendered};
pub use render::Window;
pub use sheet::{ContactSheet, evenly_spaced, representative};
pub use stored::{Coding, FrameBytes, FrameOutcome, frames, read_frames};

use super::object::{Object, ObjectError};
use frame::Fragments;

/// Most pixels in a frame that is rendered: twice the largest mammogram.
pub const PIXELS_MAX: u64 = 64 << 20;
/// Most bytes of a frame, decoded or encoded.
pub const FRAME_BYTES_MAX: u64 = 128 << 20;

/// Which frame of a multi-frame object to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameChoice {
    /// The middle one: the most likely to show what the series is about.
    Middle,
    /// This one, counted from 0.
    Index(u32),
}

/// What came of rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A picture.
    Picture(Rendered),
    /// There is nothing to show, for this reason.
    Nothing(Reason),
}

/// Why an object has no preview although nothing is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Reports, structure sets, documents and the like.
    #[error("object has no pixel data")]
    NoPixels,
    /// No codec here decodes this transfer syntax (video, hierarchical JPEG and the like).
    #[error("no decoder for transfer syntax {0}")]
    Codec(String),
    /// A photometric interpretation, bit depth or coding that is not rendered.
    #[error("not rendered: {0}")]
    Unsupported(String),
}

/// Why rendering failed. The object may be damaged or hostile; it is kept and sent on regardless.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The file or its header cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// There is no such frame.
    #[error("object has {frames} frames, there is no frame {frame}")]
    Frame {
        /// Frames in the object.
        frames: u32,
        /// The frame asked for, from 0.
        frame: u32,
    },
    /// Attributes that describe the pixels are missing or contradict each other.
    #[error("impossible pixel description: {0}")]
    Description(&'static str),
    /// The frame is larger than this module takes on.
    #[error("frame is larger than is rendered")]
    TooLarge,
    /// The frame's bytes are damaged.
    #[error("frame could not be decoded: {0}")]
    Decode(String),
    /// A decoder gave up in an unforeseen way.
    #[error("decoder failed on this frame")]
    Panicked,
    /// The picture could not be encoded small enough.
    #[error("preview does not fit into {bytes_max} bytes")]
    DoesNotFit {
        /// The limit given.
        bytes_max: usize,
    },
}

/// Renders one frame, at most `side_max` pixels on its longer side.
///
/// # Errors
/// [`PreviewError`] when the object is damaged; objects that simply have nothing to show are [`Outcome::Nothing`].
pub fn render<R: Read + Seek>(source: &mut R, choice: FrameChoice, side_max: u32) -> Result<Outcome, PreviewError> {
    render_in(source, choice, side_max, None)
}

/// The same, in a window of the caller's where there is one.
///
/// # Errors
/// As [`render`].
pub fn render_in<R: Read + Seek>(
    source: &mut R,
    choice: FrameChoice,
    side_max: u32,
    window: Option<Window>,
) -> Result<Outcome, PreviewError> {
    // Whatever state a panic leaves behind is dropped with it: only the reader's position survives, and every read seeks.
    let rendered = catch_unwind(AssertUnwindSafe(|| render_unguarded(source, choice, side_max, window)));
    rendered.unwrap_or(Err(PreviewError::Panicked))
}

fn render_unguarded<R: Read + Seek>(
    source: &mut R,
    choice: FrameChoice,
    side_max: u32,
    window: Option<Window>,
) -> Result<Outcome, PreviewError> {
    let mut object = Object::open(source)?;
    let Some(location) = object.pixels else { return Ok(Outcome::Nothing(Reason::NoPixels)) };
    let description = frame::Description::of(&object.header, location.kind)?;
    let index = match choice {
        FrameChoice::Middle => description.frames / 2,
        FrameChoice::Index(index) => index,
    };
    if index >= description.frames {
        return Err(PreviewError::Frame { frames: description.frames, frame: index });
    }
    let frame = match codec::decode(&mut object, &location, &description, &mut Fragments::default(), index, side_max)? {
        Ok(frame) => frame,
        Err(reason) => return Ok(Outcome::Nothing(reason)),
    };
    match render::render(&object.header, &description, index, &frame, side_max, window)? {
        Ok(rendered) => Ok(Outcome::Picture(rendered)),
        Err(reason) => Ok(Outcome::Nothing(reason)),
    }
}
