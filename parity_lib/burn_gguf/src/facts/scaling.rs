//! RoPE's base and scaling, as the reference reads them.

use super::keys::Keys;
use super::shown::shown;
use crate::gguf::Value;
use crate::model_error::Result;
use crate::rope::{Scaling, ScalingKind};

impl Keys<'_> {
    pub fn rope_base(&self) -> Result<f32> {
        const WHY: &str = "a positive f32 (without it llama.cpp takes 10000, which is wrong for most models)";
        if self.get("rope.freq_base").is_none() {
            return Err(self.missing("rope.freq_base", WHY));
        }
        self.positive("rope.freq_base")
    }

    /// RoPE's scaling as the reference reads it: no type is `linear`, no factor and the factor 0 divide by one.
    pub fn rope_scaling(&self, n_ctx_train: usize) -> Result<Scaling> {
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
}
