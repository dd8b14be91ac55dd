//! What the command line says of itself: usage, completions, manual pages.

use clap::{Args, Command};
use clap_complete::Shell;
use serde_json::json;

use super::failure::{Failure, exit};
use super::out::{self, Out};

/// `sexton completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// `sexton man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The page of one command.
    command: Option<String>,
}

/// Prints the completions.
pub fn completions(args: &CompletionsArgs, command: &mut Command, out: Out) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, command, "sexton", &mut text);
    write(&text, out)
}

/// Prints a manual page.
pub fn man(args: &ManArgs, mut command: Command, out: Out) -> Result<u8, Failure> {
    command.build();
    let page = match &args.command {
        None => command,
        Some(name) => {
            let found = command.find_subcommand(name).cloned();
            let found = found.ok_or_else(|| {
                Failure::new(exit::USAGE, format!("there is no command `{name}`")).hint("`sexton help` lists them")
            })?;
            found.display_name(format!("sexton-{name}"))
        }
    };
    let mut text = Vec::new();
    let told = |error: std::io::Error| Failure::new(exit::FAILED, format!("could not make the page: {error}"));
    clap_mangen::Man::new(page).render(&mut text).map_err(told)?;
    write(&text, out)
}

/// Writes what clap has made, which a shell or `man` reads as it is.
fn write(text: &[u8], out: Out) -> Result<u8, Failure> {
    let text = String::from_utf8_lossy(text);
    out.document(&json!({ "text": text }), |_| text.to_string())?;
    Ok(exit::DONE)
}

/// Tells what clap has to say: help and version on stdout, a slip on stderr with `exit`.
pub fn usage(error: &clap::Error, exit: u8) -> u8 {
    if !error.use_stderr() {
        let rendered = error.render();
        let text = if out::in_colour() { rendered.ansi().to_string() } else { rendered.to_string() };
        return out::print(&text).map_or_else(|failure| failure.tell(), |()| exit::DONE);
    }
    out::usage(&error.render().to_string());
    exit
}
