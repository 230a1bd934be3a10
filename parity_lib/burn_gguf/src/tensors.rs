//! Binds the tensors of a file to their places in the forward pass: name, shape, and nothing left over.

use std::path::PathBuf;

use crate::attention::Heads;
use crate::facts::{Architecture, Facts};
use crate::gguf::GgufFile;
use crate::model_error::{ModelError, Result};
use crate::quant::{self, GgmlType};
use crate::weight::Weight;

/// A 2-D weight: which tensor of the file, and its shape.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    pub index: usize,
    pub ty: GgmlType,
    pub n_out: usize,
    pub n_in: usize,
}

impl Tensor {
    /// The tensor's blocks in its file.
    pub fn weight<'a>(&self, file: &'a GgufFile) -> Weight<'a> {
        let blocks = file.bytes(&file.tensors()[self.index]);
        Weight {
            ty: self.ty,
            n_out: self.n_out,
            n_in: self.n_in,
            blocks,
            #[cfg(feature = "faults")]
            truncated: false,
        }
    }
}

/// The tensors of one block.
pub struct Layer {
    pub attn_norm: Vec<f32>,
    pub attn_q: Tensor,
    pub attn_k: Tensor,
    pub attn_v: Tensor,
    pub q_bias: Option<Vec<f32>>,
    pub k_bias: Option<Vec<f32>>,
    pub v_bias: Option<Vec<f32>>,
    pub attn_output: Tensor,
    pub output_bias: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub ffn_gate: Tensor,
    pub ffn_up: Tensor,
    pub ffn_down: Tensor,
    pub gate_bias: Option<Vec<f32>>,
    pub up_bias: Option<Vec<f32>>,
    pub down_bias: Option<Vec<f32>>,
}

/// The tensors of a file, ticked off as they are bound; what is left over would have been ignored.
pub struct Tensors<'a> {
    file: &'a GgufFile,
    facts: &'a Facts,
    used: Vec<bool>,
}

impl<'a> Tensors<'a> {
    /// Nothing is bound yet.
    pub fn new(file: &'a GgufFile, facts: &'a Facts) -> Self {
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
            return Err(ModelError::WrongShape { file: self.path(), tensor: name.into(), expected, found });
        }
        self.used[index] = true;
        Ok(Some(index))
    }

    fn missing(&self, name: &str, dims: &[u64]) -> ModelError {
        ModelError::MissingTensor { file: self.path(), tensor: name.into(), expected: dims.to_vec() }
    }

    /// A weight of `n_out` rows of `n_in`, if the file has it.
    pub fn optional_matrix(&mut self, name: &str, n_in: usize, n_out: usize) -> Result<Option<Tensor>> {
        let index = self.find(name, &[n_in as u64, n_out as u64])?;
        Ok(index.map(|index| Tensor { index, ty: self.file.tensors()[index].ty, n_out, n_in }))
    }

    /// A weight of `n_out` rows of `n_in`.
    pub fn matrix(&mut self, name: &str, n_in: usize, n_out: usize) -> Result<Tensor> {
        let found = self.optional_matrix(name, n_in, n_out)?;
        found.ok_or_else(|| self.missing(name, &[n_in as u64, n_out as u64]))
    }

    /// The values of a norm, a bias or divisors, if the file has them.
    pub fn optional_vector(&mut self, name: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let Some(index) = self.find(name, &[n as u64])? else { return Ok(None) };
        let tensor = &self.file.tensors()[index];
        let mut values = vec![0.0; n];
        quant::dequantize(tensor.ty, self.file.bytes(tensor), &mut values)?;
        Ok(Some(values))
    }

    /// The values of a vector that only llama files have; the reference refuses it in a qwen2 file.
    pub fn llama_vector(&mut self, name: &str, n: usize) -> Result<Option<Vec<f32>>> {
        match self.facts.arch {
            Architecture::Llama => self.optional_vector(name, n),
            Architecture::Qwen2 => Ok(None),
        }
    }

    /// The values of a norm, a bias or divisors.
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let found = self.optional_vector(name, n)?;
        found.ok_or_else(|| self.missing(name, &[n as u64]))
    }

    /// All tensors of a block.
    pub fn layer(&mut self, index: usize) -> Result<Layer> {
        let Facts { n_embd, n_ff, .. } = *self.facts;
        let Heads { n_head, n_head_kv, key, value } = self.facts.heads();
        let name = |part: &str| format!("blk.{index}.{part}");
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm.weight"), n_embd)?,
            attn_q: self.matrix(&name("attn_q.weight"), n_embd, n_head * key)?,
            attn_k: self.matrix(&name("attn_k.weight"), n_embd, n_head_kv * key)?,
            attn_v: self.matrix(&name("attn_v.weight"), n_embd, n_head_kv * value)?,
            q_bias: self.optional_vector(&name("attn_q.bias"), n_head * key)?,
            k_bias: self.optional_vector(&name("attn_k.bias"), n_head_kv * key)?,
            v_bias: self.optional_vector(&name("attn_v.bias"), n_head_kv * value)?,
            attn_output: self.matrix(&name("attn_output.weight"), n_head * value, n_embd)?,
            output_bias: self.llama_vector(&name("attn_output.bias"), n_embd)?,
            ffn_norm: self.vector(&name("ffn_norm.weight"), n_embd)?,
            ffn_gate: self.matrix(&name("ffn_gate.weight"), n_embd, n_ff)?,
            ffn_up: self.matrix(&name("ffn_up.weight"), n_embd, n_ff)?,
            ffn_down: self.matrix(&name("ffn_down.weight"), n_ff, n_embd)?,
            gate_bias: self.llama_vector(&name("ffn_gate.bias"), n_ff)?,
            up_bias: self.llama_vector(&name("ffn_up.bias"), n_ff)?,
            down_bias: self.llama_vector(&name("ffn_down.bias"), n_embd)?,
        })
    }

    /// Refuse a file with a tensor that nothing has bound.
    pub fn refuse_unused(&self) -> Result<()> {
        let left = self.file.tensors().iter().zip(&self.used).find(|(_, used)| !**used);
        match left {
            None => Ok(()),
            Some((tensor, _)) => Err(ModelError::UnusedTensor {
                file: self.path(),
                tensor: tensor.name.clone(),
                architecture: self.facts.arch.name().into(),
            }),
        }
    }
}
