//! How each format packs its weights: ggml's block layouts, read for sixteen rows at once.
//!
//! Layouts: `ggml-common.h` and `ggml-quants.c` of llama.cpp. Every format comes down to pieces of 32 weights: bytes, a scale per 32 or
//! per 16, and where there is one a minimum. What a format takes away from its quants (8 in Q4_0, 32 in Q6_K) becomes a minimum too, as
//! quants that are not negative need one instruction less.

use super::scalar::{IQ4_VALUES, MXFP4_VALUES, MXFP4_ZERO};
use super::simd::{Blocks, Lanes};
use super::{QUADS, Quads};

/// 32 weights of sixteen rows: `scale * quant + minimum`.
pub(super) struct Piece<S: Lanes> {
    /// Vector j has quants `4 * j..4 * j + 4` of each row, as bytes.
    pub(super) quads: Quads<S>,
    /// Of the first and the last 16 weights; without [`Format::HALVES`] the first holds for all.
    pub(super) scales: [S::Floats; 2],
    /// Likewise. Not looked at without [`Format::MINIMUM`].
    pub(super) minima: [S::Floats; 2],
}

/// Where the pieces of a block go, in their order.
pub(super) trait Sink<S: Lanes> {
    fn piece<F: Format>(&mut self, piece: Piece<S>);
}

/// A quantised format.
pub(super) trait Format {
    /// Weights of a block.
    const WIDTH: usize;
    /// Whether quants are signed bytes; if not, they are below 128.
    const SIGNED: bool = false;
    /// Whether the first and the last 16 weights of a piece have their own scales and minima.
    const HALVES: bool = false;
    /// Whether there is a minimum.
    const MINIMUM: bool = true;

    /// Unpacks block `block` of sixteen rows.
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>);
}

/// Sixteen weight rows of `stride` bytes.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, S: Lanes> {
    bytes: &'a [u8],
    stride: usize,
    strides: S::Ints,
}

impl<'a, S: Lanes> Tile<'a, S> {
    #[inline(always)]
    pub(super) fn new(simd: S, bytes: &'a [u8], stride: usize) -> Self {
        Self { bytes, stride, strides: simd.strides(stride) }
    }

    /// Bytes of all rows.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    #[inline(always)]
    fn blocks<const BYTES: usize>(&self, block: usize) -> Blocks<'a, S, BYTES> {
        Blocks::of(self.bytes, block, self.stride, self.strides)
    }
}

/// The low and the high nibbles of vectors of bytes: of 16 bytes the halves of a piece.
#[inline(always)]
fn nibbles<S: Lanes>(simd: S, packed: [S::Ints; 4]) -> Quads<S> {
    let [a, b, c, d] = packed;
    let nibble = simd.splat(0x0f0f_0f0f);
    let low = |x| simd.and(x, nibble);
    let high = |x| simd.and(simd.shift_right::<4>(x), nibble);
    [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
}

/// The 32 bytes at `offset`.
#[inline(always)]
fn thirty_two<S: Lanes, const BYTES: usize>(simd: S, blocks: &Blocks<'_, S, BYTES>, offset: usize) -> Quads<S> {
    let [a, b, c, d] = simd.sixteen_bytes(blocks, offset);
    let [e, f, g, h] = simd.sixteen_bytes(blocks, offset + 16);
    [a, b, c, d, e, f, g, h]
}

/// A piece with one scale, and with `zero` for the quant that stands for 0.
#[inline(always)]
fn plain<S: Lanes>(simd: S, quads: Quads<S>, scale: S::Floats, zero: f32) -> Piece<S> {
    let minimum = simd.mul(scale, simd.splat_f32(-zero));
    Piece { quads, scales: [scale; 2], minima: [minimum; 2] }
}

/// Scale (f16), 32 nibbles that stand for -8 to 7.
pub(super) struct Q40;

impl Format for Q40 {
    const WIDTH: usize = 32;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<18>(block);
        let scale = simd.half(simd.four_bytes(&blocks, 0));
        let quads = nibbles(simd, simd.sixteen_bytes(&blocks, 2));
        sink.piece::<Self>(plain(simd, quads, scale, 8.0));
    }
}

