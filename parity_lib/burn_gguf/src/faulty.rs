//! The ops with one seeded fault in them: what goes into an op or comes out of it is changed, the ops are the same.
//!
//! In builds with the feature `faults` only. Without a fault every op gets and returns what it would without this
//! wrapper.

use crate::attention::{Heads, KeyValues, SequenceRows};
use crate::facts::Facts;
use crate::fault::{Fault, Kind};
use crate::graph::{stepwise_attention, stepwise_gated, Fused, Ops, Projection};
use crate::matrix::Matrix;
use crate::model_error::Result;
use crate::rope::{Angles, Pairing, Rope};
use crate::tap::Site;
use crate::weight::Weight;

/// Other ops, and the fault that is put into them.
#[derive(Clone, Debug)]
pub struct FaultyOps<O> {
    inner: O,
    fault: Option<Fault>,
    /// Width of a key head.
    key_length: usize,
    /// The block after which a process dies.
    middle: usize,
}

impl<O: Ops> FaultyOps<O> {
    /// Put a fault into the ops of a model.
    pub fn new(inner: O, fault: Option<Fault>, facts: &Facts) -> Self {
        Self { inner, fault, key_length: facts.key_length, middle: facts.n_layer / 2 }
    }

    /// Rows of some sequences of a scoring, the first of them number `first`: one may lose its last row.
    pub fn kept(&self, mut rows: Vec<Vec<usize>>, first: usize) -> Vec<Vec<usize>> {
        if let Some(&Kind::DropRow(sequence)) = self.kind() {
            if let Some(rows) = sequence.checked_sub(first).and_then(|index| rows.get_mut(index)) {
                rows.pop();
            }
        }
        rows
    }

    fn kind(&self) -> Option<&Kind> {
        self.fault.as_ref().map(|fault| &fault.kind)
    }

    /// The kind of the fault, if it is in the block of a site.
    fn kind_at(&self, block: Option<usize>) -> Option<&Kind> {
        self.fault.as_ref().filter(|fault| fault.is_in(block)).map(|fault| &fault.kind)
    }

    /// The scale of the scores of a block.
    fn scaled(&self, at: Site, scale: f32) -> f32 {
        match self.kind_at(at.block) {
            Some(&Kind::SoftmaxScale(factor)) => scale * factor,
            _ => scale,
        }
    }

    /// Neighbouring values of key head 0, swapped.
    fn permuted(&self, k: Matrix) -> Matrix {
        let mut k = k.into_rows();
        for position in 0..k.n_positions {
            k.row_mut(position)[..self.key_length].chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        }
        k
    }
}

