//! The fork's BF16 tile kernel by name; only in the stack `spine`. No op of burn reaches it.
//!
//! `bf16_tile_gemm_16x16` multiplies 16 rows with 16 columns; everything here is padding, order and rounding.

use half::bf16;
use ndarray::hpc::bf16_tile_gemm::bf16_tile_gemm_16x16;
use ndarray::simd::f32_to_bf16_batch;
use rayon::prelude::*;

use crate::matrix::Matrix;

/// Rows and columns of a tile.
const TILE: usize = 16;

/// The kernel wants whole groups of so many terms.
const TERMS: usize = 32;

/// `weights` `(n, k)` times `x` `(m, k)`: `(m, n)` by rows.
///
/// Operands become BF16 before: to the nearest even value, or as the fork's own conversion does on this machine.
pub fn multiply(weights: &Matrix, x: &Matrix, own_rounding: bool) -> Matrix {
    let (n, m, k) = (weights.n_positions, x.n_positions, weights.n_features.next_multiple_of(TERMS));
    let rounded = |source: &Matrix| padded(source, k, own_rounding);
    let (left, right) = (rounded(weights), rounded(x));
    let columns: Vec<Vec<u16>> = right.chunks_exact(TILE * k).map(|rows| transposed(rows, k)).collect();
    let mut out = vec![0.0f32; m * n];
    let bands: Vec<Vec<f32>> = left
        .par_chunks_exact(TILE * k)
        .map(|rows| columns.iter().flat_map(|columns| tile(rows, columns, k)).collect())
        .collect();
    for (band, values) in bands.iter().enumerate() {
        for (block, tile) in values.chunks_exact(TILE * TILE).enumerate() {
            for (index, value) in tile.iter().enumerate() {
                let (row, column) = (band * TILE + index / TILE, block * TILE + index % TILE);
                if row < n && column < m {
                    out[column * n + row] = *value;
                }
            }
        }
    }
    Matrix::from_rows(m, n, out)
}

/// Whether the kernel would run on AMX tiles here, and the fork's own words about it.
pub fn report() -> (bool, String) {
    (ndarray::simd_amx::amx_available(), ndarray::simd_amx::amx_report())
}

fn tile(rows: &[u16], columns: &[u16], k: usize) -> [f32; TILE * TILE] {
    let mut tile = [0.0; TILE * TILE];
    bf16_tile_gemm_16x16(rows, columns, &mut tile, k);
    tile
}

/// Rows in BF16, filled up with zeros to whole tiles of `k` terms.
fn padded(source: &Matrix, k: usize, own_rounding: bool) -> Vec<u16> {
    let mut rows = vec![0u16; source.n_positions.next_multiple_of(TILE) * k];
    for (index, row) in rows.chunks_exact_mut(k).take(source.n_positions).enumerate() {
        let values = source.row(index);
        if own_rounding {
            f32_to_bf16_batch(values, &mut row[..values.len()]);
        } else {
            row.iter_mut().zip(values).for_each(|(out, value)| *out = bf16::from_f32(*value).to_bits());
        }
    }
    rows
}

/// 16 rows of `k` as `k` rows of 16.
fn transposed(rows: &[u16], k: usize) -> Vec<u16> {
    let mut columns = vec![0u16; rows.len()];
    for (index, value) in rows.iter().enumerate() {
        columns[index % k * TILE + index / k] = *value;
    }
    columns
}
