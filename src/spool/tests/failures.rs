//! The spool on a disk that fails, loses what was not synced, and does not give out what it holds.

use super::disks::Disks;
use super::*;

/// A spool on a disk that can fail.
struct Failing {
    folder: tempfile::TempDir,
    disks: Disks,
    cap: u64,
}

impl Failing {
    fn new() -> Self {
        Failing { folder: folder_in_memory(), disks: Disks::default(), cap: CAP }
    }

    /// With the smallest segments.
    fn small() -> Self {
        Failing { cap: 4 * SEGMENT_MIN_BYTES, ..Failing::new() }
    }

    fn try_to_open(&self) -> Result<Spool, OpenError> {
        Spool::open_on(self.folder.path().to_path_buf(), false, self.cap, self.disks.mount())
    }

    fn open(&self) -> Spool {
        self.try_to_open().expect("the spool opens")
    }

    fn segments(&self) -> Vec<PathBuf> {
        segments(self.folder.path())
    }
}

/// A folder that costs no time to sync: what a power cut would leave of it, [`Disks`] knows.
fn folder_in_memory() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    folder.expect("a folder")
}

#[test]
fn an_append_that_failed_never_comes_back() {
    for healthy_operations in 0..2 {
        let system = Failing::new();
        let spool = system.open();
        spool.append(b"a\n", 1).expect("there is room");
        let end = spool.state().segments[0].end;
        system.disks.fail_after(healthy_operations);
        assert!(matches!(spool.append(b"failed\n", 1), Err(StoreError::Disk { .. })));
        assert_eq!(unconfirmed(&spool), numbered([(1, "a")]));
        assert!(matches!(spool.append(b"failed\n", 1), Err(StoreError::Disk { .. })), "it cannot be sealed");
        system.disks.heal();
        spool.append(b"b\n", 1).expect("the disk is healed");
        assert_eq!(unconfirmed(&spool), numbered([(1, "a"), (2, "b")]));
        drop(spool);
        system.disks.cut_power(system.folder.path(), 0);
        let left = fs::metadata(&system.segments()[0]).expect("it is there").len();
        assert_eq!(left, end, "nothing of it is left on the old segment");
        assert_eq!(unconfirmed(&system.open()), numbered([(1, "a"), (2, "b")]));
    }
}

/// A sync failed, the process died before it could cut off what it had written, and the next start read that in the
/// page cache and sent it off. A sync that succeeds does not write such pages: a power cut took the record away, its
/// number was given to another visit, and the ledger dropped that one as a duplicate.
#[test]
fn what_a_start_believes_is_durable_though_a_sync_failed_before() {
    // The write succeeds, the sync does not; then starts fail, and one does not.
    for failing_starts in 0..3 {
        let system = Failing::new();
        let spool = system.open();
        spool.append(b"a\n", 1).expect("there is room");
        system.disks.fail_after(1);
        spool.append(b"b\n", 1).expect_err("the disk fails");
        drop(spool);
        for operations in 0..failing_starts {
            system.disks.fail_after(operations);
            assert!(system.try_to_open().is_err(), "{operations}");
        }
        system.disks.heal();
        let believed = unconfirmed(&system.open());
        assert_eq!(believed, numbered([(1, "a"), (2, "b")]));
        system.disks.cut_power(system.folder.path(), 0);
        let spool = system.open();
        spool.append(b"c\n", 1).expect("there is room");
        assert_eq!(unconfirmed(&spool), numbered([(1, "a"), (2, "b"), (3, "c")]), "{failing_starts}");
    }
}

/// Each start made a segment of its own, and each segment held a descriptor for life.
#[test]
fn five_thousand_starts_go_on_with_the_newest_segment() {
    let system = Failing::small();
    for n in 1..=5_000 {
        let spool = system.open();
        assert_eq!(spool.state().next, n);
        spool.append(format!("{n}\n").as_bytes(), 1).expect("there is room");
    }
    let count = system.segments().len();
    assert!(count <= 3, "{count} segments of 64 KiB");
    assert_eq!(unconfirmed(&system.open()), (1..=5_000).map(|n| (n, n.to_string())).collect());
}

