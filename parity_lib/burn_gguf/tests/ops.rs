//! Each op by itself against its formula in f64, and each policy of `linear` against what the reference's matmul does.

mod tiny;

use burn_gguf::activation::{self, ActivationKind};
use burn_gguf::attention::{attention, soft_max, Heads, KeyValues, SequenceRows};
use burn_gguf::linear::{linear, linear_shared, Policy};
use burn_gguf::matrix::Matrix;
use burn_gguf::model_error::ModelError;
use burn_gguf::ops::{add, add_bias, embed, rms_norm, swiglu};
use burn_gguf::quant::{self, GgmlType};
use burn_gguf::rope::{rope, Pairing, Rope, Scaling, ScalingKind};
use burn_gguf::weight::Weight;
use tiny::{noise, random_blocks};

fn values(name: &str, n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|i| noise(name, i) * scale).collect()
}

/// Sum of squared differences over sum of squares.
fn nmse(found: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let error: f64 = found.iter().zip(wanted).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    error / wanted.iter().map(|b| b * b).sum::<f64>()
}

fn dequantized(ty: GgmlType, blocks: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; blocks.len() / ty.type_size() * ty.block_size()];
    quant::dequantize_scalar(ty, blocks, &mut out).unwrap();
    out
}

/// `x W^T` in f64; `x` is (m, k), `w` is (n, k).
fn product(w: &[f32], x: &[f32], k: usize) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
}

const N: usize = 70;
const K: usize = 512;
const M: usize = 9;

#[test]
fn linear_f32_is_the_exact_product_of_every_type() {
    let x = values("x", M * K, 1.0);
    for ty in GgmlType::ALL {
        let blocks = random_blocks(ty, "w", N * K);
        let weight = Weight::new(ty, N, K, &blocks).unwrap();
        let y = linear(&weight, Matrix::from_rows(M, K, x.clone()), Policy::F32).unwrap().into_rows();
        let wanted = product(&dequantized(ty, &blocks), &x, K);
        assert!(nmse(&y.data, &wanted) < 1e-13, "{ty:?}: {}", nmse(&y.data, &wanted));
    }
}

#[test]
fn linear_bf16_rounds_both_operands_and_f32_does_not_pass_for_it() {
    let x = values("x", M * K, 1.0);
    let mut rounded = x.clone();
    activation::round_bf16(&mut rounded);
    for ty in GgmlType::ALL {
        let blocks = random_blocks(ty, "w", N * K);
        let weight = Weight::new(ty, N, K, &blocks).unwrap();
        let mut w = dequantized(ty, &blocks);
        activation::round_bf16(&mut w);
        let wanted = product(&w, &rounded, K);
        let run = |policy| linear(&weight, Matrix::from_rows(M, K, x.clone()), policy).unwrap().into_rows();
        assert!(nmse(&run(Policy::Bf16).data, &wanted) < 1e-13, "{ty:?}");
        assert!(nmse(&run(Policy::F32).data, &wanted) > 1e-7, "{ty:?}: a plain f32 product must fail here");
    }
}

/// What ggml computes for one row, in f64: codes times scales; for Q4_1 and Q5_1 the minimum times `s`.
fn ggml_product(ty: GgmlType, blocks: &[u8], x: &[f32]) -> Vec<f64> {
    let kind = activation::vec_dot_type(ty);
    let mut seen = vec![0.0; x.len()];
    for (row, seen) in x.chunks(K).zip(seen.chunks_mut(K)) {
        activation::round_row(kind, row, seen).unwrap();
    }
    let w = dequantized(ty, blocks);
    let mut out = product(&w, &seen, K);
    if kind == ActivationKind::Q8_1 {
        let mut minimums = vec![0.0; w.len() / 32];
        quant::minimums(ty, blocks, &mut minimums).unwrap();
        for (m, row) in x.chunks(K).enumerate() {
            let sums = activation::quantize_q8_1(row).unwrap();
            for n in 0..N {
                for (block, sum) in sums.iter().enumerate() {
                    let minimum = f64::from(minimums[n * K / 32 + block]);
                    let codes: i32 = sum.qs.iter().map(|&code| i32::from(code)).sum();
                    // Out with the exact share of the minimum, in with the rounded one.
                    out[m * N + n] += minimum * (sum.s.to_f64() - sum.d.to_f64() * f64::from(codes));
                }
            }
        }
    }
    out
}

