//! Where something is sent, with what, and by whom.

/// Where one kind of what is sent goes.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub(super) url: String,
    /// The same, fit to be shown.
    pub(super) shown: String,
    pub(super) headers: Vec<(String, String)>,
    /// Whether what is sent is compressed with gzip.
    pub(super) is_compressed: bool,
    pub(super) agent: ureq::Agent,
}
