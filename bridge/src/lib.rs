//! PACS Bridge: a DICOM node whose studies live on a permissioned ledger under the patient's control.
//!
//! Modules use only earlier ones: [`study`], [`config`] and [`password`] are plain values; [`payload`] turns objects into sealed
//! pieces; [`keyring`], [`keys`] and [`archive`] keep secrets and objects; [`ledger`] and [`publish`] bring studies onto the
//! chain; [`ipfs`] keeps what of them is not on it;
//! [`follow`] turns the chain's events into local state; [`access`] decides who may see what and [`retrieve`] answers
//! every door; [`tls`] reads the doors' certificates; [`audit`] records who did what; [`exchange`] brings studies of other sites; [`derive`] makes studies of
//! nobody from studies of somebody; [`dicom`] is such a door, [`xds`] another for documents, [`http`] one for those who show one of the
//! [`tokens`], or what an issuer says of them ([`oidc`]), over whose port [`dicomweb`] serves viewers and `web` pages; [`app`] wires them together and [`cli`] is the program's face. [`deidentify`] stands by itself: objects in, objects of nobody
//! out.

pub mod access;
pub mod app;
pub mod archive;
pub mod assemble;
pub mod audit;
pub mod background;
pub mod cli;
pub mod config;
pub mod control;
pub mod decide;
pub mod deidentify;
pub mod demo;
pub mod derive;
pub mod dicom;
pub mod dicomweb;
pub mod erase;
pub mod exchange;
pub mod follow;
pub mod http;
pub mod ipfs;
pub mod keyring;
pub mod keys;
pub mod ledger;
pub mod network;
pub mod oidc;
pub mod outbox;
pub mod password;
pub mod payload;
pub mod promote;
pub mod proof;
pub mod publish;
mod recode;
pub mod retrieve;
pub mod site;
pub mod study;
pub mod tls;
pub mod tokens;
mod web;
pub mod xds;
mod zip;

/// An error with everything that caused it, in one line.
#[must_use]
pub fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
