//! `cargo xtask bench [TOPIC…] [--rounds N]`: what Sexton costs, beside what the same costs without it.
//!
//! Every row is measured in this one run, and what is compared is measured in turns, so that a noisy machine disturbs
//! both sides alike. Ratios mean something anywhere, times on this machine alone. Speed is told, never asserted: a
//! missed aim fails nothing, an error does.
//!
//! A topic is one file with one function, and one line in [`TOPICS`].

mod custody;
mod drain;
mod figure;
mod gate;
mod init;
mod look;
mod node;
mod process;
mod reaper;
mod sample;
mod slots;
mod sweep;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::step::{cargo, cargo_for_images, for_images, run, target_dir};

pub use figure::{Aim, Figure, Row};
pub use sample::{Samples, in_turns, timed};

/// A topic: its name, and what measures it.
type Topic = (&'static str, fn(&Bench) -> Result<Vec<Row>>);

/// Every topic, in the order in which they run.
const TOPICS: &[Topic] = &[
    ("start", custody::start),
    ("stop", custody::stop),
    ("drain", drain::drain),
    ("adopt", custody::adopt),
    ("size", custody::size),
    ("reaper", reaper::reaper),
    ("sweep", sweep::sweep),
    ("init", init::init),
    ("look", look::look),
    ("reconcile", look::reconcile),
    ("gate", gate::gate),
    ("slots", slots::slots),
];

/// What a topic is given.
#[derive(Debug)]
pub struct Bench {
    /// The released `sexton`, with `sexton-init` beside it.
    pub sexton: PathBuf,
    /// The released `sexton-init` for images.
    pub init_for_images: PathBuf,
    /// How often what is quick is measured.
    pub rounds: usize,
}

/// Builds, runs the topics that were asked for, or all, and prints one table.
pub fn bench(args: &[String]) -> Result<bool> {
    let (topics, rounds) = parse(args)?;
    if cfg!(debug_assertions) {
        // What Sexton is measured against must be as well optimised as Sexton.
        let again = ["run", "--release", "--quiet", "--package", "xtask", "--", "bench"];
        let args = args.iter().map(String::as_str);
        return run(cargo(&again.into_iter().chain(args).collect::<Vec<_>>()));
    }
    if !run(cargo(&["build", "--release", "--bins"]))? || !run(cargo_for_images(&["build"])?)? {
        return Ok(false);
    }
    let bench = Bench {
        sexton: target_dir()?.join("release/sexton"),
        init_for_images: for_images()?.join("release/sexton-init"),
        rounds,
    };
    let mut rows = Vec::new();
    for (name, measure) in topics {
        println!("== {name}");
        let found = measure(&bench).with_context(|| format!("topic `{name}`"))?;
        // At once too: a run of everything takes minutes.
        print!("{}", figure::table(&found));
        rows.extend(found);
    }
    println!("== bench\n{}", figure::table(&rows));
    Ok(true)
}

/// The topics and the number of rounds that a command line names.
fn parse(args: &[String]) -> Result<(Vec<Topic>, usize)> {
    let (mut topics, mut rounds) = (Vec::new(), 300);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--rounds" {
            rounds = args.next().context("`--rounds` takes a number")?.parse().context("`--rounds` takes a number")?;
            ensure!(rounds >= 20, "`--rounds` takes 20 or more");
            continue;
        }
        match TOPICS.iter().find(|(name, _)| name == arg) {
            Some(topic) => topics.push(*topic),
            None => {
                bail!("`{arg}` is no topic; there are {:?}", TOPICS.iter().map(|(name, _)| name).collect::<Vec<_>>())
            }
        }
    }
    if topics.is_empty() {
        topics = TOPICS.to_vec();
    }
    Ok((topics, rounds))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_topic_that_is_not_there_is_named() {
        let args = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(parse(&args("start nothing")).unwrap_err().to_string().contains("`nothing`"));
        assert!(parse(&args("--rounds 3")).is_err());
        let (topics, rounds) = parse(&args("start --rounds 40")).unwrap();
        assert_eq!((topics.len(), rounds), (1, 40));
    }
}
