//! The rules of this repository that neither rustc nor clippy knows.

mod arrows;
mod rules;
mod source;

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use source::Source;

/// One violation.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    path: String,
    line: usize,
    says: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.says)
    }
}

/// Prints every violation; whether there is none.
pub fn run() -> Result<bool> {
    let findings = check(&crate::step::root())?;
    for finding in &findings {
        println!("{finding}");
    }
    Ok(findings.is_empty())
}

/// Every violation in the workspace at `root`.
fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = arrows::check(&crate::step::metadata()?)?;
    for path in files(root)? {
        // What is listed may have been removed in the work tree.
        let Ok(bytes) = std::fs::read(root.join(&path)) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        findings.extend(rules::check(&Source::new(&path, &text)));
    }
    Ok(findings)
}

/// Every file that is, or is about to be, under version control.
fn files(root: &Path) -> Result<Vec<String>> {
    let listed = ["ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"];
    let out = Command::new("git").args(listed).current_dir(root).output().context("git ls-files")?;
    anyhow::ensure!(out.status.success(), "git ls-files: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        let findings = super::check(&crate::step::root()).unwrap();
        let told: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(told.is_empty(), "\n{}", told.join("\n"));
    }
}