impl<O: Ops> Ops for FaultyOps<O> {
    fn fused(&self) -> Fused {
        self.inner.fused()
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
            self.inner.attention(at, q, batch, slots, heads, self.scaled(at, scale))
        } else {
            stepwise_attention(self, at, q, batch, slots, heads, scale)
        }
    }

    fn gated(&self, at: Site, gate: Projection, up: Projection, x: Matrix) -> Result<Matrix> {
        if !self.fused().gated {
            return stepwise_gated(self, at, gate, up, x);
        }
        let kept = |site: &str, bias| match self.kind_at(at.block) {
            Some(&Kind::DroppedBias(dropped)) if site == dropped => None,
            _ => bias,
        };
        let gate = Projection { bias: kept("ffn_gate.ADD", gate.bias), ..gate };
        let up = Projection { bias: kept("ffn_up.ADD", up.bias), ..up };
        match self.kind_at(at.block) {
            Some(Kind::SwapGateUp) => self.inner.gated(at, up, gate, x),
            _ => self.inner.gated(at, gate, up, x),
        }
    }

    fn embed(&self, at: Site, table: &Weight, tokens: &[u32]) -> Result<Matrix> {
        let mut tokens = tokens.to_vec();
        if let Some(&Kind::TokenOff(row)) = self.kind() {
            if let Some(token) = tokens.get_mut(row) {
                *token = (*token + 1) % table.n_out as u32;
            }
        }
        self.inner.embed(at, table, &tokens)
    }

    fn rms_norm(&self, at: Site, x: Matrix, weight: &[f32], eps: f32) -> Result<Matrix> {
        match self.kind() {
            Some(&Kind::EpsTimes10(wanted)) if wanted.is_none() || wanted == at.block => {
                self.inner.rms_norm(at, x, weight, eps * 10.0)
            }
            Some(&Kind::NormWeight1Pct(block)) if at == Site::block("attn_norm", block) => {
                let mut weight = weight.to_vec();
                // The middle one: no special place.
                let middle = weight.len() / 2;
                weight[middle] *= 1.01;
                self.inner.rms_norm(at, x, &weight, eps)
            }
            _ => self.inner.rms_norm(at, x, weight, eps),
        }
    }

    fn linear<const N: usize>(&self, at: [Site; N], weights: [Weight; N], x: Matrix) -> Result<[Matrix; N]> {
        let truncated = self.kind() == Some(&Kind::Bf16Truncation);
        let results = self.inner.linear(at, weights.map(|weight| Weight { truncated, ..weight }), x)?;
        let Some(&Kind::KHeadPermuted(block)) = self.kind() else { return Ok(results) };
        let mut sites = at.into_iter();
        Ok(results.map(|result| match sites.next() {
            Some(at) if at == Site::block("Kcur.MUL_MAT", block) => self.permuted(result),
            _ => result,
        }))
    }

    fn add_bias(&self, at: Site, x: Matrix, bias: &[f32]) -> Result<Matrix> {
        match self.kind_at(at.block) {
            Some(&Kind::DroppedBias(site)) if site == at.name => Ok(x),
            _ => self.inner.add_bias(at, x, bias),
        }
    }

    fn angles(&self, rope: &Rope, positions: &[usize]) -> Angles {
        let mut rope = rope.clone();
        let mut positions = positions.to_vec();
        match self.kind() {
            Some(&Kind::RopeBase(base)) => rope.base = base,
            Some(&Kind::RopeOffByOne(from)) => {
                positions.iter_mut().filter(|position| **position >= from).for_each(|position| *position += 1);
            }
            Some(Kind::SwappedPairing) => {
                rope.pairing = match rope.pairing {
                    Pairing::Adjacent => Pairing::Halves,
                    Pairing::Halves => Pairing::Adjacent,
                }
            }
            _ => {}
        }
        self.inner.angles(&rope, &positions)
    }

    fn rope(&self, at: Site, x: Matrix, head: usize, angles: &Angles) -> Result<Matrix> {
        self.inner.rope(at, x, head, angles)
    }

    fn reshape(&self, at: Site, x: Matrix) -> Result<Matrix> {
        self.inner.reshape(at, x)
    }

    /// The stale key: position 1's is put back into the slot of position 2, if these rows have just written it.
    fn store(&self, block: usize, slots: &mut [KeyValues], batch: &[SequenceRows], k: &Matrix, v: &Matrix) {
        self.inner.store(block, slots, batch, k, v);
        if self.kind_at(Some(block)) != Some(&Kind::KvSlotStale) {
            return;
        }
        let width = k.n_features;
        for SequenceRows { sequence, rows } in batch {
            if rows.iter().any(|(_, position)| *position == 2) {
                slots[*sequence].keys.copy_within(width..2 * width, 2 * width);
            }
        }
    }

    fn soft_max(&self, at: Site, kq: &[f32], n_keys: usize, visible: &[usize], scale: f32) -> Vec<f32> {
        self.inner.soft_max(at, kq, n_keys, visible, self.scaled(at, scale))
    }

    fn swiglu(&self, at: Site, gate: Matrix, up: Matrix) -> Result<Matrix> {
        match self.kind_at(at.block) {
            Some(Kind::SwapGateUp) => self.inner.swiglu(at, up, gate),
            _ => self.inner.swiglu(at, gate, up),
        }
    }

    fn add(&self, at: Site, a: Matrix, b: Matrix) -> Result<Matrix> {
        let mut sum = self.inner.add(at, a, b)?;
        match self.kind() {
            Some(&Kind::Nan(block)) if at == Site::block("l_out", block) => {
                if let Some(last) = sum.data.last_mut() {
                    *last = f32::NAN;
                }
            }
            Some(Kind::Die) if at == Site::block("l_out", self.middle) => std::process::abort(),
            Some(Kind::Panic) if at == Site::block("l_out", self.middle) => panic!("seeded fault"),
            _ => {}
        }
        Ok(sum)
    }
}
