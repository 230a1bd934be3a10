//! The judged build has no fault: none is listed, and one that is asked for is refused by name, with what to do.

#![cfg(not(feature = "faults"))]

mod tiny;

use burn_gguf::engine::FAULTS;
use burn_gguf::linear::Policy;
use burn_gguf::model_error::ModelError;
use tiny::Tiny;

#[test]
fn a_fault_is_refused_by_name() {
    assert!(FAULTS.is_empty());
    for fault in ["swap_gate_up", "no such fault", ""] {
        let error = Tiny::default().open(Policy::F32, 1, Some(fault)).err().expect("the fault should be refused");
        let message = error.to_string();
        assert!(matches!(error, ModelError::NoFaults { .. }), "{message}");
        assert!(
            message.contains(&format!("found {fault:?}")) && message.contains("next: load the library with faults")
        );
    }
}
