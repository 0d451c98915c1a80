//! Which pictures stand for a series: one of its middle, a sheet of a long one, one of each new instance by rule.
//!
//! A picture that cannot be made is left out with a line in the log; the objects are published all the same.

use std::collections::HashSet;
use std::io::BufReader;

use dicom_scp::Uid;

use crate::archive::{Archive, Stored};
use crate::payload::manifest::PreviewKind;
use crate::payload::preview::{
    ContactSheet, FrameChoice, Outcome, Preview, Rendered, encode, evenly_spaced, render, representative,
};

/// Longest side of a preview, in pixels.
const SIDE_MAX: u32 = 512;
/// Series with more instances than this get a contact sheet.
const SHEET_FROM: usize = 8;
/// Thumbnails on a sheet.
const SHEET_TILES: u32 = 25;
/// Longest side of a thumbnail, in pixels.
const TILE: u32 = 96;
/// Instances tried before a series counts as having no picture.
const TRIES: usize = 4;

/// A picture of a series or an instance.
pub(super) struct Picture {
    pub(super) subject: Uid,
    pub(super) kind: PreviewKind,
    pub(super) preview: Preview,
}

/// The pictures of a series, of which some instances are `new`.
pub(super) fn of_series(
    archive: &Archive,
    series: &Uid,
    members: &[&Stored],
    new: &HashSet<Uid>,
    each: bool,
    bytes_max: usize,
) -> Vec<Picture> {
    let here: Vec<&Stored> = members.iter().copied().filter(|stored| stored.path.is_some()).collect();
    let mut pictures = Vec::new();
    let mut keep = |subject: &Uid, kind, rendered: Option<Rendered>| {
        pictures.extend(rendered.and_then(|rendered| encoded(subject, kind, &rendered, bytes_max)));
    };
    keep(series, PreviewKind::Series, middle(archive, &here));
    if here.len() >= SHEET_FROM {
        keep(series, PreviewKind::ContactSheet, sheet(archive, &here));
    }
    if each {
        for stored in here.iter().filter(|stored| new.contains(&stored.sop_instance)) {
            keep(&stored.sop_instance, PreviewKind::Instance, picture(archive, stored, SIDE_MAX));
        }
    }
    pictures
}

/// The instance in the middle, or one after it when that one has nothing to show.
fn middle(archive: &Archive, here: &[&Stored]) -> Option<Rendered> {
    let middle = representative(here.len())?;
    here.iter().cycle().skip(middle).take(TRIES.min(here.len())).find_map(|stored| picture(archive, stored, SIDE_MAX))
}

fn sheet(archive: &Archive, here: &[&Stored]) -> Option<Rendered> {
    let chosen = evenly_spaced(here.len(), SHEET_TILES as usize);
    let mut sheet = ContactSheet::new(u32::try_from(chosen.len()).unwrap_or(SHEET_TILES), TILE);
    for position in chosen {
        if let Some(thumb) = picture(archive, here[position], TILE) {
            sheet.add(&thumb);
        }
    }
    sheet.finish()
}

fn picture(archive: &Archive, stored: &Stored, side_max: u32) -> Option<Rendered> {
    let rendered = archive.open_file(stored).map_err(|error| error.to_string()).and_then(|file| {
        let file = file.ok_or_else(|| "its file is gone".to_owned())?;
        render(&mut BufReader::new(file), FrameChoice::Middle, side_max).map_err(|e| crate::chain_of(&e))
    });
    match rendered {
        Ok(Outcome::Picture(rendered)) => Some(rendered),
        Ok(Outcome::Nothing(reason)) => {
            tracing::debug!(uid = %stored.sop_instance, %reason, "no preview");
            None
        }
        Err(error) => {
            tracing::info!(uid = %stored.sop_instance, error, "no preview");
            None
        }
    }
}

fn encoded(subject: &Uid, kind: PreviewKind, rendered: &Rendered, bytes_max: usize) -> Option<Picture> {
    match encode(rendered, bytes_max) {
        Ok(preview) => Some(Picture { subject: *subject, kind, preview }),
        Err(error) => {
            tracing::info!(uid = %subject, error = %crate::chain_of(&error), "no preview");
            None
        }
    }
}
