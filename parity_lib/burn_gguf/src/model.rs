//! One forward pass for both architectures, from token ids to logits.
//!
//! Rows of a pass are positions of any number of sequences, in any order. All rows go through a weight together; only
//! attention reads the sequence that a row belongs to.

use std::path::Path;

use crate::attention::{KeyValues, SequenceRows};
use crate::cache::Cache;
use crate::engine::{Engine, Run};
use crate::facts::Facts;
use crate::gguf::GgufFile;
use crate::graph::{biased, Ops, Projection};
use crate::matrix::Matrix;
use crate::model_error::{ModelError, Result};
use crate::rope::{Angles, Rope};
use crate::tap::Site;
use crate::tensors::{Layer, Tensor, Tensors};
use crate::weight::Weight;

/// A model that is ready to run: facts, checked tensors, ops, threads.
pub struct Model {
    pub facts: Facts,
    /// How it is run, as the caller asked.
    pub run: Run,
    /// What it computes with.
    pub ops: Engine,
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
    pub fn open(path: &Path, run: Run) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let facts = Facts::read(&file)?;
        let ops = run.ops(&facts)?;
        let workers = workers(run.n_threads)?;
        let mut tensors = Tensors::new(&file, &facts);
        let token_embd = tensors.matrix("token_embd.weight", facts.n_embd, facts.n_vocab)?;
        let layers = (0..facts.n_layer).map(|index| tensors.layer(index)).collect::<Result<_>>()?;
        let output_norm = tensors.vector("output_norm.weight", facts.n_embd)?;
        let untied = tensors.optional_matrix("output.weight", facts.n_embd, facts.n_vocab)?;
        let divisors = tensors.llama_vector("rope_freqs.weight", facts.rope_dim / 2)?;
        tensors.refuse_unused()?;
        let rope =
            Rope::new(facts.arch.pairing(), facts.rope_dim, facts.rope_base, divisors)?.scaled(facts.rope_scaling);
        let (output, tied) = (untied.unwrap_or(token_embd), untied.is_none());
        Ok(Self { facts, run, ops, file, workers, rope, token_embd, layers, output_norm, output, tied })
    }

    /// The forward pass up to the last norm: `(n, n_embd)` by rows.
    ///
    /// `ops` are the model's own, or a wrapper of them. `cache` holds the keys and values of earlier positions and
    /// receives those of this pass.
    pub fn forward(
        &self,
        ops: &impl Ops,
        batch: &Batch,
        start: Start,
        cache: &mut Cache,
        tick: &mut Tick,
    ) -> Result<Matrix> {
        let n_steps = 2 * self.layers.len();
        let angles = ops.angles(&self.rope, &batch.positions);
        let (first, mut x) = match start {
            Start::Tokens => (0, ops.embed(Site::global("embd"), &self.weight(&self.token_embd), &batch.tokens)?),
            Start::Residual(block, x) => (block, x),
        };
        for block in first..self.layers.len() {
            let slots = &mut cache.layers[block];
            let ffn_inp = self.on_workers(|| self.attention_block(ops, block, x, &angles, batch, slots))?;
            cache.leave(block);
            tick(2 * block + 1, n_steps)?;
            x = self.on_workers(|| self.ffn_block(ops, block, ffn_inp))?;
            tick(2 * block + 2, n_steps)?;
        }
        self.on_workers(|| ops.rms_norm(Site::global("result_norm"), x, &self.output_norm, self.facts.rms_eps))
    }

    /// norm, q k v, RoPE, attention, output projection, residual.
    fn attention_block(
        &self,
        ops: &impl Ops,
        block: usize,
        x: Matrix,
        angles: &Angles,
        batch: &Batch,
        slots: &mut [KeyValues],
    ) -> Result<Matrix> {
        let (facts, layer, sequences) = (&self.facts, &self.layers[block], &batch.sequences);
        let at = |name| Site::block(name, block);
        let attn_norm = ops.rms_norm(at("attn_norm"), x.clone(), &layer.attn_norm, facts.rms_eps)?;
        let weights = [&layer.attn_q, &layer.attn_k, &layer.attn_v].map(|tensor| self.weight(tensor));
        let [q, k, v] = ops.linear(["Qcur.MUL_MAT", "Kcur.MUL_MAT", "Vcur.MUL_MAT"].map(at), weights, attn_norm)?;
        let q = biased(ops, at("Qcur.ADD"), q, layer.q_bias.as_deref())?;
        let k = biased(ops, at("Kcur.ADD"), k, layer.k_bias.as_deref())?;
        let v = biased(ops, at("Vcur.ADD"), v, layer.v_bias.as_deref())?;
        let q = ops.rope(at("Qcur"), q, facts.key_length, angles)?;
        let k = ops.rope(at("Kcur"), k, facts.key_length, angles)?;
        let v = ops.reshape(at("Vcur"), v)?;
        ops.store(block, slots, sequences, &k, &v);
        let scale = 1.0 / (facts.key_length as f32).sqrt();
        let kqv_out = ops.attention(at("kqv_out"), &q, sequences, slots, facts.heads(), scale)?;
        let [attn_out] = ops.linear([at("attn_out")], [self.weight(&layer.attn_output)], kqv_out)?;
        let attn_out = biased(ops, at("attn_out.ADD"), attn_out, layer.output_bias.as_deref())?;
        ops.add(at("ffn_inp"), x, attn_out)
    }

    /// norm, gate and up, SwiGLU, down projection, residual.
    fn ffn_block(&self, ops: &impl Ops, block: usize, ffn_inp: Matrix) -> Result<Matrix> {
        let layer = &self.layers[block];
        let at = |name| Site::block(name, block);
        let ffn_norm = ops.rms_norm(at("ffn_norm"), ffn_inp.clone(), &layer.ffn_norm, self.facts.rms_eps)?;
        let gate = Projection { weight: self.weight(&layer.ffn_gate), bias: layer.gate_bias.as_deref() };
        let up = Projection { weight: self.weight(&layer.ffn_up), bias: layer.up_bias.as_deref() };
        let ffn_swiglu = ops.gated(at("ffn_swiglu"), gate, up, ffn_norm)?;
        let [ffn_out] = ops.linear([at("ffn_out")], [self.weight(&layer.ffn_down)], ffn_swiglu)?;
        let ffn_out = biased(ops, at("ffn_out.ADD"), ffn_out, layer.down_bias.as_deref())?;
        ops.add(at("l_out"), ffn_inp, ffn_out)
    }

    /// Logits of normed rows: `(n, n_vocab)` by rows.
    pub fn logits(&self, ops: &impl Ops, result_norm: Matrix) -> Result<Matrix> {
        let (at, weight) = (Site::global("result_output"), self.weight(&self.output));
        self.on_workers(|| ops.linear([at], [weight], result_norm).map(|[logits]| logits.into_rows()))
    }

    /// Run `work` on this model's threads.
    fn on_workers<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.workers.install(work)
    }

    fn weight(&self, tensor: &Tensor) -> Weight<'_> {
        tensor.weight(&self.file)
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

    /// The name of every bias, in the order of the file.
    pub fn biases(&self) -> Vec<&str> {
        self.file.tensors().iter().map(|tensor| tensor.name.as_str()).filter(|name| name.ends_with(".bias")).collect()
    }
}

/// A pool of `n_threads`.
pub fn workers(n_threads: usize) -> Result<rayon::ThreadPool> {
    let out_of_range = |found: String| ModelError::out_of_range("n_threads", "1 to 1024", found);
    if !(1..=1024).contains(&n_threads) {
        return Err(out_of_range(n_threads.to_string()));
    }
    let named = rayon::ThreadPoolBuilder::new().num_threads(n_threads).thread_name(|index| format!("burn-{index}"));
    named.build().map_err(|error| out_of_range(format!("{n_threads} ({error})")))
}
