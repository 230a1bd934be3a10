//! A GGUF file as Python sees it: metadata as JSON, tensors as bytes of float32.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{bytes, detached};
use crate::gguf::{self, Value};
use crate::model_error::{ModelError, Result};
use crate::quant;

/// An open GGUF file.
#[pyclass(frozen, module = "burn_gguf")]
pub struct GgufFile(gguf::GgufFile);

#[pymethods]
impl GgufFile {
    #[new]
    fn new(py: Python, path: PathBuf) -> PyResult<Self> {
        detached(py, || Ok(Self(gguf::GgufFile::open(&path)?)))
    }

    /// All metadata but the long arrays' elements.
    fn metadata_json(&self) -> String {
        let entries = self.0.metadata.iter().map(|(key, value)| (key.clone(), json(value)));
        serde_json::Value::Object(entries.collect()).to_string()
    }

    /// `(name, type, dims in ggml's order, bytes)` of each tensor, in the order of the file.
    fn tensors(&self) -> Vec<(String, String, Vec<u64>, u64)> {
        let tensors = self.0.tensors().iter();
        tensors
            .map(|tensor| (tensor.name.clone(), tensor.ty.name().into(), tensor.dims.clone(), tensor.n_bytes))
            .collect()
    }

    /// All values of a tensor as float32; `scalar` takes the plain twin of the fast code.
    #[pyo3(signature = (name, scalar = false))]
    fn dequantize<'py>(&self, py: Python<'py>, name: &str, scalar: bool) -> PyResult<Bound<'py, PyBytes>> {
        let values = detached(py, || dequantize(&self.0, name, scalar))?;
        Ok(bytes(py, &values))
    }
}

fn dequantize(file: &gguf::GgufFile, name: &str, scalar: bool) -> Result<Vec<f32>> {
    let tensor = file.tensor(name).ok_or_else(|| ModelError::MissingTensor {
        file: file.path.clone(),
        tensor: name.into(),
        expected: Vec::new(),
    })?;
    let mut values = vec![0.0; tensor.n_elements() as usize];
    let run = if scalar { quant::dequantize_scalar } else { quant::dequantize };
    run(tensor.ty, file.bytes(tensor), &mut values)?;
    Ok(values)
}

/// A metadata value as JSON. Numbers keep their value, strings that are no UTF-8 are escaped, arrays give their length.
fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(x) => (*x).into(),
        Value::F32(x) => finite(f64::from(*x)),
        Value::F64(x) => finite(*x),
        Value::String(bytes) => String::from_utf8_lossy(bytes).into(),
        Value::Array(array) => serde_json::json!({ "array": array.len() }),
        Value::I8(x) => (*x).into(),
        Value::I16(x) => (*x).into(),
        Value::I32(x) => (*x).into(),
        Value::I64(x) => (*x).into(),
        other => other.as_u64().into(),
    }
}

fn finite(x: f64) -> serde_json::Value {
    match x {
        x if x.is_nan() => serde_json::json!({ "nonfinite": "nan" }),
        f64::INFINITY => serde_json::json!({ "nonfinite": "inf" }),
        f64::NEG_INFINITY => serde_json::json!({ "nonfinite": "-inf" }),
        x => x.into(),
    }
}
