//! What comes next for a study: a pure function of its plan, of what was seen on chain and of what is under way. No clock, no
//! file, no chain.

use super::{Amendment, Located, Opening, Part, Piece, Seal, StudyOwner};
use crate::ledger::PIECES_MAX;
use alloy::primitives::B256;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// Makes the study viewable early.
    Preview,
    /// Describes the study; announced when it and all previews are sealed.
    Manifest,
    /// A stored object.
    Object,
}

/// An image to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedImage {
    /// Image id on chain.
    pub image: B256,
    /// What it is for.
    pub kind: ImageKind,
    /// Number of pieces, at least 1.
    pub pieces: u32,
    /// Sealed size in bytes.
    pub bytes: u64,
    /// Size of every piece but the last.
    pub piece_bytes: u32,
    /// Merkle root over the pieces.
    pub root: B256,
    /// Its pieces only name bytes that are put elsewhere as they are read, which may take its time.
    pub elsewhere: bool,
}

impl PlannedImage {
    /// Size of a piece in bytes.
    pub fn bytes_of(&self, index: u32) -> u64 {
        let start = u64::from(index) * u64::from(self.piece_bytes);
        self.bytes.saturating_sub(start).min(self.piece_bytes.into())
    }

    fn is_urgent(&self) -> bool {
        self.kind != ImageKind::Object
    }
}

/// All that is to be published for a version of a study. Images of earlier versions may be in it; they are found on chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Study id on chain.
    pub study: B256,
    /// Manifest version.
    pub version: u32,
    /// Who owns the study.
    pub owner: StudyOwner,
    /// Commits to the study that it was made from; zero for none.
    pub derived_from: B256,
    /// Images in the order of publishing: previews, the manifest, objects.
    pub images: Vec<PlannedImage>,
}

impl Plan {
    /// Number of pieces.
    pub fn pieces(&self) -> u64 {
        self.images.iter().map(|i| u64::from(i.pieces)).sum()
    }

    /// Why the plan makes no sense, if it does not.
    pub fn fault(&self) -> Option<String> {
        let manifests = self.images.iter().filter(|i| i.kind == ImageKind::Manifest).count();
        if manifests != 1 {
            return Some(format!("a plan has one manifest, this one has {manifests}"));
        }
        let urgent = self.images.iter().take_while(|i| i.is_urgent()).count();
        if self.images[urgent..].iter().any(PlannedImage::is_urgent) {
            return Some("objects are planned before previews or the manifest".into());
        }
        let odd = |i: &&PlannedImage| {
            i.piece_bytes == 0 || i.bytes == 0 || i.bytes.div_ceil(i.piece_bytes.into()) != u64::from(i.pieces)
        };
        let odd = self.images.iter().find(odd)?;
        Some(format!("image {} has {} bytes in {} pieces", odd.image, odd.bytes, odd.pieces))
    }
}

/// Something that was seen on chain, at the configured depth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The study is defined.
    Defined,
    /// These pieces are stored, and where.
    Stored(Vec<Located>),
    /// These images are sealed with the planned root.
    Sealed(Vec<B256>),
    /// This manifest version is announced: the study is viewable.
    Announced(u32),
    /// Everything of this version is on the ledger.
    Finished(u32),
}

/// What was seen of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageProgress {
    /// Stored pieces as disjoint ranges: first index to the one after the last.
    stored: BTreeMap<u32, u32>,
    /// Whether it is sealed.
    pub sealed: bool,
}

impl ImageProgress {
    /// Adds a stored piece.
    pub fn insert(&mut self, index: u32) {
        if self.holds(index) {
            return;
        }
        let (mut start, mut end) = (index, index + 1);
        if let Some((&before, _)) = self.stored.range(..index).next_back().filter(|(_, e)| **e == index) {
            start = before;
        }
        if let Some(after) = self.stored.remove(&end) {
            end = after;
        }
        self.stored.insert(start, end);
    }