#[test]
fn a_long_backlog_is_read_with_one_segment_open() {
    let system = Failing::new();
    let producer = Uuid::new_v4();
    fs::write(system.folder.path().join("producer"), format!("{producer}\nformat 2\n"))
        .expect("the disk works");
    for n in 1..=200u64 {
        write_segment(system.folder.path(), n, &[(n, "x\n")]);
    }
    let spool = system.open();
    assert_eq!((spool.visits(), spool.bytes()), (200, 200 * record_bytes(PREFIX_BYTES + 2)));
    spool.append(b"y\n", 1).expect("there is room");
    while let Some(reading) = spool.read(spool.confirmed(), 30).expect("readable") {
        spool.forget(reading.end);
    }
    assert_eq!((spool.visits(), system.segments().len()), (0, 1));
    // The one in use, the one before it, and the one that is read.
    assert!(system.disks.most_open() <= 3, "{}", system.disks.most_open());
}

/// Writes a segment as another process has left it.
fn write_segment(folder: &Path, first: u64, records: &[(u64, &str)]) {
    let disk = crate::disk::fake::FakeFile::default();
    let mut journal = Journal::create(Arc::new(disk.clone()));
    for (first, lines) in records {
        let count = lines.lines().count() as u32;
        journal
            .append(&[&first.to_le_bytes(), &count.to_le_bytes(), lines.as_bytes()])
            .expect("the disk works");
    }
    fs::write(segment::path(folder, first), disk.live()).expect("the disk works");
}

/// Groups of one visit of 3,000 bytes, the first byte of which says which it is: record n starts on page (n * 3020) / 4096.
fn append_pages(spool: &Spool, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        spool.append(page_line(n).as_bytes(), 1).expect("there is room");
    }
}

fn page_line(n: u64) -> String {
    format!("{n:04}{}\n", "x".repeat(2_995))
}

fn page_lines(numbers: impl IntoIterator<Item = u64>) -> BTreeMap<u64, String> {
    numbers.into_iter().map(|n| (n, page_line(n).trim_end().to_string())).collect()
}

/// What can be read before the first place that cannot, and whether there is one.
fn readable(spool: &Spool) -> (BTreeMap<u64, String>, bool) {
    let mut visits = BTreeMap::new();
    let mut position = spool.confirmed();
    loop {
        match spool.read(position, 10_000) {
            Ok(Some(reading)) => {
                let lines = String::from_utf8(reading.message.body).expect("text");
                visits.extend((reading.message.first..).zip(lines.lines().map(str::to_string)));
                position = reading.end;
            }
            Ok(None) => return (visits, false),
            Err(_) => return (visits, true),
        }
    }
}

/// A start failed where the newest segment could not be read, and a reader gave up what it had read before the place.
#[test]
fn whichever_page_cannot_be_read_visits_are_taken_and_nothing_is_skipped_or_numbered_twice() {
    for (confirmed, pages) in [(0, 30), (7, 30), (19, 30)] {
        for page in 0..pages {
            let system = Failing::new();
            let spool = system.open();
            append_pages(&spool, 1..=20);
            for _ in 0..confirmed {
                spool.forget(spool.read(spool.confirmed(), 1).expect("readable").expect("a group").end);
            }
            drop(spool);
            let case = format!("{confirmed} confirmed, page {page}");
            let newest = system.segments().remove(0);
            system.disks.hide(&newest, page * 4096);
            let mut new = BTreeMap::new();
            for restart in 0..3 {
                let spool = system.open();
                let next = spool.state().next;
                assert!(next > 20, "{case}: {next} is given away again");
                spool.append(format!("new {restart}\n").as_bytes(), 1).expect(&case);
                assert_eq!(new.insert(next, format!("new {restart}")), None, "{case}");
                let (read, is_stuck) = readable(&spool);
                let behind = read.range(21..).count();
                assert_eq!(behind, if is_stuck { 0 } else { new.len() }, "{case}: skipped");
                let contiguous = (confirmed + 1..).take_while(|n| read.contains_key(n)).count() as u64;
                assert!(is_stuck || confirmed + contiguous >= 20, "{case}: {contiguous}");
            }
            system.disks.heal();
            for _ in 0..2 {
                let spool = system.open();
                let mut expected = page_lines(confirmed + 1..=20);
                expected.extend(new.clone());
                let read = unconfirmed(&spool);
                let read: BTreeMap<_, _> = read.into_iter().filter(|(n, _)| *n > confirmed).collect();
                assert_eq!(read, expected, "{case}, healed");
            }
        }
    }
}

