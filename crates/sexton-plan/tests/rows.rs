//! What the reconciler and the boot check are for, row by row, and what shows each: the scenarios of this crate where it
//! is the planner that decides, and the tests beside the code where somebody else does. Nothing is named that is not there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// One thing that is asked for.
struct Row {
    asked: &'static str,
    /// What scenarios show of it.
    shows: &'static [&'static str],
    /// Files, and tests in them.
    tests: &'static [(&'static str, &'static str)],
}

const LOOK: &str = "sexton-core/src/look.rs";
const RULE: &str = "sexton/src/node/watch/rule.rs";
const METADATA: &str = "sexton/src/node/watch/metadata.rs";
const GUESTS: &str = "sexton/tests/guests.rs";
const WATCH: &str = "sexton/tests/watch.rs";
const BOOT: &str = "sexton-ledger/tests/boot.rs";
const BOOT_CHECK: &str = "sexton/tests/boot_check.rs";

const ROWS: [Row; 16] = [
    // Processes that outlived their owner's daemon.
    Row {
        asked: "one plan over processes, cgroups and records, at the start and by interval",
        shows: &["written-back", "gone-is-closed", "stray-is-released"],
        tests: &[(
            GUESTS,
            "ten_guests_are_found_again_and_the_eleventh_is_ended_after_its_grace_among_twenty_look_alikes",
        )],
    },
    Row {
        asked: "survivors are the children of PID 1, the keeper or another subreaper of ours",
        shows: &["parent-may-care"],
        tests: &[(LOOK, "init_and_the_keeper_adopt"), (LOOK, "both_ways_of_looking_find_a_child")],
    },
    Row {
        asked: "the id is read from a path, a flag or the environment, and is one",
        shows: &["several-watches"],
        tests: &[
            (RULE, "the_id_is_the_component_below_the_tree"),
            (RULE, "an_id_is_any_path_component"),
            (RULE, "ids_from_flags_and_variables_are_components"),
            (RULE, "what_can_be_read_in_two_ways_is_not_guessed_at"),
        ],
    },
    Row {
        asked: "the live number is written back, and everything else in the file kept",
        shows: &["written-back", "right-is-not-written", "adopted-again", "odd-metadata", "owner-came-back"],
        tests: &[
            (METADATA, "a_file_is_replaced_with_its_owner_and_mode"),
            (WATCH, "live_numbers_are_written_back_and_nothing_else_is_touched"),
        ],
    },
    Row {
        asked: "without metadata it is ended after the grace, never on one sighting, reported before that",
        shows: &["grace", "two-passes", "report-ends-nothing", "weak-identity", "in-custody"],
        tests: &[(WATCH, "an_orphan_is_not_ended_before_its_grace_and_not_when_its_metadata_comes_back")],
    },
    Row {
        asked: "a runtime is known by its executable file, never by its name",
        shows: &["unknown-watch"],
        tests: &[
            (RULE, "runtimes_are_known_by_their_file_alone"),
            (WATCH, "another_file_under_the_name_of_a_declared_runtime_is_somebody_elses"),
        ],
    },
    Row {
        asked: "identity by more than a number before anything is ended",
        shows: &["number-reused", "weak-identity"],
        tests: &[("sexton-core/tests/reuse.rs", "a_stranger_with_the_same_number_and_start_tick_is_never_signalled")],
    },
    Row {
        asked: "elsewhere than on Linux the library compiles and answers that it cannot",
        shows: &[],
        tests: &[("sexton-core/tests/stub.rs", "every_call_says_that_it_is_unsupported")],
    },
    // Instances after a reboot.
    Row {
        asked: "records whose process is gone are closed",
        shows: &["gone-is-closed", "unread-is-not-gone", "out-of-sight-is-not-gone"],
        tests: &[(BOOT, "the_daemon_settles_when_it_opens")],
    },
    Row {
        asked: "once a boot, keyed by its id",
        shows: &[],
        tests: &[
            (BOOT, "every_state_that_cannot_live_on_is_lost_once_and_the_rest_is_left_alone"),
            (BOOT, "beside_a_daemon_nothing_is_settled_whatever_boot_the_caller_names"),
        ],
    },
    Row {
        asked: "many at once tell each end once",
        shows: &[],
        tests: &[
            (BOOT, "fifty_processes_settle_each_row_once"),
            (BOOT_CHECK, "fifty_at_once_settle_each_instance_once_and_signal_nobody"),
            (BOOT_CHECK, "whoever_is_killed_in_the_middle_the_next_one_finishes_and_tells_nothing_twice"),
        ],
    },
    Row {
        asked: "one stop path, carried to its end whoever began it",
        shows: &["stop-is-finished"],
        tests: &[("sexton-plan/src/judge.rs", "an_accepted_stop_is_carried_to_its_end")],
    },
    Row {
        asked: "a number that is taken proves nothing",
        shows: &["number-reused", "doubt-is-kept"],
        tests: &[("sexton-plan/src/identity.rs", "equal_ticks_prove_nothing")],
    },
    Row {
        asked: "rows of another node, those that have not begun and those that are over are skipped",
        shows: &["inactive-is-let-alone"],
        tests: &[(BOOT, "another_node_settles_nothing_and_does_not_use_up_the_boot")],
    },
    Row {
        asked: "spec and snapshot are kept to resume from",
        shows: &[],
        tests: &[(BOOT_CHECK, "what_the_container_before_held_is_given_back_before_anybody_asks")],
    },
    // Network slots.
    Row {
        asked: "what is missing of a slot is restored, or an unused one replaced, at the next reconcile; shown before",
        shows: &["slot-in-use-is-repaired", "unused-slot-is-replaced", "foreign-is-passed-by", "pool-at-rest"],
        tests: &[
            ("sexton/tests/slots.rs", "what_goes_missing_is_put_back_by_the_next_pass"),
            ("sexton/tests/slots_plan.rs", "a_damaged_slot_is_planned_for_and_put_right_when_the_plan_is_applied"),
        ],
    },
];

/// What scenarios say that they show.
fn shown() -> BTreeSet<String> {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")).expect("scenarios");
    let texts = files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("readable"));
    let claims = |text: String| {
        let words = text.lines().filter_map(|line| line.strip_prefix("shows ")).flat_map(str::split_whitespace);
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    texts.flat_map(claims).collect()
}

/// Whether `file` has a test of that name.
fn has_test(file: &str, name: &str) -> bool {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(crates.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.windows(2).any(|pair| pair.starts_with(&["#[test]"]) && pair.ends_with(&[&format!("fn {name}() {{")]))
}

#[test]
fn every_row_is_shown_by_scenarios_or_tests_that_are_there() {
    let shown = shown();
    for Row { asked, shows, tests } in ROWS {
        assert!(!shows.is_empty() || !tests.is_empty(), "{asked}");
        for claim in shows {
            assert!(shown.contains(*claim), "{asked}: no scenario shows `{claim}`");
        }
        for (file, name) in tests {
            assert!(has_test(file, name), "{asked}: `{file}` has no test `{name}`");
        }
    }
    let asked: BTreeSet<&str> = ROWS.iter().map(|row| row.asked).collect();
    assert_eq!(asked.len(), ROWS.len(), "each once");
}
