//! What the reader refuses: one test for each variant of the error, named after it, with the bytes in the test.

mod writer;

use burn_gguf::file_error::FileError;
use burn_gguf::gguf::GgufFile;
use writer::{array, file, header, key, open, refused, string, temporary_path, tensor, ARRAY, F32, Q8_0, STRING, U32};

const U8: u32 = 0;
const BOOL: u32 = 7;
const Q4_0: u32 = 2;

macro_rules! assert_refused {
    ($bytes:expr, $variant:pat $(if $condition:expr)?) => {
        match refused(open(&$bytes)) {
            $variant $(if $condition)? => {}
            other => panic!("expected {}, got {other:?}", stringify!($variant)),
        }
    };
}

#[test]
fn io() {
    let path = temporary_path();
    match refused(GgufFile::open(&path)) {
        FileError::Io { file, source } => {
            assert_eq!((file, source.kind()), (path, std::io::ErrorKind::NotFound));
        }
        other => panic!("expected Io, got {other:?}"),
    }
}

#[test]
fn not_a_file() {
    let path = temporary_path();
    std::fs::create_dir(&path).unwrap();
    let opened = GgufFile::open(&path);
    std::fs::remove_dir(&path).unwrap();
    assert!(matches!(refused(opened), FileError::NotAFile { found: "a folder", .. }));
}

#[test]
fn truncated() {
    assert_refused!(*b"", FileError::Truncated { offset: 0, expected: 4, found: 0, .. });
    assert_refused!(*b"GGUF\x03", FileError::Truncated { offset: 4, expected: 4, found: 1, .. });
    let cut = [header(3, 0, 1), string(b"key of some length"), vec![12, 0, 0, 0, 1]].concat();
    assert_refused!(cut, FileError::Truncated { offset: 54, expected: 8, found: 1, .. });
}

#[test]
fn wrong_magic() {
    assert_refused!(*b"PK\x03\x04....", FileError::WrongMagic { found: [b'P', b'K', 3, 4], .. });
}

#[test]
fn big_endian() {
    assert_refused!(*b"GGUF\0\0\0\x03........", FileError::BigEndian { found: 0x0300_0000, .. });
}

#[test]
fn unsupported_version() {
    for version in [0, 1, 4, 9] {
        assert_refused!(header(version, 0, 0), FileError::UnsupportedVersion { found, .. } if found == version);
    }
}

#[test]
fn tensor_count() {
    let bytes = [header(3, u64::MAX, 0), vec![0; 50]].concat();
    assert_refused!(bytes, FileError::TensorCount { offset: 8, expected: 2, found: u64::MAX, .. });
}

#[test]
fn key_count() {
    let bytes = [header(3, 0, 1 << 40), vec![0; 30]].concat();
    assert_refused!(bytes, FileError::KeyCount { offset: 16, expected: 2, found, .. } if found == 1 << 40);
}

#[test]
fn string_length() {
    let bytes = [header(3, 0, 1), (u64::MAX).to_le_bytes().into(), vec![b'k'; 20]].concat();
    assert_refused!(bytes, FileError::StringLength { offset: 24, expected: 20, found: u64::MAX, .. });
    let value = [header(3, 0, 1), key("k", STRING, &9u64.to_le_bytes()), b"short".to_vec()].concat();
    assert_refused!(value, FileError::StringLength { expected: 5, found: 9, .. });
}

#[test]
fn array_length() {
    // One more element than there is room for, and a count that overflows when multiplied by the size.
    for (ty, size) in [(U8, 1), (U32, 4), (BOOL, 1), (STRING, 8), (ARRAY, 12), (12, 8)] {
        for count in [48 / size + 1, u64::MAX / size, u64::MAX] {
            let bytes = [header(3, 0, 1), key("k", ARRAY, &array(ty, count, &[0; 48]))].concat();
            assert_refused!(bytes, FileError::ArrayLength { offset: 41, expected, found, .. }
                if expected == 48 / size && found == count);
        }
    }
}

#[test]
fn array_depth() {
    let nested = |levels: usize| {
        let arrays = [array(ARRAY, 1, &[]).repeat(levels - 1), array(U8, 1, &[7])].concat();
        [header(3, 0, 1), key("k", ARRAY, &arrays)].concat()
    };
    assert!(open(&nested(8)).is_ok());
    assert_refused!(nested(9), FileError::ArrayDepth { expected: 8, .. });
    assert_refused!(nested(100_000), FileError::ArrayDepth { expected: 8, .. });
}

#[test]
fn empty_key() {
    assert_refused!([header(3, 0, 1), key("", U8, &[1])].concat(), FileError::EmptyKey { offset: 24, .. });
}

#[test]
fn invalid_utf8() {
    let in_key = [header(3, 0, 1), string(b"k\xff"), U8.to_le_bytes().into(), vec![1]].concat();
    assert_refused!(in_key, FileError::InvalidUtf8 { what: "a metadata key", found, .. } if found == b"k\xff");
    let in_name = [header(3, 1, 0), string(b"\xc0"), vec![0; 16]].concat();
    assert_refused!(in_name, FileError::InvalidUtf8 { what: "a tensor name", .. });
}

#[test]
fn duplicate_key() {
    let bytes = [header(3, 0, 2), key("k", U8, &[1]), key("k", BOOL, &[1])].concat();
    assert_refused!(bytes, FileError::DuplicateKey { offset: 38, key, .. } if key == "k");
}

