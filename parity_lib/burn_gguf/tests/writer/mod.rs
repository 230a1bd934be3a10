//! Writes small GGUF files, right and wrong ones, byte by byte, and has them read.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use burn_gguf::file_error::FileError;
use burn_gguf::gguf::GgufFile;

pub const U32: u32 = 4;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const F32: u32 = 0;
pub const Q8_0: u32 = 8;

pub fn header(version: u32, n_tensors: u64, n_keys: u64) -> Vec<u8> {
    [&b"GGUF"[..], &version.to_le_bytes(), &n_tensors.to_le_bytes(), &n_keys.to_le_bytes()].concat()
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

pub fn key(name: &str, ty: u32, payload: &[u8]) -> Vec<u8> {
    [&string(name.as_bytes())[..], &ty.to_le_bytes(), payload].concat()
}

pub fn array(ty: u32, count: u64, payload: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &count.to_le_bytes(), payload].concat()
}

pub fn tensor(name: &str, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let n_dims = (dims.len() as u32).to_le_bytes();
    [&string(name.as_bytes())[..], &n_dims, &dims_bytes, &ty.to_le_bytes(), &offset.to_le_bytes()].concat()
}

/// Puts the parts together, pads to `alignment` and appends `data`.
pub fn file(parts: &[Vec<u8>], alignment: usize, data: &[u8]) -> Vec<u8> {
    let mut bytes = parts.concat();
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    bytes.extend_from_slice(data);
    bytes
}

pub fn temporary_path() -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("burn_gguf-{}-{count}.gguf", std::process::id()))
}

pub fn open(bytes: &[u8]) -> Result<GgufFile, FileError> {
    let path = temporary_path();
    std::fs::write(&path, bytes).unwrap();
    let opened = GgufFile::open(&path);
    std::fs::remove_file(&path).unwrap(); // what is mapped stays readable
    opened
}

/// The refusal, after a check of its message: file, expected, found and next step are all there.
pub fn refused(opened: Result<GgufFile, FileError>) -> FileError {
    let error = opened.expect_err("the file should be refused");
    let message = error.to_string();
    for part in ["burn_gguf-", ": ", "; expected ", "; found ", "; next: "] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    error
}
