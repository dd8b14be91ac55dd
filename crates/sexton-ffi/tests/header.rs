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

/// A type of C, as Rust writes it.
fn in_rust(c: &str) -> String {
    let c = c.trim();
    if let Some(target) = c.strip_suffix('*') {
        let target = target.trim();
        return match target.strip_prefix("const ") {
            Some(target) if !target.ends_with('*') => format!("*const {}", in_rust(target)),
            Some(_) | None => format!("*mut {}", in_rust(target)),
        };
    }
    let known = [("char", "c_char"), ("int", "c_int"), ("int32_t", "i32"), ("int64_t", "i64"), ("void", "c_void")];
    let known = known.into_iter().chain([("uint32_t", "u32"), ("size_t", "usize")]);
    known.into_iter().find(|(name, _)| *name == c).map_or(c, |(_, rust)| rust).to_owned()
}

/// A parameter of C without its name, as Rust writes its type.
fn parameter(text: &str) -> String {
    let text = text.trim();
    in_rust(text.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_'))
}

/// The functions that the header declares: their names, the types of their parameters, and what they give.
fn declared() -> BTreeSet<(String, Vec<String>, String)> {
    let text = squeezed(&header());
    let statements = text.split(';').filter(|part| part.contains('(') && !part.contains("typedef"));
    let signature = |part: &str| {
        let (front, args) = part.split_once('(')?;
        let at = front.rfind("sexton_")?;
        let (given, name) = front.split_at(at);
        let args = args.trim_end_matches(')').trim();
        let args = if args == "void" { Vec::new() } else { args.split(',').map(parameter).collect() };
        // What stands before the first function of the header are the lines of its preprocessor.
        let given = given.rsplit(['{', '}', '"']).next()?.trim();
        let given = if given == "void" { "()".to_owned() } else { in_rust(given) };
        Some((name.trim().to_owned(), args, given))
    };
    statements.filter_map(signature).collect()
}

/// The same of the functions that the library exports.
fn exported() -> BTreeSet<(String, Vec<String>, String)> {
    let mut found = BTreeSet::new();
    for file in ["gate", "lib", "log", "process", "reaper", "sweep"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file).with_extension("rs");
        let text = fs::read_to_string(path).expect("source");
        for part in text.split("extern \"C\" fn sexton_").skip(1) {
            let (name, rest) = part.split_once('(').expect("a function");
            let (args, rest) = rest.split_once(')').expect("closed");
            let args = args.split(',').filter_map(|arg| arg.split_once(':')).map(|(_, kind)| kind.trim().to_owned());
            let given = rest.split_once('{').expect("a body").0.trim();
            let given = given.strip_prefix("->").map_or("()", str::trim).to_owned();
            found.insert((format!("sexton_{name}"), args.collect(), given));
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