    /// Whether a piece is stored.
    pub fn holds(&self, index: u32) -> bool {
        self.stored.range(..=index).next_back().is_some_and(|(_, end)| index < *end)
    }

    /// Number of stored pieces.
    pub fn count(&self) -> u32 {
        self.stored.iter().map(|(start, end)| end - start).sum()
    }
}

/// What was seen of a study, over all its versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the study is defined.
    pub defined: bool,
    /// Newest announced manifest version; 0 before the first.
    pub announced: u32,
    /// Newest finished version; 0 before the first.
    pub finished: u32,
    /// What was seen of its images.
    pub images: HashMap<B256, ImageProgress>,
}

impl Progress {
    /// Takes note of something seen. Repeating it changes nothing.
    pub fn apply(&mut self, seen: &Seen) {
        match seen {
            Seen::Defined => self.defined = true,
            Seen::Stored(pieces) => {
                for p in pieces {
                    self.images.entry(p.image).or_default().insert(p.index);
                }
            }
            Seen::Sealed(images) => {
                for image in images {
                    self.images.entry(*image).or_default().sealed = true;
                }
            }
            Seen::Announced(version) => self.announced = self.announced.max(*version),
            Seen::Finished(version) => self.finished = self.finished.max(*version),
        }
    }

    fn holds(&self, image: &B256, index: u32) -> bool {
        self.images.get(image).is_some_and(|i| i.holds(index))
    }

    /// Whether an image is sealed.
    pub fn sealed(&self, image: &B256) -> bool {
        self.images.get(image).is_some_and(|i| i.sealed)
    }

    /// Number of stored pieces of an image.
    pub fn count(&self, image: &B256) -> u32 {
        self.images.get(image).map_or(0, ImageProgress::count)
    }
}

/// A piece of a plan: position of the image in it, index of the piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PieceRef {
    /// Position of the image in the plan.
    pub image: usize,
    /// Index of the piece.
    pub index: u32,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read these pieces, and send everything that makes the study viewable at once, with its objects where `whole`.
    Open {
        /// Pieces that were not seen.
        pieces: Vec<PieceRef>,
        /// The objects too.
        whole: bool,
    },
    /// Define the study.
    Define,
    /// Read these pieces and store them in one transaction.
    Store(Vec<PieceRef>),
    /// Seal these images in one transaction.
    Seal(Vec<Seal>),
    /// Announce the manifest.
    Announce(Amendment),
    /// Everything was seen: say so.
    Finish,
    /// Nothing until something under way has ended.
    Wait,
}

/// Which work is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// What makes a study viewable: definition, previews, manifest, announcement.
    Urgent,
    /// Objects, once the study is viewable.
    Bulk,
}

/// What a transaction can carry.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    /// Bytes of pieces with their overhead.
    pub bytes_max: usize,
    /// What each piece adds to its own bytes.
    pub overhead_bytes: usize,
    /// Bytes of a study that may be sent before anything of it was seen.
    pub ahead_bytes_max: u64,
}

/// Pieces that are sent before anything of them was seen, at most.
const AHEAD_PIECES_MAX: u64 = 128;
/// Images sealed in one transaction at most.
const SEALS_MAX: usize = 64;
/// Pieces of images sealed together at most; the contract hashes 4,096 in one call itself.
const SEALED_PIECES_MAX: u32 = 2_048;

/// A study under way.
#[derive(Debug, Clone)]
pub struct Work {
    /// What is to be published.
    pub plan: Arc<Plan>,
    /// What was seen.
    pub progress: Progress,
    /// The first piece that was not handed out in this run.
    next: PieceRef,
    /// A definition or an announcement is under way, or the end is being recorded.
    calling: bool,
    /// Images whose seals are under way.
    sealing: HashSet<B256>,
    /// Pieces are being read.
    reading: bool,
    /// Something was begun in this run, perhaps everything at once. What is missing of it then goes step by step, so that nothing is sent again
    /// that is on its way.
    begun: bool,
    /// Everything that was sent at once is on its way.
    opening: bool,
    /// Objects cannot be read now, and must not hold up what makes the study viewable.
    apart: bool,
}

