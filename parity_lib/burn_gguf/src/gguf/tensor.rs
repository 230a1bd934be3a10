//! The tensor list: what each tensor is called, how it is laid out, and that its bytes are its own.

use std::collections::HashSet;
use std::path::Path;

use super::cursor::Cursor;
use crate::file_error::{FileError, Result};
use crate::quant::{Foreign, GgmlType};

/// Bytes of the shortest entry of the list: length of the name, number of dimensions, type, offset.
pub(super) const SMALLEST_ENTRY: u64 = 8 + 4 + 4 + 8;

/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;

/// ggml counts elements and bytes in signed 64-bit numbers.
const MAX_COUNT: u64 = i64::MAX as u64;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the file, `blk.0.attn_q.weight`.
    pub name: String,
    /// How the values are stored.
    pub ty: GgmlType,
    /// ggml's order, fastest first: `dims[0]` is the length of a row. No dimension means one element.
    pub dims: Vec<u64>,
    /// Bytes from the start of the data section, as it stands in the file.
    pub offset: u64,
    /// Bytes of all rows.
    pub n_bytes: u64,
}

impl TensorInfo {
    /// Values in a row.
    pub fn row_len(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Rows, over all further dimensions.
    pub fn n_rows(&self) -> u64 {
        self.dims.iter().skip(1).product() // cannot overflow: checked when the file was opened
    }

    /// Values in the tensor.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product() // as above
    }

    /// Bytes of one row, a whole number of blocks.
    pub fn row_bytes(&self) -> u64 {
        self.row_len() / self.ty.block_size() as u64 * self.ty.type_size() as u64
    }
}

/// Reads `count` entries, each checked by itself.
pub(super) fn read_list(file: &Path, cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<TensorInfo>> {
    let mut seen = HashSet::new();
    let mut tensors = Vec::new();
    for _ in 0..count {
        let offset = cursor.offset();
        let tensor = read_entry(file, cursor)?;
        if !seen.insert(tensor.name.clone()) {
            return Err(FileError::DuplicateTensor { file: file.into(), offset, tensor: tensor.name });
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_entry(file: &Path, cursor: &mut Cursor<'_>) -> Result<TensorInfo> {
    const WHAT: &str = "the tensor list";
    let name = cursor.name("a tensor name")?;
    let shape_at = cursor.offset();
    let n_dims: u32 = cursor.scalar(WHAT)?;
    if n_dims > MAX_DIMS {
        let (file, offset) = (file.into(), shape_at);
        return Err(FileError::DimensionCount { file, offset, tensor: name, found: n_dims });
    }
    let mut dims = Vec::new();
    for _ in 0..n_dims {
        dims.push(cursor.scalar::<u64>(WHAT)?);
    }
    let type_at = cursor.offset();
    let ty = tensor_type(file, type_at, &name, cursor.scalar(WHAT)?)?;
    let offset = cursor.scalar(WHAT)?;
    let row = dims.first().copied().unwrap_or(1);
    if !row.is_multiple_of(ty.block_size() as u64) {
        return Err(FileError::PartialBlock {
            file: file.into(),
            offset: shape_at,
            tensor: name,
            ty: ty.name(),
            expected: ty.block_size() as u64,
            found: row,
        });
    }
    let Some(n_bytes) = byte_count(ty, &dims) else {
        let (file, offset) = (file.into(), shape_at);
        return Err(FileError::DimensionOverflow { file, offset, tensor: name, found: dims });
    };
    Ok(TensorInfo { name, ty, dims, offset, n_bytes })
}

fn tensor_type(file: &Path, offset: u64, tensor: &str, number: u32) -> Result<GgmlType> {
    let (file, tensor) = (file.into(), tensor.to_owned());
    GgmlType::from_number(number).map_err(|foreign| match foreign {
        Foreign::Unsupported(found) => FileError::UnsupportedTensorType { file, offset, tensor, found },
        Foreign::Unknown(found) => FileError::UnknownTensorType { file, offset, tensor, found },
    })
}

/// Bytes of a tensor, `None` if these, its elements or one of its dimensions are more than ggml can count.
fn byte_count(ty: GgmlType, dims: &[u64]) -> Option<u64> {
    // A dimension of zero counts as one here, so that the product of any of the dimensions is known to fit.
    let most = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim.max(1)))?;
    if most > MAX_COUNT {
        return None;
    }
    let n_elements: u64 = dims.iter().product();
    let n_bytes = (n_elements / ty.block_size() as u64).checked_mul(ty.type_size() as u64)?;
    (n_bytes <= MAX_COUNT).then_some(n_bytes)
}

/// Checks that every tensor is aligned, lies inside the data section, and shares no byte with another.
///
/// Gaps between tensors are allowed. `data_start` and `file_size` are bytes from the start of the file.
pub(super) fn check_layout(
    file: &Path,
    tensors: &[TensorInfo],
    alignment: u64,
    data_start: u64,
    file_size: u64,
) -> Result<()> {
    for tensor in tensors {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(FileError::MisalignedTensor {
                file: file.into(),
                tensor: tensor.name.clone(),
                expected: alignment,
                found: tensor.offset,
            });
        }
        let end = u128::from(data_start) + u128::from(tensor.offset) + u128::from(tensor.n_bytes);
        if end > u128::from(file_size) {
            return Err(FileError::TensorPastEnd {
                file: file.into(),
                tensor: tensor.name.clone(),
                expected: file_size,
                found: end,
            });
        }
    }
    check_overlaps(file, tensors, data_start)
}

fn check_overlaps(file: &Path, tensors: &[TensorInfo], data_start: u64) -> Result<()> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().filter(|t| t.n_bytes > 0).collect();
    by_offset.sort_by_key(|t| t.offset);
    for pair in by_offset.windows(2) {
        let end = pair[0].offset + pair[0].n_bytes; // inside the file: checked before
        if pair[1].offset < end {
            return Err(FileError::OverlappingTensors {
                file: file.into(),
                tensor: pair[1].name.clone(),
                other: pair[0].name.clone(),
                expected: data_start + end,
                found: data_start + pair[1].offset,
            });
        }
    }
    Ok(())
}
