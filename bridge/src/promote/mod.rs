//! A site that goes from one ledger to another: what its studies' owners said there is said again here.
//!
//! Numbers, signatures and blocks are a ledger's own; nothing of them can be taken along. What can is what they came to: who may see a
//! study, from whom that was taken away, who guards it, whose it is. [`word`] gathers that from the ledger before, [`Words`] keeps
//! it until it is said, and [`say`] says it with the keys in custody, once the study is defined here: the first word to each
//! grantee, which a ledger takes from nobody who has said something already, and the hand-over to an owner elsewhere last.
//!
//! Must not know files, pieces or how a ledger is opened.

mod say;
mod store;
mod word;

pub use say::{Parts, say};
pub use store::Words;
pub use word::{Left, Word, shut_out, words};

/// Why words cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum WordsError {
    /// The database failed.
    #[error("the words to be said on the new ledger")]
    Database(#[from] rusqlite::Error),
    /// It is damaged.
    #[error("a word to be said on the new ledger cannot be read")]
    Body(#[from] serde_json::Error),
    /// It was written by another version.
    #[error("the words to be said on the new ledger have format {0}, this program knows 1")]
    Version(i64),
}