impl Work {
    /// Begins with a plan and what was seen before.
    pub fn new(plan: Plan, progress: Progress) -> Self {
        let next = PieceRef { image: 0, index: 0 };
        Self {
            plan: Arc::new(plan),
            progress,
            next,
            calling: false,
            sealing: HashSet::new(),
            reading: false,
            begun: false,
            opening: false,
            apart: false,
        }
    }

    /// What comes next in a lane.
    pub fn next_step(&self, lane: Lane, fit: Fit) -> Step {
        if self.opening {
            return Step::Wait;
        }
        if let Some(step) = self.opening_step(lane, fit) {
            return step;
        }
        match lane {
            Lane::Urgent if !self.progress.defined => self.unless_calling(Step::Define),
            Lane::Urgent if self.viewable() => Step::Wait,
            Lane::Bulk if !self.viewable() => Step::Wait,
            _ => self.next_of(lane, fit),
        }
    }

    /// Everything at once, before anything else was begun, where it is little enough.
    fn opening_step(&self, lane: Lane, fit: Fit) -> Option<Step> {
        let never = fit.ahead_bytes_max == 0;
        if never || lane == Lane::Bulk || self.begun || self.viewable() {
            return None;
        }
        let little = |whole| self.fits_ahead(whole, fit).then(|| Step::Open { pieces: self.missing(whole), whole });
        Some(true).filter(|_| !self.apart).and_then(little).or_else(|| little(false))
    }

    /// What is viewable first, and the objects after it where `whole`.
    fn ahead(&self, whole: bool) -> impl Iterator<Item = (usize, &PlannedImage)> {
        self.of(Lane::Urgent).chain(self.of(Lane::Bulk).filter(move |_| whole))
    }

    fn fits_ahead(&self, whole: bool, fit: Fit) -> bool {
        let open = self.ahead(whole).map(|(_, image)| image).filter(|image| !self.progress.sealed(&image.image));
        let (mut images, mut pieces, mut bytes) = (0, 0, 0);
        for image in open {
            (images, pieces, bytes) = (images + 1, pieces + u64::from(image.pieces), bytes + image.bytes);
            if image.elsewhere || images > SEALS_MAX || pieces > AHEAD_PIECES_MAX || bytes > fit.ahead_bytes_max {
                return false;
            }
        }
        true
    }

    fn missing(&self, whole: bool) -> Vec<PieceRef> {
        let open = self.ahead(whole).filter(|(_, image)| !self.progress.sealed(&image.image));
        let of = |(position, image): (usize, &PlannedImage)| {
            let missing: Vec<u32> = (0..image.pieces).filter(|i| !self.progress.holds(&image.image, *i)).collect();
            missing.into_iter().map(move |index| PieceRef { image: position, index })
        };
        open.flat_map(of).collect()
    }

    /// What is sent for a begun [`Step::Open`], with its pieces as they were read.
    pub fn opening(&self, pieces: Vec<Piece>, whole: bool) -> Option<Opening> {
        let part = |lane| {
            let open = self.of(lane).map(|(_, image)| image).filter(|image| !self.progress.sealed(&image.image));
            let seals = open.map(|i| Seal { image: i.image, pieces: i.pieces, root: i.root }).collect();
            Part { pieces: Vec::new(), seals }
        };
        let mut urgent = part(Lane::Urgent);
        let mut rest = if whole { part(Lane::Bulk) } else { Part::default() };
        for piece in pieces {
            let is_urgent = urgent.seals.iter().any(|seal| seal.image == piece.image);
            if is_urgent { urgent.pieces.push(piece) } else { rest.pieces.push(piece) }
        }
        let Plan { study, owner, derived_from, .. } = self.plan.as_ref();
        let amendment = self.announcement()?;
        Some(Opening { study: *study, owner: owner.clone(), derived_from: *derived_from, urgent, amendment, rest })
    }

