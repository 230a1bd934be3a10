//! A 2-D weight as it lies in the file: rows of blocks, and their shape.

use crate::model_error::{ModelError, Result};
use crate::quant::GgmlType;

/// `n_out` rows of `n_in` values, in blocks.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    pub ty: GgmlType,
    pub n_out: usize,
    pub n_in: usize,
    pub blocks: &'a [u8],
    /// A seeded fault: the low 16 bits of every dequantised value are cut off.
    #[cfg(feature = "faults")]
    pub truncated: bool,
}

impl<'a> Weight<'a> {
    /// Bind blocks to a shape; refuses bytes that are not exactly `n_out` rows.
    pub fn new(ty: GgmlType, n_out: usize, n_in: usize, blocks: &'a [u8]) -> Result<Self> {
        let row_bytes = n_in / ty.block_size() * ty.type_size();
        // A size that does not even fit a number is no size of these bytes.
        let expected = n_out.saturating_mul(row_bytes);
        if n_in == 0 || !n_in.is_multiple_of(ty.block_size()) || blocks.len() != expected {
            let what = format!("{} weight of {n_out} rows of {n_in}", ty.name());
            return Err(ModelError::wrong_length(what, expected, blocks.len()));
        }
        Ok(Self {
            ty,
            n_out,
            n_in,
            blocks,
            #[cfg(feature = "faults")]
            truncated: false,
        })
    }

    /// The blocks of rows `first .. first + n`.
    pub fn rows(&self, first: usize, n: usize) -> &'a [u8] {
        let row_bytes = self.n_in / self.ty.block_size() * self.ty.type_size();
        &self.blocks[first * row_bytes..][..n * row_bytes]
    }
}
