//! A look at the header of a GGUF file: what it is, and how large its cache is. Weights are not read, and nothing here serves a
//! model; whoever serves it reads the file itself and says what is wrong with it.
//!
//! Format: the GGUF specification of ggml (`docs/gguf.md`), versions 2 and 3, little-endian.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Bytes of the header of a GGUF file that are read; vocabularies of a quarter of a million tokens take some ten million.
const HEADER_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a text in such a header that are kept; what is longer, a chat template say, is only known to be there.
const TEXT_BYTES_MAX: u64 = 256;
/// Most dimensions of a tensor that ggml knows; a header that claims more is damaged.
const DIMENSIONS_MAX: u32 = 4;

/// What stands before the weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Header {
    /// Whole numbers by key; of a list of them, the sum.
    numbers: BTreeMap<String, u64>,
    /// Lists of whole numbers among those.
    lists: BTreeSet<String>,
    /// Texts by key, long ones as an empty one.
    texts: BTreeMap<String, String>,
    /// ggml's numbers of the types of its tensors.
    pub(in crate::cli) tensor_types: BTreeSet<u32>,
}

impl Header {
    /// What kind of model it is, by ggml's name.
    pub(in crate::cli) fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// A text.
    pub(in crate::cli) fn text(&self, key: &str) -> Option<&str> {
        self.texts.get(key).map(String::as_str)
    }

    /// A whole number of its architecture: `context_length`.
    pub(in crate::cli) fn of_architecture(&self, key: &str) -> Option<u64> {
        self.numbers.get(&format!("{}.{key}", self.architecture())).copied()
    }

    /// A text of its architecture.
    pub(in crate::cli) fn text_of_architecture(&self, key: &str) -> Option<&str> {
        self.text(&format!("{}.{key}", self.architecture()))
    }

    /// Bytes that the keys and values of so many tokens take, where an element of each takes so many bits.
    pub(in crate::cli) fn cache_bytes(&self, tokens: u64, key_bits: u64, value_bits: u64) -> Option<u64> {
        let layers = self.of_architecture("block_count")?;
        let heads = self.of_architecture("attention.head_count");
        let name = "attention.head_count_kv";
        let is_list = self.lists.contains(&format!("{}.{name}", self.architecture()));
        let all_heads = match self.of_architecture(name).or(heads)? {
            sum if is_list => sum,
            each => each.checked_mul(layers)?,
        };
        let width = || self.of_architecture("embedding_length")?.checked_div(heads?);
        let keys = self.of_architecture("attention.key_length").or_else(width)?;
        let values = self.of_architecture("attention.value_length").unwrap_or(keys);
        let bits = keys.checked_mul(key_bits)?.checked_add(values.checked_mul(value_bits)?)?;
        Some(tokens.checked_mul(all_heads)?.checked_mul(bits)? / 8)
    }
}

/// What is wrong with one of which there is more than was read.
pub(in crate::cli) const CUT: &str = "ends within its header";

/// Reads a header.
///
/// # Errors
/// What is wrong with the file, as the end of a sentence that names it.
pub(in crate::cli) fn read(path: &Path) -> Result<Header, String> {
    let file = File::open(path).map_err(|error| format!("cannot be read ({error})"))?;
    parse(BufReader::new(file.take(HEADER_BYTES_MAX)))
}

/// Whether a file begins as a GGUF file does.
pub(in crate::cli) fn is_one(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}

/// Reads a header from wherever its bytes come.
///
/// # Errors
/// As of [`read`].
pub(in crate::cli) fn parse(file: impl Read) -> Result<Header, String> {
    let mut reader = Reader(file);
    if reader.bytes::<4>()? != *b"GGUF" {
        return Err("is no GGUF file".to_owned());
    }
    match reader.u32()? {
        2 | 3 => {}
        version => return Err(format!("is of version {version} of GGUF, and 2 and 3 are read")),
    }
    let (tensors, pairs) = (reader.u64()?, reader.u64()?);
    let mut header = Header::default();
    for _ in 0..pairs {
        reader.pair(&mut header)?;
    }
    for _ in 0..tensors {
        reader.skip_text()?;
        let dimensions = reader.u32()?;
        if dimensions > DIMENSIONS_MAX {
            return Err(format!("has a tensor of {dimensions} dimensions, and is damaged"));
        }
        reader.skip(u64::from(dimensions) * 8)?;
        header.tensor_types.insert(reader.u32()?);
        reader.skip(8)?;
    }
    Ok(header)
}

/// Reads what comes next. Nothing is held by a length that the file claims.
struct Reader<R>(R);

