//! What is wrong with a GGUF file: one variant for each refusal, with the place, what was expected and what was found as fields.
//!
//! A message reads `place: what; expected ..; found ..; next: ..`, the order that the Python side uses too.

use std::io;
use std::path::PathBuf;

/// A result whose error is [`FileError`].
pub type Result<T, E = FileError> = std::result::Result<T, E>;

/// Why a file is refused. Offsets are bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    // ---- the file itself ----
    /// The operating system did not let the file be opened or mapped.
    #[error("{}: the file cannot be opened; expected a readable GGUF file; found {source}; next: check the path and its permissions", .file.display())]
    Io { file: PathBuf, source: io::Error },

    /// The path names a folder, a pipe or a device.
    #[error("{}: not a regular file; expected a GGUF file; found {found}; next: give the path of the file itself", .file.display())]
    NotAFile { file: PathBuf, found: &'static str },

    /// The file ends inside its header, metadata or tensor list.
    #[error("{}: byte {offset}: the file ends inside {what}; expected {expected} more bytes; found {found}; next: fetch the file again and compare its SHA-256", .file.display())]
    Truncated { file: PathBuf, offset: u64, what: &'static str, expected: u64, found: u64 },

    // ---- header ----
    /// The first four bytes are not `GGUF`.
    #[error("{}: byte 0: wrong magic; expected \"GGUF\"; found \"{}\"; next: give a GGUF file", .file.display(), .found.escape_ascii())]
    WrongMagic { file: PathBuf, found: [u8; 4] },

    /// The version field is byte-swapped.
    #[error("{}: byte 4: the file is big-endian; expected a little-endian version field; found {found:#010x}; next: convert it with gguf-py's gguf-convert-endian", .file.display())]
    BigEndian { file: PathBuf, found: u32 },

    /// Version 1, or one that does not exist yet.
    #[error("{}: byte 4: unsupported GGUF version; expected 2 or 3; found {found}; next: convert the model again with a current converter", .file.display())]
    UnsupportedVersion { file: PathBuf, found: u32 },

    /// More tensors than the rest of the file could describe.
    #[error("{}: byte {offset}: absurd number of tensors; expected at most {expected}, all that the file has room for; found {found}; next: fetch the file again", .file.display())]
    TensorCount { file: PathBuf, offset: u64, expected: u64, found: u64 },

    /// More metadata keys than the rest of the file could hold.
    #[error("{}: byte {offset}: absurd number of metadata keys; expected at most {expected}, all that the file has room for; found {found}; next: fetch the file again", .file.display())]
    KeyCount { file: PathBuf, offset: u64, expected: u64, found: u64 },

    // ---- metadata ----
    /// A string longer than the rest of the file.
    #[error("{}: byte {offset}: absurd length of {what}; expected at most {expected} bytes, all that the file has left; found {found}; next: fetch the file again", .file.display())]
    StringLength { file: PathBuf, offset: u64, what: &'static str, expected: u64, found: u64 },

    /// An array with more elements than the rest of the file could hold.
    #[error("{}: byte {offset}: absurd length of the array {key:?}; expected at most {expected} elements, all that the file has room for; found {found}; next: fetch the file again", .file.display())]
    ArrayLength { file: PathBuf, offset: u64, key: String, expected: u64, found: u64 },

    /// Arrays inside arrays inside arrays: reading them would use up the stack.
    #[error("{}: byte {offset}: arrays nested too deep in {key:?}; expected at most {expected} levels; found more; next: remove the key with gguf-py's gguf-new-metadata", .file.display())]
    ArrayDepth { file: PathBuf, offset: u64, key: String, expected: usize },

    /// A metadata key of no characters.
    #[error("{}: byte {offset}: empty metadata key; expected a name; found \"\"; next: write the file again with a current converter", .file.display())]
    EmptyKey { file: PathBuf, offset: u64 },

    /// A key or tensor name that is no text. Values of strings are bytes and may hold anything.
    #[error("{}: byte {offset}: {what} is not UTF-8; expected text; found \"{}\"; next: fetch the file again", .file.display(), .found.escape_ascii())]
    InvalidUtf8 { file: PathBuf, offset: u64, what: &'static str, found: Vec<u8> },

    /// The same key twice: readers would disagree about which one counts.
    #[error("{}: byte {offset}: duplicate metadata key; expected each key once; found {key:?} again; next: remove one of the two with gguf-py's gguf-new-metadata", .file.display())]
    DuplicateKey { file: PathBuf, offset: u64, key: String },

    /// A value type that GGUF does not define.
    #[error("{}: byte {offset}: unknown value type of {key:?}; expected 0 to 12; found {found}; next: fetch the file again", .file.display())]
    UnknownValueType { file: PathBuf, offset: u64, key: String, found: u32 },

    /// A truth value that is neither.
    #[error("{}: byte {offset}: bad bool in {key:?}; expected 0 or 1; found {found}; next: fetch the file again", .file.display())]
    InvalidBool { file: PathBuf, offset: u64, key: String, found: u8 },

    /// `general.alignment` of another type than u32.
    #[error("{}: wrong type of \"general.alignment\"; expected u32; found {found}; next: write the key again with gguf-py's gguf-set-metadata", .file.display())]
    AlignmentType { file: PathBuf, found: &'static str },

    /// `general.alignment` is not a power of two.
    #[error("{}: bad \"general.alignment\"; expected a power of two; found {found}; next: write the file again with a current converter", .file.display())]
    Alignment { file: PathBuf, found: u32 },

    // ---- tensors ----
    /// The same tensor name twice.
    #[error("{}: byte {offset}: duplicate tensor name; expected each name once; found {tensor:?} again; next: convert the model again", .file.display())]
    DuplicateTensor { file: PathBuf, offset: u64, tensor: String },

    /// More dimensions than ggml has.
    #[error("{}: byte {offset}: tensor {tensor:?} has too many dimensions; expected at most 4; found {found}; next: fetch the file again", .file.display())]
    DimensionCount { file: PathBuf, offset: u64, tensor: String, found: u32 },

    /// The number of elements, or of bytes, does not fit into a signed 64-bit number.
    #[error("{}: byte {offset}: tensor {tensor:?} is absurdly large; expected fewer than 2^63 elements and bytes; found dimensions {found:?}; next: fetch the file again", .file.display())]
    DimensionOverflow { file: PathBuf, offset: u64, tensor: String, found: Vec<u64> },

    /// A tensor type that ggml does not define, or has removed.
    #[error("{}: byte {offset}: tensor {tensor:?} has an unknown type; expected one of F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K; found number {found}; next: quantise the model again to one of these", .file.display())]
    UnknownTensorType { file: PathBuf, offset: u64, tensor: String, found: u32 },

    /// A tensor type of ggml that this engine does not compute with.
    #[error("{}: byte {offset}: tensor {tensor:?} has an unsupported type; expected one of F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K; found {found}; next: quantise the model again to one of these", .file.display())]
    UnsupportedTensorType { file: PathBuf, offset: u64, tensor: String, found: &'static str },

    /// A row that ends inside a block.
    #[error("{}: byte {offset}: tensor {tensor:?} has rows that end inside a {ty} block; expected a multiple of {expected} elements; found {found}; next: convert the model again", .file.display())]
    PartialBlock { file: PathBuf, offset: u64, tensor: String, ty: &'static str, expected: u64, found: u64 },

    /// A tensor that does not begin at a multiple of the alignment.
    #[error("{}: tensor {tensor:?} is misaligned; expected an offset that is a multiple of {expected}; found {found}; next: write the file again with a current converter", .file.display())]
    MisalignedTensor { file: PathBuf, tensor: String, expected: u64, found: u64 },

    /// A tensor whose bytes are not all in the file.
    #[error("{}: tensor {tensor:?} ends past the end of the file; expected an end at byte {expected} or before, the size of the file; found {found}; next: fetch the file again, it seems cut off", .file.display())]
    TensorPastEnd { file: PathBuf, tensor: String, expected: u64, found: u128 },

    /// Two tensors that share bytes.
    #[error("{}: tensors overlap; expected {tensor:?} to begin at byte {expected} or later, where {other:?} ends; found {found}; next: convert the model again", .file.display())]
    OverlappingTensors { file: PathBuf, tensor: String, other: String, expected: u64, found: u64 },

    // ---- blocks ----
    /// Bytes that are not whole blocks.
    #[error("{ty} blocks: bytes end inside a block; expected a multiple of {expected} bytes; found {found}; next: pass whole rows of one tensor")]
    BlockBytes { ty: &'static str, expected: usize, found: usize },

    /// An output of another length than the blocks hold.
    #[error("{ty} blocks: wrong length of the output; expected {expected} values; found {found}; next: size it by the blocks")]
    OutputLength { ty: &'static str, expected: usize, found: usize },

    /// A type whose blocks have no minimum.
    #[error("{ty} blocks: no minimum in them; expected Q4_1 or Q5_1; found {ty}; next: use the minimum only where `vec_dot_type` is Q8_1")]
    NoMinimum { ty: &'static str },

    /// An activation row that ends inside a block.
    #[error("{kind} activations: the row ends inside a block; expected a multiple of {expected} values; found {found}; next: choose an activation type that divides the row")]
    ActivationLength { kind: &'static str, expected: usize, found: usize },
}
