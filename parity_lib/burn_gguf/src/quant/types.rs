//! The tensor types of ggml: which this crate computes with, how large their blocks are, what the others are called.

/// A tensor type that this crate can dequantise. Names, numbers and block sizes are ggml's (`enum ggml_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // ggml writes Q4_K, and so do the files and the reports
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// What the type field of a tensor says when it is none of [`GgmlType`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// A type of ggml that this crate does not compute with.
    Unsupported(&'static str),
    /// A number that ggml does not use, or no longer uses.
    Unknown(u32),
}

impl GgmlType {
    /// All supported types.
    pub const ALL: [GgmlType; 11] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q8_0,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
    ];

    /// The number that stands for the type in a file.
    pub const fn number(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::BF16 => 30,
            GgmlType::Q8_0 => 8,
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q5_0 => 6,
            GgmlType::Q5_1 => 7,
            GgmlType::Q4_K => 12,
            GgmlType::Q5_K => 13,
            GgmlType::Q6_K => 14,
        }
    }

    /// The type of that number, or what stands there instead.
    pub fn from_number(number: u32) -> Result<Self, Foreign> {
        let known = Self::ALL.into_iter().find(|ty| ty.number() == number);
        known.ok_or_else(|| match foreign_name(number) {
            Some(name) => Foreign::Unsupported(name),
            None => Foreign::Unknown(number),
        })
    }

    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            GgmlType::F32 => "F32",
            GgmlType::F16 => "F16",
            GgmlType::BF16 => "BF16",
            GgmlType::Q8_0 => "Q8_0",
            GgmlType::Q4_0 => "Q4_0",
            GgmlType::Q4_1 => "Q4_1",
            GgmlType::Q5_0 => "Q5_0",
            GgmlType::Q5_1 => "Q5_1",
            GgmlType::Q4_K => "Q4_K",
            GgmlType::Q5_K => "Q5_K",
            GgmlType::Q6_K => "Q6_K",
        }
    }

    /// Values in a block; a row is a whole number of blocks.
    pub const fn block_size(self) -> usize {
        match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => 1,
            GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => 32,
            GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn type_size(self) -> usize {
        match self {
            GgmlType::F32 => 4,
            GgmlType::F16 | GgmlType::BF16 => 2,
            GgmlType::Q8_0 => 34,
            GgmlType::Q4_0 => 18,
            GgmlType::Q4_1 => 20,
            GgmlType::Q5_0 => 22,
            GgmlType::Q5_1 => 24,
            GgmlType::Q4_K => 144,
            GgmlType::Q5_K => 176,
            GgmlType::Q6_K => 210,
        }
    }
}

/// The name of a ggml type that this crate does not support.
///
/// The gaps (4, 5, 31 to 33, 36 to 38) are types that ggml has removed. Source: `ggml.h`, llama.cpp 0c1e5709.
fn foreign_name(number: u32) -> Option<&'static str> {
    Some(match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        42 => "Q2_0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_leads_back_to_its_type() {
        for ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_number(ty.number()), Ok(ty));
        }
    }

    #[test]
    fn other_numbers_are_named_where_ggml_names_them() {
        assert_eq!(GgmlType::from_number(10), Err(Foreign::Unsupported("Q2_K")));
        assert_eq!(GgmlType::from_number(42), Err(Foreign::Unsupported("Q2_0")));
        for gap in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(GgmlType::from_number(gap), Err(Foreign::Unknown(gap)));
        }
    }
}
