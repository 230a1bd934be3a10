//! Sites: the values inside the forward pass that can be observed, by the names of llama.cpp's graph nodes.
//!
//! A looker only reads. An *observer* reads and may put another value in its place: with the reference's own value at
//! every site, each op of the pass runs on the reference's inputs, and what it computes is its local error alone. It is
//! this forward pass that is replayed so, with its cache, its positions and its wiring, and no second implementation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::matrix::Matrix;
use crate::model_error::{ModelError, Result};

/// Sites outside of the blocks: after the embedding, after the last norm, the logits.
pub const GLOBAL_SITES: [&str; 3] = ["embd", "result_norm", "result_output"];

/// Sites of every block, in the order of execution; block L has `attn_norm-L` and so on.
///
/// Several nodes of the reference share the name `Qcur` (`Kcur`, `Vcur`): the product is `Qcur.MUL_MAT` here, with its
/// bias `Qcur.ADD` (only where there is one), and the bare name is the last of them, after RoPE. Of the products without
/// RoPE the bare name is the product, and `attn_out.ADD` its sum with a bias (only where there is one). Each site is
/// `(n_rows, width)`, rows in the order in which they were fed, heads side by side; but `kq`, `kq_soft_max` (`n_keys`
/// wide) and `kqv` (one head wide), which exist for passes of one sequence only, have the rows of one query head after
/// those of another: `(n_head * n_rows, width)`.
pub const BLOCK_SITES: [&str; 26] = [
    "attn_norm",
    "Qcur.MUL_MAT",
    "Kcur.MUL_MAT",
    "Vcur.MUL_MAT",
    "Qcur.ADD",
    "Kcur.ADD",
    "Vcur.ADD",
    "Qcur",
    "Kcur",
    "Vcur",
    "kq",
    "kq_soft_max",
    "kqv",
    "kqv_out",
    "attn_out",
    "attn_out.ADD",
    "ffn_inp",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_gate.ADD",
    "ffn_up.ADD",
    "ffn_swiglu",
    "ffn_out",
    "ffn_out.ADD",
    "l_out",
];

/// Sites inside of attention.
const INNER_SITES: [&str; 3] = ["kq", "kq_soft_max", "kqv"];

/// A node of the graph: its name in llama.cpp, and its block if it is in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    pub name: &'static str,
    pub block: Option<usize>,
}

impl Site {
    /// A node outside of the blocks.
    pub const fn global(name: &'static str) -> Self {
        Self { name, block: None }
    }

    /// A node of a block.
    pub const fn block(name: &'static str, block: usize) -> Self {
        Self { name, block: Some(block) }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self.block {
            Some(block) => write!(out, "{}-{block}", self.name),
            None => out.write_str(self.name),
        }
    }
}

/// One site's values: `(n_rows, width)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tap {
    pub shape: [usize; 2],
    pub data: Vec<f32>,
}

/// Is shown every site, by name; what it returns takes the value's place, in the same shape.
pub type Observer<'a> = dyn FnMut(&str, &Tap) -> Result<Option<Vec<f32>>> + Send + 'a;

/// Which sites to observe, and what was seen. Observing copies; it changes nothing.
#[derive(Default)]
pub struct Taps<'a> {
    wanted: BTreeSet<String>,
    taken: BTreeMap<String, Tap>,
    observer: Option<&'a mut Observer<'a>>,
}

impl<'a> Taps<'a> {
    /// Observe nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Observe these sites; refuses a name that a model of `n_layer` blocks does not have.
    pub fn new(names: &[String], n_layer: usize) -> Result<Self> {
        for name in names {
            let in_block = name.rsplit_once('-').is_some_and(|(site, block)| {
                BLOCK_SITES.contains(&site) && block.parse::<usize>().is_ok_and(|block| block < n_layer)
            });
            if !in_block && !GLOBAL_SITES.contains(&name.as_str()) {
                let last = n_layer.saturating_sub(1);
                let expected =
                    format!("{}, or one of {} with -0 to -{last}", GLOBAL_SITES.join(", "), BLOCK_SITES.join(", "));
                return Err(ModelError::UnknownSite { expected, found: name.clone() });
            }
        }
        Ok(Self { wanted: names.iter().cloned().collect(), ..Self::default() })
    }

    /// Let `observer` see every site, and replace what it wants.
    pub fn observed(mut self, observer: &'a mut Observer<'a>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Pass a result: the value itself, or what an observer put in its place.
    pub fn pass(&mut self, at: Site, values: Matrix) -> Result<Matrix> {
        if self.observer.is_none() && self.wanted.is_empty() {
            return Ok(values);
        }
        let site = at.to_string();
        if self.observer.is_none() && !self.wanted.contains(&site) {
            return Ok(values);
        }
        let tap = Tap { shape: [values.n_positions, values.n_features], data: values.to_rows_vec() };
        match self.see(&site, tap)? {
            Some(data) => Ok(Matrix::from_rows(values.n_positions, values.n_features, data)),
            None => Ok(values),
        }
    }

    /// Whether the steps inside of an attention are observed.
    pub fn observes_inside(&self, attention: Site) -> bool {
        let is_wanted = |name| self.wanted.contains(&Site { name, ..attention }.to_string());
        self.observer.is_some() || INNER_SITES.into_iter().any(is_wanted)
    }

    /// Show a value to the observer and keep it if it was asked for; what the observer puts in its place.
    pub fn see(&mut self, site: &str, tap: Tap) -> Result<Option<Vec<f32>>> {
        let replaced = match &mut self.observer {
            Some(observer) => observer(site, &tap)?,
            None => None,
        };
        if let Some(found) = replaced.as_ref().map(Vec::len).filter(|&found| found != tap.data.len()) {
            return Err(ModelError::wrong_length(format!("value for {site}"), tap.data.len(), found));
        }
        if self.wanted.contains(site) {
            self.taken.insert(site.into(), tap);
        }
        Ok(replaced)
    }

    /// Everything that was seen, by name.
    pub fn into_taken(self) -> BTreeMap<String, Tap> {
        self.taken
    }
}
