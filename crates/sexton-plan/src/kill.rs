//! By what a life is ended as one: so far as that goes, nothing escapes.

use serde::{Deserialize, Serialize};

/// What holds a life together when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KillBy {
    /// Its cgroup: nothing escapes.
    Cgroup,
    /// Its own PID namespace, which the kernel ends with its main process: nothing escapes.
    Pidns,
    /// What is found to descend from its main process. A process escapes that left its session and lost its parent
    /// before anybody looked.
    Tree,
}

impl KillBy {
    /// How a life is ended that has a cgroup or not, and was started in a PID namespace of its own or not.
    pub const fn of(has_cgroup: bool, own_pid_namespace: bool) -> KillBy {
        match (has_cgroup, own_pid_namespace) {
            (true, _) => KillBy::Cgroup,
            (false, true) => KillBy::Pidns,
            (false, false) => KillBy::Tree,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_goes_first_and_a_tree_last() {
        assert_eq!(KillBy::of(true, true), KillBy::Cgroup);
        assert_eq!(KillBy::of(true, false), KillBy::Cgroup);
        assert_eq!(KillBy::of(false, true), KillBy::Pidns);
        assert_eq!(KillBy::of(false, false), KillBy::Tree);
    }
}
