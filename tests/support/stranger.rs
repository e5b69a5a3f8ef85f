//! Another program's file, which got the inode number that an output had.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Outcome;

/// How many files are created, all there at once, in the hope that one gets the number.
const TRIES: usize = 4000;

/// A file that Pixel did not write.
pub struct Stranger {
    pub path: PathBuf,
    content: Vec<u8>,
}

impl Stranger {
    /// Creates files in the folder of `path` until one has the inode number `inode`, and calls that one `path`; `None`
    /// where none gets it. It holds `bytes` of another program's log, or some more.
    pub fn with_inode(inode: u64, path: &Path, bytes: usize) -> Outcome<Option<Stranger>> {
        let folder = path.parent().ok_or("no folder")?;
        let (mut others, mut found) = (Vec::new(), None);
        for n in 0..TRIES {
            let one = folder.join(format!("stranger-{n}"));
            fs::write(&one, "")?;
            if fs::metadata(&one)?.ino() == inode {
                found = Some(one);
                break;
            }
            others.push(one);
        }
        others.iter().try_for_each(fs::remove_file)?;
        let Some(found) = found else { return Ok(None) };
        let line = "Dec 19 14:16:49 host systemd[1]: Started a service that has nothing to do with Pixel.\n";
        let content = line.repeat(bytes / line.len() + 1).into_bytes();
        fs::write(&found, &content)?;
        fs::rename(&found, path)?;
        Ok(Some(Stranger { path: path.into(), content }))
    }

    /// Checks that it is unchanged, but for what may stand behind its end.
    pub fn is_unchanged(&self) -> Outcome {
        let now = fs::read(&self.path)?;
        if now.starts_with(&self.content) {
            return Ok(());
        }
        let same = now.iter().zip(&self.content).take_while(|(now, then)| now == then).count();
        let (now, then) = (now.len(), self.content.len());
        Err(format!("`{}` has {now} of {then} bytes, {same} of them as before", self.path.display()).into())
    }
}
