//! The packages of the bindings, installed as a user installs them, and their tests in their own languages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sexton_testkit::skip;

mod common;

use common::{Ground, library, repository, run};

/// The program of that name, unless it is not here, which is told loudly.
fn find(name: &'static str) -> Option<&'static str> {
    let here = skip::has_program(name);
    if !here {
        skip::missing_package(name);
    }
    here.then_some(name)
}

/// The tarball that `npm pack` makes of the sources and the addon of this build, installed.
fn installed_for_node(ground: &Ground) -> PathBuf {
    let (package, here) = (repository().join("bindings/node"), ground.path().join("package"));
    let arch = run(Command::new("node").args(["-p", "process.arch"]));
    let prebuilds = here.join("prebuilds").join(format!("linux-{}", arch.trim()));
    fs::create_dir_all(&prebuilds).expect("dir");
    for file in ["index.js", "index.d.ts", "package.json", "README.md", "test.js"] {
        fs::copy(package.join(file), here.join(file)).expect("copied");
    }
    let includes =
        run(Command::new("node").args(["-p", "require('path').join(process.execPath, '../../include/node')"]));
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]);
    cc.args(["-I", includes.trim(), "-I/usr/include/node", "-I"]).arg(repository().join("bindings/c"));
    cc.arg("-o").arg(prebuilds.join("sexton.node")).arg(package.join("addon.c")).arg(library("libsexton_ffi.a"));
    run(cc.args(["-lpthread", "-ldl", "-lm"]));
    let tarball = run(Command::new("npm").args(["pack", "--silent"]).current_dir(&here));
    let app = ground.path().join("app");
    fs::create_dir(&app).expect("dir");
    fs::write(app.join("package.json"), "{}").expect("written");
    let install = ["install", "--silent", "--offline", "--ignore-scripts", "--no-audit", "--no-fund"];
    run(Command::new("npm").args(install).arg(here.join(tarball.trim())).current_dir(&app));
    app.join("node_modules/sexton")
}

#[test]
fn node_and_bun_see_every_exit_event_and_leave_no_zombie() {
    let (Some(node), Some(_)) = (find("node"), find("npm")) else { return };
    let ground = Ground::new("node");
    let package = installed_for_node(&ground);
    assert!(!package.join("test.js").exists() && package.join("index.d.ts").exists());
    let test_under = |runtime: &str| {
        let test = repository().join("bindings/node/test.js");
        let text = run(Command::new(runtime).arg(test).env("SEXTON_TEST_PACKAGE", &package));
        assert!(text.contains("1000 exit events and 1000 orphans") && text.ends_with("all is well\n"), "{text}");
    };
    test_under(node);
    // `cargo xtask ci` installs one and names it.
    match std::env::var("SEXTON_TEST_BUN") {
        Ok(bun) => test_under(&bun),
        Err(_) if skip::has_program("bun") => test_under("bun"),
        Err(_) => {
            skip::announce("there is no Bun: the registry of npm was not reached, or this is not `cargo xtask ci`")
        }
    }
}

#[test]
fn python_sees_every_exit_code_and_its_wheel_installs_offline() {
    let Some(python) = find("python3") else { return };
    let ground = Ground::new("python");
    let (wheels, venv) = (ground.path().join("wheels"), ground.path().join("venv"));
    let pip = ["-m", "pip", "--disable-pip-version-check", "-q"];
    let mut wheel = Command::new(python);
    wheel.args(pip).args(["wheel", "--no-deps", "--no-index", "-w"]).arg(&wheels);
    wheel.arg(repository().join("bindings/python")).env("SEXTON_LIBRARY", library("libsexton_ffi.so"));
    run(wheel.env("PYTHONDONTWRITEBYTECODE", "1"));
    run(Command::new(python).args(["-m", "venv", "--without-pip"]).arg(&venv));
    let mut install = Command::new(python);
    install.args(pip).arg("--python").arg(venv.join("bin/python"));
    run(install.args(["install", "--no-deps", "--no-index", "--find-links"]).arg(&wheels).arg("sexton"));
    // Away from the sources, which Python would find first.
    let test = ground.path().join("test.py");
    fs::copy(repository().join("bindings/python/test.py"), &test).expect("copied");
    let text = run(Command::new(venv.join("bin/python")).arg(test));
    assert!(text.contains("300 exit codes and 300 orphans\n") && text.ends_with("all is well\n"), "{text}");
}

/// What `make install` puts below `ground`; its prefix is not one that compilers search by themselves.
fn installed_for_c(ground: &Ground) {
    let mut make = Command::new("make");
    make.args(["--silent", "-C"]).arg(repository().join("bindings/c")).args(["install", "PREFIX=/opt/sexton"]);
    let built = library("libsexton_ffi.so");
    make.arg(format!("BUILD={}", built.parent().expect("deps").display()));
    run(make.arg(format!("DESTDIR={}", ground.path().display())));
}

fn pkg_config(ground: &Ground, ask: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_SYSROOT_DIR", ground.path());
    command.env("PKG_CONFIG_PATH", ground.path().join("opt/sexton/lib/pkgconfig"));
    run(command.args(ask).arg("sexton")).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_readme_of_c_runs_against_what_is_installed() {
    let (Some(_), Some(_)) = (find("make"), find("pkg-config")) else { return };
    let ground = Ground::new("c");
    installed_for_c(&ground);
    let readme = fs::read_to_string(repository().join("bindings/c/README.md")).expect("the README");
    let code = readme.split_once("```c\n").and_then(|(_, rest)| rest.split_once("```")).expect("code").0;
    let (file, program) = (ground.path().join("main.c"), ground.path().join("main"));
    fs::write(&file, code).expect("written");
    assert_eq!(pkg_config(&ground, &["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let compile = |flags: Vec<String>| {
        run(Command::new("cc").args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(&file).args(flags));
    };
    let library_path = |path: &Path| run(Command::new(&program).env("LD_LIBRARY_PATH", path));
    compile(pkg_config(&ground, &["--cflags", "--libs"]));
    assert_eq!(library_path(&ground.path().join("opt/sexton/lib")), "exit code 42\n");
    // The archive alone: nothing is looked for at run time.
    let archive = ground.path().join("opt/sexton/lib/libsexton_ffi.a");
    let flags = pkg_config(&ground, &["--static", "--cflags", "--libs"]);
    let whole = |flag: String| if flag == "-lsexton_ffi" { archive.display().to_string() } else { flag };
    compile(flags.into_iter().map(whole).collect());
    assert_eq!(library_path(Path::new("/nonexistent")), "exit code 42\n");
}
