//! Seeded faults: wrong on purpose, so that the suite can show which of its gates catches what.
//!
//! A fault is an explicit argument of the model, refused if unknown, and part of what a run says about itself. Without
//! one every hook returns what it was given.

use crate::ops::{Pairing, Rope};
use crate::refusal::{Refusal, Result};

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

/// A projection with a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    Q,
    K,
    V,
}

impl Projection {
    /// The site of the sum with this projection's bias.
    pub fn site(self) -> &'static str {
        match self {
            Self::Q => "Qcur.ADD",
            Self::K => "Kcur.ADD",
            Self::V => "Vcur.ADD",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    EpsTimes10(Option<usize>),
    RopeBase(f32),
    RopeOffByOne(usize),
    SwappedPairing,
    DroppedBias(Projection),
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

/// The one fault of a model, or none.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    kind: Option<Kind>,
    /// The only block that the fault is in, for the kinds that are in every block without it.
    only: Option<usize>,
    text: Option<String>,
}

impl Faults {
    /// No fault.
    pub fn none() -> Self {
        Self::default()
    }

    /// Read a fault; refuses what is not in [`FAULTS`], and blocks that a model of `n_layer` blocks does not have.
    pub fn parse(text: Option<&str>, n_layer: usize) -> Result<Self> {
        let Some(text) = text else { return Ok(Self::none()) };
        let unknown = || Refusal::UnknownOption {
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
        Ok(Self { kind: Some(kind), only, text: Some(text.into()) })
    }

    /// Whether a fault of every block, or of one alone, is in this one.
    fn is_in(&self, block: usize) -> bool {
        self.only.is_none_or(|only| only == block)
    }

    /// As it was written.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Epsilon of the norms of a block; `None` is the last norm.
    pub fn eps(&self, block: Option<usize>, eps: f32) -> f32 {
        match self.kind {
            Some(Kind::EpsTimes10(None)) => eps * 10.0,
            Some(Kind::EpsTimes10(wanted)) if wanted == block => eps * 10.0,
            _ => eps,
        }
    }

    /// How RoPE turns.
    pub fn rope(&self, mut rope: Rope) -> Rope {
        match self.kind {
            Some(Kind::RopeBase(base)) => rope.base = base,
            Some(Kind::SwappedPairing) => {
                rope.pairing = match rope.pairing {
                    Pairing::Adjacent => Pairing::Halves,
                    Pairing::Halves => Pairing::Adjacent,
                }
            }
            _ => {}
        }
        rope
    }

    /// The position that RoPE sees.
    pub fn position(&self, position: usize) -> usize {
        match self.kind {
            Some(Kind::RopeOffByOne(from)) if position >= from => position + 1,
            _ => position,
        }
    }

    /// Whether the bias of a projection is added.
    pub fn has_bias(&self, block: usize, projection: Projection) -> bool {
        self.kind != Some(Kind::DroppedBias(projection)) || !self.is_in(block)
    }

    /// Put position 1's key back into the slot of position 2, if these rows have just written it.
    pub fn stale_key(&self, block: usize, rows: &[(usize, usize)], keys: &mut [f32], width: usize) {
        if self.kind == Some(Kind::KvSlotStale) && self.is_in(block) && rows.iter().any(|(_, position)| *position == 2)
        {
            keys.copy_within(width..2 * width, 2 * width);
        }
    }

    /// Scale of the attention scores.
    pub fn softmax_scale(&self, block: usize, scale: f32) -> f32 {
        match self.kind {
            Some(Kind::SoftmaxScale(factor)) if self.is_in(block) => scale * factor,
            _ => scale,
        }
    }

    /// Whether gate and up trade places.
    pub fn swaps_gate_up(&self, block: usize) -> bool {
        self.kind == Some(Kind::SwapGateUp) && self.is_in(block)
    }

    /// Swap neighbouring values of key head 0 (`head` values at the start of a row).
    pub fn permute_key(&self, block: usize, row: &mut [f32], head: usize) {
        if self.kind == Some(Kind::KHeadPermuted(block)) {
            row[..head].chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        }
    }

    /// Whether [`Faults::permute_key`] does anything in this block.
    pub fn permutes_key(&self, block: usize) -> bool {
        self.kind == Some(Kind::KHeadPermuted(block))
    }

    /// The weights of the attention norm of a block.
    pub fn norm_weight(&self, block: usize, weight: &mut [f32]) {
        if self.kind == Some(Kind::NormWeight1Pct(block)) {
            // The middle one: no special place.
            let middle = weight.len() / 2;
            weight[middle] *= 1.01;
        }
    }

    /// Whether dequantised weights lose their low 16 bits.
    pub fn truncates_weights(&self) -> bool {
        self.kind == Some(Kind::Bf16Truncation)
    }

    /// The tokens of a pass.
    pub fn tokens(&self, tokens: &mut [u32], n_vocab: usize) {
        if let Some(Kind::TokenOff(row)) = self.kind {
            if let Some(token) = tokens.get_mut(row) {
                *token = (*token + 1) % n_vocab as u32;
            }
        }
    }

    /// Whether a sequence loses its last row.
    pub fn drops_row_of(&self, sequence: usize) -> bool {
        self.kind == Some(Kind::DropRow(sequence))
    }

    /// Abort or panic, if that is the fault.
    pub fn maybe_die(&self) {
        match self.kind {
            Some(Kind::Die) => std::process::abort(),
            Some(Kind::Panic) => panic!("seeded fault"),
            _ => {}
        }
    }

    /// One value of the residual stream after a block.
    pub fn residual(&self, block: usize, values: &mut [f32]) {
        if self.kind == Some(Kind::Nan(block)) {
            if let Some(last) = values.last_mut() {
                *last = f32::NAN;
            }
        }
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
        ("dropped_bias", "=q") => Some(Kind::DroppedBias(Projection::Q)),
        ("dropped_bias", "=k") => Some(Kind::DroppedBias(Projection::K)),
        ("dropped_bias", "=v") => Some(Kind::DroppedBias(Projection::V)),
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
            let faults = Faults::parse(Some(form), 2).unwrap();
            assert_eq!(faults.text(), Some(*form));
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
            let error = Faults::parse(Some(text), 2).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("eps_x10@blk.N|all"), "{error}");
        }
    }

