//! One value of one block, as the format defines it. Slow, and meant to be read beside the format.

use half::f16;

use super::GgmlType;

/// Value `i` of `block`, which has `ty.type_size()` bytes; `i < ty.block_size()`.
pub(super) fn value(ty: GgmlType, block: &[u8], i: usize) -> f32 {
    match ty {
        GgmlType::F32 => f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        GgmlType::F16 => half_at(block, 0),
        GgmlType::BF16 => f32::from_le_bytes([0, 0, block[0], block[1]]),
        GgmlType::Q8_0 => half_at(block, 0) * f32::from(block[2 + i] as i8),
        GgmlType::Q4_0 => half_at(block, 0) * f32::from(nibble(&block[2..], 32, i) as i8 - 8),
        GgmlType::Q4_1 => {
            let (d, m) = (half_at(block, 0), half_at(block, 2));
            sum(d * f32::from(nibble(&block[4..], 32, i)), m)
        }
        GgmlType::Q5_0 => {
            let code = nibble(&block[6..], 32, i) | bit(&block[2..6], i) << 4;
            half_at(block, 0) * f32::from(code as i8 - 16)
        }
        GgmlType::Q5_1 => {
            let (d, m) = (half_at(block, 0), half_at(block, 2));
            let code = nibble(&block[8..], 32, i) | bit(&block[4..8], i) << 4;
            sum(d * f32::from(code), m)
        }
        GgmlType::Q4_K => q4_k(block, i),
        GgmlType::Q5_K => q5_k(block, i),
        GgmlType::Q6_K => q6_k(block, i),
    }
}

/// d, dmin: f16; scales: 12 bytes; qs: 4 bits a value, 64 values in 32 bytes.
fn q4_k(block: &[u8], i: usize) -> f32 {
    let code = nibble(&block[16 + i / 64 * 32..], 64, i % 64);
    with_scale_and_min(block, i, code)
}

/// As Q4_K, and between scales and qs the fifth bits: bit `i / 32` of byte `i % 32`.
fn q5_k(block: &[u8], i: usize) -> f32 {
    let high = block[16 + i % 32] >> (i / 32) & 1;
    let code = nibble(&block[48 + i / 64 * 32..], 64, i % 64) | high << 4;
    with_scale_and_min(block, i, code)
}

fn with_scale_and_min(block: &[u8], i: usize, code: u8) -> f32 {
    let (scale, min) = scale_and_min(&block[4..16], i / 32);
    let d = half_at(block, 0) * f32::from(scale);
    let m = half_at(block, 2) * f32::from(min);
    difference(d * f32::from(code), m)
}

/// ql: low 4 bits, 128 values in 64 bytes; qh: high 2 bits, 128 values in 32 bytes; 16 scales: i8; d: f16.
fn q6_k(block: &[u8], i: usize) -> f32 {
    let (half, j) = (i / 128, i % 128);
    let low = nibble(&block[half * 64..], 128, j);
    let high = block[128 + half * 32 + j % 32] >> (j / 32 * 2) & 3;
    let scale = block[192 + i / 16] as i8;
    let d = half_at(block, 208) * f32::from(scale);
    d * f32::from((low | high << 4) as i8 - 32)
}

/// The six-bit scale and minimum of group `group` (0 to 7) in the 12 bytes of a Q4_K or Q5_K block.
///
/// Groups 0 to 3 lie in the low six bits of bytes 0 to 3 (scales) and 4 to 7 (minimums). Of groups 4 to 7 the low
/// four bits lie in bytes 8 to 11 (scales low, minimums high) and the upper two in what was left over above.
#[inline]
pub(super) fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4;
    let min = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
    (scale, min)
}

/// Code `i` of `n` codes in `n / 2` bytes: the low halves of all bytes first, then the high halves.
fn nibble(bytes: &[u8], n: usize, i: usize) -> u8 {
    if i < n / 2 {
        bytes[i] & 15
    } else {
        bytes[i - n / 2] >> 4
    }
}

/// Bit `i`, the lowest of the first byte being 0.
fn bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 8] >> (i % 8) & 1
}

/// The f16 at byte `at`, as f32. A signalling NaN stays one, as in numpy.
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    let half = f16::from_le_bytes([block[at], block[at + 1]]);
    if half.is_nan() {
        let bits = u32::from(half.to_bits());
        return f32::from_bits((bits & 0x8000) << 16 | 0x7f80_0000 | (bits & 0x03ff) << 13);
    }
    half.to_f32()
}

/// `a + b`; of two NaNs the first, made quiet, as x86 does. A compiler is free to swap the operands, so it is said.
fn sum(a: f32, b: f32) -> f32 {
    first_nan(a, b).unwrap_or(a + b)
}

/// `a - b`, with the same rule.
fn difference(a: f32, b: f32) -> f32 {
    first_nan(a, b).unwrap_or(a - b)
}

fn first_nan(a: f32, b: f32) -> Option<f32> {
    const QUIET: u32 = 0x0040_0000;
    let nan = [a, b].into_iter().find(|v| v.is_nan())?;
    Some(f32::from_bits(nan.to_bits() | QUIET))
}
