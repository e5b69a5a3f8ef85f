//! The output file: appended to in whole batches by one process at a time, whatever else happens to it.
//!
//! It may be renamed, removed, truncated or written to by others; its name is looked at before each batch and a few
//! times a second. From the first byte of a batch until the ledger knows of it, an flock on the file keeps
//! cooperating programs out, so that they see whole, committed batches. It also keeps a successor waiting, should
//! somebody remove the lock file while its holder is paused within a batch.
//!
//! Pixel only ever appends. [`batch`](super::batch) goes on where a failure stopped it, and what a crash left behind
//! the ledger's mark is recognised by [`claims`](super::claims).

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::batch::Batch;
use super::claims::Claims;
use super::lock::Right;
use super::names;
use super::rotation::Rotation;
use crate::disk::folder::{Folder, GrowingFile, Identity};
use crate::record::{
    Appended, BLOCK_BYTES, Entry, FileChange, FileRecord, Lines, Mark, OpenClaims, Placed, TAIL_BYTES,
    VisitLog, VisitLogError, Written,
};
use crate::trace;
use crate::visit::lines::LineFormat;

/// How long somebody may keep the output locked before that counts as a failure.
const READER_MAX: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(5) };
/// How long after a failure a file is rotated again.
const ROTATE_AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(60) };
/// So long is the first line of a file at most of which it is read when its visit was received.
const HEAD_BYTES: usize = 128 << 10;
const POLL: Duration = Duration::from_millis(1);
/// How many parts, with bytes of others in between, a file's record may have: past that, up to so many of those bytes
/// are checked along with ours, as a file to which others append all the time would have the ledger grow without bound.
const STRETCHES_MAX: usize = if cfg!(test) { 20 } else { 10_000 };
const JOINED_MAX_BYTES: u64 = BLOCK_BYTES;
/// How many starts that wrote something a claim is kept for that nobody makes.
const IDLE_STARTS_MAX: u32 = 2;

/// The output file and the right that makes it this process's.
pub struct OutputFile {
    folder: Box<dyn Folder>,
    name: OsString,
    right: Box<dyn Right>,
    format: LineFormat,
    rotation: Rotation,
    // Once it could not be rotated: when that is tried again.
    rotates_from: Option<Instant>,
    open: Option<Open>,
    // The one that was open before, whose new name the ledger has to be told.
    renamed: Option<(u64, Identity)>,
    // Where its record ends, if that has so many parts that the next is to be joined to the last.
    joins: Option<u64>,
    // Whether the file that is open is locked, and was compared with the ledger since.
    is_held: bool,
    // `None` until the first batch has compared the file with the ledger.
    claims: Option<Claims>,
    batch: Option<Batch>,
    // The file that was cut off in the last batch, and from where on what stands in it since has to be claimed.
    cut: Option<(Arc<dyn GrowingFile>, u64)>,
    // Where the batch ended and which claims it left open, once it is durable.
    appended: Option<(Mark, Option<Vec<OpenClaims>>)>,
}

/// The file that has the output's name, or had it when a batch was begun.
struct Open {
    file: Arc<dyn GrowingFile>,
    identity: Identity,
    // When its first visit was received, or it was made.
    begun: Timestamp,
    // How the ledger knows it, once it was compared.
    mark: Option<Mark>,
}

/// A file beside the output, or the output itself, and its name.
type Candidate = (OsString, Arc<dyn GrowingFile>);

impl OutputFile {
    /// The output called `name` in `folder`, whose lines are of `format`.
    pub fn new(folder: Box<dyn Folder>, name: &OsStr, right: Box<dyn Right>, format: LineFormat) -> Self {
        let name = name.to_os_string();
        OutputFile {
            folder,
            name,
            right,
            format,
            rotation: Rotation::default(),
            rotates_from: None,
            open: None,
            renamed: None,
            joins: None,
            is_held: false,
            claims: None,
            batch: None,
            cut: None,
            appended: None,
        }
    }

