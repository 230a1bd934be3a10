//! Builds small models: random weights from a counter, any sizes, any of the two architectures.
#![allow(dead_code)] // each test file uses its part

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use burn_gguf::engine::Run;
use burn_gguf::linear::Policy;
use burn_gguf::model::Model;
use burn_gguf::model_error::Result;
use burn_gguf::quant::GgmlType;

/// Sizes and switches of a model, and hooks to spoil it.
#[derive(Clone)]
pub struct Tiny {
    pub arch: &'static str,
    pub ty: GgmlType,
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub key: usize,
    pub value: usize,
    pub n_ff: usize,
    pub n_vocab: usize,
    pub rope_dim: usize,
    pub tied: bool,
    pub biases: bool,
    pub rope_freqs: bool,
    /// Keys to leave out, by the end of their name.
    pub without: Vec<&'static str>,
    /// Keys to add or replace: name, type number, bytes.
    pub with: Vec<(String, u32, Vec<u8>)>,
    /// Tensors to leave out.
    pub without_tensors: Vec<String>,
    /// Tensors to add or replace: name, dimensions.
    pub with_tensors: Vec<(String, Vec<u64>)>,
}

impl Default for Tiny {
    fn default() -> Self {
        Self {
            arch: "llama",
            ty: GgmlType::F32,
            n_layer: 3,
            n_embd: 64,
            n_head: 4,
            n_head_kv: 2,
            key: 24,
            value: 40,
            n_ff: 96,
            n_vocab: 101,
            rope_dim: 16,
            tied: false,
            biases: false,
            rope_freqs: false,
            without: Vec::new(),
            with: Vec::new(),
            without_tensors: Vec::new(),
            with_tensors: Vec::new(),
        }
    }
}

pub const U32: u32 = 4;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;

pub fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

