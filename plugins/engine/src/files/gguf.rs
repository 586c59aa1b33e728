//! GGUF files, read in place over a memory map.
//!
//! Everything in the file is distrusted: each count, length and offset is checked against what is left of the file before it is
//! used, nothing is allocated by a number the file claims, and what is wrong is said in one sentence that names the file.
//! Format: the GGUF specification of ggml (`docs/gguf.md`), versions 2 and 3, little-endian.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};

use super::map;
use super::tensor_type::TensorType;
use super::tensors::{Part, TensorInfo, Tensors};

/// Most dimensions of a tensor that ggml knows.
const MAX_DIMENSIONS: u32 = 4;
/// Largest `general.alignment` that is believed, in bytes.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Most parts that a split model is believed to have.
const MAX_PARTS: u64 = 999;

/// An open GGUF file, or all parts of a split one.
#[derive(Debug)]
pub struct Gguf {
    /// Of the first part.
    metadata: BTreeMap<String, Value>,
    tensors: Tensors,
}

/// What stands before the weights.
#[derive(Debug, Default)]
struct Header {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// A metadata value. Strings and arrays stay in the file.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(Range<usize>),
    Array { kind: u32, count: usize, data: Range<usize> },
}

/// The file's type numbers of metadata values.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

impl Gguf {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// [`ErrorKind::MissingFile`] if it cannot be opened, [`ErrorKind::CorruptFile`] if it is no sound GGUF file,
    /// [`ErrorKind::Unsupported`] for a version or tensor type that this reader does not know.
    pub fn open(path: &Path) -> Result<Self> {
        let (part, Header { metadata, tensors }) = read(path)?;
        let mut gguf = Self { metadata, tensors: Tensors::of(path) };
        gguf.tensors.add(part, tensors)?;
        let count = match gguf.integer("split.count")? {
            None | Some(0 | 1) => return Ok(gguf),
            Some(count) if count <= MAX_PARTS => count,
            Some(count) => return Err(gguf.corrupt(format!("it claims to be one of {count} parts; fetch it again"))),
        };
        if let Some(number) = gguf.integer("split.no")?.filter(|number| *number != 0) {
            let message =
                format!("it is part {} of {count}; name the first part, which leads to the others", number + 1);
            return Err(gguf.corrupt(message));
        }
        for number in 2..=count {
            gguf.add_part(path, number, count)?;
        }
        Ok(gguf)
    }

