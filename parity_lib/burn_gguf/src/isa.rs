//! Which instructions were asked for, and what is known about which ran.
//!
//! Requested and observed are two things. CPU flags and compiled kernels say what *could* run; that alone proves
//! nothing, so `observed` stays "unproven" here.

use serde::Serialize;

/// What is known about the instruction set.
#[derive(Clone, Debug, Serialize)]
pub struct Isa {
    /// The ISA target that a dispatch proof has shown, or "unproven".
    pub observed: &'static str,
    /// Why `observed` says what it says.
    pub reason: &'static str,
    /// Flags of this CPU that matter for the kernels.
    pub cpu: Vec<&'static str>,
    /// Features that the crate of the matmul kernels was compiled with: matrixmultiply, or gemm in the stack `flex`.
    pub kernel_features: Vec<&'static str>,
    /// The kernel that this crate's own run-time detection would choose from the two lists above.
    pub expected_kernel: &'static str,
}

/// Read the CPU and the build.
pub fn isa() -> Isa {
    let cpu = cpu_flags();
    let mut features = vec!["std"];
    if cfg!(feature = "avx512") {
        features.push(if cfg!(flex) { "x86-v4" } else { "avx512" });
    }
    let expected_kernel = expected_kernel(&cpu);
    let reason = "no program counter was sampled during a matmul; flags say what could run, not what ran";
    Isa { observed: "unproven", reason, cpu, kernel_features: features, expected_kernel }
}

/// gemm's order of preference for f32 (`__gemm_def`, gemm-common 0.19).
#[cfg(flex)]
fn expected_kernel(cpu: &[&str]) -> &'static str {
    let has = |flag| cpu.contains(&flag);
    if cfg!(feature = "avx512") && has("avx512f") {
        "gemm avx512f"
    } else if has("fma") {
        "gemm avx2+fma"
    } else if has("neon") {
        "gemm neon"
    } else {
        "gemm generic"
    }
}

/// matrixmultiply's order of preference for f32 (`sgemm_kernel::detect`, 0.3.11).
#[cfg(not(flex))]
fn expected_kernel(cpu: &[&str]) -> &'static str {
    let has = |flag| cpu.contains(&flag);
    if cfg!(feature = "avx512") && has("avx512f") {
        "sgemm avx512f 16x16"
    } else if has("avx2") && has("fma") {
        "sgemm avx2+fma 8x8"
    } else if has("avx") {
        "sgemm avx 8x8"
    } else if has("neon") {
        "sgemm neon 8x8"
    } else {
        "sgemm generic"
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_flags() -> Vec<&'static str> {
    let flags = [
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
        ("avx512vl", std::arch::is_x86_feature_detected!("avx512vl")),
        ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ];
    flags.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect()
}

#[cfg(target_arch = "aarch64")]
fn cpu_flags() -> Vec<&'static str> {
    let flags = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    flags.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_flags() -> Vec<&'static str> {
    Vec::new()
}
