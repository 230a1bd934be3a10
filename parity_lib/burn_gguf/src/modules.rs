//! The second implementation of the candidate: burn's own modules, which applications build their models of.
//!
//! `RmsNorm`, `RotaryEncoding` and `SwiGlu` of burn-nn, and burn-tensor's `module::attention`. A module takes and gives
//! whole tensors, so what it fuses cannot be tapped: [`Fused`]. Embedding, products with one weight and sums are the
//! ops of the first implementation.
//!
//! In the stack `modules` only.

use burn_core::module::Param;
use burn_nn::{Linear, RmsNorm, RotaryEncoding, RotaryEncodingConfig, SwiGlu};
use burn_tensor::module::attention;
use burn_tensor::ops::AttentionModuleOptions;
use burn_tensor::{Bool, Tensor, TensorData};

use crate::attention::{Heads, KeyValues, SequenceRows};
use crate::backend::{tensor, values, B};
use crate::graph::{stepwise_gated, BurnOps, Fused, Ops, Projection};
use crate::linear::Policy;
use crate::matrix::Matrix;
use crate::model_error::{ModelError, Result};
use crate::quant;
use crate::rope::{Angles, Pairing, Rope, ScalingKind};
use crate::tap::Site;
use crate::weight::Weight;

/// burn's modules where it has one, its ops elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct ModuleOps {
    pub policy: Policy,
}

impl ModuleOps {
    fn ops(&self) -> BurnOps {
        BurnOps { policy: self.policy }
    }
}

impl Ops for ModuleOps {
    /// `SwiGlu` multiplies by itself, in f32: where another arithmetic is asked for, its products are the crate's.
    fn fused(&self) -> Fused {
        Fused { attention: true, gated: self.policy == Policy::F32 }
    }

    fn rms_norm(&self, _: Site, x: Matrix, weight: &[f32], eps: f32) -> Result<Matrix> {
        let x = x.into_rows();
        if weight.len() != x.n_features {
            return Err(ModelError::wrong_length("weight of a norm", x.n_features, weight.len()));
        }
        let norm = RmsNorm::<B> { gamma: Param::from_tensor(vector(weight)), epsilon: f64::from(eps) };
        let data = values(norm.forward(tensor(x.data, x.n_positions, x.n_features)));
        Ok(Matrix::from_rows(x.n_positions, x.n_features, data))
    }

    /// Each run of neighbouring positions goes through the module at its start.
    fn rope(&self, _: Site, x: Matrix, head: usize, angles: &Angles) -> Result<Matrix> {
        let encoding = encoding(&angles.rope, head, angles.positions.iter().max().map_or(0, |last| last + 1))?;
        let x = x.into_rows();
        if angles.positions.len() != x.n_positions || !x.n_features.is_multiple_of(head) {
            return Err(ModelError::wrong_length("positions of RoPE", x.n_positions, angles.positions.len()));
        }
        let n_heads = x.n_features / head;
        let mut data = Vec::with_capacity(x.data.len());
        let mut rest = x.data.as_slice();
        for run in angles.positions.chunk_by(|before, after| after == &(before + 1)) {
            let (rows, later) = rest.split_at(run.len() * x.n_features);
            data.extend(rotate(&encoding, angles.rope.pairing, rows, [run.len(), n_heads, head], run[0]));
            rest = later;
        }
        Ok(Matrix::from_rows(x.n_positions, x.n_features, data))
    }

    /// Each sequence goes through `module::attention` by itself, its keys repeated for the query heads that share them.
    fn attention(
        &self,
        _: Site,
        q: &Matrix,
        batch: &[SequenceRows],
        slots: &[KeyValues],
        heads: Heads,
        scale: f32,
    ) -> Result<Matrix> {
        let mut out = Matrix::from_rows(
            q.n_positions,
            heads.n_head * heads.value,
            vec![0.0; q.n_positions * heads.n_head * heads.value],
        );
        for SequenceRows { sequence, rows } in batch.iter().filter(|sequence| !sequence.rows.is_empty()) {
            let queries = rows.iter().flat_map(|(row, _)| q.row(*row)).copied().collect();
            let attended = attend(queries, rows, &slots[*sequence], heads, scale);
            for ((row, _), values) in rows.iter().zip(attended.chunks_exact(heads.n_head * heads.value)) {
                out.row_mut(*row).copy_from_slice(values);
            }
        }
        Ok(out)
    }

