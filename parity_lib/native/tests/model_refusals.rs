//! What a file may not say, or leave unsaid: each is refused by name before any work.

mod tiny;

use burn_gguf::linear::Policy;
use burn_gguf::quant::GgmlType;
use burn_gguf::refusal::Refusal;
use tiny::{text, Tiny, ARRAY, BOOL, F32, STRING, U32};

/// The refusal of a file, after a look at its message: file, culprit, expected, found and next step are all there.
fn refused(tiny: &Tiny, culprit: &str) -> Refusal {
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
        assert!(matches!(error, Refusal::MissingKey { .. }), "{error}");
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
    assert!(matches!(refused(&contradicted, "llama.vocab_size"), Refusal::BadValue { .. }));
}

#[test]
fn other_architectures() {
    let error = refused(&with("general.architecture", STRING, text("mamba")), "mamba");
    assert!(matches!(error, Refusal::UnsupportedArchitecture { .. }));
}

#[test]
fn rope_scaling_other_than_none() {
    for kind in ["linear", "yarn", "longrope"] {
        let error = refused(&with("llama.rope.scaling.type", STRING, text(kind)), kind);
        assert!(matches!(error, Refusal::UnsupportedKey { .. }));
    }
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.rope.scaling.attn_factor"] {
        let error = refused(&with(key, F32, 8f32.to_le_bytes().into()), key);
        assert!(matches!(error, Refusal::UnsupportedKey { .. }));
        with(key, F32, 1f32.to_le_bytes().into()).model();
    }
    with("llama.rope.scaling.type", STRING, text("none")).model();
}

#[test]
fn keys_that_would_change_the_result() {
    for (key, ty, payload) in [
        ("llama.expert_count", U32, count(8)),
        ("llama.attention.causal", BOOL, vec![0]),
        ("llama.attention.sliding_window", U32, count(64)),
        ("llama.logit_scale", F32, count(0)),
        ("split.count", U32, count(3)),
    ] {
        assert!(matches!(refused(&with(key, ty, payload), key), Refusal::UnsupportedKey { .. }), "{key}");
    }
    with("llama.expert_count", U32, count(0)).model();
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
        assert!(matches!(refused(&with(key, ty, payload), key), Refusal::BadValue { .. }), "{key}");
    }
}

#[test]
fn missing_tensors() {
    for name in ["token_embd.weight", "output_norm.weight", "blk.2.attn_k.weight", "blk.0.ffn_norm.weight"] {
        let error = refused(&Tiny { without_tensors: vec![name.into()], ..Tiny::default() }, name);
        assert!(matches!(error, Refusal::MissingTensor { .. }));
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
        assert!(matches!(error, Refusal::WrongShape { .. }));
    }
}

#[test]
fn tensors_that_would_be_ignored() {
    for name in
        ["blk.0.attn_q_norm.weight", "blk.3.attn_norm.weight", "blk.0.ffn_down.bias", "rope_factors_long.weight"]
    {
        let error = refused(&Tiny { with_tensors: vec![(name.into(), vec![64])], ..Tiny::default() }, name);
        assert!(matches!(error, Refusal::UnusedTensor { .. }));
    }
}

#[test]
fn options_that_do_not_exist() {
    assert!(matches!(Policy::parse("f16"), Err(Refusal::UnknownOption { option: "policy", .. })));
    let threads = Tiny::default().open(Policy::F32, 0, None).err();
    assert!(matches!(threads, Some(Refusal::OutOfRange { .. })));
}

#[test]
fn every_type_of_weight_is_read() {
    for ty in GgmlType::ALL {
        let tiny = if ty == GgmlType::F32 { Tiny::default() } else { Tiny::blocks(ty) };
        assert_eq!(tiny.model().facts.n_vocab, 101, "{ty:?}");
    }
}
