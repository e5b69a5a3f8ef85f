//! Waiting for what should happen, with a bound.

use std::thread;
use std::time::{Duration, Instant};

use super::Outcome;

/// How long anything may take that should happen: generous, as it costs nothing when it does.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` holds; fails with `what` when it does not within a minute.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) -> Outcome {
    wait_up_to(PATIENCE, what, condition)
}

/// Waits until `condition` holds; fails with `what` when it does not within `patience`.
pub fn wait_up_to(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Outcome {
    let until = Instant::now() + patience;
    while !condition() {
        if Instant::now() > until {
            return Err(format!("waited {} s in vain for: {what}", patience.as_secs()).into());
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}
