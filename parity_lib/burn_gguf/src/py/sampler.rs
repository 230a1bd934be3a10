//! The sampler as Python sees it: start, stop, JSON.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

use super::{raised, BurnError};
use crate::sampler::Sampler;

static RUNNING: Mutex<Option<Sampler>> = Mutex::new(None);

/// Start to note where this process's program counters stand, in every library and thread that uses CPU time.
#[pyfunction]
pub fn sampling_start() -> PyResult<()> {
    let sampler = Sampler::start().map_err(raised)?;
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some(sampler);
    Ok(())
}

/// Stop, and return what was seen as JSON; see `Samples`.
#[pyfunction]
pub fn sampling_stop(py: Python) -> PyResult<String> {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).take();
    let sampler = running.ok_or_else(|| BurnError::new_err("the sampler is not running; next: start it first"))?;
    let samples = super::detached(py, || sampler.stop())?;
    serde_json::to_string(&samples).map_err(|error| BurnError::new_err(error.to_string()))
}
