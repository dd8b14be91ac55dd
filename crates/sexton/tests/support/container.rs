//! A daemon in a container: a PID namespace of its own, with its keeper as the first process.

use std::process::{Child, Command, Stdio};

use sexton_testkit::{Ground, SOON, eventually};

/// A container; dropped, it ends with all that is in it.
pub struct Container(Child);

impl Container {
    /// With a daemon on `ground`, ready.
    pub fn serve(ground: &Ground) -> Container {
        let mut command = Command::new("unshare");
        command.args(["-pf", "--mount-proc", "--kill-child"]).arg(ground.program()).args(ground.flags()).arg("serve");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let container = Container(command.spawn().expect("started"));
        eventually("it is ready", SOON, || match ground.client().get("/readyz") {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
        container
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("ended");
    }
}
