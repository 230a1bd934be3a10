//! Each seeded fault does what its name says, and nothing else; only a build with the feature `faults` has any.

#![cfg(feature = "faults")]

mod tiny;

use std::sync::Arc;

use burn_gguf::linear::Policy;
use burn_gguf::model_error::{ModelError, Result};
use burn_gguf::quant::GgmlType;
use burn_gguf::score::score;
use burn_gguf::session::{Session, Step, Wanted};
use tiny::{tokens, Tiny};

const N: usize = 30;

fn no_tick(_: usize, _: usize) -> Result<()> {
    Ok(())
}

/// Positions of a sequence whose logits a fault changes.
fn changed(tiny: &Tiny, fault: &str) -> Vec<usize> {
    let rows: Vec<(usize, u32)> = tokens(N, 1, tiny.n_vocab).into_iter().map(|token| (0, token)).collect();
    let run = |fault: Option<&str>| {
        let model = Arc::new(tiny.open(Policy::F32, 1, fault).unwrap());
        assert_eq!(model.run.fault.as_deref(), fault);
        Session::new(model, 1).unwrap().append(&rows, &Wanted::default(), &mut no_tick).unwrap().logits
    };
    let (right, wrong) = (run(None), run(Some(fault)));
    (0..N).filter(|&row| right.row(row) != wrong.row(row)).collect()
}

#[test]
fn faults_that_touch_every_position() {
    for fault in ["eps_x10@blk.1", "eps_x10@all", "swap_gate_up", "norm_weight_1pct@blk.2"] {
        assert_eq!(changed(&Tiny::default(), fault), (0..N).collect::<Vec<_>>(), "{fault}");
    }
    // F32 weights are noise below the 16th bit; on blocks of 8 bits the cut is rarer but still everywhere.
    assert_eq!(changed(&Tiny::default(), "bf16_truncation").len(), N);
    assert_eq!(changed(&Tiny::blocks(GgmlType::Q8_0), "bf16_truncation").len(), N);
}

#[test]
fn faults_of_attention_spare_position_zero() {
    let later: Vec<usize> = (1..N).collect();
    for fault in ["rope_base=500", "rope_off_by_one", "swapped_pairing", "softmax_scale", "k_head_permuted@blk.1"] {
        assert_eq!(changed(&Tiny::default(), fault), later, "{fault}");
    }
}

#[test]
fn faults_with_a_place_begin_there() {
    assert_eq!(changed(&Tiny::default(), "rope_off_by_one@from=20"), (20..N).collect::<Vec<_>>());
    assert_eq!(changed(&Tiny::default(), "kv_slot_stale"), (2..N).collect::<Vec<_>>());
    assert_eq!(changed(&Tiny::default(), "token_off=7"), (7..N).collect::<Vec<_>>());
}

#[test]
fn a_dropped_bias_is_seen_only_where_there_is_one() {
    assert_eq!(changed(&Tiny::qwen2(), "dropped_bias=v").len(), N);
    for fault in ["dropped_bias=q", "dropped_bias=k"] {
        assert_eq!(changed(&Tiny::qwen2(), fault), (1..N).collect::<Vec<_>>(), "{fault}");
        assert_eq!(changed(&Tiny::default(), fault), Vec::<usize>::new(), "{fault}");
    }
}

#[test]
fn a_fault_of_every_block_can_be_confined_to_one() {
    // Behind the only block with the fault the sites of earlier blocks are as without it.
    let sites: Vec<String> = ["l_out-0", "l_out-1"].map(String::from).into();
    let rows: Vec<(usize, u32)> = tokens(N, 1, 101).into_iter().map(|token| (0, token)).collect();
    let run = |fault: Option<&str>| {
        let model = Arc::new(Tiny::qwen2().open(Policy::F32, 1, fault).unwrap());
        let wanted = Wanted { taps: sites.clone(), logits: None };
        Session::new(model, 1).unwrap().append(&rows, &wanted, &mut no_tick).unwrap()
    };
    let sound = run(None);
    for fault in ["softmax_scale=2", "swap_gate_up", "dropped_bias=v", "kv_slot_stale"] {
        let [everywhere, first, second] =
            [fault.to_string(), format!("{fault}@blk.0"), format!("{fault}@blk.1")].map(|fault| run(Some(&fault)));
        let same = |a: &Step, b: &Step, site: usize| a.taps[site].1 == b.taps[site].1;
        assert!(!same(&sound, &everywhere, 0) && same(&everywhere, &first, 0), "{fault}");
        assert!(same(&sound, &second, 0) && !same(&sound, &second, 1), "{fault}");
        assert!(!same(&everywhere, &first, 1) && !same(&everywhere, &second, 1), "{fault}");
    }
}

#[test]
fn a_nan_stays_in_its_row() {
    let rows: Vec<(usize, u32)> = tokens(N, 1, 101).into_iter().map(|token| (0, token)).collect();
    let model = Arc::new(Tiny::default().open(Policy::F32, 1, Some("nan@blk.0")).unwrap());
    let logits = Session::new(model, 1).unwrap().append(&rows, &Wanted::default(), &mut no_tick).unwrap().logits;
    for row in 0..N {
        assert_eq!(logits.row(row).iter().any(|logit| logit.is_nan()), row == N - 1, "row {row}");
    }
}

#[test]
fn a_dropped_row_is_missing_from_the_file() {
    let path = std::env::temp_dir().join(format!("burn_gguf-dropped-{}.raw", std::process::id()));
    let model = Tiny::default().open(Policy::F32, 1, Some("drop_row=1")).unwrap();
    let counts = score(&model, &[vec![1, 2], vec![3, 4, 5]], &path, &mut no_tick).unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    std::fs::remove_file(&path).unwrap();
    assert_eq!((counts, size), (vec![2, 2], 4 * 4 * 101));
}

#[test]
fn a_fault_of_a_block_that_is_not_there_is_refused() {
    let error = Tiny::default().open(Policy::F32, 1, Some("nan@blk.3")).err();
    assert!(matches!(error, Some(ModelError::UnknownOption { option: "fault", .. })));
}