    /// The same, rotated when `rotation` says so.
    pub fn rotating(self, rotation: Rotation) -> Self {
        OutputFile { rotation, ..self }
    }

    fn failed(&self, error: io::Error) -> VisitLogError {
        VisitLogError::Failed { path: self.folder.path(&self.name).display().to_string(), error }
    }

    /// Opens the file that has the name by now, if it is another than the one that is open.
    fn follow_name(&mut self) -> io::Result<()> {
        let named = self.folder.identity(&self.name)?;
        let is_same = named.is_some() && self.open.as_ref().map(|open| open.identity) == named;
        if is_same {
            return Ok(());
        }
        let file = self.folder.open(&self.name, true)?;
        self.folder.sync()?;
        let (identity, length) = (file.identity()?, file.len()?);
        let path = self.folder.path(&self.name);
        match length {
            0 => log::info!("opened `{}` (new)", path.display()),
            _ => log::info!("opened `{}` (existing, {length} bytes)", path.display()),
        }
        let begun = begun(&*file)?;
        let before = self.open.replace(Open { file, identity, begun, mark: None });
        self.renamed = before.and_then(|before| Some((before.mark?.file, before.identity))).or(self.renamed);
        Ok(())
    }

    /// Locks the file that has the name, against everybody else. Whoever had it locked may have renamed or removed it
    /// meanwhile, so the name is compared once the lock is held.
    fn lock(&mut self) -> Result<(), VisitLogError> {
        let until = Instant::now() + READER_MAX;
        loop {
            self.follow_name().map_err(|error| self.failed(error))?;
            let open = self.open.as_ref().expect("it was just opened");
            if !open.file.try_lock().map_err(|error| self.failed(error))? {
                if Instant::now() >= until {
                    let holder = open.file.locked_by().unwrap_or_else(|| "another process".into());
                    let text = format!("{holder} keeps it locked (flock)");
                    return Err(self.failed(io::Error::new(io::ErrorKind::WouldBlock, text)));
                }
                std::thread::sleep(POLL);
                continue;
            }
            let checked = self
                .right
                .check()
                .and_then(|()| self.folder.identity(&self.name).map_err(|error| self.failed(error)));
            match checked {
                Ok(named) if named == Some(open.identity) => return Ok(()),
                Ok(_) => open.file.unlock(),
                Err(error) => {
                    open.file.unlock();
                    return Err(error);
                }
            }
        }
    }

    /// Whether the file that is open is to be rotated: it is the one that was written last, and its time has come, or
    /// its lines are of another format.
    fn is_due(&self, written: &Written) -> io::Result<bool> {
        let (Some(open), Some(mark)) = (&self.open, written.mark().filter(|mark| mark.length > 0)) else {
            return Ok(false);
        };
        if self.rotates_from.is_some_and(|from| Instant::now() < from) {
            return Ok(false);
        }
        let is_other = mark.format.of_today() != self.format.of_today();
        let is_due = is_other || self.rotation.is_due(open.file.len()?, open.begun, Timestamp::now());
        Ok(is_due && self.is_marked(Some(mark))?)
    }

    /// Rotates the file that is locked, if that is due: it gets a name of its own, and the next one is opened and locked.
    /// Where that fails it is gone on with, and tried again later.
    fn rotate(&mut self, written: &Written) -> Result<(), VisitLogError> {
        let renamed = match self.is_due(written) {
            Ok(false) => return Ok(()),
            Ok(true) => self.move_aside(),
            Err(error) => Err(error),
        };
        let path = self.folder.path(&self.name);
        match renamed {
            Ok(name) => {
                log::info!("rotated `{}` to `{}`", path.display(), self.folder.path(&name).display());
                let open = self.open.as_ref().expect("it is locked");
                // The ledger is told its new name with what it is told of the next file.
                self.renamed = written.mark().map(|mark| (mark.file, open.identity));
                self.unlock();
                self.lock()
            }
            Err(error) => {
                log::warn!("failed to rotate `{}`: {error}; going on with it", path.display());
                self.rotates_from = Some(Instant::now() + ROTATE_AGAIN);
                Ok(())
            }
        }
    }

