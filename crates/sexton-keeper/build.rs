//! Links `sexton-init` without a C library, its start files, or an interpreter.

fn main() {
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        link_with(arg);
    }
    // Cargo forgets `strip` for a package that has a profile of its own. Nothing unwinds, so no table need be found.
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        link_with("-Wl,--strip-all,--no-eh-frame-hdr");
    }
    println!("cargo:rerun-if-changed=build.rs");
}

fn link_with(arg: &str) {
    println!("cargo:rustc-link-arg-bin=sexton-init={arg}");
}
