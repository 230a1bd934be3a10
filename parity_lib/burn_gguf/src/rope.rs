//! RoPE: the angles of positions, and the rotation of every head by them.

use rayon::prelude::*;
use serde::Serialize;

use crate::matrix::Matrix;
use crate::model_error::{ModelError, Result};

/// Which two values of a head RoPE rotates together.
///
/// `llama` files hold Q and K with permuted rows and want adjacent pairs, `qwen2` files are not permuted and want halves
/// (the list is `llama_model_rope_type` in llama.cpp). With the wrong one position 0 is still right, because its
/// angles are zero, and every later position is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `(0, 1), (2, 3), ..`: ggml's NORM.
    Adjacent,
    /// `(0, d/2), (1, d/2 + 1), ..`: ggml's NEOX.
    Halves,
}

/// Everything that RoPE needs besides the values.
#[derive(Clone, Debug)]
pub struct Rope {
    pub pairing: Pairing,
    /// Values of a head that are rotated; the rest passes through.
    pub n_dims: usize,
    pub base: f32,
    /// Divisors of the angles, one a pair, from `rope_freqs.weight`; none divides by one.
    pub divisors: Option<Vec<f32>>,
    /// How the angles are stretched to a longer context.
    pub scaling: Scaling,
}

/// How RoPE stretches its angles to a longer context, as the reference computes it (`llama-context.cpp`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scaling {
    pub kind: ScalingKind,
    /// The context is this many times longer; 1 without a scaling.
    pub factor: f32,
    /// Cosine and sine are multiplied by this.
    pub attn_factor: f32,
    /// The context that YaRN stretches.
    pub n_ctx_orig: usize,
}

/// Which angles are divided by the factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ScalingKind {
    /// None of them.
    None,
    /// All of them.
    Linear,
    /// Those of pairs that turn slowly (YaRN, Peng et al. 2023); between slow and fast the two angles are mixed.
    Yarn,
}

/// Turns within the original context above which YaRN leaves a pair alone, and below which it divides it whole.
///
/// The reference reads no other bounds for these architectures (`llama-hparams.h`).
const BETA_FAST_SLOW: [f32; 2] = [32.0, 1.0];

impl Default for Scaling {
    fn default() -> Self {
        Self { kind: ScalingKind::None, factor: 1.0, attn_factor: 1.0, n_ctx_orig: 0 }
    }
}

impl Scaling {
    /// What the angles are multiplied by; the reference divides once, so this is rounded once.
    fn frequency(&self) -> f32 {
        match self.kind {
            ScalingKind::None => 1.0,
            _ => 1.0 / self.factor,
        }
    }

    /// What cosine and sine are multiplied by. YaRN's own `1 + 0.1 ln(factor)` comes from the op and, for a factor
    /// above 1, from the context too, which takes it out once: for a factor of 1 or less nothing of it is left.
    fn magnitude(&self) -> f32 {
        if self.kind != ScalingKind::Yarn {
            return self.attn_factor;
        }
        let factor = 1.0 / self.frequency();
        let logarithm = factor.ln();
        let stretched = if factor <= 1.0 { 1.0 } else { 0.1 * logarithm + 1.0 };
        let of_context = stretched * (1.0 / (1.0 + 0.1 * logarithm)) * self.attn_factor;
        of_context * (1.0 + 0.1 * logarithm)
    }

