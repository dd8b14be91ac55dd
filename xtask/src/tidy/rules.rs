//! The rules that look at one file alone.

use super::Finding;
use super::source::{Line, Source};

/// What no file may exceed, tests at its end left out.
const MOST_LINES: usize = 600;

/// One rule: it looks at a file and tells what it finds.
type Rule = fn(&Source<'_>) -> Vec<Finding>;

/// Every rule.
const RULES: &[Rule] = &[
    unsafe_is_forbidden,
    files_are_short,
    processes_are_not_known_by_number,
    programs_are_started_by_core_alone,
    printing_is_in_one_place,
    sql_is_in_the_ledger,
    nothing_is_left_undone,
    machines_are_not_named,
    numbers_of_issues_say_nothing,
];

/// Everything that the rules find in `source`. The rules' own sources hold samples of what they forbid.
pub fn check(source: &Source<'_>) -> Vec<Finding> {
    if source.is_in("xtask/src/tidy/") {
        return Vec::new();
    }
    RULES.iter().flat_map(|rule| rule(source)).collect()
}

fn finding(source: &Source<'_>, line: usize, says: impl Into<String>) -> Finding {
    Finding { path: source.path.to_owned(), line, says: says.into() }
}

/// A finding for each line that holds one of `words`.
fn holding<'a>(source: &Source<'a>, lines: impl Iterator<Item = Line<'a>>, words: &[&str], says: &str) -> Vec<Finding> {
    let found = lines.filter_map(|line| {
        let word = words.iter().find(|word| line.text.contains(**word))?;
        Some(finding(source, line.number, format!("`{word}` {says}")))
    });
    found.collect()
}

/// `forbid(unsafe_code)` stands in every crate's root, save where unsafe code lives, in the program without std that
/// must name its entry point, and in `sexton-core`, which denies it and has one door for descriptors to std.
fn unsafe_is_forbidden(source: &Source<'_>) -> Vec<Finding> {
    let homes = ["crates/sexton-sys/", "crates/sexton-ffi/", "crates/sexton-keeper/src/bin/sexton-init.rs"];
    if homes.iter().any(|home| source.is_in(home)) {
        return Vec::new();
    }
    let wanted = "#![forbid(unsafe_code)]";
    if source.is_crate_root() && !source.is_test() && !source.text.contains(wanted) {
        return vec![finding(source, 1, format!("a crate's root says `{wanted}`"))];
    }
    holding(source, Source::code(source.lines()), &["allow(unsafe_code"], "is for `sexton-sys` and `sexton-ffi` alone")
}

/// A file that grows beyond reading is two files.
fn files_are_short(source: &Source<'_>) -> Vec<Finding> {
    let lines = source.product_lines().count();
    if !source.is_rust() || lines <= MOST_LINES {
        return Vec::new();
    }
    vec![finding(source, lines, format!("{lines} lines of product code, and {MOST_LINES} are the most"))]
}

/// Signals and waits by number, by group or for anybody are for `sexton-sys` to wrap, where a reason is given.
fn processes_are_not_known_by_number(source: &Source<'_>) -> Vec<Finding> {
    if !source.is_rust() || source.is_in("crates/sexton-sys/") {
        return Vec::new();
    }
    let words = ["libc::", "waitpid(-1", "killpg(", "P_ALL", "rustix::"];
    holding(source, Source::code(source.lines()), &words, "is for `sexton-sys` alone")
}

/// `std::process::Command` forks, leaks descriptors of other threads, and knows children by number. `serve` uses it to
/// replace itself by the keeper, which starts nothing; `doctor` asks systemd by systemd's own program, and waits for it.
fn programs_are_started_by_core_alone(source: &Source<'_>) -> Vec<Finding> {
    let exempt = ["crates/sexton/src/demo", "crates/sexton/src/daemon/mod.rs", "crates/sexton/src/doctor/service.rs"];
    if !source.is_rust() || exempt.iter().any(|path| source.is_in(path)) {
        return Vec::new();
    }
    let lines = Source::code(source.product_lines());
    holding(source, lines, &["process::Command"], "is for tests; product code spawns through `sexton-core`")
}

/// Output of the CLI is escaped, coloured and made JSON in one module.
fn printing_is_in_one_place(source: &Source<'_>) -> Vec<Finding> {
    if !source.is_rust() || source.path == "crates/sexton/src/cli/out.rs" {
        return Vec::new();
    }
    let words = ["println!(", "print!("];
    holding(source, Source::code(source.product_lines()), &words, "is for `cli/out.rs` alone")
}

/// SQL is in the ledger, so that one crate knows the schema.
fn sql_is_in_the_ledger(source: &Source<'_>) -> Vec<Finding> {
    if !source.is_rust() || source.is_in("crates/sexton-ledger/") {
        return Vec::new();
    }
    let words = ["\"SELECT ", "\"INSERT ", "\"UPDATE ", "\"DELETE FROM", "\"PRAGMA ", "\"CREATE TABLE", "rusqlite::"];
    holding(source, Source::code(source.product_lines()), &words, "is for `sexton-ledger` alone")
}

/// What is not done is not merged, and a test that does not run is no test.
fn nothing_is_left_undone(source: &Source<'_>) -> Vec<Finding> {
    if !source.is_rust() {
        return Vec::new();
    }
    let words = ["#[ignore", "todo!(", "unimplemented!(", "FIXME", "XXX", "HACK", "TODO"];
    holding(source, source.lines(), &words, "is left undone")
}

