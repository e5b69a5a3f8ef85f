//! The output file and its ledger on disk.

pub mod file;
pub mod ledger;
