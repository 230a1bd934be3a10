//! Reading little-endian fields from bytes that are not trusted: every length is checked before it is used.

use std::path::Path;

use super::value::{Array, Value};
use crate::file_error::{FileError, Result};

/// Levels of arrays within arrays. Nothing known uses more than two; each level costs a stack frame.
const MAX_ARRAY_DEPTH: usize = 8;

/// A number of fixed size, as GGUF stores it.
pub(super) trait Scalar: Sized {
    const SIZE: usize;
    /// `bytes` has `SIZE` bytes.
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! scalar {
    ($($ty:ty),*) => {$(
        impl Scalar for $ty {
            const SIZE: usize = size_of::<$ty>();
            fn from_le(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$ty>()];
                raw.copy_from_slice(bytes);
                <$ty>::from_le_bytes(raw)
            }
        }
    )*};
}
scalar!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

/// A place in the bytes of a file.
pub(super) struct Cursor<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a Path, bytes: &'a [u8]) -> Self {
        Cursor { file, bytes, at: 0 }
    }

    /// Bytes from the start of the file.
    pub(super) fn offset(&self) -> u64 {
        self.at as u64
    }

    /// Bytes that are left.
    pub(super) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        let taken = usize::try_from(n).ok().and_then(|n| left.get(..n));
        let taken = taken.ok_or_else(|| FileError::Truncated {
            file: self.file.into(),
            offset: self.offset(),
            what,
            expected: n,
            found: left.len() as u64,
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    pub(super) fn scalar<T: Scalar>(&mut self, what: &'static str) -> Result<T> {
        Ok(T::from_le(self.take(T::SIZE as u64, what)?))
    }

    /// A length of eight bytes, then as many bytes.
    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a [u8]> {
        let offset = self.offset();
        let length: u64 = self.scalar(what)?;
        if length > self.remaining() {
            return Err(FileError::StringLength {
                file: self.file.into(),
                offset,
                what,
                expected: self.remaining(),
                found: length,
            });
        }
        self.take(length, what)
    }

    /// A string that has to be text: a key or the name of a tensor.
    pub(super) fn name(&mut self, what: &'static str) -> Result<String> {
        let offset = self.offset();
        let bytes = self.string(what)?;
        let text = std::str::from_utf8(bytes).map_err(|_| FileError::InvalidUtf8 {
            file: self.file.into(),
            offset,
            what,
            found: bytes.to_vec(),
        })?;
        Ok(text.to_owned())
    }

    /// The type and the value of `key`. Type numbers: `enum gguf_type` of ggml's `gguf.h`.
    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
        let offset = self.offset();
        const WHAT: &str = "a metadata value";
        Ok(match self.scalar::<u32>(WHAT)? {
            0 => Value::U8(self.scalar(WHAT)?),
            1 => Value::I8(self.scalar(WHAT)?),
            2 => Value::U16(self.scalar(WHAT)?),
            3 => Value::I16(self.scalar(WHAT)?),
            4 => Value::U32(self.scalar(WHAT)?),
            5 => Value::I32(self.scalar(WHAT)?),
            6 => Value::F32(self.scalar(WHAT)?),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string(WHAT)?.to_vec()),
            9 => Value::Array(self.array(key, 1)?),
            10 => Value::U64(self.scalar(WHAT)?),
            11 => Value::I64(self.scalar(WHAT)?),
            12 => Value::F64(self.scalar(WHAT)?),
            found => return Err(self.unknown_type(key, offset, found)),
        })
    }

    fn bool(&mut self, key: &str) -> Result<bool> {
        let offset = self.offset();
        match self.scalar::<u8>("a metadata value")? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(FileError::InvalidBool { file: self.file.into(), offset, key: key.to_owned(), found }),
        }
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Array> {
        let offset = self.offset();
        const WHAT: &str = "an array";
        if depth > MAX_ARRAY_DEPTH {
            let (file, key) = (self.file.into(), key.to_owned());
            return Err(FileError::ArrayDepth { file, offset, key, expected: MAX_ARRAY_DEPTH });
        }
        let ty: u32 = self.scalar(WHAT)?;
        let count: u64 = self.scalar(WHAT)?;
        Ok(match ty {
            0 => Array::U8(self.scalars(key, count)?),
            1 => Array::I8(self.scalars(key, count)?),
            2 => Array::U16(self.scalars(key, count)?),
            3 => Array::I16(self.scalars(key, count)?),
            4 => Array::U32(self.scalars(key, count)?),
            5 => Array::I32(self.scalars(key, count)?),
            6 => Array::F32(self.scalars(key, count)?),
            7 => Array::Bool(self.elements(key, count, 1, |c| c.bool(key))?),
            8 => Array::String(self.elements(key, count, 8, |c| Ok(c.string(WHAT)?.to_vec()))?),
            9 => Array::Array(self.elements(key, count, 12, |c| c.array(key, depth + 1))?),
            10 => Array::U64(self.scalars(key, count)?),
            11 => Array::I64(self.scalars(key, count)?),
            12 => Array::F64(self.scalars(key, count)?),
            found => return Err(self.unknown_type(key, offset, found)),
        })
    }

    fn scalars<T: Scalar>(&mut self, key: &str, count: u64) -> Result<Vec<T>> {
        self.check_count(key, count, T::SIZE as u64)?;
        let bytes = self.take(count * T::SIZE as u64, "an array")?;
        Ok(bytes.chunks_exact(T::SIZE).map(T::from_le).collect())
    }

    /// Elements of at least `smallest` bytes each; the vector grows only with what was really read.
    fn elements<T>(
        &mut self,
        key: &str,
        count: u64,
        smallest: u64,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.check_count(key, count, smallest)?;
        let mut elements = Vec::new();
        for _ in 0..count {
            elements.push(read(self)?);
        }
        Ok(elements)
    }

    /// Refuses a count that the rest of the file cannot hold; afterwards `count * size` cannot overflow.
    fn check_count(&self, key: &str, count: u64, size: u64) -> Result<()> {
        let room = self.remaining() / size;
        if count <= room {
            return Ok(());
        }
        Err(FileError::ArrayLength {
            file: self.file.into(),
            offset: self.offset() - 8,
            key: key.to_owned(),
            expected: room,
            found: count,
        })
    }

    fn unknown_type(&self, key: &str, offset: u64, found: u32) -> FileError {
        FileError::UnknownValueType { file: self.file.into(), offset, key: key.to_owned(), found }
    }
}
