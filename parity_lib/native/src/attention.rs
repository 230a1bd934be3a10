//! Causal attention of rows against a key and value cache, through burn's matmul, exp, sum and div.
//!
//! Three steps, each callable by itself: [`scores`] (`kq`), [`soft_max`] (`kq_soft_max`) and [`weighted_values`]
//! (`kqv`). Query heads that share a key head are stacked as rows of one product, so keys and values are never repeated.
//!
//! Keys are padded with zeros to a multiple of [`KEY_PAD`]. A sum over keys groups its terms by their index only, and a
//! padded key has exactly the weight 0, so a row's bits depend neither on the rows beside it nor on whether later keys
//! exist: prefill equals decode bit for bit.

use burn_tensor::activation::softmax;
use rayon::prelude::*;

use crate::backend::{tensor, values};
use crate::matrix::{transpose, Matrix};
use crate::refusal::{Refusal, Result};

/// Keys are padded to a multiple of this on every path. A multiple of 8, the width in which ndarray sums.
pub const KEY_PAD: usize = 32;

/// Query positions of one task: enough for the product to be worth it, few enough that little is computed above the
/// diagonal.
const QUERY_BLOCK: usize = 64;

/// Head counts and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub n_head: usize,
    pub n_head_kv: usize,
    pub key: usize,
    pub value: usize,
}

impl Heads {
    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.n_head / self.n_head_kv
    }

    /// Refuse counts that do not fit together.
    pub fn check(&self) -> Result<()> {
        let positive = [self.n_head, self.n_head_kv, self.key, self.value].iter().all(|&n| n > 0);
        if positive && self.n_head.is_multiple_of(self.n_head_kv) {
            return Ok(());
        }
        Err(Refusal::OutOfRange {
            what: "heads".into(),
            expected: "positive counts, and a whole number of query heads for each key head".into(),
            found: format!("{self:?}"),
        })
    }
}

