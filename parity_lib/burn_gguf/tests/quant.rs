//! Dequantisation: blocks worked out by hand, the bits of gguf-py on pseudo-random ones, fast against scalar, refusals.

use burn_gguf::file_error::FileError;
use burn_gguf::quant::{dequantize, dequantize_scalar, minimums, GgmlType};

const GOLDEN: &str = include_str!("golden/dequantize.txt");

/// Infinity, its negative, quiet and signalling NaN, the smallest and largest subnormal, minus zero, the largest f16.
const SCALES: [u16; 8] = [0x7C00, 0xFC00, 0xFE01, 0x7D01, 0x0001, 0x83FF, 0x8000, 0x7BFF];

const HALF: [u8; 2] = [0x00, 0x38]; // 0.5 as f16
const TWO: [u8; 2] = [0x00, 0x40]; // 2.0 as f16

// ---- by hand ----

fn both(ty: GgmlType, bytes: &[u8]) -> Vec<f32> {
    let mut fast = vec![f32::NAN; bytes.len() / ty.type_size() * ty.block_size()];
    let mut scalar = fast.clone();
    dequantize(ty, bytes, &mut fast).unwrap();
    dequantize_scalar(ty, bytes, &mut scalar).unwrap();
    assert_eq!(bits(&fast), bits(&scalar), "{} differs from its scalar version", ty.name());
    fast
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn plain_types_by_hand() {
    assert_eq!(both(GgmlType::F32, &[0, 0, 0x80, 0x3f, 1, 0, 0, 0]), [1.0, f32::from_bits(1)]);
    assert_eq!(both(GgmlType::F16, &[0x00, 0xc0, 0x01, 0x00]), [-2.0, 2f32.powi(-24)]);
    assert_eq!(both(GgmlType::BF16, &[0x80, 0x3f, 0x01, 0x80]), [1.0, -f32::from_bits(0x0001_0000)]);
}

#[test]
fn q8_0_by_hand() {
    let mut block = [&HALF[..], &[0; 32]].concat();
    (block[2], block[33]) = (3, 0x80);
    let values = both(GgmlType::Q8_0, &block);
    assert_eq!((values[0], values[1], values[31]), (1.5, 0.0, -64.0));
}

#[test]
fn q4_0_by_hand() {
    let mut block = [&TWO[..], &[0x88; 16]].concat();
    block[2] = 0xf0; // value 0 has code 0, value 16 code 15
    let values = both(GgmlType::Q4_0, &block);
    assert_eq!((values[0], values[1], values[16]), (-16.0, 0.0, 14.0));
}

#[test]
fn q4_1_by_hand() {
    let mut block = [&TWO[..], &HALF, &[0; 16]].concat();
    block[19] = 0xa3; // value 15 has code 3, value 31 code 10
    let values = both(GgmlType::Q4_1, &block);
    assert_eq!((values[0], values[15], values[31]), (0.5, 6.5, 20.5));
    let mut minimum = [0.0];
    minimums(GgmlType::Q4_1, &block, &mut minimum).unwrap();
    assert_eq!(minimum, [0.5]);
}

#[test]
fn q5_0_by_hand() {
    let mut block = [&TWO[..], &[0b0000_0010, 0, 0, 0x80], &[0; 16]].concat();
    block[21] = 0x10; // value 31 has code 1 and its fifth bit, value 1 only its fifth bit
    let values = both(GgmlType::Q5_0, &block);
    assert_eq!((values[0], values[1], values[31]), (-32.0, 0.0, 2.0));
}

#[test]
fn q5_1_by_hand() {
    let mut block = [&HALF[..], &TWO, &[1, 0, 1, 0], &[0; 16]].concat();
    block[8] = 0x21; // value 0 has code 16 + 1, value 16 code 16 + 2
    let values = both(GgmlType::Q5_1, &block);
    assert_eq!((values[0], values[1], values[16]), (10.5, 2.0, 11.0));
    let mut minimum = [0.0];
    minimums(GgmlType::Q5_1, &block, &mut minimum).unwrap();
    assert_eq!(minimum, [2.0]);
}

/// Scale and minimum of groups 0 (5 and 3) and 7 (0b10_0110 and 0b01_1001).
const K_SCALES: [u8; 12] = [5, 0, 0, 0b1000_0000, 3, 0, 0, 0b0100_0000, 0, 0, 0, 0b1001_0110];

#[test]
fn q4_k_by_hand() {
    let mut block = [&TWO[..], &HALF, &K_SCALES, &[0; 128]].concat();
    (block[16], block[143]) = (0x07, 0xb0); // value 0 has code 7, value 255 code 11
    let values = both(GgmlType::Q4_K, &block);
    assert_eq!((values[0], values[1]), (2.0 * 5.0 * 7.0 - 0.5 * 3.0, -1.5));
    assert_eq!((values[32], values[255]), (0.0, 2.0 * 38.0 * 11.0 - 0.5 * 25.0));
}

#[test]
fn q5_k_by_hand() {
    let mut block = [&TWO[..], &HALF, &K_SCALES, &[0; 32], &[0; 128]].concat();
    (block[16], block[47]) = (0x01, 0x80); // fifth bits of values 0 and 255
    (block[48], block[175]) = (0x07, 0xb0);
    let values = both(GgmlType::Q5_K, &block);
    assert_eq!((values[0], values[1]), (2.0 * 5.0 * 23.0 - 0.5 * 3.0, -1.5));
    assert_eq!((values[32], values[255]), (0.0, 2.0 * 38.0 * 27.0 - 0.5 * 25.0));
}

#[test]
fn q6_k_by_hand() {
    let mut block = [&[0; 128][..], &[0; 64], &[1; 16], &HALF].concat();
    (block[0], block[128]) = (0x0f, 0b0000_0011); // value 0 has code 63
    (block[127], block[191]) = (0xf0, 0b0100_0000); // value 255 has code 16 + 15
    (block[193], block[207]) = (0xfe, 0x80); // scales of values 16 to 31 and of 240 to 255
    let values = both(GgmlType::Q6_K, &block);
    assert_eq!((values[0], values[1]), (15.5, -16.0));
    assert_eq!((values[16], values[255]), (32.0, 64.0));
}

// ---- the bits of gguf-py ----

/// Byte `i` of the stream `seed`: splitmix64 of a counter, eight bytes to a number, little-endian.
fn random_bytes(seed: u32, n: usize) -> Vec<u8> {
    let number = |i: u64| {
        let mut z = ((u64::from(seed) << 32) + i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    };
    (0..n.div_ceil(8) as u64).flat_map(number).take(n).collect()
}

/// The same blocks as in `tests/burn_gguf/test_dequantize.py`.
fn blocks(ty: GgmlType, n_values: usize) -> Vec<u8> {
    let mut bytes = random_bytes(ty.number(), n_values / ty.block_size() * ty.type_size());
    if ty.block_size() == 1 {
        return bytes;
    }
    let with_minimum = [GgmlType::Q4_1, GgmlType::Q5_1, GgmlType::Q4_K, GgmlType::Q5_K].contains(&ty);
    let scale_at = if ty == GgmlType::Q6_K { 208 } else { 0 };
    for (i, block) in bytes.chunks_exact_mut(ty.type_size()).take(64).enumerate() {
        block[scale_at..scale_at + 2].copy_from_slice(&SCALES[i % 8].to_le_bytes());
        if with_minimum {
            block[2..4].copy_from_slice(&SCALES[i / 8].to_le_bytes());
        }
    }
    bytes
}

/// Sum of `bits * (2 i + 1)`; every NaN counts as 0x7fc00000, because its sign differs between machines.
fn digest(values: &[f32]) -> u64 {
    let bits = values.iter().map(|v| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() });
    let terms = bits.zip(0u64..).map(|(bits, i)| u64::from(bits) * (2 * i + 1));
    terms.fold(0, u64::wrapping_add)
}

#[test]
fn every_type_has_the_bits_of_gguf_py() {
    let lines: Vec<&str> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    let names: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, GgmlType::ALL.map(GgmlType::name));
    for (line, ty) in lines.iter().zip(GgmlType::ALL) {
        let n_values = line.split(' ').nth(1).unwrap().parse().unwrap();
        let values = both(ty, &blocks(ty, n_values));
        assert_eq!(*line, format!("{} {n_values} {:016x}", ty.name(), digest(&values)));
    }
}

