//! Saying that a test could not run here. `cargo xtask ci` counts these lines.

use std::io::Write;

/// Prints `SKIP: reason`, and appends it to the file that `SEXTON_TEST_SKIPS` names, for a harness may swallow output.
pub fn announce(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIP: {test}: {reason}\n");
    eprint!("{line}");
    let Some(path) = std::env::var_os("SEXTON_TEST_SKIPS") else { return };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.expect("the file of skips can be appended to");
}

/// Announces a skip for want of a Debian package.
///
/// # Panics
/// Under `CI=true`: the package could have been installed.
pub fn missing_package(name: &str) {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "`{name}` is not installed, and CI skips nothing it could run"
    );
    announce(&format!("`{name}` is not installed"));
}

/// Whether a program of that name is in the `PATH` or where Debian keeps root's programs.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| std::path::Path::new(dir).join(name).is_file())
}
