//! One forward pass for both architectures, from token ids to logits.
//!
//! Rows of a pass are positions of any number of sequences, in any order. All rows go through a weight together; only
//! attention looks at the sequence that a row belongs to.

use std::path::Path;

use crate::attention::{attention, attention_observed, KeyValues, SequenceRows};
use crate::cache::Cache;
use crate::facts::Facts;
use crate::fault::{Faults, Projection};
use crate::gguf::GgufFile;
use crate::linear::{linear, linear_shared, Policy, Weight};
use crate::matrix::Matrix;
use crate::ops::{embed, rope, Angles, Rope};
use crate::plain::Plain;
use crate::refusal::{Refusal, Result};
use crate::tap::Taps;
use crate::tensors::{Layer, Tensor, Tensors};

/// A model that is ready to run: facts, checked tensors, policy, threads, fault.
pub struct Model {
    pub facts: Facts,
    pub policy: Policy,
    pub n_threads: usize,
    pub faults: Faults,
    /// Ops that are computed here instead of by burn, to find a reason.
    pub plain: Plain,
    file: GgufFile,
    workers: rayon::ThreadPool,
    rope: Rope,
    token_embd: Tensor,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    output: Tensor,
    tied: bool,
}

/// The rows of one pass, in the order in which they were fed.
pub struct Batch {
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<usize>,
    /// The same rows by sequence.
    pub sequences: Vec<SequenceRows>,
}

/// Where a pass starts.
pub enum Start {
    /// At the embedding of the batch's tokens.
    Tokens,
    /// At block L, from the residual stream that enters it, `(n, n_embd)`.
    Residual(usize, Matrix),
}

/// Called between steps with (done, total); an error stops the pass.
pub type Tick<'a> = dyn FnMut(usize, usize) -> Result<()> + 'a;

