//! The sampler on burn's own matmul: it names the kernel, stops when it is told to, and changes no bit.
#![cfg(all(feature = "sampler", target_os = "linux"))]

use std::sync::Mutex;
use std::time::{Duration, Instant};

use burn_gguf::linear::{linear, Policy};
use burn_gguf::matrix::Matrix;
use burn_gguf::quant::GgmlType;
use burn_gguf::sampler::{Place, Sampler, Samples};
use burn_gguf::weight::Weight;

/// There is one sampler for each process, and tests of a file share theirs.
static ALONE: Mutex<()> = Mutex::new(());

const N: usize = 512;

fn product() -> Vec<u32> {
    let values: Vec<f32> = (0..N * N).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    let blocks: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let weight = Weight::new(GgmlType::F32, N, N, &blocks).unwrap();
    let y = linear(&weight, Matrix::from_rows(N, N, values), Policy::F32).unwrap();
    y.data.iter().map(|value| value.to_bits()).collect()
}

fn sampled(seconds: f64) -> (Vec<u32>, Samples) {
    let sampler = Sampler::start().unwrap();
    let (begin, mut bits) = (Instant::now(), Vec::new());
    while begin.elapsed() < Duration::from_secs_f64(seconds) || bits.is_empty() {
        bits = product();
    }
    (bits, sampler.stop().unwrap())
}

fn is_kernel(place: &Place) -> bool {
    place.function.contains("matrixmultiply") && (place.instruction.contains("fmadd") || place.instruction == "fmla")
}

#[test]
fn a_matmul_is_seen_in_its_kernel_and_keeps_its_bits() {
    let _alone = ALONE.lock().unwrap();
    let plain = product();
    let mut kernel = 0;
    let mut samples = Samples { n: 0, lost: 0, places: Vec::new() };
    for _ in 0..60 {
        let (bits, seen) = sampled(0.5);
        assert_eq!(bits, plain);
        kernel = seen.places.iter().filter(|(place, _)| is_kernel(place)).map(|(_, n)| n).sum();
        samples = seen;
        if kernel > 0 {
            break; // a busy machine gives a sample only now and then
        }
    }
    assert!(kernel > 0 && samples.lost == 0, "{:#?}", &samples.places[..samples.places.len().min(10)]);
    assert_eq!(samples.places.iter().map(|(_, n)| n).sum::<usize>(), samples.n);
    assert!(samples.places.windows(2).all(|pair| pair[0].1 >= pair[1].1), "most frequent first");
}

#[test]
fn there_is_one_at_a_time_and_it_stops() {
    let _alone = ALONE.lock().unwrap();
    let first = Sampler::start().unwrap();
    let error = Sampler::start().map(drop).unwrap_err();
    assert!(error.to_string().contains("one at a time"), "{error}");
    drop(first);
    let idle = Sampler::start().unwrap().stop().unwrap();
    assert!(idle.n <= 2, "nothing was run in between: {idle:?}");
    product(); // a signal that comes late finds its handler
}
