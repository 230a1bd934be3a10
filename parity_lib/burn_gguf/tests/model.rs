//! The candidate agrees with itself to the last bit, however its rows are cut, mixed, stored or threaded.

mod tiny;

use std::sync::Arc;

use burn_gguf::linear::Policy;
use burn_gguf::matrix::Matrix;
use burn_gguf::model::Model;
use burn_gguf::model_error::{ModelError, Result};
use burn_gguf::quant::GgmlType;
use burn_gguf::score::score;
use burn_gguf::session::{Session, Wanted};
use tiny::{tokens, Tiny};

fn no_tick(_: usize, _: usize) -> Result<()> {
    Ok(())
}

fn wanted(sites: &[String]) -> Wanted {
    Wanted { taps: sites.to_vec(), logits: None }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Logits of one sequence in one pass.
fn prefill(model: &Arc<Model>, tokens: &[u32]) -> Vec<f32> {
    let rows: Vec<(usize, u32)> = tokens.iter().map(|&token| (0, token)).collect();
    Session::new(model.clone(), 1).unwrap().append(&rows, &Wanted::default(), &mut no_tick).unwrap().logits.data
}

/// Everything written by `score`, as values.
fn scored(model: &Model, sequences: &[Vec<u32>]) -> (Vec<usize>, Vec<f32>) {
    let path = std::env::temp_dir().join(format!("burn_gguf-{:?}.raw", std::thread::current().id()));
    let _ = std::fs::remove_file(&path);
    let counts = score(model, sequences, &path, &mut no_tick).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    (counts, bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

/// Both architectures and every kind of weight that has a path of its own.
fn models() -> Vec<(Tiny, Policy)> {
    vec![
        (Tiny::default(), Policy::F32),
        (Tiny { rope_freqs: true, tied: true, ..Tiny::default() }, Policy::F32),
        (Tiny::qwen2(), Policy::F32),
        (Tiny { biases: true, ..Tiny::default() }, Policy::F32),
        (Tiny::blocks(GgmlType::Q8_0), Policy::F32),
        (Tiny::blocks(GgmlType::Q4_1), Policy::Ggml),
        (Tiny::blocks(GgmlType::Q6_K), Policy::Ggml),
        (Tiny::blocks(GgmlType::Q8_0), Policy::Bf16),
    ]
}

#[test]
fn prefill_equals_decode() {
    for (tiny, policy) in models() {
        let model = Arc::new(tiny.open(policy, 2, None).unwrap());
        // Past the end of a block of queries and of two paddings of keys.
        let tokens = tokens(70, 1, tiny.n_vocab);
        let whole = prefill(&model, &tokens);
        let mut session = Session::new(model.clone(), 1).unwrap();
        let mut decoded = Vec::new();
        for &token in &tokens {
            decoded.extend(session.append(&[(0, token)], &Wanted::default(), &mut no_tick).unwrap().logits.data);
        }
        assert_eq!(bits(&whole), bits(&decoded), "{} {:?} {policy:?}", tiny.arch, tiny.ty);
        let mut chunked = Session::new(model, 1).unwrap();
        let mut chunks = Vec::new();
        for part in tokens.chunks(7) {
            let rows: Vec<(usize, u32)> = part.iter().map(|&token| (0, token)).collect();
            chunks.extend(chunked.append(&rows, &Wanted::default(), &mut no_tick).unwrap().logits.data);
        }
        assert_eq!(bits(&whole), bits(&chunks));
    }
}

#[test]
fn alone_equals_among_others() {
    for (tiny, policy) in models() {
        let model = Arc::new(tiny.open(policy, 2, None).unwrap());
        let sequences: Vec<Vec<u32>> =
            [33, 1, 70, 12].iter().enumerate().map(|(i, &n)| tokens(n, i, tiny.n_vocab)).collect();
        let alone: Vec<f32> = sequences.iter().flat_map(|tokens| prefill(&model, tokens)).collect();
        let (counts, together) = scored(&model, &sequences);
        assert_eq!(counts, [33, 1, 70, 12]);
        assert_eq!(bits(&alone), bits(&together), "{} {:?} {policy:?}", tiny.arch, tiny.ty);
    }
}

#[test]
fn permuted_rows_give_permuted_logits() {
    let tiny = Tiny::qwen2();
    let model = Arc::new(tiny.model());
    let (a, b) = (tokens(40, 1, tiny.n_vocab), tokens(25, 2, tiny.n_vocab));
    let expected = [prefill(&model, &a), prefill(&model, &b)];
    // Rows of the two sequences in turns, then the rest of the longer one.
    let mut rows: Vec<(usize, u32)> = Vec::new();
    for (index, &token) in a.iter().enumerate() {
        rows.extend(b.get(index).map(|&token| (1, token)));
        rows.push((0, token));
    }
    let step = Session::new(model, 2).unwrap().append(&rows, &Wanted::default(), &mut no_tick).unwrap();
    let mut next = [0, 0];
    for (row, (sequence, _)) in rows.iter().enumerate() {
        let wanted = &expected[*sequence][next[*sequence] * tiny.n_vocab..][..tiny.n_vocab];
        assert_eq!(bits(step.logits.row(row)), bits(wanted), "row {row}");
        next[*sequence] += 1;
    }
}

#[test]
fn threads_change_nothing() {
    for (tiny, policy) in models() {
        let sequences = vec![tokens(50, 1, tiny.n_vocab), tokens(9, 2, tiny.n_vocab)];
        let all: Vec<Vec<u32>> =
            [1, 2, 3].map(|n_threads| bits(&scored(&tiny.open(policy, n_threads, None).unwrap(), &sequences).1)).into();
        assert!(all[0] == all[1] && all[0] == all[2], "{} {:?} {policy:?}", tiny.arch, tiny.ty);
    }
}

#[test]
fn a_restored_state_continues_as_the_original() {
    let tiny = Tiny::default();
    let model = Arc::new(tiny.model());
    let mut original = Session::new(model.clone(), 2).unwrap();
    let rows: Vec<(usize, u32)> = tokens(37, 3, tiny.n_vocab).into_iter().map(|token| (1, token)).collect();
    original.append(&rows, &Wanted::default(), &mut no_tick).unwrap();
    let state = original.save();
    let mut restored = Session::new(model.clone(), 2).unwrap();
    restored.restore(&state).unwrap();
    assert_eq!(restored.lengths(), [0, 37]);
    for token in [5, 6, 7] {
        let next = |session: &mut Session| {
            session.append(&[(1, token)], &Wanted::default(), &mut no_tick).unwrap().logits.data
        };
        assert_eq!(bits(&next(&mut original)), bits(&next(&mut restored)));
    }
    assert_eq!(original.save(), restored.save());
}

#[test]
fn a_foreign_state_is_refused_and_changes_nothing() {
    let model = Arc::new(Tiny::default().model());
    let mut session = Session::new(model.clone(), 1).unwrap();
    session.append(&[(0, 1), (0, 2)], &Wanted::default(), &mut no_tick).unwrap();
    let state = session.save();
    let mut longer = state.clone();
    longer.push(0);
    let other = Session::new(model, 2).unwrap().save();
    for wrong in [&state[..state.len() - 1], &longer, &other, b"", b"BGKV"] {
        assert!(matches!(session.restore(wrong), Err(ModelError::WrongState { .. })));
    }
    assert_eq!(session.save(), state);
}

#[test]
fn a_pass_can_start_at_any_layer() {
    let tiny = Tiny::qwen2();
    let model = Arc::new(tiny.model());
    let rows: Vec<(usize, u32)> = tokens(21, 4, tiny.n_vocab).into_iter().map(|token| (0, token)).collect();
    let sites: Vec<String> = ["embd", "l_out-0", "l_out-1"].map(String::from).into();
    let step = Session::new(model.clone(), 1).unwrap().append(&rows, &wanted(&sites), &mut no_tick).unwrap();
    for (layer, (name, tap)) in step.taps.iter().enumerate() {
        assert_eq!(name, &sites[layer]);
        let residual = Matrix::from_rows(21, tiny.n_embd, tap.data.clone());
        let again = Session::new(model.clone(), 1)
            .unwrap()
            .append_from(layer, residual, &rows, &Wanted::default(), &mut no_tick)
            .unwrap();
        assert_eq!(bits(&again.logits.data), bits(&step.logits.data), "from layer {layer}");
    }
}

#[test]
fn a_session_goes_on_only_where_it_was_entered() {
    let tiny = Tiny::default();
    let model = Arc::new(tiny.model());
    let residual = |n: usize| Matrix::from_rows(n, tiny.n_embd, vec![0.5; n * tiny.n_embd]);
    let enter = |session: &mut Session, layer: usize, n: usize| {
        session.append_from(layer, residual(n), &vec![(0, 1); n], &Wanted::default(), &mut no_tick)
    };
    let mut session = Session::new(model.clone(), 1).unwrap();
    let first = enter(&mut session, 2, 3).unwrap().logits;
    assert!(matches!(session.append(&[(0, 1)], &Wanted::default(), &mut no_tick), Err(ModelError::OutOfRange { .. })));
    let mut restored = Session::new(model.clone(), 1).unwrap();
    restored.restore(&session.save()).unwrap();
    let (next, again) = (enter(&mut session, 2, 1).unwrap(), enter(&mut restored, 2, 1).unwrap());
    assert_eq!(bits(&next.logits.data), bits(&again.logits.data));
    let whole = enter(&mut Session::new(model, 1).unwrap(), 2, 4).unwrap().logits.data;
    assert_eq!(bits(&whole), bits(&[first.data, next.logits.data].concat()));
}

#[test]
fn taps_are_named_shaped_and_change_nothing() {
    let tiny = Tiny::default();
    let model = Arc::new(tiny.model());
    let rows: Vec<(usize, u32)> = tokens(10, 5, tiny.n_vocab).into_iter().map(|token| (0, token)).collect();
    let plain = Session::new(model.clone(), 1).unwrap().append(&rows, &Wanted::default(), &mut no_tick).unwrap();
    let widths = [
        ("embd", 64),
        ("attn_norm-2", 64),
        ("Qcur-2", 96),
        ("Kcur-2", 48),
        ("Vcur-2", 80),
        ("kqv_out-2", 160),
        ("attn_out-2", 64),
        ("ffn_inp-2", 64),
        ("ffn_norm-2", 64),
        ("ffn_gate-2", 96),
        ("ffn_up-2", 96),
        ("ffn_swiglu-2", 96),
        ("ffn_out-2", 64),
        ("l_out-2", 64),
        ("result_norm", 64),
        ("result_output", 101),
    ];
    let sites: Vec<String> = widths.iter().map(|(name, _)| name.to_string()).collect();
    let step = Session::new(model.clone(), 1).unwrap().append(&rows, &wanted(&sites), &mut no_tick).unwrap();
    assert_eq!(bits(&step.logits.data), bits(&plain.logits.data));
    assert_eq!(step.taps.len(), sites.len());
    for (name, tap) in &step.taps {
        let width = widths.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!((tap.shape, tap.data.len()), ([10, width], 10 * width), "{name}");
    }
    let unknown = Session::new(model, 1).unwrap().append(&rows, &wanted(&["l_out-3".into()]), &mut no_tick);
    assert!(matches!(unknown, Err(ModelError::UnknownSite { .. })));
}

#[test]
fn only_the_wanted_logits_are_computed() {
    let tiny = Tiny::default();
    let model = Arc::new(tiny.model());
    let rows: Vec<(usize, u32)> = tokens(10, 5, tiny.n_vocab).into_iter().map(|token| (0, token)).collect();
    let run = |logits: Option<Vec<usize>>| {
        let wanted = Wanted { taps: vec!["result_output".into()], logits };
        Session::new(model.clone(), 1).unwrap().append(&rows, &wanted, &mut no_tick)
    };
    let (all, two) = (run(None).unwrap(), run(Some(vec![9, 0])).unwrap());
    assert_eq!(two.logits.data, [all.logits.row(9), all.logits.row(0)].concat());
    assert_eq!(two.taps[0].1.shape, [2, tiny.n_vocab]);
    assert!(run(Some(vec![])).unwrap().logits.data.is_empty());
    assert!(matches!(run(Some(vec![10])), Err(ModelError::OutOfRange { .. })));
}

#[test]
fn a_stopped_pass_leaves_the_session_as_it_was() {
    let tiny = Tiny::default();
    let model = Arc::new(tiny.model());
    let mut session = Session::new(model, 1).unwrap();
    session.append(&[(0, 3), (0, 4)], &Wanted::default(), &mut no_tick).unwrap();
    let before = session.save();
    for stop_at in 1..=6 {
        let mut calls = 0;
        let stopped = session.append(&[(0, 5), (0, 6)], &Wanted::default(), &mut |_, _| {
            calls += 1;
            if calls == stop_at {
                Err(ModelError::Interrupted)
            } else {
                Ok(())
            }
        });
        assert!(matches!(stopped, Err(ModelError::Interrupted)), "call {stop_at}");
        assert_eq!(session.save(), before, "call {stop_at}");
    }
}

#[test]
fn progress_rises_to_the_number_of_rows() {
    let tiny = Tiny::default();
    let model = tiny.model();
    let path = std::env::temp_dir().join(format!("burn_gguf-progress-{}.raw", std::process::id()));
    let mut seen = Vec::new();
    let sequences = [tokens(20, 1, tiny.n_vocab), tokens(10, 2, tiny.n_vocab)];
    let counts = score(&model, &sequences, &path, &mut |done, total| {
        seen.push((done, total));
        Ok(())
    });
    std::fs::remove_file(&path).unwrap();
    assert_eq!(counts.unwrap(), [20, 10]);
    assert!(seen.is_sorted() && seen.len() > 6 && seen.iter().all(|&(_, total)| total == 30), "{seen:?}");
    assert_eq!(seen.last(), Some(&(30, 30)));
}

#[test]
fn what_cannot_be_fed_is_refused_before_any_work() {
    let tiny = Tiny::default();
    let model = Arc::new(tiny.model());
    let path = std::env::temp_dir().join(format!("burn_gguf-refused-{}.raw", std::process::id()));
    let run = |tokens: Vec<u32>| score(&model, &[vec![1], tokens], &path, &mut no_tick).unwrap_err();
    assert!(matches!(run(vec![]), ModelError::EmptySequence { sequence: 1 }));
    assert!(matches!(run(vec![1, 101]), ModelError::TokenOutside { sequence: 1, index: 1, limit: 100, found: 101 }));
    assert!(matches!(run(vec![1; 513]), ModelError::ContextExceeded { sequence: 1, expected: 512, found: 513 }));
    assert!(!path.exists());
    let mut session = Session::new(model, 1).unwrap();
    session.append(&vec![(0, 1); 512], &Wanted::default(), &mut no_tick).unwrap();
    let full = session.append(&[(0, 1)], &Wanted::default(), &mut no_tick);
    assert!(matches!(full, Err(ModelError::ContextExceeded { found: 513, .. })));
    assert!(matches!(session.append(&[(1, 1)], &Wanted::default(), &mut no_tick), Err(ModelError::OutOfRange { .. })));
    assert!(matches!(session.append(&[], &Wanted::default(), &mut no_tick), Err(ModelError::EmptySequence { .. })));
}

#[test]
fn an_absurd_number_of_sequences_is_refused() {
    let model = Arc::new(Tiny::default().model());
    for n_seq in [0, 1 << 17, usize::MAX] {
        assert!(matches!(Session::new(model.clone(), n_seq), Err(ModelError::OutOfRange { .. })), "{n_seq}");
    }
}

#[test]
fn a_full_disk_is_an_error_not_a_short_file() {
    let error = score(&Tiny::default().model(), &[vec![1, 2, 3]], "/dev/full".as_ref(), &mut no_tick).unwrap_err();
    assert!(error.to_string().starts_with("/dev/full: the logits cannot be written"), "{error}");
}
