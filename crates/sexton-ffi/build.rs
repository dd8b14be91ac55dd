//! Names the library as programs that were linked with it look for it: by its major version.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsexton_ffi.so.{}", env!("CARGO_PKG_VERSION_MAJOR"));
    println!("cargo:rerun-if-changed=build.rs");
}
