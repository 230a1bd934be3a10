//! The fork's own GGUF reader by name; in the stacks `spine` and `spine-amx`. The candidate reads files itself.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ndarray::hpc::gguf::{read_gguf_header, read_tensor_f32};

use crate::model_error::{ModelError, Result};

/// A tensor's values as the fork dequantises them, found by its exact name.
pub fn tensor(path: &Path, name: &str) -> Result<Vec<f32>> {
    let refused =
        |found: String| ModelError::out_of_range(format!("tensor {name} in the fork's reader"), "values", found);
    let mut reader = BufReader::new(File::open(path).map_err(|error| refused(error.to_string()))?);
    let file = read_gguf_header(&mut reader).map_err(refused)?;
    let info = file.tensors.iter().find(|info| info.name == name).ok_or_else(|| refused("no such tensor".into()))?;
    read_tensor_f32(&mut reader, &file, info).map_err(refused)
}
