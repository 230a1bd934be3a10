//! Which library and which function an address of this process belongs to.

use std::fs;
use std::io;
use std::path::Path;

/// The executable parts of this process's memory.
pub struct Maps(Vec<(usize, usize, String)>);

impl Maps {
    /// Read them.
    pub fn read() -> io::Result<Self> {
        let parts = fs::read_to_string("/proc/self/maps")?.lines().filter_map(part).collect();
        Ok(Self(parts))
    }

    /// File name of the library that holds an address, and the bytes that follow the address there.
    pub fn module(&self, address: usize) -> (String, usize) {
        let held = self.0.iter().find(|(start, end, _)| (*start..*end).contains(&address));
        held.map_or((String::new(), 0), |(_, end, name)| (name.clone(), end - address))
    }
}

/// `start-end perms offset device inode path`, if it may be executed.
fn part(line: &str) -> Option<(usize, usize, String)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if !words.next()?.contains('x') {
        return None;
    }
    let path = words.nth(3).unwrap_or_default();
    let name = Path::new(path).file_name().map_or(path.into(), |name| name.to_string_lossy().into_owned());
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?, name))
}

/// The function around an address as the linker knows it, and the innermost one that was compiled into it there.
///
/// Both are "" where no symbol says so: a name is never guessed from what lies before the address.
pub fn functions(address: usize) -> (String, String) {
    let mut names: Vec<String> = Vec::new();
    // One is added because `resolve` expects a return address, which stands behind its instruction.
    backtrace::resolve((address + 1) as *mut _, |symbol| {
        if let Some(name) = symbol.name() {
            names.push(format!("{name:#}"));
        }
    });
    let function = names.last().cloned().unwrap_or_default();
    let inlined = if names.len() > 1 { names.swap_remove(0) } else { String::new() };
    (function, inlined)
}
