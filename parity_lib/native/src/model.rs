//! One forward pass for both architectures, from token ids to logits.
//!
//! Rows of a pass are positions of any number of sequences, in any order. All rows go through a weight together; only
//! attention looks at the sequence that a row belongs to.

use std::path::{Path, PathBuf};

use crate::attention::{attention, Heads, KeyValues, SequenceRows};
use crate::facts::Facts;
use crate::fault::{Faults, Projection};
use crate::gguf::GgufFile;
use crate::linear::{linear, linear_shared, Policy, Weight};
use crate::matrix::Matrix;
use crate::ops::{add, add_bias, embed, rms_norm, rope, swiglu, Angles, Rope};
use crate::quant::{self, GgmlType};
use crate::refusal::{Refusal, Result};
use crate::tap::Taps;

/// A model that is ready to run: facts, checked tensors, policy, threads, fault.
pub struct Model {
    pub facts: Facts,
    pub policy: Policy,
    pub n_threads: usize,
    pub faults: Faults,
    file: GgufFile,
    workers: rayon::ThreadPool,
    rope: Rope,
    token_embd: Tensor,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    output: Tensor,
    tied: bool,
}

/// A 2-D weight: which tensor of the file, and its shape.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    index: usize,
    ty: GgmlType,
    n_out: usize,
    n_in: usize,
}