/// Keys and values of one sequence in one layer, a row for each position: `(n, n_head_kv * key)` and `.. * value`.
#[derive(Clone, Debug, Default)]
pub struct KeyValues {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

impl KeyValues {
    /// Append the rows of a pass, `(row, position)` in ascending position.
    pub fn store(&mut self, rows: &[(usize, usize)], k: &Matrix, v: &Matrix) {
        for &(row, _) in rows {
            self.keys.extend_from_slice(k.row(row));
            self.values.extend_from_slice(v.row(row));
        }
    }
}

/// Which rows of a matrix belong to which sequence: `(row, position)` in ascending position.
#[derive(Clone, Debug)]
pub struct SequenceRows {
    pub sequence: usize,
    pub rows: Vec<(usize, usize)>,
}

impl SequenceRows {
    /// Group rows `(sequence, position)` whose keys are all at hand: each sequence's positions are 0, 1, .. once.
    ///
    /// `counts` are the numbers of rows of the matrices that go with them.
    pub fn group(rows: &[(usize, usize)], counts: &[usize]) -> Result<Vec<SequenceRows>> {
        if let Some(&found) = counts.iter().find(|&&count| count != rows.len()) {
            return Err(Refusal::WrongLength { what: "rows of q, k or v".into(), expected: rows.len(), found });
        }
        let n_seq = rows.iter().map(|(sequence, _)| sequence + 1).max().unwrap_or(0);
        if n_seq > rows.len() {
            let expected = format!("sequences 0 to {}, each with rows", rows.len().saturating_sub(1));
            return Err(Refusal::OutOfRange { what: "sequence".into(), expected, found: (n_seq - 1).to_string() });
        }
        let mut grouped: Vec<SequenceRows> =
            (0..n_seq).map(|sequence| SequenceRows { sequence, rows: Vec::new() }).collect();
        for (row, &(sequence, position)) in rows.iter().enumerate() {
            grouped[sequence].rows.push((row, position));
        }
        for SequenceRows { sequence, rows } in &mut grouped {
            rows.sort_by_key(|(_, position)| *position);
            if let Some((expected, (_, found))) =
                rows.iter().enumerate().find(|(index, (_, position))| index != position)
            {
                let what = format!("positions of sequence {sequence}");
                return Err(Refusal::OutOfRange { what, expected: expected.to_string(), found: found.to_string() });
            }
        }
        Ok(grouped)
    }
}

/// `kqv_out`: `(n, n_head * value)` by rows, for all sequences of a batch. `cache[sequence]` already holds these rows.
pub fn attention(q: &Matrix, batch: &[SequenceRows], cache: &[KeyValues], heads: Heads, scale: f32) -> Matrix {
    let mut tasks = Vec::new();
    for sequence in batch {
        // A block also multiplies values that some of its rows do not see, with 0; but 0 times NaN is NaN.
        let finite = cache[sequence.sequence].values.iter().all(|value| value.is_finite());
        for block in sequence.rows.chunks(if finite { QUERY_BLOCK } else { 1 }) {
            tasks.extend((0..heads.n_head_kv).map(|kv| (sequence.sequence, block, kv)));
        }
    }
    let results: Vec<Vec<f32>> = tasks
        .par_iter()
        .with_max_len(1)
        .map(|&(sequence, block, kv)| attend(q, block, &cache[sequence], kv, heads, scale))
        .collect();
    let width = heads.n_head * heads.value;
    let mut out = Matrix::from_rows(q.n_positions, width, vec![0.0; q.n_positions * width]);
    for ((_, block, kv), result) in tasks.iter().zip(&results) {
        place(&mut out, block, *kv, heads, result);
    }
    out
}

/// One block of query positions against one key head: `(group * n, value)`, query heads outermost.
fn attend(q: &Matrix, block: &[(usize, usize)], cache: &KeyValues, kv: usize, heads: Heads, scale: f32) -> Vec<f32> {
    let visible: Vec<usize> = block.iter().map(|(_, position)| position + 1).collect();
    let n_keys = visible.last().map_or(0, |last| last.next_multiple_of(KEY_PAD));
    let known = visible.last().copied().unwrap_or(0);
    let keys = padded(&cache.keys, heads.n_head_kv * heads.key, kv * heads.key, heads.key, known, n_keys);
    let vals = padded(&cache.values, heads.n_head_kv * heads.value, kv * heads.value, heads.value, known, n_keys);
    let mut queries = Vec::with_capacity(heads.group() * block.len() * heads.key);
    for head in kv * heads.group()..(kv + 1) * heads.group() {
        for (row, _) in block {
            queries.extend_from_slice(&q.row(*row)[head * heads.key..][..heads.key]);
        }
    }
    let kq = scores(queries, &keys, heads.key);
    let weights = soft_max(&kq, n_keys, &visible, scale);
    weighted_values(weights, vals, n_keys)
}

/// The first `known` rows of one head of a cache, `(n_keys, width)`, the rest zeros.
fn padded(cache: &[f32], stride: usize, first: usize, width: usize, known: usize, n_keys: usize) -> Vec<f32> {
    let mut rows = vec![0.0f32; n_keys * width];
    for (row, source) in rows.chunks_exact_mut(width).zip(cache.chunks_exact(stride)).take(known) {
        row.copy_from_slice(&source[first..first + width]);
    }
    rows
}

/// `kq`: queries `(r, d)` times keys `(n, d)` transposed; unscaled, `(r, n)`.
pub fn scores(queries: Vec<f32>, keys: &[f32], d: usize) -> Vec<f32> {
    let (r, n) = (queries.len() / d, keys.len() / d);
    let keys = transpose(keys, n, d);
    values(tensor(queries, r, d).matmul(tensor(keys, d, n)))
}

/// `kq_soft_max`: burn's softmax of `scale * kq` over the keys that a row sees, 0 for the others; `(r, n_keys)`.
///
/// Row i sees the first `visible[i % visible.len()]` keys, and softmax gets exactly those: nothing is masked, so exp is
/// never asked for a value that only a mask made. (A polynomial exp without range check returns anything for -1e30, and
/// a mask would be blamed for it.) The query heads of one position are the rows of one call.
pub fn soft_max(kq: &[f32], n_keys: usize, visible: &[usize], scale: f32) -> Vec<f32> {
    let mut weights = vec![0.0f32; kq.len()];
    let group = kq.len() / n_keys / visible.len();
    let mut seen = Vec::new();
    for (index, &n) in visible.iter().enumerate() {
        let rows = (0..group).map(|head| (head * visible.len() + index) * n_keys);
        seen.clear();
        rows.clone().for_each(|start| seen.extend_from_slice(&kq[start..start + n]));
        let result = values(softmax(tensor(seen.clone(), group, n).mul_scalar(scale), 1));
        for (start, row) in rows.zip(result.chunks_exact(n)) {
            weights[start..start + n].copy_from_slice(row);
        }
    }
    weights
}

/// `kqv`: weights `(r, n)` times values `(n, d)`.
pub fn weighted_values(weights: Vec<f32>, vals: Vec<f32>, n: usize) -> Vec<f32> {
    let (r, d) = (weights.len() / n, vals.len() / n);
    values(tensor(weights, r, n).matmul(tensor(vals, n, d)))
}

/// Copy the result of one task to its rows and heads.
fn place(out: &mut Matrix, block: &[(usize, usize)], kv: usize, heads: Heads, result: &[f32]) {
    let mut lines = result.chunks_exact(heads.value);
    for head in kv * heads.group()..(kv + 1) * heads.group() {
        for ((row, _), line) in block.iter().zip(&mut lines) {
            out.row_mut(*row)[head * heads.value..][..heads.value].copy_from_slice(line);
        }
    }
}
