//! Where the output and the spool are to be, looked at before anything starts.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

use super::options::OutputSettings;
use super::process::Failure;
use crate::disk::file_system::FileSystem;
use crate::disk::{folder_of, keep_names, open_regular, private_file};

/// Makes the folders of `outputs`, and tries whether they can be written. Where Pixel has been before, a disk may be away
/// that comes back: nothing is made then, and whoever writes waits. So it is where a ledger is there, or a `spool` that
/// has a producer.
///
/// # Errors
/// What cannot be written, and the cure.
pub fn prepare(outputs: &[OutputSettings], spool: Option<&Path>) -> Result<(), Failure> {
    let has_been_here = |spool: &Path| spool.join("producer").exists() || spool.join("0/producer").exists();
    if !spool.is_some_and(has_been_here) {
        outputs.iter().filter(|output| !output.ledger.exists()).try_for_each(try_to_write)?;
    }
    let files = outputs.iter().filter_map(|output| output.path.as_deref());
    let folders =
        files.map(folder_of).chain(outputs.iter().map(|output| folder_of(&output.ledger))).chain(spool);
    let mut warned: Vec<&Path> = Vec::new();
    for folder in folders {
        if !warned.contains(&folder) {
            warned.push(folder);
            warn_of_distrust(folder);
        }
    }
    Ok(())
}

fn try_to_write(output: &OutputSettings) -> Result<(), Failure> {
    let failed = |path: &Path, cure: &str| {
        let path = path.display().to_string();
        let cure = cure.to_string();
        move |error| Failure::Runtime(format!("failed to write to `{path}`: {error}; {cure}"))
    };
    let name_output = "name another output (--output, PIXEL_OUTPUT), or let this user write there";
    if let Some(path) = &output.path {
        make_folder(folder_of(path)).map_err(failed(path, name_output))?;
        may_write(path).map_err(failed(path, name_output))?;
    }
    let is_beside = output.path.as_deref().is_some_and(|path| folder_of(path) == folder_of(&output.lock));
    let name_state = "name another folder for lock and ledger (--state-dir, PIXEL_STATE_DIR), or let this user write there";
    let cure = if is_beside { name_output } else { name_state };
    make_folder(folder_of(&output.lock)).map_err(failed(&output.lock, cure))?;
    match open_regular(&output.lock, private_file().read(true).write(true)) {
        // Room may be made.
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            Ok(())
        }
        lock => lock.map(drop).map_err(failed(&output.lock, cure)),
    }
}

/// Tries whether a file can be appended to, or made, without making it.
fn may_write(path: &Path) -> io::Result<()> {
    match open_regular(path, OpenOptions::new().append(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK)?)
        }
        opened => opened.map(drop),
    }
}

/// Makes a folder that is not there, so that a power cut does not take it away again.
///
/// # Errors
/// What the system said.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        fs::create_dir_all(folder)?;
        keep_names(folder);
    }
    Ok(())
}

/// Warns where a file system may not do what is promised of it.
fn warn_of_distrust(folder: &Path) {
    let shown = folder.display();
    match FileSystem::of(folder) {
        Ok(FileSystem::Memory(kind)) => log::warn!(
            "`{shown}` is on {kind}, which is memory: its visits are gone when the machine restarts. Name a folder on a disk"
        ),
        Ok(FileSystem::Network(kind)) => log::warn!(
            "`{shown}` is on {kind}, a network file system: its lock may not keep out another machine, and what is synced \
             may be in the server's memory alone. Name a folder on a disk of this machine"
        ),
        Ok(FileSystem::Fuse) => log::warn!(
            "`{shown}` is on FUSE: whether its lock keeps others out, and what is synced is on a disk, is up to the \
             program behind it. Name a folder on a disk of this machine"
        ),
        Ok(FileSystem::Other) => {}
        Err(error) => log::debug!("failed to ask what `{shown}` is on: {error}"),
    }
}
