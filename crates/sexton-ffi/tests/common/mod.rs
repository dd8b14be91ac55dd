//! Where this build and its sources are, and a place to use them at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// A directory of a test's own, removed at its end.
pub struct Ground(PathBuf);

impl Ground {
    pub fn new(name: &str) -> Ground {
        let dir = std::env::temp_dir().join(format!("sexton-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("dir");
        Ground(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("removed");
    }
}

/// Runs to its end and tells its stdout; its stderr where it failed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
