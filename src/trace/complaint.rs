//! What fails again and again, and is said now and then.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is said.
const SAY_AGAIN: Duration = Duration::from_secs(300);

/// When it was said last, while it fails.
#[derive(Debug, Default)]
pub(super) struct Complaint(Mutex<Option<Instant>>);

impl Complaint {
    /// It has failed; whether that is to be said now.
    pub(super) fn is_due(&self) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = said.is_none_or(|said| said.elapsed() >= SAY_AGAIN);
        if is_due {
            *said = Some(Instant::now());
        }
        is_due
    }

    /// It works; whether it had failed before.
    pub(super) fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }
}
