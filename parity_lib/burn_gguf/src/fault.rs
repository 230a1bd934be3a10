//! Seeded faults: wrong on purpose, so that the suite can show which of its gates catches what.
//!
//! A fault is an explicit argument of the model, refused if unknown, and part of what a run says about itself. Here is
//! what can be asked for; `faulty.rs` does it. Both are in builds with the feature `faults` only.

use crate::model_error::{ModelError, Result};

/// Every fault, as it is written, and what it does.
pub const FAULTS: [(&str, &str); 16] = [
    ("eps_x10@blk.N|all", "epsilon of both norms of block N, or of every norm, is ten times too large"),
    ("rope_base=X", "RoPE turns with base X"),
    ("rope_off_by_one[@from=P]", "RoPE sees position p as p + 1, from position P on (1 if not given)"),
    ("swapped_pairing", "RoPE pairs values as the other convention does"),
    ("dropped_bias=q|k|v|q@blk.N|k@blk.N|v@blk.N", "the bias of that projection is not added, in block N or in all"),
    (
        "kv_slot_stale[@blk.N]",
        "the key of position 2 is not written, in block N or in all: its slot holds position 1's",
    ),
    (
        "softmax_scale[=X|X@blk.N]",
        "attention scores of block N, or of all, are scaled X times too much (1.01 if not given)",
    ),
    ("swap_gate_up[@blk.N]", "SwiGLU gates with up instead of gate, in block N or in all"),
    ("k_head_permuted[@blk.N]", "neighbouring values of key head 0 are swapped in block N (0 if not given)"),
    ("norm_weight_1pct@blk.N", "one weight of the attention norm of block N is 1 % too large"),
    ("bf16_truncation", "weights are cut to BF16 instead of used as they are"),
    ("token_off=R", "row R of a pass is fed the next token id"),
    ("drop_row=S", "sequence S of a scoring loses its last row"),
    ("die", "the process aborts in the middle of the forward pass"),
    ("panic", "the engine panics in the middle of the forward pass"),
    ("nan@blk.N", "one value of the residual stream after block N is NaN"),
];

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    EpsTimes10(Option<usize>),
    RopeBase(f32),
    RopeOffByOne(usize),
    SwappedPairing,
    /// The site of the sum.
    DroppedBias(&'static str),
    KvSlotStale,
    SoftmaxScale(f32),
    SwapGateUp,
    KHeadPermuted(usize),
    NormWeight1Pct(usize),
    Bf16Truncation,
    TokenOff(usize),
    DropRow(usize),
    Die,
    Panic,
    Nan(usize),
}

/// One fault, and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub kind: Kind,
    /// The only block that the fault is in, for the kinds that are in every block without it.
    only: Option<usize>,
}

impl Fault {
    /// Read a fault; refuses what is not in [`FAULTS`], and blocks that a model of `n_layer` blocks does not have.
    pub fn parse(text: &str, n_layer: usize) -> Result<Self> {
        let unknown = || ModelError::UnknownOption {
            option: "fault",
            expected: format!(
                "{} (blocks 0 to {})",
                FAULTS.map(|(name, _)| name).join(", "),
                n_layer.saturating_sub(1)
            ),
            found: text.into(),
        };
        let (head, only) = only_block(text).ok_or_else(unknown)?;
        let kind = parse_kind(head).ok_or_else(unknown)?;
        if kind.block().or(only).is_some_and(|block| block >= n_layer) {
            return Err(unknown());
        }
        Ok(Self { kind, only })
    }

    /// Whether a fault of every block, or of one alone, is in this one.
    pub fn is_in(&self, block: Option<usize>) -> bool {
        self.only.is_none() || self.only == block
    }
}

impl Kind {
    /// The block that a fault names.
    fn block(&self) -> Option<usize> {
        match *self {
            Kind::EpsTimes10(block) => block,
            Kind::KHeadPermuted(block) | Kind::NormWeight1Pct(block) | Kind::Nan(block) => Some(block),
            _ => None,
        }
    }
}

