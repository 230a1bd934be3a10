//! `burn_gguf`: burn as the candidate of a numerical parity suite. GGUF in, logits out, each op callable by itself.
//!
//! [`gguf`] and [`quant`] read files, [`linear`], [`ops`] and [`attention`] compute, [`model`] is the forward pass,
//! [`mod@score`] and [`session`] feed it. The Python module is in `py.rs`, behind the feature `python`.

pub mod activation;
pub mod attention;
mod backend;
pub mod cache;
pub mod error;
pub mod facts;
pub mod fault;
#[cfg(spine)]
pub mod fork_reader;
pub mod gguf;
pub mod isa;
pub mod linear;
pub mod matrix;
pub mod model;
mod operand;
pub mod ops;
mod panel;
pub mod plain;
pub mod quant;
pub mod refusal;
#[cfg(all(feature = "sampler", target_os = "linux"))]
pub mod sampler;
pub mod score;
pub mod session;
mod state;
pub mod tap;
mod tensors;
#[cfg(spine)]
pub mod tile;

#[cfg(feature = "python")]
mod py;

// GGUF files, spools and saved states are little-endian, and values are read and written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "burn_gguf needs a little-endian machine");

/// burn allocates every result anew, megabytes at a time; the system's allocator would give each block back and fault
/// it in again page by page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
