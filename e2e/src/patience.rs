//! Waiting on conditions: every wait has a bound, and no wait is a guess of how long something takes.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Far above what anything here takes on an idle machine, so that only what never happens is reported.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a condition: short beside what is waited for, long beside what a look costs.
const LOOK: Duration = Duration::from_millis(10);

/// How long a condition is waited for. `DINLE_PATIENCE` is a factor for slow machines.
pub fn patience() -> Duration {
    let factor = std::env::var("DINLE_PATIENCE")
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .unwrap_or(1.0);
    PATIENCE.mul_f64(factor)
}

/// Waits until the condition holds.
///
/// # Panics
/// When it does not within [`patience`].
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    after(Duration::ZERO, what, condition);
}

/// The same of what happens only once a time is over that somebody else keeps.
///
/// # Panics
/// When it does not within that time and [`patience`].
pub fn after(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let patience = time + patience();
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "did not happen within {patience:?}: {what}"
        );
        sleep(LOOK);
    }
}
