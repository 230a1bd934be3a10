//! What a model is: facts read from the file's metadata, never guessed.
//!
//! Allowed derivations, and no others: key length = n_embd / n_head, value length = key length, n_head_kv = n_head,
//! rotary dimension = key length, vocabulary size = number of tokens. Epsilon, RoPE base and architecture have no
//! default: the reference would take 10000 for a missing base, and a file that relies on it is refused here by name.

use std::path::Path;

use serde::Serialize;

use crate::attention::Heads;
use crate::gguf::{GgufFile, Value};
use crate::ops::Pairing;
use crate::refusal::{Refusal, Result};

/// Architectures with a forward pass here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    Llama,
    Qwen2,
}

impl Architecture {
    /// The name in `general.architecture`, which is also the prefix of its keys.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
        }
    }

    /// Which values RoPE rotates together.
    pub fn pairing(self) -> Pairing {
        match self {
            Architecture::Llama => Pairing::Adjacent,
            Architecture::Qwen2 => Pairing::Halves,
        }
    }
}

/// Facts of a model, as the file states them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    pub arch: Architecture,
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub key_length: usize,
    pub value_length: usize,
    pub n_ff: usize,
    pub n_vocab: usize,
    pub n_ctx_train: usize,
    pub rms_eps: f32,
    pub rope_base: f32,
    pub rope_dim: usize,
}

impl Facts {
    /// Read and check the metadata.
    pub fn read(file: &GgufFile) -> Result<Self> {
        let arch = architecture(file)?;
        let keys = Keys { file, prefix: arch.name() };
        keys.refuse_what_is_not_computed()?;
        let n_embd = keys.count("embedding_length")?;
        let n_head = keys.count("attention.head_count")?;
        let key_length = match keys.optional_count("attention.key_length")? {
            Some(length) => length,
            None => keys.whole("attention.head_count", n_embd, n_head)?,
        };
        let n_head_kv = keys.optional_count("attention.head_count_kv")?.unwrap_or(n_head);
        keys.whole("attention.head_count_kv", n_head, n_head_kv)?;
        let rope_dim = keys.optional_count("rope.dimension_count")?.unwrap_or(key_length);
        if rope_dim > key_length || !rope_dim.is_multiple_of(2) {
            let expected = format!("an even number, at most the key length {key_length}");
            return Err(keys.bad("rope.dimension_count", &expected, &rope_dim.to_string()));
        }
        Ok(Self {
            arch,
            n_layer: keys.count("block_count")?,
            n_embd,
            n_head,
            n_head_kv,
            key_length,
            value_length: keys.optional_count("attention.value_length")?.unwrap_or(key_length),
            n_ff: keys.count("feed_forward_length")?,
            n_vocab: keys.vocabulary()?,
            n_ctx_train: keys.count("context_length")?,
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            rope_base: keys.positive("rope.freq_base")?,
            rope_dim,
        })
    }

    /// Head counts and sizes for attention.
    pub fn heads(&self) -> Heads {
        Heads { n_head: self.n_head, n_head_kv: self.n_head_kv, key: self.key_length, value: self.value_length }
    }
}

fn architecture(file: &GgufFile) -> Result<Architecture> {
    let key = "general.architecture";
    let path = || file.path.clone();
    let value = file.get(key).ok_or_else(|| Refusal::MissingKey {
        file: path(),
        key: key.into(),
        expected: "llama or qwen2",
    })?;
    let name = value.as_str().ok_or_else(|| Refusal::BadValue {
        file: path(),
        key: key.into(),
        expected: "a string".into(),
        found: value.type_name().into(),
    })?;
    match name {
        "llama" => Ok(Architecture::Llama),
        "qwen2" => Ok(Architecture::Qwen2),
        other => Err(Refusal::UnsupportedArchitecture { file: path(), found: other.into() }),
    }
}

/// Keys that are read.
const READ: [&str; 12] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
];

/// Keys that change nothing while RoPE is not scaled.
const WITHOUT_EFFECT: [&str; 3] =
    ["rope.scaling.finetuned", "rope.scaling.original_context_length", "tensor_data_layout"];

/// The architecture's own keys of a file.
struct Keys<'a> {
    file: &'a GgufFile,
    prefix: &'static str,
}

