//! The fork's BF16 tile kernel by name, in the stacks `spine` and `spine-amx`. No op of burn reaches it.
//!
//! `bf16_tile_gemm_16x16` multiplies 16 rows with 16 columns; everything here is padding, order and rounding. In `spine`
//! it is called on request alone. In `spine-amx` it is the product of the policy `bf16`, and refused without tiles.

use half::bf16;
use ndarray::hpc::bf16_tile_gemm::bf16_tile_gemm_16x16;
use ndarray::simd::f32_to_bf16_batch;
use ndarray::simd_amx::{amx_available, amx_report};
use rayon::prelude::*;

use crate::matrix::Matrix;
use crate::model_error::Result;
use crate::quant;
use crate::weight::Weight;

/// Rows and columns of a tile.
const TILE: usize = 16;

/// The kernel wants whole groups of so many terms.
const TERMS: usize = 32;

/// `y_i = W_i x` in the policy `bf16`, on tiles. The kernel's own dispatch would take a fallback without a word.
#[cfg(tiles)]
pub fn linear_shared(weights: &[Weight], x: &Matrix) -> Result<Vec<Matrix>> {
    let (used, found) = report();
    if !used {
        return Err(crate::model_error::ModelError::NoTiles { found });
    }
    products(weights, x, false)
}

/// Every weight `(n, k)` times `x` `(m, k)`, which is stored by rows: `(m, n)` by columns.
///
/// Operands become BF16 before: to the nearest even value, or as the fork's own conversion does on this machine.
pub fn products(weights: &[Weight], x: &Matrix, own_rounding: bool) -> Result<Vec<Matrix>> {
    let (m, k) = (x.n_positions, x.n_features.next_multiple_of(TERMS));
    let right = padded(&x.data, x.n_features, k, own_rounding);
    let columns: Vec<Vec<u16>> = right.par_chunks_exact(TILE * k).map(|rows| transposed(rows, k)).collect();
    let product = |weight: &Weight| {
        let mut out = vec![0.0f32; weight.n_out * m];
        let bands = out.par_chunks_mut((TILE * m).max(1)).enumerate();
        bands.try_for_each(|(band, out)| multiply_band(weight, band * TILE, &columns, k, own_rounding, out))?;
        Ok(Matrix::from_columns(m, weight.n_out, out))
    };
    weights.iter().map(product).collect()
}

/// Whether the kernel would run on AMX tiles here, and the fork's own words about it.
///
/// The fork's dispatch asks for tiles and for INT8; the BF16 product is an extension of its own.
pub fn report() -> (bool, String) {
    (amx_available() && has_bf16_tiles(), amx_report())
}

#[cfg(target_arch = "x86_64")]
fn has_bf16_tiles() -> bool {
    std::arch::x86_64::__cpuid_count(7, 0).edx & (1 << 22) != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn has_bf16_tiles() -> bool {
    false
}

/// Rows `first ..` of a weight, as many as a tile has or are left, times all columns; `out` is `(rows, m)`.
fn multiply_band(
    weight: &Weight,
    first: usize,
    columns: &[Vec<u16>],
    k: usize,
    own_rounding: bool,
    out: &mut [f32],
) -> Result<()> {
    let n = TILE.min(weight.n_out - first);
    let m = out.len() / n;
    let mut rows = vec![0.0f32; n * weight.n_in];
    quant::dequantize(weight.ty, weight.rows(first, n), &mut rows)?;
    let rows = padded(&rows, weight.n_in, k, own_rounding);
    for (block, columns) in columns.iter().enumerate() {
        let (start, width) = (block * TILE, TILE.min(m - block * TILE));
        let mut tile = [0.0; TILE * TILE];
        bf16_tile_gemm_16x16(&rows, columns, &mut tile, k);
        for (out, values) in out.chunks_exact_mut(m).zip(tile.chunks_exact(TILE)) {
            out[start..start + width].copy_from_slice(&values[..width]);
        }
    }
    Ok(())
}

/// Rows of `width` in BF16, filled up with zeros to whole tiles of `k` terms.
fn padded(values: &[f32], width: usize, k: usize, own_rounding: bool) -> Vec<u16> {
    let mut rows = vec![0u16; (values.len() / width).next_multiple_of(TILE) * k];
    for (row, values) in rows.chunks_exact_mut(k).zip(values.chunks_exact(width)) {
        if own_rounding {
            f32_to_bf16_batch(values, &mut row[..width]);
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
