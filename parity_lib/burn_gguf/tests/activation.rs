//! The activation quantisers: rounding by hand, the bits of the reference's library on pseudo-random rows, refusals.

use burn_gguf::activation::{
    quantize_q8_0, quantize_q8_1, quantize_q8_k, round_bf16, round_f16, round_row, vec_dot_type, ActivationKind,
    BlockQ8K, BlockQ8_0, BlockQ8_1,
};
use burn_gguf::file_error::FileError;
use burn_gguf::quant::GgmlType;

const GOLDEN: &str = include_str!("golden/activation.txt");
const N_VALUES: usize = 65_536;
const FAMILIES: [&str; 6] = ["any", "blocks", "ties", "sparse", "infinite", "near"];

// ---- by hand ----

#[test]
fn q8_0_rounds_halves_to_even_and_its_scale_to_f16() {
    let mut row = [0.0f32; 32];
    row[..6].copy_from_slice(&[127.0, 0.5, 1.5, -2.5, 126.5, -126.5]);
    let [block] = quantize_q8_0(&row).unwrap()[..] else { panic!("expected one block") };
    assert_eq!((block.d.to_f32(), &block.qs[..7]), (1.0, &[127, 0, 2, -2, 126, -126, 0][..]));
    row[0] = 1000.0; // the scale is 7.874..: the codes use it as it is, the block keeps it as f16
    let [block] = quantize_q8_0(&row).unwrap()[..] else { panic!("expected one block") };
    assert_eq!((block.d.to_f32(), block.qs[0], block.qs[4]), (7.875, 127, 16));
    row[0] = f32::from_bits(0x42fe_1fc1); // divided by 127 just above the middle of two f16, times 1/127 on it
    let [block] = quantize_q8_0(&row).unwrap()[..] else { panic!("expected one block") };
    assert_eq!(block.d.to_bits(), 0x3c01);
}

#[test]
fn a_nan_reaches_the_scale_from_one_place_only() {
    for at in 0..32 {
        let mut row = [1.0f32; 32];
        row[at] = f32::NAN;
        let [block] = quantize_q8_0(&row).unwrap()[..] else { panic!("expected one block") };
        // MAXPS drops a NaN on its left; only that in the fourth lane of the last vector is on the right every time.
        assert_eq!(block.d.is_nan(), at == 27, "NaN at {at}");
        assert_eq!((block.qs[at], block.qs[(at + 1) % 32]), (-128, if at == 27 { -128 } else { 127 }));
    }
}

#[test]
fn q8_1_keeps_the_sum_of_the_codes_times_the_unrounded_scale() {
    let mut row = [1000.0f32; 32];
    row[1] = -500.0;
    let [block] = quantize_q8_1(&row).unwrap()[..] else { panic!("expected one block") };
    let sum: i32 = block.qs.iter().map(|&code| i32::from(code)).sum();
    assert_eq!((sum, block.qs[1]), (31 * 127 - 64, -64)); // -63.5 to even
    assert_eq!(block.s.to_f32(), 30_496.0); // 1000 / 127 * 3873 = 30496.06; with the f16 scale it is 30499.9
    let [block] = quantize_q8_1(&[3000.0; 32]).unwrap()[..] else { panic!("expected one block") };
    assert_eq!(block.s.to_f32(), f32::INFINITY);
}

#[test]
fn q8_k_has_the_sign_of_its_largest_value_and_sums_by_sixteen() {
    let mut row = [0.0f32; 256];
    (row[0], row[17], row[18], row[255]) = (254.0, 1.0, 3.0, -254.0);
    let [block] = quantize_q8_k(&row).unwrap()[..] else { panic!("expected one block") };
    // The first of two equal magnitudes decides; -127 / 254 maps 254 to -127, and 0.5 and 1.5 go to even.
    assert_eq!((block.d, block.qs[0], block.qs[255]), (-2.0, -127, 127));
    assert_eq!((block.qs[17], block.qs[18]), (0, -2));
    assert_eq!((block.bsums[0], block.bsums[1], block.bsums[15]), (-127, -2, 127));
}

#[test]
fn a_row_of_zeros_gives_zeros() {
    let row = [0.0f32, -0.0].repeat(128);
    for kind in [ActivationKind::Q8_0, ActivationKind::Q8_1, ActivationKind::Q8_K] {
        let mut seen = [1.0; 256];
        round_row(kind, &row, &mut seen).unwrap();
        assert_eq!(seen, [0.0; 256], "{}", kind.name());
    }
    assert_eq!(quantize_q8_k(&row).unwrap()[0].bsums, [0; 16]);
}

#[test]
fn f16_and_bf16_round_to_even() {
    let mut values = [1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11), 65_520.0, 2f32.powi(-25)];
    round_f16(&mut values);
    assert_eq!(values, [1.0, 1.0 + 2f32.powi(-9), f32::INFINITY, 0.0]);
    let smallest = f32::from_bits(0x0001_0000); // a subnormal that bf16 has
    let mut values = [1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), smallest, f32::MAX];
    round_bf16(&mut values);
    assert_eq!(values, [1.0, 1.0 + 2f32.powi(-6), smallest, f32::INFINITY]);
}

#[test]
fn each_weight_type_meets_the_activations_that_ggml_pairs_it_with() {
    let pairs = GgmlType::ALL.map(|ty| format!("{}:{}", ty.name(), vec_dot_type(ty).name()));
    let expected =
        "F32:F32 F16:F16 BF16:BF16 Q8_0:Q8_0 Q4_0:Q8_0 Q4_1:Q8_1 Q5_0:Q8_0 Q5_1:Q8_1 Q4_K:Q8_K Q5_K:Q8_K Q6_K:Q8_K";
    assert_eq!(pairs.join(" "), expected);
    for ty in GgmlType::ALL {
        assert_eq!(vec_dot_type(ty).block_size(), ty.block_size(), "{}", ty.name());
    }
}

