//! The end of the output file, where batches are appended.

use std::io;

use crate::disk::{DiskFile, read_whole};

/// The end of a file: what is appended there is provisional until it is settled.
pub(crate) struct Tail {
    file: Box<dyn DiskFile>,
    // Where the provisional bytes start.
    provisional_from: Option<u64>,
}

impl Tail {
    /// The end of `file`, all of which is settled.
    pub(crate) fn new(file: Box<dyn DiskFile>) -> Self {
        Tail { file, provisional_from: None }
    }

    /// The file's length.
    pub(crate) fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    /// Appends `lines` durably; returns the file's length then. A last line that somebody left
    /// without its end is ended first.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<u64> {
        let from = self.file.len()?;
        let mut last = [b'\n'];
        if from > 0 {
            read_whole(&*self.file, &mut last, from - 1)?;
        }
        self.provisional_from = Some(from);
        if last != [b'\n'] {
            self.file.append(b"\n")?;
        }
        self.file.append(lines)?;
        self.file.sync()?;
        self.file.len()
    }

    /// What was appended stays.
    pub(crate) fn settle(&mut self) {
        self.provisional_from = None;
    }

    /// Removes what was appended and not settled, durably.
    pub(crate) fn retract(&mut self) -> io::Result<()> {
        if let Some(from) = self.provisional_from {
            // Somebody may have truncated it since: it must not grow by zeros.
            self.file.set_len(from.min(self.file.len()?))?;
            self.file.sync()?;
            self.provisional_from = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fake::FakeFile;

    #[test]
    fn what_fails_is_retracted_and_what_is_settled_stays() {
        for healthy_operations in 0..8 {
            let disk = FakeFile::default();
            let mut tail = Tail::new(Box::new(disk.clone()));
            tail.append(b"one\n").expect("the disk works");
            tail.settle();
            disk.fail_after(healthy_operations);
            let mut settled = b"one\n".to_vec();
            if tail.append(b"two\n").is_ok() {
                tail.settle();
                settled.extend_from_slice(b"two\n");
            }
            disk.heal();
            tail.retract().expect("the disk is healed");
            assert_eq!(disk.crash(0).live(), settled, "after {healthy_operations}");
        }
    }

    /// The retraction made the file as long as it had been, with zeros: one endless line.
    #[test]
    fn a_file_that_was_truncated_after_a_failed_append_is_not_filled_with_zeros() {
        let disk = FakeFile::default();
        let mut tail = Tail::new(Box::new(disk.clone()));
        tail.append(b"one\n").expect("the disk works");
        tail.settle();
        disk.fail_after(1);
        tail.append(b"two\n").expect_err("the disk fails");
        disk.heal();
        disk.set_len(0).expect("the disk is healed");
        tail.retract().expect("the disk is healed");
        assert_eq!(disk.live(), b"");
    }

    #[test]
    fn a_torn_last_line_is_ended_before_the_next() {
        let disk = FakeFile::default();
        disk.append(b"torn").expect("the disk works");
        let mut tail = Tail::new(Box::new(disk.clone()));
        assert_eq!(tail.append(b"whole\n").expect("the disk works"), 11);
        assert_eq!(disk.live(), b"torn\nwhole\n");
    }
}
