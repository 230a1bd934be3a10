//! `linear(blocks, activations, policy)`: a quantised weight times activations, through burn's matmul.
//!
//! Weights are dequantised in panels of rows and are the *left* operand as they lie in the file:
//! `panel [n_tile, k] x activations^T [k, m]`. No weight is ever transposed, no model ever lies in memory as f32, and
//! the activations are transposed once for all weights that read them. Each thread dequantises its own next panel while
//! the others multiply. burn itself runs single-threaded inside a panel: the split is over weight rows only, so no sum
//! is ever cut differently and the bits do not depend on the number of threads or of positions.

use burn_ndarray::{NdArray, NdArrayDevice};
use burn_tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::activation::{self, ActivationKind};
use crate::matrix::Matrix;
use crate::quant::{self, GgmlType};
use crate::refusal::{Refusal, Result};

/// The backend under test. No generic element types: every stack compiles these same sources.
pub type B = NdArray<f32>;

/// Bytes of one dequantised panel: small enough that reused buffers stay mapped, large enough that packing the right
/// operand is paid back.
const PANEL_BYTES: usize = 8 << 20;

/// Fewer rows in a panel than this and copying and packing the right operand costs more than the product.
const PANEL_ROWS_MIN: usize = 256;

/// Bytes of one block of columns of the right operand. burn copies it once for each panel.
const OPERAND_BYTES: usize = 64 << 20;

/// Arithmetic of the weight matmuls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Dequantised weights times activations as they are.
    F32,
    /// Both operands rounded to BF16 (nearest even), accumulation in f32.
    Bf16,
    /// The reference's arithmetic: activations go through the quantiser that ggml pairs with the weight's type.
    Ggml,
}

impl Policy {
    /// All policies, by the names that the command line uses.
    pub const NAMES: [(&'static str, Policy); 3] =
        [("f32", Policy::F32), ("bf16", Policy::Bf16), ("ggml", Policy::Ggml)];

    /// The policy of that name.
    pub fn parse(name: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, policy)| *policy).ok_or_else(|| Refusal::UnknownOption {
            option: "policy",
            expected: "f32, bf16 or ggml".into(),
            found: name.into(),
        })
    }

    /// The name that the command line uses.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, policy)| *policy == self).map_or("", |(name, _)| name)
    }
}

/// A 2-D weight as it lies in the file: `n_out` rows of `n_in` values, in blocks.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    pub ty: GgmlType,
    pub n_out: usize,
    pub n_in: usize,
    pub blocks: &'a [u8],
    /// A seeded fault: the low 16 bits of every dequantised value are cut off.
    pub truncated: bool,
}

impl<'a> Weight<'a> {
    /// Bind blocks to a shape; refuses bytes that are not exactly `n_out` rows.
    pub fn new(ty: GgmlType, n_out: usize, n_in: usize, blocks: &'a [u8]) -> Result<Self> {
        let expected = n_out * (n_in / ty.block_size()) * ty.type_size();
        if !n_in.is_multiple_of(ty.block_size()) || blocks.len() != expected {
            let what = format!("{} weight of {n_out} rows of {n_in}", ty.name());
            return Err(Refusal::WrongLength { what, expected, found: blocks.len() });
        }
        Ok(Self { ty, n_out, n_in, blocks, truncated: false })
    }

    /// The blocks of rows `first .. first + n`.
    pub fn rows(&self, first: usize, n: usize) -> &'a [u8] {
        let row_bytes = self.n_in / self.ty.block_size() * self.ty.type_size();
        &self.blocks[first * row_bytes..][..n * row_bytes]
    }
}

/// `y = W x` for one weight. `x` is `(m, n_in)` in any layout; the result is `(m, n_out)` by columns.
pub fn linear(weight: &Weight, x: Matrix, policy: Policy) -> Result<Matrix> {
    Ok(linear_shared(std::slice::from_ref(weight), x, policy)?.remove(0))
}

/// `y_i = W_i x` for weights that read the same activations (q, k, v; gate, up): `x` is transposed once for all.
pub fn linear_shared(weights: &[Weight], x: Matrix, policy: Policy) -> Result<Vec<Matrix>> {
    for weight in weights {
        if weight.n_in != x.n_features {
            let what = "activations of a linear".into();
            return Err(Refusal::WrongLength { what, expected: weight.n_in, found: x.n_features });
        }
    }
    let m = x.n_positions;
    let mut outputs: Vec<Vec<f32>> = weights.iter().map(|weight| vec![0.0; weight.n_out * m]).collect();
    let mut rest = Some(x);
    for (operand_kind, members) in by_operand(weights, policy) {
        let last = members.last() == Some(&(weights.len() - 1));
        let x = if last { rest.take() } else { rest.clone() };
        let Some(x) = x else { break };
        let operand = Operand::new(x, operand_kind)?;
        let mut targets: Vec<Target> = Vec::new();
        for (index, output) in outputs.iter_mut().enumerate() {
            if members.contains(&index) {
                targets.push(Target { weight: weights[index], rows: output });
            }
        }
        multiply(targets, &operand)?;
    }
    let wrap = |(weight, data): (&Weight, Vec<f32>)| Matrix::from_columns(m, weight.n_out, data);
    Ok(weights.iter().zip(outputs).map(wrap).collect())
}

