//! Waiting for what should happen, with a bound.

use std::thread;
use std::time::{Duration, Instant};

use super::Outcome;

/// How long anything may take that should happen: generous, as it costs nothing when it does.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; fails with `what` when it does not within [`PATIENCE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Outcome {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > until {
            return Err(format!("waited {} s in vain for: {what}", PATIENCE.as_secs()).into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
