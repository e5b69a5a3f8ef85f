//! The ways in which a file may be compressed, told by what they add to its name.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952, by `.gz`.
    Gzip,
    /// RFC 8878, by `.zst`, and `.zstd` where others made it.
    Zstd,
}

/// What compressors add to a name; of each, what Pixel adds comes first.
const SUFFIXES: [(&str, Compression); 3] =
    [(".gz", Compression::Gzip), (".zst", Compression::Zstd), (".zstd", Compression::Zstd)];

impl Compression {
    /// A name without what a compressor added, and which one that was.
    pub(super) fn of(name: &OsStr) -> (&OsStr, Option<Compression>) {
        let bytes = name.as_bytes();
        let found = SUFFIXES.iter().find_map(|(suffix, how)| {
            bytes.strip_suffix(suffix.as_bytes()).map(|plain| (OsStr::from_bytes(plain), Some(*how)))
        });
        found.unwrap_or((name, None))
    }

    /// The names that the file called `plain` may have compressed.
    pub(super) fn names(plain: &OsStr) -> impl Iterator<Item = OsString> + '_ {
        SUFFIXES.iter().map(|(suffix, _)| OsString::from_vec([plain.as_bytes(), suffix.as_bytes()].concat()))
    }

    /// The name that Pixel gives to the file called `plain` when it is compressed so.
    pub(super) fn name(self, plain: &OsStr) -> OsString {
        let (suffix, _) = SUFFIXES.iter().find(|(_, how)| *how == self).expect("each way has a suffix");
        OsString::from_vec([plain.as_bytes(), suffix.as_bytes()].concat())
    }

    /// Reads what was compressed so.
    pub(super) fn reader<'a>(self, stored: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
            Compression::Zstd => Box::new(zstd::stream::Decoder::with_buffer(stored)?),
        })
    }

    /// Compresses to `target` all that `write` writes, with a checksum, and returns what `write` does.
    pub(super) fn write<T>(
        self,
        target: impl Write,
        write: impl FnOnce(&mut dyn Write) -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
                let written = write(&mut encoder)?;
                encoder.finish()?.flush()?;
                Ok(written)
            }
            Compression::Zstd => {
                let mut encoder = zstd::stream::Encoder::new(target, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                let written = write(&mut encoder)?;
                encoder.finish()?.flush()?;
                Ok(written)
            }
        }
    }
}

impl FromStr for Compression {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "gzip" => Ok(Compression::Gzip),
            "zstd" => Ok(Compression::Zstd),
            _ => Err("expected gzip or zstd"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_is_told_by_its_name_and_read_again() -> io::Result<()> {
        for how in [Compression::Gzip, Compression::Zstd] {
            let name = how.name("visits.log".as_ref());
            assert_eq!(Compression::of(&name), ("visits.log".as_ref(), Some(how)));
            let mut stored = Vec::new();
            how.write(&mut stored, |plain| plain.write_all(&b"a line\n".repeat(1_000)))?;
            let mut read = Vec::new();
            how.reader(&*stored)?.read_to_end(&mut read)?;
            assert!(stored.len() < 1_000 && read == b"a line\n".repeat(1_000));
        }
        assert_eq!(Compression::of("visits.log.zstd".as_ref()).1, Some(Compression::Zstd));
        assert_eq!(Compression::of("visits.log.zip".as_ref()), ("visits.log.zip".as_ref(), None));
        Ok(())
    }
}
