//! Sequences over time: rows are appended to a cache, a few at a time or many at once.

use std::sync::Arc;

use crate::attention::SequenceRows;
use crate::cache::Cache;
use crate::matrix::Matrix;
use crate::model::{Batch, Model, Start, Tick};
use crate::model_error::{ModelError, Result};
use crate::tap::{Observer, Tap, Taps};
use crate::tapped::Tapped;

/// A session with more sequences than this is a mistake.
const MAX_SEQUENCES: usize = 1 << 16;

/// Some rows of a matrix by rows.
pub(crate) fn select(matrix: &Matrix, rows: &[usize]) -> Matrix {
    let data = rows.iter().flat_map(|&row| matrix.row(row)).copied().collect();
    Matrix::from_rows(rows.len(), matrix.n_features, data)
}

/// The bytes that leave the crate; no copy.
pub fn little_endian(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Refuse what cannot be fed: no token, an id outside of the vocabulary, more positions than the context.
pub(crate) fn check_sequence(model: &Model, sequence: usize, tokens: &[u32], past: usize) -> Result<()> {
    if tokens.is_empty() {
        return Err(ModelError::EmptySequence { sequence });
    }
    let n_vocab = model.facts.n_vocab;
    if let Some(index) = tokens.iter().position(|&token| token as usize >= n_vocab) {
        return Err(ModelError::TokenOutside { sequence, index, limit: n_vocab - 1, found: tokens[index] });
    }
    let (expected, found) = (model.facts.n_ctx_train, past + tokens.len());
    if found > expected {
        return Err(ModelError::ContextExceeded { sequence, expected, found });
    }
    Ok(())
}

/// Sequences with a cache: rows are appended, a few at a time or many at once, with the same bits.
pub struct Session {
    pub(crate) model: Arc<Model>,
    pub(crate) cache: Cache,
    /// Positions that each sequence already has.
    pub(crate) lengths: Vec<usize>,
    /// The block that earlier passes were entered at: the blocks below it have no keys of these positions.
    pub(crate) entered_at: usize,
}

/// What one call of a session has to give back.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Sites to observe, by name.
    pub taps: Vec<String>,
    /// Rows whose logits are wanted; all of them if `None`.
    pub logits: Option<Vec<usize>>,
}

/// What one call of a session gives back: logits of the wanted rows, `(n, n_vocab)`, and the sites that were asked for.
pub struct Step {
    pub logits: Matrix,
    pub taps: Vec<(String, Tap)>,
}

impl Session {
    /// `n_seq` empty sequences.
    pub fn new(model: Arc<Model>, n_seq: usize) -> Result<Self> {
        if !(1..=MAX_SEQUENCES).contains(&n_seq) {
            return Err(ModelError::out_of_range("number of sequences", format!("1 to {MAX_SEQUENCES}"), n_seq));
        }
        let cache = Cache::lasting(model.facts.n_layer, n_seq);
        Ok(Self { model, cache, lengths: vec![0; n_seq], entered_at: 0 })
    }

    /// Positions of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Append rows `(sequence, token)`, in any interleaving, as one pass. A refused call changes nothing.
    pub fn append(&mut self, rows: &[(usize, u32)], wanted: &Wanted, tick: &mut Tick) -> Result<Step> {
        let batch = self.batch(rows)?;
        let taps = Taps::new(&wanted.taps, self.model.facts.n_layer)?;
        self.run(batch, Start::Tokens, wanted, taps, tick)
    }

    /// The same pass over rows of one sequence, with every site shown to `observer`, who may replace its value.
    pub fn append_observed(
        &mut self,
        rows: &[(usize, u32)],
        wanted: &Wanted,
        observer: &mut Observer,
        tick: &mut Tick,
    ) -> Result<Step> {
        let batch = self.batch(rows)?;
        let taps = Taps::new(&wanted.taps, self.model.facts.n_layer)?.observed(observer);
        self.run(batch, Start::Tokens, wanted, taps, tick)
    }

