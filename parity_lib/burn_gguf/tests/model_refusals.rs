//! What a file may not say, or leave unsaid: each is refused by name before any work.

mod tiny;

use burn_gguf::linear::Policy;
use burn_gguf::model_error::ModelError;
use burn_gguf::quant::GgmlType;
use burn_gguf::rope::ScalingKind;
use tiny::{text, Tiny, ARRAY, BOOL, F32, STRING, U32};

/// The refusal of a file, after a check of its message: file, culprit, expected, found and next step are all there.
fn refused(tiny: &Tiny, culprit: &str) -> ModelError {
    let error = tiny.open(Policy::F32, 1, None).err().expect("the file should be refused");
    let message = error.to_string();
    for part in ["burn_gguf-tiny-", culprit, "; expected ", "; found ", "; next: "] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    error
}

fn with(key: &str, ty: u32, payload: Vec<u8>) -> Tiny {
    Tiny { with: vec![(key.into(), ty, payload)], ..Tiny::default() }
}

fn count(n: u32) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

#[test]
fn facts_that_are_never_guessed() {
    for key in [
        "general.architecture",
        "layer_norm_rms_epsilon",
        "rope.freq_base",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "vocab_size",
    ] {
        let error = refused(&Tiny { without: vec![key], ..Tiny::default() }, key);
        assert!(matches!(error, ModelError::MissingKey { .. }), "{error}");
    }
}

#[test]
fn allowed_derivations() {
    let without = vec!["head_count_kv", "key_length", "value_length", "dimension_count"];
    let model = Tiny { n_head_kv: 4, key: 16, value: 16, without, ..Tiny::default() }.model();
    let facts = &model.facts;
    assert_eq!((facts.n_head_kv, facts.key_length, facts.value_length, facts.rope_dim), (4, 16, 16, 16));
    let tokens = [&count(STRING)[..], &101u64.to_le_bytes(), &text("a").repeat(101)].concat();
    let mut counted = with("tokenizer.ggml.tokens", ARRAY, tokens.clone());
    counted.without = vec!["vocab_size"];
    assert_eq!(counted.model().facts.n_vocab, 101);
    assert!(Tiny { tied: true, ..Tiny::default() }.model().is_tied() && !counted.model().is_tied());
    let mut contradicted = with("tokenizer.ggml.tokens", ARRAY, tokens);
    contradicted.n_vocab = 100;
    assert!(matches!(refused(&contradicted, "token_embd.weight"), ModelError::WrongShape { .. }));
    let mut padded = with(
        "tokenizer.ggml.tokens",
        ARRAY,
        [&count(STRING)[..], &101u64.to_le_bytes(), &text("a").repeat(101)].concat(),
    );
    padded.with.push(("llama.vocab_size".into(), U32, count(128)));
    assert_eq!(padded.model().facts.n_vocab, 101); // as the reference counts
}

#[test]
fn other_architectures() {
    let error = refused(&with("general.architecture", STRING, text("mamba")), "mamba");
    assert!(matches!(error, ModelError::UnsupportedArchitecture { .. }));
}

#[test]
fn rope_scaling_that_is_unknown() {
    for kind in ["longrope", "dynamic", ""] {
        let error = refused(&with("llama.rope.scaling.type", STRING, text(kind)), "llama.rope.scaling.type");
        assert!(matches!(error, ModelError::UnsupportedKey { .. }));
    }
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.rope.scaling.attn_factor"] {
        for factor in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(refused(&with(key, F32, float(factor)), key), ModelError::BadValue { .. }));
        }
    }
    let error = refused(&with("llama.rope.scaling.attn_factor", F32, float(0.0)), "attn_factor");
    assert!(matches!(error, ModelError::BadValue { .. }));
}

fn float(x: f32) -> Vec<u8> {
    x.to_le_bytes().into()
}

