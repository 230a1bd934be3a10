//! The ops between the weight matmuls: embedding, norm, SwiGLU, add. RoPE and attention have files of their own.
//!
//! Each is a free function on matrices, so that it can be called alone with the reference's inputs; the forward pass
//! calls the same ones. Arithmetic goes through burn tensors where burn has the op (mean, sqrt, recip, silu, mul, add);
//! what is left here moves values.

use burn_tensor::activation::silu;
use rayon::prelude::*;

use crate::backend::{tensor, values};
use crate::matrix::{Layout, Matrix};
use crate::model_error::{ModelError, Result};
use crate::quant;
use crate::weight::Weight;

/// Softmax of attention: scores `(r, n_keys)`, number of keys, visible keys of each row, scale.
pub type SoftMax<'a> = dyn Fn(&[f32], usize, &[usize], f32) -> Vec<f32> + Sync + 'a;

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
            return Err(ModelError::TokenOutside { sequence: 0, index, limit: table.n_out - 1, found: token });
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
        return Err(ModelError::wrong_length("weight of a norm", width, weight.len()));
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
        return Err(ModelError::wrong_length("bias", x.n_features, bias.len()));
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
        return Err(ModelError::wrong_length(format!("second operand of {what}"), a.data.len(), b.data.len()));
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
