//! Station "output": the file of visits, its locks, and the ledger of what stands in it.
//!
//! [`OutputFile`] and [`LedgerFile`] fill the ports of [`crate::record`] on disk; [`StandardOutput`] stands in for the
//! file. [`RotatedFiles`] compresses and removes what was rotated.

mod batch;
mod candidates;
mod claims;
mod compression;
mod file;
mod keep;
mod ledger;
mod lock;
pub mod names;
mod rotated_files;
mod rotation;
mod stdout;
#[cfg(test)]
mod tests;
mod verify;

pub use self::compression::Compression;
pub use self::file::OutputFile;
pub use self::keep::Keep;
pub use self::ledger::{
    LedgerContent, LedgerFile, RemovedByNow, open_at as open_ledger, read as read_ledger,
};
pub use self::lock::{OutputLock, Right, Waiting};
pub use self::rotated_files::{Aftercare, RotatedFiles};
pub use self::rotation::{Rotation, TimesOfDay};
pub use self::stdout::StandardOutput;
pub use self::verify::{FileAudit, Verdict, verify};
