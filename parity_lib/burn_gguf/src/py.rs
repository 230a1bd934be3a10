//! The Python module `burn_gguf`: paths and token ids in, bytes and JSON out.
//!
//! Work runs without the GIL. Between steps progress is reported and signals are checked, so Ctrl-C works. A panic
//! becomes a `BurnError`; so does every refusal, `BurnFileError` if the file is at fault. Python documents and checks,
//! see `parity_lib/engines/burn/engine.py`.

mod calls;
mod file;
mod ops;
#[cfg(all(feature = "sampler", target_os = "linux"))]
mod sampler;

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use self::calls::{detached, with_observer, with_progress};
use crate::engine::{Run, FAULTS};
use crate::graph::Ops;
use crate::linear::Policy;
use crate::matrix::Matrix;
use crate::model;
use crate::model_error::{ModelError, Result};
use crate::plain::{Plain, PLAIN};
use crate::score::score;
use crate::session::{self, little_endian, Step, Wanted};
use crate::tap::{BLOCK_SITES, GLOBAL_SITES};

create_exception!(burn_gguf, BurnError, PyException, "The engine refused or failed; the message says why.");
create_exception!(
    burn_gguf,
    BurnFileError,
    BurnError,
    "The model file cannot be read or asks for what is not supported."
);

/// The one place where an error of the crate becomes one of Python.
fn raised(refusal: ModelError) -> PyErr {
    let text = refusal.to_string();
    match refusal {
        ModelError::File(_)
        | ModelError::MissingKey { .. }
        | ModelError::BadValue { .. }
        | ModelError::UnsupportedArchitecture { .. }
        | ModelError::UnsupportedKey { .. }
        | ModelError::Part { .. }
        | ModelError::MissingTensor { .. }
        | ModelError::WrongShape { .. }
        | ModelError::UnusedTensor { .. } => BurnFileError::new_err(text),
        _ => BurnError::new_err(text),
    }
}

/// Little-endian float32 bytes as a matrix by rows.
fn matrix(what: &str, bytes: &[u8], width: usize) -> Result<Matrix> {
    let values = floats(what, bytes)?;
    if width == 0 || !values.len().is_multiple_of(width) {
        return Err(ModelError::wrong_length(what, width, values.len()));
    }
    Ok(Matrix::from_rows(values.len() / width, width, values))
}

fn floats(what: &str, bytes: &[u8]) -> Result<Vec<f32>> {
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(ModelError::wrong_length(what, 4 * words.len(), bytes.len()));
    }
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

fn bytes<'py>(py: Python<'py>, values: &[f32]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, little_endian(values))
}

/// A model that is ready to run.
#[pyclass(frozen, module = "burn_gguf")]
struct Model(Arc<model::Model>);

#[pymethods]
impl Model {
    #[new]
    #[pyo3(signature = (path, policy = "f32", n_threads = 2, fault = None, plain = Vec::new()))]
    fn new(
        py: Python,
        path: PathBuf,
        policy: &str,
        n_threads: usize,
        fault: Option<String>,
        plain: Vec<String>,
    ) -> PyResult<Self> {
        detached(py, || {
            let plain = Plain::parse(&plain)?;
            let run = Run { policy: Policy::parse(policy)?, n_threads, plain, fault };
            Ok(Self(Arc::new(model::Model::open(&path, run)?)))
        })
    }

    /// What the file says about the model, and how it is run.
    fn facts_json(&self) -> PyResult<String> {
        let (model, run) = (&self.0, &self.0.run);
        let mut facts = serde_json::to_value(&model.facts).map_err(|error| BurnError::new_err(error.to_string()))?;
        facts["tied_output"] = model.is_tied().into();
        facts["has_rope_freqs"] = model.has_rope_freqs().into();
        facts["biases"] = model.biases().into();
        facts["policy"] = run.policy.name().into();
        facts["n_threads"] = run.n_threads.into();
        facts["fault"] = run.fault.clone().into();
        facts["plain"] = run.plain.names().into();
        facts["fused"] = model.ops.fused().sites().into();
        Ok(facts.to_string())
    }

    /// Score sequences from empty caches, append all logit rows to the file `sink_path`; rows written for each.
    #[pyo3(signature = (sequences, sink_path, progress = None))]
    fn score(
        &self,
        py: Python,
        sequences: Vec<Vec<u32>>,
        sink_path: PathBuf,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<usize>> {
        with_progress(py, progress, |tick| score(&self.0, &sequences, &sink_path, tick))
    }
}

/// Sequences with a key and value cache.
#[pyclass(module = "burn_gguf")]
struct Session(session::Session, Arc<model::Model>);

type Taps<'py> = Bound<'py, PyDict>;

#[pymethods]
impl Session {
    #[new]
    fn new(model: &Model, n_seq: usize) -> PyResult<Self> {
        Ok(Self(session::Session::new(model.0.clone(), n_seq).map_err(raised)?, model.0.clone()))
    }

    /// Positions that each sequence has.
    fn lengths(&self) -> Vec<usize> {
        self.0.lengths().to_vec()
    }

