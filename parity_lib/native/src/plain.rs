//! Plain twins of burn's ops, to find out which of them a wrong result comes from.
//!
//! A run may name ops that are computed here in scalar code instead of by the stack under test: if the model is right
//! with one op replaced and wrong with it, that op is the reason. A run with replaced ops says so in its facts, and is
//! never a verdict about the stack.

use rayon::prelude::*;

use crate::attention;
use crate::matrix::Matrix;
use crate::ops;
use crate::refusal::{Refusal, Result};

/// Softmax of attention: scores `(r, n_keys)`, number of keys, visible keys of each row, scale.
pub type SoftMax = fn(&[f32], usize, &[usize], f32) -> Vec<f32>;

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
    replaced: [bool; PLAIN.len()],
}

impl Plain {
    /// Read a list of names; refuses what is not in [`PLAIN`].
    pub fn parse(names: &[String]) -> Result<Self> {
        let mut plain = Self::default();
        for name in names {
            let found = PLAIN.iter().position(|(known, _)| known == name).ok_or_else(|| Refusal::UnknownOption {
                option: "plain",
                expected: PLAIN.map(|(known, _)| known).join(", "),
                found: name.clone(),
            })?;
            plain.replaced[found] = true;
        }
        Ok(plain)
    }

    /// The names of what is replaced.
    pub fn names(&self) -> Vec<&'static str> {
        PLAIN.iter().zip(self.replaced).filter(|(_, replaced)| *replaced).map(|((name, _), _)| *name).collect()
    }

    fn has(&self, wanted: &str) -> bool {
        self.names().contains(&wanted)
    }

    /// The softmax of attention.
    pub fn soft_max(&self) -> SoftMax {
        if self.has("soft_max") {
            soft_max
        } else {
            attention::soft_max
        }
    }

    /// [`ops::rms_norm`], or its twin.
    pub fn rms_norm(&self, x: Matrix, weight: &[f32], eps: f32) -> Result<Matrix> {
        if self.has("rms_norm") {
            rms_norm(x, weight, eps)
        } else {
            ops::rms_norm(x, weight, eps)
        }
    }

    /// [`ops::swiglu`], or its twin.
    pub fn swiglu(&self, gate: Matrix, up: Matrix) -> Result<Matrix> {
        if self.has("swiglu") {
            pairwise(gate, up, "swiglu", |gate, up| gate / (1.0 + (-gate).exp()) * up)
        } else {
            ops::swiglu(gate, up)
        }
    }

    /// [`ops::add`], or its twin.
    pub fn add(&self, a: Matrix, b: Matrix) -> Result<Matrix> {
        if self.has("add") {
            pairwise(a, b, "add", |a, b| a + b)
        } else {
            ops::add(a, b)
        }
    }

    /// [`ops::add_bias`], or its twin.
    pub fn add_bias(&self, x: Matrix, bias: &[f32]) -> Result<Matrix> {
        if !self.has("add") {
            return ops::add_bias(x, bias);
        }
        let mut x = x.into_rows();
        check_width("bias", bias.len(), x.n_features)?;
        x.data.par_chunks_mut(bias.len()).for_each(|row| {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        });
        Ok(x)
    }
}

/// Twin of [`attention::soft_max`]: exp in f32, summed in f64, as the reference sums.
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

/// Twin of [`ops::rms_norm`]: the squares summed in f64.
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
    Err(Refusal::WrongLength { what: what.into(), expected, found })
}
