//! A daemon in a container: a PID namespace of its own, with its keeper as the first process.

use std::process::{Child, Command, Stdio};

use sexton_testkit::{Ground, Held, SOON, eventually};

/// A container; dropped, it ends with all that is in it.
pub struct Container {
    outside: Child,
    /// Its first process, after whose end nothing is left in it.
    first: Held,
}

impl Container {
    /// With a daemon on `ground`, ready.
    pub fn serve(ground: &Ground) -> Container {
        let mut command = Command::new("unshare");
        command.args(["-pf", "--mount-proc", "--kill-child"]).arg(ground.program()).args(ground.flags()).arg("serve");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let outside = command.spawn().expect("started");
        eventually("it is ready", SOON, || match ground.client().get("/readyz") {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let parent = outside.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("read");
        let first = children.trim().parse().expect("one child");
        Container { first: Held::child_of(parent, first).expect("it lives"), outside }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.outside.kill().expect("killed");
        self.outside.wait().expect("ended");
        // REGRESSION: it was killed by then, and on a busy machine still there to answer in the place of the next one.
        self.first.wait_end();
    }
}
