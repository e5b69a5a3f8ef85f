//! What other Pixels have written, and what others read while a spool is in use.

use super::*;

/// A copy of the folder that a Pixel of format 1 left when it was killed: three visits in a segment that its second
/// start had cut off, three in the one that it then had in use.
fn of_format_1() -> tempfile::TempDir {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spool-format-1");
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(fixture).expect("the fixture") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("the disk works");
    }
    folder
}

const PRODUCER_OF_FORMAT_1: &str = "1365af32-5e8c-4cda-9cfd-5af966f08176";

#[test]
fn a_spool_of_format_1_is_read_and_its_format_is_noted() {
    let folder = of_format_1();
    for start in 0..2u64 {
        let spool = open(folder.path());
        assert_eq!(spool.producer.to_string(), PRODUCER_OF_FORMAT_1);
        let mut queries = Vec::new();
        for (number, line) in unconfirmed(&spool).into_iter().take(6) {
            let visit: serde_json::Value = serde_json::from_str(&line).expect("a visit");
            queries.push((number, visit["query"].as_str().expect("a query").to_string()));
        }
        let expected = [(1, "n=11"), (2, "n=12"), (3, "n=13"), (4, "n=21"), (5, "n=22"), (6, "n=23")];
        assert_eq!(queries, expected.map(|(number, query)| (number, query.to_string())));
        assert_eq!(spool.state().next, 7 + start);
        spool.append(b"new\n", 1).expect("there is room");
        let noted = fs::read_to_string(folder.path().join("producer")).expect("it is there");
        assert_eq!(noted, format!("{PRODUCER_OF_FORMAT_1}\nformat 2\n"));
        // What a Pixel of format 1 makes of it.
        assert!(Uuid::parse_str(noted.trim()).is_err());
    }
    assert_eq!(segments(folder.path()).len(), 2, "it went on with the newest");
}

#[test]
fn a_newer_format_is_refused_with_the_folder_and_the_cure_and_nothing_is_touched() {
    for has_segments in [true, false] {
        let folder = of_format_1();
        fs::write(folder.path().join("spare"), "a newer Pixel's").expect("the disk works");
        fs::write(folder.path().join("producer"), format!("{PRODUCER_OF_FORMAT_1}\nformat 3\n"))
            .expect("the disk works");
        if !has_segments {
            segments(folder.path()).iter().for_each(|path| fs::remove_file(path).expect("it is there"));
        }
        let error = Spool::open(folder.path(), 1, CAP).err().expect("it is refused").to_string();
        for part in ["format 3", &folder.path().display().to_string(), "start the newer Pixel again"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), if has_segments { 6 } else { 4 });
        let error = waiting(folder.path()).expect_err("it is refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_producer_file_that_says_nothing_sensible_is_an_error() {
    for text in ["", "\n", "format 2", "1365af32\n", &format!("{PRODUCER_OF_FORMAT_1}\nformat two\n")] {
        let folder = of_format_1();
        fs::write(folder.path().join("producer"), text).expect("the disk works");
        assert!(matches!(Spool::open(folder.path(), 1, CAP), Err(OpenError::Disk { .. })), "{text:?}");
    }
}

fn sequences(folder: &Path) -> Vec<std::ops::RangeInclusive<u64>> {
    let [waiting] = &waiting(folder).expect("readable")[..] else { panic!("one spool") };
    waiting.sequences.clone()
}

/// Also where nothing waits, and where the newest segment has no visit yet.
#[test]
fn the_next_number_is_known_while_the_spool_is_in_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let next = || waiting(folder.path()).expect("readable").remove(0).next;
    let spool = open(folder.path());
    assert_eq!(next(), 1);
    spool.prepare();
    assert_eq!(next(), 1);
    for given in [13, 30, 43] {
        fill(&spool, given - (next() - 1) as usize);
        assert_eq!(next(), given as u64 + 1);
        spool.forget(spool.read(spool.confirmed(), CAP as usize).expect("readable").expect("groups").end);
        assert_eq!(next(), given as u64 + 1);
        spool.prepare();
        assert_eq!(next(), given as u64 + 1);
    }
}

#[test]
fn what_waits_is_read_while_the_spool_is_in_use() {
    let folder = of_format_1();
    assert_eq!(sequences(folder.path()), [1..=6]);
    let spool = open(folder.path());
    spool.append(b"a\nb\n", 2).expect("there is room");
    assert_eq!(sequences(folder.path()), [1..=8]);
    let [waiting_here] = &waiting(folder.path()).expect("readable")[..] else { panic!("one spool") };
    assert_eq!(waiting_here.producer, spool.producer);
    fill(&spool, 40);
    assert!(segments(folder.path()).len() > 3);
    assert_eq!(sequences(folder.path()), [1..=48]);
    for confirmed in 1..=48 {
        let reading = spool.read(spool.confirmed(), 1).expect("readable").expect("a group");
        spool.forget(reading.end);
        let left = if spool.visits() == 0 { vec![] } else { vec![reading.end.sequence..=48] };
        assert_eq!(sequences(folder.path()), left, "{confirmed}");
        if left.is_empty() {
            break;
        }
    }
    // A file that is used again holds confirmed visits behind its own.
    spool.append(b"c\n", 1).expect("there is room");
    fill(&spool, 30);
    assert_eq!(sequences(folder.path()), [49..=79]);
    let before: Vec<_> =
        segments(folder.path()).iter().map(|path| fs::read(path).expect("readable")).collect();
    drop(spool);
    sequences(folder.path());
    let after: Vec<_> =
        segments(folder.path()).iter().map(|path| fs::read(path).expect("readable")).collect();
    assert!(before == after, "it changes nothing");
}

#[test]
fn what_waits_has_gaps_where_a_segment_is_damaged_and_what_cannot_be_read_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    fill(&spool, 30);
    let damaged = fs::OpenOptions::new().write(true).open(&segments(folder.path())[0]).expect("it is there");
    damaged.write_all_at(b"damage", 5 * record_bytes(12 + 20_001) + 100).expect("the disk works");
    assert_eq!(sequences(folder.path()), [1..=5, 7..=30]);
    let segment = segments(folder.path()).remove(0);
    fs::remove_file(&segment).expect("it is there");
    fs::create_dir(&segment).expect("the disk works");
    assert!(waiting(folder.path()).is_err(), "EISDIR stands for EIO");
}

#[test]
fn what_waits_in_slots_is_read_of_each() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(waiting(folder.path()).expect_err("no spool").kind(), io::ErrorKind::NotFound);
    assert_eq!(waiting(&folder.path().join("absent")).expect_err("no spool").kind(), io::ErrorKind::NotFound);
    let spools: Vec<_> = (0..3).map(|_| Spool::open(folder.path(), 3, CAP).expect("a free slot")).collect();
    fs::create_dir(folder.path().join("lost+found")).expect("the disk works");
    spools[1].append(b"a\n", 1).expect("there is room");
    let expected: Vec<_> = spools
        .iter()
        .map(|spool| Waiting {
            producer: spool.producer,
            sequences: if spool.visits() > 0 { vec![1..=1] } else { vec![] },
            next: 1 + spool.visits(),
        })
        .collect();
    assert_eq!(waiting(folder.path()).expect("readable"), expected);
}