/// Scale and minimum (f16), 32 nibbles.
pub(super) struct Q41;

impl Format for Q41 {
    const WIDTH: usize = 32;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<20>(block);
        let head = simd.four_bytes(&blocks, 0);
        let (scale, minimum) = (simd.half(head), simd.half(simd.shift_right::<16>(head)));
        let quads = nibbles(simd, simd.sixteen_bytes(&blocks, 4));
        sink.piece::<Self>(Piece { quads, scales: [scale; 2], minima: [minimum; 2] });
    }
}

/// Adds the fifth bits, bit i being that of quant i.
#[inline(always)]
fn fifth_bits<S: Lanes>(simd: S, mut quads: Quads<S>, bits: S::Ints) -> Quads<S> {
    let mut j = 0;
    while j < QUADS {
        quads[j] = simd.add_sixteens(quads[j], bits, j);
        j += 1;
    }
    quads
}

/// Scale (f16), 32 fifth bits, 32 nibbles: together -16 to 15.
pub(super) struct Q50;

impl Format for Q50 {
    const WIDTH: usize = 32;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<22>(block);
        let scale = simd.half(simd.four_bytes(&blocks, 0));
        let quads = nibbles(simd, simd.sixteen_bytes(&blocks, 6));
        sink.piece::<Self>(plain(simd, fifth_bits(simd, quads, simd.four_bytes(&blocks, 2)), scale, 16.0));
    }
}

/// Scale and minimum (f16), 32 fifth bits, 32 nibbles.
pub(super) struct Q51;

impl Format for Q51 {
    const WIDTH: usize = 32;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<24>(block);
        let head = simd.four_bytes(&blocks, 0);
        let (scale, minimum) = (simd.half(head), simd.half(simd.shift_right::<16>(head)));
        let quads = nibbles(simd, simd.sixteen_bytes(&blocks, 8));
        let quads = fifth_bits(simd, quads, simd.four_bytes(&blocks, 4));
        sink.piece::<Self>(Piece { quads, scales: [scale; 2], minima: [minimum; 2] });
    }
}

/// Scale (f16), 32 signed bytes.
pub(super) struct Q80;

impl Format for Q80 {
    const WIDTH: usize = 32;
    const SIGNED: bool = true;
    const MINIMUM: bool = false;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<34>(block);
        let scale = simd.half(simd.four_bytes(&blocks, 0));
        sink.piece::<Self>(plain(simd, thirty_two(simd, &blocks, 2), scale, 0.0));
    }
}

/// Scale (f16), 32 nibbles that stand for the values of a table.
pub(super) struct Iq4Nl;

impl Format for Iq4Nl {
    const WIDTH: usize = 32;
    const SIGNED: bool = true;
    const MINIMUM: bool = false;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<18>(block);
        let scale = simd.half(simd.four_bytes(&blocks, 0));
        let quads = looked_up(simd, nibbles(simd, simd.sixteen_bytes(&blocks, 2)), &IQ4_VALUES);
        sink.piece::<Self>(plain(simd, quads, scale, 0.0));
    }
}

#[inline(always)]
fn looked_up<S: Lanes>(simd: S, mut quads: Quads<S>, table: &[i8; 16]) -> Quads<S> {
    let mut j = 0;
    while j < QUADS {
        quads[j] = simd.lookup(table, quads[j]);
        j += 1;
    }
    quads
}

/// Exponent (a byte), 32 nibbles that are floats of 4 bits.
pub(super) struct Mxfp4;

impl Format for Mxfp4 {
    const WIDTH: usize = 32;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<17>(block);
        let exponent = simd.and(simd.four_bytes(&blocks, 0), simd.splat(0xff));
        // 2^(e - 127) as a number is e at the exponent's place, except 0 (2^-127, no normal number) and 255 (none at all: NaN).
        let carry = simd.shift_right::<8>(simd.add(exponent, simd.splat(1)));
        let none = simd.shift_right_signed::<31>(simd.sub(exponent, simd.splat(1)));
        let bits = simd.or(simd.shift_left::<23>(exponent), simd.shift_left::<22>(carry));
        let bits = simd.or(bits, simd.and(none, simd.splat(0x0040_0000)));
        // The table's values are doubled.
        let scale = simd.mul(simd.bits_to_f32(bits), simd.splat_f32(0.5));
        let quads = looked_up(simd, nibbles(simd, simd.sixteen_bytes(&blocks, 1)), &MXFP4_VALUES);
        sink.piece::<Self>(plain(simd, quads, scale, MXFP4_ZERO));
    }
}