#[test]
fn linear_ggml_sees_activations_as_the_reference_does() {
    let x = values("x", M * K, 1.0);
    for ty in GgmlType::ALL {
        let blocks = random_blocks(ty, "w", N * K);
        let weight = Weight::new(ty, N, K, &blocks).unwrap();
        let run = |policy| linear(&weight, Matrix::from_rows(M, K, x.clone()), policy).unwrap().into_rows();
        let wanted = ggml_product(ty, &blocks, &x);
        let (ggml, plain) = (nmse(&run(Policy::Ggml).data, &wanted), nmse(&run(Policy::F32).data, &wanted));
        assert!(ggml < 2e-13, "{ty:?}: {ggml}"); // f32 sums of 512 products
        assert_eq!(plain > 1e-9, ty != GgmlType::F32, "{ty:?}: {plain}");
    }
}

#[test]
fn weights_that_share_activations_give_what_each_gives_alone() {
    let x = values("x", M * K, 1.0);
    let types = [GgmlType::Q4_K, GgmlType::Q8_0, GgmlType::Q6_K, GgmlType::Q4_1, GgmlType::F32];
    let blocks: Vec<Vec<u8>> = types.iter().map(|&ty| random_blocks(ty, ty.name(), N * K)).collect();
    let weights: Vec<Weight> =
        types.iter().zip(&blocks).map(|(&ty, blocks)| Weight::new(ty, N, K, blocks).unwrap()).collect();
    for (_, policy) in Policy::NAMES {
        let shared = linear_shared(&weights, Matrix::from_rows(M, K, x.clone()), policy).unwrap();
        for (weight, shared) in weights.iter().zip(shared) {
            let alone = linear(weight, Matrix::from_rows(M, K, x.clone()), policy).unwrap();
            assert_eq!(shared, alone, "{:?} {policy:?}", weight.ty);
        }
    }
}

#[test]
fn many_rows_and_many_weights_are_cut_without_a_seam() {
    // More columns than one block of the operand holds, more rows than one panel.
    let (n, k, m) = (600, 4096, 4200);
    let blocks = random_blocks(GgmlType::Q8_0, "w", n * k);
    let weight = Weight::new(GgmlType::Q8_0, n, k, &blocks).unwrap();
    let x: Vec<f32> = (0..m * k).map(|i| (i * 7919 % 1009) as f32 * 1e-3 - 0.5).collect();
    let all = linear(&weight, Matrix::from_rows(m, k, x.clone()), Policy::F32).unwrap().into_rows();
    for row in [0, 1, 2047, 2048, 2099, 2100, 4199] {
        let one = Matrix::from_rows(1, k, x[row * k..][..k].to_vec());
        let one = linear(&weight, one, Policy::F32).unwrap().into_rows();
        assert_eq!(all.row(row), one.row(0), "row {row}");
    }
}

#[test]
fn wrong_widths_and_lengths_are_refused() {
    let blocks = random_blocks(GgmlType::Q8_0, "w", N * K);
    assert!(matches!(Weight::new(GgmlType::Q8_0, N, K, &blocks[1..]), Err(ModelError::WrongLength { .. })));
    assert!(matches!(Weight::new(GgmlType::Q4_K, N, 128, &blocks), Err(ModelError::WrongLength { .. })));
    assert!(matches!(Weight::new(GgmlType::Q8_0, usize::MAX, K, &blocks), Err(ModelError::WrongLength { .. })));
    assert!(matches!(Weight::new(GgmlType::Q8_0, N, 0, &[]), Err(ModelError::WrongLength { .. })));
    let weight = Weight::new(GgmlType::Q8_0, N, K, &blocks).unwrap();
    let narrow = Matrix::from_rows(1, 32, vec![0.0; 32]);
    assert!(matches!(linear(&weight, narrow.clone(), Policy::F32), Err(ModelError::WrongLength { .. })));
    assert!(matches!(rms_norm(narrow.clone(), &[1.0; 31], 1e-5), Err(ModelError::WrongLength { .. })));
    assert!(matches!(
        add(narrow.clone(), Matrix::from_rows(2, 16, vec![0.0; 32])),
        Err(ModelError::WrongLength { .. })
    ));
    assert!(matches!(add_bias(narrow, &[0.0; 3]), Err(ModelError::WrongLength { .. })));
    assert!(matches!(embed(&weight, &[70]), Err(ModelError::TokenOutside { found: 70, limit: 69, .. })));
    assert!(matches!(Rope::new(Pairing::Halves, 5, 1e4, None), Err(ModelError::OutOfRange { .. })));
    assert!(matches!(Rope::new(Pairing::Halves, 8, 1e4, Some(vec![1.0])), Err(ModelError::WrongLength { .. })));
}

