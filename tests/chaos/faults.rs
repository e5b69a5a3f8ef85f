//! The faults: each begins, lasts a while, and ends.

use std::fs::{self, OpenOptions};
use std::time::Duration;

use amiquip::AmqpProperties;
use rustix::process::Signal;

use crate::Outcome;
use crate::support::chance::Chance;
use crate::support::shell::shell;
use crate::support::wait::wait_until;
use crate::system::{Mode, System};

/// How long the output's flock is waited for.
const LOCK_MAX: Duration = Duration::from_secs(10);

/// What a fault touches. Two of one group do not happen at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Process,
    Disk,
    Broker,
}

impl Group {
    fn of(mode: Mode) -> &'static [Group] {
        match mode {
            Mode::Embedded => &[Group::Process, Group::Disk],
            // Those of the disk are about one output at one place.
            Mode::Sharded | Mode::Moved => &[Group::Process, Group::Broker],
            _ => &[Group::Process, Group::Disk, Group::Broker],
        }
    }
}

/// A fault. Processes and nodes are named by a number, taken modulo how many there are.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    Kill { process: usize, times: u64 },
    KillAll,
    Terminate { process: usize },
    Pause { process: usize, ms: u64 },
    HangUp,
    Strand { ms: u64 },
    TakeOver { paused: bool },
    Disk { operation: &'static str, error: &'static str, file: &'static str, ms: u64, kill: bool },
    Rotate,
    CopyTruncate,
    FolderAway { ms: u64 },
    RemoveLedger,
    FlockGzipRemove,
    SlowReader { ms: u64, exclusive: bool },
    ForeignLines { count: u64 },
    InodeThief { beside: bool },
    PausedWhileLockIsRemoved,
    NodeKill { node: usize, ms: u64 },
    NodeStop { node: usize, ms: u64 },
    NodePause { node: usize, ms: u64 },
    TwoNodesKill { node: usize, ms: u64 },
    MemoryAlarm { ms: u64 },
    CutConnections { bytes: [u32; 6] },
    RefuseConnections { ms: u64 },
    ForeignMessages { count: u64 },
    EverythingKill,
}

impl Fault {
    /// Draws one that is possible in `mode`, of another group than `but`.
    pub fn draw(mode: Mode, but: Option<Group>, chance: &mut Chance) -> Fault {
        let groups: Vec<Group> =
            Group::of(mode).iter().copied().filter(|group| Some(*group) != but).collect();
        let process = chance.below(1000) as usize;
        let node = chance.below(1000) as usize;
        let ms = chance.below(4000);
        let kinds = chance.below(1000);
        match groups[chance.below(groups.len() as u64) as usize] {
            Group::Process => match kinds % 8 {
                0 if mode == Mode::Sharded => Fault::Strand { ms: 6000 + ms * 2 },
                0 | 1 if mode == Mode::Moved && but.is_none() => {
                    Fault::TakeOver { paused: node.is_multiple_of(2) }
                }
                0..4 => Fault::Kill { process, times: 1 + chance.below(4) },
                4 => Fault::KillAll,
                5 => Fault::Terminate { process },
                6 => Fault::Pause { process, ms },
                // Until its neighbour has looked twice.
                _ if mode == Mode::Sharded => Fault::Strand { ms: 6000 + ms * 2 },
                // It waits for the broker.
                _ if mode == Mode::Moved && but.is_none() => {
                    Fault::TakeOver { paused: node.is_multiple_of(2) }
                }
                _ => Fault::HangUp,
            },
            Group::Disk => match kinds % 13 {
                0..3 => Fault::Disk {
                    operation: ["write", "sync", "write,truncate"][chance.below(3) as usize],
                    error: ["EIO", "ENOSPC", "EROFS"][chance.below(3) as usize],
                    file: ["visits.log", "visits.log.ledger", ".spool"][chance.below(3) as usize],
                    ms,
                    kill: chance.below(2) == 0,
                },
                3 => Fault::Rotate,
                // What a crash left is recognised where it stands: not promised is a copy that is made of it before the
                // next writer has looked.
                4 | 10 | 11 if but.is_some() => Fault::Rotate,
                // It waits for a writer at work, and without its broker none is.
                6 if but == Some(Group::Broker) => Fault::Rotate,
                4 => Fault::CopyTruncate,
                5 => Fault::FolderAway { ms },
                6 => Fault::RemoveLedger,
                7 | 8 => Fault::SlowReader { ms: ms * 2, exclusive: kinds % 13 == 7 },
                9 => Fault::ForeignLines { count: 1 + chance.below(60) },
                10 => Fault::FlockGzipRemove,
                11 => Fault::InodeThief { beside: chance.below(2) == 0 },
                _ if mode == Mode::Embedded => Fault::Rotate,
                _ => Fault::PausedWhileLockIsRemoved,
            },
            Group::Broker => match kinds % 10 {
                0 | 1 => Fault::NodeKill { node, ms },
                2 => Fault::NodeStop { node, ms },
                // Sometimes longer than two heartbeats.
                3 => Fault::NodePause { node, ms: ms * 4 },
                4 => Fault::MemoryAlarm { ms: ms * 2 },
                5 => Fault::CutConnections { bytes: [(); 6].map(|()| 50 + chance.below(60_000) as u32) },
                6 => Fault::RefuseConnections { ms: ms * 2 },
                // Without numbers, and with one ledger for each output, they may be in two.
                7 if matches!(mode, Mode::Sharded | Mode::Moved) => Fault::RefuseConnections { ms },
                7 => Fault::ForeignMessages { count: 1 + chance.below(10) },
                8 if mode == Mode::Cluster => Fault::TwoNodesKill { node, ms },
                _ => Fault::EverythingKill,
            },
        }
    }

