//! Tells the binary what it was built from, so that a stale or foreign build can be named.
//!
//! `source_sha256`: SHA-256 over `Cargo.toml`, `build.rs` and `src/**/*.rs`, sorted by their path relative to the crate
//! with `/` between parts; for each file the path, a zero byte, its length in decimal digits, a zero byte, its content.
//! `parity_lib/engines/burn/sources.py` computes the same over the work tree and refuses a build that differs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use sha2::{Digest, Sha256};

fn main() {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets the manifest's folder"));
    // A stack's thin manifest lies two folders below the sources that it shares.
    let shared = manifest.join("src").is_dir();
    let root = if shared { manifest.clone() } else { manifest.join("../..") };
    let folder = if shared { "crates-io".into() } else { file_name(&manifest) };
    // A stack with one of its fixes left out is built on the manifest of the whole one.
    let stack = env::var("BURN_GGUF_STACK_ID").unwrap_or_else(|_| folder.clone());
    let lock = manifest.join("Cargo.lock");

    set("BURN_GGUF_STACK", &stack);
    println!("cargo::rustc-check-cfg=cfg(spine, tiles, flex, modules, burn_0_22)");
    if folder == "spine" || folder == "spine-amx" {
        println!("cargo::rustc-cfg=spine"); // the fork's own kernels can be called by name
    }
    if folder == "spine-amx" {
        println!("cargo::rustc-cfg=tiles"); // its tile product computes the policy bf16, see tile.rs
    }
    let (kind, is_0_22) = folder.strip_suffix("-0.22").map_or((folder.as_str(), false), |kind| (kind, true));
    if is_0_22 {
        println!("cargo::rustc-cfg=burn_0_22"); // a backend is a device there, see backend.rs
    }
    if kind == "flex" {
        println!("cargo::rustc-cfg=flex"); // burn-flex is the backend, see backend.rs
    }
    if folder == "modules" {
        println!("cargo::rustc-cfg=modules"); // burn's own modules compute, see modules.rs
    }
    set("BURN_GGUF_SOURCE_SHA256", &source_sha256(&manifest, &root));
    set("BURN_GGUF_LOCK_SHA256", &hex(Sha256::digest(read(&lock))));
    set("BURN_GGUF_VERSIONS", &locked_versions(&String::from_utf8_lossy(&read(&lock)), kind == "flex"));
    set("BURN_GGUF_RUSTC", &rustc_version());
    for (name, from) in [
        ("BURN_GGUF_TARGET", "TARGET"),
        ("BURN_GGUF_PROFILE", "PROFILE"),
        ("BURN_GGUF_OPT_LEVEL", "OPT_LEVEL"),
        ("BURN_GGUF_TARGET_FEATURES", "CARGO_CFG_TARGET_FEATURE"),
        ("BURN_GGUF_FEATURES", "CARGO_CFG_FEATURE"),
    ] {
        set(name, &env::var(from).unwrap_or_default());
    }
    println!("cargo::rerun-if-env-changed=BURN_GGUF_STACK_ID");
    for watched in [manifest.join("Cargo.toml"), lock, root.join("build.rs"), root.join("src")] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
}

fn set(name: &str, value: &str) {
    println!("cargo::rustc-env={name}={value}");
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn source_sha256(manifest: &Path, root: &Path) -> String {
    let mut files =
        vec![("Cargo.toml".to_string(), manifest.join("Cargo.toml")), ("build.rs".to_string(), root.join("build.rs"))];
    collect(&root.join("src"), "src", &mut files);
    files.sort();
    let mut digest = Sha256::new();
    for (name, path) in files {
        let content = read(&path);
        digest.update(format!("{name}\0{}\0", content.len()));
        digest.update(content);
    }
    hex(digest.finalize())
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), format!("{prefix}/{}", entry.file_name().to_string_lossy()));
        if path.is_dir() {
            collect(&path, &name, files);
        } else if name.ends_with(".rs") {
            files.push((name, path));
        }
    }
}

/// `name=version` of the crates whose arithmetic is judged, as the lock file pins them.
///
/// From burn 0.22 on a lock file lists every backend, compiled or not, so the backend chooses the names.
fn locked_versions(lock: &str, is_flex: bool) -> String {
    let backend: &[&str] =
        if is_flex { &["burn-flex", "gemm"] } else { &["burn-ndarray", "ndarray", "matrixmultiply"] };
    let wanted = [&["burn-tensor", "burn-nn", "mimalloc", "pyo3"], backend].concat();
    let value = |line: &str| line.split('"').nth(1).unwrap_or_default().to_string();
    let mut found = Vec::new();
    let mut name = String::new();
    for line in lock.lines() {
        if line.starts_with("name = ") {
            name = value(line);
        } else if line.starts_with("version = ") && wanted.contains(&name.as_str()) {
            found.push(format!("{name}={}", value(line)));
        }
    }
    found.join(";")
}

fn rustc_version() -> String {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().into())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