#[test]
fn unknown_value_type() {
    assert_refused!([header(3, 0, 1), key("k", 13, &[1])].concat(), FileError::UnknownValueType { found: 13, .. });
    let in_array = [header(3, 0, 1), key("k", ARRAY, &array(99, 0, &[]))].concat();
    assert_refused!(in_array, FileError::UnknownValueType { found: 99, .. });
}

#[test]
fn invalid_bool() {
    assert_refused!([header(3, 0, 1), key("k", BOOL, &[2])].concat(), FileError::InvalidBool { found: 2, .. });
    let in_array = [header(3, 0, 1), key("k", ARRAY, &array(BOOL, 2, &[1, 255]))].concat();
    assert_refused!(in_array, FileError::InvalidBool { found: 255, .. });
}

#[test]
fn alignment_type() {
    let bytes = [header(3, 0, 1), key("general.alignment", U8, &[32])].concat();
    assert_refused!(bytes, FileError::AlignmentType { found: "u8", .. });
}

#[test]
fn alignment() {
    for alignment in [0u32, 24, u32::MAX] {
        let bytes = [header(3, 0, 1), key("general.alignment", U32, &alignment.to_le_bytes())].concat();
        assert_refused!(bytes, FileError::Alignment { found, .. } if found == alignment);
    }
}

#[test]
fn duplicate_tensor() {
    let parts = [header(3, 2, 0), tensor("t", &[1], F32, 0), tensor("t", &[1], F32, 32)];
    assert_refused!(file(&parts, 32, &[0; 64]), FileError::DuplicateTensor { offset: 57, tensor, .. } if tensor == "t");
}

#[test]
fn dimension_count() {
    let parts = [header(3, 1, 0), tensor("t", &[1; 5], F32, 0)];
    assert_refused!(file(&parts, 32, &[0; 32]), FileError::DimensionCount { found: 5, .. });
    let absurd = [header(3, 1, 0), string(b"t"), u32::MAX.to_le_bytes().into(), vec![0; 40]].concat();
    assert_refused!(absurd, FileError::DimensionCount { found: u32::MAX, .. });
}

#[test]
fn dimension_overflow() {
    // Elements; elements of half a byte beyond i64; bytes beyond i64, beyond u64; a zero that hides the rest.
    let shapes: [(u32, &[u64]); 5] =
        [(F32, &[1 << 32, 1 << 32]), (Q4_0, &[1 << 63]), (F32, &[1 << 61]), (F32, &[1 << 62]), (F32, &[0, 1 << 62, 4])];
    for (ty, dims) in shapes {
        let parts = [header(3, 1, 0), tensor("t", dims, ty, 0)];
        assert_refused!(file(&parts, 32, &[]), FileError::DimensionOverflow { found, .. } if found == dims);
    }
}

#[test]
fn unknown_tensor_type() {
    for number in [4, 31, 43, 1 << 20] {
        let parts = [header(3, 1, 0), tensor("t", &[32], number, 0)];
        assert_refused!(file(&parts, 32, &[0; 64]), FileError::UnknownTensorType { found, .. } if found == number);
    }
}

#[test]
fn unsupported_tensor_type() {
    for (number, name) in [(10, "Q2_K"), (20, "IQ4_NL"), (24, "I8"), (28, "F64"), (39, "MXFP4")] {
        let parts = [header(3, 1, 0), tensor("t", &[256], number, 0)];
        assert_refused!(file(&parts, 32, &[0; 2048]), FileError::UnsupportedTensorType { found, .. } if found == name);
    }
}

#[test]
fn partial_block() {
    let parts = [header(3, 1, 0), tensor("t", &[48, 2], Q8_0, 0)];
    assert_refused!(file(&parts, 32, &[0; 102]), FileError::PartialBlock { ty: "Q8_0", expected: 32, found: 48, .. });
}

#[test]
fn misaligned_tensor() {
    let parts = [header(3, 1, 0), tensor("t", &[4], F32, 16)];
    assert_refused!(file(&parts, 32, &[0; 64]), FileError::MisalignedTensor { expected: 32, found: 16, .. });
}

#[test]
fn tensor_past_end() {
    let parts = [header(3, 1, 0), tensor("t", &[4], F32, 32)];
    let bytes = file(&parts, 32, &[0; 47]);
    let size = bytes.len() as u64;
    assert_refused!(bytes, FileError::TensorPastEnd { expected, found, .. }
        if expected == size && found == u128::from(size) + 1);
    let far = [header(3, 1, 0), tensor("t", &[4], F32, u64::MAX - 31)];
    assert_refused!(file(&far, 32, &[0; 64]), FileError::TensorPastEnd { found, .. } if found > u128::from(u64::MAX));
}

#[test]
fn overlapping_tensors() {
    let parts = [header(3, 2, 0), tensor("late", &[4], F32, 32), tensor("early", &[9], F32, 0)];
    let bytes = file(&parts, 32, &[0; 64]);
    let data = bytes.len() as u64 - 64;
    assert_refused!(bytes, FileError::OverlappingTensors { tensor, other, expected, found, .. }
        if tensor == "late" && other == "early" && expected == data + 36 && found == data + 32);
    // By one byte, where the alignment allows it.
    let packed = key("general.alignment", U32, &1u32.to_le_bytes());
    let parts = [header(3, 2, 1), packed, tensor("a", &[4], F32, 0), tensor("b", &[4], F32, 15)];
    assert_refused!(file(&parts, 1, &[0; 31]), FileError::OverlappingTensors { expected, found, .. } if expected == found + 1);
}