impl Model {
    /// Open a file and check everything that the forward pass will need, before any work.
    pub fn open(path: &Path, policy: Policy, n_threads: usize, fault: Option<&str>) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let facts = Facts::read(&file)?;
        let faults = Faults::parse(fault, facts.n_layer)?;
        let workers = workers(n_threads)?;
        let mut tensors = Tensors::new(&file, &facts);
        let token_embd = tensors.matrix("token_embd.weight", facts.n_embd, facts.n_vocab)?;
        let layers = (0..facts.n_layer).map(|index| tensors.layer(index, &faults)).collect::<Result<_>>()?;
        let output_norm = tensors.vector("output_norm.weight", facts.n_embd)?;
        let untied = tensors.optional_matrix("output.weight", facts.n_embd, facts.n_vocab)?;
        let divisors = tensors.optional_vector("rope_freqs.weight", facts.rope_dim / 2)?;
        tensors.refuse_unused()?;
        let rope = Rope::new(facts.arch.pairing(), facts.rope_dim, facts.rope_base, divisors)?;
        Ok(Self {
            policy,
            n_threads,
            rope: faults.rope(rope),
            faults,
            plain: Plain::default(),
            workers,
            token_embd,
            layers,
            output_norm,
            output: untied.unwrap_or(token_embd),
            tied: untied.is_none(),
            facts,
            file,
        })
    }

    /// The same model with some of burn's ops replaced by plain twins.
    pub fn with_plain(self, plain: Plain) -> Self {
        Self { plain, ..self }
    }

    /// The file that the model was read from.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// Whether logits come from the embedding table.
    pub fn is_tied(&self) -> bool {
        self.tied
    }

    /// Whether RoPE's angles are divided by `rope_freqs.weight`.
    pub fn has_rope_freqs(&self) -> bool {
        self.rope.divisors.is_some()
    }

    /// Number of bias vectors.
    pub fn n_bias(&self) -> usize {
        let biases =
            |layer: &Layer| [&layer.q_bias, &layer.k_bias, &layer.v_bias].iter().filter(|bias| bias.is_some()).count();
        self.layers.iter().map(biases).sum()
    }

    /// Run `work` on this model's threads.
    pub fn on_workers<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.workers.install(work)
    }

    /// The forward pass up to the last norm: `(n, n_embd)` by rows.
    ///
    /// `cache` holds the keys and values of earlier positions and receives those of this pass.
    pub fn forward(
        &self,
        batch: &Batch,
        start: Start,
        cache: &mut Cache,
        taps: &mut Taps,
        tick: &mut Tick,
    ) -> Result<Matrix> {
        let turned: Vec<usize> = batch.positions.iter().map(|&position| self.faults.position(position)).collect();
        let angles = self.rope.angles(&turned);
        let (first, mut x) = match start {
            Start::Tokens => (0, self.embed(&batch.tokens, taps)?),
            Start::Residual(layer, x) => (layer, x),
        };
        for (index, layer) in self.layers.iter().enumerate().skip(first) {
            let ffn_inp = self.on_workers(|| self.attention_block(index, layer, x, &angles, batch, cache, taps))?;
            cache.leave(index);
            tick(2 * index + 1, 2 * self.layers.len())?;
            x = self.on_workers(|| self.ffn_block(index, layer, ffn_inp, taps))?;
            tick(2 * index + 2, 2 * self.layers.len())?;
        }
        let result_norm =
            self.on_workers(|| self.plain.rms_norm(x, &self.output_norm, self.faults.eps(None, self.facts.rms_eps)))?;
        taps.global("result_norm", result_norm)
    }

    /// Logits of normed rows: `(n, n_vocab)` by rows.
    pub fn logits(&self, result_norm: Matrix) -> Result<Matrix> {
        self.on_workers(|| Ok(linear(&self.weight(&self.output), result_norm, self.policy)?.into_rows()))
    }

    fn embed(&self, tokens: &[u32], taps: &mut Taps) -> Result<Matrix> {
        let mut tokens = tokens.to_vec();
        self.faults.tokens(&mut tokens, self.facts.n_vocab);
        taps.global("embd", embed(&self.weight(&self.token_embd), &tokens)?)
    }

    /// norm, q k v, RoPE, attention, output projection, residual.
    #[allow(clippy::too_many_arguments)]
    fn attention_block(
        &self,
        index: usize,
        layer: &Layer,
        x: Matrix,
        angles: &Angles,
        batch: &Batch,
        cache: &mut Cache,
        taps: &mut Taps,
    ) -> Result<Matrix> {
        let facts = &self.facts;
        let attn_norm =
            self.plain.rms_norm(x.clone(), &layer.attn_norm, self.faults.eps(Some(index), facts.rms_eps))?;
        let attn_norm = taps.block("attn_norm", index, attn_norm)?;
        let [q, k, v] = self.projections(index, layer, attn_norm, taps)?;
        let q = taps.block("Qcur", index, rope(q, facts.key_length, angles)?)?.into_rows();
        let k = taps.block("Kcur", index, rope(k, facts.key_length, angles)?)?.into_rows();
        let v = taps.block("Vcur", index, v.into_rows())?.into_rows();
        self.store(index, &mut cache.layers[index], batch, &k, &v);
        let soft_max = self.plain.soft_max();
        let scale = self.faults.softmax_scale(index, 1.0 / (facts.key_length as f32).sqrt());
        let (sequences, slots) = (&batch.sequences, &cache.layers[index]);
        let kqv_out = if taps.looks_inside(index) {
            attention_observed(&q, sequences, slots, facts.heads(), scale, soft_max, &mut |site, tap| {
                taps.see(&format!("{site}-{index}"), tap)
            })?
        } else {
            attention(&q, sequences, slots, facts.heads(), scale, soft_max)
        };
        let kqv_out = taps.block("kqv_out", index, kqv_out)?;
        let attn_out = linear(&self.weight(&layer.attn_output), kqv_out, self.policy)?;
        let attn_out = taps.block("attn_out", index, attn_out)?;
        taps.block("ffn_inp", index, self.plain.add(x, attn_out)?)
    }

    /// Queries, keys and values of a block: the products, and their biases where there are any.
    fn projections(&self, index: usize, layer: &Layer, attn_norm: Matrix, taps: &mut Taps) -> Result<[Matrix; 3]> {
        let weights = [self.weight(&layer.attn_q), self.weight(&layer.attn_k), self.weight(&layer.attn_v)];
        let [q, k, v] = three(linear_shared(&weights, attn_norm, self.policy)?);
        let q = taps.block("Qcur.MUL_MAT", index, q)?;
        let k = taps.block("Kcur.MUL_MAT", index, self.permuted(index, k))?;
        let v = taps.block("Vcur.MUL_MAT", index, v)?;
        Ok([
            self.biased(index, q, layer.q_bias.as_deref(), Projection::Q, taps)?,
            self.biased(index, k, layer.k_bias.as_deref(), Projection::K, taps)?,
            self.biased(index, v, layer.v_bias.as_deref(), Projection::V, taps)?,
        ])
    }

    /// norm, gate and up, SwiGLU, down projection, residual.
    fn ffn_block(&self, index: usize, layer: &Layer, ffn_inp: Matrix, taps: &mut Taps) -> Result<Matrix> {
        let ffn_norm =
            self.plain.rms_norm(ffn_inp.clone(), &layer.ffn_norm, self.faults.eps(Some(index), self.facts.rms_eps))?;
        let ffn_norm = taps.block("ffn_norm", index, ffn_norm)?;
        let weights = [self.weight(&layer.ffn_gate), self.weight(&layer.ffn_up)];
        let [gate, up] = two(linear_shared(&weights, ffn_norm, self.policy)?);
        let gate = taps.block("ffn_gate", index, gate)?;
        let up = taps.block("ffn_up", index, up)?;
        let (gate, up) = if self.faults.swaps_gate_up(index) { (up, gate) } else { (gate, up) };
        let ffn_swiglu = taps.block("ffn_swiglu", index, self.plain.swiglu(gate, up)?)?;
        let ffn_out = linear(&self.weight(&layer.ffn_down), ffn_swiglu, self.policy)?;
        let ffn_out = taps.block("ffn_out", index, ffn_out)?;
        let mut l_out = self.plain.add(ffn_inp, ffn_out)?;
        self.faults.residual(index, &mut l_out.data);
        if index == self.layers.len() / 2 {
            self.faults.maybe_die();
        }
        taps.block("l_out", index, l_out)
    }

    /// Add a bias, if the file has one. The site exists where the file has one: a dropped bias must be seen there.
    fn biased(
        &self,
        index: usize,
        x: Matrix,
        bias: Option<&[f32]>,
        projection: Projection,
        taps: &mut Taps,
    ) -> Result<Matrix> {
        let Some(bias) = bias else { return Ok(x) };
        let sum = if self.faults.has_bias(index, projection) { self.plain.add_bias(x, bias)? } else { x };
        taps.block(projection.site(), index, sum)
    }

    /// A hook of [`Faults`]: keys before RoPE.
    fn permuted(&self, index: usize, k: Matrix) -> Matrix {
        if !self.faults.permutes_key(index) {
            return k;
        }
        let mut k = k.into_rows();
        for position in 0..k.n_positions {
            self.faults.permute_key(index, k.row_mut(position), self.facts.key_length);
        }
        k
    }

    /// Append the keys and values of a pass to the cache of one layer.
    fn store(&self, index: usize, cache: &mut [KeyValues], batch: &Batch, k: &Matrix, v: &Matrix) {
        for SequenceRows { sequence, rows } in &batch.sequences {
            cache[*sequence].store(rows, k, v);
            self.faults.stale_key(index, rows, &mut cache[*sequence].keys, k.n_features);
        }
    }

    fn weight(&self, tensor: &Tensor) -> Weight<'_> {
        let blocks = self.file.bytes(&self.file.tensors()[tensor.index]);
        let Tensor { ty, n_out, n_in, .. } = *tensor;
        Weight { ty, n_out, n_in, blocks, truncated: self.faults.truncates_weights() }
    }
}

/// A pool of `n_threads`.
pub fn workers(n_threads: usize) -> Result<rayon::ThreadPool> {
    let out_of_range =
        |found: String| Refusal::OutOfRange { what: "n_threads".into(), expected: "1 to 1024".into(), found };
    if !(1..=1024).contains(&n_threads) {
        return Err(out_of_range(n_threads.to_string()));
    }
    let named = rayon::ThreadPoolBuilder::new().num_threads(n_threads).thread_name(|index| format!("burn-{index}"));
    named.build().map_err(|error| out_of_range(format!("{n_threads} ({error})")))
}

fn three(matrices: Vec<Matrix>) -> [Matrix; 3] {
    matrices.try_into().expect("linear_shared returns one matrix for each weight")
}

fn two(matrices: Vec<Matrix>) -> [Matrix; 2] {
    matrices.try_into().expect("linear_shared returns one matrix for each weight")
}