    fn gated(&self, at: Site, gate: Projection, up: Projection, x: Matrix) -> Result<Matrix> {
        if !self.fused().gated {
            return stepwise_gated(self, at, gate, up, x);
        }
        let x = x.into_rows();
        let (n_positions, n_out) = (x.n_positions, gate.weight.n_out);
        let module = SwiGlu::<B> { linear_inner: linear(gate)?, linear_outer: linear(up)? };
        let data = values(module.forward(tensor(x.data, n_positions, x.n_features)));
        Ok(Matrix::from_rows(n_positions, n_out, data))
    }

    // ---- ops for which there is no module, or none that fits ----

    fn embed(&self, at: Site, table: &Weight, tokens: &[u32]) -> Result<Matrix> {
        self.ops().embed(at, table, tokens)
    }

    fn linear<const N: usize>(&self, at: [Site; N], weights: [Weight; N], x: Matrix) -> Result<[Matrix; N]> {
        self.ops().linear(at, weights, x)
    }

    fn add_bias(&self, at: Site, x: Matrix, bias: &[f32]) -> Result<Matrix> {
        self.ops().add_bias(at, x, bias)
    }

    fn angles(&self, rope: &Rope, positions: &[usize]) -> Angles {
        self.ops().angles(rope, positions)
    }

    fn reshape(&self, at: Site, x: Matrix) -> Result<Matrix> {
        self.ops().reshape(at, x)
    }

    fn store(&self, block: usize, slots: &mut [KeyValues], batch: &[SequenceRows], k: &Matrix, v: &Matrix) {
        self.ops().store(block, slots, batch, k, v);
    }

    fn soft_max(&self, at: Site, kq: &[f32], n_keys: usize, visible: &[usize], scale: f32) -> Vec<f32> {
        self.ops().soft_max(at, kq, n_keys, visible, scale)
    }

    fn swiglu(&self, at: Site, gate: Matrix, up: Matrix) -> Result<Matrix> {
        self.ops().swiglu(at, gate, up)
    }

    fn add(&self, at: Site, a: Matrix, b: Matrix) -> Result<Matrix> {
        self.ops().add(at, a, b)
    }
}

fn vector(data: &[f32]) -> Tensor<B, 1> {
    tensor(data.to_vec(), 1, data.len()).reshape([data.len()])
}

/// `Linear` of a weight of the file: all of it dequantised, its transposed view where the module wants `(n_in, n_out)`.
fn linear(Projection { weight, bias }: Projection) -> Result<Linear<B>> {
    let mut data = vec![0.0; weight.n_out * weight.n_in];
    quant::dequantize(weight.ty, weight.rows(0, weight.n_out), &mut data)?;
    let weight = tensor(data, weight.n_out, weight.n_in).transpose();
    Ok(Linear { weight: Param::from_tensor(weight), bias: bias.map(|bias| Param::from_tensor(vector(bias))) })
}

/// The module with the angles of `n_positions` positions. It has no YaRN, and rotates whole heads.
fn encoding(rope: &Rope, head: usize, n_positions: usize) -> Result<RotaryEncoding<B>> {
    if rope.n_dims != head {
        return Err(ModelError::out_of_range("rotated values of RotaryEncoding", head.to_string(), rope.n_dims));
    }
    if rope.scaling.kind == ScalingKind::Yarn || rope.scaling.attn_factor != 1.0 {
        let found = format!("{:?}", rope.scaling);
        return Err(ModelError::out_of_range("scaling of RotaryEncoding", "none or linear", found));
    }
    let scaled = |theta: Tensor<B, 1>| {
        let theta = theta.div_scalar(rope.scaling.factor);
        match &rope.divisors {
            Some(divisors) => theta / vector(divisors),
            None => theta,
        }
    };
    let config = RotaryEncodingConfig::new(n_positions.max(1), head).with_theta(rope.base);
    Ok(config.init_with_frequency_scaling(scaled, &Default::default()))
}

