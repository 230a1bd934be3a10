//! Integers of a metadata value, and a value as a message shows it.

use crate::gguf::{Array, Value};

/// A count. Above 2^32 nothing is a head count or a width, and products of two still fit.
pub fn small(number: Option<u64>) -> Option<usize> {
    number.filter(|n| (1..1 << 32).contains(n)).map(|n| n as usize)
}

/// The elements of an array of integers.
pub fn integers(array: &Array) -> Option<Vec<i128>> {
    fn wide<T: Copy + Into<i128>>(numbers: &[T]) -> Option<Vec<i128>> {
        Some(numbers.iter().map(|&number| number.into()).collect())
    }
    match array {
        Array::U8(v) => wide(v),
        Array::I8(v) => wide(v),
        Array::U16(v) => wide(v),
        Array::I16(v) => wide(v),
        Array::U32(v) => wide(v),
        Array::I32(v) => wide(v),
        Array::U64(v) => wide(v),
        Array::I64(v) => wide(v),
        _ => None,
    }
}

/// An array as a message shows it: integers, if they are few.
pub fn shown_array(array: &Array) -> String {
    match integers(array).filter(|numbers| numbers.len() <= 64) {
        Some(numbers) => format!("{numbers:?}"),
        None => format!("an array of {}", array.len()),
    }
}

/// A value as a message shows it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Value::Array(array) => shown_array(array),
        Value::F32(x) => format!("{x}"),
        Value::F64(x) => format!("{x} (f64)"),
        Value::Bool(x) => format!("{x}"),
        other => other.as_u64().map_or_else(|| format!("a negative {}", other.type_name()), |n| n.to_string()),
    }
}
