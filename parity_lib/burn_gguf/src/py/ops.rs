//! Ops one by one, as Python calls them: the same functions that the forward pass calls.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{bytes, detached, floats, matrix};
use crate::attention::{self, attention, Heads, KeyValues, SequenceRows};
use crate::linear::{linear, Policy};
use crate::matrix::Matrix;
use crate::model;
use crate::model_error::{ModelError, Result};
use crate::ops;
use crate::quant::GgmlType;
use crate::rope::{self, Pairing, Rope};
use crate::weight::Weight;

/// Put every op into the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(op_linear, module)?)?;
    module.add_function(wrap_pyfunction!(op_rms_norm, module)?)?;
    module.add_function(wrap_pyfunction!(op_rope, module)?)?;
    module.add_function(wrap_pyfunction!(op_attention, module)?)?;
    module.add_function(wrap_pyfunction!(op_kq, module)?)?;
    module.add_function(wrap_pyfunction!(op_soft_max, module)?)?;
    module.add_function(wrap_pyfunction!(op_kqv, module)?)?;
    module.add_function(wrap_pyfunction!(op_swiglu, module)?)?;
    module.add_function(wrap_pyfunction!(op_add, module)?)?;
    module.add_function(wrap_pyfunction!(op_embed, module)?)?;
    #[cfg(spine)]
    {
        module.add_function(wrap_pyfunction!(op_tile_gemm, module)?)?;
        module.add_function(wrap_pyfunction!(tile_report, module)?)?;
        module.add_function(wrap_pyfunction!(fork_tensor, module)?)?;
    }
    Ok(())
}

fn weight_type(name: &str) -> Result<GgmlType> {
    GgmlType::ALL.into_iter().find(|ty| ty.name() == name).ok_or_else(|| ModelError::UnknownOption {
        option: "type",
        expected: GgmlType::ALL.map(GgmlType::name).join(", "),
        found: name.into(),
    })
}

/// Run one op on a pool of `n_threads`.
fn one_op<'py>(
    py: Python<'py>,
    n_threads: usize,
    op: impl FnOnce() -> Result<Matrix> + Send,
) -> PyResult<Bound<'py, PyBytes>> {
    let out = detached(py, || model::workers(n_threads)?.install(op).map(Matrix::into_rows))?;
    Ok(bytes(py, &out.data))
}

/// `W x`: blocks of `n_out` rows of type `ty`, activations `(m, n_in)`; `(m, n_out)`.
#[pyfunction]
#[pyo3(signature = (ty, blocks, n_out, n_in, x, policy = "f32", n_threads = 1))]
#[allow(clippy::too_many_arguments)]
fn op_linear<'py>(
    py: Python<'py>,
    ty: &str,
    blocks: &[u8],
    n_out: usize,
    n_in: usize,
    x: &[u8],
    policy: &str,
    n_threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, n_threads, || {
        let weight = Weight::new(weight_type(ty)?, n_out, n_in, blocks)?;
        linear(&weight, matrix("activations", x, n_in)?, Policy::parse(policy)?)
    })
}

/// `x / sqrt(mean(x^2) + eps) * weight` of each row of `(m, n)`, n the length of the weight.
#[pyfunction]
#[pyo3(signature = (x, weight, eps, n_threads = 1))]
fn op_rms_norm<'py>(
    py: Python<'py>,
    x: &[u8],
    weight: &[u8],
    eps: f32,
    n_threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, n_threads, || {
        let weight = floats("weight of a norm", weight)?;
        ops::rms_norm(matrix("activations", x, weight.len())?, &weight, eps)
    })
}

/// RoPE of `(m, n_heads * head)` at m positions; `pairing` is "adjacent" or "halves".
#[pyfunction]
#[pyo3(signature = (x, n_heads, head, positions, pairing, n_dims, base, divisors = None, n_threads = 1))]
#[allow(clippy::too_many_arguments)]
fn op_rope<'py>(
    py: Python<'py>,
    x: &[u8],
    n_heads: usize,
    head: usize,
    positions: Vec<usize>,
    pairing: &str,
    n_dims: usize,
    base: f32,
    divisors: Option<&[u8]>,
    n_threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, n_threads, || {
        let pairing = match pairing {
            "adjacent" => Pairing::Adjacent,
            "halves" => Pairing::Halves,
            other => {
                let expected = "adjacent or halves".into();
                return Err(ModelError::UnknownOption { option: "pairing", expected, found: other.into() });
            }
        };
        let divisors = divisors.map(|bytes| floats("divisors", bytes)).transpose()?;
        let rope = Rope::new(pairing, n_dims, base, divisors)?;
        rope::rope(matrix("activations", x, n_heads * head)?, head, &rope.angles(&positions))
    })
}

/// Causal attention through the session's own slots: rows `(sequence, position)`; each sequence from position 0 on.
#[pyfunction]
#[pyo3(signature = (q, k, v, rows, n_head, n_head_kv, key_length, value_length, scale, n_threads = 1))]
#[allow(clippy::too_many_arguments)]
fn op_attention<'py>(
    py: Python<'py>,
    q: &[u8],
    k: &[u8],
    v: &[u8],
    rows: Vec<(usize, usize)>,
    n_head: usize,
    n_head_kv: usize,
    key_length: usize,
    value_length: usize,
    scale: f32,
    n_threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let heads = Heads { n_head, n_head_kv, key: key_length, value: value_length };
    one_op(py, n_threads, || {
        heads.check()?;
        let q = matrix("queries", q, n_head * key_length)?;
        let k = matrix("keys", k, n_head_kv * key_length)?;
        let v = matrix("values", v, n_head_kv * value_length)?;
        let batch = SequenceRows::group(&rows, &[q.n_positions, k.n_positions, v.n_positions])?;
        let mut cache = vec![KeyValues::default(); batch.len()];
        for sequence in &batch {
            cache[sequence.sequence].store(&sequence.rows, &k, &v);
        }
        Ok(attention(&q, &batch, &cache, heads, scale, &attention::soft_max))
    })
}

