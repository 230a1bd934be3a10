//! `burn_gguf`: burn as the candidate of a numerical parity suite. GGUF in, logits out, each op callable by itself.
//!
//! [`gguf`] and [`quant`] read files, [`linear`], [`ops`] and [`attention`] compute, [`model`] is the forward pass,
//! [`session`] feeds it. The Python module is in `py.rs`, behind the feature `python`.

pub mod activation;
pub mod attention;
pub mod error;
pub mod facts;
pub mod fault;
pub mod gguf;
pub mod isa;
pub mod linear;
pub mod matrix;
pub mod model;
pub mod ops;
pub mod quant;
pub mod refusal;
pub mod session;
pub mod tap;

#[cfg(feature = "python")]
mod py;

/// burn allocates every result; the system's allocator gives large blocks back each time and faults them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