/// The scaling of a file with these keys: kind, factor, factor of cosine and sine, original context.
fn scaling(keys: &[(&str, u32, Vec<u8>)]) -> (ScalingKind, f32, f32, usize) {
    let with = keys.iter().map(|(key, ty, bytes)| (format!("llama.rope.{key}"), *ty, bytes.clone())).collect();
    let found = Tiny { with, ..Tiny::default() }.model().facts.rope_scaling;
    (found.kind, found.factor, found.attn_factor, found.n_ctx_orig)
}

#[test]
fn rope_scaling_as_the_reference_reads_it() {
    let (linear, yarn, none) = (text("linear"), text("yarn"), text("none"));
    let neutral = (ScalingKind::None, 1.0, 1.0, 512);
    for keys in [
        vec![],
        vec![("scaling.type", STRING, linear.clone())],
        vec![("scaling.factor", F32, float(0.0))],
        vec![("scaling.factor", F32, float(1.0))],
        vec![("scaling.type", STRING, none), ("scaling.factor", F32, float(4.0))],
        // A factor of 0 is stated, so that the older key is not asked.
        vec![("scaling.factor", F32, float(0.0)), ("scale_linear", F32, float(4.0))],
    ] {
        assert_eq!(scaling(&keys), neutral, "{keys:?}");
    }
    // Without a type the reference takes linear.
    assert_eq!(scaling(&[("scaling.factor", F32, float(4.0))]), (ScalingKind::Linear, 4.0, 1.0, 512));
    assert_eq!(scaling(&[("scale_linear", F32, float(4.0))]), (ScalingKind::Linear, 4.0, 1.0, 512));
    assert_eq!(scaling(&[("scaling.attn_factor", F32, float(2.0))]), (ScalingKind::None, 1.0, 2.0, 512));
    let full = [
        ("scaling.type", STRING, yarn.clone()),
        ("scaling.factor", F32, float(8.0)),
        ("scaling.original_context_length", U32, count(64)),
    ];
    assert_eq!(scaling(&full), (ScalingKind::Yarn, 8.0, 1.0, 64));
    assert_eq!(scaling(&full[..2]), (ScalingKind::Yarn, 8.0, 1.0, 512));
    assert_eq!(scaling(&full[..1]), (ScalingKind::Yarn, 1.0, 1.0, 512));
}

#[test]
fn numbers_that_are_the_same_in_each_layer() {
    let array = |numbers: &[u32]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        [&count(U32)[..], &(numbers.len() as u64).to_le_bytes(), &bytes].concat()
    };
    let model = with("llama.attention.head_count_kv", ARRAY, array(&[2, 2, 2])).model();
    assert_eq!(model.facts.n_head_kv, 2);
    assert_eq!(with("llama.feed_forward_length", ARRAY, array(&[96, 96, 96])).model().facts.n_ff, 96);
    for numbers in [&[2, 2][..], &[2, 2, 1], &[], &[0, 0, 0]] {
        let error = refused(&with("llama.attention.head_count_kv", ARRAY, array(numbers)), "head_count_kv");
        assert!(error.to_string().contains(&format!("found {numbers:?}")), "{error}");
    }
}

#[test]
fn a_part_of_a_model_is_named_with_the_command_that_merges() {
    let mut part = with("split.count", U32, count(3));
    part.with.push(("split.no".into(), U32, count(1)));
    part.without = vec!["general.architecture"]; // parts behind the first have no such key
    let error = refused(&part, "part 2 of 3");
    assert!(error.to_string().contains("llama-gguf-split --merge FIRST-00001-of-00003.gguf WHOLE.gguf"), "{error}");
    with("split.count", U32, count(1)).model();
}

