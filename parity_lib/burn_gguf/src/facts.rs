//! What a model is: facts read from the file's metadata, never guessed.
//!
//! Allowed derivations, and no others: key length = n_embd / n_head, value length = key length, n_head_kv = n_head,
//! rotary dimension = key length, vocabulary size = number of tokens. Epsilon, RoPE base and architecture have no
//! default: the reference would take 10000 for a missing base, and a file that relies on it is refused here by name.

use std::path::Path;

use serde::Serialize;

use crate::attention::Heads;
use crate::gguf::{Array, GgufFile, Value};
use crate::model_error::{ModelError, Result};
use crate::rope::{Pairing, Scaling, ScalingKind};

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
    pub rope_scaling: Scaling,
}

impl Facts {
    /// Read and check the metadata.
    pub fn read(file: &GgufFile) -> Result<Self> {
        refuse_part(file)?;
        let arch = architecture(file)?;
        let keys = Keys { file, prefix: arch.name() };
        keys.refuse_what_is_not_computed()?;
        let n_embd = keys.count("embedding_length")?;
        let n_layer = keys.count("block_count")?;
        let n_head = keys.same_in_layers("attention.head_count", n_layer)?;
        let n_head = n_head.ok_or_else(|| keys.missing("attention.head_count", COUNT))?;
        let key_length = match keys.optional_count("attention.key_length")? {
            Some(length) => length,
            None => keys.whole("attention.head_count", n_embd, n_head)?,
        };
        let n_head_kv = keys.same_in_layers("attention.head_count_kv", n_layer)?.unwrap_or(n_head);
        keys.whole("attention.head_count_kv", n_head, n_head_kv)?;
        let rope_dim = keys.optional_count("rope.dimension_count")?.unwrap_or(key_length);
        if rope_dim > key_length || !rope_dim.is_multiple_of(2) {
            let expected = format!("an even number, at most the key length {key_length}");
            return Err(keys.bad("rope.dimension_count", &expected, &rope_dim.to_string()));
        }
        let n_ff = keys.same_in_layers("feed_forward_length", n_layer)?;
        let n_ctx_train = keys.count("context_length")?;
        Ok(Self {
            arch,
            n_layer,
            n_embd,
            n_head,
            n_head_kv,
            key_length,
            value_length: keys.optional_count("attention.value_length")?.unwrap_or(key_length),
            n_ff: n_ff.ok_or_else(|| keys.missing("feed_forward_length", COUNT))?,
            n_vocab: keys.vocabulary()?,
            n_ctx_train,
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            rope_base: keys.rope_base()?,
            rope_dim,
            rope_scaling: keys.rope_scaling(n_ctx_train)?,
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
    let value = file.get(key).ok_or_else(|| ModelError::MissingKey {
        file: path(),
        key: key.into(),
        expected: "llama or qwen2",
    })?;
    let name = value.as_str().ok_or_else(|| ModelError::BadValue {
        file: path(),
        key: key.into(),
        expected: "a string".into(),
        found: value.type_name().into(),
    })?;
    match name {
        "llama" => Ok(Architecture::Llama),
        "qwen2" => Ok(Architecture::Qwen2),
        other => Err(ModelError::UnsupportedArchitecture { file: path(), found: other.into() }),
    }
}

/// What a missing count should have been.
const COUNT: &str = "a positive integer";

/// Keys that are read.
const READ: [&str; 17] = [
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
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
];

/// Keys of other tasks, and keys that say where a model comes from: no logit depends on them.
const WITHOUT_EFFECT: [&str; 6] = [
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "pooling_type",
    "classifier.output_labels",
    "classifier.pooling_type",
    "embedding_length_out",
];

/// Keys with the one value that changes nothing.
const NEUTRAL: [(&str, Neutral); 19] = [
    ("attention.causal", Neutral::True),
    ("expert_count", Neutral::Zero),
    ("expert_used_count", Neutral::Zero),
    ("expert_group_count", Neutral::Zero),
    ("expert_group_used_count", Neutral::Zero),
    ("nextn_predict_layers", Neutral::Zero),
    ("attention.sliding_window", Neutral::Zero),
    ("attention.scale", Neutral::F32(0.0)),
    ("attention.clamp_kqv", Neutral::F32(0.0)),
    ("attention.max_alibi_bias", Neutral::F32(0.0)),
    ("attn_logit_softcapping", Neutral::F32(0.0)),
    ("final_logit_softcapping", Neutral::F32(0.0)),
    ("logit_scale", Neutral::F32(0.0)),
    ("residual_scale", Neutral::F32(0.0)),
    ("embedding_scale", Neutral::F32(0.0)),
    ("rope.scaling.yarn_log_multiplier", Neutral::F32(0.0)),
    ("rope.scaling.yarn_attn_factor", Neutral::F32(1.0)),
    ("rope.scaling.yarn_beta_fast", Neutral::F32(32.0)),
    ("rope.scaling.yarn_beta_slow", Neutral::F32(1.0)),
];

/// A value that changes nothing.
#[derive(Clone, Copy)]
enum Neutral {
    True,
    /// An integer of any width.
    Zero,
    F32(f32),
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match self {
            Neutral::True => value.as_bool() == Some(true),
            Neutral::Zero => value.as_u64() == Some(0),
            Neutral::F32(x) => value.as_f32() == Some(x),
        }
    }

    fn text(self) -> String {
        match self {
            Neutral::True => "true, or no such key".into(),
            Neutral::Zero => "0, or no such key".into(),
            Neutral::F32(x) => format!("{x} (f32), or no such key"),
        }
    }
}

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

    fn bad(&self, key: &str, expected: &str, found: &str) -> ModelError {
        let (expected, found) = (expected.into(), found.into());
        ModelError::BadValue { file: self.path().into(), key: self.full(key), expected, found }
    }

    fn missing(&self, key: &str, expected: &'static str) -> ModelError {
        ModelError::MissingKey { file: self.path().into(), key: self.full(key), expected }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.file.get(&self.full(key))
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match small(value.as_u64()) {
            Some(count) => Ok(Some(count)),
            None => Err(self.bad(key, "one positive integer", &shown(value))),
        }
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key, COUNT))
    }

    /// A count that a file may state once, or once for each layer: then all have to be the same.
    fn same_in_layers(&self, key: &str, n_layer: usize) -> Result<Option<usize>> {
        let Some(Value::Array(array)) = self.get(key) else { return self.optional_count(key) };
        let numbers = integers(array).filter(|numbers| numbers.len() == n_layer && !numbers.is_empty());
        let same = numbers.filter(|numbers| numbers.iter().all(|number| *number == numbers[0]));
        let count = same.and_then(|numbers| small(u64::try_from(numbers[0]).ok()));
        let expected = format!("one positive integer, or an array of {n_layer} equal ones, one a layer");
        count.map(Some).ok_or_else(|| self.bad(key, &expected, &shown_array(array)))
    }

    fn rope_base(&self) -> Result<f32> {
        const WHY: &str = "a positive f32 (without it llama.cpp takes 10000, which is wrong for most models)";
        if self.get("rope.freq_base").is_none() {
            return Err(self.missing("rope.freq_base", WHY));
        }
        self.positive("rope.freq_base")
    }

    /// RoPE's scaling as the reference reads it: no type is `linear`, no factor and the factor 0 divide by one.
    fn rope_scaling(&self, n_ctx_train: usize) -> Result<Scaling> {
        const TYPE: &str = "rope.scaling.type";
        let kind = match self.get(TYPE) {
            None => ScalingKind::Linear,
            Some(value) => match value.as_str() {
                Some("none") => ScalingKind::None,
                Some("linear") => ScalingKind::Linear,
                Some("yarn") => ScalingKind::Yarn,
                _ => return Err(self.unsupported(TYPE, "none, linear or yarn", value)),
            },
        };
        let old = if self.get("rope.scaling.factor").is_some() { "rope.scaling.factor" } else { "rope.scale_linear" };
        let factor = match self.get(old) {
            None => 1.0,
            Some(value) => match value.as_f32().filter(|x| x.is_finite() && *x >= 0.0) {
                Some(factor) => factor,
                None => return Err(self.bad(old, "an f32, 0 or positive", &shown(value))),
            },
        };
        let factor = if factor == 0.0 || kind == ScalingKind::None { 1.0 } else { factor };
        let attn_factor = match self.get("rope.scaling.attn_factor") {
            None => 1.0,
            Some(_) => self.positive("rope.scaling.attn_factor")?,
        };
        const CONTEXT: &str = "rope.scaling.original_context_length";
        let n_ctx_orig = match self.get(CONTEXT).map(Value::as_u64) {
            None | Some(Some(0)) => n_ctx_train,
            Some(_) => self.count(CONTEXT)?,
        };
        let kind = if kind == ScalingKind::Linear && factor == 1.0 { ScalingKind::None } else { kind };
        Ok(Scaling { kind, factor, attn_factor, n_ctx_orig })
    }

    fn unsupported(&self, key: &str, expected: &str, value: &Value) -> ModelError {
        let (file, key, found) = (self.path().into(), self.full(key), shown(value));
        ModelError::UnsupportedKey { file, key, expected: expected.into(), found }
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

    /// The reference counts the tokens; only of a file without a tokenizer it reads `vocab_size`.
    fn vocabulary(&self) -> Result<usize> {
        match self.file.get("tokenizer.ggml.tokens").and_then(Value::as_array).map(Array::len) {
            Some(0) => Err(ModelError::BadValue {
                file: self.path().into(),
                key: "tokenizer.ggml.tokens".into(),
                expected: "at least one token".into(),
                found: "an array of 0".into(),
            }),
            Some(tokens) => Ok(tokens),
            None => self.optional_count("vocab_size")?.ok_or_else(|| {
                self.missing("vocab_size", "a list of tokens (tokenizer.ggml.tokens) or a vocabulary size")
            }),
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
            match NEUTRAL.iter().find(|(known, _)| *known == name) {
                Some((_, neutral)) if neutral.is(value) => {}
                Some((_, neutral)) => return Err(self.unsupported(name, &neutral.text(), value)),
                None => return Err(self.unsupported(name, "a key of the forward pass, or one without effect", value)),
            }
        }
        Ok(())
    }
}

