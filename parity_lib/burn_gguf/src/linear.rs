//! `linear(blocks, activations, policy)`: a quantised weight times activations, through burn's matmul.
//!
//! Weights are dequantised in panels of rows and are the *left* operand as they lie in the file:
//! `panel [n_tile, k] x activations^T [k, m]`. No weight is ever transposed, no model ever lies in memory as f32, and
//! the activations are transposed once for all weights that read them. Each thread dequantises its own next panel while
//! the others multiply. burn itself runs single-threaded inside a panel: the split is over weight rows only, so no sum
//! is ever cut differently and the bits do not depend on the number of threads or of positions.

use crate::activation;
use crate::matrix::Matrix;
use crate::model_error::{ModelError, Result};
use crate::operand::{Operand, OperandKind};
use crate::panel::{multiply, Target};
use crate::weight::Weight;

/// Arithmetic of the weight matmuls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Dequantised weights times activations as they are.
    F32,
    /// Both operands rounded to BF16 (nearest even), accumulation in f32.
    Bf16,
    /// The reference's arithmetic: activations go through the quantiser that ggml pairs with the weight's type.
    Ggml,
}

impl Policy {
    /// All policies, by the names that the command line uses.
    pub const NAMES: [(&'static str, Policy); 3] =
        [("f32", Policy::F32), ("bf16", Policy::Bf16), ("ggml", Policy::Ggml)];

    /// The policy of that name.
    pub fn parse(name: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, policy)| *policy).ok_or_else(|| ModelError::UnknownOption {
            option: "policy",
            expected: "f32, bf16 or ggml".into(),
            found: name.into(),
        })
    }

    /// The name that the command line uses.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, policy)| *policy == self).map_or("", |(name, _)| name)
    }
}

/// `y = W x` for one weight. `x` is `(m, n_in)` in any layout; the result is `(m, n_out)` by columns.
pub fn linear(weight: &Weight, x: Matrix, policy: Policy) -> Result<Matrix> {
    Ok(linear_shared(std::slice::from_ref(weight), x, policy)?.remove(0))
}

/// `y_i = W_i x` for weights that read the same activations (q, k, v; gate, up): `x` is transposed once for all.
pub fn linear_shared(weights: &[Weight], x: Matrix, policy: Policy) -> Result<Vec<Matrix>> {
    for weight in weights {
        if weight.n_in != x.n_features {
            return Err(ModelError::wrong_length("activations of a linear", weight.n_in, x.n_features));
        }
    }
    #[cfg(tiles)]
    if policy == Policy::Bf16 {
        return crate::tile::linear_shared(weights, &x.into_rows());
    }
    let m = x.n_positions;
    let mut outputs: Vec<Vec<f32>> = weights.iter().map(|weight| vec![0.0; weight.n_out * m]).collect();
    let mut rest = Some(x);
    for (operand_kind, members) in by_operand(weights, policy) {
        let last = members.last() == Some(&(weights.len() - 1));
        let x = if last { rest.take() } else { rest.clone() };
        let Some(x) = x else { break };
        let operand = Operand::new(x, operand_kind)?;
        let mut targets: Vec<Target> = Vec::new();
        for (index, output) in outputs.iter_mut().enumerate() {
            if members.contains(&index) {
                targets.push(Target { weight: weights[index], rows: output });
            }
        }
        multiply(targets, &operand)?;
    }
    let wrap = |(weight, data): (&Weight, Vec<f32>)| Matrix::from_columns(m, weight.n_out, data);
    Ok(weights.iter().zip(outputs).map(wrap).collect())
}

/// Group weights by the operand that they need; in the order of their last member.
fn by_operand(weights: &[Weight], policy: Policy) -> Vec<(OperandKind, Vec<usize>)> {
    let mut groups: Vec<(OperandKind, Vec<usize>)> = Vec::new();
    for (index, weight) in weights.iter().enumerate() {
        let kind = match policy {
            Policy::F32 => OperandKind::Plain,
            Policy::Bf16 => OperandKind::Bf16,
            Policy::Ggml => OperandKind::Ggml(activation::vec_dot_type(weight.ty)),
        };
        match groups.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, members)) => members.push(index),
            None => groups.push((kind, vec![index])),
        }
    }
    groups.sort_by_key(|(_, members)| members.last().copied());
    groups
}
