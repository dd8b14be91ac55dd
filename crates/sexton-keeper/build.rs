//! Links `sexton-init` without a C library, its start files, or an interpreter, as `sexton-init.ld` says.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sexton-init.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rerun-if-changed=build.rs");
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--no-eh-frame-hdr", "-Wl,-z,norelro"] {
        link_with(arg);
    }
    link_with(&format!("-Wl,--script={script}"));
    // Cargo forgets `strip` for a package that has a profile of its own.
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        link_with("-Wl,--strip-all");
    }
}

fn link_with(arg: &str) {
    println!("cargo:rustc-link-arg-bin=sexton-init={arg}");
}
