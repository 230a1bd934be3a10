//! The ops of a pass whose results are observed: every one is shown to the taps under its site.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::attention::{attention_observed, Heads, KeyValues, SequenceRows};
use crate::graph::{stepwise_gated, Fused, Ops, Projection};
use crate::matrix::Matrix;
use crate::model_error::Result;
use crate::rope::{Angles, Rope};
use crate::tap::{Site, Taps};
use crate::weight::Weight;

/// Other ops, each result passed through taps: the value itself goes on, or what an observer put in its place.
pub struct Tapped<'a, 't, O> {
    inner: &'a O,
    taps: Mutex<&'a mut Taps<'t>>,
}

impl<'a, 't, O: Ops> Tapped<'a, 't, O> {
    /// Show the results of `inner` to `taps`.
    pub fn new(inner: &'a O, taps: &'a mut Taps<'t>) -> Self {
        Self { inner, taps: Mutex::new(taps) }
    }

    fn taps(&self) -> MutexGuard<'_, &'a mut Taps<'t>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, at: Site, values: Matrix) -> Result<Matrix> {
        self.taps().pass(at, values)
    }
}

impl<O: Ops> Ops for Tapped<'_, '_, O> {
    fn fused(&self) -> Fused {
        self.inner.fused()
    }

    fn gated(&self, at: Site, gate: Projection, up: Projection, x: Matrix) -> Result<Matrix> {
        if self.fused().gated {
            self.show(at, self.inner.gated(at, gate, up, x)?)
        } else {
            stepwise_gated(self, at, gate, up, x)
        }
    }

    fn embed(&self, at: Site, table: &Weight, tokens: &[u32]) -> Result<Matrix> {
        self.show(at, self.inner.embed(at, table, tokens)?)
    }

    fn rms_norm(&self, at: Site, x: Matrix, weight: &[f32], eps: f32) -> Result<Matrix> {
        self.show(at, self.inner.rms_norm(at, x, weight, eps)?)
    }

    fn linear<const N: usize>(&self, at: [Site; N], weights: [Weight; N], x: Matrix) -> Result<[Matrix; N]> {
        let results = self.inner.linear(at, weights, x)?;
        let shown: Vec<Matrix> = at.into_iter().zip(results).map(|(at, y)| self.show(at, y)).collect::<Result<_>>()?;
        Ok(shown.try_into().expect("each site has one result"))
    }

    fn add_bias(&self, at: Site, x: Matrix, bias: &[f32]) -> Result<Matrix> {
        self.show(at, self.inner.add_bias(at, x, bias)?)
    }

    fn angles(&self, rope: &Rope, positions: &[usize]) -> Angles {
        self.inner.angles(rope, positions)
    }

    fn rope(&self, at: Site, x: Matrix, head: usize, angles: &Angles) -> Result<Matrix> {
        self.show(at, self.inner.rope(at, x, head, angles)?)
    }

    fn reshape(&self, at: Site, x: Matrix) -> Result<Matrix> {
        self.show(at, self.inner.reshape(at, x)?)
    }

    fn store(&self, block: usize, slots: &mut [KeyValues], batch: &[SequenceRows], k: &Matrix, v: &Matrix) {
        self.inner.store(block, slots, batch, k, v);
    }

    fn soft_max(&self, at: Site, kq: &[f32], n_keys: usize, visible: &[usize], scale: f32) -> Vec<f32> {
        self.inner.soft_max(at, kq, n_keys, visible, scale)
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
        let mut taps = self.taps();
        let kqv_out = if taps.observes_inside(at) && !self.inner.fused().attention {
            let soft_max =
                |kq: &[f32], n: usize, visible: &[usize], scale: f32| self.inner.soft_max(at, kq, n, visible, scale);
            let mut see = |name, tap| taps.see(&Site { name, ..at }.to_string(), tap);
            attention_observed(q, batch, slots, heads, scale, &soft_max, &mut see)?
        } else {
            self.inner.attention(at, q, batch, slots, heads, scale)?
        };
        taps.pass(at, kqv_out)
    }

    fn swiglu(&self, at: Site, gate: Matrix, up: Matrix) -> Result<Matrix> {
        self.show(at, self.inner.swiglu(at, gate, up)?)
    }

    fn add(&self, at: Site, a: Matrix, b: Matrix) -> Result<Matrix> {
        self.show(at, self.inner.add(at, a, b)?)
    }
}
