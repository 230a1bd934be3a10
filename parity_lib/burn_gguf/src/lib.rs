//! `burn_gguf`: burn as the candidate of a numerical parity suite. GGUF in, logits out, each op callable by itself.
//!
//! [`gguf`] and [`quant`] read files, [`linear`], [`ops`] and [`attention`] compute, [`model`] is the forward pass,
//! [`mod@score`] and [`session`] feed it. The Python module is in `py.rs`, behind the feature `python`.

pub mod activation;
pub mod attention;
mod backend;
pub mod cache;
pub mod engine;
pub mod facts;
#[cfg(feature = "faults")]
pub mod fault;
#[cfg(feature = "faults")]
pub mod faulty;
pub mod file_error;
#[cfg(spine)]
pub mod fork_reader;
pub mod gguf;
pub mod graph;
pub mod isa;
pub mod linear;
pub mod matrix;
pub mod model;
pub mod model_error;
#[cfg(modules)]
pub mod modules;
mod operand;
pub mod ops;
mod panel;
pub mod plain;
pub mod quant;
pub mod rope;
#[cfg(all(feature = "sampler", target_os = "linux"))]
pub mod sampler;
pub mod score;
pub mod session;
mod state;
pub mod tap;
mod tapped;
mod tensors;
#[cfg(spine)]
pub mod tile;
pub mod weight;

#[cfg(feature = "python")]
mod py;

// GGUF files, spools and saved states are little-endian, and values are read and written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "burn_gguf needs a little-endian machine");

/// burn allocates every result anew, megabytes at a time; the system's allocator would give each block back and fault
/// it in again page by page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
