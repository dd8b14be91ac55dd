//! One file, and what kind of code each of its lines is.

/// A text file under version control.
pub struct Source<'a> {
    /// From the root of the workspace.
    pub path: &'a str,
    /// All of it.
    pub text: &'a str,
}

/// One line of a file.
#[derive(Clone, Copy)]
pub struct Line<'a> {
    /// Counted from 1.
    pub number: usize,
    /// Without its end.
    pub text: &'a str,
}

impl<'a> Source<'a> {
    /// The file `path`, which holds `text`.
    pub fn new(path: &'a str, text: &'a str) -> Source<'a> {
        Source { path, text }
    }

    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether nothing of it is in a product: tests, benches, examples, and the packages that serve them.
    pub fn is_test(&self) -> bool {
        let parts = ["/tests/", "/benches/", "/examples/", "/tests.rs", "/build.rs"];
        parts.iter().any(|part| self.path.contains(part))
            || self.is_in("xtask/")
            || self.is_in("crates/sexton-testkit/")
    }

    /// Whether it lies below the folder, or begins with the name, `prefix`.
    pub fn is_in(&self, prefix: &str) -> bool {
        self.path.starts_with(prefix)
    }

    /// The crate whose root this file is, of a library or a program.
    pub fn is_crate_root(&self) -> bool {
        let root = ["/src/lib.rs", "/src/main.rs"].iter().any(|root| self.path.ends_with(root));
        root || self.path.contains("/src/bin/")
    }

    /// Every line.
    pub fn lines(&self) -> impl Iterator<Item = Line<'a>> + use<'a> {
        self.text.lines().enumerate().map(|(index, text)| Line { number: index + 1, text })
    }

    /// The lines of product code: all before the tests that a file ends with.
    pub fn product_lines(&self) -> impl Iterator<Item = Line<'a>> + use<'a> {
        let is_test = self.is_test();
        self.lines().take_while(move |line| !is_test && line.text.trim_end() != "#[cfg(test)]")
    }

    /// Lines of `lines` that are code and not a comment as a whole.
    pub fn code(lines: impl Iterator<Item = Line<'a>>) -> impl Iterator<Item = Line<'a>> {
        lines.filter(|line| !line.text.trim_start().starts_with("//"))
    }
}
