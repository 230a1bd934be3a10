//! The graph's ops as a trait: what the forward pass calls, each tagged with its site.
//!
//! [`BurnOps`] computes with burn. A wrapper holds other ops and changes what goes through them: `PlainOps` computes some
//! without burn, `Tapped` shows every result, and a build with the feature `faults` can seed a fault. A build of the
//! stack `modules` computes with burn's own modules instead (`modules.rs`), which fuse some of these ops.

use crate::attention::{self, Heads, KeyValues, SequenceRows};
use crate::linear::{linear_shared, Policy};
use crate::matrix::Matrix;
use crate::model_error::Result;
use crate::ops;
use crate::rope::{self, Angles, Rope};
use crate::tap::Site;
use crate::weight::Weight;

/// A product with a weight, and the bias that is added to it if the file has one.
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    pub weight: Weight<'a>,
    pub bias: Option<&'a [f32]>,
}

/// What a call computes as one op, so that nothing inside of it can be tapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fused {
    /// Scores, softmax and weighted values.
    pub attention: bool,
    /// The products, biases, silu and product of the gated projection.
    pub gated: bool,
}

impl Fused {
    /// The names of the sites that are not passed.
    pub fn sites(self) -> Vec<&'static str> {
        let attention = ["kq", "kq_soft_max", "kqv"].into_iter().filter(|_| self.attention);
        attention
            .chain(["ffn_gate", "ffn_up", "ffn_gate.ADD", "ffn_up.ADD"].into_iter().filter(|_| self.gated))
            .collect()
    }
}

/// Every op of the forward pass; `at` is the site of its result.
pub trait Ops: Send + Sync {
    /// What these ops compute in one call.
    fn fused(&self) -> Fused {
        Fused::default()
    }

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
        stepwise_attention(self, at, q, batch, slots, heads, scale)
    }

    /// The gated projection of a block, `silu(gate x) * (up x)`; `at` is the site of the product.
    fn gated(&self, at: Site, gate: Projection, up: Projection, x: Matrix) -> Result<Matrix> {
        stepwise_gated(self, at, gate, up, x)
    }

    /// `silu(gate) * up`, element by element.
    fn swiglu(&self, at: Site, gate: Matrix, up: Matrix) -> Result<Matrix>;

    /// `a + b`, element by element.
    fn add(&self, at: Site, a: Matrix, b: Matrix) -> Result<Matrix>;
}

/// Attention in three steps, the softmax of `ops` between two products of burn.
pub fn stepwise_attention<O: Ops + ?Sized>(
    ops: &O,
    at: Site,
    q: &Matrix,
    batch: &[SequenceRows],
    slots: &[KeyValues],
    heads: Heads,
    scale: f32,
) -> Result<Matrix> {
    let soft_max =
        |kq: &[f32], n_keys: usize, visible: &[usize], scale: f32| ops.soft_max(at, kq, n_keys, visible, scale);
    Ok(attention::attention(q, batch, slots, heads, scale, &soft_max))
}

/// The gated projection op by op, each of `ops`.
pub fn stepwise_gated<O: Ops + ?Sized>(
    ops: &O,
    at: Site,
    gate: Projection,
    up: Projection,
    x: Matrix,
) -> Result<Matrix> {
    let site = |name| Site { name, ..at };
    let [gated, upped] = ops.linear(["ffn_gate", "ffn_up"].map(site), [gate.weight, up.weight], x)?;
    let gated = biased(ops, site("ffn_gate.ADD"), gated, gate.bias)?;
    let upped = biased(ops, site("ffn_up.ADD"), upped, up.bias)?;
    ops.swiglu(at, gated, upped)
}

/// Add a bias, if the file has one.
pub fn biased<O: Ops + ?Sized>(ops: &O, at: Site, x: Matrix, bias: Option<&[f32]>) -> Result<Matrix> {
    match bias {
        Some(bias) => ops.add_bias(at, x, bias),
        None => Ok(x),
    }
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
