//! Whether a torch checkpoint's pickle may be read. A pickle names an object again by its number, and candle builds it anew
//! each time: a kilobyte can stand for more than any memory holds. So what would be built is counted before any of it is.
//!
//! Knows the instructions that candle knows, and builds nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Most bytes of all pickles together; those of large models have under one mebibyte. Torch stores them as they are, so they are
/// no larger than the file either, and an archive that unpacks to more is none of torch's.
const PICKLE_BYTES: u64 = 64 << 20;
/// Most bytes that objects may take, copies among them, whatever the size of the pickle ...
const BUILT_BYTES: u64 = 128 << 20;
/// ... and by its size: this, and so many times its bytes. A tensor's entry is of some ten objects in a hundred bytes.
const BUILT_EXTRA_BYTES: u64 = 1 << 20;
const BUILT_COPIES: u64 = 256;
/// Bytes of an object beside its text.
const OBJECT_BYTES: u64 = 64;
/// Deepest nesting: objects are copied and freed by recursion.
const DEPTH_MAX: u32 = 100;
/// The end of the names of the files in a checkpoint that are pickles.
const PICKLE: &str = "data.pkl";

/// Checks each pickle of a checkpoint. What is no archive is left to whoever reads it.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    let Ok(mut archive) = zip::ZipArchive::new(BufReader::new(file)) else { return Ok(()) };
    let (mut unread, mut left) = (PICKLE_BYTES.min(size), BUILT_BYTES);
    for index in 0..archive.len() {
        let file = archive.by_index(index).map_err(|e| e.to_string())?;
        let is_pickle = file.name().is_ok_and(|name| name.ends_with(PICKLE));
        if !is_pickle {
            continue;
        }
        let mut bytes = Vec::new();
        file.take(unread + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        let read = bytes.len() as u64;
        unread = unread.checked_sub(read).ok_or_else(|| {
            format!("its pickles unpack to more than the file has, or more than {PICKLE_BYTES} bytes; save it again with torch")
        })?;
        let most = left.min(BUILT_EXTRA_BYTES + BUILT_COPIES * read);
        left -= most - Gauge::new(&bytes, most).run()?;
    }
    Ok(())
}

/// An object that would be built.
#[derive(Clone, Copy, Debug)]
struct Item {
    bytes: u64,
    depth: u32,
    is_mark: bool,
}

/// A run of a pickle that counts.
struct Gauge<'a> {
    rest: &'a [u8],
    stack: Vec<Item>,
    memo: HashMap<u32, Item>,
    /// Bytes that may be built in all ...
    most: u64,
    /// ... and yet.
    left: u64,
}

impl<'a> Gauge<'a> {
    fn new(pickle: &'a [u8], most: u64) -> Self {
        Self { rest: pickle, stack: Vec::new(), memo: HashMap::new(), most, left: most }
    }

    /// Runs to the end; what is left then.
    fn run(mut self) -> Result<u64, String> {
        while self.step()? {}
        Ok(self.left)
    }

    /// One instruction; false at the last.
    fn step(&mut self) -> Result<bool, String> {
        match self.byte()? {
            // The protocol version.
            0x80 => drop(self.take(1)?),
            // A class, by two names.
            b'c' => {
                let names = self.line()? + self.line()?;
                self.push(names)?;
            }
            b'K' => self.number(1)?,
            b'M' => self.number(2)?,
            b'J' => self.number(4)?,
            b'G' => self.number(8)?,
            0x8a => {
                let length = self.byte()?;
                self.number(length.into())?;
            }
            b'X' => {
                let length = self.index(4)?;
                self.take(length as usize)?;
                self.push(length.into())?;
            }
            // None, true, false; an empty tuple, list, dictionary.
            b'N' | 0x88 | 0x89 | b')' | b']' | b'}' | b'd' => self.push(0)?,
            b'(' => self.stack.push(Item { bytes: 0, depth: 0, is_mark: true }),
            b't' => self.gather()?,
            0x85 | b'Q' => self.wrap(1)?,
            0x86 | b'R' | b'b' | 0x81 => self.wrap(2)?,
            0x87 => self.wrap(3)?,
            b'a' => self.add(1)?,
            b's' => self.add(2)?,
            b'e' | b'u' => {
                let items = self.since_mark()?;
                self.add_all(items)?;
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'q' => self.remember(1)?,
            b'r' => self.remember(4)?,
            b'.' => return Ok(false),
            other => return Err(format!("its pickle has the unknown instruction {other}")),
        }
        Ok(true)
    }

    fn push(&mut self, text: u64) -> Result<(), String> {
        self.build(Item { bytes: OBJECT_BYTES + text, depth: 1, is_mark: false })
    }

    fn number(&mut self, bytes: usize) -> Result<(), String> {
        self.take(bytes)?;
        self.push(0)
    }

    /// Takes the last few for parts of a new object.
    fn wrap(&mut self, count: usize) -> Result<(), String> {
        let at = self.stack.len().checked_sub(count).ok_or_else(cut)?;
        let parts = self.stack.split_off(at);
        self.enclose(&parts)
    }

    /// A tuple of all since the mark.
    fn gather(&mut self) -> Result<(), String> {
        let parts = self.since_mark()?;
        self.enclose(&parts)
    }

    fn enclose(&mut self, parts: &[Item]) -> Result<(), String> {
        // Its parts are built already, so only it itself is new.
        self.spend(OBJECT_BYTES)?;
        let item = joined(Item { bytes: OBJECT_BYTES, depth: 1, is_mark: false }, parts)?;
        self.stack.push(item);
        Ok(())
    }

    /// Adds the last few to the one before them.
    fn add(&mut self, count: usize) -> Result<(), String> {
        let at = self.stack.len().checked_sub(count).ok_or_else(cut)?;
        let items = self.stack.split_off(at);
        self.add_all(items)
    }

    fn add_all(&mut self, items: Vec<Item>) -> Result<(), String> {
        let whole = self.stack.last_mut().ok_or_else(cut)?;
        *whole = joined(*whole, &items)?;
        Ok(())
    }

    fn since_mark(&mut self) -> Result<Vec<Item>, String> {
        let mark = self.stack.iter().rposition(|item| item.is_mark).ok_or_else(cut)?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn remember(&mut self, width: usize) -> Result<(), String> {
        let number = self.index(width)?;
        let item = *self.stack.last().ok_or_else(cut)?;
        self.spend(item.bytes)?;
        self.memo.insert(number, item);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Result<(), String> {
        let number = self.index(width)?;
        let item = *self.memo.get(&number).ok_or_else(cut)?;
        self.build(item)
    }

    fn build(&mut self, item: Item) -> Result<(), String> {
        self.spend(item.bytes)?;
        self.stack.push(item);
        Ok(())
    }

    fn spend(&mut self, bytes: u64) -> Result<(), String> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| format!("its pickle stands for more than {} bytes of objects", self.most))?;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(cut)?;
        self.rest = rest;
        Ok(taken)
    }

    fn index(&mut self, width: usize) -> Result<u32, String> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn line(&mut self) -> Result<u64, String> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(cut)?;
        self.take(end + 1).map(|line| line.len() as u64)
    }
}

