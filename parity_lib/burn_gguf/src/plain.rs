//! Plain twins of burn's ops, to find out which of them a wrong result comes from.
//!
//! A run may name ops that are computed here in scalar code instead of by the stack under test: if the model is right
//! with one op replaced and wrong with it, that op is the reason. A run with replaced ops says so in its facts, and is
//! never a verdict about the stack.

use rayon::prelude::*;

use crate::attention::{Heads, KeyValues, SequenceRows};
use crate::graph::{stepwise_attention, stepwise_gated, Fused, Ops, Projection};
use crate::matrix::Matrix;
use crate::model_error::{ModelError, Result};
use crate::rope::{Angles, Rope};
use crate::tap::Site;
use crate::weight::Weight;

/// Every op that can be replaced, and what is replaced with it.
pub const PLAIN: [(&str, &str); 4] = [
    ("soft_max", "burn's softmax of the attention scores"),
    ("rms_norm", "burn's mean, sqrt and recip of the norms"),
    ("swiglu", "burn's silu and product"),
    ("add", "burn's sums: residuals and biases"),
];

/// Which ops are replaced; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plain {
    soft_max: bool,
    rms_norm: bool,
    swiglu: bool,
    add: bool,
}

impl Plain {
    /// Read a list of names; refuses what is not in [`PLAIN`].
    pub fn parse(names: &[String]) -> Result<Self> {
        let mut plain = Self::default();
        for name in names {
            match name.as_str() {
                "soft_max" => plain.soft_max = true,
                "rms_norm" => plain.rms_norm = true,
                "swiglu" => plain.swiglu = true,
                "add" => plain.add = true,
                _ => {
                    let expected = PLAIN.map(|(known, _)| known).join(", ");
                    return Err(ModelError::UnknownOption { option: "plain", expected, found: name.clone() });
                }
            }
        }
        Ok(plain)
    }

    /// The names of what is replaced.
    pub fn names(&self) -> Vec<&'static str> {
        let replaced = [self.soft_max, self.rms_norm, self.swiglu, self.add];
        PLAIN.iter().zip(replaced).filter(|(_, replaced)| *replaced).map(|((name, _), _)| *name).collect()
    }
}

/// Other ops, some of them replaced by plain twins.
#[derive(Clone, Copy, Debug)]
pub struct PlainOps<O> {
    pub inner: O,
    pub plain: Plain,
}

impl<O: Ops> Ops for PlainOps<O> {
    /// A plain twin of a part of what is fused takes it apart.
    fn fused(&self) -> Fused {
        let inner = self.inner.fused();
        Fused {
            attention: inner.attention && !self.plain.soft_max,
            gated: inner.gated && !self.plain.swiglu && !self.plain.add,
        }
    }

    fn attention(
        &self,
        at: Site,
        q: &Matrix,
        batch: &[SequenceRows],
        slots: &[KeyValues],
        heads: Heads,
        scale: f32,
    ) -> Result<Matrix> {
        if self.fused().attention {
            self.inner.attention(at, q, batch, slots, heads, scale)
        } else {
            stepwise_attention(self, at, q, batch, slots, heads, scale)
        }
    }

    fn gated(&self, at: Site, gate: Projection, up: Projection, x: Matrix) -> Result<Matrix> {
        if self.fused().gated {
            self.inner.gated(at, gate, up, x)
        } else {
            stepwise_gated(self, at, gate, up, x)
        }
    }

    fn rms_norm(&self, at: Site, x: Matrix, weight: &[f32], eps: f32) -> Result<Matrix> {
        if self.plain.rms_norm {
            rms_norm(x, weight, eps)
        } else {
            self.inner.rms_norm(at, x, weight, eps)
        }
    }

    fn add_bias(&self, at: Site, x: Matrix, bias: &[f32]) -> Result<Matrix> {
        if self.plain.add {
            add_bias(x, bias)
        } else {
            self.inner.add_bias(at, x, bias)
        }
    }

    fn soft_max(&self, at: Site, kq: &[f32], n_keys: usize, visible: &[usize], scale: f32) -> Vec<f32> {
        if self.plain.soft_max {
            soft_max(kq, n_keys, visible, scale)
        } else {
            self.inner.soft_max(at, kq, n_keys, visible, scale)
        }
    }