#[test]
fn any_number_of_blocks_is_the_same_as_one_by_one() {
    for ty in GgmlType::ALL {
        let bytes = blocks(ty, 17 * ty.block_size());
        let together = both(ty, &bytes);
        let alone: Vec<f32> = bytes.chunks_exact(ty.type_size()).flat_map(|block| both(ty, block)).collect();
        assert_eq!(bits(&together), bits(&alone), "{}", ty.name());
        assert!(both(ty, &[]).is_empty());
    }
}

// ---- refusals ----

#[test]
fn block_bytes() {
    for run in [dequantize, dequantize_scalar] {
        match run(GgmlType::Q4_K, &[0; 145], &mut [0.0; 256]) {
            Err(FileError::BlockBytes { ty: "Q4_K", expected: 144, found: 145 }) => {}
            other => panic!("expected BlockBytes, got {other:?}"),
        }
    }
}

#[test]
fn output_length() {
    for run in [dequantize, dequantize_scalar] {
        match run(GgmlType::Q8_0, &[0; 68], &mut [0.0; 63]) {
            Err(FileError::OutputLength { ty: "Q8_0", expected: 64, found: 63 }) => {}
            other => panic!("expected OutputLength, got {other:?}"),
        }
    }
    let minimum = minimums(GgmlType::Q4_1, &[0; 40], &mut [0.0; 3]);
    assert!(matches!(minimum, Err(FileError::OutputLength { ty: "Q4_1", expected: 64, found: 96 })));
}

#[test]
fn no_minimum() {
    match minimums(GgmlType::Q4_K, &[0; 144], &mut [0.0; 8]) {
        Err(FileError::NoMinimum { ty: "Q4_K" }) => {}
        other => panic!("expected NoMinimum, got {other:?}"),
    }
}