/// A fault without the block that it is confined to, and that block; `None` where the number is none.
fn only_block(text: &str) -> Option<(&str, Option<usize>)> {
    let confined = ["dropped_bias=", "kv_slot_stale@", "softmax_scale=", "swap_gate_up@"];
    match text.split_once("@blk.") {
        Some((head, block)) if confined.iter().any(|name| text.starts_with(name)) => {
            Some((head, Some(block.parse().ok()?)))
        }
        _ => Some((text, None)),
    }
}

fn parse_kind(text: &str) -> Option<Kind> {
    let split = text.find(['@', '=']).unwrap_or(text.len());
    let (name, argument) = text.split_at(split);
    let value = argument.strip_prefix('=');
    let block = || argument.strip_prefix("@blk.").and_then(|n| n.parse().ok());
    let factor = || value.and_then(|x| x.parse::<f32>().ok()).filter(|x| x.is_finite() && *x > 0.0);
    match (name, argument) {
        ("eps_x10", "@all") => Some(Kind::EpsTimes10(None)),
        ("eps_x10", _) => block().map(|n| Kind::EpsTimes10(Some(n))),
        ("rope_base", _) => factor().map(Kind::RopeBase),
        ("rope_off_by_one", "") => Some(Kind::RopeOffByOne(1)),
        ("rope_off_by_one", _) => argument.strip_prefix("@from=")?.parse().ok().map(Kind::RopeOffByOne),
        ("swapped_pairing", "") => Some(Kind::SwappedPairing),
        ("dropped_bias", "=q") => Some(Kind::DroppedBias("Qcur.ADD")),
        ("dropped_bias", "=k") => Some(Kind::DroppedBias("Kcur.ADD")),
        ("dropped_bias", "=v") => Some(Kind::DroppedBias("Vcur.ADD")),
        ("kv_slot_stale", "") => Some(Kind::KvSlotStale),
        ("softmax_scale", "") => Some(Kind::SoftmaxScale(1.01)),
        ("softmax_scale", _) => factor().map(Kind::SoftmaxScale),
        ("swap_gate_up", "") => Some(Kind::SwapGateUp),
        ("k_head_permuted", "") => Some(Kind::KHeadPermuted(0)),
        ("k_head_permuted", _) => block().map(Kind::KHeadPermuted),
        ("norm_weight_1pct", _) => block().map(Kind::NormWeight1Pct),
        ("bf16_truncation", "") => Some(Kind::Bf16Truncation),
        ("token_off", _) => value?.parse().ok().map(Kind::TokenOff),
        ("drop_row", _) => value?.parse().ok().map(Kind::DropRow),
        ("die", "") => Some(Kind::Die),
        ("panic", "") => Some(Kind::Panic),
        ("nan", _) => block().map(Kind::Nan),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_fault_has_a_form_that_parses() {
        let forms = [
            "eps_x10@blk.1",
            "rope_base=10000",
            "rope_off_by_one@from=20",
            "swapped_pairing",
            "dropped_bias=k",
            "kv_slot_stale",
            "softmax_scale=2",
            "swap_gate_up",
            "k_head_permuted@blk.1",
            "norm_weight_1pct@blk.0",
            "bf16_truncation",
            "token_off=3",
            "drop_row=0",
            "die",
            "panic",
            "nan@blk.1",
        ];
        assert_eq!(forms.len(), FAULTS.len());
        for (form, (listed, _)) in forms.iter().zip(FAULTS) {
            let name = |text: &str| text.split(['@', '=', '[']).next().map(str::to_owned);
            assert_eq!(name(form), name(listed));
            assert!(Fault::parse(form, 2).is_ok(), "{form}");
        }
    }

    #[test]
    fn unknown_faults_and_blocks_are_refused_by_name() {
        for text in [
            "",
            "eps",
            "eps_x10",
            "eps_x10@blk.2",
            "eps_x10@blk.x",
            "rope_base=",
            "rope_base=-1",
            "nan@all",
            "die=1",
            "dropped_bias=o",
            "dropped_bias=q@blk.2",
            "swap_gate_up@blk.x",
            "softmax_scale@blk.0",
            "rope_base=2@blk.0",
        ] {
            let error = Fault::parse(text, 2).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("eps_x10@blk.N|all"), "{error}");
        }
    }
}
