//! A batch on its way into the output file: what of it stands there already, and what is left to do.
//!
//! It outlives failures. A short write, a full disk, a sync that failed: the bytes that got out stay, and the next
//! try goes on behind them. Where others appended behind a line that was torn, the line is written whole again
//! behind theirs, and the fragment is noted as ours.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::claims::{Claims, Place};
use crate::disk::folder::GrowingFile;
use crate::record::{Lines, Placed, TAIL_BYTES};

/// How many times in a row an append may bring nothing further before that counts as a failure.
const IN_VAIN_MAX: u32 = 8;

/// Bytes of the batch that stand in the file one after the other.
#[derive(Debug, Clone)]
struct Chain {
    start: u64,
    // A line feed of ours in front, which ended somebody's torn line.
    has_feed: bool,
    // Which bytes of the batch.
    bytes: Range<usize>,
    // Its first line stands behind somebody's torn line, and so is no line of its own.
    is_glued: bool,
}

impl Chain {
    fn end(&self) -> u64 {
        self.start + u64::from(self.has_feed) + self.bytes.len() as u64
    }

    fn content<'a>(&self, lines: &'a Lines) -> Cow<'a, [u8]> {
        with_feed(self.has_feed, &lines.bytes[self.bytes.clone()])
    }

    /// The lines of the batch that are whole in it.
    fn whole(&self, lines: &Lines) -> Range<usize> {
        let first = lines.ends.partition_point(|end| *end <= self.bytes.start);
        let is_torn = first < lines.len() && (self.is_glued || lines.start(first) < self.bytes.start);
        let first = first + usize::from(is_torn);
        first..lines.ends.partition_point(|end| *end <= self.bytes.end).max(first)
    }
}

/// What of a batch stands where.
pub(super) struct Batch {
    // Lines that a crash had left, how they are written there, and where.
    claimed: Vec<Claimed>,
    chains: Vec<Chain>,
    // By line: whether it stands somewhere, whole.
    is_placed: Vec<bool>,
    attempt: Option<Attempt>,
    // Whether one of its lines goes on where a crash tore it.
    has_fragment: bool,
    // What stands in memory alone, maybe: it is to be written again before the next sync.
    is_doubtful: bool,
}

/// An append, of which it is not known yet how much arrived.
#[derive(Clone)]
struct Attempt {
    // Where the file ended before.
    end: u64,
    // Behind what was written last; `None` where the system did not move it.
    position: Option<u64>,
    has_feed: bool,
    bytes: Range<usize>,
    // How many bytes, where the system said so.
    written: Option<usize>,
}

struct Claimed {
    line: usize,
    text: Vec<u8>,
    place: Place,
}

impl Batch {
    /// Sorts out the lines that a crash left already; `as_claimed` has them in other formats, too.
    pub(super) fn new(
        lines: &Lines,
        as_claimed: &[Lines],
        claims: &mut Claims,
        open: &Arc<dyn GrowingFile>,
    ) -> io::Result<Self> {
        let mut batch = Batch {
            claimed: Vec::new(),
            chains: Vec::new(),
            is_placed: vec![false; lines.len()],
            attempt: None,
            has_fragment: false,
            is_doubtful: false,
        };
        if !claims.is_empty() {
            let fragment = claims.fragment();
            if let Err(error) = batch.claim(lines, as_claimed, claims, open) {
                claims.give_back(batch.places(), fragment);
                return Err(error);
            }
        }
        Ok(batch)
    }

    fn claim(
        &mut self,
        lines: &Lines,
        as_claimed: &[Lines],
        claims: &mut Claims,
        open: &Arc<dyn GrowingFile>,
    ) -> io::Result<()> {
        let end = open.len()?;
        for line in 0..lines.len() {
            for text in std::iter::once(lines).chain(as_claimed).map(|lines| lines.line(line)) {
                if let Some(place) = claims.take(text)? {
                    self.is_placed[line] = true;
                    self.claimed.push(Claimed { line, text: text.to_vec(), place });
                    break;
                }
            }
            if !self.is_placed[line]
                && let Some(place) = claims.take_fragment(lines.line(line), open, end)
            {
                // The line goes on where the crash tore it.
                let start = lines.start(line);
                let bytes = start..start + place.length as usize;
                self.chains.push(Chain { start: place.start, has_feed: false, bytes, is_glued: false });
                (self.is_doubtful, self.has_fragment) = (true, true);
            }
        }
        Ok(())
    }

    /// Whether nothing of it stands anywhere.
    pub(super) fn is_untouched(&self) -> bool {
        self.chains.is_empty() && self.claimed.is_empty() && self.attempt.is_none()
    }

    /// Whether a crash had left any of it.
    pub(super) fn has_claimed(&self) -> bool {
        self.has_fragment || !self.claimed.is_empty()
    }