impl Keys<'_> {
    fn path(&self) -> &Path {
        &self.file.path
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn bad(&self, key: &str, expected: &str, found: &str) -> Refusal {
        let (expected, found) = (expected.into(), found.into());
        Refusal::BadValue { file: self.path().into(), key: self.full(key), expected, found }
    }

    fn missing(&self, key: &str, expected: &'static str) -> Refusal {
        Refusal::MissingKey { file: self.path().into(), key: self.full(key), expected }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.file.get(&self.full(key))
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Above 2^32 nothing is a head count or a width, and products of two still fit.
        let count = value.as_u64().filter(|n| (1..1 << 32).contains(n));
        match count {
            Some(count) => Ok(Some(count as usize)),
            None => Err(self.bad(key, "one positive integer", &shown(value))),
        }
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key, "a positive integer"))
    }

    fn positive(&self, key: &str) -> Result<f32> {
        let value = self.get(key).ok_or_else(|| self.missing(key, "a positive f32"))?;
        let number = value.as_f32().filter(|x| x.is_finite() && *x > 0.0);
        number.ok_or_else(|| self.bad(key, "a positive f32", &shown(value)))
    }

    /// `a / b`, refused if it is not whole.
    fn whole(&self, key: &str, a: usize, b: usize) -> Result<usize> {
        if !a.is_multiple_of(b) {
            return Err(self.bad(key, &format!("a divisor of {a}"), &b.to_string()));
        }
        Ok(a / b)
    }

    /// The reference counts the tokens; only a file without tokens is asked for `vocab_size`.
    fn vocabulary(&self) -> Result<usize> {
        let stated = self.optional_count("vocab_size")?;
        let tokens = self.file.get("tokenizer.ggml.tokens").and_then(Value::as_array).map(|tokens| tokens.len());
        match (tokens, stated) {
            (Some(tokens), Some(stated)) if tokens != stated => {
                let expected = format!("the number of tokens, {tokens}");
                Err(self.bad("vocab_size", &expected, &stated.to_string()))
            }
            (Some(0), _) => Err(self.bad("vocab_size", "at least one token", "an empty list of tokens")),
            (Some(tokens), _) => Ok(tokens),
            (None, Some(stated)) => Ok(stated),
            (None, None) => Err(self.missing("vocab_size", "a list of tokens or a vocabulary size")),
        }
    }

    /// Refuse every key of the architecture that would change the result and is not implemented.
    fn refuse_what_is_not_computed(&self) -> Result<()> {
        let prefix = format!("{}.", self.prefix);
        for (key, value) in &self.file.metadata {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            if READ.contains(&name) || WITHOUT_EFFECT.contains(&name) {
                continue;
            }
            let (neutral, expected) = match name {
                "rope.scaling.type" => (value.as_str() == Some("none"), "no RoPE scaling, or the type \"none\""),
                "rope.scaling.factor" | "rope.scale_linear" | "rope.scaling.attn_factor" => {
                    (value.as_f32() == Some(1.0), "no RoPE scaling, or the factor 1.0")
                }
                "attention.causal" => (value.as_bool() == Some(true), "causal attention"),
                "expert_count" | "expert_used_count" => (value.as_u64() == Some(0), "a model without experts"),
                _ => (false, "a key of the forward pass"),
            };
            if !neutral {
                let (file, found) = (self.path().into(), shown(value));
                return Err(Refusal::UnsupportedKey { file, key: key.clone(), expected, found });
            }
        }
        match self.file.get("split.count").and_then(Value::as_u64) {
            None | Some(0 | 1) => Ok(()),
            Some(parts) => Err(Refusal::UnsupportedKey {
                file: self.path().into(),
                key: "split.count".into(),
                expected: "a model in one file",
                found: parts.to_string(),
            }),
        }
    }
}

/// A value as a message shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Value::Array(array) => format!("an array of {}", array.len()),
        Value::F32(x) => format!("{x}"),
        Value::F64(x) => format!("{x} (f64)"),
        Value::Bool(x) => format!("{x}"),
        other => other.as_u64().map_or_else(|| format!("a negative {}", other.type_name()), |n| n.to_string()),
    }
}