#[test]
fn an_old_segment_that_cannot_be_read_holds_nobody_up_but_its_reader() {
    let system = Failing::new();
    let spool = system.open();
    append_pages(&spool, 1..=200);
    assert!(system.segments().len() > 2);
    let second = system.segments().remove(1);
    system.disks.hide(&second, 3 * 4096);
    let (read, is_stuck) = readable(&spool);
    let first = spool.state().segments[1].first;
    // Records 4 and 5 of the segment have bytes on that page.
    assert_eq!((read, is_stuck), (page_lines(1..first + 4), true));
    let error = spool.read(Position { sequence: first, segment: first, offset: 0 }, 1 << 20).map(drop);
    assert!(error.is_ok(), "what stands before is read");
    drop(spool);
    let spool = system.open();
    append_pages(&spool, 201..=210);
    let (read, is_stuck) = readable(&spool);
    assert_eq!((read, is_stuck), (page_lines(1..first + 4), true));
    let stuck =
        Position { sequence: first + 4, segment: first, offset: 4 * record_bytes(PREFIX_BYTES + 3_000) };
    let error = spool.read(stuck, 1).expect_err("it cannot be read").to_string();
    assert!(error.contains(&second.display().to_string()), "{error}");
    system.disks.heal();
    assert_eq!(unconfirmed(&spool), page_lines(1..=210));
}

/// A name that is away stands for a descriptor that is not to be had (EMFILE), or a permission (EACCES).
#[test]
fn a_segment_that_cannot_be_opened_is_opened_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = open(folder.path());
    fill(&spool, 30);
    let (second, aside) = (segments(folder.path()).remove(1), folder.path().join("aside"));
    fs::rename(&second, &aside).expect("it is there");
    for _ in 0..2 {
        let (read, is_stuck) = readable(&spool);
        assert_eq!((read.into_keys().collect::<Vec<_>>(), is_stuck), ((1..=13).collect(), true));
    }
    fs::rename(&aside, &second).expect("it is there");
    assert_eq!(unconfirmed(&spool).len(), 30);
}

/// A folder in its place cannot be opened to be written to.
#[test]
fn a_start_goes_on_above_a_newest_segment_that_cannot_be_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    fill(&open(folder.path()), 3);
    let (newest, aside) = (segments(folder.path()).remove(0), folder.path().join("aside"));
    fs::rename(&newest, &aside).and_then(|()| fs::create_dir(&newest)).expect("the disk works");
    for starts in 1..=3 {
        let spool = open(folder.path());
        assert!(spool.state().next > 3, "{starts}");
        fill(&spool, 1);
        let error = spool.read(spool.confirmed(), 1).map(drop).expect_err("it cannot be opened").to_string();
        assert!(error.contains(&newest.display().to_string()), "{error}");
        assert_eq!(segments(folder.path()).len(), 2);
    }
    fs::remove_dir(&newest).and_then(|()| fs::rename(&aside, &newest)).expect("the disk works");
    assert_eq!(unconfirmed(&open(folder.path())).len(), 6);
}

#[derive(Debug, Clone)]
enum Step {
    Append {
        visits: u32,
        bytes: usize,
    },
    Confirm {
        groups: usize,
        max_bytes: usize,
    },
    /// After so many more operations, all fail.
    Fail {
        after: u64,
    },
    /// A page of a segment can no longer be read.
    Hide {
        segment: usize,
        page: u64,
    },
    Heal,
    /// The process is killed, while the disk fails after so many operations of an append and of the next start.
    Kill {
        failing: Option<(u64, u64)>,
        torn: usize,
    },
    /// The power goes; a note of what is confirmed may be lost.
    CutPower {
        keep: usize,
        note: bool,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1u32..5, 1usize..30_000).prop_map(|(visits, bytes)| Step::Append { visits, bytes }),
        5 => (0usize..6, 1usize..60_000).prop_map(|(groups, max_bytes)| Step::Confirm { groups, max_bytes }),
        2 => (0u64..8).prop_map(|after| Step::Fail { after }),
        1 => (0usize..4, 0u64..20).prop_map(|(segment, page)| Step::Hide { segment, page }),
        2 => Just(Step::Heal),
        4 => (proptest::option::of((0u64..4, 0u64..4)), 0usize..40)
            .prop_map(|(failing, torn)| Step::Kill { failing, torn }),
        4 => (prop_oneof![Just(0), 0usize..300_000], any::<bool>())
            .prop_map(|(keep, note)| Step::CutPower { keep, note }),
    ]
}