    #[test]
    fn a_fault_of_every_block_can_be_confined_to_one() {
        let scaled = Faults::parse(Some("softmax_scale=2@blk.1"), 3).unwrap();
        assert_eq!([0, 1, 2].map(|block| scaled.softmax_scale(block, 1.0)), [1.0, 2.0, 1.0]);
        let swapped = Faults::parse(Some("swap_gate_up@blk.0"), 3).unwrap();
        assert_eq!([0, 1].map(|block| swapped.swaps_gate_up(block)), [true, false]);
        let dropped = Faults::parse(Some("dropped_bias=v@blk.2"), 3).unwrap();
        assert_eq!([1, 2].map(|block| dropped.has_bias(block, Projection::V)), [true, false]);
        assert!(dropped.has_bias(2, Projection::K));
        let stale = Faults::parse(Some("kv_slot_stale@blk.1"), 3).unwrap();
        let mut keys = [1.0, 2.0, 3.0];
        stale.stale_key(0, &[(0, 2)], &mut keys, 1);
        assert_eq!(keys, [1.0, 2.0, 3.0]);
        stale.stale_key(1, &[(0, 2)], &mut keys, 1);
        assert_eq!(keys, [1.0, 2.0, 2.0]);
    }

    #[test]
    fn without_a_fault_nothing_changes() {
        let none = Faults::parse(None, 2).unwrap();
        assert_eq!(none.eps(Some(0), 1e-5), 1e-5);
        assert_eq!(none.position(7), 7);
        assert!(none.has_bias(0, Projection::K) && !none.swaps_gate_up(0));
        let mut row = [1.0, 2.0];
        none.residual(0, &mut row);
        none.norm_weight(0, &mut row);
        none.permute_key(0, &mut row, 2);
        assert_eq!(row, [1.0, 2.0]);
    }
}
