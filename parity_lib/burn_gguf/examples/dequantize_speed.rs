//! Measures dequantisation on one core: `cargo run --release --example dequantize_speed [MiB of f32] [seconds]`.
//!
//! Prints GB/s of f32 written, of the fast and of the scalar version, for each type. The panel is small (4 MiB by
//! default), because that is how the matmuls use it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use burn_gguf::file_error::Result;
use burn_gguf::quant::{dequantize, dequantize_scalar, GgmlType};

type Dequantize = fn(GgmlType, &[u8], &mut [f32]) -> Result<()>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: f64| arguments.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let n_values = (number(4.0) * 262_144.0) as usize / 256 * 256;
    let duration = Duration::from_secs_f64(number(0.3));
    println!("{:>6} {:>12} {:>14}", "type", "fast GB/s", "scalar GB/s");
    for ty in GgmlType::ALL {
        // Every byte 0x3c: scales of about 1, so that no block takes the path for NaN.
        let bytes = vec![0x3c; n_values / ty.block_size() * ty.type_size()];
        let mut out = vec![0.0; n_values];
        let fast = speed(dequantize, ty, &bytes, &mut out, duration)?;
        let scalar = speed(dequantize_scalar, ty, &bytes, &mut out, duration)?;
        println!("{:>6} {fast:>12.1} {scalar:>14.2}", ty.name());
    }
    Ok(())
}

/// GB/s of output, the best of the passes that fit into `duration`: the machine may be shared.
fn speed(run: Dequantize, ty: GgmlType, bytes: &[u8], out: &mut [f32], duration: Duration) -> Result<f64> {
    let mut best = Duration::MAX;
    let start = Instant::now();
    while start.elapsed() < duration {
        let pass = Instant::now();
        run(ty, black_box(bytes), black_box(&mut *out))?;
        best = best.min(pass.elapsed());
    }
    Ok(size_of_val(out) as f64 / best.as_secs_f64() / 1e9)
}
