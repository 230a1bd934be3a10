//! The plain twins of burn's ops: the same functions to a few units in the last place, and refused by name if unknown.

mod tiny;

use burn_gguf::graph::{BurnOps, Ops};
use burn_gguf::linear::Policy;
use burn_gguf::matrix::Matrix;
use burn_gguf::plain::{Plain, PlainOps, PLAIN};
use burn_gguf::tap::Site;

fn noise(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|index| tiny::noise("plain", 1000 * seed + index)).collect()
}

/// A site of no meaning: a twin does the same wherever it stands.
const AT: Site = Site::block("kqv_out", 0);

const BURN: BurnOps = BurnOps { policy: Policy::F32 };

/// burn's ops, one of them replaced.
fn plain(name: &str) -> PlainOps<BurnOps> {
    PlainOps { inner: BURN, plain: Plain::parse(&[name.to_string()]).expect("a known name") }
}

fn near(what: &str, found: &[f32], wanted: &[f32]) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let norm = wanted.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let error = found.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
    assert!(norm > 0.0 && error <= 1e-12 * norm, "{what}: {error} of {norm}");
}

#[test]
fn every_twin_is_the_same_function_as_burns() {
    let (rows, width) = (5, 48);
    let matrix = |seed| Matrix::from_rows(rows, width, noise(rows * width, seed));
    let weight = noise(width, 3);
    let ours = plain("rms_norm").rms_norm(AT, matrix(1), &weight, 1e-5).unwrap();
    near("rms_norm", &ours.data, &BURN.rms_norm(AT, matrix(1), &weight, 1e-5).unwrap().data);
    let ours = plain("swiglu").swiglu(AT, matrix(1), matrix(2)).unwrap();
    near("swiglu", &ours.data, &BURN.swiglu(AT, matrix(1), matrix(2)).unwrap().data);
    let ours = plain("add").add(AT, matrix(1), matrix(2)).unwrap();
    near("add", &ours.data, &BURN.add(AT, matrix(1), matrix(2)).unwrap().data);
    let ours = plain("add").add_bias(AT, matrix(1), &weight).unwrap();
    near("add_bias", &ours.data, &BURN.add_bias(AT, matrix(1), &weight).unwrap().data);
    let (kq, visible) = (noise(2 * 3 * 32, 4), [7, 8, 9]);
    let ours = plain("soft_max").soft_max(AT, &kq, 32, &visible, 3.0);
    near("soft_max", &ours, &BURN.soft_max(AT, &kq, 32, &visible, 3.0));
    assert!(ours.chunks(32).zip([7, 8, 9].iter().cycle()).all(|(row, &n)| row[n..].iter().all(|x| *x == 0.0)));
}

#[test]
fn only_what_is_named_is_replaced() {
    let gate = Matrix::from_rows(1, 1, vec![-200.0]);
    let up = || Matrix::from_rows(1, 1, vec![1.0]);
    let zero = plain("swiglu").swiglu(AT, gate.clone(), up()).unwrap().data[0];
    assert!(zero == 0.0, "{zero}");
    let x = || Matrix::from_rows(3, 16, noise(48, 9));
    let sum = plain("soft_max").add(AT, x(), x()).unwrap();
    assert_eq!(sum.data, BURN.add(AT, x(), x()).unwrap().data);
    assert_eq!(Plain::default().names(), Vec::<&str>::new());
    for (name, _) in PLAIN {
        assert_eq!(plain(name).plain.names(), [name]);
    }
}

#[test]
fn an_unknown_name_and_operands_that_do_not_fit_are_refused() {
    let error = Plain::parse(&["exp".into()]).unwrap_err().to_string();
    assert!(error.contains("expected soft_max, rms_norm, swiglu, add; found \"exp\""), "{error}");
    let wide = Matrix::from_rows(1, 2, vec![0.0; 2]);
    let narrow = || Matrix::from_rows(1, 1, vec![0.0]);
    assert!(plain("add").add(AT, narrow(), wide.clone()).is_err());
    assert!(plain("swiglu").swiglu(AT, narrow(), wide).is_err());
    assert!(plain("rms_norm").rms_norm(AT, narrow(), &[1.0, 1.0], 1e-5).is_err());
    assert!(plain("add").add_bias(AT, narrow(), &[1.0, 1.0]).is_err());
}
