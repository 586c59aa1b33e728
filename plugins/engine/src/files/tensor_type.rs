//! The types of tensors in weight files.

use std::fmt;

/// How the elements of a tensor are stored: ggml's types, as far as they are read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// F32: 32-bit floats.
    F32,
    /// F16: 16-bit floats.
    F16,
    /// Q4_0: 4 bits and a scale for each 32.
    Q40,
    /// Q4_1: 4 bits, a scale and a minimum for each 32.
    Q41,
    /// Q5_0: 5 bits and a scale for each 32.
    Q50,
    /// Q5_1: 5 bits, a scale and a minimum for each 32.
    Q51,
    /// Q8_0: 8 bits and a scale for each 32.
    Q80,
    /// Q2_K: 2 bits; scales and minima of 4 bits for each 16.
    Q2K,
    /// Q3_K: 3 bits; scales of 6 bits for each 16.
    Q3K,
    /// Q4_K: 4 bits; scales and minima of 6 bits for each 32.
    Q4K,
    /// Q5_K: 5 bits; scales and minima of 6 bits for each 32.
    Q5K,
    /// Q6_K: 6 bits; scales of 8 bits for each 16.
    Q6K,
    /// IQ4_NL: 4 bits of a table and a scale for each 32.
    Iq4Nl,
    /// IQ4_XS: 4 bits of a table; scales of 6 bits for each 32.
    Iq4Xs,
    /// BF16: the upper halves of 32-bit floats.
    Bf16,
    /// MXFP4: 4-bit floats and an exponent for each 32.
    Mxfp4,
}

/// Each type with ggml's number, its name there, the elements of a block, and a block's bytes.
const TYPES: [(TensorType, u32, &str, usize, usize); 16] = [
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Q40, 2, "Q4_0", 32, 18),
    (TensorType::Q41, 3, "Q4_1", 32, 20),
    (TensorType::Q50, 6, "Q5_0", 32, 22),
    (TensorType::Q51, 7, "Q5_1", 32, 24),
    (TensorType::Q80, 8, "Q8_0", 32, 34),
    (TensorType::Q2K, 10, "Q2_K", 256, 84),
    (TensorType::Q3K, 11, "Q3_K", 256, 110),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q5K, 13, "Q5_K", 256, 176),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
    (TensorType::Iq4Nl, 20, "IQ4_NL", 32, 18),
    (TensorType::Iq4Xs, 23, "IQ4_XS", 256, 136),
    (TensorType::Bf16, 30, "BF16", 1, 2),
    (TensorType::Mxfp4, 39, "MXFP4", 32, 17),
];

impl TensorType {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        TYPES.iter().map(|row| row.0)
    }

    /// The type with this number in ggml; `None` if it is not read here.
    pub fn numbered(number: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// Its number in ggml.
    pub fn number(self) -> u32 {
        self.row().1
    }

    /// Elements of a block.
    pub fn block(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of so many elements, which are whole blocks.
    pub fn bytes(self, elements: usize) -> usize {
        elements / self.block() * self.block_bytes()
    }

    fn row(self) -> (Self, u32, &'static str, usize, usize) {
        TYPES[self as usize]
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_where_their_types_do() {
        for (at, row) in TYPES.iter().enumerate() {
            assert_eq!((row.0 as usize, TensorType::numbered(row.1)), (at, Some(row.0)));
        }
        assert_eq!(TensorType::numbered(9), None);
    }
}