    /// Whether what of it was appended stands in `file` still: the end of each part tells, as what is cut off and grows
    /// again is other bytes.
    pub(super) fn stands_in(&self, file: &dyn GrowingFile, lines: &Lines) -> io::Result<bool> {
        for chain in &self.chains {
            let bytes = &lines.bytes[chain.bytes.clone()];
            let last = &bytes[bytes.len().saturating_sub(TAIL_BYTES as usize)..];
            let mut there = vec![0; last.len()];
            if !file.read_whole(&mut there, chain.end() - last.len() as u64)? || there != last {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Forgets what was appended: the file is gone, or was cut off by somebody.
    pub(super) fn begin_anew(&mut self) {
        self.attempt = None;
        self.chains.clear();
        self.is_placed.fill(false);
        self.claimed.iter().for_each(|claimed| self.is_placed[claimed.line] = true);
    }

    /// Forgets lines that a crash had left in a file that is gone by now.
    pub(super) fn unclaim(&mut self, is_gone: impl Fn(Place) -> bool) {
        let is_placed = &mut self.is_placed;
        self.claimed.retain(|claimed| {
            is_placed[claimed.line] = !is_gone(claimed.place);
            is_placed[claimed.line]
        });
    }

    /// Forgets lines that a crash had left and that are no longer where they were found.
    pub(super) fn unclaim_lost(&mut self, claims: &Claims) -> io::Result<()> {
        let mut lost = Vec::new();
        for Claimed { text, place, .. } in &self.claimed {
            let mut there = vec![0; text.len()];
            if !claims.file(*place).file.read_whole(&mut there, place.start)? || there != *text {
                lost.push(*place);
            }
        }
        self.unclaim(|place| lost.contains(&place));
        Ok(())
    }

    /// Where the lines are that a crash had left.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.claimed.iter().map(|claimed| claimed.place)
    }

    /// Writes again where it stands whatever may be in memory alone.
    pub(super) fn write_again(
        &self,
        file: &dyn GrowingFile,
        claims: &Claims,
        lines: &Lines,
    ) -> io::Result<()> {
        for Claimed { text, place, .. } in &self.claimed {
            let claimable = claims.file(*place);
            // The line feed in front may be in memory alone, too.
            let has_feed = place.start > claimable.noted.mark.length;
            claimable.file.write_again(&with_feed(has_feed, text), place.start - u64::from(has_feed))?;
        }
        if self.is_doubtful {
            for chain in &self.chains {
                file.write_again(&chain.content(lines), chain.start)?;
            }
        }
        Ok(())
    }

    /// Notes how a sync went.
    pub(super) fn synced(&mut self, is_durable: bool) {
        self.is_doubtful = !is_durable;
    }

    /// Appends what does not stand anywhere yet. After an error the next call goes on.
    pub(super) fn append(&mut self, file: &dyn GrowingFile, lines: &Lines) -> io::Result<()> {
        self.note_attempt(file, lines)?;
        let mut in_vain = 0;
        while let Some(first) = self.next_missing(lines) {
            // As many as are missing one after the other.
            let missing = self.is_placed[first..].iter().take_while(|is_placed| !**is_placed).count();
            let wanted = lines.start(first)..lines.ends[first + missing - 1];
            let before = self.appended_bytes();
            self.append_some(file, lines, wanted)?;
            in_vain = if self.appended_bytes() > before { 0 } else { in_vain + 1 };
            if in_vain >= IN_VAIN_MAX {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// The line to go on with: one that was torn, or the first that stands nowhere.
    fn next_missing(&self, lines: &Lines) -> Option<usize> {
        let is_missing = |line: usize| self.is_placed.get(line) == Some(&false);
        let torn = self.chains.last().map(|last| lines.ends.partition_point(|end| *end <= last.bytes.end));
        torn.filter(|line| is_missing(*line)).or_else(|| (0..lines.len()).find(|line| is_missing(*line)))
    }

    fn appended_bytes(&self) -> usize {
        self.chains.iter().map(|chain| chain.bytes.len()).sum()
    }

    /// Appends of `wanted` what the system takes in one go.
    fn append_some(&mut self, file: &dyn GrowingFile, lines: &Lines, wanted: Range<usize>) -> io::Result<()> {
        let end = file.len()?;
        let goes_on = self.chains.last().filter(|last| last.end() == end && wanted.contains(&last.bytes.end));
        let from = goes_on.map_or(wanted.start, |last| last.bytes.end);
        let has_feed = goes_on.is_none() && !ends_line(file, end)?;
        let bytes = with_feed(has_feed, &lines.bytes[from..wanted.end]);
        file.reserve(bytes.len() as u64)?;
        let before = file.position()?;
        let (position, outcome) = file.append(&bytes);
        let written = outcome.as_ref().ok().copied();
        // A write that failed may have arrived all the same without moving it: Linux does so where the sync fails that a
        // file or a mount asks for (`chattr +S`, `-o sync`).
        let position = Some(position).filter(|position| written.is_some() || *position != before);
        self.attempt = Some(Attempt { end, position, has_feed, bytes: from..wanted.end, written });
        self.note_attempt(file, lines)?;
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    /// Notes what the last append brought. Where that cannot be told now, nothing else is done before it can.
    fn note_attempt(&mut self, file: &dyn GrowingFile, lines: &Lines) -> io::Result<()> {
        let Some(Attempt { end, position, has_feed, bytes, written }) = self.attempt.clone() else {
            return Ok(());
        };
        let feed = usize::from(has_feed);
        let wanted = || with_feed(has_feed, &lines.bytes[bytes.clone()]);
        let (start, written) = match (position, written) {
            (Some(position), Some(written)) => (position - written as u64, written),
            // What stands before the position may be the beginning of it all the same.
            (Some(position), None) => {
                let written = arrived(file, end, position, &wanted())?;
                (position - written as u64, written)
            }
            (None, _) => (end, arrived_from(file, end, &wanted())?),
        };
        // Others may have appended between the look at the end and the append.
        let is_glued = written > 0 && !has_feed && start != end && !ends_line(file, start)?;
        self.attempt = None;
        if written == 0 {
            return Ok(());
        }
        let arrived = bytes.start..bytes.start + (written - feed.min(written));
        let last = self.chains.last_mut();
        match last.filter(|last| !has_feed && last.end() == start && last.bytes.end == arrived.start) {
            Some(last) => last.bytes.end = arrived.end,
            None => self.chains.push(Chain { start, has_feed, bytes: arrived, is_glued }),
        }
        let chain = self.chains.last().expect("there is one now");
        chain.whole(lines).for_each(|line| self.is_placed[line] = true);
        Ok(())
    }

    /// Where its lines are. `file` is the ledger's number of the one that was appended to.
    pub(super) fn placed<'a>(&'a self, file: u64, claims: &Claims, lines: &'a Lines) -> Vec<Placed<'a>> {
        let claimed = self.claimed.iter().map(|claimed| Placed {
            file: claims.file(claimed.place).noted.mark.file,
            start: claimed.place.start,
            bytes: Cow::from(&claimed.text),
            lines: 1,
        });
        let mut is_counted = vec![false; lines.len()];
        let appended = self.chains.iter().map(|chain| {
            // One that was torn may stand whole in two chains, where the first was glued.
            let whole = chain.whole(lines).filter(|line| !std::mem::replace(&mut is_counted[*line], true));
            Placed { file, start: chain.start, bytes: chain.content(lines), lines: whole.count() as u64 }
        });
        claimed.chain(appended).collect()
    }

    /// Where the first of what was appended starts; `None` where nothing was.
    pub(super) fn start(&self) -> Option<u64> {
        self.chains.iter().map(|chain| chain.start).min()
    }

    /// Where the last of what was appended ends; `None` where nothing was.
    pub(super) fn end(&self) -> Option<u64> {
        self.chains.iter().map(Chain::end).max()
    }
}

/// `bytes`, with a line feed in front where one is needed.
fn with_feed(has_feed: bool, bytes: &[u8]) -> Cow<'_, [u8]> {
    if has_feed { Cow::from([b"\n", bytes].concat()) } else { Cow::from(bytes) }
}

/// How many of `bytes` stand before `position`, where an append failed that was to begin at `end`.
fn arrived(file: &dyn GrowingFile, end: u64, position: u64, bytes: &[u8]) -> io::Result<usize> {
    let stands = |length: usize| {
        let mut there = vec![0; length];
        Ok::<_, io::Error>(file.read_whole(&mut there, position - length as u64)? && there == bytes[..length])
    };
    // Mostly what is there more than before; but others may have appended, or cut the file off, in between.
    let grown = position.saturating_sub(end).min(bytes.len() as u64) as usize;
    if grown > 0 && stands(grown)? {
        return Ok(grown);
    }
    for length in (1..=position.min(bytes.len() as u64) as usize).rev() {
        if stands(length)? {
            return Ok(length);
        }
    }
    Ok(0)
}

/// How many of `bytes` stand from `end` on.
fn arrived_from(file: &dyn GrowingFile, end: u64, bytes: &[u8]) -> io::Result<usize> {
    let grown = file.len()?.saturating_sub(end).min(bytes.len() as u64) as usize;
    let mut there = vec![0; grown];
    if !file.read_whole(&mut there, end)? {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was cut off while it was written to"));
    }
    Ok(there.iter().zip(bytes).take_while(|(there, wanted)| there == wanted).count())
}

/// Whether a line that is appended at `end` begins there.
fn ends_line(file: &dyn GrowingFile, end: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if end > 0 {
        file.read_whole(&mut last, end - 1)?;
    }
    Ok(last == *b"\n")
}