    /// Gives the file that is open a name of its hour, with a number past those of all that are there, compressed or not: one
    /// that was removed may be in somebody's copy.
    fn move_aside(&mut self) -> io::Result<OsString> {
        let begun = self.open.as_ref().expect("it is locked").begun;
        let there = self.folder.names()?;
        let numbers = there.iter().filter_map(|name| names::own_number(&self.name, begun, name));
        let name = names::own(&self.name, begun, numbers.max().map_or(0, |last| last + 1));
        self.folder.rename_new(&self.name, &name)?;
        self.folder.sync()?;
        Ok(name)
    }

    /// Compares the file that is locked with what the ledger knows; returns what the ledger has to be told.
    fn compare(&mut self, written: &Written) -> io::Result<Option<Entry>> {
        let marked = self.marked(written)?;
        let mut entry = Entry::default();
        if self.claims.is_none() {
            self.claims = Some(self.read_claims(written, marked.as_ref())?);
        }
        entry.claims = self.claims.as_ref().map(Claims::open).filter(|open| open != written.claims());
        entry.began_late = self.begins_late(written)?;
        let is_marked = self.is_marked(marked.as_ref())?;
        let open = self.open.as_mut().expect("it is locked");
        // One that was cut off, and renamed since, has a number of its own.
        let is_behind_cut = self.cut.as_ref().is_some_and(|(cut, _)| !Arc::ptr_eq(cut, &open.file));
        let id = match &marked {
            Some(mark) if is_marked => mark.file,
            marked => next_number(marked.as_ref(), written) + u64::from(is_behind_cut),
        };
        let end = open.file.len()?;
        let fragment = self.claims.as_ref().and_then(|claims| claims.fragment_start(&open.file, end));
        let mark = mark_of(&*open.file, id, &self.name, self.format, fragment.unwrap_or(end))?;
        if is_marked && marked.is_some_and(|marked| end < marked.length) {
            return Err(was_cut_off());
        }
        open.mark = Some(mark.clone());
        if mark.length > 0 && written.mark() != Some(&mark) {
            // What a killed process or others left is in memory alone, maybe, and a power cut would take it away from
            // below the mark.
            open.file.sync()?;
        }
        if let Some((file, identity)) = self.renamed.take().filter(|(file, _)| *file != id) {
            let name = self.name_of(identity)?;
            entry.files.extend(name.map(|name| FileChange {
                file,
                name: Some(name),
                ..FileChange::default()
            }));
        }
        self.joins = self.end_of_many(written.files().get(&id));
        if written.mark() != Some(&mark) {
            entry.mark = Some(mark);
        }
        Ok((entry != Entry::default()).then_some(entry))
    }

    /// Whether the file that is open is the one that was `marked`.
    fn is_marked(&self, marked: Option<&Mark>) -> io::Result<bool> {
        let (Some(mark), Some(open)) = (marked, &self.open) else { return Ok(false) };
        match open.mark.as_ref().map(|known| known.file) {
            Some(id) if id != mark.file => Ok(false),
            Some(_) if mark.length == 0 => Ok(true),
            // Nothing was committed to it, and its name may be another file's by now.
            None if mark.length == 0 => {
                Ok(self.find_empty(mark, true)?.is_some_and(|(_, file)| Arc::ptr_eq(&file, &open.file)))
            }
            _ => recognises(&*open.file, mark),
        }
    }

    /// Where a record ends that has so many parts that the next is to be joined to the last. What waits to be claimed
    /// is noted by itself.
    fn end_of_many(&self, record: Option<&FileRecord>) -> Option<u64> {
        let record = record.filter(|record| record.stretches.len() >= STRETCHES_MAX)?;
        let claimed = self.claims.as_ref().map_or(0, |claims| claims.end_in(record.id));
        record.goes_on_at().filter(|end| *end >= claimed)
    }

