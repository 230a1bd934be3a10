//! Sequences over time: scoring whole ones in one pass, or appending rows to a cache.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::Arc;

use crate::attention::SequenceRows;
use crate::matrix::Matrix;
use crate::model::{Batch, Cache, Model, Start, Tick};
use crate::refusal::{Refusal, Result};
use crate::tap::{Tap, Taps};

/// Bytes of logits that exist at once; the output weight is dequantised once for each such block of rows.
const LOGIT_BYTES: usize = 64 << 20;

/// Bytes of activations of one pass; longer lists of sequences are scored in groups.
const PASS_BYTES: usize = 400 << 20;

/// Score each sequence from an empty cache; append every row of logits to `sink`, sequences one after the other.
///
/// Returns the number of rows written for each sequence. Rows leave in blocks as little-endian f32.
pub fn score(model: &Model, sequences: &[Vec<u32>], sink: &Path, tick: &mut Tick) -> Result<Vec<usize>> {
    for (index, tokens) in sequences.iter().enumerate() {
        check_sequence(model, index, tokens, 0)?;
    }
    let mut sink = Sink::open(sink)?;
    let total: usize = sequences.iter().map(Vec::len).sum();
    let (mut done, mut written) = (0, Vec::new());
    for group in groups(model, sequences) {
        let n_rows: usize = group.iter().map(Vec::len).sum();
        // A pass and the product with the output weight after it count as four shares to one.
        let mut in_pass = |step: usize, steps: usize| tick(done + n_rows * step * 4 / (steps * 5), total);
        let batch = whole_sequences(group);
        let mut cache = Cache::transient(model.facts.n_layer, group.len());
        let normed = model.forward(&batch, Start::Tokens, &mut cache, &mut Taps::none(), &mut in_pass)?;
        let kept = kept_rows(model, group, written.len());
        write_logits(model, &normed, &kept.concat(), &mut sink, &mut || tick(done + n_rows * 4 / 5, total))?;
        written.extend(kept.iter().map(Vec::len));
        done += n_rows;
        tick(done, total)?;
    }
    Ok(written)
}

/// Rows of a group whose logits are written; all of them, but for the fault that drops one.
fn kept_rows(model: &Model, group: &[Vec<u32>], first_sequence: usize) -> Vec<Vec<usize>> {
    let mut start = 0;
    let rows = group.iter().enumerate().map(|(index, tokens)| {
        let n = tokens.len() - usize::from(model.faults.drops_row_of(first_sequence + index));
        let rows = (start..start + n).collect();
        start += tokens.len();
        rows
    });
    rows.collect()
}

/// Logits of some rows, block by block; one block is written while the next is computed.
fn write_logits(
    model: &Model,
    normed: &Matrix,
    rows: &[usize],
    sink: &mut Sink,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let block = (LOGIT_BYTES / (4 * model.facts.n_vocab)).max(1);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Matrix>(1);
        let writer = scope.spawn(move || receiver.iter().try_for_each(|logits| sink.write(&logits.data)));
        let mut compute = || {
            for rows in rows.chunks(block) {
                let logits = model.logits(select(normed, rows))?;
                if sender.send(logits).is_err() {
                    break; // the writer has ended; its error is returned below
                }
                tick()?;
            }
            Ok(())
        };
        let computed = compute();
        drop(sender);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(computed)
    })
}

/// Where rows of logits go.
struct Sink<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Sink<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let opened = OpenOptions::new().create(true).append(true).open(path);
        let file = opened.map_err(|source| Refusal::Sink { file: path.into(), expected: 0, source })?;
        Ok(Self { path, file })
    }

    fn write(&mut self, values: &[f32]) -> Result<()> {
        let bytes = little_endian(values);
        let refused = |source| Refusal::Sink { file: self.path.into(), expected: bytes.len(), source };
        self.file.write_all(bytes).map_err(refused)
    }
}

fn select(matrix: &Matrix, rows: &[usize]) -> Matrix {
    let data = rows.iter().flat_map(|&row| matrix.row(row)).copied().collect();
    Matrix::from_rows(rows.len(), matrix.n_features, data)
}