    /// The share of the unscaled angle in each pair's angle.
    fn unscaled_shares(&self, n_dims: usize, base: f32) -> Vec<f32> {
        if self.kind != ScalingKind::Yarn {
            return vec![0.0; n_dims / 2];
        }
        let place = |turns: f32| {
            let periods = self.n_ctx_orig as f32 / (turns * 2.0 * std::f32::consts::PI);
            n_dims as f32 * periods.ln() / (2.0 * base.ln())
        };
        let [fast, slow] = BETA_FAST_SLOW;
        let (low, high) = (place(fast).floor().max(0.0), place(slow).ceil().min(n_dims as f32 - 1.0));
        let share = |pair: usize| 1.0 - ((pair as f32 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        (0..n_dims / 2).map(share).collect()
    }
}

/// Cosines and sines of a run of positions, `n_dims / 2` pairs each; computed once, used by every layer.
#[derive(Clone, Debug)]
pub struct Angles {
    pub rope: Rope,
    pub positions: Vec<usize>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Bind the parts; refuses an odd number of rotated values and divisors that are not one a pair.
    pub fn new(pairing: Pairing, n_dims: usize, base: f32, divisors: Option<Vec<f32>>) -> Result<Self> {
        if n_dims == 0 || !n_dims.is_multiple_of(2) {
            return Err(ModelError::out_of_range("rotated values of RoPE", "a positive even number", n_dims));
        }
        if let Some(found) = divisors.as_ref().map(Vec::len).filter(|&n| n != n_dims / 2) {
            return Err(ModelError::wrong_length("divisors of RoPE", n_dims / 2, found));
        }
        Ok(Self { pairing, n_dims, base, divisors, scaling: Scaling::default() })
    }

    /// The same, stretched.
    pub fn scaled(self, scaling: Scaling) -> Self {
        Self { scaling, ..self }
    }

    /// Angles of `positions`.
    ///
    /// The exact angle of pair i is `position * base^(-2i/n_dims) / divisor_i`. The reference walks there in f32: it
    /// starts at the position and multiplies by the f32 `base^(-2/n_dims)` once a pair (`ggml_rope_cache_init`), so its
    /// angle drifts by about `i * 6e-8` of itself: nothing at position 10, 1e-4 rad at position 1000. This walks the
    /// same way, and rounds only the cosine and the sine of the walked angle. Measured on SmolLM2-135M against the
    /// reference's F32 twin, in units of the logits' std: exact angles 3e-6 before position 200, 9e-6 at 400 to 600,
    /// 2.3e-5 at 1,600; walked angles 3e-6 at all of them. The walk is the angle that a deployed model always gets;
    /// the exact one would hide faults of late positions behind a difference that is nobody's fault.
    pub fn angles(&self, positions: &[usize]) -> Angles {
        let step = self.base.powf(-2.0 / self.n_dims as f32);
        let (frequency, magnitude) = (self.scaling.frequency(), self.scaling.magnitude());
        let shares = self.scaling.unscaled_shares(self.n_dims, self.base);
        let n = positions.len() * self.n_dims / 2;
        let (mut cos, mut sin) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for &position in positions {
            let mut theta = position as f32;
            for (pair, share) in shares.iter().enumerate() {
                let divisor = self.divisors.as_ref().map_or(1.0, |divisors| divisors[pair]);
                let unscaled = theta / divisor;
                let scaled = frequency * unscaled;
                let angle = f64::from(scaled * (1.0 - share) + unscaled * share);
                cos.push(angle.cos() as f32 * magnitude);
                sin.push(angle.sin() as f32 * magnitude);
                theta *= step;
            }
        }
        Angles { rope: self.clone(), positions: positions.to_vec(), cos, sin }
    }
}

/// Rotate every head of every position. `x` is `(n, n_heads * head)`; `angles` holds n positions.
pub fn rope(x: Matrix, head: usize, angles: &Angles) -> Result<Matrix> {
    let mut x = x.into_rows();
    let (n_dims, pairs) = (angles.rope.n_dims, angles.rope.n_dims / 2);
    if n_dims > head || n_dims == 0 || !n_dims.is_multiple_of(2) || !x.n_features.is_multiple_of(head) {
        let expected = format!("an even number of rotated values, 2 to {head}, and whole heads");
        return Err(ModelError::out_of_range("RoPE", expected, format!("{n_dims} rotated, rows of {}", x.n_features)));
    }
    if angles.cos.len() != x.n_positions * pairs {
        return Err(ModelError::wrong_length("positions of RoPE", x.n_positions, angles.cos.len() / pairs));
    }
    let width = x.n_features;
    let tables = angles.cos.par_chunks(pairs).zip(angles.sin.par_chunks(pairs));
    x.data.par_chunks_mut(width).zip(tables).for_each(|(row, (cos, sin))| {
        row.chunks_exact_mut(head).for_each(|values| rotate(values, angles, cos, sin));
    });
    Ok(x)
}

/// Rotate the pairs of one head.
fn rotate(values: &mut [f32], angles: &Angles, cos: &[f32], sin: &[f32]) {
    for (pair, (cos, sin)) in cos.iter().zip(sin).enumerate() {
        let (first, second) = match angles.rope.pairing {
            Pairing::Adjacent => (2 * pair, 2 * pair + 1),
            Pairing::Halves => (pair, pair + angles.rope.n_dims / 2),
        };
        let (a, b) = (values[first], values[second]);
        values[first] = a * cos - b * sin;
        values[second] = a * sin + b * cos;
    }
}
