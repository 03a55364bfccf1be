//! Names the translator that is being built, by all that it is made of: translations that are kept on disk are for this
//! very one.

use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let workspace = here.join("../..");
    let mut parts = vec![workspace.join("Cargo.lock"), here.join("build.rs")];
    for of in ["cpu", "x86", "memory", "base"] {
        parts.push(workspace.join("crates").join(of).join("src"));
    }
    let mut hasher = DefaultHasher::new();
    for part in &parts {
        println!("cargo:rerun-if-changed={}", part.display());
        add(&mut hasher, part);
    }
    println!("cargo:rustc-env=TRANSLATOR={:016x}", hasher.finish());
}

/// Adds a file, or all files below a folder.
fn add(hasher: &mut DefaultHasher, path: &Path) {
    if let Ok(entries) = std::fs::read_dir(path) {
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths.iter().for_each(|path| add(hasher, path));
    } else if let Ok(bytes) = std::fs::read(path) {
        hasher.write_usize(bytes.len());
        hasher.write(&bytes);
    }
}