/// The tensors of one block.
struct Layer {
    attn_norm: Vec<f32>,
    attn_q: Tensor,
    attn_k: Tensor,
    attn_v: Tensor,
    q_bias: Option<Vec<f32>>,
    k_bias: Option<Vec<f32>>,
    v_bias: Option<Vec<f32>>,
    attn_output: Tensor,
    ffn_norm: Vec<f32>,
    ffn_gate: Tensor,
    ffn_up: Tensor,
    ffn_down: Tensor,
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
            self.on_workers(|| rms_norm(x, &self.output_norm, self.faults.eps(None, self.facts.rms_eps)))?;
        taps.global("result_norm", &result_norm);
        Ok(result_norm)
    }

    /// Logits of normed rows: `(n, n_vocab)` by rows.
    pub fn logits(&self, result_norm: Matrix) -> Result<Matrix> {
        self.on_workers(|| Ok(linear(&self.weight(&self.output), result_norm, self.policy)?.into_rows()))
    }

    fn embed(&self, tokens: &[u32], taps: &mut Taps) -> Result<Matrix> {
        let mut tokens = tokens.to_vec();
        self.faults.tokens(&mut tokens, self.facts.n_vocab);
        let embd = embed(&self.weight(&self.token_embd), &tokens)?;
        taps.global("embd", &embd);
        Ok(embd)
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
        let attn_norm = rms_norm(x.clone(), &layer.attn_norm, self.faults.eps(Some(index), facts.rms_eps))?;
        taps.block("attn_norm", index, &attn_norm);
        let weights = [self.weight(&layer.attn_q), self.weight(&layer.attn_k), self.weight(&layer.attn_v)];
        let [q, k, v] = three(linear_shared(&weights, attn_norm, self.policy)?);
        let q = self.biased(q, layer.q_bias.as_deref(), Projection::Q)?;
        let k = self.biased(k, layer.k_bias.as_deref(), Projection::K)?;
        let v = self.biased(v, layer.v_bias.as_deref(), Projection::V)?.into_rows();
        let q = rope(q, facts.key_length, angles)?;
        let k = rope(self.permuted(index, k), facts.key_length, angles)?;
        taps.block("Qcur", index, &q);
        taps.block("Kcur", index, &k);
        taps.block("Vcur", index, &v);
        self.store(&mut cache.layers[index], batch, &k, &v);
        let scale = self.faults.softmax_scale(1.0 / (facts.key_length as f32).sqrt());
        let kqv_out = attention(&q, &batch.sequences, &cache.layers[index], facts.heads(), scale);
        taps.block("kqv_out", index, &kqv_out);
        let attn_out = linear(&self.weight(&layer.attn_output), kqv_out, self.policy)?;
        taps.block("attn_out", index, &attn_out);
        let ffn_inp = add(x, attn_out)?;
        taps.block("ffn_inp", index, &ffn_inp);
        Ok(ffn_inp)
    }

    /// norm, gate and up, SwiGLU, down projection, residual.
    fn ffn_block(&self, index: usize, layer: &Layer, ffn_inp: Matrix, taps: &mut Taps) -> Result<Matrix> {
        let ffn_norm = rms_norm(ffn_inp.clone(), &layer.ffn_norm, self.faults.eps(Some(index), self.facts.rms_eps))?;
        taps.block("ffn_norm", index, &ffn_norm);
        let weights = [self.weight(&layer.ffn_gate), self.weight(&layer.ffn_up)];
        let [gate, up] = two(linear_shared(&weights, ffn_norm, self.policy)?);
        taps.block("ffn_gate", index, &gate);
        taps.block("ffn_up", index, &up);
        let (gate, up) = if self.faults.swaps_gate_up() { (up, gate) } else { (gate, up) };
        let ffn_swiglu = swiglu(gate, up)?;
        taps.block("ffn_swiglu", index, &ffn_swiglu);
        let ffn_out = linear(&self.weight(&layer.ffn_down), ffn_swiglu, self.policy)?;
        taps.block("ffn_out", index, &ffn_out);
        let mut l_out = add(ffn_inp, ffn_out)?;
        self.faults.residual(index, &mut l_out.data);
        if index == self.layers.len() / 2 {
            self.faults.maybe_die();
        }
        taps.block("l_out", index, &l_out);
        Ok(l_out)
    }

    fn biased(&self, x: Matrix, bias: Option<&[f32]>, projection: Projection) -> Result<Matrix> {
        match bias.filter(|_| self.faults.has_bias(projection)) {
            Some(bias) => add_bias(x, bias),
            None => Ok(x),
        }
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
    fn store(&self, cache: &mut [KeyValues], batch: &Batch, k: &Matrix, v: &Matrix) {
        for SequenceRows { sequence, rows } in &batch.sequences {
            cache[*sequence].store(rows, k, v);
            self.faults.stale_key(rows, &mut cache[*sequence].keys, k.n_features);
        }
    }

    fn weight(&self, tensor: &Tensor) -> Weight<'_> {
        let blocks = self.file.bytes(&self.file.tensors()[tensor.index]);
        let Tensor { ty, n_out, n_in, .. } = *tensor;
        Weight { ty, n_out, n_in, blocks, truncated: self.faults.truncates_weights() }
    }
}

/// Keys and values of all layers and sequences.
#[derive(Clone, Debug)]
pub struct Cache {
    /// `layers[layer][sequence]`
    pub layers: Vec<Vec<KeyValues>>,
    /// Whether a layer's keys are freed as soon as the pass has left it.
    transient: bool,
}

impl Cache {
    /// An empty cache that keeps everything, for decoding.
    pub fn lasting(n_layer: usize, n_seq: usize) -> Self {
        Self { layers: vec![vec![KeyValues::default(); n_seq]; n_layer], transient: false }
    }

    /// An empty cache for one pass over whole sequences: it holds one layer at a time.
    pub fn transient(n_layer: usize, n_seq: usize) -> Self {
        Self { transient: true, ..Self::lasting(n_layer, n_seq) }
    }

    fn leave(&mut self, layer: usize) {
        if self.transient {
            self.layers[layer].iter_mut().for_each(|slots| *slots = KeyValues::default());
        }
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

/// The tensors of a file, ticked off as they are bound; what is left over would have been ignored.
struct Tensors<'a> {
    file: &'a GgufFile,
    facts: &'a Facts,
    used: Vec<bool>,
}

impl<'a> Tensors<'a> {
    fn new(file: &'a GgufFile, facts: &'a Facts) -> Self {
        Self { file, facts, used: vec![false; file.tensors().len()] }
    }

