//! Which ops a model of this build computes with, and how a caller asks for them.
//!
//! The judged library is built without the feature `faults` and holds no fault: not one name, not one switch. The library
//! with faults is a second build of the same sources, for red controls alone.

use crate::facts::Facts;
use crate::linear::Policy;
use crate::model_error::Result;
use crate::plain::{Plain, PlainOps};

/// burn, called op by op.
#[cfg(not(modules))]
pub use crate::graph::BurnOps as Implementation;

/// burn, called through the modules that applications build models of.
#[cfg(modules)]
pub use crate::modules::ModuleOps as Implementation;

/// The ops of this build.
#[cfg(not(feature = "faults"))]
pub type Engine = PlainOps<Implementation>;

/// The ops of this build.
#[cfg(feature = "faults")]
pub type Engine = crate::faulty::FaultyOps<PlainOps<Implementation>>;

/// Faults that this build can seed: as written, and what each does.
#[cfg(not(feature = "faults"))]
pub const FAULTS: [(&str, &str); 0] = [];

#[cfg(feature = "faults")]
pub use crate::fault::FAULTS;

/// How a model is run.
#[derive(Clone, Debug)]
pub struct Run {
    pub policy: Policy,
    pub n_threads: usize,
    /// Ops that are computed without burn, to find a reason.
    pub plain: Plain,
    /// A seeded fault, as it is written.
    pub fault: Option<String>,
}

impl Default for Run {
    fn default() -> Self {
        Self { policy: Policy::F32, n_threads: 2, plain: Plain::default(), fault: None }
    }
}

impl Run {
    /// The ops that do what was asked; refuses a fault that this build does not have, or that does not fit the model.
    pub fn ops(&self, facts: &Facts) -> Result<Engine> {
        let ops = PlainOps { inner: Implementation { policy: self.policy }, plain: self.plain };
        self.seeded(ops, facts)
    }

    #[cfg(not(feature = "faults"))]
    fn seeded(&self, ops: PlainOps<Implementation>, _: &Facts) -> Result<Engine> {
        match &self.fault {
            None => Ok(ops),
            Some(fault) => Err(crate::model_error::ModelError::NoFaults { found: fault.clone() }),
        }
    }

    #[cfg(feature = "faults")]
    fn seeded(&self, ops: PlainOps<Implementation>, facts: &Facts) -> Result<Engine> {
        let fault = self.fault.as_deref().map(|text| crate::fault::Fault::parse(text, facts.n_layer)).transpose()?;
        Ok(crate::faulty::FaultyOps::new(ops, fault, facts))
    }
}