/// What happens to the activations (and to the weights) before they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OperandKind {
    Plain,
    Bf16,
    Ggml(ActivationKind),
}

/// Group weights by the operand that they need; in the order of their last member.
fn by_operand(weights: &[Weight], policy: Policy) -> Vec<(OperandKind, Vec<usize>)> {
    let mut groups: Vec<(OperandKind, Vec<usize>)> = Vec::new();
    for (index, weight) in weights.iter().enumerate() {
        let kind = match policy {
            Policy::F32 => OperandKind::Plain,
            Policy::Bf16 => OperandKind::Bf16,
            Policy::Ggml => OperandKind::Ggml(activation::vec_dot_type(weight.ty)),
        };
        match groups.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, members)) => members.push(index),
            None => groups.push((kind, vec![index])),
        }
    }
    groups.sort_by_key(|(_, members)| members.last().copied());
    groups
}

/// The right operand, `(k, m)`, cut into blocks of columns so that burn's copies of it stay small.
struct Operand {
    kind: OperandKind,
    k: usize,
    m: usize,
    /// First column, number of columns, values.
    blocks: Vec<(usize, usize, Tensor<B, 2>)>,
}

impl Operand {
    /// Round or quantise the activations as `kind` says, transpose them, hand them to burn.
    fn new(x: Matrix, kind: OperandKind) -> Result<Self> {
        let x = prepare(x, kind)?;
        let (k, m) = (x.n_features, x.n_positions);
        let width = (OPERAND_BYTES / (4 * k.max(1))).max(128);
        let n_blocks = m.div_ceil(width).max(1);
        let columns = x.into_columns();
        if n_blocks == 1 {
            return Ok(Self { kind, k, m, blocks: vec![(0, m, tensor(columns.data, k, m))] });
        }
        let width = m.div_ceil(n_blocks);
        let blocks = (0..m).step_by(width).map(|first| {
            let n = width.min(m - first);
            let mut block = Vec::with_capacity(k * n);
            for feature in columns.data.chunks_exact(m) {
                block.extend_from_slice(&feature[first..first + n]);
            }
            (first, n, tensor(block, k, n))
        });
        Ok(Self { kind, k, m, blocks: blocks.collect() })
    }
}

/// Rows `(r, c)` into a burn tensor; takes the buffer, copies nothing.
pub(crate) fn tensor(data: Vec<f32>, rows: usize, columns: usize) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(data, [rows, columns]), &NdArrayDevice::Cpu)
}

/// A burn tensor back into its buffer. The tensor must have no other owner, or burn walks it element by element.
pub(crate) fn values(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().into_vec().expect("the backend's element type is f32")
}

/// One weight and where its product goes, `(n_out, m)`.
struct Target<'a, 'o> {
    weight: Weight<'a>,
    rows: &'o mut [f32],
}

/// A run of rows of one weight inside a panel.
struct Stretch<'a, 'o> {
    weight: Weight<'a>,
    first: usize,
    n: usize,
    out: &'o mut [f32],
}

/// Multiply every weight of a group, panel by panel, in parallel.
fn multiply(targets: Vec<Target>, operand: &Operand) -> Result<()> {
    if operand.m == 0 {
        return Ok(());
    }
    let total: usize = targets.iter().map(|target| target.weight.n_out).sum();
    let rows = panel_rows(total, operand.k, rayon::current_num_threads());
    let panels = cut(targets, rows, operand.m);
    panels.into_par_iter().with_max_len(1).try_for_each(|panel| multiply_panel(panel, operand))
}

/// Rows of a panel: all panels alike, a multiple of the threads, none above the byte limit or (nearly) below the minimum.
fn panel_rows(total: usize, k: usize, n_threads: usize) -> usize {
    let limit = (PANEL_BYTES / (4 * k.max(1))).max(16);
    let rounds = total.div_ceil(limit * n_threads).max(1);
    let even = total.div_ceil(rounds * n_threads);
    even.max(PANEL_ROWS_MIN.min(limit)).next_multiple_of(16)
}

/// Cut the concatenated rows of all targets into panels; a panel may hold rows of several weights.
fn cut<'a, 'o>(targets: Vec<Target<'a, 'o>>, rows: usize, m: usize) -> Vec<Vec<Stretch<'a, 'o>>> {
    let mut panels: Vec<Vec<Stretch>> = vec![Vec::new()];
    let mut room = rows;
    for target in targets {
        let (mut first, mut out) = (0, target.rows);
        while first < target.weight.n_out {
            if room == 0 {
                panels.push(Vec::new());
                room = rows;
            }
            let n = room.min(target.weight.n_out - first);
            let (head, tail) = out.split_at_mut(n * m);
            if let Some(panel) = panels.last_mut() {
                panel.push(Stretch { weight: target.weight, first, n, out: head });
            }
            (first, out, room) = (first + n, tail, room - n);
        }
    }
    panels
}