    fn path(&self) -> PathBuf {
        self.file.path.clone()
    }

    /// The index of a tensor of that name and shape (ggml order), if the file has the name.
    fn find(&mut self, name: &str, dims: &[u64]) -> Result<Option<usize>> {
        let Some(index) = self.file.tensors().iter().position(|tensor| tensor.name == name) else { return Ok(None) };
        let found = &self.file.tensors()[index].dims;
        if found != dims {
            let (expected, found) = (dims.to_vec(), found.clone());
            return Err(Refusal::WrongShape { file: self.path(), tensor: name.into(), expected, found });
        }
        self.used[index] = true;
        Ok(Some(index))
    }

    fn missing(&self, name: &str, dims: &[u64]) -> Refusal {
        Refusal::MissingTensor { file: self.path(), tensor: name.into(), expected: dims.to_vec() }
    }

    fn optional_matrix(&mut self, name: &str, n_in: usize, n_out: usize) -> Result<Option<Tensor>> {
        let index = self.find(name, &[n_in as u64, n_out as u64])?;
        Ok(index.map(|index| Tensor { index, ty: self.file.tensors()[index].ty, n_out, n_in }))
    }

    fn matrix(&mut self, name: &str, n_in: usize, n_out: usize) -> Result<Tensor> {
        let found = self.optional_matrix(name, n_in, n_out)?;
        found.ok_or_else(|| self.missing(name, &[n_in as u64, n_out as u64]))
    }

    fn optional_vector(&mut self, name: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let Some(index) = self.find(name, &[n as u64])? else { return Ok(None) };
        let tensor = &self.file.tensors()[index];
        let mut values = vec![0.0; n];
        quant::dequantize(tensor.ty, self.file.bytes(tensor), &mut values)?;
        Ok(Some(values))
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let found = self.optional_vector(name, n)?;
        found.ok_or_else(|| self.missing(name, &[n as u64]))
    }

    fn layer(&mut self, index: usize, faults: &Faults) -> Result<Layer> {
        let Facts { n_embd, n_ff, .. } = *self.facts;
        let Heads { n_head, n_head_kv, key, value } = self.facts.heads();
        let name = |part: &str| format!("blk.{index}.{part}");
        let mut attn_norm = self.vector(&name("attn_norm.weight"), n_embd)?;
        faults.norm_weight(index, &mut attn_norm);
        Ok(Layer {
            attn_norm,
            attn_q: self.matrix(&name("attn_q.weight"), n_embd, n_head * key)?,
            attn_k: self.matrix(&name("attn_k.weight"), n_embd, n_head_kv * key)?,
            attn_v: self.matrix(&name("attn_v.weight"), n_embd, n_head_kv * value)?,
            q_bias: self.optional_vector(&name("attn_q.bias"), n_head * key)?,
            k_bias: self.optional_vector(&name("attn_k.bias"), n_head_kv * key)?,
            v_bias: self.optional_vector(&name("attn_v.bias"), n_head_kv * value)?,
            attn_output: self.matrix(&name("attn_output.weight"), n_head * value, n_embd)?,
            ffn_norm: self.vector(&name("ffn_norm.weight"), n_embd)?,
            ffn_gate: self.matrix(&name("ffn_gate.weight"), n_embd, n_ff)?,
            ffn_up: self.matrix(&name("ffn_up.weight"), n_embd, n_ff)?,
            ffn_down: self.matrix(&name("ffn_down.weight"), n_ff, n_embd)?,
        })
    }

    fn refuse_unused(&self) -> Result<()> {
        let left = self.file.tensors().iter().zip(&self.used).find(|(_, used)| !**used);
        match left {
            None => Ok(()),
            Some((tensor, _)) => Err(Refusal::UnusedTensor {
                file: self.path(),
                tensor: tensor.name.clone(),
                architecture: self.facts.arch.name().into(),
            }),
        }
    }
}
