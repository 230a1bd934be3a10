//! Saves a session as bytes and takes such bytes back: a header, the block that it was entered at, the lengths, keys and
//! values by layer and sequence.

use crate::cache::Cache;
use crate::model_error::{ModelError, Result};
use crate::session::{little_endian, Session};

impl Session {
    /// Everything that the session knows, as bytes.
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.extend((self.entered_at as u64).to_le_bytes());
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
        let (n_seq, n_layer) = (self.lengths.len(), self.model.facts.n_layer);
        let entered_at = reader.number("a block to enter at", n_layer - 1)?;
        let lengths =
            (0..n_seq).map(|_| reader.number("positions", self.model.facts.n_ctx_train)).collect::<Result<Vec<_>>>()?;
        let mut cache = Cache::lasting(n_layer, n_seq);
        for layer in cache.layers.iter_mut().skip(entered_at) {
            for (slots, &length) in layer.iter_mut().zip(&lengths) {
                slots.keys = reader.values(length * heads.n_head_kv * heads.key)?;
                slots.values = reader.values(length * heads.n_head_kv * heads.value)?;
            }
        }
        reader.end()?;
        (self.cache, self.lengths, self.entered_at) = (cache, lengths, entered_at);
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

    fn number(&mut self, what: &str, limit: usize) -> Result<usize> {
        let bytes = self.take(8)?;
        let number = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        if number > limit as u64 {
            return Err(wrong_state(&format!("{what}, at most {limit}"), &number.to_string()));
        }
        Ok(number as usize)
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

fn wrong_state(expected: &str, found: &str) -> ModelError {
    ModelError::WrongState { expected: expected.into(), found: found.into() }
}
