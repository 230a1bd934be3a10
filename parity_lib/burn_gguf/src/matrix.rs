//! Activations between two ops: positions x features, f32, stored by rows or by columns.
//!
//! The product `panel x activations^T` yields one row for each *feature*, while norms, RoPE and attention want one row
//! for each *position*. Carrying the layout with the data keeps every transposition visible and lets two neighbours
//! that agree (gate, up, swiglu, down) skip it.

use rayon::prelude::*;

/// Which index is outermost in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `data[position * n_features + feature]`
    Rows,
    /// `data[feature * n_positions + position]`
    Columns,
}

/// `n_positions` x `n_features` values.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub n_positions: usize,
    pub n_features: usize,
    pub layout: Layout,
    pub data: Vec<f32>,
}

impl Matrix {
    /// Wrap `data` stored by rows: `(n_positions, n_features)`.
    pub fn from_rows(n_positions: usize, n_features: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), n_positions * n_features, "a matrix by rows needs every value");
        Self { n_positions, n_features, layout: Layout::Rows, data }
    }

    /// Wrap `data` stored by columns: `(n_features, n_positions)`.
    pub fn from_columns(n_positions: usize, n_features: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), n_positions * n_features, "a matrix by columns needs every value");
        Self { n_positions, n_features, layout: Layout::Columns, data }
    }

    /// One row for each position; moves no byte if it is so already.
    pub fn into_rows(self) -> Self {
        self.into_layout(Layout::Rows)
    }

    /// One row for each feature; moves no byte if it is so already.
    pub fn into_columns(self) -> Self {
        self.into_layout(Layout::Columns)
    }

    /// The same values by rows, without consuming `self`.
    pub fn to_rows_vec(&self) -> Vec<f32> {
        match self.layout {
            Layout::Rows => self.data.clone(),
            Layout::Columns => transpose(&self.data, self.n_features, self.n_positions),
        }
    }

    /// The values of one position. Only for matrices stored by rows.
    pub fn row(&self, position: usize) -> &[f32] {
        assert_eq!(self.layout, Layout::Rows, "a row is contiguous only in a matrix by rows");
        &self.data[position * self.n_features..][..self.n_features]
    }

    /// The values of one position, writable. Only for matrices stored by rows.
    pub fn row_mut(&mut self, position: usize) -> &mut [f32] {
        assert_eq!(self.layout, Layout::Rows, "a row is contiguous only in a matrix by rows");
        &mut self.data[position * self.n_features..][..self.n_features]
    }

    fn into_layout(self, wanted: Layout) -> Self {
        if self.layout == wanted {
            return self;
        }
        let (outer, inner) = match self.layout {
            Layout::Rows => (self.n_positions, self.n_features),
            Layout::Columns => (self.n_features, self.n_positions),
        };
        // A single row or column has the same bytes in both layouts.
        let data = if outer == 1 || inner == 1 { self.data } else { transpose(&self.data, outer, inner) };
        Self { data, layout: wanted, ..self }
    }
}

/// Side of the square that is moved at once: 16 floats are one cache line.
const TILE: usize = 16;

/// Transpose `source`, `(outer, inner)`, in tiles of one cache line and in parallel; an element-wise walk over a
/// transposed view costs ten times as much.
pub fn transpose(source: &[f32], outer: usize, inner: usize) -> Vec<f32> {
    assert_eq!(source.len(), outer * inner, "a transposition needs every value");
    let mut target = vec![0.0f32; source.len()];
    if source.is_empty() {
        return target;
    }
    target.par_chunks_mut(TILE * outer).enumerate().for_each(|(band, rows)| {
        transpose_band(source, outer, inner, band * TILE, rows);
    });
    target
}

/// Fill `rows` of the target (source columns `first ..`), tile by tile.
fn transpose_band(source: &[f32], outer: usize, inner: usize, first: usize, rows: &mut [f32]) {
    let width = rows.len() / outer;
    let mut tile = [[0.0f32; TILE]; TILE];
    for start in (0..outer).step_by(TILE) {
        let height = TILE.min(outer - start);
        if width == TILE && height == TILE {
            for (line, values) in tile.iter_mut().enumerate() {
                values.copy_from_slice(&source[(start + line) * inner + first..][..TILE]);
            }
            for (column, target) in rows.chunks_exact_mut(outer).enumerate() {
                for (value, line) in target[start..start + TILE].iter_mut().zip(&tile) {
                    *value = line[column];
                }
            }
        } else {
            for line in start..start + height {
                for column in 0..width {
                    rows[column * outer + line] = source[line * inner + first + column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(n: usize) -> Vec<f32> {
        (0..n).map(|i| i as f32).collect()
    }

    #[test]
    fn transpose_moves_each_value_to_its_mirror() {
        for (outer, inner) in [(1, 1), (1, 7), (16, 16), (17, 33), (64, 5), (40, 48)] {
            let source = numbered(outer * inner);
            let target = transpose(&source, outer, inner);
            for i in 0..outer {
                for j in 0..inner {
                    assert_eq!(target[j * outer + i], source[i * inner + j], "({outer}, {inner}) at ({i}, {j})");
                }
            }
        }
    }

    #[test]
    fn layouts_round_trip() {
        let rows = Matrix::from_rows(19, 35, numbered(19 * 35));
        let columns = rows.clone().into_columns();
        assert_eq!(columns.layout, Layout::Columns);
        assert_eq!(columns.to_rows_vec(), rows.data);
        assert_eq!(columns.into_rows(), rows);
    }
}