    /// The ledger's mark, in the format of today.
    fn marked(&self, written: &Written) -> io::Result<Option<Mark>> {
        let Some(by_inode) = written.mark_by_inode() else { return Ok(written.mark().cloned()) };
        for (name, file) in self.candidates(by_inode.length > 0)? {
            let (_, inode) = file.identity()?;
            if inode == by_inode.inode && file.len()? >= by_inode.length {
                return mark_of(&*file, 1, &name, self.format, by_inode.length).map(Some);
            }
        }
        Ok(None)
    }

    /// Reads what crashes left: behind the mark, and what earlier starts noted.
    fn read_claims(&self, written: &Written, marked: Option<&Mark>) -> io::Result<Claims> {
        let is_last = |mark: &Mark| marked.is_some_and(|marked| marked.file == mark.file);
        let mut noted: Vec<OpenClaims> = written.claims().to_vec();
        noted.retain(|claims| claims.idle_starts < IDLE_STARTS_MAX);
        if let Some(mark) = marked
            && let Some((_, file)) = self.find(mark, true)?
        {
            let end = file.len()?;
            if end > mark.length {
                noted.push(OpenClaims { mark: mark.clone(), end, used: Default::default(), idle_starts: 0 });
            }
        }
        let mut claims = Claims::default();
        if let Some((cut, from)) = &self.cut {
            // Its number may be another's, from when it was cut off before.
            let inode = cut.identity()?.1;
            noted.retain(|claims| claims.mark.inode != Some(inode));
            let mark = mark_of(&**cut, next_number(marked, written), &self.name, self.format, *from)?;
            let end = cut.len()?;
            claims.read(cut.clone(), OpenClaims { mark, end, used: Default::default(), idle_starts: 0 })?;
        }
        for mut one in noted {
            if let Some((name, file)) = self.find(&one.mark, is_last(&one.mark))? {
                one.mark.name = name.to_string_lossy().into_owned();
                claims.read(file, one)?;
            }
        }
        Ok(claims)
    }

    /// The file that a mark is of, and its name by now: known by its content, at the output's name or beside it.
    /// `is_last` as for `find_empty`.
    fn find(&self, mark: &Mark, is_last: bool) -> io::Result<Option<Candidate>> {
        if mark.length == 0 {
            return self.find_empty(mark, is_last);
        }
        for (name, file) in self.candidates(true)? {
            if recognises(&*file, mark)? {
                return Ok(Some((name, file)));
            }
        }
        Ok(None)
    }

    /// The file of a mark before which there is nothing to know it by: the one of its inode number, which may be
    /// renamed by now. Should that be another program's, no line in it is claimed but one that is the same. Where none
    /// has the number, as in a copy of the folder, it is the one at the output's name, as long as the mark `is_last`:
    /// behind that one, nothing is committed.
    fn find_empty(&self, mark: &Mark, is_last: bool) -> io::Result<Option<Candidate>> {
        let open = self.open.as_ref().expect("it is locked");
        let open_one = || (self.name.clone(), open.file.clone());
        if mark.inode == Some(open.identity.1) {
            return Ok(Some(open_one()));
        }
        if let Some(inode) = mark.inode {
            for (name, file) in self.candidates(true)? {
                if file.identity()?.1 == inode {
                    return Ok(Some((name, file)));
                }
            }
        }
        Ok((is_last || mark.inode.is_none()).then(open_one))
    }

