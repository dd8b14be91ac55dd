//! Links `sexton-init` without a C library, its start files, or an interpreter, as `sexton-init.ld` says.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    // Linked from a copy among what is built: a checkout may be moved together with that, and Cargo follows the latter.
    let script = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("sexton-init.ld");
    fs::copy("sexton-init.ld", &script)?;
    println!("cargo:rerun-if-changed=sexton-init.ld");
    println!("cargo:rerun-if-changed=build.rs");
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--no-eh-frame-hdr", "-Wl,-z,norelro"] {
        link_with(arg);
    }
    link_with(&format!("-Wl,--script={}", script.display()));
    // Cargo forgets `strip` for a package that has a profile of its own.
    if env::var("PROFILE").as_deref() == Ok("release") {
        link_with("-Wl,--strip-all");
    }
    Ok(())
}

fn link_with(arg: &str) {
    println!("cargo:rustc-link-arg-bin=sexton-init={arg}");
}