    fn next_of(&self, lane: Lane, fit: Fit) -> Step {
        if let Some(seals) = self.sealable(lane) {
            return Step::Seal(seals);
        }
        let pieces = self.batch(lane, fit);
        if !pieces.is_empty() && !self.reading {
            return Step::Store(pieces);
        }
        if !self.of(lane).all(|(_, i)| self.progress.sealed(&i.image)) {
            return Step::Wait;
        }
        match lane {
            Lane::Urgent => self.unless_calling(self.announcement().map_or(Step::Wait, Step::Announce)),
            Lane::Bulk => self.unless_calling(Step::Finish),
        }
    }

    fn unless_calling(&self, step: Step) -> Step {
        if self.calling { Step::Wait } else { step }
    }

    /// Whether this version's manifest was seen announced.
    pub fn viewable(&self) -> bool {
        self.progress.announced >= self.plan.version
    }

    /// Whether everything of this version was seen.
    pub fn finished(&self) -> bool {
        self.progress.finished >= self.plan.version
    }

    /// Pieces of the plan that were seen stored.
    pub fn pieces_seen(&self) -> u64 {
        self.plan.images.iter().map(|i| u64::from(self.progress.count(&i.image))).sum()
    }

    fn of(&self, lane: Lane) -> impl Iterator<Item = (usize, &PlannedImage)> {
        let wanted = lane == Lane::Urgent;
        self.plan.images.iter().enumerate().filter(move |(_, i)| i.is_urgent() == wanted)
    }

    /// Images to seal in one transaction. Several may be under way, because a study of a thousand instances would wait for each of them in turn; but
    /// while one is, another is worth it only when it is full.
    fn sealable(&self, lane: Lane) -> Option<Vec<Seal>> {
        let ready = |i: &&PlannedImage| {
            let id = &i.image;
            !self.progress.sealed(id) && !self.sealing.contains(id) && self.progress.count(id) == i.pieces
        };
        let (mut seals, mut pieces) = (Vec::new(), 0);
        for image in self.of(lane).map(|(_, i)| i).filter(ready) {
            let is_full = seals.len() == SEALS_MAX || (pieces > 0 && pieces + image.pieces > SEALED_PIECES_MAX);
            if is_full {
                return Some(seals);
            }
            pieces += image.pieces;
            seals.push(Seal { image: image.image, pieces: image.pieces, root: image.root });
        }
        (!seals.is_empty() && self.sealing.is_empty()).then_some(seals)
    }