/// `kq`: queries `(r, d)` times keys `(n, d)`, unscaled; `(r, n)`.
#[pyfunction]
#[pyo3(signature = (queries, keys, d, n_threads = 1))]
fn op_kq<'py>(
    py: Python<'py>,
    queries: &[u8],
    keys: &[u8],
    d: usize,
    n_threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, n_threads, || {
        let (queries, keys) = (matrix("queries", queries, d)?, matrix("keys", keys, d)?);
        let (r, n) = (queries.n_positions, keys.n_positions);
        Ok(Matrix::from_rows(r, n, attention::scores(queries.data, &keys.data, d)))
    })
}

/// `kq_soft_max`: softmax of `scale * kq` of each row of `(r, n)` over its first `visible[row]` keys, 0 for the others.
#[pyfunction]
#[pyo3(signature = (kq, n, visible, scale, n_threads = 1))]
fn op_soft_max<'py>(
    py: Python<'py>,
    kq: &[u8],
    n: usize,
    visible: Vec<usize>,
    scale: f32,
    n_threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, n_threads, || {
        let kq = matrix("scores", kq, n)?;
        if visible.len() != kq.n_positions {
            return Err(ModelError::wrong_length("visible keys", kq.n_positions, visible.len()));
        }
        if let Some(found) = visible.iter().find(|seen| !(1..=n).contains(*seen)) {
            return Err(ModelError::out_of_range("visible keys", format!("1 to {n}"), found));
        }
        Ok(Matrix::from_rows(kq.n_positions, n, attention::soft_max(&kq.data, n, &visible, scale)))
    })
}

/// `kqv`: weights `(r, n)` times values `(n, d)`; `(r, d)`.
#[pyfunction]
#[pyo3(signature = (weights, n, values, d, n_threads = 1))]
fn op_kqv<'py>(
    py: Python<'py>,
    weights: &[u8],
    n: usize,
    values: &[u8],
    d: usize,
    n_threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, n_threads, || {
        let (weights, values) = (matrix("weights", weights, n)?, matrix("values", values, d)?);
        if values.n_positions != n {
            return Err(ModelError::wrong_length("values", n * d, values.data.len()));
        }
        let r = weights.n_positions;
        Ok(Matrix::from_rows(r, d, attention::weighted_values(weights.data, values.data, n)))
    })
}

/// `silu(gate) * up`, element by element.
#[pyfunction]
#[pyo3(signature = (gate, up, n_threads = 1))]
fn op_swiglu<'py>(py: Python<'py>, gate: &[u8], up: &[u8], n_threads: usize) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, n_threads, || ops::swiglu(matrix("gate", gate, 1)?, matrix("up", up, 1)?))
}

/// `a + b`, element by element.
#[pyfunction]
#[pyo3(signature = (a, b, n_threads = 1))]
fn op_add<'py>(py: Python<'py>, a: &[u8], b: &[u8], n_threads: usize) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, n_threads, || ops::add(matrix("a", a, 1)?, matrix("b", b, 1)?))
}

/// Rows of an embedding table of `n_vocab` rows of type `ty`.
#[pyfunction]
fn op_embed<'py>(
    py: Python<'py>,
    ty: &str,
    blocks: &[u8],
    n_vocab: usize,
    n_embd: usize,
    tokens: Vec<u32>,
) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, 1, || ops::embed(&Weight::new(weight_type(ty)?, n_vocab, n_embd, blocks)?, &tokens))
}

/// Rows of `weights` `(n, k)` times rows of `x` `(m, k)` through the fork's own BF16 tile kernel: `(m, n)`, with the
/// kernel's own rounding to BF16 or with the nearest even value.
#[cfg(spine)]
#[pyfunction]
#[pyo3(signature = (weights, x, k, own_rounding = false, n_threads = 1))]
fn op_tile_gemm<'py>(
    py: Python<'py>,
    weights: &[u8],
    x: &[u8],
    k: usize,
    own_rounding: bool,
    n_threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    one_op(py, n_threads, || {
        let n = weights.len() / (4 * k.max(1));
        let weight = Weight::new(weight_type("F32")?, n, k, weights)?;
        Ok(crate::tile::products(&[weight], &matrix("activations", x, k)?, own_rounding)?.remove(0))
    })
}

/// What the fork says about AMX, and whether its kernel would use it: `(used, report)`.
#[cfg(spine)]
#[pyfunction]
fn tile_report() -> (bool, String) {
    crate::tile::report()
}

/// A tensor's values as the fork's own reader gives them.
#[cfg(spine)]
#[pyfunction]
fn fork_tensor<'py>(py: Python<'py>, path: std::path::PathBuf, name: &str) -> PyResult<Bound<'py, PyBytes>> {
    let values = detached(py, || crate::fork_reader::tensor(&path, name))?;
    Ok(bytes(py, &values))
}