    /// The same pass, entered at block `layer` with the residual stream `(n, n_embd)`.
    pub fn append_from(
        &mut self,
        layer: usize,
        residual: Matrix,
        rows: &[(usize, u32)],
        wanted: &Wanted,
        tick: &mut Tick,
    ) -> Result<Step> {
        let facts = &self.model.facts;
        if layer >= facts.n_layer {
            return Err(ModelError::out_of_range("layer", format!("0 to {}", facts.n_layer - 1), layer));
        }
        if (residual.n_positions, residual.n_features) != (rows.len(), facts.n_embd) {
            return Err(ModelError::wrong_length("residual stream", rows.len() * facts.n_embd, residual.data.len()));
        }
        let batch = self.batch(rows)?;
        let taps = Taps::new(&wanted.taps, self.model.facts.n_layer)?;
        self.run(batch, Start::Residual(layer, residual), wanted, taps, tick)
    }

    fn batch(&self, rows: &[(usize, u32)]) -> Result<Batch> {
        let n_seq = self.lengths.len();
        let mut by_sequence: Vec<Vec<(usize, usize)>> = vec![Vec::new(); n_seq];
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); n_seq];
        let mut batch = Batch { tokens: Vec::new(), positions: Vec::new(), sequences: Vec::new() };
        for (row, &(sequence, token)) in rows.iter().enumerate() {
            if sequence >= n_seq {
                let expected = format!("0 to {}", n_seq.saturating_sub(1));
                return Err(ModelError::out_of_range("sequence", expected, sequence));
            }
            let position = self.lengths[sequence] + by_sequence[sequence].len();
            by_sequence[sequence].push((row, position));
            tokens[sequence].push(token);
            batch.tokens.push(token);
            batch.positions.push(position);
        }
        if rows.is_empty() {
            return Err(ModelError::EmptySequence { sequence: 0 });
        }
        for (sequence, rows) in by_sequence.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            check_sequence(&self.model, sequence, &tokens[sequence], self.lengths[sequence])?;
            batch.sequences.push(SequenceRows { sequence, rows });
        }
        Ok(batch)
    }

    /// Refuse to enter a session that has rows at another block than before.
    fn enter(&mut self, start: &Start) -> Result<()> {
        let layer = match start {
            Start::Tokens => 0,
            Start::Residual(layer, _) => *layer,
        };
        if self.lengths.iter().any(|&length| length > 0) && layer != self.entered_at {
            let expected = format!("{}, where this session began", self.entered_at);
            return Err(ModelError::out_of_range("layer", expected, layer));
        }
        self.entered_at = layer;
        Ok(())
    }

    /// One pass; a pass that was stopped leaves the cache as it was.
    fn run(&mut self, batch: Batch, start: Start, wanted: &Wanted, mut taps: Taps, tick: &mut Tick) -> Result<Step> {
        let n_rows = batch.tokens.len();
        if let Some(row) = wanted.logits.iter().flatten().find(|&&row| row >= n_rows) {
            return Err(ModelError::out_of_range("row of logits", format!("0 to {}", n_rows - 1), row));
        }
        self.enter(&start)?;
        self.cut_back(); // a pass that panicked had no time to do it
        let result = self.pass(&batch, start, wanted, &mut taps, tick);
        match result {
            Ok(logits) => {
                for sequence in &batch.sequences {
                    self.lengths[sequence.sequence] += sequence.rows.len();
                }
                Ok(Step { logits, taps: taps.into_taken().into_iter().collect() })
            }
            Err(error) => {
                self.cut_back();
                Err(error)
            }
        }
    }

    fn pass(
        &mut self,
        batch: &Batch,
        start: Start,
        wanted: &Wanted,
        taps: &mut Taps,
        tick: &mut Tick,
    ) -> Result<Matrix> {
        let ops = Tapped::new(&self.model.ops, taps);
        let normed = self.model.forward(&ops, batch, start, &mut self.cache, tick)?;
        let normed = wanted.logits.as_ref().map_or(normed.clone(), |rows| select(&normed, rows));
        self.model.logits(&ops, normed)
    }

    /// Forget what an unfinished pass has written.
    fn cut_back(&mut self) {
        let heads = self.model.facts.heads();
        for layer in &mut self.cache.layers {
            for (slots, &length) in layer.iter_mut().zip(&self.lengths) {
                slots.keys.truncate(length * heads.n_head_kv * heads.key);
                slots.values.truncate(length * heads.n_head_kv * heads.value);
            }
        }
    }
}
