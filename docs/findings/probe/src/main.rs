//! `findings-probe NAME [ARGS]`: call one function of the ndarray fork and print numbers, one line each.

use std::env;
use std::fs::{self, File};
use std::io::BufReader;

use ndarray::hpc::activations::sigmoid_f32;
use ndarray::hpc::amx_matmul::TileConfig;
use ndarray::hpc::bf16_tile_gemm::bf16_tile_gemm_16x16;
use ndarray::hpc::gguf::{find_tensor, read_gguf_header, read_tensor_f32};
use ndarray::hpc::quantized::{self, BF16};
use ndarray::hpc::vml::vsexp;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("exp") => places(&words[1..], vsexp),
        Some("sigmoid") => places(&words[1..], sigmoid_f32),
        Some("bf16") => bf16(),
        Some("tiles") => tiles(),
        Some("tile-gemm") => tile_gemm(),
        Some("vnni") => vnni(),
        Some("quantize") => quantize(&words[1], &words[2..]),
        Some("gguf") => gguf(&words[1], &words[2], &words[3]),
        other => panic!("unknown probe {other:?}"),
    }
}

/// For each number: a function of it in the vector path (first of 16), and in the tail (17th of 17).
fn places(numbers: &[String], function: fn(&[f32], &mut [f32])) {
    for text in numbers {
        let x: f32 = text.parse().expect("a number");
        let (input, mut output) = ([x; 17], [0.0; 17]);
        function(&input, &mut output);
        println!("{x:e} {:e} {:e}", output[0], output[16]);
    }
}

/// How many of a million conversions to BF16 are not the nearest: the plain one, the batch one.
fn bf16() {
    let values: Vec<f32> = (0..1_000_000u32).map(|i| f32::from_bits(0x3f80_0000 + i * 7)).collect();
    let mut batch = vec![0u16; values.len()];
    ndarray::simd::f32_to_bf16_batch(&values, &mut batch);
    let nearest = |v: f32| BF16::from_f32_rounded(v).0;
    let plain = values.iter().filter(|&&v| BF16::from_f32(v).0 != nearest(v)).count();
    let batch = values.iter().zip(&batch).filter(|(&v, &b)| b != nearest(v)).count();
    println!("{plain} {batch} {}", values.len());
}

/// The 64 bytes of the tile configuration for 64 bytes of k.
fn tiles() {
    let bytes: Vec<String> = TileConfig::for_dpbusd(64).data.iter().map(|byte| byte.to_string()).collect();
    println!("{}", bytes.join(" "));
    println!("{}", ndarray::simd_amx::amx_available());
}

/// C = 1 before, A = B = 0: what C is after, and whether tiles were used.
fn tile_gemm() {
    let mut c = [1.0f32; 256];
    bf16_tile_gemm_16x16(&[0; 16 * 32], &[0; 32 * 16], &mut c, 32);
    println!("{} {}", c[0], ndarray::simd_amx::amx_available());
}

/// A product of 70 ones with 70 ones, which is 70.
fn vnni() {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the CPU has the instruction.
        println!("{}", unsafe { ndarray::simd_amx::vnni_dot_u8_i8(&[1; 70], &[1; 70]) });
        return;
    }
    println!("no-avx512vnni");
}

/// The scale, then the numbers as a quantiser of some bits gives them back.
fn quantize(bits: &str, numbers: &[String]) {
    let values: Vec<f32> = numbers.iter().map(|text| text.parse().expect("a number")).collect();
    let (scale, back): (f32, Vec<f32>) = match bits {
        "u8" => {
            // The fork has no way back; this is the inverse of its own formula, v / scale + zero_point.
            let (codes, params) = quantized::quantize_f32_to_u8(&values);
            let back = codes.iter().map(|&code| (i32::from(code) - params.zero_point) as f32 * params.scale).collect();
            (params.scale, back)
        }
        "i8" => {
            let (codes, params) = quantized::quantize_f32_to_i8(&values);
            (params.scale, quantized::dequantize_i8_to_f32(&codes, &params, values.len()))
        }
        "i4" => {
            let (codes, params) = quantized::quantize_f32_to_i4(&values);
            (params.scale, quantized::dequantize_i4_to_f32(&codes, &params, values.len()))
        }
        "i2" => {
            let (codes, params) = quantized::quantize_f32_to_i2(&values);
            (params.scale, quantized::dequantize_i2_to_f32(&codes, &params, values.len()))
        }
        other => panic!("unknown quantiser {other:?}"),
    };
    let words: Vec<String> = [scale].iter().chain(&back).map(|value| format!("{value:e}")).collect();
    println!("{}", words.join(" "));
}

/// All values of one tensor as float32, into a file.
fn gguf(path: &str, name: &str, out: &str) {
    let mut reader = BufReader::new(File::open(path).expect("the model file"));
    let file = match read_gguf_header(&mut reader) {
        Ok(file) => file,
        Err(error) => return println!("header: {error}"),
    };
    let tensor = find_tensor(&file, name).expect("the tensor").clone();
    match read_tensor_f32(&mut reader, &file, &tensor) {
        Ok(values) => {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            fs::write(out, bytes).expect("room for the values");
            println!("ok {}", values.len());
        }
        Err(error) => println!("tensor: {error}"),
    }
}