#[test]
fn keys_that_would_change_the_result() {
    for (key, ty, payload) in [
        ("llama.expert_count", U32, count(8)),
        ("llama.attention.causal", BOOL, vec![0]),
        ("llama.attention.sliding_window", U32, count(64)),
        ("llama.logit_scale", F32, float(2.0)),
        ("llama.rope.scaling.yarn_beta_fast", F32, float(16.0)),
        ("llama.no_such_key", U32, count(0)),
    ] {
        assert!(matches!(refused(&with(key, ty, payload), key), ModelError::UnsupportedKey { .. }), "{key}");
    }
    for (key, ty, payload) in [
        ("llama.expert_count", U32, count(0)),
        ("llama.logit_scale", F32, float(0.0)),
        ("llama.rope.scaling.yarn_beta_fast", F32, float(32.0)),
        ("llama.pooling_type", U32, count(1)),
        ("another.logit_scale", F32, float(2.0)),
    ] {
        with(key, ty, payload).model();
    }
}

#[test]
fn values_of_another_type_or_out_of_range() {
    let array = [&count(U32)[..], &1u64.to_le_bytes(), &count(4)].concat();
    for (key, ty, payload) in [
        ("llama.attention.head_count", ARRAY, array),
        ("llama.attention.head_count", U32, count(0)),
        ("llama.attention.head_count_kv", U32, count(3)),
        ("llama.attention.layer_norm_rms_epsilon", F32, f32::NAN.to_le_bytes().into()),
        ("llama.attention.layer_norm_rms_epsilon", U32, count(1)),
        ("llama.rope.freq_base", F32, 0f32.to_le_bytes().into()),
        ("llama.rope.dimension_count", U32, count(15)),
        ("llama.rope.dimension_count", U32, count(26)),
        ("general.architecture", U32, count(1)),
    ] {
        assert!(matches!(refused(&with(key, ty, payload), key), ModelError::BadValue { .. }), "{key}");
    }
}

#[test]
fn missing_tensors() {
    for name in ["token_embd.weight", "output_norm.weight", "blk.2.attn_k.weight", "blk.0.ffn_norm.weight"] {
        let error = refused(&Tiny { without_tensors: vec![name.into()], ..Tiny::default() }, name);
        assert!(matches!(error, ModelError::MissingTensor { .. }));
    }
}

#[test]
fn tensors_of_another_shape() {
    for (name, dims) in [
        ("blk.1.attn_k.weight", vec![64, 96]),
        ("blk.1.ffn_down.weight", vec![64, 96]),
        ("output.weight", vec![64, 102]),
        ("blk.1.attn_norm.weight", vec![32]),
        ("rope_freqs.weight", vec![7]),
        ("blk.0.attn_q.bias", vec![95]),
    ] {
        let error = refused(&Tiny { with_tensors: vec![(name.into(), dims)], ..Tiny::default() }, name);
        assert!(matches!(error, ModelError::WrongShape { .. }));
    }
}

#[test]
fn tensors_that_would_be_ignored() {
    for name in
        ["blk.0.attn_q_norm.weight", "blk.3.attn_norm.weight", "blk.0.ffn_norm.bias", "rope_factors_long.weight"]
    {
        let error = refused(&Tiny { with_tensors: vec![(name.into(), vec![64])], ..Tiny::default() }, name);
        assert!(matches!(error, ModelError::UnusedTensor { .. }));
    }
    // The reference has no place for these in a qwen2 file.
    for (name, n) in [("blk.0.attn_output.bias", 64), ("blk.0.ffn_up.bias", 96), ("rope_freqs.weight", 8)] {
        let tiny = Tiny { with_tensors: vec![(name.into(), vec![n])], ..Tiny::qwen2() };
        assert!(matches!(refused(&tiny, name), ModelError::UnusedTensor { .. }));
    }
}

#[test]
fn options_that_do_not_exist() {
    assert!(matches!(Policy::parse("f16"), Err(ModelError::UnknownOption { option: "policy", .. })));
    let threads = Tiny::default().open(Policy::F32, 0, None).err();
    assert!(matches!(threads, Some(ModelError::OutOfRange { .. })));
}

#[test]
fn every_type_of_weight_is_read() {
    for ty in GgmlType::ALL {
        let tiny = if ty == GgmlType::F32 { Tiny::default() } else { Tiny::blocks(ty) };
        assert_eq!(tiny.model().facts.n_vocab, 101, "{ty:?}");
    }
}