/// Refuse a file that is a part of a model; parts behind the first have no other keys.
fn refuse_part(file: &GgufFile) -> Result<()> {
    let count = file.get("split.count").and_then(Value::as_u64).unwrap_or(1);
    if count <= 1 {
        return Ok(());
    }
    let number = file.get("split.no").and_then(Value::as_u64).unwrap_or(0).saturating_add(1);
    let (first, whole) = part_names(&file.path, number, count);
    Err(ModelError::Part { file: file.path.clone(), count, number, first, whole })
}

/// The first part's path, and one for the merged model, by the name of part `number` of `count`.
fn part_names(path: &Path, number: u64, count: u64) -> (String, String) {
    let text = path.display().to_string();
    let tail = |number: u64| format!("-{number:05}-of-{count:05}.gguf");
    let stem = text.strip_suffix(&tail(number));
    match stem {
        Some(stem) => (format!("{stem}{}", tail(1)), format!("{stem}.gguf")),
        None => (format!("FIRST-00001-of-{count:05}.gguf"), "WHOLE.gguf".into()),
    }
}

/// A count. Above 2^32 nothing is a head count or a width, and products of two still fit.
fn small(number: Option<u64>) -> Option<usize> {
    number.filter(|n| (1..1 << 32).contains(n)).map(|n| n as usize)
}

/// The elements of an array of integers.
fn integers(array: &Array) -> Option<Vec<i128>> {
    fn wide<T: Copy + Into<i128>>(numbers: &[T]) -> Option<Vec<i128>> {
        Some(numbers.iter().map(|&number| number.into()).collect())
    }
    match array {
        Array::U8(v) => wide(v),
        Array::I8(v) => wide(v),
        Array::U16(v) => wide(v),
        Array::I16(v) => wide(v),
        Array::U32(v) => wide(v),
        Array::I32(v) => wide(v),
        Array::U64(v) => wide(v),
        Array::I64(v) => wide(v),
        _ => None,
    }
}

/// An array as a message shows it: integers, if they are few.
fn shown_array(array: &Array) -> String {
    match integers(array).filter(|numbers| numbers.len() <= 64) {
        Some(numbers) => format!("{numbers:?}"),
        None => format!("an array of {}", array.len()),
    }
}

/// A value as a message shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Value::Array(array) => shown_array(array),
        Value::F32(x) => format!("{x}"),
        Value::F64(x) => format!("{x} (f64)"),
        Value::Bool(x) => format!("{x}"),
        other => other.as_u64().map_or_else(|| format!("a negative {}", other.type_name()), |n| n.to_string()),
    }
}