    fn swiglu(&self, at: Site, gate: Matrix, up: Matrix) -> Result<Matrix> {
        if self.plain.swiglu {
            pairwise(gate, up, "swiglu", |gate, up| gate / (1.0 + (-gate).exp()) * up)
        } else {
            self.inner.swiglu(at, gate, up)
        }
    }

    fn add(&self, at: Site, a: Matrix, b: Matrix) -> Result<Matrix> {
        if self.plain.add {
            pairwise(a, b, "add", |a, b| a + b)
        } else {
            self.inner.add(at, a, b)
        }
    }

    // ---- never replaced ----

    fn embed(&self, at: Site, table: &Weight, tokens: &[u32]) -> Result<Matrix> {
        self.inner.embed(at, table, tokens)
    }

    fn linear<const N: usize>(&self, at: [Site; N], weights: [Weight; N], x: Matrix) -> Result<[Matrix; N]> {
        self.inner.linear(at, weights, x)
    }

    fn angles(&self, rope: &Rope, positions: &[usize]) -> Angles {
        self.inner.angles(rope, positions)
    }

    fn rope(&self, at: Site, x: Matrix, head: usize, angles: &Angles) -> Result<Matrix> {
        self.inner.rope(at, x, head, angles)
    }

    fn reshape(&self, at: Site, x: Matrix) -> Result<Matrix> {
        self.inner.reshape(at, x)
    }

    fn store(&self, block: usize, slots: &mut [KeyValues], batch: &[SequenceRows], k: &Matrix, v: &Matrix) {
        self.inner.store(block, slots, batch, k, v);
    }
}

/// Twin of [`crate::attention::soft_max`]: exp in f32, summed in f64, as the reference sums.
fn soft_max(kq: &[f32], n_keys: usize, visible: &[usize], scale: f32) -> Vec<f32> {
    let mut weights = vec![0.0f32; kq.len()];
    for (index, (row, out)) in kq.chunks_exact(n_keys).zip(weights.chunks_exact_mut(n_keys)).enumerate() {
        let n = visible[index % visible.len()];
        let largest = row[..n].iter().fold(f32::NEG_INFINITY, |largest, &value| largest.max(value * scale));
        let mut sum = 0.0f64;
        for (out, &value) in out.iter_mut().zip(&row[..n]) {
            *out = (value * scale - largest).exp();
            sum += f64::from(*out);
        }
        out[..n].iter_mut().for_each(|value| *value = (f64::from(*value) / sum) as f32);
    }
    weights
}

/// Twin of [`crate::ops::rms_norm`]: the squares summed in f64.
fn rms_norm(x: Matrix, weight: &[f32], eps: f32) -> Result<Matrix> {
    let mut x = x.into_rows();
    check_width("weight of a norm", weight.len(), x.n_features)?;
    x.data.par_chunks_mut(weight.len()).for_each(|row| {
        let squares: f64 = row.iter().map(|&value| f64::from(value * value)).sum();
        let scale = 1.0 / ((squares / weight.len() as f64) as f32 + eps).sqrt();
        row.iter_mut().zip(weight).for_each(|(value, weight)| *value = *value * scale * weight);
    });
    Ok(x)
}

/// Twin of [`crate::ops::add_bias`].
fn add_bias(x: Matrix, bias: &[f32]) -> Result<Matrix> {
    let mut x = x.into_rows();
    check_width("bias", bias.len(), x.n_features)?;
    x.data.par_chunks_mut(bias.len()).for_each(|row| {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    });
    Ok(x)
}

fn pairwise(a: Matrix, b: Matrix, what: &str, op: impl Fn(f32, f32) -> f32 + Sync) -> Result<Matrix> {
    let (mut a, b) = (a.into_rows(), b.into_rows());
    check_width(&format!("second operand of {what}"), b.data.len(), a.data.len())?;
    a.data.par_iter_mut().zip(&b.data).for_each(|(a, &b)| *a = op(*a, b));
    Ok(a)
}

fn check_width(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(ModelError::wrong_length(what, expected, found))
}
