//! The share of raw `matrixmultiply::sgemm` speed that `linear` reaches, dequantisation included: `share THREADS ROWS`.
//!
//! GFLOPS are for one core: operations over processor time. Shapes are those of SmolLM2-135M and of an 8B llama. Raw means: weights already f32 and in memory, operands where
//! sgemm wants them, rows of weights split evenly over the same threads.

use std::hint::black_box;

use burn_gguf::linear::{linear_shared, Policy};
use burn_gguf::matrix::Matrix;
use burn_gguf::quant::GgmlType;
use burn_gguf::weight::Weight;
use rayon::prelude::*;

const SHAPES: [(&str, &[usize], usize); 8] = [
    ("135M q k v", &[576, 192, 192], 576),
    ("135M attn_output", &[576], 576),
    ("135M gate up", &[1536, 1536], 576),
    ("135M down", &[576], 1536),
    ("135M output", &[49152], 576),
    ("8B q k v", &[4096, 1024, 1024], 4096),
    ("8B gate up", &[14336, 14336], 4096),
    ("8B down", &[4096], 14336),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let [n_threads, m] = numbers[..] else { return Err("usage: share THREADS ROWS".into()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build()?;
    println!("{:18} {:>6} {:>14} {:>14} {:>6}", "", "rows", "raw GFLOPS", "linear GFLOPS", "share");
    for (name, rows, k) in SHAPES {
        // A vocabulary is multiplied in blocks of rows.
        let m = if rows[0] == 49152 { m.min(340) } else { m };
        let n: usize = rows.iter().sum();
        let flops = 2.0 * (n * k * m) as f64;
        let x: Vec<f32> = (0..m * k).map(|i| ((i * 7919 % 1000) as f32 - 500.0) * 1e-3).collect();
        let blocks: Vec<Vec<u8>> = rows.iter().map(|n| q8_0(n * k)).collect();
        let weights: Vec<Weight> = rows
            .iter()
            .zip(&blocks)
            .map(|(&n, blocks)| Weight::new(GgmlType::Q8_0, n, k, blocks))
            .collect::<Result<_, _>>()?;
        let ours = processor_seconds(|| {
            let x = Matrix::from_rows(m, k, x.clone());
            black_box(pool.install(|| linear_shared(&weights, x, Policy::F32)).map(|out| out.len()).unwrap_or(0));
        });
        let w = vec![0.25f32; n * k];
        let mut out = vec![0.0f32; n * m];
        let raw = processor_seconds(|| pool.install(|| raw(&w, &x, &mut out, n, k, m, n_threads)));
        println!("{name:18} {m:6} {:14.1} {:14.1} {:5.0}%", flops / raw / 1e9, flops / ours / 1e9, 100.0 * raw / ours);
    }
    Ok(())
}

fn raw(w: &[f32], x: &[f32], out: &mut [f32], n: usize, k: usize, m: usize, n_threads: usize) {
    let rows = n.div_ceil(n_threads);
    out.par_chunks_mut(rows * m).zip(w.par_chunks(rows * k)).for_each(|(out, w)| {
        let n = w.len() / k;
        // SAFETY: w is (n, k) and out is (n, m) by rows, x is (m, k) read as its transpose; all three are as long.
        unsafe {
            matrixmultiply::sgemm(
                n,
                k,
                m,
                1.0,
                w.as_ptr(),
                k as isize,
                1,
                x.as_ptr(),
                1,
                k as isize,
                0.0,
                out.as_mut_ptr(),
                m as isize,
                1,
            );
        }
    });
}

/// Q8_0 blocks with scale 2^-10 and codes of all sizes.
fn q8_0(n: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(n / 32 * 34);
    for block in 0..n / 32 {
        bytes.extend(0x1400u16.to_le_bytes());
        bytes.extend((0..32).map(|i| (block * 31 + i * 17) as u8));
    }
    bytes
}

/// Seconds of processor time of one run, over all threads: another job on the machine slows a run, but costs it nothing.
fn processor_seconds(mut run: impl FnMut()) -> f64 {
    run();
    let (began, mut n) = (processor_time(), 0);
    while n < 2 || processor_time() - began < 0.5 {
        run();
        n += 1;
    }
    (processor_time() - began) / f64::from(n)
}

/// User and system time of this process so far, in seconds (`proc(5)`: fields 14 and 15 of stat, in 1/100 s).
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
