//! The faults: each begins, lasts a while, and ends.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use amiquip::AmqpProperties;
use rustix::process::Signal;

use crate::Outcome;
use crate::support::chance::Chance;
use crate::support::wait::wait_until;
use crate::system::{Mode, System};

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
    Disk { operation: &'static str, error: &'static str, file: &'static str, ms: u64, kill: bool },
    Rotate,
    CopyTruncate,
    FolderAway { ms: u64 },
    RemoveLedger,
    SlowReader { ms: u64 },
    ForeignLine,
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
                0..4 => Fault::Kill { process, times: 1 + chance.below(4) },
                4 => Fault::KillAll,
                5 => Fault::Terminate { process },
                6 => Fault::Pause { process, ms },
                _ => Fault::HangUp,
            },
            Group::Disk => match kinds % 10 {
                0..3 => Fault::Disk {
                    operation: ["write", "sync", "write,truncate"][chance.below(3) as usize],
                    error: ["EIO", "ENOSPC", "EROFS"][chance.below(3) as usize],
                    file: ["visits.log", "visits.log.ledger", ".spool"][chance.below(3) as usize],
                    ms,
                    kill: chance.below(2) == 0,
                },
                3 => Fault::Rotate,
                4 => Fault::CopyTruncate,
                5 => Fault::FolderAway { ms },
                6 => Fault::RemoveLedger,
                7 => Fault::SlowReader { ms: ms * 2 },
                8 => Fault::ForeignLine,
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
            | Fault::HangUp => Group::Process,
            Fault::Disk { .. }
            | Fault::Rotate
            | Fault::CopyTruncate
            | Fault::FolderAway { .. }
            | Fault::RemoveLedger
            | Fault::SlowReader { .. }
            | Fault::ForeignLine
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
            Fault::Disk { operation, error, file, ms, .. } => {
                system.faults.begin(operation, error, file)?;
                pause(*ms);
            }
            Fault::Rotate => system.rotate(|output, old| Ok(fs::rename(&output.path, old)?))?,
            Fault::CopyTruncate => system.rotate(|output, old| {
                let _reader = output.hold_writer_up()?;
                fs::copy(&output.path, old)?;
                Ok(OpenOptions::new().write(true).open(&output.path)?.set_len(0)?)
            })?,
            Fault::FolderAway { ms } => {
                fs::rename(system.folder(), system.away())?;
                pause(*ms);
            }
            Fault::RemoveLedger => system.remove_ledger()?,
            Fault::SlowReader { ms } => {
                if let Ok(reader) = File::open(&system.output.path) {
                    fs2::FileExt::lock_shared(&reader)?;
                    pause(*ms);
                }
            }
            Fault::ForeignLine => {
                system.foreign_lines += 1;
                let line = format!("foreign {}\n", system.foreign_lines);
                let mut options = OpenOptions::new();
                options.append(true).create(true).open(&system.output.path)?.write_all(line.as_bytes())?;
            }
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
            Fault::Rotate | Fault::CopyTruncate => {
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
