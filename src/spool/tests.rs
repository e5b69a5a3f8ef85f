//! The spool on a real disk: what survives a restart, and that a number is never given away twice.

mod disks;
mod failures;
mod formats;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;

use super::*;

const CAP: u64 = 1 << 20;

fn open(folder: &Path) -> Spool {
    Spool::open(folder, 1, CAP).expect("the spool opens")
}

/// Everything that is not confirmed: number to line.
fn unconfirmed(spool: &Spool) -> BTreeMap<u64, String> {
    read_from(spool, spool.confirmed(), 1 << 16)
}

fn read_from(spool: &Spool, mut position: Position, max_bytes: usize) -> BTreeMap<u64, String> {
    let mut visits = BTreeMap::new();
    while let Some(reading) = spool.read(position, max_bytes).expect("the spool is readable") {
        assert_eq!(reading.message.producer, spool.producer);
        let lines = String::from_utf8(reading.message.body).expect("text");
        assert_eq!(lines.lines().count() as u64, reading.message.count);
        for (line, number) in lines.lines().zip(reading.message.first..) {
            assert_eq!(visits.insert(number, line.to_string()), None, "{number} twice");
        }
        position = reading.end;
    }
    visits
}

fn numbered(lines: impl IntoIterator<Item = (u64, &'static str)>) -> BTreeMap<u64, String> {
    lines.into_iter().map(|(number, line)| (number, line.to_string())).collect()
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|name| name == "spool")).collect();
    paths.sort();
    paths
}

/// Groups of one visit of 20 KB each: at a cap of 1 MiB a segment of 256 KiB holds thirteen.
fn fill(spool: &Spool, groups: usize) {
    let line = format!("{}\n", "x".repeat(20_000));
    (0..groups).for_each(|_| spool.append(line.as_bytes(), 1).expect("there is room"));
}

#[test]
fn a_folder_is_made_with_those_above_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let deep = folder.path().join("a/b/c");
    open(&deep).append(b"a\n", 1).expect("there is room");
    assert_eq!(unconfirmed(&open(&deep)), numbered([(1, "a")]));
    fs::write(folder.path().join("file"), "").expect("the disk works");
    assert!(Spool::open(&folder.path().join("file"), 1, CAP).is_err());
    assert!(Spool::open(&folder.path().join("file/under"), 1, CAP).is_err());
}

#[test]
fn a_restart_goes_on_with_the_numbers_and_with_what_is_not_confirmed() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    let producer = spool.producer;
    spool.append(b"a\nb\n", 2).expect("there is room");
    spool.append(b"c\n", 1).expect("there is room");
    drop(spool);
    let spool = open(folder.path());
    assert_eq!(spool.producer, producer);
    spool.append(b"d\n", 1).expect("there is room");
    assert_eq!(unconfirmed(&spool), numbered([(1, "a"), (2, "b"), (3, "c"), (4, "d")]));
    let first = spool.read(spool.confirmed(), 1).expect("readable").expect("a group");
    spool.forget(first.end);
    assert_eq!(spool.visits(), 2);
    drop(spool);
    let spool = open(folder.path());
    assert_eq!(unconfirmed(&spool), numbered([(3, "c"), (4, "d")]));
}

#[test]
fn the_first_segment_is_there_before_the_first_visit_and_is_the_same_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    for _ in 0..2 {
        let spool = open(folder.path());
        spool.prepare();
        let [segment] = &segments(folder.path())[..] else { panic!("one segment") };
        assert_eq!(fs::metadata(segment).expect("it is there").len(), CAP / 4);
        assert_eq!((spool.visits(), spool.bytes()), (0, 0));
    }
    let spool = open(folder.path());
    spool.prepare();
    spool.append(b"a\n", 1).expect("there is room");
    spool.prepare();
    assert_eq!(segments(folder.path()).len(), 1);
    drop(spool);
    let spool = open(folder.path());
    spool.prepare();
    spool.append(b"b\n", 1).expect("there is room");
    assert_eq!(unconfirmed(&spool), numbered([(1, "a"), (2, "b")]));
}

