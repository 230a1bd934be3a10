//! The left operand of a weight matmul: panels of dequantised rows, multiplied one by one and dropped.

use rayon::prelude::*;

use crate::activation::{self, ActivationKind};
use crate::backend::{tensor, values};
use crate::model_error::Result;
use crate::operand::{Operand, OperandKind};
use crate::quant;
use crate::weight::Weight;

/// Bytes of one dequantised panel: small enough that reused buffers stay mapped, large enough that packing the right
/// operand is paid back.
const PANEL_BYTES: usize = 8 << 20;

/// Fewer rows in a panel than this and copying and packing the right operand costs more than the product.
const PANEL_ROWS_MIN: usize = 256;

/// One weight and where its product goes, `(n_out, m)`.
pub struct Target<'a, 'o> {
    pub weight: Weight<'a>,
    pub rows: &'o mut [f32],
}

/// A run of rows of one weight inside a panel.
struct Stretch<'a, 'o> {
    weight: Weight<'a>,
    first: usize,
    n: usize,
    out: &'o mut [f32],
}

/// Multiply every weight of a group, panel by panel, in parallel.
pub fn multiply(targets: Vec<Target>, operand: &Operand) -> Result<()> {
    if operand.m == 0 {
        return Ok(());
    }
    let total: usize = targets.iter().map(|target| target.weight.n_out).sum();
    let rows = panel_rows(total, operand.k, rayon::current_num_threads());
    let panels = cut(targets, rows, operand.m);
    panels.into_par_iter().with_max_len(1).try_for_each(|panel| multiply_panel(panel, operand))
}

/// Rows of a panel: all panels alike, a multiple of the threads, none above the byte limit or (nearly) below the minimum.
fn panel_rows(total: usize, k: usize, n_threads: usize) -> usize {
    let limit = (PANEL_BYTES / (4 * k.max(1))).max(16);
    let rounds = total.div_ceil(limit * n_threads).max(1);
    let even = total.div_ceil(rounds * n_threads);
    even.max(PANEL_ROWS_MIN.min(limit)).next_multiple_of(16)
}

/// Cut the concatenated rows of all targets into panels; a panel may hold rows of several weights.
fn cut<'a, 'o>(targets: Vec<Target<'a, 'o>>, rows: usize, m: usize) -> Vec<Vec<Stretch<'a, 'o>>> {
    let mut panels: Vec<Vec<Stretch>> = vec![Vec::new()];
    let mut room = rows;
    for target in targets {
        let (mut first, mut out) = (0, target.rows);
        while first < target.weight.n_out {
            if room == 0 {
                panels.push(Vec::new());
                room = rows;
            }
            let n = room.min(target.weight.n_out - first);
            let (head, tail) = out.split_at_mut(n * m);
            if let Some(panel) = panels.last_mut() {
                panel.push(Stretch { weight: target.weight, first, n, out: head });
            }
            (first, out, room) = (first + n, tail, room - n);
        }
    }
    panels
}

/// Dequantise one panel and multiply it with every block of columns.
fn multiply_panel(mut panel: Vec<Stretch>, operand: &Operand) -> Result<()> {
    let n: usize = panel.iter().map(|stretch| stretch.n).sum();
    let mut weights = vec![0.0f32; n * operand.k];
    let mut rest = weights.as_mut_slice();
    for stretch in &panel {
        let (head, tail) = rest.split_at_mut(stretch.n * operand.k);
        dequantize_rows(stretch, operand.kind, head)?;
        rest = tail;
    }
    let mut left = Some(tensor(weights, n, operand.k));
    let n_blocks = operand.blocks.len();
    for (index, (first, width, right)) in operand.blocks.iter().enumerate() {
        let panel_operand = if index + 1 == n_blocks { left.take() } else { left.clone() };
        let Some(panel_operand) = panel_operand else { break };
        let product = values(panel_operand.matmul(right.clone()));
        scatter(&product, &mut panel, *first, *width, operand.m);
    }
    Ok(())
}

/// Copy a product `(rows of the panel, width)` to columns `first ..` of each stretch's output.
fn scatter(product: &[f32], panel: &mut [Stretch], first: usize, width: usize, m: usize) {
    let mut lines = product.chunks_exact(width);
    for stretch in panel {
        for (out, line) in stretch.out.chunks_exact_mut(m).zip(&mut lines) {
            out[first..first + width].copy_from_slice(line);
        }
    }
}

/// Fill the rows of one stretch of a panel, `(n, k)`, k as the operand has it.
fn dequantize_rows(stretch: &Stretch, kind: OperandKind, rows: &mut [f32]) -> Result<()> {
    let Weight { ty, n_in, .. } = stretch.weight;
    let blocks = stretch.weight.rows(stretch.first, stretch.n);
    match kind {
        OperandKind::Ggml(ActivationKind::Q8_1) => {
            let k = rows.len() / stretch.n;
            for (index, row) in rows.chunks_exact_mut(k).enumerate() {
                let blocks = stretch.weight.rows(stretch.first + index, 1);
                let (values, minimums) = row.split_at_mut(n_in);
                quant::dequantize(ty, blocks, values)?;
                quant::minimums(ty, blocks, minimums)?;
            }
        }
        OperandKind::Bf16 => {
            quant::dequantize(ty, blocks, rows)?;
            activation::round_bf16(rows);
        }
        OperandKind::Plain | OperandKind::Ggml(_) => quant::dequantize(ty, blocks, rows)?,
    }
    #[cfg(feature = "faults")]
    if stretch.weight.truncated {
        rows.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits() & 0xffff_0000));
    }
    Ok(())
}