#[test]
fn an_embedding_is_a_row_of_the_table() {
    let blocks = random_blocks(GgmlType::Q6_K, "w", N * K);
    let rows = embed(&Weight::new(GgmlType::Q6_K, N, K, &blocks).unwrap(), &[3, 0, 69]).unwrap();
    let table = dequantized(GgmlType::Q6_K, &blocks);
    for (row, token) in [3, 0, 69].into_iter().enumerate() {
        assert_eq!(rows.row(row), &table[token * K..][..K]);
    }
}

#[test]
fn rms_norm_follows_its_formula() {
    let (x, weight) = (values("x", 40 * 100, 3.0), values("w", 100, 1.0));
    let eps = 1e-3;
    let found = rms_norm(Matrix::from_rows(40, 100, x.clone()), &weight, eps).unwrap();
    let wanted: Vec<f64> = x
        .chunks(100)
        .flat_map(|row| {
            let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 100.0;
            let scale = 1.0 / (mean + f64::from(eps)).sqrt();
            row.iter().zip(&weight).map(move |(&x, &w)| f64::from(x) * scale * f64::from(w)).collect::<Vec<_>>()
        })
        .collect();
    assert!(nmse(&found.data, &wanted) < 2e-14, "{}", nmse(&found.data, &wanted));
}

#[test]
fn swiglu_and_add_follow_their_formulas_in_both_layouts() {
    let (a, b) = (values("a", 30 * 50, 12.0), values("b", 30 * 50, 2.0));
    let silu = |x: f32| f64::from(x) / (1.0 + (-f64::from(x)).exp());
    let gated: Vec<f64> = a.iter().zip(&b).map(|(&a, &b)| silu(a) * f64::from(b)).collect();
    let (a, b) = (Matrix::from_rows(30, 50, a), Matrix::from_rows(30, 50, b));
    let rows = swiglu(a.clone(), b.clone()).unwrap();
    assert!(nmse(&rows.data, &gated) < 2e-14, "{}", nmse(&rows.data, &gated));
    let columns = swiglu(a.clone().into_columns(), b.clone().into_columns()).unwrap();
    assert_eq!(columns.into_rows(), rows);
    let mixed = add(a.clone(), b.clone().into_columns()).unwrap();
    let plain: Vec<f32> = a.data.iter().zip(&b.data).map(|(a, b)| a + b).collect();
    assert_eq!(mixed.data, plain);
    let bias: Vec<f32> = b.row(0).to_vec();
    let biased = add_bias(a.clone(), &bias).unwrap();
    assert_eq!(add_bias(a.into_columns(), &bias).unwrap().into_rows(), biased);
}

#[test]
fn silu_is_right_where_its_exponential_overflows() {
    let gate = vec![-200.0, -100.0, -88.8, -1.0, 0.0, 1.0, 100.0, 200.0];
    let found = swiglu(Matrix::from_rows(1, 8, gate), Matrix::from_rows(1, 8, vec![1.0; 8])).unwrap();
    let silu = |x: f64| x / (1.0 + (-x).exp());
    for (found, x) in found.data.iter().zip([-200.0, -100.0, -88.8, -1.0, 0.0, 1.0, 100.0, 200.0]) {
        assert!((f64::from(*found) - silu(x)).abs() < 1e-6, "{x}: {found}");
    }
}

#[test]
fn rope_turns_the_right_pairs_by_the_right_angle() {
    let (heads, head, n_dims, base) = (3, 20, 12, 5000.0f32);
    let positions = [0, 1, 5, 99];
    let divisors: Vec<f32> = (0..6).map(|i| 1.0 + i as f32).collect();
    for pairing in [Pairing::Adjacent, Pairing::Halves] {
        for divisors in [None, Some(divisors.clone())] {
            let x = values("x", 4 * heads * head, 1.0);
            let turn = Rope::new(pairing, n_dims, base, divisors.clone()).unwrap();
            let found = rope(Matrix::from_rows(4, heads * head, x.clone()), head, &turn.angles(&positions)).unwrap();
            let mut wanted: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            for (index, values) in wanted.chunks_mut(head).enumerate() {
                let position = positions[index / heads] as f64;
                for pair in 0..n_dims / 2 {
                    let divisor = divisors.as_ref().map_or(1.0, |divisors| f64::from(divisors[pair]));
                    let angle = position * f64::from(base).powf(-2.0 * pair as f64 / n_dims as f64) / divisor;
                    let (i, j) = match pairing {
                        Pairing::Adjacent => (2 * pair, 2 * pair + 1),
                        Pairing::Halves => (pair, pair + n_dims / 2),
                    };
                    let (a, b) = (values[i], values[j]);
                    (values[i], values[j]) = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos());
                }
            }
            assert!(nmse(&found.data, &wanted) < 1e-11, "{pairing:?} {}", nmse(&found.data, &wanted));
            assert_eq!(found.row(0), &x[..heads * head], "position 0 turns nothing");
            assert_eq!(found.row(3)[n_dims..head], x[3 * heads * head..][n_dims..head], "the rest passes through");
        }
    }
}

