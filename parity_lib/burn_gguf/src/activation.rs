//! What the reference's matmul makes of an activation row before it multiplies: rounded to 8 bits, f16 or bf16.
//!
//! llama.cpp's CPU kernels never see f32 activations unless the weights are f32. Each function here has the bits
//! that its x86 kernels produce, for every input, infinity too. Of a scale that is NaN only that much is promised: its
//! payload differs between builds. ARM rounds Q8_0 and Q8_1 differently.
//!
//! Source: `ggml-cpu.c` (`type_traits_cpu`), `arch/x86/quants.c`, `ggml-quants.c`, llama.cpp 0c1e5709, compiled
//! without FMA contraction. With contraction the codes of Q8_K would be rounded once instead of twice.

use half::{bf16, f16};

use crate::file_error::{FileError, Result};
use crate::quant::GgmlType;

/// The type that the reference converts an activation row to; ggml's `vec_dot_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // ggml's names
pub enum ActivationKind {
    F32,
    F16,
    BF16,
    Q8_0,
    Q8_1,
    Q8_K,
}

impl ActivationKind {
    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            ActivationKind::F32 => "F32",
            ActivationKind::F16 => "F16",
            ActivationKind::BF16 => "BF16",
            ActivationKind::Q8_0 => "Q8_0",
            ActivationKind::Q8_1 => "Q8_1",
            ActivationKind::Q8_K => "Q8_K",
        }
    }

    /// Values that share a scale; a row is a whole number of blocks.
    pub const fn block_size(self) -> usize {
        match self {
            ActivationKind::F32 | ActivationKind::F16 | ActivationKind::BF16 => 1,
            ActivationKind::Q8_0 | ActivationKind::Q8_1 => 32,
            ActivationKind::Q8_K => 256,
        }
    }
}

/// What activations become before they meet weights of type `ty`.
pub const fn vec_dot_type(ty: GgmlType) -> ActivationKind {
    match ty {
        GgmlType::F32 => ActivationKind::F32,
        GgmlType::F16 => ActivationKind::F16,
        GgmlType::BF16 => ActivationKind::BF16,
        GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q5_0 => ActivationKind::Q8_0,
        GgmlType::Q4_1 | GgmlType::Q5_1 => ActivationKind::Q8_1,
        GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => ActivationKind::Q8_K,
    }
}

/// 32 codes and their scale; laid out as ggml's `block_q8_0`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Largest magnitude over 127, in f16. The codes were made with the unrounded one.
    pub d: f16,
    pub qs: [i8; 32],
}
const _: () = assert!(size_of::<BlockQ8_0>() == 34);

/// 32 codes, their scale and their sum; laid out as ggml's `block_q8_1`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct BlockQ8_1 {
    /// As in [`BlockQ8_0`].
    pub d: f16,
    /// Sum of the codes times the unrounded scale, in f16: what the minimum of a Q4_1 or Q5_1 block is multiplied
    /// with. Overflows to infinity for activations beyond about 2,000.
    pub s: f16,
    pub qs: [i8; 32],
}
const _: () = assert!(size_of::<BlockQ8_1>() == 36);

/// 256 codes, their scale and their sums by sixteen; laid out as ggml's `block_q8_K`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct BlockQ8K {
    /// Minus the value of largest magnitude over 127, signed.
    pub d: f32,
    pub qs: [i8; 256],
    /// Zero in a block of zeros, where the reference leaves whatever was there.
    pub bsums: [i16; 16],
}
const _: () = assert!(size_of::<BlockQ8K>() == 4 + 256 + 32);

impl BlockQ8_0 {
    /// Code times scale; exact.
    pub fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (value, &code) in out.iter_mut().zip(&self.qs) {
            *value = d * f32::from(code);
        }
    }
}

impl BlockQ8_1 {
    /// Code times scale; exact. What a minimum is multiplied with is `s`, not the sum of these.
    pub fn dequantize(&self, out: &mut [f32; 32]) {
        BlockQ8_0 { d: self.d, qs: self.qs }.dequantize(out);
    }
}

impl BlockQ8K {
    /// Code times scale, rounded to f32.
    pub fn dequantize(&self, out: &mut [f32; 256]) {
        for (value, &code) in out.iter_mut().zip(&self.qs) {
            *value = self.d * f32::from(code);
        }
    }
}

/// Quantises a row to Q8_0, as `quantize_row_q8_0` of the x86 build.
pub fn quantize_q8_0(row: &[f32]) -> Result<Vec<BlockQ8_0>> {
    let blocks = whole_blocks::<32>(ActivationKind::Q8_0, row)?;
    let quantize = |x: &[f32; 32]| {
        let (d, codes) = round_to_127(x);
        BlockQ8_0 { d: f16::from_f32(d), qs: codes.map(saturate) }
    };
    Ok(blocks.iter().map(quantize).collect())
}

/// Quantises a row to Q8_1, as `quantize_row_q8_1` of the x86 build.
pub fn quantize_q8_1(row: &[f32]) -> Result<Vec<BlockQ8_1>> {
    let blocks = whole_blocks::<32>(ActivationKind::Q8_1, row)?;
    let quantize = |x: &[f32; 32]| {
        let (d, codes) = round_to_127(x);
        let sum = codes.iter().fold(0i32, |sum, &code| sum.wrapping_add(code));
        let s = f16::from_f32(d * sum as f32);
        BlockQ8_1 { d: f16::from_f32(d), s, qs: codes.map(saturate) }
    };
    Ok(blocks.iter().map(quantize).collect())
}

