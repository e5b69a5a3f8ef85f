//! The writing side of `pixel` and pixel-storage: the output's lock, its ledger, and a recorder over both.

use std::io;
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::disks::make_folder;
use super::options::OutputSettings;
use super::process::Process;
use super::status::OutputFiles;
use crate::connect::Backoff;
use crate::disk::folder::RealFolder;
use crate::disk::{folder_of, sibling};
use crate::health::{Health, Part};
use crate::metrics::{Metrics, Role};
use crate::output::{
    Aftercare, LedgerFile, OutputFile, OutputLock, RotatedFiles, StandardOutput, Waiting, open_ledger,
};
use crate::record::{RecordError, Recorder, VisitLog};
use crate::stop::Stop;
use crate::supervisor::Supervisor;

/// An output's place, lock, ledger and id.
type Opened = (usize, OutputLock, LedgerFile, Uuid);

/// Writes one output, once it is this process's turn.
pub struct Writer {
    // The first that is free is the one.
    outputs: Vec<OutputSettings>,
    // Which one it is, once it is.
    active: Arc<OnceLock<usize>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    stop: Stop,
    supervisor: Supervisor,
}

impl Writer {
    /// The writer of `output`, as a part of `process`.
    pub fn new(output: OutputSettings, process: &Process) -> Self {
        Self::of_any(vec![output], process)
    }

    /// The writer of the first of `outputs` that nobody writes, as a part of `process`. It stands by where each is
    /// written already.
    pub fn of_any(outputs: Vec<OutputSettings>, process: &Process) -> Self {
        Writer {
            outputs,
            active: Arc::default(),
            metrics: process.metrics.clone(),
            health: process.health.clone(),
            stop: process.stop.clone(),
            supervisor: process.supervisor.clone(),
        }
    }

    /// What it writes to, for who tells operators of it.
    pub fn files(&self) -> OutputFiles {
        let files = self.outputs.iter().map(|output| (output.path.clone(), output.ledger.clone()));
        OutputFiles { files: files.collect(), active: self.active.clone() }
    }

    /// Waits for the output's lock, opens its ledger, and hands a recorder to `record`. `Ok` when the word to
    /// stop was given.
    ///
    /// # Errors
    /// Why nothing more can be written.
    pub fn run(
        &self,
        record: impl FnOnce(&mut Recorder<'_>, &Stop) -> Result<(), RecordError>,
    ) -> Result<(), String> {
        self.run_any(|_, _, recorder, stop| record(recorder, stop))
    }

    /// The same, and tells `record` the output's place among those that were given, and its id.
    ///
    /// # Errors
    /// As for [`Writer::run`].
    pub fn run_any(
        &self,
        record: impl FnOnce(usize, Uuid, &mut Recorder<'_>, &Stop) -> Result<(), RecordError>,
    ) -> Result<(), String> {
        let Some((at, lock, mut ledger, id)) = self.open() else { return Ok(()) };
        // It is the one for as long as the process lives.
        self.active.get_or_init(|| at);
        if self.metrics.role == Role::Storage {
            self.metrics.storage_active.set(1.0);
        }
        let output = &self.outputs[at];
        let format = output.format;
        log::info!("writing to {}", output.shown());
        self.look_after_rotated(output, &lock)
            .map_err(|error| format!("failed to look after rotated files: {error}"))?;
        let mut visit_log = open_log(output, lock)?;
        let mut recorder = Recorder {
            format,
            visit_log: &mut *visit_log,
            ledger: &mut ledger,
            metrics: &self.metrics,
            health: &self.health,
        };
        record(at, id, &mut recorder, &self.stop).map_err(|error| error.to_string())
    }

    /// Has what is rotated compressed and removed, as it is to be, on a thread of its own. Where neither is, what an
    /// earlier start left of it half done waits for one that does.
    fn look_after_rotated(&self, output: &OutputSettings, lock: &OutputLock) -> io::Result<()> {
        let Some(path) = &output.path else { return Ok(()) };
        // What is noted as removed is to be gone, and the list of it whole for the audit.
        if output.aftercare == Aftercare::default() && !sibling(&output.ledger, "removed").exists() {
            return Ok(());
        }
        let (right, aftercare) = (Box::new(lock.share()?), output.aftercare.clone());
        let files = RotatedFiles::new(path, &output.ledger, aftercare, right, self.stop.clone());
        self.supervisor.start("rotated files", move || {
            files.run();
            Ok(())
        })?;
        Ok(())
    }

    /// Opens lock and ledger, again and again where that fails; `None` when the word to stop came first.
    fn open(&self) -> Option<Opened> {
        let mut backoff = Backoff::default();
        while !self.stop.is_set() {
            match self.try_to_open() {
                Ok(opened) => return opened,
                Err(problem) => {
                    self.metrics.output_errors.inc();
                    if let Some(lasting) = self.health.ill(Part::Output, &problem) {
                        log::error!("{problem}{lasting}; trying again");
                    }
                    backoff.wait(&self.stop);
                }
            }
        }
        None
    }

    fn try_to_open(&self) -> Result<Option<Opened>, String> {
        for output in &self.outputs {
            // One that somebody names was made at the first start, or waits: its disk may not be mounted yet.
            if output.is_default {
                let folder = folder_of(&output.ledger);
                let made = make_folder(folder);
                made.map_err(|error| format!("failed to make `{}`: {error}", folder.display()))?;
            }
        }
        let waiting = |at: usize, reason| match reason {
            Waiting::StandingBy => {
                self.health.stand_by(true);
                let shown = self.outputs[at].lock.display();
                match self.outputs.len() {
                    1 => log::info!("standing by: another process has `{shown}`"),
                    all => log::info!("standing by: other processes have `{shown}` and all else of {all}"),
                }
            }
            Waiting::OutputLocked(holder) => {
                let holder = holder.unwrap_or_else(|| "another process".into());
                let shown = self.outputs[at].shown();
                let problem = format!("{holder} keeps `{shown}` locked (flock)");
                self.health.stand_by(false);
                if let Some(lasting) = self.health.ill(Part::Output, &problem) {
                    log::warn!("{problem}{lasting}; waiting for it");
                }
            }
        };
        let all: Vec<_> =
            self.outputs.iter().map(|output| (output.path.as_deref(), output.lock.as_path())).collect();
        let lock = OutputLock::acquire(&all, &self.stop, waiting);
        self.health.stand_by(false);
        let Some((at, lock)) = lock? else { return Ok(None) };
        let mut ledger = open_ledger(&self.outputs[at].ledger).map_err(|error| error.to_string())?;
        let id = ledger.id().map_err(|error| error.to_string())?;
        Ok(Some((at, lock, ledger, id)))
    }
}

/// What the lines go to.
fn open_log(output: &OutputSettings, lock: OutputLock) -> Result<Box<dyn VisitLog>, String> {
    let Some(path) = &output.path else {
        let opened = StandardOutput::open(Box::new(lock));
        return Ok(Box::new(opened.map_err(|error| format!("failed to write to standard output: {error}"))?));
    };
    let name = path.file_name().ok_or_else(|| format!("`{}` is no file's name", path.display()))?;
    let folder = Box::new(RealFolder::new(folder_of(path)));
    let file = OutputFile::new(folder, name, Box::new(lock), output.format);
    Ok(Box::new(file.rotating(output.rotation.clone())))
}
