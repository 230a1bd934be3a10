//! Reads GGUF files, versions 2 and 3, without trusting them.
//!
//! The file is mapped into memory, every count is checked against the bytes that are left before it is used,
//! and each way to be wrong is a variant of [`FileError`]. Format: `ggml/include/gguf.h`, llama.cpp 0c1e5709.

mod cursor;
mod tensor;
mod value;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use self::tensor::TensorInfo;
pub use self::value::{Array, Value};
pub use crate::quant::GgmlType;

use self::cursor::Cursor;
use crate::file_error::{FileError, Result};

const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u32 = 32;

/// Bytes of the shortest metadata entry: length of the key, type, a value of one byte.
const SMALLEST_KEY: u64 = 8 + 4 + 1;

/// An open GGUF file. Owns the mapping; tensor bytes are borrowed from it and are read from disk when touched.
#[derive(Debug)]
pub struct GgufFile {
    /// Where the file lies.
    pub path: PathBuf,
    /// 2 or 3.
    pub version: u32,
    /// Keys and values in the order of the file; each key occurs once.
    pub metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    data_start: u64,
    map: Mmap,
}

impl GgufFile {
    /// Maps the file and reads everything but the tensors' bytes.
    pub fn open(path: &Path) -> Result<GgufFile> {
        let map = map_file(path)?;
        let mut cursor = Cursor::new(path, &map);
        let (version, n_tensors, n_keys) = read_header(path, &mut cursor)?;
        let metadata = read_metadata(path, &mut cursor, n_keys)?;
        let alignment = read_alignment(path, &metadata)?;
        let tensors = tensor::read_list(path, &mut cursor, n_tensors)?;
        let data_start = cursor.offset().next_multiple_of(alignment);
        tensor::check_layout(path, &tensors, alignment, data_start, map.len() as u64)?;
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(GgufFile { path: path.into(), version, metadata, tensors, by_name, data_start, map })
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// All tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The bytes of a tensor of this file.
    ///
    /// The list of another file may point outside of this one; then the slice is empty, which
    /// [`dequantize`](crate::quant::dequantize) refuses by its length.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        let start = self.data_start.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(tensor.n_bytes));
        match (start.map(usize::try_from), end.map(usize::try_from)) {
            (Some(Ok(start)), Some(Ok(end))) => self.map.get(start..end).unwrap_or_default(),
            _ => &[],
        }
    }
}

fn map_file(path: &Path) -> Result<Mmap> {
    let io = |source| FileError::Io { file: path.into(), source };
    let found = std::fs::metadata(path).map_err(io)?;
    if !found.is_file() {
        // Opening a pipe would wait for its writer, so this is asked before.
        let kind = found.file_type();
        let found = if kind.is_dir() {
            "a folder"
        } else if kind.is_fifo() {
            "a pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "a device"
        };
        return Err(FileError::NotAFile { file: path.into(), found });
    }
    let file = File::open(path).map_err(io)?;
    // SAFETY: the mapping is read-only. It would become invalid if another process cut the file short while it is
    // mapped; every writer of this project writes to a temporary sibling and renames it, which leaves the mapped
    // file as it is.
    unsafe { Mmap::map(&file) }.map_err(io)
}

/// Version, number of tensors, number of metadata keys.
fn read_header(path: &Path, cursor: &mut Cursor<'_>) -> Result<(u32, u64, u64)> {
    const WHAT: &str = "the header";
    let found = cursor.scalar::<u32>(WHAT)?.to_le_bytes();
    if &found != b"GGUF" {
        return Err(FileError::WrongMagic { file: path.into(), found });
    }
    let version: u32 = cursor.scalar(WHAT)?;
    if version != 0 && version & 0xffff == 0 {
        return Err(FileError::BigEndian { file: path.into(), found: version });
    }
    if !(2..=3).contains(&version) {
        return Err(FileError::UnsupportedVersion { file: path.into(), found: version });
    }
    let offset = cursor.offset();
    let n_tensors: u64 = cursor.scalar(WHAT)?;
    let n_keys: u64 = cursor.scalar(WHAT)?;
    let (file, room) = (path.to_path_buf(), cursor.remaining() / tensor::SMALLEST_ENTRY);
    if n_tensors > room {
        return Err(FileError::TensorCount { file, offset, expected: room, found: n_tensors });
    }
    let (offset, room) = (offset + 8, cursor.remaining() / SMALLEST_KEY);
    if n_keys > room {
        return Err(FileError::KeyCount { file, offset, expected: room, found: n_keys });
    }
    Ok((version, n_tensors, n_keys))
}

fn read_metadata(path: &Path, cursor: &mut Cursor<'_>, n: u64) -> Result<Vec<(String, Value)>> {
    let mut seen = HashSet::new();
    let mut metadata = Vec::new();
    for _ in 0..n {
        let offset = cursor.offset();
        let key = cursor.name("a metadata key")?;
        if key.is_empty() {
            return Err(FileError::EmptyKey { file: path.into(), offset });
        }
        if !seen.insert(key.clone()) {
            return Err(FileError::DuplicateKey { file: path.into(), offset, key });
        }
        let value = cursor.value(&key)?;
        metadata.push((key, value));
    }
    Ok(metadata)
}

fn read_alignment(path: &Path, metadata: &[(String, Value)]) -> Result<u64> {
    let alignment = match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some((_, Value::U32(alignment))) => *alignment,
        Some((_, other)) => return Err(FileError::AlignmentType { file: path.into(), found: other.type_name() }),
    };
    if !alignment.is_power_of_two() {
        return Err(FileError::Alignment { file: path.into(), found: alignment });
    }
    Ok(alignment.into())
}
