//! `bindings/c/sexton.h` and this library are two halves of one thing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

mod common;

use common::{library, repository};

fn header() -> String {
    fs::read_to_string(repository().join("bindings/c/sexton.h")).expect("the header")
}

/// The text without comments, on one line.
fn squeezed(text: &str) -> String {
    let mut code = String::new();
    for (i, part) in text.split("/*").enumerate() {
        code.push_str(if i == 0 { part } else { part.split_once("*/").expect("closed").1 });
    }
    code.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Names and numbers of parameters of the functions that the header declares.
fn declared() -> BTreeSet<(String, usize)> {
    let text = squeezed(&header());
    let statements = text.split(';').filter(|part| part.contains('(') && !part.contains("typedef"));
    let signature = |part: &str| {
        let (front, args) = part.split_once('(')?;
        let name = front.rsplit([' ', '*']).next()?.to_owned();
        let args = args.trim_end_matches(')').trim();
        name.starts_with("sexton_").then(|| (name, if args == "void" { 0 } else { args.split(',').count() }))
    };
    statements.filter_map(signature).collect()
}

/// The same of the functions that the library exports.
fn exported() -> BTreeSet<(String, usize)> {
    let mut found = BTreeSet::new();
    for file in ["lib", "log", "process", "reaper", "sweep"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file).with_extension("rs");
        let text = fs::read_to_string(path).expect("source");
        for part in text.split("extern \"C\" fn sexton_").skip(1) {
            let (name, rest) = part.split_once('(').expect("a function");
            let args = rest.split_once(')').expect("closed").0;
            let count = args.split(',').filter(|arg| !arg.trim().is_empty()).count();
            found.insert((format!("sexton_{name}"), count));
        }
    }
    found
}

#[test]
fn the_header_declares_what_the_library_exports() {
    let (declared, exported) = (declared(), exported());
    assert!(exported.len() > 15, "{exported:?}");
    assert_eq!(declared, exported);
}

/// Compiles `source` against the header and this build of the library, and runs it.
fn run_c(name: &str, source: &str) -> String {
    let dir = std::env::temp_dir().join(format!("sexton-test-{}-{name}", std::process::id()));
    fs::create_dir_all(&dir).expect("dir");
    let (file, program) = (dir.join("main.c"), dir.join("main"));
    fs::write(&file, source).expect("written");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", "-I"]);
    cc.arg(repository().join("bindings/c")).arg("-o").arg(&program).arg(&file).arg(library("libsexton_ffi.a"));
    cc.args(["-lpthread", "-ldl", "-lm"]);
    let output = cc.output().expect("cc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = Command::new(&program).output().expect("ran");
    fs::remove_dir_all(&dir).expect("removed");
    assert!(output.status.success(), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_readme_runs() {
    let readme = fs::read_to_string(repository().join("bindings/c/README.md")).expect("the README");
    let (_, rest) = readme.split_once("```c\n").expect("code");
    let (code, _) = rest.split_once("```").expect("closed");
    assert_eq!(run_c("readme", code), "exit code 42\n");
}

#[test]
fn both_sides_agree_on_sizes_codes_and_refusals() {
    let text = run_c("sizes", include_str!("sizes.c"));
    assert_eq!(text, "done\n");
}