/// Rotate rows `(n, n_heads * head)` at neighbouring positions from `start` on.
///
/// The module pairs neighbours. A model whose pairs are halves of a head has them moved there and back, as an
/// application does; that rounds nothing.
fn rotate(
    encoding: &RotaryEncoding<B>,
    pairing: Pairing,
    rows: &[f32],
    [n, n_heads, head]: [usize; 3],
    start: usize,
) -> Vec<f32> {
    let rows = tensor(rows.to_vec(), n, n_heads * head);
    let heads: Tensor<B, 3> = match pairing {
        Pairing::Adjacent => rows.reshape([n, n_heads, head]),
        Pairing::Halves => rows.reshape([n, n_heads, 2, head / 2]).swap_dims(2, 3).reshape([n, n_heads, head]),
    };
    let turned = encoding.apply(heads.swap_dims(0, 1), start).swap_dims(0, 1);
    values(match pairing {
        Pairing::Adjacent => turned.reshape([n, n_heads * head]),
        Pairing::Halves => turned.reshape([n, n_heads, head / 2, 2]).swap_dims(2, 3).reshape([n, n_heads * head]),
    })
}

/// `module::attention` of the rows of one sequence, ascending in position, against its keys: `(n, n_head * value)`.
///
/// Rows from position 0 on are causal by the module's own option, a single last row sees every key, and rows after
/// others get a mask.
fn attend(queries: Vec<f32>, rows: &[(usize, usize)], slot: &KeyValues, heads: Heads, scale: f32) -> Vec<f32> {
    let (n, n_keys) = (rows.len(), rows.last().map_or(0, |(_, position)| position + 1));
    let query = by_head(queries, n, heads.n_head, heads.key);
    let repeated = |cached: &[f32], width: usize| {
        let cached = by_head(cached[..n_keys * heads.n_head_kv * width].to_vec(), n_keys, heads.n_head_kv, width);
        let shared: Tensor<B, 5> = cached.unsqueeze_dim(2);
        shared.repeat_dim(2, heads.group()).reshape([1, heads.n_head, n_keys, width])
    };
    let (key, value) = (repeated(&slot.keys, heads.key), repeated(&slot.values, heads.value));
    let whole = rows[0].1 == 0;
    let mask = (!whole && n > 1).then(|| hidden(rows, n_keys, heads.n_head));
    let options = AttentionModuleOptions { scale: Some(f64::from(scale)), softcap: None, is_causal: whole && n > 1 };
    let attended = attention(query, key, value, mask, None, options);
    values(attended.swap_dims(1, 2).reshape([n, heads.n_head * heads.value]))
}

/// Rows `(n, n_heads * width)` as `(1, n_heads, n, width)`.
fn by_head(data: Vec<f32>, n: usize, n_heads: usize, width: usize) -> Tensor<B, 4> {
    tensor(data, n, n_heads * width).reshape([1, n, n_heads, width]).swap_dims(1, 2)
}

/// True where a row must not attend: at keys after its own position.
fn hidden(rows: &[(usize, usize)], n_keys: usize, n_heads: usize) -> Tensor<B, 4, Bool> {
    let row = |position: usize| (0..n_keys).map(move |key| key > position);
    let mask: Vec<bool> = rows.iter().flat_map(|(_, position)| row(*position)).collect();
    let mask = TensorData::new(mask, [1, 1, rows.len(), n_keys]);
    Tensor::<B, 4, Bool>::from_data(mask, &Default::default()).repeat_dim(1, n_heads)
}
