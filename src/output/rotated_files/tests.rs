//! What becomes of files that were rotated.

use super::*;
use crate::output::ledger::{open_at, read};
use crate::output::{Verdict, verify};
use crate::record::{Entry, FileChange, Ledger, VisitLogError};

const FIRST: &str = "visits-2026-11-23T14.log";
const SECOND: &str = "visits-2026-11-23T15.log";
const THIRD: &str = "visits-2026-11-23T16.log";

/// Nobody takes it away.
struct Lasting;

impl Right for Lasting {
    fn check(&self) -> Result<(), VisitLogError> {
        Ok(())
    }
}

/// An output's folder, and who looks after it.
struct Place {
    files: RotatedFiles,
    folder: tempfile::TempDir,
}

impl Place {
    fn new(compression: Option<Compression>, keep: &str) -> io::Result<Place> {
        let folder = tempfile::tempdir()?;
        let (output, ledger) = (folder.path().join("visits.log"), folder.path().join("visits.log.ledger"));
        let aftercare = Aftercare { compression, keep: keep.parse().expect("limits") };
        let files = RotatedFiles::new(&output, &ledger, aftercare, Box::new(Lasting), Stop::default());
        Ok(Place { files, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// A file that was written and rotated, which the ledger has closed.
    fn rotate(&self, id: u64, name: &str, text: &str) -> io::Result<()> {
        fs::write(self.path(name), text)?;
        let stretches = vec![FileRecord::stretch(None, 0, text.as_bytes())];
        let change = FileChange { file: id, name: Some(name.into()), lines: 1, stretches };
        let entry = Entry { files: vec![change], ..Entry::default() };
        let committed = open_at(&self.files.ledger).and_then(|mut ledger| ledger.commit(&entry));
        committed.map_err(|error| io::Error::other(error.to_string()))
    }

    /// What a compressor makes of a text.
    fn compress(&self, name: &str, text: &str) -> io::Result<()> {
        let (_, how) = Compression::of(name.as_ref());
        let stored = File::create(self.path(name))?;
        how.expect("a compressor's name").write(stored, |target| target.write_all(text.as_bytes()))
    }
}

/// A list that could not be begun, as the disk was full or the process killed, ended all of it, and the audit.
#[test]
fn a_list_of_removed_files_that_is_empty_or_torn_is_gone_on_with() -> io::Result<()> {
    for (torn, is_begun) in
        [(&b""[..], false), (b"\x12", false), (b"\x12\0\0\0abcd\"pix", false), (b"\x12\0\0\0a", true)]
    {
        let mut place = Place::new(None, "1files")?;
        place.rotate(1, FIRST, "one\n")?;
        place.rotate(2, SECOND, "two\n")?;
        let list = sibling(&place.files.ledger, "removed");
        if is_begun {
            let gone = FileRecord { id: 7, name: THIRD.into(), ..FileRecord::default() };
            note_removed(&place.files.ledger, &[Removed::of(&gone, Timestamp::now())])?;
        }
        OpenOptions::new().create(true).append(true).open(&list)?.write_all(torn)?;
        if !is_begun {
            read(&place.files.ledger)?;
        }
        place.files.round()?;
        assert!(!place.has(FIRST) && place.has(SECOND), "{torn:?}");
        read(&place.files.ledger)?;
        assert_eq!(read_removed(&place.files.ledger)?.len(), 1 + usize::from(is_begun), "{torn:?}");
    }
    Ok(())
}

/// It was taken for the file that had the name before and was noted as removed, and was deleted without a note.
#[test]
fn a_file_that_is_given_the_name_of_a_removed_one_stays() -> io::Result<()> {
    let mut place = Place::new(None, "1files")?;
    place.rotate(1, FIRST, "one\n")?;
    place.rotate(2, SECOND, "two\n")?;
    place.files.round()?;
    assert!(!place.has(FIRST) && place.has(SECOND));
    place.rotate(3, FIRST, "three\n")?;
    place.files.round()?;
    assert!(place.has(FIRST) && !place.has(SECOND));
    // Others may remove one, too.
    fs::rename(place.path(FIRST), place.path("moved"))?;
    place.rotate(4, FIRST, "four\n")?;
    place.rotate(5, SECOND, "five\n")?;
    place.files.round()?;
    assert!(!place.has(FIRST) && place.has(SECOND));
    let removed = read_removed(&place.files.ledger)?;
    assert_eq!(removed.iter().map(|one| one.id().0).collect::<Vec<_>>(), [1, 2, 4]);
    Ok(())
}

/// One file that could not be looked at, or removed, kept all others from it.
#[test]
fn what_cannot_be_looked_after_keeps_no_other_waiting() -> io::Result<()> {
    let mut place = Place::new(Some(Compression::Zstd), "2files")?;
    for (id, name) in [(1, FIRST), (2, SECOND), (3, THIRD)] {
        place.rotate(id, name, &format!("{id}\n"))?;
    }
    std::os::unix::fs::symlink("nowhere", place.path(&format!("{SECOND}.gz")))?;
    fs::create_dir(place.path(&format!("{THIRD}.gz.tmp")))?;
    place.files.round()?;
    let compressed = |name: &str| place.has(&format!("{name}.zst"));
    assert!(!place.has(FIRST) && !compressed(FIRST), "{:?}", place.files.names());
    assert!(place.has(SECOND) && !place.has(THIRD) && compressed(THIRD));
    Ok(())
}

/// Where nothing is to be compressed, the plain file of which an operator had made a compressed copy was removed.
#[test]
fn unless_set_a_plain_file_with_a_compressed_copy_stays() -> io::Result<()> {
    let copy = format!("{FIRST}.zst");
    let mut place = Place::new(None, "")?;
    place.rotate(1, FIRST, "one\n")?;
    place.compress(&copy, "one\n")?;
    place.files.round()?;
    assert!(place.has(FIRST) && place.has(&copy));
    place.files.aftercare.compression = Some(Compression::Gzip);
    place.files.round()?;
    assert!(!place.has(FIRST) && place.has(&copy));
    Ok(())
}

/// All that had its name went with a file.
#[test]
fn a_file_is_removed_with_its_copies_and_with_nothing_of_others() -> io::Result<()> {
    let mut place = Place::new(None, "1files")?;
    place.rotate(1, FIRST, "one\n")?;
    place.rotate(2, SECOND, "two\n")?;
    let (copy, theirs) = (format!("{FIRST}.zst"), format!("{FIRST}.gz"));
    place.compress(&copy, "one\n")?;
    place.compress(&theirs, "somebody else's\n")?;
    place.files.round()?;
    assert!(!place.has(FIRST) && !place.has(&copy) && place.has(&theirs) && place.has(SECOND));
    Ok(())
}

/// All of it was read each minute, with every checksum of each file that ever was.
#[test]
fn the_list_of_closed_files_is_read_again_only_when_it_has_grown() -> io::Result<()> {
    let mut place = Place::new(Some(Compression::Zstd), "")?;
    place.rotate(1, FIRST, "one\n")?;
    place.files.round()?;
    let list = sibling(&place.files.ledger, "files");
    let whole = fs::read(&list)?;
    fs::write(&list, vec![0; whole.len()])?;
    fs::write(place.path(FIRST), "one\n")?;
    place.files.round()?;
    assert!(!place.has(FIRST), "it is known still");
    fs::write(&list, whole)?;
    place.rotate(2, SECOND, "two\n")?;
    place.files.round()?;
    assert!(!place.has(FIRST) && !place.has(SECOND), "{:?}", place.files.names());
    Ok(())
}

/// The audit called what was removed while it began missing.
#[test]
fn the_audit_knows_what_is_removed_since_it_read_the_ledger() -> io::Result<()> {
    let mut place = Place::new(None, "1files")?;
    place.rotate(1, FIRST, "one\n")?;
    place.rotate(2, SECOND, "two\n")?;
    let before = read(&place.files.ledger)?;
    place.files.round()?;
    // It had the output's name, too, when the ledger was read.
    let output = FileRecord { name: "visits.log".into(), ..before.closed[0].clone() };
    let records = [&before.closed[0], &before.closed[1], &output];
    let removed = || before.removed_by_now(&place.files.ledger);
    let found = verify(&place.files.output, &[], &records, &removed, &|_, _| true, &|_, _| ())?;
    let is_removed = found.iter().map(|file| matches!(file.verdict, Verdict::Removed { .. }));
    assert_eq!(is_removed.collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(found[2].verdict, Verdict::Verified);
    Ok(())
}
