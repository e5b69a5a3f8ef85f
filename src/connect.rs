//! Waits that grow: between tries at something that is down.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

// Unit tests fail by the thousand, and nobody is to wait for them.
const SHORTEST: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 100 });
const LONGEST: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(50);

/// Doubles from 100 ms to 5 s, each wait shortened by up to half at random, so that many clients of a
/// broker that comes back do not come at once.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: SHORTEST }
    }
}

impl Backoff {
    /// Starts again with the shortest wait: something worked.
    pub fn reset(&mut self) {
        self.next = SHORTEST;
    }

    /// Waits, but returns soon after `stop` is set.
    pub fn wait(&mut self, stop: &AtomicBool) {
        let wait = self.next.mul_f64(0.5 + 0.5 * chance());
        self.next = (self.next * 2).min(LONGEST);
        let until = Instant::now() + wait;
        while !stop.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}

/// Between 0 and 1. A v4 UUID is the randomness at hand.
fn chance() -> f64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    (high >> 32) as f64 / f64::from(u32::MAX)
}