/// Scales and minima of a block of Q4_K or Q5_K, which begins with both as f16 and eight of 6 bits of each.
#[derive(Clone, Copy)]
struct Sixes<S: Lanes> {
    scale: S::Floats,
    minimum: S::Floats,
    /// Four scales, four minima, as bytes; and once more, of pieces 4 to 7.
    bytes: [[S::Ints; 2]; 2],
}

impl<S: Lanes> Sixes<S> {
    #[inline(always)]
    fn read<const BYTES: usize>(simd: S, blocks: &Blocks<'_, S, BYTES>) -> Self {
        let [head, low_scales, low_minima, rest] = simd.sixteen_bytes(blocks, 0);
        let (six, four, two) = (simd.splat(0x3f3f_3f3f), simd.splat(0x0f0f_0f0f), simd.splat(0x3030_3030));
        let high = |nibbles, low| simd.or(simd.and(nibbles, four), simd.and(simd.shift_right::<2>(low), two));
        Self {
            scale: simd.half(head),
            minimum: simd.mul(simd.half(simd.shift_right::<16>(head)), simd.splat_f32(-1.0)),
            bytes: [
                [simd.and(low_scales, six), simd.and(low_minima, six)],
                [high(rest, low_scales), high(simd.shift_right::<4>(rest), low_minima)],
            ],
        }
    }

    /// Scale and minimum of the next piece, `half` being 0 for pieces 0 to 3 and 1 for 4 to 7.
    #[inline(always)]
    fn next(&mut self, simd: S, half: usize) -> (S::Floats, S::Floats) {
        let byte = simd.splat(0xff);
        let [scales, minima] = self.bytes[half];
        self.bytes[half] = [simd.shift_right::<8>(scales), simd.shift_right::<8>(minima)];
        let (scale, minimum) = (simd.to_f32(simd.and(scales, byte)), simd.to_f32(simd.and(minima, byte)));
        (simd.mul(self.scale, scale), simd.mul(self.minimum, minimum))
    }
}

/// Scale and minimum (f16), eight of 6 bits of each, 256 nibbles.
pub(super) struct Q4K;

impl Format for Q4K {
    const WIDTH: usize = 256;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<144>(block);
        let mut sixes = Sixes::read(simd, &blocks);
        let nibble = simd.splat(0x0f0f_0f0f);
        let mut pair = 0;
        while pair < 4 {
            let mut packed = thirty_two(simd, &blocks, 16 + 32 * pair);
            let mut high = 0;
            while high < 2 {
                let mut quads = packed;
                let mut j = 0;
                while j < QUADS {
                    quads[j] = simd.and(packed[j], nibble);
                    packed[j] = simd.shift_right::<4>(packed[j]);
                    j += 1;
                }
                let (scale, minimum) = sixes.next(simd, pair / 2);
                sink.piece::<Self>(Piece { quads, scales: [scale; 2], minima: [minimum; 2] });
                high += 1;
            }
            pair += 1;
        }
    }
}

/// As Q4_K, with 256 fifth bits before the nibbles.
pub(super) struct Q5K;

impl Format for Q5K {
    const WIDTH: usize = 256;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<176>(block);
        let mut sixes = Sixes::read(simd, &blocks);
        let mut fifths = thirty_two(simd, &blocks, 16);
        let (nibble, bit) = (simd.splat(0x0f0f_0f0f), simd.splat(0x0101_0101));
        let mut pair = 0;
        while pair < 4 {
            let mut packed = thirty_two(simd, &blocks, 48 + 32 * pair);
            let mut high = 0;
            while high < 2 {
                let mut quads = packed;
                let mut j = 0;
                while j < QUADS {
                    let fifth = simd.shift_left::<4>(simd.and(fifths[j], bit));
                    quads[j] = simd.or(simd.and(packed[j], nibble), fifth);
                    packed[j] = simd.shift_right::<4>(packed[j]);
                    fifths[j] = simd.shift_right::<1>(fifths[j]);
                    j += 1;
                }
                let (scale, minimum) = sixes.next(simd, pair / 2);
                sink.piece::<Self>(Piece { quads, scales: [scale; 2], minima: [minimum; 2] });
                high += 1;
            }
            pair += 1;
        }
    }
}

