//! A disk that a test can fill.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use sexton_testkit::Ground;

use crate::support::{Node, spec};

/// A state directory of 8 MiB on a file system of its own, which the test can fill.
pub struct SmallDisk {
    filler: PathBuf,
}

impl SmallDisk {
    pub fn mount(ground: &Ground) -> SmallDisk {
        let dir = ground.state_dir();
        fs::create_dir(&dir).expect("a state directory");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m,nr_inodes=1k", "sexton-test"]).arg(&dir).status();
        assert!(status.expect("mount").success());
        SmallDisk { filler: dir.join("filler") }
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut filler = OpenOptions::new().append(true).create(true).open(&self.filler).expect("filler");
        let mut size = 1 << 16;
        while size > 0 {
            match filler.write(&vec![1; size]) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Leaves room in its files, and none for another one.
    pub fn use_up_inodes(&self) {
        fs::create_dir(self.inodes()).expect("a directory");
        let one = |number: u32| fs::File::create(self.inodes().join(number.to_string()));
        let refused = (0..).find_map(|number| one(number).err()).expect("it is full at last");
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
    }

    pub fn give_back_inodes(&self) {
        fs::remove_dir_all(self.inodes()).expect("removed");
    }

    fn inodes(&self) -> PathBuf {
        self.filler.with_extension("inodes")
    }

    pub fn clear(&self) {
        fs::remove_file(&self.filler).expect("cleared");
    }
}

/// Takes up what the ledger had put by for such days, until it cannot be written; tells what was created by that.
pub fn exhaust(node: &mut Node) -> Vec<String> {
    let mut names = Vec::new();
    let mut size = 100_000;
    let others = node.instances().len();
    loop {
        let name = format!("filler-{}", others + names.len());
        let mut body = spec(&name, &["/bin/true"]);
        body["env"] = json!({ "FILLER": "x".repeat(size) });
        let (answer, _) = node.ask("POST", "/v1/instances", None, Some(&body));
        match answer.status {
            // One whose program ran before the ledger refused to say so has kept the name.
            201 | 409 => names.push(name),
            503 if size == 0 => return names,
            503 => size /= 10,
            _ => panic!("{}", answer.text()),
        }
        assert!(names.len() < 2_000, "it is never full");
    }
}
