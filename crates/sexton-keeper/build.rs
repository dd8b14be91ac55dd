//! Links `sexton-init` without a C library, its start files, or an interpreter.

fn main() {
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo:rustc-link-arg-bin=sexton-init={arg}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