/// 256 low nibbles, 256 times 2 high bits, 16 signed scales of 8 bits, a scale (f16); quants stand for -32 to 31.
pub(super) struct Q6K;

impl Format for Q6K {
    const WIDTH: usize = 256;
    const HALVES: bool = true;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<210>(block);
        // The last four bytes end with the scale.
        let all = simd.half(simd.shift_right::<16>(simd.four_bytes(&blocks, 206)));
        let mut scales = simd.sixteen_bytes(&blocks, 192);
        let (nibble, two, zero) = (simd.splat(0x0f0f_0f0f), simd.splat(0x3030_3030), simd.splat_f32(-32.0));
        let mut half = 0;
        while half < 2 {
            let mut low = [thirty_two(simd, &blocks, 64 * half), thirty_two(simd, &blocks, 64 * half + 32)];
            let mut high = thirty_two(simd, &blocks, 128 + 32 * half);
            let mut piece = 0;
            while piece < 4 {
                let packed = &mut low[piece % 2];
                let mut quads = *packed;
                let mut j = 0;
                while j < QUADS {
                    let bits = simd.and(simd.shift_left::<4>(high[j]), two);
                    quads[j] = simd.or(simd.and(packed[j], nibble), bits);
                    packed[j] = simd.shift_right::<4>(packed[j]);
                    high[j] = simd.shift_right::<2>(high[j]);
                    j += 1;
                }
                let four = &mut scales[2 * half + piece / 2];
                let first = simd.mul(all, simd.to_f32(lowest_byte(simd, *four)));
                let last = simd.mul(all, simd.to_f32(lowest_byte(simd, simd.shift_right::<8>(*four))));
                *four = simd.shift_right::<16>(*four);
                let minima = [simd.mul(first, zero), simd.mul(last, zero)];
                sink.piece::<Self>(Piece { quads, scales: [first, last], minima });
                piece += 1;
            }
            half += 1;
        }
    }
}

/// The lowest byte of each lane, as a signed number.
#[inline(always)]
fn lowest_byte<S: Lanes>(simd: S, a: S::Ints) -> S::Ints {
    simd.shift_right_signed::<24>(simd.shift_left::<24>(a))
}

/// 16 scales and minima of 4 bits, 256 times 2 bits, scale and minimum (f16).
pub(super) struct Q2K;

impl Format for Q2K {
    const WIDTH: usize = 256;
    const HALVES: bool = true;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<84>(block);
        let head = simd.four_bytes(&blocks, 80);
        let all = simd.half(head);
        let all_minima = simd.mul(simd.half(simd.shift_right::<16>(head)), simd.splat_f32(-1.0));
        let mut scales = simd.sixteen_bytes(&blocks, 0);
        let (two, nibble) = (simd.splat(0x0303_0303), simd.splat(15));
        let mut half = 0;
        while half < 2 {
            let mut packed = thirty_two(simd, &blocks, 16 + 32 * half);
            let mut piece = 0;
            while piece < 4 {
                let mut quads = packed;
                let mut j = 0;
                while j < QUADS {
                    quads[j] = simd.and(packed[j], two);
                    packed[j] = simd.shift_right::<2>(packed[j]);
                    j += 1;
                }
                let four = &mut scales[2 * half + piece / 2];
                let factor = |of, bits| simd.mul(of, simd.to_f32(simd.and(bits, nibble)));
                let piece_scales = [factor(all, *four), factor(all, simd.shift_right::<8>(*four))];
                let minima = [
                    factor(all_minima, simd.shift_right::<4>(*four)),
                    factor(all_minima, simd.shift_right::<12>(*four)),
                ];
                *four = simd.shift_right::<16>(*four);
                sink.piece::<Self>(Piece { quads, scales: piece_scales, minima });
                piece += 1;
            }
            half += 1;
        }
    }
}