#[test]
fn the_row_that_the_matmul_sees_is_codes_times_scale() {
    let row = family("ties");
    let mut seen = vec![0.0; row.len()];
    round_row(ActivationKind::Q8_0, &row, &mut seen).unwrap();
    for (block, seen) in quantize_q8_0(&row).unwrap().iter().zip(seen.chunks(32)) {
        assert_eq!(block.qs.map(|code| f32::from(code) * block.d.to_f32()), seen);
    }
    let mut by_q8_1 = vec![0.0; row.len()];
    round_row(ActivationKind::Q8_1, &row, &mut by_q8_1).unwrap();
    assert_eq!(by_q8_1, seen);
    round_row(ActivationKind::Q8_K, &row, &mut seen).unwrap();
    for (block, seen) in quantize_q8_k(&row).unwrap().iter().zip(seen.chunks(256)) {
        assert_eq!(block.qs.map(|code| f32::from(code) * block.d), seen);
    }
    round_row(ActivationKind::F32, &row, &mut seen).unwrap();
    assert_eq!(seen, row);
}

// ---- the bits of the reference ----

/// The same values as in `tests/burn_gguf/test_activation.py`, where the families are described.
fn family(name: &str) -> Vec<f32> {
    let seed = FAMILIES.iter().position(|&known| known == name).unwrap() as u64;
    let random = |i: usize| {
        let mut z = ((seed << 32) + i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let halves = |i: usize| {
        let doubled = if i.is_multiple_of(32) { 508 * (random(i) & 1) } else { (random(i) >> 8) % 509 };
        doubled as f32 * 0.5 - 127.0
    };
    let value = |i: usize| {
        let r = random(i);
        let low = r as u32;
        let sign = low & 0x8000_0000;
        let top = (random(i / 32 * 32) >> 40) % 255;
        let in_block = low & 0x807f_ffff | (top.saturating_sub(r >> 32 & 7) as u32) << 23;
        match name {
            "any" if low & 0x7f80_0000 == 0x7f80_0000 => f32::from_bits(low & 0x807f_ffff),
            "any" => f32::from_bits(low),
            "ties" => halves(i),
            "near" => halves(i) * f32::from_bits((random(i / 256 * 256) >> 41) as u32 | 0x3f80_0000),
            "sparse" if r >> 60 != 0 || i < 512 => f32::from_bits(sign),
            "infinite" if r >> 56 == 7 => f32::from_bits(sign | 0x7f80_0000),
            _ => f32::from_bits(in_block),
        }
    };
    (0..N_VALUES).map(value).collect()
}

fn block_bytes(kind: &str, row: &[f32]) -> Vec<u8> {
    let codes = |qs: &[i8]| qs.iter().map(|&code| code as u8).collect::<Vec<u8>>();
    let q8_0 = |b: &BlockQ8_0| [&b.d.to_le_bytes()[..], &codes(&b.qs)].concat();
    let q8_1 = |b: &BlockQ8_1| [&b.d.to_le_bytes()[..], &b.s.to_le_bytes(), &codes(&b.qs)].concat();
    let q8_k = |b: &BlockQ8K| [&b.d.to_le_bytes()[..], &codes(&b.qs), &b.bsums.map(i16::to_le_bytes).concat()].concat();
    let mut rounded = row.to_vec();
    match kind {
        "q8_0" => quantize_q8_0(row).unwrap().iter().flat_map(q8_0).collect(),
        "q8_1" => quantize_q8_1(row).unwrap().iter().flat_map(q8_1).collect(),
        "q8_K" => quantize_q8_k(row).unwrap().iter().flat_map(q8_k).collect(),
        "fp16" => {
            round_f16(&mut rounded);
            rounded.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
        }
        "bf16" => {
            round_bf16(&mut rounded);
            rounded.iter().flat_map(|v| v.to_bits().to_le_bytes().into_iter().skip(2)).collect()
        }
        other => panic!("no kind {other}"),
    }
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().zip(0u64..).map(|(&byte, i)| u64::from(byte) * (2 * i + 1)).fold(0, u64::wrapping_add)
}

#[test]
fn every_kind_has_the_bits_of_the_reference() {
    let mut compared = 0;
    for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
        let [name, kind, _] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("bad line {line:?}") };
        let found = digest(&block_bytes(kind, &family(name)));
        assert_eq!(line, format!("{name} {kind} {found:016x}"));
        compared += 1;
    }
    assert_eq!(compared, FAMILIES.len() * 5);
}

// ---- refusals ----

#[test]
fn activation_length() {
    let q8_k = quantize_q8_k(&[0.0; 576]).map(|_| ());
    assert!(matches!(q8_k, Err(FileError::ActivationLength { kind: "Q8_K", expected: 256, found: 576 })));
    let q8_0 = quantize_q8_0(&[0.0; 33]).map(|_| ());
    assert!(matches!(q8_0, Err(FileError::ActivationLength { kind: "Q8_0", expected: 32, found: 33 })));
    let q8_1 = round_row(ActivationKind::Q8_1, &[0.0; 31], &mut [0.0; 31]);
    assert!(matches!(q8_1, Err(FileError::ActivationLength { kind: "Q8_1", expected: 32, found: 31 })));
}

#[test]
fn output_length() {
    let short = round_row(ActivationKind::F32, &[0.0; 4], &mut [0.0; 3]);
    assert!(matches!(short, Err(FileError::OutputLength { ty: "F32", expected: 4, found: 3 })));
}