#[test]
fn without_its_note_everything_that_is_left_comes_again_under_its_number() {
    for note in [None, Some(&b""[..]), Some(&b"torn"[..]), Some(&[0; 12][..]), Some(&[0xff; 12][..])] {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = open(folder.path());
        spool.append(b"a\n", 1).expect("there is room");
        let first = spool.read(spool.confirmed(), 1).expect("readable").expect("a group");
        spool.append(b"b\n", 1).expect("there is room");
        spool.forget(first.end);
        drop(spool);
        let path = folder.path().join("confirmed");
        match note {
            None => fs::remove_file(path).expect("the note is there"),
            Some(bytes) => fs::write(path, bytes).expect("the disk works"),
        }
        let spool = open(folder.path());
        assert_eq!(unconfirmed(&spool), numbered([(1, "a"), (2, "b")]), "{note:?}");
        spool.append(b"c\n", 1).expect("there is room");
        assert_eq!(unconfirmed(&spool).last_key_value(), Some((&3, &"c".to_string())));
    }
}

#[test]
fn a_torn_append_is_gone_after_a_restart_and_its_number_is_free() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    spool.append(b"a\n", 1).expect("there is room");
    let end = spool.state().segments[0].end;
    spool.append(b"torn\n", 1).expect("there is room");
    let whole = fs::read(&segments(folder.path())[0]).expect("readable");
    drop(spool);
    let torn = end as usize..end as usize + 25;
    for cut in torn.clone() {
        fs::write(&segments(folder.path())[0], &whole[..cut]).expect("the disk works");
        assert_eq!(unconfirmed(&open(folder.path())), numbered([(1, "a")]), "{cut}");
    }
    for damaged in torn {
        let mut bytes = whole.clone();
        bytes[damaged] ^= 0x55;
        fs::write(&segments(folder.path())[0], &bytes).expect("the disk works");
        let spool = open(folder.path());
        assert_eq!(unconfirmed(&spool), numbered([(1, "a")]), "{damaged}");
        spool.append(b"b\n", 1).expect("there is room");
        assert_eq!(unconfirmed(&spool), numbered([(1, "a"), (2, "b")]), "{damaged}");
    }
}

#[test]
fn segments_are_read_across_and_forgotten_one_by_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    fill(&spool, 40);
    assert!(segments(folder.path()).len() >= 3);
    assert_eq!(unconfirmed(&spool).len(), 40);
    for (max_bytes, messages) in [(1, 40), (100_000, 10), (1 << 20, 1)] {
        let mut position = spool.confirmed();
        let mut count = 0;
        while let Some(reading) = spool.read(position, max_bytes).expect("readable") {
            position = reading.end;
            count += 1;
        }
        assert_eq!(count, messages, "{max_bytes}");
    }
    let mut left = segments(folder.path()).len();
    let mut behind_the_first = spool.confirmed();
    for confirmed in 1..=40 {
        let reading = spool.read(spool.confirmed(), 1).expect("readable").expect("a group");
        if reading.end.segment == behind_the_first.segment {
            behind_the_first = reading.end;
        }
        spool.forget(reading.end);
        assert_eq!(spool.visits(), 40 - confirmed);
        assert!(segments(folder.path()).len() <= left);
        left = segments(folder.path()).len();
    }
    assert_eq!((left, spool.bytes()), (1, 0), "the newest carries the next number");
    let newest = spool.state().segments[0].end;
    assert_eq!(spool.bytes_after(behind_the_first), newest, "its segment is gone");
    drop(spool);
    let spool = open(folder.path());
    spool.append(b"next\n", 1).expect("there is room");
    assert_eq!(unconfirmed(&spool), numbered([(41, "next")]));
}

#[test]
fn at_its_cap_it_refuses_until_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    fill(&spool, 52);
    let line = format!("{}\n", "x".repeat(20_000));
    assert!(matches!(spool.append(line.as_bytes(), 1), Err(StoreError::Full { max_bytes: CAP })));
    assert_eq!(spool.visits(), 52);
    let reading = spool.read(spool.confirmed(), 1).expect("readable").expect("a group");
    spool.forget(reading.end);
    fill(&spool, 1);
    assert_eq!(spool.visits(), 52);
}

