//! The values of the architecture's own keys, each refused by name where it is not what a forward pass needs.

use std::path::Path;

use super::shown::{integers, shown, shown_array, small};
use crate::gguf::{Array, GgufFile, Value};
use crate::model_error::{ModelError, Result};

/// What a missing count should have been.
pub const COUNT: &str = "a positive integer";

/// The architecture's own keys of a file.
pub struct Keys<'a> {
    pub file: &'a GgufFile,
    pub prefix: &'static str,
}

impl Keys<'_> {
    fn path(&self) -> &Path {
        &self.file.path
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub fn bad(&self, key: &str, expected: &str, found: &str) -> ModelError {
        let (expected, found) = (expected.into(), found.into());
        ModelError::BadValue { file: self.path().into(), key: self.full(key), expected, found }
    }

    pub fn missing(&self, key: &str, expected: &'static str) -> ModelError {
        ModelError::MissingKey { file: self.path().into(), key: self.full(key), expected }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.file.get(&self.full(key))
    }

    pub fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match small(value.as_u64()) {
            Some(count) => Ok(Some(count)),
            None => Err(self.bad(key, "one positive integer", &shown(value))),
        }
    }

    pub fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key, COUNT))
    }

    /// A count that a file may state once, or once for each layer: then all have to be the same.
    pub fn same_in_layers(&self, key: &str, n_layer: usize) -> Result<Option<usize>> {
        let Some(Value::Array(array)) = self.get(key) else { return self.optional_count(key) };
        let numbers = integers(array).filter(|numbers| numbers.len() == n_layer && !numbers.is_empty());
        let same = numbers.filter(|numbers| numbers.iter().all(|number| *number == numbers[0]));
        let count = same.and_then(|numbers| small(u64::try_from(numbers[0]).ok()));
        let expected = format!("one positive integer, or an array of {n_layer} equal ones, one a layer");
        count.map(Some).ok_or_else(|| self.bad(key, &expected, &shown_array(array)))
    }

    pub fn unsupported(&self, key: &str, expected: &str, value: &Value) -> ModelError {
        let (file, key, found) = (self.path().into(), self.full(key), shown(value));
        ModelError::UnsupportedKey { file, key, expected: expected.into(), found }
    }

    pub fn positive(&self, key: &str) -> Result<f32> {
        let value = self.get(key).ok_or_else(|| self.missing(key, "a positive f32"))?;
        let number = value.as_f32().filter(|x| x.is_finite() && *x > 0.0);
        number.ok_or_else(|| self.bad(key, "a positive f32", &shown(value)))
    }

    /// `a / b`, refused if it is not whole.
    pub fn whole(&self, key: &str, a: usize, b: usize) -> Result<usize> {
        if !a.is_multiple_of(b) {
            return Err(self.bad(key, &format!("a divisor of {a}"), &b.to_string()));
        }
        Ok(a / b)
    }

    /// The reference counts the tokens; only of a file without a tokenizer it reads `vocab_size`.
    pub fn vocabulary(&self) -> Result<usize> {
        match self.file.get("tokenizer.ggml.tokens").and_then(Value::as_array).map(Array::len) {
            Some(0) => Err(ModelError::BadValue {
                file: self.path().into(),
                key: "tokenizer.ggml.tokens".into(),
                expected: "at least one token".into(),
                found: "an array of 0".into(),
            }),
            Some(tokens) => Ok(tokens),
            None => self.optional_count("vocab_size")?.ok_or_else(|| {
                self.missing("vocab_size", "a list of tokens (tokenizer.ggml.tokens) or a vocabulary size")
            }),
        }
    }
}