fn joined(whole: Item, parts: &[Item]) -> Result<Item, String> {
    let bytes = parts.iter().map(|part| part.bytes).fold(whole.bytes, u64::saturating_add);
    let depth = parts.iter().map(|part| part.depth + 1).fold(whole.depth, u32::max);
    if depth > DEPTH_MAX {
        return Err(format!("its pickle nests objects deeper than {DEPTH_MAX}"));
    }
    Ok(Item { bytes, depth, is_mark: false })
}

fn cut() -> String {
    "its pickle is cut, or none".to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn gauge(pickle: &[u8]) -> Result<u64, String> {
        Gauge::new(pickle, BUILT_BYTES).run().map(|left| BUILT_BYTES - left)
    }

    /// An object that is two of the one before, so many times over: `(h n h n t q n+1`.
    fn doubling(times: u8) -> Vec<u8> {
        let mut pickle = b"\x80\x02K\x01q\x00".to_vec();
        for n in 0..times {
            pickle.extend([b'(', b'h', n, b'h', n, b't', b'q', n + 1]);
        }
        pickle.push(b'.');
        pickle
    }

    #[test]
    fn what_doubles_is_refused_and_what_torch_writes_is_not() {
        assert!(gauge(&doubling(10)).is_ok());
        for times in [20, 40, 200] {
            assert!(gauge(&doubling(times)).unwrap_err().contains("stands for more"), "{times}");
        }
        // {"w": _rebuild_tensor_v2(persistent("storage", "0"), 0, (2, 3))}
        let torch = b"\x80\x02}q\x00(X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03X\x01\x00\x00\x000q\x04tq\x05QK\x00K\x02K\x03\x86q\x06tq\x07Rq\x08u.";
        assert!(gauge(torch).unwrap() < 10_000);
    }

    #[test]
    fn what_nests_or_repeats_is_refused() {
        let mut nested = b"N".to_vec();
        nested.extend([0x85; 1000]);
        nested.push(b'.');
        assert!(gauge(&nested).unwrap_err().contains("nests"));
        let mut long = vec![b'N'; 4 << 20];
        long.push(b'.');
        assert!(gauge(&long).unwrap_err().contains("stands for more"));
        let mut lists = b"]q\x00".to_vec();
        // A list that is added to itself, each time as it is by now.
        (0..200).for_each(|_| lists.extend(b"h\x00aq\x00"));
        lists.push(b'.');
        assert!(gauge(&lists).is_err());
        assert!(gauge(b"X\xff\xff\xff\xffab.").unwrap_err().contains("cut"));
    }

    #[test]
    fn a_checkpoint_is_checked_by_its_pickles_and_another_file_by_whoever_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pytorch_model.bin");
        let write_as = |name: &str, bytes: &[u8], method: zip::CompressionMethod| {
            let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
            archive.start_file(name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
            archive.write_all(bytes).unwrap();
            archive.finish().unwrap();
        };
        let write = |name: &str, bytes: &[u8]| write_as(name, bytes, zip::CompressionMethod::Stored);
        write("archive/data.pkl", &doubling(3));
        assert_eq!(check(&path), Ok(()));
        write("archive/data.pkl", &doubling(40));
        assert!(check(&path).unwrap_err().contains("stands for more"));
        // What a pickle may stand for goes by its size.
        write("archive/data.pkl", &doubling(17));
        assert!(check(&path).unwrap_err().contains("stands for more than 1"));
        let mut long = vec![b'N'; 1 << 20];
        long.push(b'.');
        write_as("archive/data.pkl", &long, zip::CompressionMethod::Deflated);
        assert!(check(&path).unwrap_err().contains("unpack to more"));
        write("archive/data/0", &doubling(40));
        assert_eq!(check(&path), Ok(()), "weights are no pickle");
        std::fs::write(&path, b"no archive").unwrap();
        assert_eq!(check(&path), Ok(()));
    }

    proptest! {
        #[test]
        fn no_bytes_upset_it(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = gauge(&bytes);
        }
    }
}
