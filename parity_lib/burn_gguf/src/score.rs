//! Scores whole sequences in one pass: every row's logits into a file, never all of them in memory.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use crate::attention::SequenceRows;
use crate::cache::Cache;
use crate::matrix::Matrix;
use crate::model::{Batch, Model, Start, Tick};
use crate::model_error::{ModelError, Result};
use crate::session::{check_sequence, little_endian, select};

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
        let normed = model.forward(&model.ops, &batch, Start::Tokens, &mut cache, &mut in_pass)?;
        let kept = rows(group);
        #[cfg(feature = "faults")]
        let kept = model.ops.kept(kept, written.len());
        write_logits(model, &normed, &kept.concat(), &mut sink, &mut || tick(done + n_rows * 4 / 5, total))?;
        written.extend(kept.iter().map(Vec::len));
        done += n_rows;
        tick(done, total)?;
    }
    Ok(written)
}

/// Rows of a group by sequence: all of them are written.
fn rows(group: &[Vec<u32>]) -> Vec<Vec<usize>> {
    let mut start = 0;
    let rows = group.iter().map(|tokens| {
        start += tokens.len();
        (start - tokens.len()..start).collect()
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
                let logits = model.logits(&model.ops, select(normed, rows))?;
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
        let file = opened.map_err(|source| ModelError::Sink { file: path.into(), expected: 0, source })?;
        Ok(Self { path, file })
    }

    fn write(&mut self, values: &[f32]) -> Result<()> {
        let bytes = little_endian(values);
        let refused = |source| ModelError::Sink { file: self.path.into(), expected: bytes.len(), source };
        self.file.write_all(bytes).map_err(refused)
    }
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
