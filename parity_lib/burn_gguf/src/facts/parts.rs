//! A file that is one part of a model: refused, with the names of the first part and of the whole.

use std::path::Path;

use crate::gguf::{GgufFile, Value};
use crate::model_error::{ModelError, Result};

/// Refuse a file that is a part of a model; parts behind the first have no other keys.
pub fn refuse_part(file: &GgufFile) -> Result<()> {
    let count = file.get("split.count").and_then(Value::as_u64).unwrap_or(1);
    if count <= 1 {
        return Ok(());
    }
    let number = file.get("split.no").and_then(Value::as_u64).unwrap_or(0).saturating_add(1);
    let (first, whole) = part_names(&file.path, number, count);
    Err(ModelError::Part { file: file.path.clone(), count, number, first, whole })
}

/// The first part's path, and one for the merged model, by the name of part `number` of `count`.
fn part_names(path: &Path, number: u64, count: u64) -> (String, String) {
    let text = path.display().to_string();
    let tail = |number: u64| format!("-{number:05}-of-{count:05}.gguf");
    let stem = text.strip_suffix(&tail(number));
    match stem {
        Some(stem) => (format!("{stem}{}", tail(1)), format!("{stem}.gguf")),
        None => (format!("FIRST-00001-of-{count:05}.gguf"), "WHOLE.gguf".into()),
    }
}