/// The bytes that leave the crate; no copy.
pub fn little_endian(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Runs of sequences whose activations fit into [`PASS_BYTES`]; at least one sequence each.
fn groups<'a>(model: &Model, sequences: &'a [Vec<u32>]) -> Vec<&'a [Vec<u32>]> {
    let facts = &model.facts;
    // Alive at once in a block: about six rows of the residual's width and three of the FFN's.
    let limit = PASS_BYTES / (4 * (6 * facts.n_embd + 3 * facts.n_ff));
    let (mut groups, mut start, mut rows) = (Vec::new(), 0, 0);
    for (index, tokens) in sequences.iter().enumerate() {
        if index > start && rows + tokens.len() > limit {
            groups.push(&sequences[start..index]);
            (start, rows) = (index, 0);
        }
        rows += tokens.len();
    }
    if start < sequences.len() {
        groups.push(&sequences[start..]);
    }
    groups
}

fn whole_sequences(sequences: &[Vec<u32>]) -> Batch {
    let mut batch = Batch { tokens: Vec::new(), positions: Vec::new(), sequences: Vec::new() };
    for (sequence, tokens) in sequences.iter().enumerate() {
        let first = batch.tokens.len();
        let rows = (0..tokens.len()).map(|position| (first + position, position)).collect();
        batch.sequences.push(SequenceRows { sequence, rows });
        batch.positions.extend(0..tokens.len());
        batch.tokens.extend(tokens);
    }
    batch
}

/// Refuse what cannot be fed: no token, an id outside of the vocabulary, more positions than the context.
fn check_sequence(model: &Model, sequence: usize, tokens: &[u32], past: usize) -> Result<()> {
    if tokens.is_empty() {
        return Err(Refusal::EmptySequence { sequence });
    }
    let n_vocab = model.facts.n_vocab;
    if let Some(index) = tokens.iter().position(|&token| token as usize >= n_vocab) {
        return Err(Refusal::TokenOutside { sequence, index, limit: n_vocab - 1, found: tokens[index] });
    }
    let (expected, found) = (model.facts.n_ctx_train, past + tokens.len());
    if found > expected {
        return Err(Refusal::ContextExceeded { sequence, expected, found });
    }
    Ok(())
}

/// Sequences with a cache: rows are appended, a few at a time or many at once, with the same bits.
pub struct Session {
    model: Arc<Model>,
    cache: Cache,
    /// Positions that each sequence already has.
    lengths: Vec<usize>,
}

/// What one call of a session gives back: logits `(n, n_vocab)` and the sites that were asked for.
pub struct Step {
    pub logits: Matrix,
    pub taps: Vec<(String, Tap)>,
}

impl Session {
    /// `n_seq` empty sequences.
    pub fn new(model: Arc<Model>, n_seq: usize) -> Self {
        let cache = Cache::lasting(model.facts.n_layer, n_seq);
        Self { model, cache, lengths: vec![0; n_seq] }
    }

    /// Positions of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Append rows `(sequence, token)`, in any interleaving, as one pass. A refused call changes nothing.
    pub fn append(&mut self, rows: &[(usize, u32)], taps: &[String], tick: &mut Tick) -> Result<Step> {
        let batch = self.batch(rows)?;
        self.run(batch, Start::Tokens, taps, tick)
    }

    /// The same pass, entered at block `layer` with the residual stream `(n, n_embd)`.
    pub fn append_from(
        &mut self,
        layer: usize,
        residual: Matrix,
        rows: &[(usize, u32)],
        taps: &[String],
        tick: &mut Tick,
    ) -> Result<Step> {
        let facts = &self.model.facts;
        if layer >= facts.n_layer {
            let expected = format!("0 to {}", facts.n_layer - 1);
            return Err(Refusal::OutOfRange { what: "layer".into(), expected, found: layer.to_string() });
        }
        if (residual.n_positions, residual.n_features) != (rows.len(), facts.n_embd) {
            let (expected, found) = (rows.len() * facts.n_embd, residual.data.len());
            return Err(Refusal::WrongLength { what: "residual stream".into(), expected, found });
        }
        let batch = self.batch(rows)?;
        self.run(batch, Start::Residual(layer, residual), taps, tick)
    }

