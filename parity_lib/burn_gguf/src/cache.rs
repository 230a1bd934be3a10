//! Keys and values of a pass or of a session.

use crate::attention::KeyValues;

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

    /// Called when a pass has left a layer.
    pub fn leave(&mut self, layer: usize) {
        if self.transient {
            self.layers[layer].iter_mut().for_each(|slots| *slots = KeyValues::default());
        }
    }
}
