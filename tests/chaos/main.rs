//! Random faults against the whole system under load: every visit answered with 200 is written once.
//!
//! `MINUTES` for how long in all, `MODE` for which system (embedded, brokered, cluster, sharded, moved or all of them),
//! `SEED` to repeat the faults of an earlier run. Without any of them, as in `make test`: a minute each of
//! embedded and brokered.

#![allow(clippy::print_stdout, reason = "progress and verdict are what it is run for")]

mod faults;
#[allow(dead_code, reason = "tests/it uses the rest")]
#[path = "../support/mod.rs"]
mod support;
mod system;
mod verdict;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use faults::Fault;
use support::Outcome;
use support::chance::Chance;
use support::program;
use system::{Mode, System};

fn main() -> ExitCode {
    // `cargo test SOME_NAME` and `--list` are about the other tests.
    if std::env::args().len() > 1 {
        return ExitCode::SUCCESS;
    }
    program::SHOWS_LOGS.store(false, std::sync::atomic::Ordering::Relaxed);
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<bool> {
    let setting = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let minutes: f64 = setting("MINUTES").map_or(Ok(2.0), |text| text.parse())?;
    let seed: u64 = match setting("SEED") {
        Some(text) => text.parse()?,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() % 1_000_000,
    };
    let modes = match setting("MODE").as_deref() {
        None => vec![Mode::Embedded, Mode::Brokered],
        Some("all") => vec![Mode::Embedded, Mode::Brokered, Mode::Cluster, Mode::Sharded, Mode::Moved],
        Some("embedded") => vec![Mode::Embedded],
        Some("brokered") => vec![Mode::Brokered],
        Some("cluster") => vec![Mode::Cluster],
        Some("sharded") => vec![Mode::Sharded],
        Some("moved") => vec![Mode::Moved],
        Some(other) => {
            let all = "embedded, brokered, cluster, sharded, moved or all";
            return Err(format!("MODE is `{other}`: {all}").into());
        }
    };
    let span = Duration::from_secs_f64(minutes * 60.0 / modes.len() as f64);
    let mut is_well = true;
    for mode in modes {
        println!("chaos: {mode:?} for {} s, SEED={seed}", span.as_secs());
        is_well &= rage(mode, span, seed)?;
    }
    Ok(is_well)
}

/// Runs one system under faults; whether nothing was lost, repeated or stuck.
fn rage(mode: Mode, span: Duration, seed: u64) -> Outcome<bool> {
    let mut system = System::start(mode)?;
    let start = Instant::now();
    let (mut faults, mut step, mut shown) = (0, 0, Instant::now());
    let mut stuck = None;
    while start.elapsed() < span && stuck.is_none() {
        step += 1;
        // A step's chance is its own: what an earlier one met does not change it.
        let mut chance = Chance((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (step << 20));
        let mut now = vec![Fault::draw(mode, None, &mut chance)];
        if chance.below(3) == 0 {
            now.push(Fault::draw(mode, Some(now[0].group()), &mut chance));
        }
        faults += now.len();
        println!("  {:>4} s  {now:?}", start.elapsed().as_secs());
        for fault in &now {
            fault.begin(&mut system)?;
            std::thread::sleep(Duration::from_millis(chance.below(500)));
        }
        std::thread::sleep(Duration::from_millis(chance.below(3000)));
        for fault in &now {
            fault.end(&mut system)?;
        }
        if let Err(error) = system.comes_back() {
            stuck = Some(error);
        }
        if shown.elapsed() > Duration::from_secs(10) {
            shown = Instant::now();
            let (accepted, written) = (system.accepted(), system.written()?);
            println!(
                "  {:>4} s  accepted {accepted}, written {written}, backlog {}, faults {faults}",
                start.elapsed().as_secs(),
                accepted.saturating_sub(written)
            );
        }
    }
    if let Some(error) = &stuck {
        println!("chaos: it does not come back: {error}\n{}", system.logs());
    }
    println!("chaos: {mode:?}, SEED={seed}, {faults} faults");
    let verdict = system.end()?;
    println!("{verdict}");
    Ok(stuck.is_none() && verdict.is_well())
}
