//! What somebody was told, a line of JSON each, in a file on this side of the cut: what is in it was told before.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The key of the line which says that all before it was looked for.
const LOOKED: &str = "looked";

fn path(share: &Path) -> PathBuf {
    share.join("told")
}

/// All that was told, oldest first. A line that the cut has left half was told to nobody.
pub fn read(share: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path(share)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Writes down what is told.
#[derive(Debug)]
pub struct Told(File);

impl Told {
    /// Goes on with the file in `share`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(share: &Path) -> Result<Told> {
        let mut file = File::options().append(true).create(true).open(path(share))?;
        // Ends a line that was left half.
        file.write_all(b"\n")?;
        Ok(Told(file))
    }

    /// One line, in one write.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&self, what: &Value) -> Result<()> {
        Ok((&self.0).write_all(format!("{what}\n").as_bytes())?)
    }

    /// How many lines were looked for, and what of them was not so.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn looked(&self, told: usize, wrong: &[String]) -> Result<()> {
        self.add(&json!({ LOOKED: { "told": told, "wrong": wrong } }))
    }
}

/// What each look found: how many lines it looked for, and what was wrong.
fn looks(share: &Path) -> Vec<(u64, Vec<Value>)> {
    let told = read(share);
    let looks = told.iter().filter_map(|line| line.get(LOOKED));
    looks
        .map(|look| {
            let wrong = look.get("wrong").and_then(Value::as_array).cloned().unwrap_or_default();
            (look.get("told").and_then(Value::as_u64).unwrap_or(0), wrong)
        })
        .collect()
}

/// In how many rounds somebody has looked.
pub fn rounds(share: &Path) -> usize {
    looks(share).len()
}

/// What the last look found.
///
/// # Errors
/// Nobody has looked.
pub fn last(share: &Path) -> Result<(u64, Vec<Value>)> {
    looks(share).pop().context("nobody has looked")
}