    /// Adds the tensors of another part, which lies beside the first.
    fn add_part(&mut self, first: &Path, number: u64, count: u64) -> Result<()> {
        let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let beside = name
            .strip_suffix(&format!("-00001-of-{count:05}.gguf"))
            .map(|stem| first.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf")));
        let Some(path) = beside else {
            return Err(self.corrupt(format!(
                "it is the first of {count} parts, and the others are looked for by its name, which must end with `-00001-of-{count:05}.gguf`"
            )));
        };
        if !path.is_file() {
            let message = format!(
                "{}: it is the first of {count} parts, and part {number} is missing: {} must lie beside it",
                self.name(),
                path.display()
            );
            return Err(Error::new(ErrorKind::MissingFile, message));
        }
        let (part, header) = read(&path)?;
        let told = match header.metadata.get("split.no") {
            Some(Value::Unsigned(told)) => Some(*told + 1),
            _ => None,
        };
        if told != Some(number) {
            return Err(self.corrupt(format!("{} is not its part {number} of {count}; fetch it again", path.display())));
        }
        self.tensors.add(part, header.tensors)
    }

    /// The weights.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// The weights, without the metadata.
    pub fn into_tensors(self) -> Tensors {
        self.tensors
    }

    /// The path, for messages.
    pub fn name(&self) -> &str {
        self.tensors.name()
    }

    /// [`ErrorKind::CorruptFile`] with the file's name before the message.
    pub fn corrupt(&self, message: impl AsRef<str>) -> Error {
        self.tensors.corrupt(message)
    }

    /// A whole number that is not negative; `None` if the key is absent.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if the key holds something else, as for the readers below.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) if *value >= 0 => Ok(Some(value.unsigned_abs())),
            Some(_) => Err(self.wrong_kind(key, "a whole number")),
        }
    }

    /// A number, with a fraction or without; `None` if the key is absent.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(Value::Unsigned(value)) => Ok(Some(*value as f64)),
            Some(Value::Signed(value)) => Ok(Some(*value as f64)),
            Some(_) => Err(self.wrong_kind(key, "a number")),
        }
    }

    /// A boolean; `None` if the key is absent.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong_kind(key, "true or false")),
        }
    }

    /// A string; `None` if the key is absent.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(range)) => self.utf8(key, range.clone()).map(Some),
            Some(_) => Err(self.wrong_kind(key, "a string")),
        }
    }

    /// A list of strings; `None` if the key is absent.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some((count, data)) = self.array(key, kind::STRING, "a list of strings")? else { return Ok(None) };
        let mut cursor = Cursor { bytes: &self.tensors.first()[..data.end], at: data.start };
        let mut out = Vec::with_capacity(count.min(data.len() / 8));
        for _ in 0..count {
            out.push(self.utf8(key, cursor.string()?)?);
        }
        Ok(Some(out))
    }

    /// A list of 32-bit signed numbers.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i32>>> {
        let Some((_, data)) = self.array(key, kind::I32, "a list of 32-bit numbers")? else { return Ok(None) };
        Ok(Some(self.tensors.first()[data].as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()))
    }

    /// A list of booleans.
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        let Some((_, data)) = self.array(key, kind::BOOL, "a list of booleans")? else { return Ok(None) };
        Ok(Some(self.tensors.first()[data].iter().map(|b| *b != 0).collect()))
    }

    /// Whether the key is there and holds a list.
    pub fn is_list(&self, key: &str) -> bool {
        matches!(self.metadata.get(key), Some(Value::Array { .. }))
    }

    /// A list of 32-bit floating-point numbers.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some((_, data)) = self.array(key, kind::F32, "a list of 32-bit floats")? else { return Ok(None) };
        Ok(Some(self.tensors.first()[data].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
    }

    fn array(&self, key: &str, wanted: u32, what: &str) -> Result<Option<(usize, Range<usize>)>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array { kind, count, data }) if *kind == wanted => Ok(Some((*count, data.clone()))),
            Some(_) => Err(self.wrong_kind(key, what)),
        }
    }

    fn utf8(&self, key: &str, range: Range<usize>) -> Result<&str> {
        std::str::from_utf8(&self.tensors.first()[range])
            .map_err(|_| self.corrupt(format!("the metadata `{key}` is not UTF-8; fetch the file again")))
    }

    fn wrong_kind(&self, key: &str, wanted: &str) -> Error {
        self.corrupt(format!("the metadata `{key}` is not {wanted}; convert the model again"))
    }
}

/// Maps a file and reads its header.
fn read(path: &Path) -> Result<(Part, Header)> {
    let part = Part::open(path)?;
    let header = Header::parse(part.bytes()).map_err(|error| part.named(&error))?;
    Ok((part, header))
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take(4).ok().map(|range| &bytes[range]) != Some(b"GGUF") {
            return Err(corrupt("this is no GGUF file (it does not begin with `GGUF`); check the model's `files:`"));
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            let message = format!("GGUF version {version} is not known, only 2 and 3; convert the model again");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let (tensor_count, metadata_count) = (cursor.u64()?, cursor.u64()?);
        let mut header = Self::default();
        for _ in 0..metadata_count {
            let key = cursor.name()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind)?;
            header.metadata.insert(key, value);
        }
        let alignment = match header.metadata.get("general.alignment") {
            None => 32,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(n) => *n,
            Some(_) => {
                return Err(corrupt(
                    "`general.alignment` is no power of two from 8 to 1048576; convert the model again",
                ));
            }
        };
        let mut relative = Vec::new();
        for _ in 0..tensor_count {
            relative.push(cursor.tensor()?);
        }
        let data = (cursor.at as u64).next_multiple_of(alignment);
        for tensor in relative {
            let (name, info) = tensor.place(data, alignment, bytes.len())?;
            if header.tensors.insert(name.clone(), info).is_some() {
                return Err(corrupt(format!("the tensor {name} is there twice; convert the model again")));
            }
        }
        Ok(header)
    }
}

