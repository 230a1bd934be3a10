//! The pieces of attention: which queries meet which keys in one product, and where their results go.

use super::{Heads, KeyValues, SequenceRows, KEY_PAD};
use crate::matrix::Matrix;

/// Query positions of one task: enough for the product to be worth it, few enough that little is computed above the
/// diagonal.
const QUERY_BLOCK: usize = 64;

/// One block of query positions against one key head.
pub struct Task<'a> {
    sequence: usize,
    block: &'a [(usize, usize)],
    kv: usize,
}

/// What a task needs, cut out of the cache: queries `(group * n, key)`, keys and values of one head, padded.
pub struct Gathered {
    pub queries: Vec<f32>,
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
    pub visible: Vec<usize>,
    pub n_keys: usize,
}

/// Every task of a pass.
pub fn tasks<'a>(batch: &'a [SequenceRows], cache: &[KeyValues], heads: Heads) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    for SequenceRows { sequence, rows } in batch {
        // A block also multiplies values that some of its rows do not see, with 0; but 0 times NaN is NaN.
        let finite = cache[*sequence].values.iter().all(|value| value.is_finite());
        for block in rows.chunks(if finite { QUERY_BLOCK } else { 1 }) {
            tasks.extend((0..heads.n_head_kv).map(|kv| Task { sequence: *sequence, block, kv }));
        }
    }
    tasks
}

impl Task<'_> {
    /// Cut out what this task needs.
    pub fn gather(&self, q: &Matrix, cache: &[KeyValues], heads: Heads) -> Gathered {
        let cache = &cache[self.sequence];
        let visible: Vec<usize> = self.block.iter().map(|(_, position)| position + 1).collect();
        let known = visible.last().copied().unwrap_or(0);
        let n_keys = known.next_multiple_of(KEY_PAD);
        let (key, value) = (heads.key, heads.value);
        let keys = padded(&cache.keys, heads.n_head_kv * key, self.kv * key, key, known, n_keys);
        let values = padded(&cache.values, heads.n_head_kv * value, self.kv * value, value, known, n_keys);
        let mut queries = Vec::with_capacity(heads.group() * self.block.len() * key);
        for head in self.heads(heads) {
            for (row, _) in self.block {
                queries.extend_from_slice(&q.row(*row)[head * key..][..key]);
            }
        }
        Gathered { queries, keys, values, visible, n_keys }
    }

    /// The query heads that share this task's key head.
    fn heads(&self, heads: Heads) -> std::ops::Range<usize> {
        self.kv * heads.group()..(self.kv + 1) * heads.group()
    }

    /// Where each line of this task's result stands in a matrix with the rows of one head after those of another.
    fn lines(&self, n_rows: usize, heads: Heads) -> impl Iterator<Item = usize> + '_ {
        self.heads(heads).flat_map(move |head| self.block.iter().map(move |(row, _)| head * n_rows + row))
    }
}

/// Put the results of all tasks, each `widths[task]` wide, into one matrix `(n_head * n_rows, width)`; the rest zeros.
pub fn gather_heads(
    n_rows: usize,
    tasks: &[Task],
    heads: Heads,
    results: &[Vec<f32>],
    widths: &[usize],
    width: usize,
) -> Vec<f32> {
    let mut whole = vec![0.0; heads.n_head * n_rows * width];
    for ((task, result), &n) in tasks.iter().zip(results).zip(widths) {
        for (line, values) in task.lines(n_rows, heads).zip(result.chunks_exact(n)) {
            whole[line * width..][..n].copy_from_slice(values);
        }
    }
    whole
}

/// The reverse of [`gather_heads`].
pub fn scatter_heads(
    n_rows: usize,
    tasks: &[Task],
    heads: Heads,
    whole: &[f32],
    widths: &[usize],
    width: usize,
) -> Vec<Vec<f32>> {
    let cut = |(task, &n): (&Task, &usize)| {
        task.lines(n_rows, heads).flat_map(|line| &whole[line * width..][..n]).copied().collect()
    };
    tasks.iter().zip(widths).map(cut).collect()
}

/// The first `known` rows of one head of a cache, `(n_keys, width)`, the rest zeros.
fn padded(cache: &[f32], stride: usize, first: usize, width: usize, known: usize, n_keys: usize) -> Vec<f32> {
    let mut rows = vec![0.0f32; n_keys * width];
    for (row, source) in rows.chunks_exact_mut(width).zip(cache.chunks_exact(stride)).take(known) {
        row.copy_from_slice(&source[first..first + width]);
    }
    rows
}

/// The results of all tasks side by side: `(n_rows, n_head * value)`.
pub fn place_all(n_rows: usize, tasks: &[Task], heads: Heads, results: &[Vec<f32>]) -> Matrix {
    let width = heads.n_head * heads.value;
    let mut out = Matrix::from_rows(n_rows, width, vec![0.0; n_rows * width]);
    for (task, result) in tasks.iter().zip(results) {
        let mut lines = result.chunks_exact(heads.value);
        for head in task.heads(heads) {
            for ((row, _), line) in task.block.iter().zip(&mut lines) {
                out.row_mut(*row)[head * heads.value..][..heads.value].copy_from_slice(line);
            }
        }
    }
    out
}
