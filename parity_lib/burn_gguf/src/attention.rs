//! Causal attention of rows against a key and value cache, through burn's matmul, exp, sum and div.
//!
//! Three steps, each callable by itself: [`scores`] (`kq`), [`soft_max`] (`kq_soft_max`) and [`weighted_values`]
//! (`kqv`). Query heads that share a key head are stacked as rows of one product, so keys and values are never repeated.
//!
//! Keys are padded with zeros to a multiple of [`KEY_PAD`]. A sum over keys groups its terms by their index only, and a
//! padded key has exactly the weight 0, so a row's bits depend neither on the rows beside it nor on whether later keys
//! exist: prefill equals decode bit for bit.

mod task;

use burn_tensor::activation::softmax;
use rayon::prelude::*;

use self::task::{gather_heads, place_all, scatter_heads, tasks, Gathered, Task};
use crate::backend::{tensor, values};
use crate::matrix::{transpose, Matrix};
use crate::model_error::{ModelError, Result};
use crate::ops::SoftMax;
use crate::tap::Tap;

/// Keys are padded to a multiple of this on every path. A multiple of 8, the width in which ndarray sums.
pub const KEY_PAD: usize = 32;

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
        let expected = "positive counts, and a whole number of query heads for each key head";
        Err(ModelError::out_of_range("heads", expected, format!("{self:?}")))
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
            return Err(ModelError::wrong_length("rows of q, k or v", rows.len(), found));
        }
        let n_seq = rows.iter().map(|(sequence, _)| sequence + 1).max().unwrap_or(0);
        if n_seq > rows.len() {
            let expected = format!("sequences 0 to {}, each with rows", rows.len().saturating_sub(1));
            return Err(ModelError::out_of_range("sequence", expected, n_seq - 1));
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
                return Err(ModelError::out_of_range(what, expected.to_string(), found));
            }
        }
        Ok(grouped)
    }
}

/// `kqv_out`: `(n, n_head * value)` by rows, for all sequences of a batch. `cache[sequence]` already holds these rows.
pub fn attention(
    q: &Matrix,
    batch: &[SequenceRows],
    cache: &[KeyValues],
    heads: Heads,
    scale: f32,
    soft_max: &SoftMax,
) -> Matrix {
    let tasks = tasks(batch, cache, heads);
    let attend = |task: &Task| {
        let Gathered { queries, keys, values, visible, n_keys } = task.gather(q, cache, heads);
        let weights = soft_max(&scores(queries, &keys, heads.key), n_keys, &visible, scale);
        weighted_values(weights, values, n_keys)
    };
    let results: Vec<Vec<f32>> = tasks.par_iter().with_max_len(1).map(attend).collect();
    place_all(q.n_positions, &tasks, heads, &results)
}

/// Given a step's name and result; what it returns takes the result's place.
pub type See<'a> = dyn FnMut(&'static str, Tap) -> Result<Option<Vec<f32>>> + 'a;

/// [`attention`] of one sequence, step by step: `see` is given each step's result for all query heads and may return
/// another one, which the next step then gets.
///
/// `kq` and `kq_soft_max` are `(n_head * n, n_keys)`, `kqv` is `(n_head * n, value)`, query heads outermost.
pub fn attention_observed(
    q: &Matrix,
    batch: &[SequenceRows],
    cache: &[KeyValues],
    heads: Heads,
    scale: f32,
    soft_max: &SoftMax,
    see: &mut See,
) -> Result<Matrix> {
    if batch.len() != 1 {
        return Err(ModelError::out_of_range("sequences of a pass whose attention is observed", "1", batch.len()));
    }
    let tasks = tasks(batch, cache, heads);
    let gathered: Vec<Gathered> = tasks.iter().map(|task| task.gather(q, cache, heads)).collect();
    let n_keys = gathered.iter().map(|task| task.n_keys).max().unwrap_or(0);
    let mut shown = |name: &'static str, results: Vec<Vec<f32>>, width: usize| -> Result<Vec<Vec<f32>>> {
        let widths: Vec<usize> = gathered.iter().map(|task| if name == "kqv" { width } else { task.n_keys }).collect();
        let whole = gather_heads(q.n_positions, &tasks, heads, &results, &widths, width);
        let shape = [heads.n_head * q.n_positions, width];
        let replaced = see(name, Tap { shape, data: whole })?;
        Ok(replaced.map_or(results, |whole| scatter_heads(q.n_positions, &tasks, heads, &whole, &widths, width)))
    };
    let kq = gathered.par_iter().map(|task| scores(task.queries.clone(), &task.keys, heads.key)).collect();
    let kq: Vec<Vec<f32>> = shown("kq", kq, n_keys)?;
    let pairs = kq.par_iter().zip(&gathered);
    let weights = pairs.map(|(kq, task)| soft_max(kq, task.n_keys, &task.visible, scale)).collect();
    let weights: Vec<Vec<f32>> = shown("kq_soft_max", weights, n_keys)?;
    let pairs = weights.into_par_iter().zip(&gathered);
    let kqv = pairs.map(|(weights, task)| weighted_values(weights, task.values.clone(), task.n_keys)).collect();
    let kqv = shown("kqv", kqv, heads.value)?;
    Ok(place_all(q.n_positions, &tasks, heads, &kqv))
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