/// Quantises a row to Q8_K, as `quantize_row_q8_K`.
pub fn quantize_q8_k(row: &[f32]) -> Result<Vec<BlockQ8K>> {
    let blocks = whole_blocks::<256>(ActivationKind::Q8_K, row)?;
    Ok(blocks.iter().map(quantize_block_q8_k).collect())
}

/// Rounds each value to f16, ties to even, and widens it again.
pub fn round_f16(values: &mut [f32]) {
    for value in values {
        *value = f16::from_f32(*value).to_f32();
    }
}

/// Rounds each value to bf16, ties to even, and widens it again. Subnormals are kept: the conversion is done with
/// integers, and only the dot products of AVX512-BF16 and AMX take them for zero.
pub fn round_bf16(values: &mut [f32]) {
    for value in values {
        *value = bf16::from_f32(*value).to_f32();
    }
}

/// Puts the row that the matmul sees into `out`, which has the length of `row`.
///
/// For Q8_1 this is its share for the scales of the weights; the minimums take [`BlockQ8_1::s`].
pub fn round_row(kind: ActivationKind, row: &[f32], out: &mut [f32]) -> Result<()> {
    if row.len() != out.len() {
        let (expected, found) = (row.len(), out.len());
        return Err(FileError::OutputLength { ty: kind.name(), expected, found });
    }
    match kind {
        ActivationKind::F32 => out.copy_from_slice(row),
        ActivationKind::F16 => {
            out.copy_from_slice(row);
            round_f16(out);
        }
        ActivationKind::BF16 => {
            out.copy_from_slice(row);
            round_bf16(out);
        }
        ActivationKind::Q8_0 => fill(&quantize_q8_0(row)?, out, BlockQ8_0::dequantize),
        ActivationKind::Q8_1 => fill(&quantize_q8_1(row)?, out, BlockQ8_1::dequantize),
        ActivationKind::Q8_K => fill(&quantize_q8_k(row)?, out, BlockQ8K::dequantize),
    }
    Ok(())
}

fn fill<B, const N: usize>(blocks: &[B], out: &mut [f32], dequantize: impl Fn(&B, &mut [f32; N])) {
    for (block, values) in blocks.iter().zip(out.as_chunks_mut::<N>().0) {
        dequantize(block, values);
    }
}

fn whole_blocks<const N: usize>(kind: ActivationKind, row: &[f32]) -> Result<&[[f32; N]]> {
    match row.as_chunks::<N>() {
        (blocks, []) => Ok(blocks),
        _ => Err(FileError::ActivationLength { kind: kind.name(), expected: N, found: row.len() }),
    }
}

/// The scale of a block and its codes, not yet cut to 8 bits. Codes are `127 / max`, not `1 / scale`, times value.
fn round_to_127(x: &[f32; 32]) -> (f32, [i32; 32]) {
    let max = max_magnitude(x);
    let inverse = if max == 0.0 { 0.0 } else { 127.0 / max };
    (max / 127.0, x.map(|value| to_i32((value * inverse).round_ties_even())))
}

/// The largest magnitude, folded in the order of the reference's vector code: the order decides which NaN survives.
fn max_magnitude(x: &[f32; 32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    for (lane, value) in lanes.iter_mut().zip(x) {
        *lane = value.abs();
    }
    for eight in x[8..].as_chunks::<8>().0 {
        for (lane, value) in lanes.iter_mut().zip(eight) {
            *lane = max(*lane, value.abs());
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    max(max(max(e, a), max(g, c)), max(max(f, b), max(h, d)))
}

/// MAXPS: the second operand unless the first is greater, so a NaN on the right stays and one on the left is lost.
fn max(a: f32, b: f32) -> f32 {
    if a > b {
        a
    } else {
        b
    }
}

/// CVTPS2DQ of a value without fraction: what does not fit becomes the smallest number.
fn to_i32(value: f32) -> i32 {
    if (-2_147_483_648.0..2_147_483_648.0).contains(&value) {
        value as i32
    } else {
        i32::MIN
    }
}

fn saturate(code: i32) -> i8 {
    code.clamp(i8::MIN.into(), i8::MAX.into()) as i8
}

fn quantize_block_q8_k(x: &[f32; 256]) -> BlockQ8K {
    let mut block = BlockQ8K { d: 0.0, qs: [0; 256], bsums: [0; 16] };
    let largest = x.iter().fold(0.0f32, |largest, &value| if value.abs() > largest.abs() { value } else { largest });
    if largest == 0.0 {
        return block;
    }
    let inverse = -127.0 / largest;
    block.qs = x.map(|value| nearest_int(inverse * value).min(127) as i8);
    for (sum, codes) in block.bsums.iter_mut().zip(block.qs.as_chunks::<16>().0) {
        *sum = codes.iter().map(|&code| i16::from(code)).sum();
    }
    block.d = 1.0 / inverse;
    block
}

/// Rounds by adding 1.5 * 2^23 and reading the mantissa: ties to even within 2^22, nonsense beyond, as in ggml.
fn nearest_int(value: f32) -> i32 {
    let bits = (value + 12_582_912.0).to_bits();
    (bits & 0x007f_ffff) as i32 - 0x0040_0000
}
