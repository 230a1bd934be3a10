//! Where program counters stand while work is done: which instructions really ran, in this process, whoever made them.
//!
//! A timer of the process's own CPU time sends SIGPROF to the thread that uses it; the handler notes where that thread
//! was going on, and nothing else. What stands there is looked up afterwards: library, function, instruction. It sees
//! every library of the process, so the reference is sampled by the same code. Sampling changes no bit of any result.

mod code;
mod names;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::Serialize;

use crate::model_error::{ModelError, Result};

/// Program counters that are kept; a pass of an hour fills this and goes on unsampled.
const CAPACITY: usize = 1 << 15;
/// Microseconds of CPU time between two samples. The kernel rounds up to its tick, 1 to 10 ms.
const INTERVAL_US: libc::suseconds_t = 1000;

static COUNTERS: [AtomicUsize; CAPACITY] = [const { AtomicUsize::new(0) }; CAPACITY];
static NEXT: AtomicUsize = AtomicUsize::new(0);
static ARMED: AtomicBool = AtomicBool::new(false);

/// One kind of place where program counters stood.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// File name of the library.
    pub module: String,
    /// The function as the linker knows it, "" where no symbol covers the address.
    pub function: String,
    /// The innermost function that was compiled into it, "" where there is none or no line table says so.
    pub inlined: String,
    /// Mnemonic of the instruction, in lower case.
    pub instruction: String,
    /// Bits of the widest register that it names: 512 for zmm, 8192 for a tile.
    pub bits: u32,
    /// Instruction-set extensions that the instruction belongs to, as the vendor's manual names them.
    pub features: Vec<String>,
}

/// What a run showed.
#[derive(Clone, Debug, Serialize)]
pub struct Samples {
    /// Program counters that were noted.
    pub n: usize,
    /// Those that came when all room was taken.
    pub lost: usize,
    /// Where they stood, most frequent first.
    pub places: Vec<(Place, usize)>,
}

/// A running sampler. There is one for each process.
#[must_use = "it stops when it is dropped"]
pub struct Sampler(());

impl Sampler {
    /// Start to note program counters; refused if somebody in this process does so already.
    pub fn start() -> Result<Self> {
        if ARMED.load(Ordering::SeqCst) {
            return Err(refused("a second one was asked for", "one at a time"));
        }
        install()?;
        NEXT.store(0, Ordering::SeqCst);
        ARMED.store(true, Ordering::SeqCst);
        let sampler = Self(()); // from here on dropping disarms
        set_timer(INTERVAL_US)?;
        Ok(sampler)
    }

    /// Stop, and say where the program counters stood.
    pub fn stop(self) -> Result<Samples> {
        drop(self);
        let seen = NEXT.load(Ordering::SeqCst);
        let n = seen.min(CAPACITY);
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for counter in &COUNTERS[..n] {
            *counts.entry(counter.load(Ordering::SeqCst)).or_default() += 1;
        }
        Ok(Samples { n, lost: seen - n, places: places(&counts)? })
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // The handler stays: a signal that is under way would otherwise end the process.
        let _ = set_timer(0);
        ARMED.store(false, Ordering::SeqCst);
    }
}

fn places(counts: &BTreeMap<usize, usize>) -> Result<Vec<(Place, usize)>> {
    let read = |source| refused(&format!("{source}"), "the process's own memory map");
    let maps = names::Maps::read().map_err(read)?;
    let code = code::Code::open().map_err(read)?;
    let mut found: BTreeMap<Place, usize> = BTreeMap::new();
    for (&counter, &n) in counts {
        let (module, room) = maps.module(counter);
        let (function, inlined) = names::functions(counter);
        let at = code.instruction(counter, room);
        let place = Place { module, function, inlined, instruction: at.mnemonic, bits: at.bits, features: at.features };
        *found.entry(place).or_default() += n;
    }
    let mut places: Vec<(Place, usize)> = found.into_iter().collect();
    places.sort_by(|(left, n), (right, m)| m.cmp(n).then_with(|| left.cmp(right)));
    Ok(places)
}

fn set_timer(microseconds: libc::suseconds_t) -> Result<()> {
    let every = libc::timeval { tv_sec: 0, tv_usec: microseconds };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the structure is whole, and no old value is asked for.
    match unsafe { libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(refused(&std::io::Error::last_os_error().to_string(), "a timer of CPU time")),
    }
}

/// Set the handler, unless another profiler has one.
fn install() -> Result<()> {
    let ours = note as extern "C" fn(_, _, _) as libc::sighandler_t;
    // SAFETY: a zeroed sigaction is a valid one; the handler only touches atomics, so it may run between any two
    // instructions; SA_RESTART lets interrupted system calls go on.
    let old = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ours;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        if libc::sigaction(libc::SIGPROF, std::ptr::null(), &mut old) != 0 {
            return Err(refused(&std::io::Error::last_os_error().to_string(), "the handler of SIGPROF"));
        }
        if [libc::SIG_DFL, libc::SIG_IGN].contains(&old.sa_sigaction)
            && libc::sigaction(libc::SIGPROF, &action, std::ptr::null_mut()) != 0
        {
            return Err(refused(&std::io::Error::last_os_error().to_string(), "a handler of SIGPROF"));
        }
        old.sa_sigaction
    };
    if [libc::SIG_DFL, libc::SIG_IGN, ours].contains(&old) {
        return Ok(());
    }
    Err(refused("another profiler's handler of SIGPROF", "a process that nobody else profiles"))
}

extern "C" fn note(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if ARMED.load(Ordering::Relaxed) {
        let at = NEXT.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = COUNTERS.get(at) {
            // SAFETY: with SA_SIGINFO the kernel hands over a whole ucontext.
            slot.store(unsafe { program_counter(context) }, Ordering::Relaxed);
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn program_counter(context: *mut libc::c_void) -> usize {
    let context = context.cast::<libc::ucontext_t>();
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] as usize }
}

#[cfg(target_arch = "aarch64")]
unsafe fn program_counter(context: *mut libc::c_void) -> usize {
    let context = context.cast::<libc::ucontext_t>();
    unsafe { (*context).uc_mcontext.pc as usize }
}

fn refused(found: &str, expected: &'static str) -> ModelError {
    ModelError::Sampler { expected, found: found.into() }
}
