//! Splits a stream of bytes into records: by lines, by length prefixes, or into chunks. Reads large
//! blocks and lends each record out of them, so no record is copied or allocated for here.

use std::io::{self, BufRead, Read};

use thiserror::Error;

/// Bytes asked for in one read.
const BLOCK: usize = 256 << 10;
/// Bytes of the length in front of a framed record.
const PREFIX: usize = 4;

/// How records are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// A record for each line, without its newline. The last line may lack one.
    Lines,
    /// A little-endian u32 length in front of each record.
    Framed,
    /// Records of this size; the last one may be shorter.
    Chunk(usize),
}

/// Why input is not a sequence of records. Positions count bytes from the input's start.
#[derive(Debug, Error)]
pub(crate) enum InputError {
    #[error("cannot read stdin after byte {at}: {source}")]
    Read { at: u64, source: io::Error },
    #[error("the record at byte {at} of stdin has {len} bytes, the node accepts {max}")]
    TooLong { at: u64, len: usize, max: usize },
    #[error("the line at byte {at} of stdin is longer than the {max} bytes the node accepts")]
    LongLine { at: u64, max: usize },
    #[error("stdin ends in the middle of the record at byte {at}: {have} of {need} bytes are there, length included")]
    Cut { at: u64, need: usize, have: usize },
    #[error("--chunk {chunk} is more than the {max} bytes the node accepts for a record")]
    Chunk { chunk: usize, max: usize },
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// As much as was asked for: there is more.
    Full,
    /// Less: whoever writes the input may be waiting for what becomes of it.
    Short,
    /// The input has ended.
    End,
}

/// Records from a reader. Holds at most one record of `max` bytes and two blocks.
pub(super) struct Splitter<R> {
    input: R,
    framing: Framing,
    max: usize,
    /// `start..end` of it is input that was not handed on yet.
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes from `start` that are known to hold no newline.
    scanned: usize,
    /// Position of `buf[0]` in the input.
    base: u64,
    ended: bool,
}

impl<R: Read> Splitter<R> {
    /// Splits `input` into records of at most `max` bytes.
    pub(super) fn new(input: R, framing: Framing, max: usize) -> Result<Self, InputError> {
        if let Framing::Chunk(chunk) = framing
            && chunk > max
        {
            return Err(InputError::Chunk { chunk, max });
        }
        let buf = vec![0; 2 * BLOCK];
        Ok(Self { input, framing, max, buf, start: 0, end: 0, scanned: 0, base: 0, ended: false })
    }

    /// Reads once. To be called when [`Splitter::record`] has no more.
    pub(super) fn fill(&mut self) -> Result<Filled, InputError> {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.base += self.start as u64;
            self.end -= self.start;
            self.start = 0;
        }
        if self.buf.len() - self.end < BLOCK {
            // Doubling keeps the copying linear; a record over the limit was refused before this.
            self.buf.resize((self.end + BLOCK).max(self.buf.len().saturating_mul(2).min(self.max + 2 * BLOCK)), 0);
        }
        let room = &mut self.buf[self.end..];
        let got = loop {
            match self.input.read(room) {
                Ok(got) => break got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(InputError::Read { at: self.base + self.end as u64, source }),
            }
        };
        let filled = match got {
            0 => Filled::End,
            n if n < room.len() => Filled::Short,
            _ => Filled::Full,
        };
        self.end += got;
        self.ended = filled == Filled::End;
        Ok(filled)
    }

    /// The next whole record of what was read; `None` when more has to be read first, or, after
    /// [`Filled::End`], when there is none.
    pub(super) fn record(&mut self) -> Result<Option<&[u8]>, InputError> {
        let (at, have) = (self.base + self.start as u64, self.end - self.start);
        let bytes = &self.buf[self.start..self.end];
        // Where the record lies in `bytes`, and how many bytes it takes there with its framing.
        let (record, taken) = match self.framing {
            _ if have == 0 => return Ok(None),
            Framing::Lines => {
                let (newline, skipped) = find_newline(&bytes[self.scanned..]);
                let len = self.scanned + skipped - usize::from(newline);
                if len > self.max {
                    return Err(InputError::LongLine { at, max: self.max });
                }
                if !newline && !self.ended {
                    self.scanned = have;
                    return Ok(None);
                }
                (0..len, len + usize::from(newline))
            }
            Framing::Framed => {
                let Some((prefix, _)) = bytes.split_first_chunk::<PREFIX>() else {
                    return if self.ended { Err(InputError::Cut { at, need: PREFIX, have }) } else { Ok(None) };
                };
                let len = u32::from_le_bytes(*prefix) as usize;
                if len > self.max {
                    return Err(InputError::TooLong { at, len, max: self.max });
                }
                let need = PREFIX + len;
                if have < need {
                    return if self.ended { Err(InputError::Cut { at, need, have }) } else { Ok(None) };
                }
                (PREFIX..need, need)
            }
            Framing::Chunk(chunk) if have < chunk && !self.ended => return Ok(None),
            Framing::Chunk(chunk) => (0..chunk.min(have), chunk.min(have)),
        };
        let record = self.start + record.start..self.start + record.end;
        self.start += taken;
        self.scanned = 0;
        Ok(Some(&self.buf[record]))
    }
}

