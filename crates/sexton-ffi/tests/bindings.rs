//! The tests of the bindings, in their own languages, against this build of the library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

mod common;

use common::{library, repository};

/// A directory of this test's own, removed at its end.
struct Ground(PathBuf);

impl Ground {
    fn new(name: &str) -> Ground {
        let dir = std::env::temp_dir().join(format!("sexton-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("dir");
        Ground(dir)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("removed");
    }
}

/// Runs to its end and tells its stdout; its stderr where it failed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The first of `candidates` that answers to `--version`; says loudly that a test is skipped where none does.
#[allow(clippy::print_stderr, reason = "a skipped test must not go unnoticed")]
fn find(candidates: &[&str]) -> Option<String> {
    let answers =
        |program: &&&str| Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success());
    let found = candidates.iter().find(answers).map(|program| (*program).to_owned());
    if found.is_none() {
        eprintln!("SKIPPED: there is no {}", candidates.join(" or "));
    }
    found
}

/// A copy of the package with the addon made of this build.
fn node_package(ground: &Ground, node: &str) -> PathBuf {
    let (package, here) = (repository().join("bindings/node"), ground.0.join("package"));
    let arch = run(Command::new(node).args(["-p", "process.arch"]));
    let prebuilds = here.join("prebuilds").join(format!("linux-{}", arch.trim()));
    fs::create_dir_all(&prebuilds).expect("dir");
    for file in ["index.js", "index.d.ts", "package.json", "README.md", "test.js"] {
        fs::copy(package.join(file), here.join(file)).expect("copied");
    }
    let includes = run(Command::new(node).args(["-p", "require('path').join(process.execPath, '../../include/node')"]));
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]);
    cc.args(["-I", includes.trim(), "-I/usr/include/node", "-I"]).arg(repository().join("bindings/c"));
    cc.arg("-o").arg(prebuilds.join("sexton.node")).arg(package.join("addon.c")).arg(library("libsexton_ffi.a"));
    run(cc.args(["-lpthread", "-ldl", "-lm"]));
    here
}

fn test_under(runtime: &str, package: &Path) {
    let text = run(Command::new(runtime).arg(package.join("test.js")));
    assert!(text.contains("1000 exit events and 1000 orphans") && text.ends_with("all is well\n"), "{text}");
}

#[test]
fn node_and_bun_see_every_exit_event_and_leave_no_zombie() {
    let Some(node) = find(&["node"]) else { return };
    let ground = Ground::new("node");
    let package = node_package(&ground, &node);
    test_under(&node, &package);
    // Where Bun is not installed, SEXTON_BUN may name one.
    let named = std::env::var("SEXTON_BUN").unwrap_or_default();
    if let Some(bun) = find(&["bun", &named]) {
        test_under(&bun, &package);
    }
    if find(&["npm"]).is_some() {
        let list = run(Command::new("npm").args(["pack", "--dry-run", "--json"]).current_dir(&package));
        for file in ["index.js", "index.d.ts", "README.md", "sexton.node"] {
            assert!(list.contains(file), "{list}");
        }
        assert!(!list.contains("test.js"), "{list}");
    }
}

#[test]
fn python_sees_every_exit_code_and_its_wheel_installs_offline() {
    let Some(python) = find(&["python3"]) else { return };
    let ground = Ground::new("python");
    let mut test = Command::new(python);
    test.arg(repository().join("bindings/python/test.py")).arg(&ground.0);
    let text = run(test.env("SEXTON_LIBRARY", library("libsexton_ffi.so")).env("PYTHONDONTWRITEBYTECODE", "1"));
    assert!(text.contains("300 exit codes and 300 orphans\n") && text.ends_with("all is well\n"), "{text}");
}
