//! Station "output": the file of visits, its locks, and the ledger of what stands in it.
//!
//! [`OutputFile`] and [`LedgerFile`] fill the ports of [`crate::record`] on disk.

mod file;
mod ledger;
mod lock;
mod tail;

pub use self::file::OutputFile;
pub use self::ledger::{LedgerFile, read as read_ledger};
pub use self::lock::OutputLock;
#[cfg(test)]
pub(crate) use self::tail::Tail;
