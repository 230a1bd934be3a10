//! Sites: the values inside the forward pass that can be looked at, by the names of llama.cpp's graph nodes.

use std::collections::{BTreeMap, BTreeSet};

use crate::matrix::Matrix;
use crate::refusal::{Refusal, Result};

/// Sites outside of the blocks: after the embedding, after the last norm, the logits.
pub const GLOBAL_SITES: [&str; 3] = ["embd", "result_norm", "result_output"];

/// Sites of every block, in the order of execution; block L has `attn_norm-L` and so on.
///
/// `Qcur`, `Kcur`, `Vcur` are taken after bias and RoPE, the last of the nodes that share a name in the reference. Each
/// is `(n_rows, width)`, rows in the order in which they were fed, heads side by side.
pub const BLOCK_SITES: [&str; 13] = [
    "attn_norm",
    "Qcur",
    "Kcur",
    "Vcur",
    "kqv_out",
    "attn_out",
    "ffn_inp",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_swiglu",
    "ffn_out",
    "l_out",
];

/// One site's values: `(n_rows, width)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tap {
    pub shape: [usize; 2],
    pub data: Vec<f32>,
}

/// Which sites to look at, and what was seen. Looking copies; it changes nothing.
#[derive(Debug, Default)]
pub struct Taps {
    wanted: BTreeSet<String>,
    taken: BTreeMap<String, Tap>,
}

impl Taps {
    /// Look at nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Look at these sites; refuses a name that a model of `n_layer` blocks does not have.
    pub fn new(names: &[String], n_layer: usize) -> Result<Self> {
        for name in names {
            let in_block = name.rsplit_once('-').is_some_and(|(site, block)| {
                BLOCK_SITES.contains(&site) && block.parse::<usize>().is_ok_and(|block| block < n_layer)
            });
            if !in_block && !GLOBAL_SITES.contains(&name.as_str()) {
                let last = n_layer.saturating_sub(1);
                let expected =
                    format!("{}, or one of {} with -0 to -{last}", GLOBAL_SITES.join(", "), BLOCK_SITES.join(", "));
                return Err(Refusal::UnknownSite { expected, found: name.clone() });
            }
        }
        Ok(Self { wanted: names.iter().cloned().collect(), taken: BTreeMap::new() })
    }

    /// Look at a site of a block.
    pub fn block(&mut self, site: &str, block: usize, values: &Matrix) {
        if !self.wanted.is_empty() {
            self.global(&format!("{site}-{block}"), values);
        }
    }

    /// Look at a site outside of the blocks.
    pub fn global(&mut self, site: &str, values: &Matrix) {
        if self.wanted.contains(site) {
            let shape = [values.n_positions, values.n_features];
            self.taken.insert(site.into(), Tap { shape, data: values.to_rows_vec() });
        }
    }

    /// Whether a site was asked for.
    pub fn wants(&self, site: &str) -> bool {
        self.wanted.contains(site)
    }

    /// Everything that was seen, by name.
    pub fn into_taken(self) -> BTreeMap<String, Tap> {
        self.taken
    }
}
