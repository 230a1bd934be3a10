//! The same values a block at a time, in loops that the compiler turns into vector code.
//!
//! One source, compiled twice on x86-64: for the baseline and for AVX2, chosen when it runs. Neither uses FMA, and
//! the products are exact anyway (see the parent module), so the bits do not depend on the instruction set.

use super::{scalar, GgmlType};

/// `bytes` are whole blocks and `out` has as many values as they hold: the caller has checked.
pub(super) fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, as was asked in the line before; nothing else is required.
        return unsafe { dequantize_avx2(ty, bytes, out) };
    }
    dequantize_here(ty, bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dequantize_avx2(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    dequantize_here(ty, bytes, out);
}

/// Compiled into each caller, with the caller's instruction set.
#[inline(always)]
fn dequantize_here(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        GgmlType::F32 => each::<4, 1>(bytes, out, |b, y| y[0] = f32::from_le_bytes(*b)),
        GgmlType::F16 => each::<2, 1>(bytes, out, |b, y| y[0] = half(u16::from_le_bytes(*b))),
        GgmlType::BF16 => each::<2, 1>(bytes, out, |b, y| {
            y[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        }),
        GgmlType::Q8_0 => each::<34, 32>(bytes, out, q8_0),
        GgmlType::Q4_0 => each::<18, 32>(bytes, out, q4_0),
        GgmlType::Q4_1 => each::<20, 32>(bytes, out, q4_1),
        GgmlType::Q5_0 => each::<22, 32>(bytes, out, q5_0),
        GgmlType::Q5_1 => each::<24, 32>(bytes, out, q5_1),
        GgmlType::Q4_K => each::<144, 256>(bytes, out, q4_k),
        GgmlType::Q5_K => each::<176, 256>(bytes, out, q5_k),
        GgmlType::Q6_K => each::<210, 256>(bytes, out, q6_k),
    }
}

/// Calls `block` for each block of `B` bytes and `N` values.
#[inline(always)]
fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (values, _) = out.as_chunks_mut::<N>();
    for (b, y) in blocks.iter().zip(values) {
        block(b, y);
    }
}

#[inline(always)]
fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (y, &code) in y.iter_mut().zip(&b[2..]) {
        *y = d * f32::from(code as i8);
    }
}

#[inline(always)]
fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for j in 0..16 {
        y[j] = d * (i32::from(b[2 + j] & 15) - 8) as f32;
        y[j + 16] = d * (i32::from(b[2 + j] >> 4) - 8) as f32;
    }
}

#[inline(always)]
fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    if !(d.is_finite() && m.is_finite()) {
        return one_by_one(GgmlType::Q4_1, b, y);
    }
    for j in 0..16 {
        y[j] = d * f32::from(b[4 + j] & 15) + m;
        y[j + 16] = d * f32::from(b[4 + j] >> 4) + m;
    }
}

#[inline(always)]
fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    let fifth = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for j in 0..16 {
        let (low, high) = five_bits(b[6 + j], fifth, j);
        y[j] = d * (low - 16) as f32;
        y[j + 16] = d * (high - 16) as f32;
    }
}

#[inline(always)]
fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    if !(d.is_finite() && m.is_finite()) {
        return one_by_one(GgmlType::Q5_1, b, y);
    }
    let fifth = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for j in 0..16 {
        let (low, high) = five_bits(b[8 + j], fifth, j);
        y[j] = d * low as f32 + m;
        y[j + 16] = d * high as f32 + m;
    }
}

/// Codes `j` and `j + 16` of a block whose fifth bits are `fifth`.
#[inline(always)]
fn five_bits(codes: u8, fifth: u32, j: usize) -> (i32, i32) {
    let low = u32::from(codes & 15) | (fifth >> j & 1) << 4;
    let high = u32::from(codes >> 4) | (fifth >> (j + 16) & 1) << 4;
    (low as i32, high as i32)
}

#[inline(always)]
fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    if !(d.is_finite() && dmin.is_finite()) {
        return one_by_one(GgmlType::Q4_K, b, y);
    }
    for (pair, y) in y.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let ((d1, m1), (d2, m2)) = two_groups(b, pair, d, dmin);
        let (low, high) = y.split_at_mut(32);
        let codes = &b[16 + pair * 32..][..32];
        for ((low, high), &codes) in low.iter_mut().zip(high).zip(codes) {
            *low = d1 * f32::from(codes & 15) - m1;
            *high = d2 * f32::from(codes >> 4) - m2;
        }
    }
}

