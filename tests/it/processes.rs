//! Programs that are killed, terminated or paused, and two of them over one file.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Outcome;
use crate::support::broker::{Broker, NOWHERE};
use crate::support::chance::Chance;
use crate::support::fixtures::{Brokered, Embedded, Services};
use crate::support::load::Load;
use crate::support::program::{CONSUMING, Program, STANDING_BY};
use crate::support::wait::wait_until;

/// Kills one of `programs` at a random instant, fifty times. Every fifth start is waited for, and visits
/// after it; the others may be met by the next kill.
fn kill_fifty_times(programs: &mut [&mut Program], load: &Load, mut chance: Chance) -> Outcome {
    for n in 0..50 {
        load.wait_for(chance.below(60) as usize)?;
        thread::sleep(Duration::from_millis(chance.below(40)));
        let victim = &mut programs[chance.below(programs.len() as u64) as usize];
        victim.kill()?;
        if n % 5 == 0 {
            victim.start_again()?;
            load.wait_for(150)?;
        } else {
            victim.spawn_again()?;
        }
    }
    load.wait_for(150)
}

#[test]
fn fifty_kills_of_pixel_at_random_instants_lose_and_repeat_nothing() -> Outcome {
    let mut system = Embedded::start()?;
    let load = system.load(8);
    kill_fifty_times(&mut [&mut system.pixel], &load, Chance(51))?;
    system.stop_and_verify(load)
}

#[test]
fn fifty_kills_of_the_services_at_random_instants_lose_and_repeat_nothing() -> Outcome {
    let mut system = Brokered::start(&Broker::shared()?.url(), "fifty")?;
    let load = system.load(8);
    kill_fifty_times(&mut [&mut system.http, &mut system.storage], &load, Chance(50))?;
    system.wait_until_well()?;
    system.stop_and_verify(load)
}

#[test]
fn both_services_and_the_broker_killed_at_once_come_back() -> Outcome {
    let mut broker = Broker::start()?;
    let mut system = Brokered::start(&broker.url(), "at-once")?;
    let load = system.load(6);
    load.wait_for(200)?;
    broker.wait_until_durable("at-once")?;
    for _ in 0..2 {
        load.wait_for(200)?;
        broker.nodes[0].signal(Signal::KILL)?;
        system.http.kill()?;
        system.storage.kill()?;
        broker.nodes[0].kill()?;
        system.http.start_again()?;
        system.storage.spawn_again()?;
        load.wait_for(200)?;
        broker.nodes[0].start()?;
        system.wait_until_well()?;
    }
    load.wait_for(200)?;
    system.stop_and_verify(load)
}

#[test]
fn sigterm_under_load_ends_with_0_and_loses_nothing() -> Outcome {
    let mut system = Brokered::start(&Broker::shared()?.url(), "sigterm")?;
    let load = system.load(6);
    for round in 0..10 {
        load.wait_for(60)?;
        let program = if round % 2 == 0 { &mut system.http } else { &mut system.storage };
        program.stop()?;
        program.start_again()?;
    }
    load.wait_for(60)?;
    system.stop_and_verify(load)
}

#[test]
fn a_standby_takes_over() -> Outcome {
    let mut system = Brokered::start(&Broker::shared()?.url(), "standby")?;
    let mut standby = system.storage.launch.spawn()?;
    standby.wait_for_log(STANDING_BY)?;
    let (status, state) = standby.admin()?.readiness()?;
    assert!(status == 200 && state.contains("standing by"), "{status} {state}");
    let load = system.load(4);
    load.wait_for(300)?;
    assert!(!standby.log().contains("writing to"), "{}", standby.log());
    system.storage.kill()?;
    standby.wait_for_log("writing to")?;
    standby.wait_for_log(CONSUMING)?;
    load.wait_for(300)?;
    system.storage = standby;
    system.stop_and_verify(load)
}

/// A paused process keeps its lock, so nobody else writes; once somebody removes the lock file a standby
/// does, and the one that wakes up then writes nothing more and ends.
#[test]
fn a_paused_storage_that_wakes_up_after_the_takeover_does_not_write() -> Outcome {
    let mut system = Brokered::start(&Broker::shared()?.url(), "paused")?;
    let output = system.output.clone();
    let load = system.load(6);
    for _ in 0..4 {
        let mut standby = system.storage.launch.spawn()?;
        standby.wait_for_log(STANDING_BY)?;
        load.wait_for(150)?;
        system.storage.pause()?;
        let written = output.lines().len();
        load.wait_for(100)?;
        assert!(output.lines().len() <= written, "only the holder of the lock writes");
        assert!(!standby.log().contains(CONSUMING), "{}", standby.log());
        system.storage.signal(Signal::CONT)?;
        wait_until("it to go on", || output.lines().len() > written)?;

        load.wait_for(100)?;
        system.storage.pause()?;
        fs::remove_file(output.beside(".lock"))?;
        // It may be paused within a batch, and then the standby waits for that.
        let until = Instant::now() + Duration::from_secs(3);
        while !standby.log().contains(CONSUMING) && Instant::now() < until {
            thread::sleep(Duration::from_millis(50));
        }
        load.wait_for(100)?;
        system.storage.signal(Signal::CONT)?;
        assert_eq!(system.storage.wait()?, 1, "{}", system.storage.log());
        assert!(system.storage.log().contains("was removed or replaced while it was held"));
        standby.wait_for_log(CONSUMING)?;
        system.storage = standby;
    }
    load.wait_for(100)?;
    system.stop_and_verify(load)
}

#[test]
fn a_second_process_on_one_spool_is_refused_by_the_holder_s_file() -> Outcome {
    let mut system = Embedded::start()?;
    let launch = system.pixel.launch.clone().with("listen", "127.0.0.1:0");
    let (status, _, stderr) = launch.run()?;
    assert_eq!(status, 1, "{stderr}");
    let lock = launch.folder().join("spool/lock");
    assert!(
        stderr.contains(&lock.display().to_string()) && stderr.contains(&system.pixel.pid()?.to_string()),
        "{stderr}"
    );
    system.pixel.stop()
}

#[test]
fn slots_let_processes_share_a_folder() -> Outcome {
    let services = Services::new(NOWHERE, "nobody")?;
    let launch = services.http.with("listen", "127.0.0.1:0").with("spool-slots", "2");
    let (mut first, mut second) = (launch.start()?, launch.start()?);
    let spool = launch.folder().join("spool");
    assert!(spool.join("0/lock").exists() && spool.join("1/lock").exists());
    let (status, _, stderr) = launch.run()?;
    assert!(status == 1 && stderr.contains("spool/1/lock"), "{status} {stderr}");
    first.stop()?;
    second.stop()
}