/// Whether there is a newline, and how many bytes there are up to and with it, or in all. The
/// standard library keeps its vectorised `memchr` to itself, except behind `BufRead`.
fn find_newline(mut bytes: &[u8]) -> (bool, usize) {
    let all = bytes;
    // Reading from a slice cannot fail.
    let skipped = bytes.skip_until(b'\n').unwrap_or(all.len());
    (skipped > 0 && all[skipped - 1] == b'\n', skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out its bytes at most `step` at a time.
    struct Slow<'a> {
        bytes: &'a [u8],
        step: usize,
    }

    impl Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.step.min(self.bytes.len()).min(out.len());
            let (now, later) = self.bytes.split_at(n);
            self.bytes = later;
            out[..n].copy_from_slice(now);
            Ok(n)
        }
    }

    fn split(bytes: &[u8], step: usize, framing: Framing, max: usize) -> Result<Vec<Vec<u8>>, InputError> {
        let mut splitter = Splitter::new(Slow { bytes, step }, framing, max)?;
        let mut records = Vec::new();
        loop {
            let filled = splitter.fill()?;
            while let Some(record) = splitter.record()? {
                records.push(record.to_vec());
            }
            if filled == Filled::End {
                return Ok(records);
            }
        }
    }

    /// However the bytes arrive, the records are the same.
    fn all_ways(bytes: &[u8], framing: Framing, expected: &[&[u8]]) {
        for step in [1, 2, 3, 7, BLOCK] {
            assert_eq!(split(bytes, step, framing, 1 << 20).unwrap(), expected, "{framing:?} in steps of {step}");
        }
    }

    #[test]
    fn lines() {
        all_ways(b"", Framing::Lines, &[]);
        all_ways(b"\n", Framing::Lines, &[b""]);
        all_ways(b"a\n\nbc\n", Framing::Lines, &[b"a", b"", b"bc"]);
        all_ways(b"a\r\nlast without newline", Framing::Lines, &[b"a\r", b"last without newline"]);
    }

    #[test]
    fn framed() {
        all_ways(b"", Framing::Framed, &[]);
        all_ways(b"\x01\0\0\0a\0\0\0\0\x03\0\0\0b\nc", Framing::Framed, &[b"a", b"", b"b\nc"]);
    }

    #[test]
    fn chunks() {
        all_ways(b"", Framing::Chunk(3), &[]);
        all_ways(b"abcdef", Framing::Chunk(3), &[b"abc", b"def"]);
        all_ways(b"abcdefg", Framing::Chunk(3), &[b"abc", b"def", b"g"]);
    }

    #[test]
    fn records_larger_than_blocks_are_whole() {
        let long = vec![b'x'; 5 * BLOCK + 3];
        let lines = [&long[..], b"\n", &long[..], b"\nend"].concat();
        for step in [1000, BLOCK, usize::MAX] {
            let records = split(&lines, step, Framing::Lines, long.len()).unwrap();
            assert!(records == [&long[..], &long[..], b"end"], "in steps of {step}");
        }
        let framed = [&(long.len() as u32).to_le_bytes()[..], &long[..]].concat();
        assert!(split(&framed, BLOCK, Framing::Framed, long.len()).unwrap() == [&long[..]]);
        assert!(split(&long, BLOCK, Framing::Chunk(long.len()), long.len()).unwrap() == [&long[..]]);
    }

    #[test]
    fn errors_name_the_byte() {
        let framed = b"\x01\0\0\0a\x05\0\0\0bcd";
        assert!(matches!(split(framed, 1, Framing::Framed, 9), Err(InputError::Cut { at: 5, need: 9, have: 7 })));
        let cut = split(&framed[..7], 9, Framing::Framed, 9);
        assert!(matches!(cut, Err(InputError::Cut { at: 5, need: 4, have: 2 })));
        let long = split(framed, 9, Framing::Framed, 4);
        assert!(matches!(long, Err(InputError::TooLong { at: 5, len: 5, max: 4 })));
        for step in [1, 100] {
            let long = split(b"ok\nlonger\n", step, Framing::Lines, 5);
            assert!(matches!(long, Err(InputError::LongLine { at: 3, max: 5 })));
        }
        assert!(matches!(split(b"", 1, Framing::Chunk(6), 5), Err(InputError::Chunk { chunk: 6, max: 5 })));
    }
}
