//! `serve` and `demo`: what is more than a command.

use super::failure::{Failure, exit};
use super::out::{self, Out};
use crate::config::Flags;

/// `sexton serve`: everything it takes is among the flags of every command.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {}

/// Becomes the daemon.
pub fn serve(flags: &Flags) -> Result<u8, Failure> {
    crate::daemon::serve(flags).map_err(|refused| match refused.code {
        0 => Failure::silent(0),
        code => Failure::new(code, refused.why).hint("`sexton doctor` tells what this host allows"),
    })
}

/// Shows the promises.
pub fn demo(out: Out) -> Result<u8, Failure> {
    let (mut text, mut json) = (out::Lines::default(), out::LinesAsJson::default());
    let lines: &mut dyn std::io::Write = if out.is_json() { &mut json } else { &mut text };
    match crate::demo::run(lines) {
        Ok(()) => Ok(exit::DONE),
        Err(error) => {
            Err(Failure::new(exit::FAILED, crate::chain::chain(&error))
                .hint("`sexton doctor` tells what this host allows"))
        }
    }
}
