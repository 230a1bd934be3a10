//! What instruction stands at an address of this process, and which extension of the instruction set it belongs to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Longest instruction of x86.
const LONGEST: usize = 15;

/// One instruction.
#[derive(Clone, Debug, Default)]
pub struct Instruction {
    pub mnemonic: String,
    pub bits: u32,
    pub features: Vec<String>,
}

/// The memory of this process, as a file: an address that cannot be read gives an empty answer and no fault.
pub struct Code(File);

impl Code {
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/mem").map(Self)
    }

    /// The instruction at `address`, of which `room` bytes belong to the same library.
    pub fn instruction(&self, address: usize, room: usize) -> Instruction {
        let mut bytes = vec![0; room.min(LONGEST)];
        match self.0.read_exact_at(&mut bytes, address as u64) {
            Ok(()) if !bytes.is_empty() => decode(&bytes, address),
            _ => Instruction::default(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub fn decode(bytes: &[u8], address: usize) -> Instruction {
    use iced_x86::{Decoder, DecoderOptions};

    let decoded = Decoder::with_ip(64, bytes, address as u64, DecoderOptions::NONE).decode();
    if decoded.is_invalid() {
        return Instruction::default();
    }
    let registers = (0..decoded.op_count()).map(|operand| decoded.op_register(operand));
    let bits = registers.map(|register| if register.is_tmm() { 8192 } else { 8 * register.size() as u32 }).max();
    Instruction {
        mnemonic: format!("{:?}", decoded.mnemonic()).to_lowercase(),
        bits: bits.unwrap_or(0),
        features: decoded.cpuid_features().iter().map(|feature| format!("{feature:?}")).collect(),
    }
}

/// The vector instructions that a matrix product is made of, by the fixed bits of their encodings (Arm ARM, C7.2;
/// tried on what GNU as 2.40 writes).
#[cfg(target_arch = "aarch64")]
pub fn decode(bytes: &[u8], _address: usize) -> Instruction {
    const KNOWN: [(u32, u32, &str, &str); 6] = [
        (0xbfa0_fc00, 0x0e20_cc00, "fmla", "ASIMD"),   // vector
        (0xbf80_f400, 0x0f80_1000, "fmla", "ASIMD"),   // by element
        (0xbf20_fc00, 0x0e00_9400, "sdot", "ASIMDDP"), // vector
        (0xbfc0_f400, 0x0f80_e000, "sdot", "ASIMDDP"), // by element
        (0xffe0_fc00, 0x4e80_a400, "smmla", "I8MM"),   // matrix
        (0xffe0_fc00, 0x6e40_ec00, "bfmmla", "BF16"),  // matrix
    ];
    let Ok(word) = bytes.get(..4).unwrap_or_default().try_into().map(u32::from_le_bytes) else {
        return Instruction::default();
    };
    let found = KNOWN.iter().find(|(mask, value, _, _)| word & mask == *value);
    found.map_or_else(Instruction::default, |(_, _, mnemonic, feature)| Instruction {
        mnemonic: (*mnemonic).into(),
        bits: if word & 1 << 30 == 0 { 64 } else { 128 },
        features: vec![(*feature).into()],
    })
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn an_instruction_says_which_extension_it_needs() {
        // Bytes as GNU as 2.40 writes them.
        let known: [(&[u8], &str, u32, &str); 7] = [
            (&[0x62, 0xf2, 0x75, 0x48, 0xb8, 0xc2], "vfmadd231ps", 512, "AVX512F"), // zmm0, zmm1, zmm2
            (&[0xc4, 0xe2, 0x75, 0xb8, 0xc2], "vfmadd231ps", 256, "FMA"),           // ymm0, ymm1, ymm2
            (&[0xc4, 0xe2, 0x75, 0x50, 0xc2], "vpdpbusd", 256, "AVX_VNNI"),         // ymm0, ymm1, ymm2
            (&[0xc4, 0xe2, 0x69, 0x5e, 0xc1], "tdpbusd", 8192, "AMX_INT8"),         // tmm0, tmm1, tmm2
            (&[0xc4, 0xe2, 0x6a, 0x5c, 0xc1], "tdpbf16ps", 8192, "AMX_BF16"),       // tmm0, tmm1, tmm2
            (&[0xc5, 0xf4, 0x59, 0xc2], "vmulps", 256, "AVX"),                      // ymm0, ymm1, ymm2
            (&[0x0f, 0x59, 0xc1], "mulps", 128, "SSE"),                             // xmm0, xmm1
        ];
        for (bytes, mnemonic, bits, feature) in known {
            let found = decode(bytes, 0x1000);
            assert_eq!((found.mnemonic.as_str(), found.bits, found.features[0].as_str()), (mnemonic, bits, feature));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn what_is_no_instruction_is_named_nothing() {
        for bytes in [&[0x06][..], &[0x62, 0xf2][..], &[][..]] {
            let found = decode(bytes, 0x1000);
            assert_eq!((found.mnemonic.as_str(), found.bits, found.features.len()), ("", 0, 0), "{bytes:x?}");
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[test]
    fn an_instruction_says_which_extension_it_needs() {
        // Words as GNU as 2.40 writes them.
        let known: [(u32, &str, &str); 6] = [
            (0x4e22_cc20, "fmla", "ASIMD"),   // v0.4s, v1.4s, v2.4s
            (0x4fa2_1820, "fmla", "ASIMD"),   // v0.4s, v1.4s, v2.s[3]
            (0x4e82_9420, "sdot", "ASIMDDP"), // v0.4s, v1.16b, v2.16b
            (0x4fa2_e020, "sdot", "ASIMDDP"), // v0.4s, v1.16b, v2.4b[1]
            (0x4e82_a420, "smmla", "I8MM"),
            (0x6e42_ec20, "bfmmla", "BF16"),
        ];
        for (word, mnemonic, feature) in known {
            let found = decode(&word.to_le_bytes(), 0);
            assert_eq!((found.mnemonic.as_str(), found.bits, found.features[0].as_str()), (mnemonic, 128, feature));
        }
        assert_eq!(decode(&0x6e22_dc20_u32.to_le_bytes(), 0).mnemonic, "", "fmul is no part of a product's sum");
    }
}
