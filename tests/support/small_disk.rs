//! A disk that is soon full.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::Outcome;

/// A small disk of its own. It goes with its value.
pub struct SmallDisk {
    folder: tempfile::TempDir,
    // What it is on, where that is no memory.
    _image: Option<tempfile::NamedTempFile>,
}

impl SmallDisk {
    /// `None` where this user may not mount, which the test then says.
    pub fn mount(size: &str) -> Outcome<Option<SmallDisk>> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        Self::mounted(&mut mount, None)
    }

    /// One with an ext4 on it. `None` where this user may not mount, which the test then says.
    pub fn ext4(bytes: u64) -> Outcome<Option<SmallDisk>> {
        let image = tempfile::NamedTempFile::new()?;
        image.as_file().set_len(bytes)?;
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image.path()).output()?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned().into());
        }
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(image.path());
        Self::mounted(&mut mount, Some(image))
    }

    /// A folder that a program stands in front of (FUSE). `None` where this user may not mount, which the test then says.
    pub fn fuse(folder: &Path) -> Outcome<Option<SmallDisk>> {
        Self::mounted(Command::new("bindfs").arg(folder), None)
    }

    fn mounted(mount: &mut Command, image: Option<tempfile::NamedTempFile>) -> Outcome<Option<SmallDisk>> {
        let folder = tempfile::tempdir()?;
        let mounted = mount.arg(folder.path()).output()?;
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).into_owned();
            println!("NOT TESTED: a disk of its own needs the right to mount: {why}");
            return Ok(None);
        }
        Ok(Some(SmallDisk { folder, _image: image }))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes all the room there is.
    pub fn fill(&self) -> Outcome {
        let mut ballast = OpenOptions::new().append(true).create(true).open(self.path().join("ballast"))?;
        for size in [4096, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    /// Gives the room back.
    pub fn free(&self) -> Outcome {
        Ok(fs::remove_file(self.path().join("ballast"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a program of a test that failed may still have files open on it.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
