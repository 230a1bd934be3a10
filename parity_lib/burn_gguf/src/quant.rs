//! Quantised blocks to f32, bit for bit as `gguf.dequantize` of gguf-py does.
//!
//! Two versions of everything: [`dequantize_scalar`], one value at a time and easy to check against the format, and
//! [`dequantize`], which fills panels for the matmuls. Every product of a scale and a code has at most 24
//! significant bits, so it is exact in f32 and only the addition of a minimum rounds.
//!
//! Formats and formulas: `gguf-py/gguf/quants.py` and `ggml/src/ggml-common.h`, llama.cpp 0c1e5709.

mod fast;
mod scalar;
mod types;

pub use self::types::{Foreign, GgmlType};

use crate::file_error::{FileError, Result};

/// Dequantises whole blocks, fast: vectorised, with AVX2 where the processor has it.
///
/// `bytes` are the blocks of any number of rows, `out` has one value for each that they hold.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    check_lengths(ty, bytes, out.len())?;
    fast::dequantize(ty, bytes, out);
    Ok(())
}

/// Dequantises whole blocks one value at a time; the same bits as [`dequantize`].
pub fn dequantize_scalar(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    check_lengths(ty, bytes, out.len())?;
    let blocks = bytes.chunks_exact(ty.type_size());
    for (block, values) in blocks.zip(out.chunks_exact_mut(ty.block_size())) {
        for (i, value) in values.iter_mut().enumerate() {
            *value = scalar::value(ty, block, i);
        }
    }
    Ok(())
}

/// The minimum of each block, as f32; only Q4_1 and Q5_1 have one (K-quants have eight to a block).
///
/// The matmul of the reference multiplies it with the rounded sum of a Q8_1 block instead of with its codes.
pub fn minimums(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    if !matches!(ty, GgmlType::Q4_1 | GgmlType::Q5_1) {
        return Err(FileError::NoMinimum { ty: ty.name() });
    }
    check_lengths(ty, bytes, out.len().saturating_mul(ty.block_size()))?;
    for (block, minimum) in bytes.chunks_exact(ty.type_size()).zip(out) {
        *minimum = scalar::half_at(block, 2);
    }
    Ok(())
}

fn check_lengths(ty: GgmlType, bytes: &[u8], n_out: usize) -> Result<()> {
    if !bytes.len().is_multiple_of(ty.type_size()) {
        let (expected, found) = (ty.type_size(), bytes.len());
        return Err(FileError::BlockBytes { ty: ty.name(), expected, found });
    }
    let n_values = bytes.len() / ty.type_size() * ty.block_size();
    if n_values != n_out {
        return Err(FileError::OutputLength { ty: ty.name(), expected: n_values, found: n_out });
    }
    Ok(())
}
