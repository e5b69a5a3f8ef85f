//! What a line is made of.

use uuid::Uuid;

use crate::visit::Visit;

/// A visit with its number, as the output file is to show it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numbered<'a> {
    /// The visit itself.
    pub visit: &'a Visit<'a>,
    /// The spool that numbered it and the number; absent for another client's message.
    pub number: Option<(Uuid, u64)>,
}