    /// The next pieces, in the plan's order, that fit one transaction and were neither seen nor handed out.
    fn batch(&self, lane: Lane, fit: Fit) -> Vec<PieceRef> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (position, image) in self.of(lane).filter(|(p, _)| *p >= self.next.image) {
            let first = if position == self.next.image { self.next.index } else { 0 };
            if self.progress.sealed(&image.image) {
                continue;
            }
            for index in (first..image.pieces).filter(|i| !self.progress.holds(&image.image, *i)) {
                bytes += usize::try_from(image.bytes_of(index)).unwrap_or(usize::MAX) + fit.overhead_bytes;
                if !batch.is_empty() && (bytes > fit.bytes_max || batch.len() == PIECES_MAX) {
                    return batch;
                }
                batch.push(PieceRef { image: position, index });
            }
        }
        batch
    }

    fn announcement(&self) -> Option<Amendment> {
        let manifest = self.plan.images.iter().find(|i| i.kind == ImageKind::Manifest)?;
        let (study, version) = (self.plan.study, self.plan.version);
        Some(Amendment { study, version, image: manifest.image, root: manifest.root })
    }

    /// A step was begun.
    pub fn begin(&mut self, step: &Step) {
        self.begun |= *step != Step::Wait;
        match step {
            Step::Open { .. } => self.opening = true,
            Step::Store(pieces) => {
                self.reading = true;
                if let Some(last) = pieces.last() {
                    self.next = PieceRef { image: last.image, index: last.index + 1 };
                }
            }
            Step::Seal(seals) => self.sealing.extend(seals.iter().map(|seal| seal.image)),
            Step::Wait => {}
            Step::Define | Step::Announce(_) | Step::Finish => self.calling = true,
        }
    }

    /// The pieces of a begun [`Step::Store`] were read; they are still to be stored.
    pub fn read(&mut self) {
        self.reading = false;
    }

    /// The pieces of a begun [`Step::Open`] cannot be read. True when some of them need not be.
    pub fn unread(&mut self, whole: bool) -> bool {
        self.opening = false;
        if whole {
            (self.apart, self.begun) = (true, false);
        }
        whole
    }

    /// What was sent at once has ended, in whatever way.
    pub fn opened(&mut self) {
        self.opening = false;
    }

    /// A call other than a store or a seal has ended.
    pub fn called(&mut self) {
        self.calling = false;
    }

    /// A call that seals these images has ended.
    pub fn sealed(&mut self, images: &[B256]) {
        self.sealing.retain(|image| !images.contains(image));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::PieceLocation;

    const FIT: Fit = Fit { bytes_max: 100, overhead_bytes: 10, ahead_bytes_max: 10_000 };

    fn image(id: u8, kind: ImageKind, pieces: u32, piece_bytes: u32) -> PlannedImage {
        let (image, root) = (B256::with_last_byte(id), B256::with_last_byte(id + 100));
        PlannedImage {
            image,
            kind,
            pieces,
            bytes: u64::from(pieces * piece_bytes),
            piece_bytes,
            root,
            elsewhere: false,
        }
    }

    fn work() -> Work {
        let images = vec![
            image(1, ImageKind::Preview, 1, 30),
            image(2, ImageKind::Preview, 1, 30),
            image(3, ImageKind::Manifest, 1, 30),
            image(4, ImageKind::Object, 3, 90),
        ];
        let owner = StudyOwner::Custodial { index: 0 };
        Work::new(Plan { study: B256::ZERO, version: 1, owner, derived_from: B256::ZERO, images }, Progress::default())
    }

    /// After everything was tried at once.
    fn step_by_step() -> Work {
        Work { begun: true, ..work() }
    }

    fn stored(image: u8, index: u32) -> Located {
        let location = PieceLocation { block: 0, transaction: 0, entry: 0 };
        Located { image: B256::with_last_byte(image), index, location }
    }

    fn refs(pieces: &[(usize, u32)]) -> Step {
        Step::Store(pieces.iter().map(|(image, index)| PieceRef { image: *image, index: *index }).collect())
    }

    fn do_step(work: &mut Work, lane: Lane) -> Step {
        let step = work.next_step(lane, FIT);
        work.begin(&step);
        step
    }

    #[test]
    fn the_order_is_define_previews_manifest_announce_objects() {
        let mut w = step_by_step();
        assert_eq!(w.plan.fault(), None);
        assert_eq!(do_step(&mut w, Lane::Bulk), Step::Wait);
        assert_eq!(do_step(&mut w, Lane::Urgent), Step::Define);
        assert_eq!(do_step(&mut w, Lane::Urgent), Step::Wait, "nothing before the definition was seen");
        w.called();
        w.progress.apply(&Seen::Defined);
        assert_eq!(do_step(&mut w, Lane::Urgent), refs(&[(0, 0), (1, 0)]));
        assert_eq!(do_step(&mut w, Lane::Urgent), Step::Wait, "one reader per study");
        w.read();
        assert_eq!(do_step(&mut w, Lane::Urgent), refs(&[(2, 0)]), "pieces are not handed out twice");
        w.read();
        w.progress.apply(&Seen::Stored(vec![stored(1, 0), stored(2, 0)]));
        assert!(matches!(do_step(&mut w, Lane::Urgent), Step::Seal(seals) if seals.len() == 2));
        w.sealed(&[B256::with_last_byte(1), B256::with_last_byte(2)]);
        w.progress.apply(&Seen::Sealed(vec![B256::with_last_byte(1), B256::with_last_byte(2)]));
        assert_eq!(do_step(&mut w, Lane::Urgent), Step::Wait, "the manifest is not sealed");
        w.progress.apply(&Seen::Stored(vec![stored(3, 0)]));
        w.progress.apply(&Seen::Sealed(vec![B256::with_last_byte(3)]));
        assert_eq!(do_step(&mut w, Lane::Bulk), Step::Wait);
        assert!(matches!(do_step(&mut w, Lane::Urgent), Step::Announce(a) if a.version == 1));
        w.called();
        w.progress.apply(&Seen::Announced(1));
        assert_eq!(do_step(&mut w, Lane::Urgent), Step::Wait);
        assert_eq!(do_step(&mut w, Lane::Bulk), refs(&[(3, 0)]));
        w.read();
        assert_eq!(do_step(&mut w, Lane::Bulk), refs(&[(3, 1)]));
        w.read();
        assert_eq!(do_step(&mut w, Lane::Bulk), refs(&[(3, 2)]));
        w.read();
        w.progress.apply(&Seen::Stored(vec![stored(4, 0), stored(4, 1), stored(4, 2)]));
        assert!(matches!(do_step(&mut w, Lane::Bulk), Step::Seal(_)));
        w.sealed(&[B256::with_last_byte(4)]);
        w.progress.apply(&Seen::Sealed(vec![B256::with_last_byte(4)]));
        assert_eq!(do_step(&mut w, Lane::Bulk), Step::Finish);
        assert_eq!(w.pieces_seen(), 6);
    }

    #[test]
    fn after_a_restart_only_what_is_missing_is_handed_out() {
        let mut w = step_by_step();
        w.progress.apply(&Seen::Defined);
        w.progress.apply(&Seen::Stored(vec![stored(1, 0), stored(4, 1)]));
        w.progress.apply(&Seen::Sealed(vec![B256::with_last_byte(1)]));
        assert_eq!(do_step(&mut w, Lane::Urgent), refs(&[(1, 0), (2, 0)]));
        w.progress.apply(&Seen::Announced(1));
        w.read();
        assert_eq!(do_step(&mut w, Lane::Bulk), refs(&[(3, 0)]));
        w.read();
        assert_eq!(do_step(&mut w, Lane::Bulk), refs(&[(3, 2)]));
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn what_is_little_goes_at_once_and_only_once() {
        let mut w = work();
        w.progress.apply(&Seen::Stored(vec![stored(2, 0), stored(4, 1)]));
        assert_eq!(do_step(&mut w, Lane::Bulk), Step::Wait);
        let piece = |image: usize, index| PieceRef { image, index };
        let pieces = vec![piece(0, 0), piece(2, 0), piece(3, 0), piece(3, 2)];
        assert_eq!(do_step(&mut w, Lane::Urgent), Step::Open { pieces, whole: true });
        assert_eq!(do_step(&mut w, Lane::Urgent), Step::Wait, "it is under way");
        let read = [(1, 0), (3, 0), (4, 0), (4, 2)].map(|(image, index)| Piece {
            study: B256::ZERO,
            image: B256::with_last_byte(image),
            index,
            bytes: Default::default(),
        });
        let opening = w.opening(read.to_vec(), true).unwrap();
        assert_eq!((opening.urgent.pieces.len(), opening.urgent.seals.len()), (2, 3));
        assert_eq!((opening.rest.pieces.len(), opening.rest.seals.len()), (2, 1));
        w.progress.apply(&Seen::Defined);
        assert_eq!(do_step(&mut w, Lane::Urgent), Step::Wait, "it is still under way");
        w.opened();
        assert!(matches!(do_step(&mut w, Lane::Urgent), Step::Seal(seals) if seals.len() == 1), "what is whole");
        assert_eq!(do_step(&mut w, Lane::Urgent), refs(&[(0, 0), (2, 0)]), "nothing more came of it");
    }

    #[test]
    fn many_images_are_sealed_side_by_side() {
        let mut w = step_by_step();
        let objects = (10..=150).map(|id| image(id, ImageKind::Object, 1, 30));
        Arc::make_mut(&mut w.plan).images.splice(3.., objects);
        w.progress.apply(&Seen::Defined);
        w.progress.apply(&Seen::Announced(1));
        let sealing = |w: &mut Work| match do_step(w, Lane::Bulk) {
            Step::Seal(seals) => seals.iter().map(|seal| seal.image.0[31]).collect::<Vec<u8>>(),
            _ => Vec::new(),
        };
        w.progress.apply(&Seen::Stored((10..=12).map(|id| stored(id, 0)).collect()));
        let first = sealing(&mut w);
        assert_eq!(first, [10, 11, 12], "what is whole is not held up when nothing is under way");
        w.progress.apply(&Seen::Stored((13..=76).map(|id| stored(id, 0)).collect()));
        assert!(sealing(&mut w).is_empty(), "64 more that are just as many as fit: one more tells that they are full");
        w.progress.apply(&Seen::Stored((77..=150).map(|id| stored(id, 0)).collect()));
        assert_eq!(sealing(&mut w), (13..=76).collect::<Vec<u8>>());
        assert_eq!(sealing(&mut w), (77..=140).collect::<Vec<u8>>());
        assert!(sealing(&mut w).is_empty(), "few wait while others are under way");
        for ended in [first, (13..=76).collect(), (77..=140).collect()] {
            let images: Vec<B256> = ended.into_iter().map(B256::with_last_byte).collect();
            w.sealed(&images);
            w.progress.apply(&Seen::Sealed(images));
        }
        assert_eq!(sealing(&mut w), (141..=150).collect::<Vec<u8>>());
    }

    #[test]
    fn objects_that_cannot_be_read_hold_up_nothing_else() {
        let mut w = work();
        assert!(matches!(do_step(&mut w, Lane::Urgent), Step::Open { whole: true, .. }));
        assert!(w.unread(true));
        assert!(matches!(do_step(&mut w, Lane::Urgent), Step::Open { whole: false, pieces } if pieces.len() == 3));
        assert!(!w.unread(false), "without these it is not viewable");
    }

    #[test]
    fn what_is_much_goes_step_by_step_or_after_what_is_viewable() {
        let mut w = work();
        Arc::make_mut(&mut w.plan).images[3].bytes = FIT.ahead_bytes_max;
        assert!(matches!(do_step(&mut w, Lane::Urgent), Step::Open { whole: false, pieces } if pieces.len() == 3));
        let mut w = work();
        Arc::make_mut(&mut w.plan).images[3].elsewhere = true;
        assert!(
            matches!(do_step(&mut w, Lane::Urgent), Step::Open { whole: false, .. }),
            "putting it there takes its time"
        );
        let mut w = work();
        Arc::make_mut(&mut w.plan).images[0].bytes = FIT.ahead_bytes_max;
        assert_eq!(do_step(&mut w, Lane::Urgent), Step::Define);
        Arc::make_mut(&mut w.plan).images[0].bytes = 30;
        w.called();
        w.progress.apply(&Seen::Defined);
        assert!(
            matches!(do_step(&mut w, Lane::Urgent), Step::Store(_)),
            "nothing is sent at once when something was begun"
        );
    }

    #[test]
    fn ranges_of_pieces_join() {
        let mut p = ImageProgress::default();
        for index in [5, 3, 4, 0, 4] {
            p.insert(index);
        }
        assert_eq!(p.stored, BTreeMap::from([(0, 1), (3, 6)]));
        assert_eq!(p.count(), 4);
        assert!(p.holds(0) && !p.holds(1) && !p.holds(2) && p.holds(5) && !p.holds(6));
    }

    #[test]
    fn a_plan_that_makes_no_sense_is_noticed() {
        let mut w = work();
        let plan = Arc::make_mut(&mut w.plan);
        plan.images.swap(2, 3);
        assert!(plan.fault().is_some());
        plan.images.remove(3);
        assert!(plan.fault().is_some());
        let mut w = work();
        let plan = Arc::make_mut(&mut w.plan);
        plan.images[3].pieces = 4;
        assert!(plan.fault().is_some());
    }
}