/// A number in (-1, 1) for each (name, index).
pub fn noise(name: &str, index: usize) -> f32 {
    let seed = name.bytes().fold(index as u64 + 1, |z, byte| (z ^ u64::from(byte)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (seed ^ (seed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((z >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

impl Tiny {
    pub fn qwen2() -> Self {
        Self { arch: "qwen2", biases: true, ..Self::default() }
    }

    /// A model whose blocks are 32 or 256 values wide.
    pub fn blocks(ty: GgmlType) -> Self {
        Self { ty, n_embd: 256, key: 64, value: 64, rope_dim: 64, n_ff: 256, n_layer: 2, ..Self::default() }
    }

    /// Write the file, open it, delete it (what is mapped stays readable).
    pub fn open(&self, policy: Policy, n_threads: usize, fault: Option<&str>) -> Result<Model> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path: PathBuf = std::env::temp_dir().join(format!("burn_gguf-tiny-{}-{count}.gguf", std::process::id()));
        std::fs::write(&path, self.bytes()).unwrap();
        let run = Run { policy, n_threads, fault: fault.map(str::to_owned), ..Run::default() };
        let model = Model::open(&path, run);
        std::fs::remove_file(&path).unwrap();
        model
    }

    /// As f32, on two threads, without a fault.
    pub fn model(&self) -> Model {
        self.open(Policy::F32, 2, None).unwrap()
    }

    fn keys(&self) -> Vec<(String, u32, Vec<u8>)> {
        let key =
            |name: &str, value: usize| (format!("{}.{name}", self.arch), U32, (value as u32).to_le_bytes().to_vec());
        let mut keys = vec![
            ("general.architecture".into(), STRING, text(self.arch)),
            key("block_count", self.n_layer),
            key("context_length", 512),
            key("embedding_length", self.n_embd),
            key("feed_forward_length", self.n_ff),
            key("attention.head_count", self.n_head),
            key("attention.head_count_kv", self.n_head_kv),
            key("attention.key_length", self.key),
            key("attention.value_length", self.value),
            key("rope.dimension_count", self.rope_dim),
            key("vocab_size", self.n_vocab),
            (format!("{}.attention.layer_norm_rms_epsilon", self.arch), F32, 1e-5f32.to_le_bytes().to_vec()),
            (format!("{}.rope.freq_base", self.arch), F32, 1e4f32.to_le_bytes().to_vec()),
        ];
        keys.retain(|(name, ..)| !self.without.iter().any(|end| name.ends_with(end)));
        keys.retain(|(name, ..)| !self.with.iter().any(|(other, ..)| name == other));
        keys.extend(self.with.iter().cloned());
        keys
    }

    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let (e, q) = (self.n_embd as u64, (self.n_head * self.key) as u64);
        let (k, v) = ((self.n_head_kv * self.key) as u64, (self.n_head_kv * self.value) as u64);
        let (o, f, vocab) = ((self.n_head * self.value) as u64, self.n_ff as u64, self.n_vocab as u64);
        let mut tensors =
            vec![("token_embd.weight".to_string(), vec![e, vocab]), ("output_norm.weight".into(), vec![e])];
        if !self.tied {
            tensors.push(("output.weight".into(), vec![e, vocab]));
        }
        if self.rope_freqs {
            tensors.push(("rope_freqs.weight".into(), vec![self.rope_dim as u64 / 2]));
        }
        for layer in 0..self.n_layer {
            let mut block = vec![
                ("attn_norm.weight", vec![e]),
                ("attn_q.weight", vec![e, q]),
                ("attn_k.weight", vec![e, k]),
                ("attn_v.weight", vec![e, v]),
                ("attn_output.weight", vec![o, e]),
                ("ffn_norm.weight", vec![e]),
                ("ffn_gate.weight", vec![e, f]),
                ("ffn_up.weight", vec![e, f]),
                ("ffn_down.weight", vec![f, e]),
            ];
            if self.biases {
                block.extend([("attn_q.bias", vec![q]), ("attn_k.bias", vec![k]), ("attn_v.bias", vec![v])]);
            }
            if self.biases && self.arch == "llama" {
                block.extend([("attn_output.bias", vec![e]), ("ffn_gate.bias", vec![f]), ("ffn_up.bias", vec![f])]);
                block.push(("ffn_down.bias", vec![e]));
            }
            tensors.extend(block.into_iter().map(|(name, dims)| (format!("blk.{layer}.{name}"), dims)));
        }
        tensors.retain(|(name, _)| !self.without_tensors.contains(name));
        tensors.retain(|(name, _)| !self.with_tensors.iter().any(|(other, _)| name == other));
        tensors.extend(self.with_tensors.iter().cloned());
        tensors
    }

    fn bytes(&self) -> Vec<u8> {
        let (keys, tensors) = (self.keys(), self.tensors());
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((keys.len() as u64).to_le_bytes());
        for (name, ty, payload) in &keys {
            bytes.extend([&text(name)[..], &ty.to_le_bytes(), payload].concat());
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, dims) in &tensors {
            let ty = if dims.len() == 1 { GgmlType::F32 } else { self.ty };
            bytes.extend(text(name));
            bytes.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(ty.number().to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(self.values(name, dims, ty));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
        bytes
    }

    /// Norms around 1, divisors between 1 and 8, biases small, matrices calm.
    fn values(&self, name: &str, dims: &[u64], ty: GgmlType) -> Vec<u8> {
        let n: u64 = dims.iter().product();
        if ty != GgmlType::F32 {
            return random_blocks(ty, name, n as usize);
        }
        let value = |index: usize| match name {
            _ if name.contains("norm") => 1.0 + 0.25 * noise(name, index),
            _ if name.starts_with("rope") => 4.5 + 3.5 * noise(name, index),
            _ if name.ends_with("bias") => 0.3 * noise(name, index),
            _ => noise(name, index) / (dims[0] as f32).sqrt() * 1.5,
        };
        (0..n as usize).flat_map(|index| value(index).to_le_bytes()).collect()
    }
}

/// Random codes under small scales; every byte of a block is used.
pub fn random_blocks(ty: GgmlType, name: &str, n: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..n / ty.block_size() * ty.type_size()).map(|i| (noise(name, i) * 1e4) as i32 as u8).collect();
    for (index, block) in bytes.chunks_exact_mut(ty.type_size()).enumerate() {
        let small = |scale: f32| half::f16::from_f32(scale * (1.5 + noise(name, index))).to_le_bytes();
        match ty {
            GgmlType::F32 => block.copy_from_slice(&(noise(name, index) * 0.1).to_le_bytes()),
            GgmlType::F16 => block.copy_from_slice(&half::f16::from_f32(noise(name, index) * 0.1).to_le_bytes()),
            GgmlType::BF16 => block.copy_from_slice(&half::bf16::from_f32(noise(name, index) * 0.1).to_le_bytes()),
            GgmlType::Q8_0 => block[..2].copy_from_slice(&small(5e-4)),
            GgmlType::Q4_0 | GgmlType::Q5_0 => block[..2].copy_from_slice(&small(6e-3)),
            GgmlType::Q4_1 | GgmlType::Q5_1 => {
                block[..2].copy_from_slice(&small(6e-3));
                block[2..4].copy_from_slice(&small(-5e-2));
            }
            GgmlType::Q4_K | GgmlType::Q5_K => {
                block[..2].copy_from_slice(&small(2e-4));
                block[2..4].copy_from_slice(&small(1.5e-3));
            }
            GgmlType::Q6_K => block[208..].copy_from_slice(&small(3e-5)),
        }
    }
    bytes
}

/// Token ids from a counter.
pub fn tokens(n: usize, seed: usize, n_vocab: usize) -> Vec<u32> {
    (0..n).map(|i| ((noise("token", i + 1000 * seed) + 1.0) * 1e4) as u32 % n_vocab as u32).collect()
}
