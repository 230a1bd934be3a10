//! Why the engine refused: what the model needs and the crate does not have, or what the caller asked for and cannot get.
//!
//! What is wrong with the file itself is a [`FileError`] and passes through unchanged. The messages read
//! alike: `place: what; expected ..; found ..; next: ..`.

use std::path::PathBuf;

use crate::file_error::FileError;

/// A result whose error is [`ModelError`].
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// Why the engine refused.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be read; see [`FileError`].
    #[error(transparent)]
    File(#[from] FileError),

    // ---- model facts ----
    /// A fact that may not be guessed is absent.
    #[error("{}: missing metadata key {key:?}; expected {expected}; found nothing; next: convert the model again, this value is never guessed", .file.display())]
    MissingKey { file: PathBuf, key: String, expected: &'static str },

    /// A metadata value of another type, or out of its range.
    #[error("{}: bad metadata value of {key:?}; expected {expected}; found {found}; next: write the key again with gguf-py's gguf-set-metadata", .file.display())]
    BadValue { file: PathBuf, key: String, expected: String, found: String },

    /// An architecture without a forward pass here.
    #[error("{}: unsupported architecture, key \"general.architecture\"; expected llama or qwen2; found {found:?}; next: use a model of one of these", .file.display())]
    UnsupportedArchitecture { file: PathBuf, found: String },

    /// A key that changes what the reference computes and that the crate does not know.
    #[error("{}: unsupported metadata key {key:?}; expected {expected}; found {found}; next: use a model without it", .file.display())]
    UnsupportedKey { file: PathBuf, key: String, expected: String, found: String },

    /// One file of a model in several.
    #[error("{}: the file is a part of a model, key \"split.count\"; expected a model in one file; found part {number} of {count}; next: merge the parts, then use the whole: llama-gguf-split --merge {first} {whole}", .file.display())]
    Part { file: PathBuf, count: u64, number: u64, first: String, whole: String },

    /// A tensor that the forward pass needs is absent.
    #[error("{}: missing tensor {tensor:?}; expected shape {expected:?}; found nothing; next: fetch or convert the model again", .file.display())]
    MissingTensor { file: PathBuf, tensor: String, expected: Vec<u64> },

    /// A tensor of another shape than the facts say.
    #[error("{}: tensor {tensor:?} has the wrong shape; expected {expected:?} (ggml order); found {found:?}; next: convert the model again", .file.display())]
    WrongShape { file: PathBuf, tensor: String, expected: Vec<u64>, found: Vec<u64> },

    /// A tensor that the forward pass would silently ignore.
    #[error("{}: tensor {tensor:?} is not used by architecture {architecture}; expected only tensors of the forward pass; found this one; next: use a model without it, its effect is not implemented", .file.display())]
    UnusedTensor { file: PathBuf, tensor: String, architecture: String },

    // ---- what the caller asked for ----
    /// An option with a value that does not exist.
    #[error("option {option}: unknown value; expected {expected}; found {found:?}; next: choose one of these")]
    UnknownOption { option: &'static str, expected: String, found: String },

    /// A seeded fault, in the build without faults.
    #[error("option fault: this library is built without faults; expected no fault; found {found:?}; next: load the library with faults, which `make setup` (crates-io) or `parity stack build` makes beside this one")]
    NoFaults { found: String },

    /// The policy of tiles, where tiles do not run.
    #[error("policy bf16: this stack multiplies on AMX tiles and has no other path; expected AMX_TILE, AMX_BF16 and Linux's permission; found {found}; next: run on a CPU that has them, or ask for stack spine")]
    NoTiles { found: String },

    /// A number that is out of range.
    #[error("{what}: out of range; expected {expected}; found {found}; next: change the call")]
    OutOfRange { what: String, expected: String, found: String },

    /// Data of another size than the shapes say.
    #[error(
        "{what}: wrong length; expected {expected}; found {found}; next: check shape and dtype, little-endian float32"
    )]
    WrongLength { what: String, expected: usize, found: usize },

    /// A sequence without tokens.
    #[error("sequence {sequence}: no tokens; expected at least one; found none; next: leave the sequence out")]
    EmptySequence { sequence: usize },

    /// A token id that the model does not have.
    #[error("sequence {sequence}, token {index}: id outside of the vocabulary; expected 0 to {limit}; found {found}; next: tokenize with this model's own vocabulary")]
    TokenOutside { sequence: usize, index: usize, limit: usize, found: u32 },

    /// More positions than the model was trained for.
    #[error("sequence {sequence}: longer than the model's context; expected at most {expected} tokens; found {found}; next: shorten the prompt")]
    ContextExceeded { sequence: usize, expected: usize, found: usize },

    /// A site that the forward pass does not have.
    #[error("tap {found:?}: no such site; expected one of {expected}; next: choose from the list")]
    UnknownSite { expected: String, found: String },

    /// Stored state of another model, version or size.
    #[error("session state: it does not belong to this session; expected {expected}; found {found}; next: save the state again with this build and model")]
    WrongState { expected: String, found: String },

    /// Logits could not be written.
    #[error("{}: the logits cannot be written; expected room and permission for {expected} more bytes; found {source}; next: free space or choose another folder", .file.display())]
    Sink { file: PathBuf, expected: usize, source: std::io::Error },

    /// Program counters cannot be sampled.
    #[error("sampler: program counters cannot be sampled; expected {expected}; found {found}; next: run without other profilers, on Linux, with a build that has the feature sampler")]
    Sampler { expected: &'static str, found: String },

    /// The caller asked to stop.
    #[error("stopped by the caller; expected to finish; found an interrupt; next: run it again")]
    Interrupted,
}

impl ModelError {
    /// A number, or a count of something, that is out of range.
    pub fn out_of_range(what: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::OutOfRange { what: what.into(), expected: expected.into(), found: found.to_string() }
    }

    /// Data of another size than the shapes say.
    pub fn wrong_length(what: impl Into<String>, expected: usize, found: usize) -> Self {
        Self::WrongLength { what: what.into(), expected, found }
    }
}