/// YaRN's share of the unscaled angle and its magnitude, by the formulas of the paper (Peng et al. 2023) in f64.
fn yarn(pair: usize, n_dims: f64, base: f64, factor: f64, context: f64) -> (f64, f64) {
    let place = |turns: f64| n_dims * (context / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln());
    let (low, high) = (place(32.0).floor().max(0.0), place(1.0).ceil().min(n_dims - 1.0));
    (1.0 - ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0), 1.0 + 0.1 * factor.ln())
}

#[test]
fn rope_is_stretched_by_linear_and_by_yarn() {
    let (n_dims, base, position) = (64usize, 1e4f32, 700usize);
    for kind in [ScalingKind::None, ScalingKind::Linear, ScalingKind::Yarn] {
        let scaling = Scaling { kind, factor: 4.0, attn_factor: 1.5, n_ctx_orig: 512 };
        let turn = Rope::new(Pairing::Halves, n_dims, base, None).unwrap().scaled(scaling);
        let ones = Matrix::from_rows(1, n_dims, [vec![1.0; 32], vec![0.0; 32]].concat());
        let found = rope(ones, n_dims, &turn.angles(&[position])).unwrap();
        let mut mixed = 0;
        for pair in 0..n_dims / 2 {
            let full = position as f64 * f64::from(base).powf(-2.0 * pair as f64 / n_dims as f64);
            let (share, magnitude) = match kind {
                ScalingKind::None => (1.0, 1.0),
                ScalingKind::Linear => (0.0, 1.0),
                ScalingKind::Yarn => yarn(pair, n_dims as f64, f64::from(base), 4.0, 512.0),
            };
            mixed += usize::from(share > 0.0 && share < 1.0);
            let angle = full / 4.0 * (1.0 - share) + full * share;
            let wanted = 1.5 * magnitude * angle.cos();
            assert!((f64::from(found.data[pair]) - wanted).abs() < 2e-4, "{kind:?}, pair {pair}");
        }
        assert_eq!(mixed > 3, kind == ScalingKind::Yarn, "{kind:?}: {mixed}");
    }
}