/// Dequantise one panel and multiply it with every block of columns.
fn multiply_panel(mut panel: Vec<Stretch>, operand: &Operand) -> Result<()> {
    let n: usize = panel.iter().map(|stretch| stretch.n).sum();
    let mut weights = vec![0.0f32; n * operand.k];
    let mut rest = weights.as_mut_slice();
    for stretch in &panel {
        let (head, tail) = rest.split_at_mut(stretch.n * operand.k);
        dequantize_rows(stretch, operand.kind, head)?;
        rest = tail;
    }
    let mut left = Some(tensor(weights, n, operand.k));
    let n_blocks = operand.blocks.len();
    for (index, (first, width, right)) in operand.blocks.iter().enumerate() {
        let panel_operand = if index + 1 == n_blocks { left.take() } else { left.clone() };
        let Some(panel_operand) = panel_operand else { break };
        let product = values(panel_operand.matmul(right.clone()));
        scatter(&product, &mut panel, *first, *width, operand.m);
    }
    Ok(())
}

/// Copy a product `(rows of the panel, width)` to columns `first ..` of each stretch's output.
fn scatter(product: &[f32], panel: &mut [Stretch], first: usize, width: usize, m: usize) {
    let mut lines = product.chunks_exact(width);
    for stretch in panel {
        for (out, line) in stretch.out.chunks_exact_mut(m).zip(&mut lines) {
            out[first..first + width].copy_from_slice(line);
        }
    }
}

/// Activations as the product sees them; by rows, since quantisers work along a row.
///
/// For Q8_1 each row grows by one value a block: the reference multiplies a block's minimum not with the codes but with
/// `s`, an f16 of their scaled sum. `W x` already contains `minimum * sum(d * code)`, so what is missing is
/// `minimum * (s - sum(d * code))`: the second factor is appended here, the minimums to the weights' rows.
fn prepare(x: Matrix, kind: OperandKind) -> Result<Matrix> {
    let kind = match kind {
        OperandKind::Plain | OperandKind::Ggml(ActivationKind::F32) => return Ok(x),
        OperandKind::Bf16 => ActivationKind::BF16,
        OperandKind::Ggml(kind) => kind,
    };
    let mut x = x.into_rows();
    if kind == ActivationKind::Q8_1 {
        return with_sums(&x);
    }
    let width = x.n_features;
    x.data.par_chunks_mut(width).try_for_each(|row| {
        let source = row.to_vec();
        activation::round_row(kind, &source, row)
    })?;
    Ok(x)
}

/// Rows of Q8_1 values followed by `s - sum(d * code)` of each block.
fn with_sums(x: &Matrix) -> Result<Matrix> {
    let width = x.n_features;
    let n_blocks = width / ActivationKind::Q8_1.block_size();
    let mut data = vec![0.0f32; x.n_positions * (width + n_blocks)];
    data.par_chunks_mut(width + n_blocks).zip(x.data.par_chunks(width)).try_for_each(|(row, source)| {
        let (values, corrections) = row.split_at_mut(width);
        let (values, _) = values.as_chunks_mut();
        let blocks = activation::quantize_q8_1(source)?;
        for ((block, values), correction) in blocks.iter().zip(values).zip(corrections) {
            block.dequantize(values);
            // Exact: an 11-bit scale times at most 12 bits of sum.
            let sum: i32 = block.qs.iter().map(|&code| i32::from(code)).sum();
            *correction = block.s.to_f32() - block.d.to_f32() * sum as f32;
        }
        Ok::<(), Refusal>(())
    })?;
    Ok(Matrix::from_rows(x.n_positions, width + n_blocks, data))
}

/// Fill the rows of one stretch of a panel, `(n, k)`, k as the operand has it.
fn dequantize_rows(stretch: &Stretch, kind: OperandKind, rows: &mut [f32]) -> Result<()> {
    let Weight { ty, n_in, .. } = stretch.weight;
    let blocks = stretch.weight.rows(stretch.first, stretch.n);
    match kind {
        OperandKind::Ggml(ActivationKind::Q8_1) => {
            let k = rows.len() / stretch.n;
            for (index, row) in rows.chunks_exact_mut(k).enumerate() {
                let blocks = stretch.weight.rows(stretch.first + index, 1);
                let (values, minimums) = row.split_at_mut(n_in);
                quant::dequantize(ty, blocks, values)?;
                quant::minimums(ty, blocks, minimums)?;
            }
        }
        OperandKind::Bf16 => {
            quant::dequantize(ty, blocks, rows)?;
            activation::round_bf16(rows);
        }
        OperandKind::Plain | OperandKind::Ggml(_) => quant::dequantize(ty, blocks, rows)?,
    }
    if stretch.weight.truncated {
        rows.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits() & 0xffff_0000));
    }
    Ok(())
}