    pub fn group(&self) -> Group {
        match self {
            Fault::Kill { .. }
            | Fault::KillAll
            | Fault::Terminate { .. }
            | Fault::Pause { .. }
            | Fault::HangUp
            | Fault::Strand { .. }
            | Fault::TakeOver { .. } => Group::Process,
            Fault::Disk { .. }
            | Fault::Rotate
            | Fault::CopyTruncate
            | Fault::FolderAway { .. }
            | Fault::RemoveLedger
            | Fault::FlockGzipRemove
            | Fault::SlowReader { .. }
            | Fault::ForeignLines { .. }
            | Fault::InodeThief { .. }
            | Fault::PausedWhileLockIsRemoved => Group::Disk,
            _ => Group::Broker,
        }
    }

    /// Makes it happen.
    pub fn begin(&self, system: &mut System) -> Outcome {
        match self {
            Fault::Kill { process, times } => {
                for _ in 0..*times {
                    system.program(*process).kill()?;
                    pause(*times * 20);
                    system.program(*process).spawn()?;
                    pause(*times * 60);
                }
            }
            Fault::KillAll => {
                system.kill_all()?;
                system.spawn_all()?;
            }
            Fault::Terminate { process } => {
                system.program(*process).terminate()?;
                system.program(*process).spawn()?;
            }
            Fault::Pause { process, ms } => {
                system.program(*process).signal(Signal::STOP);
                pause(*ms);
            }
            Fault::HangUp => system.signal_all(Signal::HUP),
            Fault::Strand { ms } => {
                system.strand()?;
                pause(*ms);
            }
            Fault::TakeOver { paused } => system.take_over(*paused)?,
            Fault::Disk { operation, error, file, ms, .. } => {
                system.faults.begin(operation, error, file)?;
                pause(*ms);
            }
            Fault::Rotate => {
                system.rotate("", |output, old| Ok(fs::rename(&output.path, old).map(|()| true)?))?;
            }
            Fault::CopyTruncate => system.rotate("", |output, old| {
                // A writer that is paused within a batch holds it.
                let Some(_reader) = output.try_to_hold_writer_up(LOCK_MAX, true)? else { return Ok(false) };
                fs::copy(&output.path, old)?;
                OpenOptions::new().write(true).open(&output.path)?.set_len(0)?;
                Ok(true)
            })?,
            Fault::FlockGzipRemove => system.rotate(".gz", |output, old| {
                let script = format!(
                    r#"flock -w {} -E 9 visits.log sh -c "gzip -c visits.log > '$0' && sleep 0.3 && rm visits.log" || [ $? = 9 ]"#,
                    LOCK_MAX.as_secs()
                );
                shell(output.folder()?, &script, &old.to_string_lossy())?;
                Ok(old.exists())
            })?,
            Fault::FolderAway { ms } => {
                fs::rename(system.folder(), system.away())?;
                pause(*ms);
            }
            Fault::RemoveLedger => system.remove_ledger()?,
            Fault::SlowReader { ms, exclusive } => {
                if system.output.path.exists() {
                    let reader = system.output.try_to_hold_writer_up(LOCK_MAX, *exclusive)?;
                    pause(*ms);
                    drop(reader);
                }
            }
            Fault::ForeignLines { count } => {
                for _ in 0..*count {
                    system.foreign_lines += 1;
                    system.output.append(&format!("foreign {}\n", system.foreign_lines))?;
                    pause(1);
                }
            }
            Fault::InodeThief { beside } => system.have_inode_stolen(*beside)?,
            Fault::PausedWhileLockIsRemoved => system.remove_lock_of_paused()?,
            Fault::NodeKill { node, ms } => {
                system.node(*node).kill()?;
                pause(*ms);
            }
            Fault::NodeStop { node, ms } => {
                system.node(*node).control(&["stop"])?;
                pause(*ms);
            }
            Fault::NodePause { node, ms } => {
                system.node(*node).signal(Signal::STOP)?;
                pause(*ms);
            }
            Fault::TwoNodesKill { node, ms } => {
                system.node(*node).kill()?;
                system.node(*node + 1).kill()?;
                pause(*ms);
            }
            Fault::MemoryAlarm { ms } => {
                system.node(0).control(&["set_vm_memory_high_watermark", "0.000001"])?;
                pause(*ms);
            }
            Fault::CutConnections { bytes } => system.proxies.iter().for_each(|proxy| proxy.cut(bytes)),
            Fault::RefuseConnections { ms } => {
                system.proxies.iter().for_each(|proxy| proxy.refuse(true));
                pause(*ms);
            }
            Fault::ForeignMessages { count } => {
                for _ in 0..*count {
                    system.publish(AmqpProperties::default())?;
                }
            }
            Fault::EverythingKill => {
                system.kill_all()?;
                system.node(0).kill()?;
                system.spawn_all()?;
            }
        }
        Ok(())
    }

