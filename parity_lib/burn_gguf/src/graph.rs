//! The graph's ops as a trait: what the forward pass calls, each tagged with its site.
//!
//! [`BurnOps`] computes with burn. A wrapper holds other ops and changes what goes through them: `PlainOps` computes some
//! without burn, `Tapped` shows every result, and a build with the feature `faults` can seed a fault.

use crate::attention::{self, Heads, KeyValues, SequenceRows};
use crate::linear::{linear_shared, Policy};
use crate::matrix::Matrix;
use crate::model_error::Result;
use crate::ops;
use crate::rope::{self, Angles, Rope};
use crate::tap::Site;
use crate::weight::Weight;

/// Every op of the forward pass; `at` is the site of its result.
pub trait Ops: Send + Sync {
    /// Rows `tokens` of the embedding table, dequantised: `(n, n_embd)`.
    fn embed(&self, at: Site, table: &Weight, tokens: &[u32]) -> Result<Matrix>;

    /// RMS norm of each position, weighted.
    fn rms_norm(&self, at: Site, x: Matrix, weight: &[f32], eps: f32) -> Result<Matrix>;

    /// `y_i = W_i x` for weights that read the same activations.
    fn linear<const N: usize>(&self, at: [Site; N], weights: [Weight; N], x: Matrix) -> Result<[Matrix; N]>;

    /// Add `bias` to each position.
    fn add_bias(&self, at: Site, x: Matrix, bias: &[f32]) -> Result<Matrix>;

    /// The angles by which RoPE turns at `positions`; computed once a pass.
    fn angles(&self, rope: &Rope, positions: &[usize]) -> Angles;

    /// Rotate every head of every position.
    fn rope(&self, at: Site, x: Matrix, head: usize, angles: &Angles) -> Result<Matrix>;

    /// The same values, one row for each position.
    fn reshape(&self, at: Site, x: Matrix) -> Result<Matrix>;

    /// Append the keys and values of a pass to the slots of a block, one for each sequence.
    fn store(&self, block: usize, slots: &mut [KeyValues], batch: &[SequenceRows], k: &Matrix, v: &Matrix);

    /// Softmax of `scale * kq` over the keys that a row sees; inside of [`Ops::attention`], whose site it is given.
    fn soft_max(&self, at: Site, kq: &[f32], n_keys: usize, visible: &[usize], scale: f32) -> Vec<f32>;

    /// Causal attention of the rows of a batch against the slots of a block, which already hold them.
    fn attention(
        &self,
        at: Site,
        q: &Matrix,
        batch: &[SequenceRows],
        slots: &[KeyValues],
        heads: Heads,
        scale: f32,
    ) -> Result<Matrix> {
        let soft_max =
            |kq: &[f32], n_keys: usize, visible: &[usize], scale: f32| self.soft_max(at, kq, n_keys, visible, scale);
        Ok(attention::attention(q, batch, slots, heads, scale, &soft_max))
    }

    /// `silu(gate) * up`, element by element.
    fn swiglu(&self, at: Site, gate: Matrix, up: Matrix) -> Result<Matrix>;

    /// `a + b`, element by element.
    fn add(&self, at: Site, a: Matrix, b: Matrix) -> Result<Matrix>;
}

/// burn's ops, the weight matmuls in one policy.
#[derive(Clone, Copy, Debug)]
pub struct BurnOps {
    pub policy: Policy,
}

impl Ops for BurnOps {
    fn embed(&self, _: Site, table: &Weight, tokens: &[u32]) -> Result<Matrix> {
        ops::embed(table, tokens)
    }

    fn rms_norm(&self, _: Site, x: Matrix, weight: &[f32], eps: f32) -> Result<Matrix> {
        ops::rms_norm(x, weight, eps)
    }

    fn linear<const N: usize>(&self, _: [Site; N], weights: [Weight; N], x: Matrix) -> Result<[Matrix; N]> {
        let results = linear_shared(&weights, x, self.policy)?;
        Ok(results.try_into().expect("linear_shared returns one matrix for each weight"))
    }

    fn add_bias(&self, _: Site, x: Matrix, bias: &[f32]) -> Result<Matrix> {
        ops::add_bias(x, bias)
    }

    fn angles(&self, rope: &Rope, positions: &[usize]) -> Angles {
        rope.angles(positions)
    }

    fn rope(&self, _: Site, x: Matrix, head: usize, angles: &Angles) -> Result<Matrix> {
        rope::rope(x, head, angles)
    }

    fn reshape(&self, _: Site, x: Matrix) -> Result<Matrix> {
        Ok(x.into_rows())
    }

    fn store(&self, _: usize, slots: &mut [KeyValues], batch: &[SequenceRows], k: &Matrix, v: &Matrix) {
        for SequenceRows { sequence, rows } in batch {
            slots[*sequence].store(rows, k, v);
        }
    }

    fn soft_max(&self, _: Site, kq: &[f32], n_keys: usize, visible: &[usize], scale: f32) -> Vec<f32> {
        attention::soft_max(kq, n_keys, visible, scale)
    }

    fn swiglu(&self, _: Site, gate: Matrix, up: Matrix) -> Result<Matrix> {
        ops::swiglu(gate, up)
    }

    fn add(&self, _: Site, a: Matrix, b: Matrix) -> Result<Matrix> {
        ops::add(a, b)
    }
}
