//! The reader, on whole files written as bytes: what it reads, and that no damage makes it panic.

mod writer;

use burn_gguf::gguf::{Array, GgmlType, Value};
use writer::{array, file, header, key, open, refused, string, tensor, ARRAY, F32, Q8_0, STRING, U32};

/// A file of two tensors and three keys that reads well.
fn good_file() -> Vec<u8> {
    let parts = [
        header(3, 2, 3),
        key("general.architecture", STRING, &string(b"llama")),
        key("llama.block_count", U32, &7u32.to_le_bytes()),
        key("tokenizer.ggml.tokens", ARRAY, &array(STRING, 2, &[string(b"a"), string(b"\xff")].concat())),
        tensor("norm", &[4], F32, 0),
        tensor("weight", &[32, 2], Q8_0, 32),
    ];
    file(&parts, 32, &data_of_good_file())
}

fn data_of_good_file() -> Vec<u8> {
    let norm: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let blocks: Vec<u8> = (0..68).collect();
    file(&[norm], 32, &blocks)
}

#[test]
fn reads_metadata_and_tensors() {
    let file = open(&good_file()).unwrap();
    assert_eq!(file.version, 3);
    assert_eq!(file.get("general.architecture").and_then(Value::as_str), Some("llama"));
    assert_eq!(file.get("llama.block_count"), Some(&Value::U32(7)));
    let tokens = Value::Array(Array::String(vec![b"a".to_vec(), vec![0xff]]));
    assert_eq!(file.get("tokenizer.ggml.tokens"), Some(&tokens));
    assert_eq!(file.get("absent"), None);
    let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["norm", "weight"]);
    assert!(file.tensor("absent").is_none());
}

#[test]
fn gives_each_tensor_its_shape_and_bytes() {
    let file = open(&good_file()).unwrap();
    let norm = file.tensor("norm").unwrap();
    assert_eq!((norm.ty, &norm.dims[..], norm.n_bytes), (GgmlType::F32, &[4][..], 16));
    assert_eq!(file.bytes(norm), &data_of_good_file()[..16]);
    let weight = file.tensor("weight").unwrap();
    assert_eq!((weight.ty, weight.offset, weight.n_bytes), (GgmlType::Q8_0, 32, 68));
    assert_eq!((weight.row_len(), weight.n_rows(), weight.n_elements(), weight.row_bytes()), (32, 2, 64, 34));
    assert_eq!(file.bytes(weight), (0..68).collect::<Vec<u8>>());
}

#[test]
fn a_tensor_of_another_file_has_no_bytes_here() {
    let file = open(&good_file()).unwrap();
    let mut foreign = file.tensor("weight").unwrap().clone();
    foreign.offset = u64::MAX - 10;
    assert_eq!(file.bytes(&foreign), &[] as &[u8]);
}

#[test]
fn reads_version_2() {
    let file = open(&header(2, 0, 0)).unwrap();
    assert_eq!((file.version, file.metadata.len(), file.tensors().len()), (2, 0, 0));
}

#[test]
fn reads_all_types_of_values() {
    let payloads: [(u32, Vec<u8>, Value); 12] = [
        (0, vec![250], Value::U8(250)),
        (1, vec![0xff], Value::I8(-1)),
        (2, 60_000u16.to_le_bytes().into(), Value::U16(60_000)),
        (3, (-2i16).to_le_bytes().into(), Value::I16(-2)),
        (4, u32::MAX.to_le_bytes().into(), Value::U32(u32::MAX)),
        (5, (-3i32).to_le_bytes().into(), Value::I32(-3)),
        (6, 1e-5f32.to_le_bytes().into(), Value::F32(1e-5)),
        (7, vec![1], Value::Bool(true)),
        (8, string(b"\xf0\x9f"), Value::String(b"\xf0\x9f".to_vec())),
        (10, u64::MAX.to_le_bytes().into(), Value::U64(u64::MAX)),
        (11, i64::MIN.to_le_bytes().into(), Value::I64(i64::MIN)),
        (12, 0.1f64.to_le_bytes().into(), Value::F64(0.1)),
    ];
    for (ty, payload, expected) in payloads {
        let file = open(&[header(3, 0, 1), key("k", ty, &payload)].concat()).unwrap();
        assert_eq!(file.metadata, [("k".to_owned(), expected)]);
    }
}