    /// Append rows `(sequence, token)` as one pass; logits `(n, n_vocab)` as bytes, taps as name -> (shape, bytes).
    ///
    /// `logits` lists the rows whose logits are wanted, all if it is `None`. `observe` is called at every site with
    /// (name, shape, bytes); bytes that it returns take the value's place.
    #[pyo3(signature = (rows, taps = Vec::new(), logits = None, progress = None, observe = None))]
    #[allow(clippy::too_many_arguments)]
    fn append<'py>(
        &mut self,
        py: Python<'py>,
        rows: Vec<(usize, u32)>,
        taps: Vec<String>,
        logits: Option<Vec<usize>>,
        progress: Option<Py<PyAny>>,
        observe: Option<Py<PyAny>>,
    ) -> PyResult<(Bound<'py, PyBytes>, Taps<'py>)> {
        let (session, wanted) = (&mut self.0, Wanted { taps, logits });
        let step = match observe {
            None => with_progress(py, progress, |tick| session.append(&rows, &wanted, tick)),
            Some(call) => with_observer(py, progress, call, |observer, tick| {
                session.append_observed(&rows, &wanted, observer, tick)
            }),
        }?;
        answer(py, step)
    }

    /// The same, entered at block `layer` with the residual stream `(n, n_embd)` as bytes.
    #[pyo3(signature = (layer, residual, rows, taps = Vec::new(), logits = None, progress = None))]
    #[allow(clippy::too_many_arguments)]
    fn score_from<'py>(
        &mut self,
        py: Python<'py>,
        layer: usize,
        residual: Vec<u8>,
        rows: Vec<(usize, u32)>,
        taps: Vec<String>,
        logits: Option<Vec<usize>>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(Bound<'py, PyBytes>, Taps<'py>)> {
        let (session, width, wanted) = (&mut self.0, self.1.facts.n_embd, Wanted { taps, logits });
        let step = with_progress(py, progress, |tick| {
            let residual = matrix("residual stream", &residual, width)?;
            session.append_from(layer, residual, &rows, &wanted, tick)
        })?;
        answer(py, step)
    }

    /// Everything that the session knows, as bytes.
    fn save<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.save())
    }

    /// Take over a saved state.
    fn restore(&mut self, py: Python, state: Vec<u8>) -> PyResult<()> {
        let session = &mut self.0;
        detached(py, || session.restore(&state))
    }
}

fn answer<'py>(py: Python<'py>, step: Step) -> PyResult<(Bound<'py, PyBytes>, Taps<'py>)> {
    let taps = PyDict::new(py);
    for (name, tap) in step.taps {
        taps.set_item(name, (tap.shape.to_vec(), bytes(py, &tap.data)))?;
    }
    Ok((bytes(py, &step.logits.data), taps))
}

/// Faults that this library can seed: `(as written, what it does)`; empty without the feature `faults`.
#[pyfunction]
fn faults() -> Vec<(&'static str, &'static str)> {
    FAULTS.to_vec()
}

/// Ops of burn that a run can replace by plain twins: `(name, what is replaced)`.
#[pyfunction]
fn plain_ops() -> Vec<(&'static str, &'static str)> {
    PLAIN.to_vec()
}

/// Sites that can be tapped in a model of `n_layer` blocks.
#[pyfunction]
fn sites(n_layer: usize) -> Vec<String> {
    let blocks = (0..n_layer).flat_map(|block| BLOCK_SITES.map(|site| format!("{site}-{block}")));
    GLOBAL_SITES.iter().map(|site| site.to_string()).chain(blocks).collect()
}

/// What this binary was built from, as JSON; see `build.rs` for the recipe of `source_sha256`.
#[pyfunction]
fn build_info() -> String {
    let versions = env!("BURN_GGUF_VERSIONS").split(';').filter_map(|pair| pair.split_once('='));
    let versions: serde_json::Map<_, _> = versions.map(|(name, version)| (name.into(), version.into())).collect();
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "stack": env!("BURN_GGUF_STACK"),
        "source_sha256": env!("BURN_GGUF_SOURCE_SHA256"),
        "lock_sha256": env!("BURN_GGUF_LOCK_SHA256"),
        "crates": versions,
        "rustc": env!("BURN_GGUF_RUSTC"),
        "target": env!("BURN_GGUF_TARGET"),
        "target_features": env!("BURN_GGUF_TARGET_FEATURES"),
        "profile": env!("BURN_GGUF_PROFILE"),
        "opt_level": env!("BURN_GGUF_OPT_LEVEL"),
        "features": env!("BURN_GGUF_FEATURES"),
        "debug_assertions": cfg!(debug_assertions),
        "allocator": "mimalloc",
    })
    .to_string()
}

/// What is known about the instruction set, as JSON: CPU flags, compiled kernels, and that nothing is proven.
#[pyfunction]
fn isa_json() -> PyResult<String> {
    serde_json::to_string(&crate::isa::isa()).map_err(|error| BurnError::new_err(error.to_string()))
}

#[pymodule(gil_used = false)]
fn burn_gguf(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("BurnError", module.py().get_type::<BurnError>())?;
    module.add("BurnFileError", module.py().get_type::<BurnFileError>())?;
    module.add_class::<file::GgufFile>()?;
    module.add_class::<Model>()?;
    module.add_class::<Session>()?;
    ops::register(module)?;
    #[cfg(all(feature = "sampler", target_os = "linux"))]
    {
        module.add_function(wrap_pyfunction!(sampler::sampling_start, module)?)?;
        module.add_function(wrap_pyfunction!(sampler::sampling_stop, module)?)?;
    }
    module.add_function(wrap_pyfunction!(faults, module)?)?;
    module.add_function(wrap_pyfunction!(plain_ops, module)?)?;
    module.add_function(wrap_pyfunction!(sites, module)?)?;
    module.add_function(wrap_pyfunction!(build_info, module)?)?;
    module.add_function(wrap_pyfunction!(isa_json, module)?)
}
