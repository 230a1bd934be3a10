//! An observer sees every site once, in order; it changes nothing unless it wants to, and then only what comes after.

mod tiny;

use std::sync::Arc;

use burn_gguf::linear::Policy;
use burn_gguf::model_error::{ModelError, Result};
use burn_gguf::session::{Session, Wanted};
use burn_gguf::tap::{Tap, BLOCK_SITES};
use tiny::{tokens, Tiny};

fn no_tick(_: usize, _: usize) -> Result<()> {
    Ok(())
}

fn rows(tiny: &Tiny, n: usize) -> Vec<(usize, u32)> {
    tokens(n, 5, tiny.n_vocab).into_iter().map(|token| (0, token)).collect()
}

type Seen = Vec<(String, Tap)>;

/// Logits and every site of one pass, in order; `put` may replace a value.
fn observe(
    session: &mut Session,
    rows: &[(usize, u32)],
    mut put: impl FnMut(&str, &Tap) -> Option<Vec<f32>> + Send,
) -> Result<(Vec<f32>, Seen)> {
    let mut seen = Vec::new();
    let mut observer = |site: &str, tap: &Tap| {
        seen.push((site.to_string(), tap.clone()));
        Ok(put(site, tap))
    };
    let step = session.append_observed(rows, &Wanted::default(), &mut observer, &mut no_tick)?;
    Ok((step.logits.data, seen))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_site_is_seen_once_in_the_order_of_the_graph() {
    let biased = Tiny { biases: true, ..Tiny::default() };
    for (tiny, sums) in [(Tiny::default(), ""), (Tiny::qwen2(), "cur.ADD"), (biased, ".ADD")] {
        let model = Arc::new(tiny.open(Policy::F32, 2, None).unwrap());
        let mut session = Session::new(model.clone(), 1).unwrap();
        let (_, seen) = observe(&mut session, &rows(&tiny, 9), |_, _| None).unwrap();
        let of_block =
            BLOCK_SITES.iter().filter(|site| !site.ends_with(".ADD") || (!sums.is_empty() && site.ends_with(sums)));
        let blocks =
            (0..model.facts.n_layer).flat_map(|layer| of_block.clone().map(move |site| format!("{site}-{layer}")));
        let mut expected: Vec<String> = blocks.collect();
        expected.insert(0, "embd".into());
        expected.extend(["result_norm".into(), "result_output".into()]);
        let mut names: Vec<String> = seen.into_iter().map(|(name, _)| name).collect();
        assert_eq!((names[0].as_str(), names.len()), ("embd", expected.len()));
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
    }
}

#[test]
fn looking_changes_no_bit() {
    for (tiny, policy) in [(Tiny::default(), Policy::F32), (Tiny::qwen2(), Policy::Ggml)] {
        let model = Arc::new(tiny.open(policy, 2, None).unwrap());
        let rows = rows(&tiny, 70); // more than one block of queries
        let mut plain = Session::new(model.clone(), 1).unwrap();
        let mut watched = Session::new(model, 1).unwrap();
        for part in [&rows[..67], &rows[67..69], &rows[69..]] {
            let (logits, _) = observe(&mut watched, part, |_, _| None).unwrap();
            let expected = plain.append(part, &Wanted::default(), &mut no_tick).unwrap().logits.data;
            assert_eq!(bits(&logits), bits(&expected));
        }
    }
}

#[test]
fn a_pass_led_through_its_own_values_gives_them_again() {
    let tiny = Tiny::qwen2();
    let model = Arc::new(tiny.model());
    let rows = rows(&tiny, 40);
    let (logits, seen) = observe(&mut Session::new(model.clone(), 1).unwrap(), &rows, |_, _| None).unwrap();
    let mut values = seen.iter();
    let put = |site: &str, tap: &Tap| {
        let (name, value) = values.next().unwrap();
        assert_eq!((name.as_str(), bits(&value.data)), (site, bits(&tap.data)), "{site}");
        Some(value.data.clone())
    };
    let (again, _) = observe(&mut Session::new(model, 1).unwrap(), &rows, put).unwrap();
    assert_eq!(bits(&again), bits(&logits));
}

#[test]
fn a_replaced_value_reaches_the_ops_after_it_and_the_cache() {
    let tiny = Tiny::default();
    let model = Arc::new(tiny.model());
    let rows = rows(&tiny, 12);
    for target in ["Kcur-0", "kq-1", "kq_soft_max-1", "kqv-2", "l_out-0", "ffn_gate-1"] {
        let mut session = Session::new(model.clone(), 1).unwrap();
        let (logits, before) = observe(&mut session, &rows[..11], |_, _| None).unwrap();
        let mut changed = Session::new(model.clone(), 1).unwrap();
        let put = |site: &str, tap: &Tap| (site == target).then(|| tap.data.iter().map(|x| x * 1.5 + 0.25).collect());
        let (other, after) = observe(&mut changed, &rows[..11], put).unwrap();
        assert_ne!(bits(&logits), bits(&other), "{target}");
        let first = before.iter().zip(&after).position(|(a, b)| bits(&a.1.data) != bits(&b.1.data)).unwrap();
        let place = before.iter().position(|(name, _)| name == target).unwrap();
        assert!(first > place, "{target}: the first to differ is {}", before[first].0);
        let (next, next_changed) = (
            session.append(&rows[11..], &Wanted::default(), &mut no_tick).unwrap().logits.data,
            changed.append(&rows[11..], &Wanted::default(), &mut no_tick).unwrap().logits.data,
        );
        // Keys of a later block are made from what was put in its place; those of the same block only by `Kcur`.
        assert_eq!(bits(&next) == bits(&next_changed), target == "kqv-2", "{target}");
    }
}

#[test]
fn a_value_of_another_size_and_two_sequences_are_refused() {
    let tiny = Tiny::default();
    let model = Arc::new(tiny.model());
    let mut session = Session::new(model.clone(), 2).unwrap();
    let short = observe(&mut session, &rows(&tiny, 4), |site, _| (site == "kq-0").then(|| vec![0.0]));
    assert!(matches!(short, Err(ModelError::WrongLength { .. })));
    let both = [(0, 1), (1, 2)];
    assert!(matches!(observe(&mut session, &both, |_, _| None), Err(ModelError::OutOfRange { .. })));
    assert_eq!(session.lengths(), [0, 0]);
}