    /// Ends it.
    pub fn end(&self, system: &mut System) -> Outcome {
        match self {
            Fault::Pause { process, .. } => system.program(*process).signal(Signal::CONT),
            Fault::Disk { kill, .. } => {
                if *kill {
                    system.kill_all()?;
                }
                system.faults.end()?;
                system.spawn_all()?;
            }
            Fault::FolderAway { .. } => fs::rename(system.away(), system.folder())?,
            Fault::NodeKill { node, .. } => system.node(*node).start()?,
            Fault::NodeStop { node, .. } => {
                system.node(*node).kill()?;
                system.node(*node).start()?;
            }
            Fault::NodePause { node, .. } => system.node(*node).signal(Signal::CONT)?,
            Fault::TwoNodesKill { node, .. } => {
                system.node(*node).start()?;
                system.node(*node + 1).start()?;
            }
            Fault::MemoryAlarm { .. } => {
                system.node(0).control(&["set_vm_memory_high_watermark", "0.4"])?;
            }
            Fault::RefuseConnections { .. } => system.proxies.iter().for_each(|proxy| proxy.refuse(false)),
            Fault::EverythingKill => system.node(0).start()?,
            Fault::Rotate | Fault::CopyTruncate | Fault::FlockGzipRemove => {
                let output = system.output.clone();
                let _ = wait_until("the output", || output.path.exists());
            }
            _ => {}
        }
        Ok(())
    }
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
