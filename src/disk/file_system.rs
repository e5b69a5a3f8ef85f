//! Which kind of file system something is on, as far as that matters to what is promised.

use std::io;
use std::path::Path;

use rustix::fs::statfs;

/// A kind of file system; the name is the one that `mount` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// Its files are in memory, and gone with the machine's restart.
    Memory(&'static str),
    /// Its files are on another machine.
    Network(&'static str),
    /// Whatever else there is.
    Other,
}

/// The magic numbers of linux/magic.h and of statfs(2), in 32 bits.
const KNOWN: &[(u32, FileSystem)] = &[
    (0x0102_1994, FileSystem::Memory("tmpfs")),
    (0x8584_58f6, FileSystem::Memory("ramfs")),
    (0x0000_6969, FileSystem::Network("nfs")),
    (0xff53_4d42, FileSystem::Network("cifs")),
    (0xfe53_4d42, FileSystem::Network("cifs")),
    (0x0102_1997, FileSystem::Network("9p")),
    (0x00c3_6400, FileSystem::Network("ceph")),
    (0x5346_414f, FileSystem::Network("afs")),
];

impl FileSystem {
    /// The kind of the file system that `path` is on; a path that is not there yet is where the first folder above it
    /// is that exists.
    ///
    /// # Errors
    /// What the system said.
    pub fn of(path: &Path) -> io::Result<FileSystem> {
        let above = path.ancestors().map(|above| if above == Path::new("") { Path::new(".") } else { above });
        let there = above.into_iter().find(|above| above.exists()).unwrap_or(Path::new("."));
        Ok(Self::of_magic(statfs(there)?.f_type as u32))
    }

    fn of_magic(magic: u32) -> FileSystem {
        KNOWN.iter().find(|(known, _)| *known == magic).map_or(FileSystem::Other, |(_, kind)| *kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_that_of_the_first_folder_above_which_exists() {
        let of = |path: &str| FileSystem::of(Path::new(path)).expect("it can be asked");
        assert_eq!(of("/dev/shm/no/such/folder/visits.log"), FileSystem::Memory("tmpfs"));
        assert_eq!(of("/proc/self"), FileSystem::Other);
        assert_eq!(of("no/such/folder"), of("."));
        assert_eq!(FileSystem::of_magic(0x6969), FileSystem::Network("nfs"));
    }
}