/// Its file is full of visits with valid checksums then, which were confirmed long ago.
#[test]
fn a_file_that_is_used_again_shows_nothing_of_its_last_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    fill(&spool, 14);
    let inode = |path: &Path| fs::metadata(path).expect("it is there").ino();
    let oldest = segments(folder.path()).remove(0);
    let used = inode(&oldest);
    spool.forget(spool.read(spool.confirmed(), CAP as usize).expect("readable").expect("groups").end);
    assert!(!oldest.exists());
    fill(&spool, 13);
    let newest = segments(folder.path()).pop().expect("there are two");
    assert_eq!(inode(&newest), used);
    assert_eq!(fs::metadata(&newest).expect("it is there").len(), 13 * record_bytes(PREFIX_BYTES + 20_001));
    let expected: Vec<u64> = (15..=27).collect();
    assert_eq!(unconfirmed(&spool).into_keys().collect::<Vec<_>>(), expected);
    drop(spool);
    let whole = fs::read(&newest).expect("readable");
    for torn in [0, 1, 11, 12, 25, 40] {
        // The next append, cut short.
        let mut bytes = whole.clone();
        let end = record_bytes(PREFIX_BYTES + 20_001) as usize;
        bytes[end..end + torn].copy_from_slice(&vec![b'7'; torn]);
        fs::write(&newest, &bytes).expect("the disk works");
        let spool = open(folder.path());
        assert_eq!(unconfirmed(&spool).into_keys().collect::<Vec<_>>(), expected, "{torn}");
        // A short one, which leaves the rest of the torn one behind it.
        spool.append(b"short\n", 1).expect("there is room");
        drop(spool);
        let read = unconfirmed(&open(folder.path()));
        assert_eq!(read.len(), expected.len() + 1, "{torn}");
        assert_eq!(read.last_key_value(), Some((&28, &"short".to_string())), "{torn}");
    }
}

/// A person who looks at it finds what was there.
#[test]
fn a_damaged_segment_is_not_used_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    fill(&spool, 14);
    let oldest = segments(folder.path()).remove(0);
    let damaged = fs::OpenOptions::new().write(true).open(&oldest).expect("it is there");
    damaged.write_all_at(b"damage", 100).expect("the disk works");
    let found = fs::read(&oldest).expect("readable");
    while let Some(reading) = spool.read(spool.confirmed(), 1).expect("readable") {
        spool.forget(reading.end);
    }
    fill(&spool, 30);
    let kept = oldest.with_extension(format!("{}.damaged", spool.producer));
    assert_eq!(fs::read(kept).expect("it was kept"), found);
}

/// A message that spanned the gap numbered the visits behind it as if there were none: read again from
/// another place they got other numbers, and so were written twice, or taken for duplicates.
#[test]
fn behind_a_damaged_place_every_visit_keeps_its_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    fill(&spool, 30);
    drop(spool);
    let damaged = fs::OpenOptions::new().write(true).open(&segments(folder.path())[0]).expect("it is there");
    damaged.write_all_at(b"damage", 5 * record_bytes(12 + 20_001) + 100).expect("the disk works");
    let spool = open(folder.path());
    let second = spool.state().segments[1].first;
    assert!(second < 30);
    let expected: Vec<u64> = (1..=5).chain(7..=30).collect();
    for max_bytes in [1, 30_000, 1 << 20] {
        let read = read_from(&spool, spool.confirmed(), max_bytes);
        assert_eq!(read.into_keys().collect::<Vec<_>>(), expected, "{max_bytes}");
    }
    for confirmed in 1..=expected.len() {
        let reading = spool.read(spool.confirmed(), 1).expect("readable").expect("a group");
        spool.forget(reading.end);
        let left: Vec<u64> = unconfirmed(&spool).into_keys().collect();
        assert_eq!(left, expected[confirmed..]);
    }
    assert!(segments(folder.path())[0].exists());
    let kept = fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry").path());
    assert_eq!(kept.filter(|path| path.extension().is_some_and(|name| name == "damaged")).count(), 1);
}

/// Whoever came by a second time, as a new connection does, stopped before it: what stands behind waited for the next
/// start.
#[test]
fn a_segment_without_a_whole_record_is_passed_more_than_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    fill(&spool, 30);
    let second = fs::OpenOptions::new().write(true).open(&segments(folder.path())[1]).expect("it is there");
    let length = second.metadata().expect("it is there").len() as usize;
    second.write_all_at(&vec![0; length], 0).expect("the disk works");
    let expected: Vec<u64> = (1..=13).chain(27..=30).collect();
    for max_bytes in [1, 30_000, 1 << 20, 1] {
        let read = read_from(&spool, spool.confirmed(), max_bytes);
        assert_eq!(read.into_keys().collect::<Vec<_>>(), expected, "{max_bytes}");
    }
}

/// A disk on which something happens while it is searched.
struct Meanwhile {
    disk: Arc<dyn DiskFile>,
    deed: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl DiskFile for Meanwhile {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.disk.read_at(buffer, offset)?;
        if buffer.len() > 100_000
            && let Some(deed) = self.deed.lock().expect("no panic").take()
        {
            deed();
        }
        Ok(read)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.write_at(bytes, offset)
    }
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.disk.append(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }
}