    /// The file that is open, and others whose names begin as the output's where `beside` says so.
    fn candidates(&self, beside: bool) -> io::Result<Vec<Candidate>> {
        let open = self.open.as_ref().expect("it is locked");
        let mut candidates = vec![(self.name.clone(), open.file.clone())];
        if beside {
            for name in self.siblings()? {
                match self.folder.open(&name, false) {
                    Ok(file) => candidates.push((name, file)),
                    // It was not written by Pixel, or is gone by now. What cannot be opened for another reason may be
                    // the one that is looked for.
                    Err(error) if is_no_output(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(candidates)
    }

    /// What is beside the output and begins with its name, or has one that Pixel gives to its files, but for lock and
    /// ledger.
    fn siblings(&self) -> io::Result<Vec<OsString>> {
        let own = |suffix: &str| {
            let mut name = self.name.clone();
            name.push(suffix);
            name
        };
        let (lock, ledger) = (own(".lock"), own(".ledger"));
        let begins =
            |name: &OsString, with: &OsStr| name.as_encoded_bytes().starts_with(with.as_encoded_bytes());
        let mut names = self.folder.names()?;
        names.retain(|name| {
            let is_beside = begins(name, &self.name) && *name != lock && !begins(name, &ledger);
            *name != self.name && (is_beside || names::is_own(&self.name, name))
        });
        names.sort();
        Ok(names)
    }

    /// The name that a file has by now, where it is beside the output.
    fn name_of(&self, identity: Identity) -> io::Result<Option<String>> {
        for name in self.siblings()? {
            if self.folder.identity(&name)? == Some(identity) {
                return Ok(Some(name.to_string_lossy().into_owned()));
            }
        }
        Ok(None)
    }

    /// Whether the output had been written before its ledger began.
    fn begins_late(&self, written: &Written) -> io::Result<bool> {
        if written.began_late() || written.mark().is_some() {
            return Ok(false);
        }
        let open = self.open.as_ref().expect("it is locked");
        Ok(!written.spools().is_empty() || open.file.len()? > 0 || !self.siblings()?.is_empty())
    }

    fn unlock(&mut self) {
        self.is_held = false;
        if let Some(open) = &self.open {
            open.file.unlock();
        }
    }

    /// Goes on with a batch: whether its file is there still. A batch whose file is gone is begun anew in the next.
    fn goes_on(&mut self) -> io::Result<bool> {
        let (Some(open), Some(batch), true) = (&self.open, &mut self.batch, self.is_held) else {
            return Ok(false);
        };
        if open.file.links()? > 0 {
            return Ok(true);
        }
        batch.begin_anew();
        self.appended = None;
        self.unlock();
        Ok(false)
    }

    /// Whether what the ledger knows of the file, and what was appended of the batch, stands where it did. Where not,
    /// the file was cut off, and maybe copied before: the batch is begun anew as after a crash, so that it claims its
    /// lines in the copy, which goes on with the file's record, and in the file, which gets a new one.
    fn stands(&mut self, lines: &Lines) -> io::Result<()> {
        let (Some(open), Some(batch)) = (&mut self.open, &self.batch) else { return Ok(()) };
        let mark = open.mark.as_ref().expect("it was compared");
        if recognises(&*open.file, mark)? && batch.stands_in(&*open.file, lines)? {
            return Ok(());
        }
        // Where others only changed what stands before the mark, that is no line to be claimed.
        let is_shorter = open.file.len()?.min(batch.start().unwrap_or(u64::MAX)) < mark.length;
        let from = if is_shorter { 0 } else { mark.length };
        // One that was empty is found as such.
        self.cut = (mark.length > 0).then(|| (open.file.clone(), from));
        (open.mark, self.batch, self.claims) = (None, None, None);
        self.unlock();
        Err(was_cut_off())
    }

    /// Writes what is left of the batch; returns what `write` does.
    fn write_all(
        &mut self,
        lines: &Lines,
        as_claimed: &[Lines],
    ) -> io::Result<(Mark, Option<Vec<OpenClaims>>)> {
        self.stands(lines)?;
        let written = self.write(lines, as_claimed);
        if written.is_err() && self.batch.as_ref().is_none_or(Batch::is_untouched) {
            // Nothing is written yet: whoever waits for the file may be about to make room.
            self.batch = None;
            self.unlock();
        }
        let written = written?;
        self.stands(lines)?;
        Ok(written)
    }

    /// Makes the batch durable; returns where it ends, and the claims that are open thereafter where that changed.
    fn write(&mut self, lines: &Lines, as_claimed: &[Lines]) -> io::Result<(Mark, Option<Vec<OpenClaims>>)> {
        let open = self.open.as_ref().expect("it is locked");
        let claims = self.claims.as_mut().expect("it was compared");
        let batch = match &mut self.batch {
            Some(batch) => batch,
            none => none.insert(Batch::new(lines, as_claimed, claims, &open.file)?),
        };
        batch.unclaim_lost(claims)?;
        let step = trace::step("append");
        batch.append(&*open.file, lines)?;
        batch.write_again(&*open.file, claims, lines)?;
        drop(step);
        let mut files: Vec<&Arc<dyn GrowingFile>> = vec![&open.file];
        for place in batch.places() {
            let file = &claims.file(place).file;
            if !files.iter().any(|known| Arc::ptr_eq(known, file)) {
                files.push(file);
            }
        }
        let step = trace::step("sync");
        let synced = files.iter().try_for_each(|file| file.sync());
        drop(step);
        batch.synced(synced.is_ok());
        synced?;
        // One without a name is lost, however durable.
        let mut gone = Vec::new();
        for file in &files {
            if file.links()? == 0 {
                gone.push((*file).clone());
            }
        }
        if !gone.is_empty() {
            batch.unclaim(|place| gone.iter().any(|gone| Arc::ptr_eq(gone, &claims.file(place).file)));
            if gone.iter().any(|gone| Arc::ptr_eq(gone, &open.file)) {
                batch.begin_anew();
            }
            return Err(io::Error::new(io::ErrorKind::NotFound, "it was removed while it was written to"));
        }
        let end = match batch.end() {
            Some(end) => end,
            None => open.file.len()?,
        };
        let id = open.mark.as_ref().expect("it was compared").file;
        let mark = mark_of(&*open.file, id, &self.name, self.format, end)?;
        let after = claims.open_after(batch.places());
        let after = after.or_else(|| batch.has_claimed().then(|| claims.open()));
        Ok((mark, after))
    }
}

impl VisitLog for OutputFile {
    fn check(&self) -> Result<(), VisitLogError> {
        self.right.check()
    }

    fn refresh(&mut self) -> Result<(), VisitLogError> {
        self.right.check()?;
        if self.batch.is_some() {
            return Ok(());
        }
        self.follow_name().map_err(|error| self.failed(error))
    }

    fn is_due(&self, written: &Written) -> bool {
        // Where it cannot be told, the next batch says so.
        self.batch.is_none() && OutputFile::is_due(self, written).unwrap_or(false)
    }

    fn begin(&mut self, written: &Written) -> Result<Option<Entry>, VisitLogError> {
        if self.goes_on().map_err(|error| self.failed(error))? {
            return self.right.check().map(|()| None);
        }
        self.lock()?;
        if self.batch.is_none() {
            self.rotate(written)?;
        }
        let compared = self.compare(written).map_err(|error| {
            self.unlock();
            self.failed(error)
        })?;
        self.is_held = true;
        Ok(compared)
    }

    fn has_begun(&self) -> bool {
        self.batch.is_some()
    }

    fn claims_formats(&self) -> Vec<LineFormat> {
        self.claims.as_ref().map(Claims::formats).unwrap_or_default()
    }

    fn append<'a>(
        &'a mut self,
        lines: &'a Lines,
        as_claimed: &[Lines],
    ) -> Result<Appended<'a>, VisitLogError> {
        self.cut = None;
        if self.appended.is_none() {
            let written = self.write_all(lines, as_claimed).map_err(|error| self.failed(error))?;
            self.appended = Some(written);
        }
        let (Some((mark, open)), Some(batch), Some(claims)) = (&self.appended, &self.batch, &self.claims)
        else {
            unreachable!("it was just written")
        };
        let mut placed = batch.placed(mark.file, claims, lines);
        if let (Some(end), Some(open)) = (self.joins, &self.open) {
            let ours = placed.iter_mut().filter(|placed| placed.file == mark.file);
            let path = || self.folder.path(&self.name).display().to_string();
            join(&*open.file, end, ours).map_err(|error| VisitLogError::Failed { path: path(), error })?;
        }
        Ok(Appended { mark: Some(mark.clone()), placed, claims: open.clone() })
    }

    fn settle(&mut self) {
        if let (Some(_), Some(batch), Some(claims)) =
            (self.appended.take(), self.batch.take(), &mut self.claims)
        {
            claims.use_up(batch.places());
        }
        self.unlock();
    }

    fn let_go(&mut self) {
        if self.cut.is_some() {
            // They were read for this file to be claimed, and it may be another the next time.
            self.claims = None;
        }
        self.unlock();
    }
}

/// When the first visit of a file was received; now, where it has none that can be read.
fn begun(file: &dyn GrowingFile) -> io::Result<Timestamp> {
    let mut head = vec![0; HEAD_BYTES];
    let read = file.read_at(&mut head, 0)?;
    let line = head[..read].split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    let visit = LineFormat::of_line(line).and_then(|format| format.read(line).ok());
    Ok(visit.map_or_else(Timestamp::now, |there| there.visit.received_at))
}

/// Has each part begin where the one before ended, the first at `end`, if not too much of others' is in between.
fn join<'a, 'b: 'a>(
    file: &dyn GrowingFile,
    mut end: u64,
    parts: impl Iterator<Item = &'a mut Placed<'b>>,
) -> io::Result<()> {
    for part in parts {
        let after = part.start + part.bytes.len() as u64;
        let between = part.start.checked_sub(end).filter(|bytes| (1..=JOINED_MAX_BYTES).contains(bytes));
        if let Some(bytes) = between {
            let mut between = vec![0; bytes as usize];
            if !file.read_whole(&mut between, end)? {
                return Err(was_cut_off());
            }
            between.extend_from_slice(&part.bytes);
            (part.start, part.bytes) = (end, between.into());
        }
        end = end.max(after);
    }
    Ok(())
}

fn was_cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it was cut off while it was written to")
}

