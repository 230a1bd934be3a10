//! The right operand of a weight matmul: activations as the policy wants them, transposed once for all weights.

use rayon::prelude::*;

use crate::activation::{self, ActivationKind};
use crate::backend::{tensor, Dense};
use crate::matrix::Matrix;
use crate::model_error::{ModelError, Result};

/// Bytes of one block of columns of the right operand. burn copies it once for each panel.
const OPERAND_BYTES: usize = 64 << 20;

/// What happens to the activations (and to the weights) before they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandKind {
    Plain,
    Bf16,
    Ggml(ActivationKind),
}

/// The right operand, `(k, m)`, cut into blocks of columns so that burn's copies of it stay small.
pub struct Operand {
    pub kind: OperandKind,
    pub k: usize,
    pub m: usize,
    /// First column, number of columns, values.
    pub blocks: Vec<(usize, usize, Dense)>,
}

impl Operand {
    /// Round or quantise the activations as `kind` says, transpose them, hand them to burn.
    pub fn new(x: Matrix, kind: OperandKind) -> Result<Self> {
        let x = prepare(x, kind)?;
        let (k, m) = (x.n_features, x.n_positions);
        let width = (OPERAND_BYTES / (4 * k.max(1))).max(128);
        let n_blocks = m.div_ceil(width).max(1);
        let columns = x.into_columns();
        if n_blocks == 1 {
            return Ok(Self { kind, k, m, blocks: vec![(0, m, tensor(columns.data, k, m))] });
        }
        let width = m.div_ceil(n_blocks);
        let blocks = (0..m).step_by(width).map(|first| {
            let n = width.min(m - first);
            let mut block = Vec::with_capacity(k * n);
            for feature in columns.data.chunks_exact(m) {
                block.extend_from_slice(&feature[first..first + n]);
            }
            (first, n, tensor(block, k, n))
        });
        Ok(Self { kind, k, m, blocks: blocks.collect() })
    }
}

/// Activations as the product sees them; by rows, since quantisers work along a row.
///
/// For Q8_1 each row grows by one value a block: the reference multiplies a block's minimum not with the codes but with
/// `s`, an f16 of their scaled sum. `W x` already contains `minimum * sum(d * code)`, so what is missing is
/// `minimum * (s - sum(d * code))`: the second factor is appended here, the minimums to the weights' rows.
fn prepare(x: Matrix, kind: OperandKind) -> Result<Matrix> {
    let kind = match kind {
        OperandKind::Plain | OperandKind::Ggml(ActivationKind::F32) => return Ok(x),
        OperandKind::Bf16 => ActivationKind::BF16,
        OperandKind::Ggml(kind) => kind,
    };
    let mut x = x.into_rows();
    if kind == ActivationKind::Q8_1 {
        return with_sums(&x);
    }
    let width = x.n_features;
    x.data.par_chunks_mut(width).try_for_each(|row| {
        let source = row.to_vec();
        activation::round_row(kind, &source, row)
    })?;
    Ok(x)
}

/// Rows of Q8_1 values followed by `s - sum(d * code)` of each block.
fn with_sums(x: &Matrix) -> Result<Matrix> {
    let width = x.n_features;
    let n_blocks = width / ActivationKind::Q8_1.block_size();
    let mut data = vec![0.0f32; x.n_positions * (width + n_blocks)];
    data.par_chunks_mut(width + n_blocks).zip(x.data.par_chunks(width)).try_for_each(|(row, source)| {
        let (values, corrections) = row.split_at_mut(width);
        let (values, _) = values.as_chunks_mut();
        let blocks = activation::quantize_q8_1(source)?;
        for ((block, values), correction) in blocks.iter().zip(values).zip(corrections) {
            block.dequantize(values);
            // Exact: an 11-bit scale times at most 12 bits of sum.
            let sum: i32 = block.qs.iter().map(|&code| i32::from(code)).sum();
            *correction = block.s.to_f32() - block.d.to_f32() * sum as f32;
        }
        Ok::<(), ModelError>(())
    })?;
    Ok(Matrix::from_rows(x.n_positions, width + n_blocks, data))
}