#[test]
fn rope_stretched_by_nothing_has_the_same_bits() {
    let plain = Rope::new(Pairing::Adjacent, 64, 1e4, None).unwrap();
    let x = values("x", 3 * 64, 1.0);
    let turned = |turn: &Rope| rope(Matrix::from_rows(3, 64, x.clone()), 64, &turn.angles(&[0, 77, 3001])).unwrap();
    for kind in [ScalingKind::Linear, ScalingKind::Yarn] {
        let scaling = Scaling { kind, factor: 1.0, attn_factor: 1.0, n_ctx_orig: 4096 };
        let found = turned(&plain.clone().scaled(scaling));
        let far = found.data.iter().zip(&turned(&plain).data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // YaRN mixes an angle with itself, which rounds; linear divides it by one.
        assert!(if kind == ScalingKind::Linear { far == 0.0 } else { far < 1e-3 }, "{kind:?}: {far}");
    }
}

#[test]
fn rope_walks_to_its_angle_in_f32_as_the_reference_does() {
    // head 128, base 5e5, position 4095: where exact and walked angles differ most visibly.
    let turn = Rope::new(Pairing::Adjacent, 128, 5e5, None).unwrap();
    let ones = Matrix::from_rows(1, 128, [1.0, 0.0].repeat(64));
    let found = rope(ones, 128, &turn.angles(&[4095])).unwrap();
    let step = 5e5f32.powf(-2.0 / 128.0);
    let mut theta = 4095.0f32;
    let mut furthest = 0.0f64;
    for pair in 0..64 {
        assert_eq!(found.data[2 * pair], f64::from(theta).cos() as f32, "pair {pair}");
        let exact = 4095.0 * 5e5f64.powf(-2.0 * pair as f64 / 128.0);
        furthest = furthest.max((f64::from(theta) - exact).abs());
        theta *= step;
    }
    assert!(furthest > 1e-5, "the walk drifts, or this test shows nothing: {furthest}");
}

/// Attention of one sequence in f64.
fn plain_attention(q: &[f32], k: &[f32], v: &[f32], heads: Heads, scale: f64) -> Vec<f64> {
    let n = q.len() / (heads.n_head * heads.key);
    let mut out = Vec::new();
    for row in 0..n {
        for head in 0..heads.n_head {
            let kv = head / heads.group();
            let at = |values: &[f32], row: usize, n_heads: usize, head: usize, width: usize| -> Vec<f64> {
                values[(row * n_heads + head) * width..][..width].iter().map(|&x| f64::from(x)).collect()
            };
            let query = at(q, row, heads.n_head, head, heads.key);
            let weights: Vec<f64> = (0..=row)
                .map(|key| {
                    let key = at(k, key, heads.n_head_kv, kv, heads.key);
                    (scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>()).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..heads.value {
                let value = |key: usize| at(v, key, heads.n_head_kv, kv, heads.value)[i];
                out.push(weights.iter().enumerate().map(|(key, weight)| weight * value(key)).sum::<f64>() / sum);
            }
        }
    }
    out
}

#[test]
fn attention_follows_its_formula_for_shared_heads_and_unequal_widths() {
    for (n_head, n_head_kv) in [(1, 1), (6, 2), (4, 4)] {
        let heads = Heads { n_head, n_head_kv, key: 24, value: 40 };
        let n = 70;
        let q = values("q", n * n_head * 24, 2.0);
        let (k, v) = (values("k", n * n_head_kv * 24, 2.0), values("v", n * n_head_kv * 40, 1.0));
        let rows: Vec<(usize, usize)> = (0..n).map(|position| (0, position)).collect();
        let batch = SequenceRows::group(&rows, &[n]).unwrap();
        let mut cache = vec![KeyValues::default()];
        let by_rows = |data: &[f32], width: usize| Matrix::from_rows(n, width, data.to_vec());
        cache[0].store(&batch[0].rows, &by_rows(&k, n_head_kv * 24), &by_rows(&v, n_head_kv * 40));
        let found = attention(&by_rows(&q, n_head * 24), &batch, &cache, heads, 0.2, &soft_max);
        let wanted = plain_attention(&q, &k, &v, heads, f64::from(0.2f32));
        assert!(nmse(&found.data, &wanted) < 1e-12, "{heads:?}: {}", nmse(&found.data, &wanted));
    }
}

#[test]
fn scores_below_the_range_of_exp_weigh_nothing_and_are_not_nan() {
    let heads = Heads { n_head: 1, n_head_kv: 1, key: 1, value: 1 };
    let rows: Vec<(usize, usize)> = (0..20).map(|position| (0, position)).collect();
    let batch = SequenceRows::group(&rows, &[20]).unwrap();
    // The first key scores 0, the others from -95 to -1e30.
    let keys: Vec<f32> = (0..20).map(|i| if i == 0 { 0.0 } else { -95.0 * 10f32.powi(i) }).collect();
    let mut cache = vec![KeyValues::default()];
    cache[0].store(&batch[0].rows, &Matrix::from_rows(20, 1, keys), &Matrix::from_rows(20, 1, values("v", 20, 1.0)));
    let found = attention(&Matrix::from_rows(20, 1, vec![1.0; 20]), &batch, &cache, heads, 1.0, &soft_max);
    assert!(found.data.iter().all(|&x| x == cache[0].values[0]), "{:?}", found.data);
}

#[test]
fn a_sequence_with_a_gap_is_refused() {
    for rows in [vec![(0, 0), (0, 2)], vec![(0, 1)], vec![(0, 0), (0, 0)], vec![(5, 0)]] {
        assert!(matches!(SequenceRows::group(&rows, &[]), Err(ModelError::OutOfRange { .. })), "{rows:?}");
    }
    let interleaved = SequenceRows::group(&[(1, 1), (0, 0), (1, 0)], &[3]).unwrap();
    assert_eq!(interleaved[1].rows, [(2, 0), (0, 1)]);
    assert!(Heads { n_head: 5, n_head_kv: 2, key: 8, value: 8 }.check().is_err());
}
