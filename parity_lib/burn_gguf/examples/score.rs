//! Scores random tokens and prints times: `score MODEL N_THREADS POLICY LENGTH..`. For speed work; judges nothing.

use std::path::PathBuf;
use std::time::Instant;

use burn_gguf::engine::Run;
use burn_gguf::linear::Policy;
use burn_gguf::model::Model;
use burn_gguf::score::score;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, n_threads, policy, lengths @ ..] = arguments.as_slice() else {
        return Err("usage: score MODEL N_THREADS POLICY LENGTH..".into());
    };
    let run = Run { policy: Policy::parse(policy)?, n_threads: n_threads.parse()?, ..Run::default() };
    let model = Model::open(&PathBuf::from(path), run)?;
    let mut state = 1u64;
    let mut token = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u32 % model.facts.n_vocab as u32
    };
    let lengths = lengths.iter().map(|length| length.parse()).collect::<Result<Vec<usize>, _>>()?;
    let sequences: Vec<Vec<u32>> = lengths.iter().map(|&length| (0..length).map(|_| token()).collect()).collect();
    let sink = std::env::temp_dir().join(format!("score-{}.raw", std::process::id()));
    let began = Instant::now();
    let counts = score(&model, &sequences, &sink, &mut |_, _| Ok(()))?;
    println!("{} rows in {:.2} s", counts.iter().sum::<usize>(), began.elapsed().as_secs_f64());
    std::fs::remove_file(sink)?;
    Ok(())
}
