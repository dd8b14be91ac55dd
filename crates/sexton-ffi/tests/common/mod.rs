//! Where this build and its sources are.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// The library `name` that cargo made with this test.
pub fn library(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("exe");
    let deps = exe.parent().expect("deps");
    let candidates = [deps.join(name), deps.parent().expect("profile").join(name)];
    let newest = candidates.into_iter().filter(|path| path.exists());
    newest.max_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok()).expect("built with this test")
}