#[inline(always)]
fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    if !(d.is_finite() && dmin.is_finite()) {
        return one_by_one(GgmlType::Q5_K, b, y);
    }
    let fifth = &b[16..48];
    for (pair, y) in y.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let ((d1, m1), (d2, m2)) = two_groups(b, pair, d, dmin);
        let (low, high) = y.split_at_mut(32);
        let codes = &b[48 + pair * 32..][..32];
        for (((low, high), &codes), &fifth) in low.iter_mut().zip(high).zip(codes).zip(fifth) {
            let fifth = fifth >> (pair * 2);
            *low = d1 * f32::from(codes & 15 | (fifth & 1) << 4) - m1;
            *high = d2 * f32::from(codes >> 4 | (fifth >> 1 & 1) << 4) - m2;
        }
    }
}

/// Scale and minimum of groups `2 * pair` and `2 * pair + 1`, both multiplied out.
#[inline(always)]
fn two_groups(b: &[u8], pair: usize, d: f32, dmin: f32) -> ((f32, f32), (f32, f32)) {
    let (s1, m1) = scalar::scale_and_min(&b[4..16], pair * 2);
    let (s2, m2) = scalar::scale_and_min(&b[4..16], pair * 2 + 1);
    let first = (d * f32::from(s1), dmin * f32::from(m1));
    (first, (d * f32::from(s2), dmin * f32::from(m2)))
}

#[inline(always)]
fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = half_at(b, 208);
    for (half, y) in y.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let (low, high) = (&b[half * 64..][..64], &b[128 + half * 32..][..32]);
        for part in [0, 16] {
            // Four groups of 16 values share these bytes; each has its own scale.
            let scale = |group: usize| d * f32::from(b[192 + half * 8 + part / 16 + group] as i8);
            let [d0, d2, d4, d6] = [0, 2, 4, 6].map(scale);
            for j in part..part + 16 {
                y[j] = d0 * six_bits(low[j] & 15, high[j]);
                y[j + 32] = d2 * six_bits(low[j + 32] & 15, high[j] >> 2);
                y[j + 64] = d4 * six_bits(low[j] >> 4, high[j] >> 4);
                y[j + 96] = d6 * six_bits(low[j + 32] >> 4, high[j] >> 6);
            }
        }
    }
}

/// The signed code of four low bits and the lowest two of `high`.
#[inline(always)]
fn six_bits(low: u8, high: u8) -> f32 {
    (i32::from(low | (high & 3) << 4) - 32) as f32
}

/// A block whose scale or minimum is not finite. It can hold two NaNs, and then the order of operands shows in the
/// bits; only the scalar version fixes it.
#[cold]
#[inline(never)]
fn one_by_one(ty: GgmlType, b: &[u8], y: &mut [f32]) {
    for (i, y) in y.iter_mut().enumerate() {
        *y = scalar::value(ty, b, i);
    }
}

#[inline(always)]
fn half_at(b: &[u8], at: usize) -> f32 {
    half(u16::from_le_bytes([b[at], b[at + 1]]))
}

/// An f16 as f32 without a branch: shift the bits into place, then move the exponent by 112.
///
/// Subnormals are given a leading one, which a subtraction then takes away; it is exact.
#[inline(always)]
fn half(bits: u16) -> f32 {
    const BIAS: u32 = (127 - 15) << 23;
    const SMALLEST_NORMAL: u32 = BIAS + (1 << 23);
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let normal = magnitude + BIAS;
    let subnormal = f32::from_bits(magnitude + SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL);
    let infinite = magnitude | 0x7f80_0000;
    let chosen = match bits & 0x7c00 {
        0 => subnormal.to_bits(),
        0x7c00 => infinite,
        _ => normal,
    };
    f32::from_bits(sign | chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_has_the_bits_of_the_scalar_version_for_every_f16() {
        for bits in 0..=u16::MAX {
            let expected = scalar::half_at(&bits.to_le_bytes(), 0);
            assert_eq!(half(bits).to_bits(), expected.to_bits(), "f16 {bits:#06x}");
        }
    }

    /// Where the processor has AVX2 nothing else runs the baseline.
    #[test]
    fn the_baseline_has_the_bits_of_what_is_dispatched() {
        for ty in GgmlType::ALL {
            let bytes: Vec<u8> = (0..9 * ty.type_size()).map(|i| (i * i % 251) as u8).collect();
            let mut dispatched = vec![0.0; 9 * ty.block_size()];
            let mut baseline = dispatched.clone();
            dequantize(ty, &bytes, &mut dispatched);
            dequantize_here(ty, &bytes, &mut baseline);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&baseline), bits(&dispatched), "{}", ty.name());
        }
    }
}