impl<R: Read> Reader<R> {
    fn pair(&mut self, header: &mut Header) -> Result<(), String> {
        let key = self.text()?.unwrap_or_default();
        // The file's numbers of types: 8 is a text, 9 a list, the others are numbers.
        match self.u32()? {
            8 => {
                let text = self.text()?.unwrap_or_default();
                header.texts.insert(key, text);
            }
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let mut sum = Some(0_u64);
                for _ in 0..count {
                    match kind {
                        8 => self.skip_text()?,
                        9 => return Err("has a list of lists, and is not read".to_owned()),
                        kind => sum = self.number(kind)?.zip(sum).and_then(|(number, sum)| sum.checked_add(number)),
                    }
                }
                if let Some(sum) = sum.filter(|_| kind != 8) {
                    header.lists.insert(key.clone());
                    header.numbers.insert(key, sum);
                }
            }
            kind => {
                if let Some(number) = self.number(kind)? {
                    header.numbers.insert(key, number);
                }
            }
        }
        Ok(())
    }

    /// A whole number that is none below 0; nothing of what is no such number.
    fn number(&mut self, kind: u32) -> Result<Option<u64>, String> {
        Ok(match kind {
            0 | 7 => Some(u64::from(self.bytes::<1>()?[0])),
            1 => u64::try_from(i8::from_le_bytes(self.bytes()?)).ok(),
            2 => Some(u64::from(u16::from_le_bytes(self.bytes()?))),
            3 => u64::try_from(i16::from_le_bytes(self.bytes()?)).ok(),
            4 => Some(u64::from(self.u32()?)),
            5 => u64::try_from(i32::from_le_bytes(self.bytes()?)).ok(),
            10 => Some(self.u64()?),
            11 => u64::try_from(i64::from_le_bytes(self.bytes()?)).ok(),
            6 => self.skip(4).map(|()| None)?,
            12 => self.skip(8).map(|()| None)?,
            other => return Err(format!("has a value of the unknown type {other}, and is damaged")),
        })
    }

    /// A text; nothing of one that is long, or is none.
    fn text(&mut self) -> Result<Option<String>, String> {
        let length = self.u64()?;
        if length > TEXT_BYTES_MAX {
            return self.skip(length).map(|()| None);
        }
        let mut text = Vec::new();
        (&mut self.0).take(length).read_to_end(&mut text).map_err(|error| ended(&error))?;
        if text.len() as u64 != length {
            return Err(CUT.to_owned());
        }
        Ok(String::from_utf8(text).ok())
    }

    fn skip_text(&mut self) -> Result<(), String> {
        let length = self.u64()?;
        self.skip(length)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        let skipped = std::io::copy(&mut (&mut self.0).take(bytes), &mut std::io::sink());
        match skipped.map_err(|error| ended(&error))? {
            all if all == bytes => Ok(()),
            _ => Err(CUT.to_owned()),
        }
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).map_err(|error| ended(&error))?;
        Ok(bytes)
    }
}

fn ended(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => CUT.to_owned(),
        _ => format!("cannot be read ({error})"),
    }
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use super::*;

    /// The pairs of a header that candle-llm reads, its architecture first.
    pub(in crate::cli) const SMOLLM: [(&str, &str); 8] = [
        ("general.architecture", "llama"),
        ("llama.block_count", "30"),
        ("llama.embedding_length", "576"),
        ("llama.attention.head_count", "9"),
        ("llama.attention.head_count_kv", "3"),
        ("llama.context_length", "2048"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ];

    /// A header with these texts, numbers and lists, and a tensor of each of these types.
    pub(in crate::cli) fn header_bytes(pairs: &[(&str, &str)], types: &[u32]) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((types.len() as u64).to_le_bytes());
        out.extend((pairs.len() as u64).to_le_bytes());
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.bytes());
        };
        for (key, value) in pairs {
            text(&mut out, key);
            if let Ok(number) = value.parse::<u32>() {
                out.extend(4_u32.to_le_bytes());
                out.extend(number.to_le_bytes());
            } else if let Some(numbers) = value.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
                let numbers: Vec<u32> = numbers.split(',').map(|number| number.trim().parse().unwrap()).collect();
                out.extend(9_u32.to_le_bytes());
                out.extend(4_u32.to_le_bytes());
                out.extend((numbers.len() as u64).to_le_bytes());
                numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
            } else {
                out.extend(8_u32.to_le_bytes());
                text(&mut out, value);
            }
        }
        for (position, kind) in types.iter().enumerate() {
            text(&mut out, &format!("t{position}"));
            out.extend(1_u32.to_le_bytes());
            out.extend(256_u64.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend(0_u64.to_le_bytes());
        }
        out
    }

    const LLAMA: [(&str, &str); 7] = [
        ("general.architecture", "llama"),
        ("llama.block_count", "2"),
        ("llama.embedding_length", "64"),
        ("llama.attention.head_count", "4"),
        ("llama.attention.head_count_kv", "2"),
        ("llama.context_length", "2048"),
        ("tokenizer.ggml.pre", "smollm"),
    ];

    #[test]
    fn a_header_says_what_the_model_is_and_what_its_cache_takes() {
        let header = parse(header_bytes(&LLAMA, &[0, 12]).as_slice()).unwrap();
        assert_eq!((header.architecture(), header.of_architecture("context_length")), ("llama", Some(2048)));
        assert_eq!(header.tensor_types, BTreeSet::from([0, 12]));
        // 2 layers, 2 heads, 16 wide, keys and values, 2 bytes each.
        assert_eq!(header.cache_bytes(10, 16, 16), Some(10 * 2 * 2 * 16 * 2 * 2));
        let mut listed = LLAMA;
        listed[4].1 = "[2, 0]";
        assert_eq!(parse(header_bytes(&listed, &[]).as_slice()).unwrap().cache_bytes(10, 16, 16), Some(1280));
        let long = "x".repeat(300);
        let header = parse(header_bytes(&[("tokenizer.chat_template", &long)], &[]).as_slice()).unwrap();
        assert_eq!(header.text("tokenizer.chat_template"), Some(""));
    }

    #[test]
    fn a_header_that_is_none_is_told_of_and_nothing_is_held_by_what_it_claims() {
        let whole = header_bytes(&LLAMA, &[0]);
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        let mut huge = whole;
        huge[8..16].fill(0xff);
        assert_eq!(parse(huge.as_slice()).unwrap_err(), "ends within its header");
        huge[16..24].fill(0xff);
        assert!(parse(huge.as_slice()).is_err());
        assert_eq!(parse(b"GGML\x03\0\0\0".as_slice()).unwrap_err(), "is no GGUF file");
    }
}
