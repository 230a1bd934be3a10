//! Which of the architecture's own keys are read, which change no logit, and which must have a neutral value.

use super::keys::Keys;
use crate::gguf::Value;
use crate::model_error::Result;

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

impl Keys<'_> {
    /// Refuse every key of the architecture that would change the result and is not implemented.
    pub fn refuse_what_is_not_computed(&self) -> Result<()> {
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
