//! The first minutes on a machine: folders that are not there, terminals that are closed, a second start.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::Outcome;
use crate::support::broker::NOWHERE;
use crate::support::client::get;
use crate::support::fixtures::Embedded;
use crate::support::launch::Launch;
use crate::support::output::Output;
use crate::support::wait::wait_up_to;

#[test]
fn the_folder_of_the_output_is_made() -> Outcome {
    let launch = Embedded::launch()?;
    let output = Output::at(launch.folder().join("a/b/visits.log"));
    let mut system = Embedded::of(&launch.with("output", &output.path))?;
    system.visit(&[])?;
    output.wait_for_lines(1)?;
    system.pixel.stop()
}

/// It said so again and again in the log, took visits, and wrote none.
#[test]
fn an_output_that_cannot_be_written_ends_the_first_start_with_path_and_cure() -> Outcome {
    for program in ["pixel", "pixel-storage"] {
        let launch = Launch::new(program)?;
        let file = launch.folder().join("file");
        fs::write(&file, "")?;
        let below = |name: &str| file.join(name).display().to_string();
        for (option, value, named) in [
            ("output", below("visits.log"), below("visits.log")),
            ("output", "/proc/visits.log".into(), "/proc/visits.log".into()),
            ("state-dir", below("state"), below("state/visits.log.lock")),
        ] {
            let launch = launch.clone().with("amqp-url", NOWHERE).with(option, &value);
            let (status, _, stderr) = launch.run()?;
            let line = stderr.lines().last().unwrap_or_default();
            assert_eq!(status, 1, "{program} {option}={value}: {stderr}");
            for part in [format!("{program}: failed to write to `{named}"), format!("(--{option}, PIXEL_")] {
                assert!(line.contains(&part), "{part}: {stderr}");
            }
            assert!(!stderr.contains("listening"), "{stderr}");
        }
    }
    Ok(())
}

#[test]
fn visits_in_memory_are_a_warning() -> Outcome {
    let memory = tempfile::tempdir_in("/dev/shm")?;
    for (program, option, path) in [
        ("pixel", "output", memory.path().join("visits.log")),
        ("pixel", "spool-dir", memory.path().join("spool")),
        ("pixel-http", "spool-dir", memory.path().join("spool-of-http")),
    ] {
        let launch = Launch::new(program)?.with(option, &path);
        let mut pixel = launch.with("amqp-url", NOWHERE).start()?;
        pixel.wait_for_log("is on tmpfs, which is memory")?;
        pixel.stop()?;
    }
    Ok(())
}

#[test]
fn a_second_start_says_who_runs_already_and_where() -> Outcome {
    let mut system = Embedded::start()?;
    let (status, _, stderr) = system.pixel.launch.run()?;
    let said = format!(
        "pixel: Pixel already runs here as process {} (listening on http://{}; ",
        system.pixel.pid()?.as_raw_nonzero(),
        system.address
    );
    assert!(status == 1 && stderr.contains(&said), "{stderr}");
    system.pixel.stop()
}

/// A pseudo-terminal.
struct Terminal(
    #[expect(dead_code, reason = "it is there until it is dropped")] std::os::fd::OwnedFd,
    String,
);

fn terminal() -> Outcome<Terminal> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?.into_string()?;
    Ok(Terminal(master, name))
}

/// It went on for ever, with nobody who could see it.
#[test]
fn closing_its_terminal_ends_it_and_hanging_up_without_one_does_not() -> Outcome {
    let terminal = terminal()?;
    let on_terminal = format!("exec setsid --ctty \"$0\" \"$@\" <{}", terminal.1);
    let mut system = Embedded::with(|launch| launch.before(&on_terminal))?;
    system.visit(&[])?;
    drop(terminal);
    assert_eq!(system.pixel.wait()?, 0, "{}", system.pixel.log());
    system.output.wait_for_lines(1)?;
    system.output.audit_finds_nothing()?;

    let mut system = Embedded::start()?;
    system.pixel.signal(Signal::HUP)?;
    let ends = wait_up_to(Duration::from_millis(500), "its end", || !system.pixel.runs());
    assert!(ends.is_err() && get(system.address, "/track", &[])?.status == 200);
    system.pixel.stop()
}
