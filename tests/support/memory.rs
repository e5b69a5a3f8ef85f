//! A bound on a program's memory, kept by the kernel: past it the program is killed.

use std::fs;
use std::path::{Path, PathBuf};

use super::Outcome;
use super::launch::Launch;

/// A control group of its own. It goes with its value.
pub struct MemoryLimit {
    group: PathBuf,
}

impl MemoryLimit {
    /// `None` where this user may not make one, which the test then says.
    pub fn of(bytes: u64) -> Outcome<Option<MemoryLimit>> {
        let root = Path::new("/sys/fs/cgroup");
        let is_v1 = root.join("memory").exists();
        let parent = if is_v1 { root.join("memory") } else { root.to_path_buf() };
        let limit = MemoryLimit { group: parent.join(format!("pixel-test-{}", std::process::id())) };
        let file = limit.group.join(if is_v1 { "memory.limit_in_bytes" } else { "memory.max" });
        let made = fs::create_dir(&limit.group).and_then(|()| {
            // Version 2 may not give the new group the controller; then its file is not there.
            fs::OpenOptions::new().write(true).open(&file)?;
            fs::write(&file, bytes.to_string())
        });
        if let Err(error) = made {
            println!("NOT TESTED: a bound on memory needs a control group: {}: {error}", file.display());
            return Ok(None);
        }
        Ok(Some(limit))
    }

    /// `launch`, within the bound.
    pub fn around(&self, launch: &Launch) -> Launch {
        launch.clone().before(&format!("echo $$ > {}/cgroup.procs", self.group.display()))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // It cannot be removed while a program of a test that failed is in it.
        let _ = fs::remove_dir(&self.group);
    }
}
