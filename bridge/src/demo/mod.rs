//! The demonstration: a whole site on this machine, with studies of nobody.

pub mod phantom;
