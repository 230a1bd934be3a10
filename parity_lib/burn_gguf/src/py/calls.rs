//! Calls from Rust back to Python: progress, signals, observers; and what an exception or a panic in one becomes.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Mutex;

use pyo3::prelude::*;

use super::{bytes, floats, raised, BurnError};
use crate::model::Tick;
use crate::model_error::{ModelError, Result};
use crate::tap::{Observer, Tap};

/// Run `work` without the GIL; a panic becomes an error that carries its message.
pub fn detached<T: Send>(py: Python, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| caught(work)).and_then(|result| result.map_err(raised))
}

fn caught<T>(work: impl FnOnce() -> T) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        BurnError::new_err(format!(
            "the engine panicked; expected a result; found {text:?}; next: report it with this message"
        ))
    })
}

/// The first exception that a call back to Python raised. It stops the work and is raised in its place.
#[derive(Default)]
struct Raised(Mutex<Option<PyErr>>);

impl Raised {
    fn keep<T>(&self, answer: PyResult<T>) -> Result<T> {
        answer.map_err(|error| {
            if let Ok(mut slot) = self.0.lock() {
                slot.get_or_insert(error);
            }
            ModelError::Interrupted
        })
    }

    fn or<T>(self, result: PyResult<Result<T>>) -> PyResult<T> {
        match self.0.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => result?.map_err(raised),
        }
    }
}

/// Like [`detached`], with progress to Python; an exception of the callback or a signal stops the work and is raised.
pub fn with_progress<T: Send>(
    py: Python,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&mut Tick) -> Result<T> + Send,
) -> PyResult<T> {
    let inside = Raised::default();
    let result = py.detach(|| caught(|| work(&mut |done, total| inside.keep(report(progress.as_ref(), done, total)))));
    inside.or(result)
}

/// Like [`with_progress`], with an observer: `observe(name, shape, bytes)`, `None` or the bytes of another value back.
pub fn with_observer<T: Send>(
    py: Python,
    progress: Option<Py<PyAny>>,
    observe: Py<PyAny>,
    work: impl FnOnce(&mut Observer, &mut Tick) -> Result<T> + Send,
) -> PyResult<T> {
    let inside = Raised::default();
    let result = py.detach(|| {
        caught(|| {
            let mut observer = |site: &str, tap: &Tap| match inside.keep(show(&observe, site, tap))? {
                Some(replacement) => floats(site, &replacement).map(Some),
                None => Ok(None),
            };
            work(&mut observer, &mut |done, total| inside.keep(report(progress.as_ref(), done, total)))
        })
    });
    inside.or(result)
}

fn report(progress: Option<&Py<PyAny>>, done: usize, total: usize) -> PyResult<()> {
    Python::attach(|py| {
        py.check_signals()?;
        progress.map_or(Ok(()), |call| call.call1(py, (done, total)).map(drop))
    })
}

fn show(observe: &Py<PyAny>, site: &str, tap: &Tap) -> PyResult<Option<Vec<u8>>> {
    Python::attach(|py| observe.call1(py, (site, tap.shape.to_vec(), bytes(py, &tap.data)))?.extract(py))
}