    fn batch(&self, rows: &[(usize, u32)]) -> Result<Batch> {
        let n_seq = self.lengths.len();
        let mut by_sequence: Vec<Vec<(usize, usize)>> = vec![Vec::new(); n_seq];
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); n_seq];
        let mut batch = Batch { tokens: Vec::new(), positions: Vec::new(), sequences: Vec::new() };
        for (row, &(sequence, token)) in rows.iter().enumerate() {
            if sequence >= n_seq {
                let expected = format!("0 to {}", n_seq.saturating_sub(1));
                return Err(Refusal::OutOfRange { what: "sequence".into(), expected, found: sequence.to_string() });
            }
            let position = self.lengths[sequence] + by_sequence[sequence].len();
            by_sequence[sequence].push((row, position));
            tokens[sequence].push(token);
            batch.tokens.push(token);
            batch.positions.push(position);
        }
        if rows.is_empty() {
            return Err(Refusal::EmptySequence { sequence: 0 });
        }
        for (sequence, rows) in by_sequence.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            check_sequence(&self.model, sequence, &tokens[sequence], self.lengths[sequence])?;
            batch.sequences.push(SequenceRows { sequence, rows });
        }
        Ok(batch)
    }

    /// One pass; a pass that was stopped leaves the cache as it was.
    fn run(&mut self, batch: Batch, start: Start, names: &[String], tick: &mut Tick) -> Result<Step> {
        let mut taps = Taps::new(names, self.model.facts.n_layer)?;
        let result = self.pass(&batch, start, &mut taps, tick);
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

    fn pass(&mut self, batch: &Batch, start: Start, taps: &mut Taps, tick: &mut Tick) -> Result<Matrix> {
        let normed = self.model.forward(batch, start, &mut self.cache, taps, tick)?;
        let logits = self.model.logits(normed)?;
        taps.global("result_output", &logits);
        Ok(logits)
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

    /// Everything that the session knows, as bytes: a header, the lengths, keys and values by layer and sequence.
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = self.header();
        for &length in &self.lengths {
            bytes.extend((length as u64).to_le_bytes());
        }
        for slots in self.cache.layers.iter().flatten() {
            bytes.extend(little_endian(&slots.keys));
            bytes.extend(little_endian(&slots.values));
        }
        bytes
    }

    /// Take over a saved state; refused as a whole if it is not from a session of this shape.
    pub fn restore(&mut self, state: &[u8]) -> Result<()> {
        let heads = self.model.facts.heads();
        let mut reader = Reader { state, header: self.header() };
        reader.header()?;
        let n_seq = self.lengths.len();
        let lengths = (0..n_seq).map(|_| reader.length(self.model.facts.n_ctx_train)).collect::<Result<Vec<_>>>()?;
        let mut cache = Cache::lasting(self.model.facts.n_layer, n_seq);
        for layer in &mut cache.layers {
            for (slots, &length) in layer.iter_mut().zip(&lengths) {
                slots.keys = reader.values(length * heads.n_head_kv * heads.key)?;
                slots.values = reader.values(length * heads.n_head_kv * heads.value)?;
            }
        }
        reader.end()?;
        (self.cache, self.lengths) = (cache, lengths);
        Ok(())
    }

    /// Magic, version and the shape that a state belongs to.
    fn header(&self) -> Vec<u8> {
        let facts = &self.model.facts;
        let heads = facts.heads();
        let shape = [1, facts.n_layer, self.lengths.len(), heads.n_head_kv, heads.key, heads.value];
        let mut bytes = b"BGKV".to_vec();
        bytes.extend(shape.iter().flat_map(|&n| (n as u64).to_le_bytes()));
        bytes
    }
}

/// Walks over a saved state.
struct Reader<'a> {
    state: &'a [u8],
    header: Vec<u8>,
}

impl Reader<'_> {
    fn header(&mut self) -> Result<()> {
        match self.state.split_at_checked(self.header.len()) {
            Some((header, rest)) if header == self.header => {
                self.state = rest;
                Ok(())
            }
            _ => Err(wrong_state("a state of the same version, model shape and number of sequences", "another header")),
        }
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        let found = format!("{} bytes left", self.state.len());
        let (head, rest) =
            self.state.split_at_checked(n).ok_or_else(|| wrong_state(&format!("{n} more bytes"), &found))?;
        self.state = rest;
        Ok(head)
    }

    fn length(&mut self, limit: usize) -> Result<usize> {
        let bytes = self.take(8)?;
        let length = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        if length > limit as u64 {
            return Err(wrong_state(&format!("at most {limit} positions"), &length.to_string()));
        }
        Ok(length as usize)
    }

    fn values(&mut self, n: usize) -> Result<Vec<f32>> {
        let bytes = self.take(4 * n)?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    fn end(&self) -> Result<()> {
        match self.state.len() {
            0 => Ok(()),
            n => Err(wrong_state("the end of the state", &format!("{n} more bytes"))),
        }
    }
}

fn wrong_state(expected: &str, found: &str) -> Refusal {
    Refusal::WrongState { expected: expected.into(), found: found.into() }
}