/// The number of a file that the ledger does not know.
fn next_number(marked: Option<&Mark>, written: &Written) -> u64 {
    marked.map_or(written.files_before(), |mark| mark.file) + 1
}

/// Whether `error`, from opening a file, says that it is none that Pixel writes to.
fn is_no_output(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), InvalidInput | IsADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem)
}

/// Whether `file` is the one that was marked: it is long enough, and the bytes before the mark are the same.
fn recognises(file: &dyn GrowingFile, mark: &Mark) -> io::Result<bool> {
    Ok(file.len()? >= mark.length && tail(file, mark.length)? == Some(mark.tail))
}

fn mark_of(
    file: &dyn GrowingFile,
    id: u64,
    name: &OsStr,
    format: LineFormat,
    length: u64,
) -> io::Result<Mark> {
    let tail = tail(file, length)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let inode = if length == 0 { Some(file.identity()?.1) } else { None };
    Ok(Mark { file: id, name: name.to_string_lossy().into_owned(), length, tail, format, inode })
}

/// The checksum of the bytes before `end`; `None` where the file ends before.
fn tail(file: &dyn GrowingFile, end: u64) -> io::Result<Option<u32>> {
    let mut bytes = vec![0; end.min(TAIL_BYTES) as usize];
    let start = end - bytes.len() as u64;
    let is_there = file.read_whole(&mut bytes, start)?;
    Ok(is_there.then(|| crc32fast::hash(&bytes)))
}
