//! Reads the pieces of a study in the order of its plan, opening images as they come and skipping what is stored already.

use super::work::{PieceRef, Plan};
use super::{Piece, SealedPieces as _, Source, SourceError, StudyJob};
use std::sync::Arc;

/// The image that is open and the index that its reader gives next.
pub(super) struct Feed<S: Source> {
    open: Option<(usize, u32, S::Pieces)>,
}

impl<S: Source> Default for Feed<S> {
    fn default() -> Self {
        Self { open: None }
    }
}

impl<S: Source> Feed<S> {
    /// Reads the named pieces. Their order must be the plan's, also over calls; else an image is read from its beginning again.
    pub(super) async fn read(
        &mut self,
        source: &Arc<S>,
        job: &StudyJob,
        plan: &Plan,
        wanted: &[PieceRef],
    ) -> Result<Vec<Piece>, SourceError> {
        let mut pieces = Vec::with_capacity(wanted.len());
        for want in wanted {
            pieces.push(self.read_one(source, job, plan, *want).await?);
        }
        Ok(pieces)
    }

    async fn read_one(
        &mut self,
        source: &Arc<S>,
        job: &StudyJob,
        plan: &Plan,
        want: PieceRef,
    ) -> Result<Piece, SourceError> {
        let image = plan.images.get(want.image).ok_or_else(|| SourceError::Broken("no such image".into()))?;
        let (mut next, mut reader) = match self.open.take() {
            Some((open, next, reader)) if open == want.image && next <= want.index => (next, reader),
            _ => (0, source.open(job, image).await?),
        };
        loop {
            let bytes = reader.next().await?.ok_or_else(|| differs("fewer pieces"))?;
            if bytes.len() as u64 != image.bytes_of(next) {
                return Err(differs("a piece of another size"));
            }
            next += 1;
            if next > want.index {
                if next < image.pieces {
                    self.open = Some((want.image, next, reader));
                }
                return Ok(Piece { study: plan.study, image: image.image, index: want.index, bytes: bytes.into() });
            }
        }
    }
}

fn differs(how: &str) -> SourceError {
    SourceError::Broken(format!("sealing gives {how} than planned"))
}