#[test]
fn reads_arrays_of_all_types() {
    let two: [(u32, Vec<u8>, Array); 13] = [
        (0, vec![1, 2], Array::U8(vec![1, 2])),
        (1, vec![1, 0xfe], Array::I8(vec![1, -2])),
        (2, vec![1, 0, 2, 1], Array::U16(vec![1, 258])),
        (3, vec![1, 0, 0xff, 0xff], Array::I16(vec![1, -1])),
        (4, [1u32, 2].map(u32::to_le_bytes).concat(), Array::U32(vec![1, 2])),
        (5, [-1i32, 2].map(i32::to_le_bytes).concat(), Array::I32(vec![-1, 2])),
        (6, [0.5f32, 2.0].map(f32::to_le_bytes).concat(), Array::F32(vec![0.5, 2.0])),
        (7, vec![0, 1], Array::Bool(vec![false, true])),
        (8, [string(b""), string(b"x")].concat(), Array::String(vec![vec![], b"x".to_vec()])),
        (
            9,
            [array(0, 1, &[9]), array(7, 0, &[])].concat(),
            Array::Array(vec![Array::U8(vec![9]), Array::Bool(vec![])]),
        ),
        (10, [1u64, 2].map(u64::to_le_bytes).concat(), Array::U64(vec![1, 2])),
        (11, [-1i64, 2].map(i64::to_le_bytes).concat(), Array::I64(vec![-1, 2])),
        (12, [0.5f64, 2.0].map(f64::to_le_bytes).concat(), Array::F64(vec![0.5, 2.0])),
    ];
    for (ty, payload, expected) in two {
        let file = open(&[header(3, 0, 1), key("k", ARRAY, &array(ty, 2, &payload))].concat()).unwrap();
        assert_eq!(file.get("k"), Some(&Value::Array(expected)));
    }
}

#[test]
fn the_alignment_of_the_file_moves_the_data() {
    let parts = [header(3, 1, 1), key("general.alignment", U32, &256u32.to_le_bytes()), tensor("t", &[1], F32, 256)];
    let bytes = file(&parts, 256, &[&[0; 256][..], &[1, 2, 3, 4]].concat());
    let file = open(&bytes).unwrap();
    assert_eq!(file.bytes(&file.tensors()[0]), [1, 2, 3, 4]);
}

#[test]
fn a_tensor_may_be_a_scalar_or_empty() {
    let parts =
        [header(3, 3, 0), tensor("scalar", &[], F32, 0), tensor("a", &[0], F32, 0), tensor("b", &[0, 3], F32, 0)];
    let file = open(&file(&parts, 32, &[0; 4])).unwrap();
    let counts: Vec<u64> = file.tensors().iter().map(|t| t.n_elements()).collect();
    assert_eq!(counts, [1, 0, 0]);
}

#[test]
fn every_prefix_is_refused() {
    let bytes = good_file();
    for length in 0..bytes.len() {
        refused(open(&bytes[..length]));
    }
}

#[test]
fn no_damage_makes_the_reader_panic() {
    let bytes = good_file();
    let metadata_end = bytes.len() - data_of_good_file().len();
    let mut refusals = 0;
    for at in 0..metadata_end {
        for damage in [&[0x00][..], &[0xff], &[0x80], &[bytes[at] ^ 1], &[0xff; 8], &[0; 8]] {
            let mut damaged = bytes.clone();
            let end = (at + damage.len()).min(metadata_end);
            damaged[at..end].copy_from_slice(&damage[..end - at]);
            match open(&damaged) {
                Err(_) => refusals += 1,
                Ok(file) => file.tensors().iter().for_each(|t| assert_eq!(file.bytes(t).len() as u64, t.n_bytes)),
            }
        }
    }
    assert!(refusals > metadata_end, "only {refusals} refusals: the damage did not reach the fields");
}