/// It was stepped over with the damage, though it was whole.
#[test]
fn what_is_appended_while_a_damaged_place_is_searched_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = Arc::new(open(folder.path()));
    spool.append(b"a\n", 1).expect("there is room");
    spool.append(b"b\n", 1).expect("there is room");
    let damaged = fs::OpenOptions::new().write(true).open(&segments(folder.path())[0]).expect("it is there");
    damaged.write_all_at(b"x", 2 * record_bytes(PREFIX_BYTES + 2) - 1).expect("the disk works");
    let appender = spool.clone();
    let deed = move || appender.append(b"c\n", 1).expect("there is room");
    let disk = spool.state().segments[0].file.clone().expect("it is in use");
    let disk = Arc::new(Meanwhile { disk, deed: Mutex::new(Some(Box::new(deed))) });
    spool.state().segments[0].file = Some(disk.clone());
    assert_eq!(unconfirmed(&spool), numbered([(1, "a"), (3, "c")]));
    assert!(disk.deed.lock().expect("no panic").is_none());
}

/// Everything behind it was cut off, and its numbers were given to other visits, which the ledger dropped.
#[test]
fn behind_a_damaged_place_of_the_newest_segment_no_number_is_given_away_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    ["a\n", "b\n", "c\n", "d\n"]
        .iter()
        .for_each(|line| spool.append(line.as_bytes(), 1).expect("there is room"));
    let producer = spool.producer;
    drop(spool);
    let path = &segments(folder.path())[0];
    let whole = fs::read(path).expect("readable");
    let record = record_bytes(PREFIX_BYTES + 2) as usize;
    for damaged in record..2 * record {
        let mut bytes = whole.clone();
        bytes[damaged] ^= 0x55;
        fs::write(path, &bytes).expect("the disk works");
        let spool = open(folder.path());
        assert_eq!(unconfirmed(&spool), numbered([(1, "a"), (3, "c"), (4, "d")]), "{damaged}");
        spool.append(b"e\n", 1).expect("there is room");
        let left = numbered([(1, "a"), (3, "c"), (4, "d"), (5, "e")]);
        assert_eq!(unconfirmed(&spool), left, "{damaged}");
        drop(spool);
        let spool = open(folder.path());
        assert_eq!(unconfirmed(&spool), left, "{damaged}");
        let third = spool.read(spool.confirmed(), 1).expect("readable").expect("the first");
        let third = spool.read(third.end, 1).expect("readable").expect("the third");
        spool.forget(third.end);
        drop(spool);
        let left = numbered([(4, "d"), (5, "e")]);
        assert_eq!(unconfirmed(&open(folder.path())), left, "damaged at {damaged}, where all is confirmed");
        fs::write(folder.path().join("confirmed"), []).expect("the disk works");
        fs::remove_file(segments(folder.path()).pop().expect("the new one")).expect("it is there");
        let _ = fs::remove_file(path.with_extension(format!("{producer}.damaged")));
    }
}

/// The numbers began again from 1 under the same UUID: the ledger dropped every visit as a duplicate.
#[test]
fn a_spool_that_lost_its_segments_is_a_new_producer() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    let producer = spool.producer;
    spool.append(b"a\n", 1).expect("there is room");
    spool.forget(spool.read(spool.confirmed(), 1).expect("readable").expect("a group").end);
    drop(spool);
    segments(folder.path()).iter().for_each(|path| fs::remove_file(path).expect("it is there"));
    let spool = open(folder.path());
    assert_ne!(spool.producer, producer);
    spool.append(b"b\n", 1).expect("there is room");
    assert_eq!(unconfirmed(&spool), numbered([(1, "b")]));
    drop(spool);
    assert_eq!(unconfirmed(&open(folder.path())), numbered([(1, "b")]));
}

/// They went to a shard whose ledger did not know them, and were written again.
#[test]
fn what_comes_again_as_its_confirmation_was_lost_goes_to_the_shard_that_knows_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    (0..200).for_each(|_| spool.append(b"a\n", 1).expect("there is room"));
    let shards = |spool: &Spool| {
        let (mut position, mut shards) = (spool.confirmed(), Vec::new());
        while let Some(reading) = spool.read(position, 1).expect("readable") {
            shards.push(reading.shard);
            position = reading.end;
        }
        shards
    };
    let before = shards(&spool);
    while let Some(reading) = spool.read(spool.confirmed(), 1 << 16).expect("readable") {
        spool.forget(reading.end);
    }
    spool.shard_into(4).expect("noted");
    drop(spool);
    // As a power cut leaves it.
    fs::remove_file(folder.path().join("confirmed")).expect("it was there");
    assert_eq!(shards(&open(folder.path())), before);
}
