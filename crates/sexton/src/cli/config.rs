//! `config`: what is set, and whether it may be.

use clap::{Args, Subcommand};
use serde_json::json;

use super::failure::{Failure, exit};
use super::out::{self, Out};
use crate::chain::chain;
use crate::config::{self, Flags, Settings};

/// `sexton config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Print everything that is set, from flags, environment, file and defaults.
    Show,
    /// Check it, and print nothing but what is wrong.
    Check,
}

/// Shows or checks.
pub fn run(args: &ConfigArgs, flags: &Flags, out: Out) -> Result<u8, Failure> {
    let settings = resolve(flags)?;
    match args.verb {
        ConfigVerb::Show => {
            let told = |error: String| Failure::new(exit::FAILED, format!("could not show the settings: {error}"));
            let value = serde_json::to_value(&settings).map_err(|error| told(error.to_string()))?;
            let text = toml::to_string(&settings).map_err(|error| told(error.to_string()))?;
            out.document(&value, |_| out::escape_lines(&text))?;
        }
        ConfigVerb::Check => {
            let file = settings.config.as_ref().map(|file| file.display().to_string());
            out.document(&json!({"ok": true, "config": file}), |_| String::new())?;
        }
    }
    Ok(exit::DONE)
}

/// The settings of this command line.
///
/// # Errors
/// A value outside its rules, wherever it comes from.
pub fn resolve(flags: &Flags) -> Result<Settings, Failure> {
    config::resolve(flags).map_err(|error| {
        Failure::new(exit::USAGE, chain(&error))
            .hint("`sexton help` lists the flags; the file's keys are in the manual")
    })
}