/// A tensor's entry before its place is checked.
struct RawTensor {
    name: String,
    dimensions: Vec<u64>,
    dtype: u32,
    offset: u64,
}

impl RawTensor {
    fn place(self, data: u64, alignment: u64, file_len: usize) -> Result<(String, TensorInfo)> {
        let Self { name, dimensions, dtype, offset } = self;
        let dtype = TensorType::numbered(dtype).ok_or_else(|| {
            let message = format!("the tensor {name} has the unknown type {dtype}; use a file with a usual quantisation such as Q4_1, Q4_K_M or Q8_0");
            Error::new(ErrorKind::Unsupported, message)
        })?;
        let broken = |what: &str| corrupt(format!("the tensor {name} {what}; fetch the file again"));
        let first = dimensions.first().copied().unwrap_or(1);
        if !first.is_multiple_of(dtype.block() as u64) {
            return Err(broken("has rows that are no whole number of blocks"));
        }
        let elements = map::elements(dimensions.iter().copied()).ok_or_else(|| broken("is impossibly large"))?;
        let size = (elements / dtype.block() as u64).checked_mul(dtype.block_bytes() as u64);
        let start = data.checked_add(offset);
        let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
        let range = range
            .filter(|range| range.end <= file_len as u64)
            .ok_or_else(|| broken("reaches past the end of the file"))?;
        if !offset.is_multiple_of(alignment) {
            return Err(broken("is not aligned"));
        }
        let dimensions = dimensions.iter().map(|d| *d as usize).collect();
        let range = range.start as usize..range.end as usize;
        Ok((name, TensorInfo { dimensions, dtype, range, part: 0 }))
    }
}

