//! What a model is: facts read from the file's metadata, never guessed.
//!
//! Allowed derivations, and no others: key length = n_embd / n_head, value length = key length, n_head_kv = n_head,
//! rotary dimension = key length, vocabulary size = number of tokens. Epsilon, RoPE base and architecture have no
//! default: the reference would take 10000 for a missing base, and a file that relies on it is refused here by name.

mod effect;
mod keys;
mod parts;
mod scaling;
mod shown;

use serde::Serialize;

use self::keys::{Keys, COUNT};
use self::parts::refuse_part;
use crate::attention::Heads;
use crate::gguf::GgufFile;
use crate::model_error::{ModelError, Result};
use crate::rope::{Pairing, Scaling};

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
