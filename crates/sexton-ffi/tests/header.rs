//! `bindings/c/sexton.h` and this library are two halves of one thing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

mod common;

use common::{Ground, library, repository, run};

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
    for file in ["gate", "lib", "log", "process", "reaper", "sweep"] {
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

#[test]
fn both_sides_agree_on_sizes_codes_and_refusals() {
    let ground = Ground::new("sizes");
    let (here, program) = (Path::new(env!("CARGO_MANIFEST_DIR")), ground.path().join("main"));
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(repository().join("bindings/c"));
    cc.arg("-o").arg(&program).arg(here.join("tests/sizes.c")).arg(library("libsexton_ffi.a"));
    run(cc.args(["-lpthread", "-ldl", "-lm"]));
    assert_eq!(run(&mut Command::new(&program)), "done\n");
}
