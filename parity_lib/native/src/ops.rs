//! The ops between the weight matmuls: embedding, norm, RoPE, SwiGLU, add. Attention has a file of its own.
//!
//! Each is a free function on matrices, so that it can be called alone with the reference's inputs; the forward pass
//! calls the same ones. Arithmetic goes through burn tensors where burn has the op (mean, sqrt, recip, silu, mul, add);
//! what is left here moves values or, in RoPE, rotates them.

use burn_tensor::activation::silu;
use rayon::prelude::*;

use crate::backend::{tensor, values};
use crate::linear::Weight;
use crate::matrix::{Layout, Matrix};
use crate::quant;
use crate::refusal::{Refusal, Result};

/// Positions that one thread norms at a time; a position never depends on its neighbours.
const NORM_POSITIONS: usize = 32;

/// Values that one thread takes of an elementwise op.
const ELEMENTWISE: usize = 1 << 16;

/// Rows `tokens` of the embedding table, dequantised: `(n, n_embd)`.
pub fn embed(table: &Weight, tokens: &[u32]) -> Result<Matrix> {
    let width = table.n_in;
    let mut data = vec![0.0; tokens.len() * width];
    for (index, (row, &token)) in data.chunks_exact_mut(width).zip(tokens).enumerate() {
        if token as usize >= table.n_out {
            return Err(Refusal::TokenOutside { sequence: 0, index, limit: table.n_out - 1, found: token });
        }
        quant::dequantize(table.ty, table.rows(token as usize, 1), row)?;
    }
    Ok(Matrix::from_rows(tokens.len(), width, data))
}

/// RMS norm of each position: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// Scaled first, weighted second, as the reference does (`RMS_NORM`, then `MUL`).
pub fn rms_norm(x: Matrix, weight: &[f32], eps: f32) -> Result<Matrix> {
    let mut x = x.into_rows();
    let width = x.n_features;
    if weight.len() != width {
        return Err(Refusal::WrongLength { what: "weight of a norm".into(), expected: width, found: weight.len() });
    }
    x.data.par_chunks_mut(NORM_POSITIONS * width).for_each(|chunk| {
        let n = chunk.len() / width;
        let rows = tensor(chunk.to_vec(), n, width);
        let mean_square = (rows.clone() * rows.clone()).mean_dim(1);
        let scale = mean_square.add_scalar(eps).sqrt().recip();
        chunk.copy_from_slice(&values(rows * scale * tensor(weight.to_vec(), 1, width)));
    });
    Ok(x)
}

/// `silu(gate) * up`, element by element; both in the same layout, which is kept.
pub fn swiglu(gate: Matrix, up: Matrix) -> Result<Matrix> {
    elementwise(gate, up, "swiglu", |gate, up| {
        let n = gate.len();
        values(silu(tensor(gate, 1, n)) * tensor(up, 1, n))
    })
}

/// `a + b`, element by element, in the layout of `a`.
pub fn add(a: Matrix, b: Matrix) -> Result<Matrix> {
    elementwise(a, b, "add", |a, b| {
        let n = a.len();
        values(tensor(a, 1, n) + tensor(b, 1, n))
    })
}

/// Add `bias` to each position.
pub fn add_bias(x: Matrix, bias: &[f32]) -> Result<Matrix> {
    if bias.len() != x.n_features {
        return Err(Refusal::WrongLength { what: "bias".into(), expected: x.n_features, found: bias.len() });
    }
    let (rows, columns, repeated) = match x.layout {
        Layout::Rows => (x.n_positions, x.n_features, tensor(bias.to_vec(), 1, x.n_features)),
        Layout::Columns => (x.n_features, x.n_positions, tensor(bias.to_vec(), x.n_features, 1)),
    };
    let data = values(tensor(x.data, rows, columns) + repeated);
    Ok(Matrix { data, ..x })
}

/// Run a binary burn op over equal pieces in parallel.
fn elementwise(a: Matrix, b: Matrix, what: &str, op: impl Fn(Vec<f32>, Vec<f32>) -> Vec<f32> + Sync) -> Result<Matrix> {
    if (a.n_positions, a.n_features) != (b.n_positions, b.n_features) {
        let what = format!("second operand of {what}");
        return Err(Refusal::WrongLength { what, expected: a.data.len(), found: b.data.len() });
    }
    let b = if a.layout == b.layout {
        b
    } else if a.layout == Layout::Rows {
        b.into_rows()
    } else {
        b.into_columns()
    };
    let mut a = a;
    a.data.par_chunks_mut(ELEMENTWISE).zip(b.data.par_chunks(ELEMENTWISE)).for_each(|(a, b)| {
        let result = op(a.to_vec(), b.to_vec());
        a.copy_from_slice(&result);
    });
    Ok(a)
}

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
}

/// Cosines and sines of a run of positions, `n_dims / 2` pairs each; computed once, used by every layer.
#[derive(Clone, Debug)]
pub struct Angles {
    pairing: Pairing,
    n_dims: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Bind the parts; refuses an odd number of rotated values and divisors that are not one a pair.
    pub fn new(pairing: Pairing, n_dims: usize, base: f32, divisors: Option<Vec<f32>>) -> Result<Self> {
        if n_dims == 0 || !n_dims.is_multiple_of(2) {
            let (what, expected) = ("rotated values of RoPE".into(), "a positive even number".into());
            return Err(Refusal::OutOfRange { what, expected, found: n_dims.to_string() });
        }
        if let Some(found) = divisors.as_ref().map(Vec::len).filter(|&n| n != n_dims / 2) {
            return Err(Refusal::WrongLength { what: "divisors of RoPE".into(), expected: n_dims / 2, found });
        }
        Ok(Self { pairing, n_dims, base, divisors })
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
        let n = positions.len() * self.n_dims / 2;
        let (mut cos, mut sin) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for &position in positions {
            let mut theta = position as f32;
            for pair in 0..self.n_dims / 2 {
                let divisor = self.divisors.as_ref().map_or(1.0, |divisors| divisors[pair]);
                let angle = f64::from(theta / divisor);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
                theta *= step;
            }
        }
        Angles { pairing: self.pairing, n_dims: self.n_dims, cos, sin }
    }
}

/// Rotate every head of every position. `x` is `(n, n_heads * head)`; `angles` holds n positions.
pub fn rope(x: Matrix, head: usize, angles: &Angles) -> Result<Matrix> {
    let mut x = x.into_rows();
    let (n_dims, pairs) = (angles.n_dims, angles.n_dims / 2);
    if n_dims > head || n_dims == 0 || !n_dims.is_multiple_of(2) || !x.n_features.is_multiple_of(head) {
        return Err(Refusal::OutOfRange {
            what: "RoPE".into(),
            expected: format!("an even number of rotated values, 2 to {head}, and whole heads"),
            found: format!("{n_dims} rotated, rows of {}", x.n_features),
        });
    }
    if angles.cos.len() != x.n_positions * pairs {
        let (expected, found) = (x.n_positions, angles.cos.len() / pairs);
        return Err(Refusal::WrongLength { what: "positions of RoPE".into(), expected, found });
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
        let (first, second) = match angles.pairing {
            Pairing::Adjacent => (2 * pair, 2 * pair + 1),
            Pairing::Halves => (pair, pair + angles.n_dims / 2),
        };
        let (a, b) = (values[first], values[second]);
        values[first] = a * cos - b * sin;
        values[second] = a * sin + b * cos;
    }
}