/// Paths of the machine that something was written on mean nothing on another one.
fn machines_are_not_named(source: &Source<'_>) -> Vec<Finding> {
    holding(source, source.lines(), &["/Users/", "/builds/"], "is a path of one machine")
}

/// A reader of the source has the reason before him, not a tracker.
fn numbers_of_issues_say_nothing(source: &Source<'_>) -> Vec<Finding> {
    if !source.is_rust() {
        return Vec::new();
    }
    let comments = source.lines().filter(|line| line.text.trim_start().starts_with("//"));
    let named = comments.filter(|line| line.text.split([' ', '(', ',', '.']).any(is_issue));
    named.map(|line| finding(source, line.number, "the number of an issue; say what it says")).collect()
}

/// `#` and digits alone.
fn is_issue(word: &str) -> bool {
    let digits = word.strip_prefix('#').unwrap_or_default();
    !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often `rule` finds something in a product file of this text.
    fn found(rule: Rule, text: &str) -> usize {
        found_at(rule, "crates/sexton/src/node/some.rs", text)
    }

    fn found_at(rule: Rule, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn a_root_without_forbid_is_found() {
        assert_eq!(found_at(unsafe_is_forbidden, "crates/sexton/src/lib.rs", "//! x\n"), 1);
        assert_eq!(found_at(unsafe_is_forbidden, "crates/sexton/src/lib.rs", "//! x\n#![forbid(unsafe_code)]\n"), 0);
        assert_eq!(found_at(unsafe_is_forbidden, "crates/sexton-sys/src/lib.rs", "//! x\n"), 0);
        assert_eq!(found(unsafe_is_forbidden, "//! x\n"), 0);
        assert_eq!(found(unsafe_is_forbidden, "#[allow(unsafe_code, reason = \"fast\")]\n"), 1);
        assert_eq!(found_at(unsafe_is_forbidden, "crates/sexton-core/src/lib.rs", "#![forbid(unsafe_code)]\n"), 0);
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let tests = format!("{}#[cfg(test)]\n{}", "x\n".repeat(600), "x\n".repeat(600));
        assert_eq!(found(files_are_short, &tests), 0);
        assert_eq!(found(files_are_short, &"x\n".repeat(601)), 1);
    }

    #[test]
    fn waiting_for_anybody_is_found_and_talking_about_it_is_not() {
        assert_eq!(found(processes_are_not_known_by_number, "let x = waitpid(-1, None);"), 1);
        assert_eq!(found(processes_are_not_known_by_number, "use libc::pid_t;\nkillpg(7);\nP_ALL"), 3);
        assert_eq!(found(processes_are_not_known_by_number, "// Never waitpid(-1)."), 0);
        assert_eq!(found_at(processes_are_not_known_by_number, "crates/sexton-sys/src/wait.rs", "P_ALL"), 0);
    }

    #[test]
    fn starting_a_program_with_std_is_found_outside_tests() {
        let text = "use std::process::Command;";
        assert_eq!(found(programs_are_started_by_core_alone, text), 1);
        assert_eq!(found(programs_are_started_by_core_alone, &format!("#[cfg(test)]\n{text}")), 0);
        assert_eq!(found_at(programs_are_started_by_core_alone, "crates/sexton/tests/a.rs", text), 0);
    }

    #[test]
    fn printing_elsewhere_is_found() {
        assert_eq!(found(printing_is_in_one_place, "println!(\"x\");\neprint!(\"x\");"), 2);
        assert_eq!(found_at(printing_is_in_one_place, "crates/sexton/src/cli/out.rs", "println!()"), 0);
        assert_eq!(found_at(printing_is_in_one_place, "xtask/src/main.rs", "println!()"), 0);
    }

    #[test]
    fn sql_elsewhere_is_found() {
        assert_eq!(found(sql_is_in_the_ledger, "db.query(\"SELECT 1\")"), 1);
        assert_eq!(found(sql_is_in_the_ledger, "// A \"SELECT \" is for the ledger."), 0);
        assert_eq!(found_at(sql_is_in_the_ledger, "crates/sexton-ledger/src/read.rs", "\"SELECT 1\""), 0);
    }

    #[test]
    fn what_is_left_undone_is_found_also_in_tests() {
        let text = "#[ignore = \"slow\"]\ntodo!()\nunimplemented!()\n// FIXME later";
        assert_eq!(found_at(nothing_is_left_undone, "crates/sexton/tests/a.rs", text), 4);
    }

    #[test]
    fn a_path_of_one_machine_is_found_in_any_file() {
        assert_eq!(found_at(machines_are_not_named, "README.md", "cd /builds/sexton"), 1);
        assert_eq!(found_at(machines_are_not_named, "README.md", "cd /tmp"), 0);
    }

    #[test]
    fn the_number_of_an_issue_is_found() {
        assert_eq!(found(numbers_of_issues_say_nothing, "// Works around #1234."), 1);
        assert_eq!(found(numbers_of_issues_say_nothing, "// The colour #fff; `#[test]`."), 0);
    }

    #[test]
    fn the_rules_leave_their_own_samples_alone() {
        assert!(check(&Source::new("xtask/src/tidy/rules.rs", "todo!()")).is_empty());
    }
}