/// A place in the header; every step is checked.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, len: u64) -> Result<Range<usize>> {
        let start = self.at;
        let end =
            usize::try_from(len).ok().and_then(|len| start.checked_add(len)).filter(|end| *end <= self.bytes.len());
        self.at = end.ok_or_else(|| corrupt("the file ends within its header; fetch it again"))?;
        Ok(start..self.at)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.take(N as u64)?;
        self.bytes[range]
            .first_chunk()
            .copied()
            .ok_or_else(|| corrupt("the file ends within its header; fetch it again"))
    }

    fn u32(&mut self) -> Result<u32> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.number().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<Range<usize>> {
        let len = self.u64()?;
        self.take(len)
    }

    fn name(&mut self) -> Result<String> {
        let range = self.string()?;
        String::from_utf8(self.bytes[range].to_vec())
            .map_err(|_| corrupt("a name in the header is not UTF-8; fetch the file again"))
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            kind::U8 => Value::Unsigned(self.number::<1>()?[0].into()),
            kind::I8 => Value::Signed(i8::from_le_bytes(self.number()?).into()),
            kind::U16 => Value::Unsigned(u16::from_le_bytes(self.number()?).into()),
            kind::I16 => Value::Signed(i16::from_le_bytes(self.number()?).into()),
            kind::U32 => Value::Unsigned(self.u32()?.into()),
            kind::I32 => Value::Signed(i32::from_le_bytes(self.number()?).into()),
            kind::F32 => Value::Float(f32::from_le_bytes(self.number()?).into()),
            kind::BOOL => Value::Bool(self.number::<1>()?[0] != 0),
            kind::STRING => Value::String(self.string()?),
            kind::ARRAY => self.array()?,
            kind::U64 => Value::Unsigned(self.u64()?),
            kind::I64 => Value::Signed(i64::from_le_bytes(self.number()?)),
            kind::F64 => Value::Float(f64::from_le_bytes(self.number()?)),
            other => {
                return Err(corrupt(format!("a metadata value has the unknown type {other}; fetch the file again")));
            }
        })
    }

    fn array(&mut self) -> Result<Value> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let start = self.at;
        match kind {
            kind::STRING => {
                for _ in 0..count {
                    self.string()?;
                }
            }
            kind::ARRAY => {
                return Err(corrupt(
                    "a metadata list holds lists, which no known model needs; convert the model again",
                ));
            }
            _ => {
                let size = match kind {
                    kind::U8 | kind::I8 | kind::BOOL => 1,
                    kind::U16 | kind::I16 => 2,
                    kind::U32 | kind::I32 | kind::F32 => 4,
                    kind::U64 | kind::I64 | kind::F64 => 8,
                    other => {
                        return Err(corrupt(format!(
                            "a metadata list has the unknown type {other}; fetch the file again"
                        )));
                    }
                };
                self.take(
                    count
                        .checked_mul(size)
                        .ok_or_else(|| corrupt("a metadata list is impossibly long; fetch the file again"))?,
                )?;
            }
        }
        // Every element took at least one byte of the file, so the count fits.
        Ok(Value::Array { kind, count: count as usize, data: start..self.at })
    }

    fn tensor(&mut self) -> Result<RawTensor> {
        let name = self.name()?;
        let count = self.u32()?;
        if count > MAX_DIMENSIONS {
            return Err(corrupt(format!("the tensor {name} has {count} dimensions; fetch the file again")));
        }
        let dimensions = (0..count).map(|_| self.u64()).collect::<Result<_>>()?;
        Ok(RawTensor { name, dimensions, dtype: self.u32()?, offset: self.u64()? })
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::CorruptFile, message)
}

#[cfg(test)]
mod tests {
    use super::Header;

    fn tiny() -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        let text = |out: &mut Vec<u8>, s: &str| {
            out.extend((s.len() as u64).to_le_bytes());
            out.extend(s.as_bytes());
        };
        out.extend(1u64.to_le_bytes());
        out.extend(3u64.to_le_bytes());
        text(&mut out, "a.number");
        out.extend(4u32.to_le_bytes());
        out.extend(7u32.to_le_bytes());
        text(&mut out, "a.text");
        out.extend(8u32.to_le_bytes());
        text(&mut out, "hello");
        text(&mut out, "a.list");
        out.extend(9u32.to_le_bytes());
        out.extend(8u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        text(&mut out, "x");
        text(&mut out, "yz");
        text(&mut out, "weight");
        out.extend(2u32.to_le_bytes());
        out.extend(32u64.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend(3u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32) + 40, 0);
        out
    }

    #[test]
    fn reads_a_sound_file() {
        let header = Header::parse(&tiny()).expect("sound");
        assert_eq!(header.metadata.len(), 3);
        assert_eq!(header.tensors["weight"].dimensions, [32, 2]);
        assert_eq!(header.tensors["weight"].range.len(), 40);
    }

    #[test]
    fn refuses_every_truncation() {
        let file = tiny();
        for len in 0..file.len() {
            let error = Header::parse(&file[..len]).expect_err("truncated");
            assert!(!error.message().is_empty());
        }
    }

    #[test]
    fn survives_any_change_of_bytes() {
        let file = tiny();
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                for width in [1, 4, 8] {
                    let mut broken = file.clone();
                    let end = (at + width).min(broken.len());
                    broken[at..end].fill(value);
                    if let Ok(header) = Header::parse(&broken) {
                        assert!(header.tensors.values().all(|t| t.range.end <= broken.len()));
                    }
                }
            }
        }
    }
}