/// What the spool has said, and what is true of it.
#[derive(Default)]
struct Model {
    /// Answered with 200.
    promised: BTreeMap<u64, String>,
    /// Sent off, so the number is the visit's for ever.
    sent: BTreeMap<u64, String>,
    /// Every visit before is safe elsewhere.
    confirmed: u64,
    /// Somewhere is a page that cannot be read.
    is_hidden: bool,
}

impl Model {
    /// Everything that is promised and not confirmed is there, up to a place that cannot be read, and no number is
    /// another visit's than before.
    fn check(&mut self, spool: &Spool) -> Result<(), TestCaseError> {
        let (read, is_stuck) = readable(spool);
        let seen = if is_stuck { read.last_key_value().map_or(0, |(last, _)| *last) } else { u64::MAX };
        let missing: Vec<_> = self
            .promised
            .range(self.confirmed..)
            .filter(|(number, _)| **number <= seen && !read.contains_key(number))
            .collect();
        prop_assert!(missing.is_empty(), "{} are missing", missing.len());
        // The audit, which does not hold the spool, sees the same. Besides, what is confirmed, and the end of an append
        // that failed and could not be taken back yet.
        let waits = waiting(spool.folder()).expect("readable").remove(0);
        prop_assert!(self.promised.last_key_value().is_none_or(|(last, _)| *last < waits.next));
        if !is_stuck {
            let (confirmed, next) = (spool.confirmed().sequence, spool.state().next);
            let waits = waits.sequences.into_iter().flatten().filter(|n| (confirmed..next).contains(n));
            prop_assert_eq!(waits.collect::<Vec<_>>(), read.keys().copied().collect::<Vec<_>>());
        }
        for (number, line) in read {
            for before in [self.promised.get(&number), self.sent.get(&number)].into_iter().flatten() {
                prop_assert_eq!(before, &line, "{} is another visit", number);
            }
            self.sent.insert(number, line);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn it_agrees_with_a_plain_queue(steps in proptest::collection::vec(any_step(), 1..60)) {
        let system = Failing::small();
        let mut spool = system.open();
        let mut model = Model { confirmed: 1, ..Model::default() };
        for (attempts, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append { visits, bytes } => {
                    let first = spool.state().next;
                    let line = |n| format!("{n} {attempts}{}", "x".repeat(bytes / 4));
                    let lines: Vec<String> = (first..).take(visits as usize).map(line).collect();
                    if spool.append((lines.join("\n") + "\n").as_bytes(), visits).is_ok() {
                        model.promised.extend((first..).zip(lines));
                    }
                }
                Step::Confirm { groups, max_bytes } => {
                    for _ in 0..groups {
                        let reading = spool.read(spool.confirmed(), max_bytes);
                        prop_assert!(reading.is_ok() || model.is_hidden);
                        if let Ok(Some(reading)) = reading {
                            model.confirmed = model.confirmed.max(reading.end.sequence);
                            spool.forget(reading.end);
                        }
                    }
                }
                Step::Fail { after } => system.disks.fail_after(after),
                Step::Hide { segment, page } => {
                    let segments = system.segments();
                    if let Some(path) = segments.get(segment % segments.len().max(1)) {
                        system.disks.hide(path, page * 4096);
                        model.is_hidden = true;
                    }
                }
                Step::Heal => {
                    system.disks.heal();
                    model.is_hidden = false;
                }
                Step::Kill { failing, torn } => {
                    if let Some((operations, _)) = failing {
                        system.disks.fail_after(operations);
                        let (first, line) = (spool.state().next, format!("the last of {attempts}"));
                        if spool.append((line.clone() + "\n").as_bytes(), 1).is_ok() {
                            model.promised.insert(first, line);
                        }
                    }
                    drop(spool);
                    if let Some((_, operations)) = failing {
                        system.disks.fail_after(operations);
                        let _ = system.try_to_open();
                    }
                    system.disks.stop_failing();
                    if let Some(newest) = system.segments().pop() {
                        system.disks.append(&newest, &vec![7; torn]);
                    }
                    spool = system.open();
                }
                Step::CutPower { keep, note } => {
                    drop(spool);
                    system.disks.stop_failing();
                    system.disks.cut_power(system.folder.path(), keep);
                    if !note {
                        // Then older visits come again.
                        let _ = fs::remove_file(system.folder.path().join("confirmed"));
                    }
                    spool = system.open();
                }
            }
            model.check(&spool)?;
        }
    }
}
