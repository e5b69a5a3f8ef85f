//! What is said at start of folders whose locks and syncs are not to be trusted.

use std::path::Path;

use crate::disk::file_system::FileSystem;

/// Warns where a file system may not do what is promised of it.
pub(super) fn warn_of_distrust<'a>(folders: impl IntoIterator<Item = &'a Path>) {
    let mut seen: Vec<&Path> = Vec::new();
    for folder in folders {
        if seen.contains(&folder) {
            continue;
        }
        seen.push(folder);
        let shown = folder.display();
        match FileSystem::of(folder) {
            Ok(FileSystem::Network(kind)) => log::warn!(
                "`{shown}` is on {kind}, a network file system: its lock may not keep out another machine, and what is \
                 synced may be in the server's memory alone. Name a folder on a disk of this machine"
            ),
            Ok(FileSystem::Fuse) => log::warn!(
                "`{shown}` is on FUSE: whether its lock keeps others out, and what is synced is on a disk, is up to the \
                 program behind it. Name a folder on a disk of this machine"
            ),
            Ok(FileSystem::Memory(_) | FileSystem::Other) => {}
            Err(error) => log::debug!("failed to ask what `{shown}` is on: {error}"),
        }
    }
}