/// 256 high bits, 256 times 2 bits, 16 scales of 6 bits that stand for -32 to 31, a scale (f16); quants stand for -4 to 3.
pub(super) struct Q3K;

impl Format for Q3K {
    const WIDTH: usize = 256;
    const HALVES: bool = true;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<110>(block);
        let all = simd.half(simd.shift_right::<16>(simd.four_bytes(&blocks, 106)));
        let (four_bits, two_bits) = (simd.splat(0x0f0f_0f0f), simd.splat(0x3030_3030));
        let (a, b, c) = (simd.four_bytes(&blocks, 96), simd.four_bytes(&blocks, 100), simd.four_bytes(&blocks, 104));
        let scale = |low, high| simd.or(simd.and(low, four_bits), simd.and(high, two_bits));
        let mut scales = [
            scale(a, simd.shift_left::<4>(c)),
            scale(b, simd.shift_left::<2>(c)),
            scale(simd.shift_right::<4>(a), c),
            scale(simd.shift_right::<4>(b), simd.shift_right::<2>(c)),
        ];
        let mut high = thirty_two(simd, &blocks, 0);
        let (two, one) = (simd.splat(0x0303_0303), simd.splat(0x0101_0101));
        let (byte, middle, zero) = (simd.splat(0xff), simd.splat(32), simd.splat_f32(-4.0));
        let mut half = 0;
        while half < 2 {
            let mut packed = thirty_two(simd, &blocks, 32 + 32 * half);
            let mut piece = 0;
            while piece < 4 {
                let mut quads = packed;
                let mut j = 0;
                while j < QUADS {
                    let bit = simd.shift_left::<2>(simd.and(high[j], one));
                    quads[j] = simd.or(simd.and(packed[j], two), bit);
                    packed[j] = simd.shift_right::<2>(packed[j]);
                    high[j] = simd.shift_right::<1>(high[j]);
                    j += 1;
                }
                let four = &mut scales[2 * half + piece / 2];
                let factor = |bits| simd.mul(all, simd.to_f32(simd.sub(simd.and(bits, byte), middle)));
                let piece_scales = [factor(*four), factor(simd.shift_right::<8>(*four))];
                *four = simd.shift_right::<16>(*four);
                let minima = [simd.mul(piece_scales[0], zero), simd.mul(piece_scales[1], zero)];
                sink.piece::<Self>(Piece { quads, scales: piece_scales, minima });
                piece += 1;
            }
            half += 1;
        }
    }
}

/// Scale (f16), eight of 6 bits that stand for -32 to 31, 256 nibbles that stand for the values of a table.
pub(super) struct Iq4Xs;

impl Format for Iq4Xs {
    const WIDTH: usize = 256;
    const SIGNED: bool = true;
    const MINIMUM: bool = false;
    #[inline(always)]
    fn unpack<S: Lanes>(simd: S, tile: Tile<'_, S>, block: usize, sink: &mut impl Sink<S>) {
        let blocks = tile.blocks::<136>(block);
        let head = simd.four_bytes(&blocks, 0);
        let all = simd.half(head);
        let mut high = simd.shift_right::<16>(head);
        let mut low = simd.four_bytes(&blocks, 4);
        let (nibble, two, middle) = (simd.splat(15), simd.splat(0x30), simd.splat(32));
        let mut piece = 0;
        while piece < 8 {
            let quads = looked_up(simd, nibbles(simd, simd.sixteen_bytes(&blocks, 8 + 16 * piece)), &IQ4_VALUES);
            let six = simd.or(simd.and(low, nibble), simd.and(simd.shift_left::<4>(high), two));
            let scale = simd.mul(all, simd.to_f32(simd.sub(six, middle)));
            (low, high) = (simd.shift_right::<4>(low), simd.shift_right::<2>(high));
            sink.piece::<Self>(plain(simd, quads, scale, 0.0));
            piece += 1;
        }
    }
}
