use super::*;

fn around(variables: &[(&str, &str)]) -> Surroundings {
    let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), OsString::from(value))).collect();
    Surroundings { variables, directory: Some(PathBuf::from("/base")), uid: 0, delegated: None }
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("sexton-config-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).expect("written");
        Scratch(path)
    }

    fn flags(&self) -> Flags {
        Flags { config: Some(self.0.display().to_string()), ..Flags::default() }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("removed");
    }
}

fn refused(name: &str, text: &str) -> String {
    let file = Scratch::new(name, text);
    resolve_in(&file.flags(), &around(&[])).expect_err(text).to_string()
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let file = Scratch::new("layers", "state_dir = \"/file\"\nrun_dir = \"/file-run\"\ncgroup = \"file\"\n");
    let variables = around(&[("SEXTON_STATE_DIR", "/env"), ("SEXTON_RUN_DIR", "env-run"), ("SEXTON_CGROUP", "")]);
    let flags = Flags { state_dir: Some("flag".into()), ..file.flags() };
    let settings = resolve_in(&flags, &variables).expect("resolved");
    assert_eq!(settings.state_dir, Path::new("/base/flag"));
    assert_eq!(settings.run_dir, Path::new("/base/env-run"));
    assert_eq!(settings.cgroup, "file", "an empty variable is an unset one");
    assert_eq!(settings.socket, Target::Unix("/base/env-run/sexton.sock".into()));
    assert_eq!(settings.on_shutdown, OnShutdown::Detach);
}

#[test]
fn the_contracts_example_is_read_whole() {
    let file = Scratch::new("example", include_str!("../../tests/fixtures/sexton.toml"));
    let settings = resolve_in(&file.flags(), &around(&[])).expect("resolved");
    assert_eq!(settings.drain_timeout, Some(Duration::from_secs(600)));
    assert_eq!(settings.logs.keep.0, 64 << 20);
    assert!(settings.knows_runtime("libkrun-shim") && settings.knows_runtime("command"));
    assert_eq!(settings.watch.first().map(|watch| watch.start_ticks_field.clone()), Some(None));
    let shown = toml::to_string(&settings).expect("shown as it would be written");
    assert!(shown.contains("libkrun-shim"), "{shown}");
}

#[test]
fn without_a_file_everything_has_a_default() {
    let mut user = around(&[("XDG_STATE_HOME", "/home/u/.state"), ("XDG_RUNTIME_DIR", "/run/user/7")]);
    user.uid = 7;
    user.variables.insert("SEXTON_CONFIG".into(), "/dev/null".into());
    let settings = resolve_in(&Flags::default(), &user).expect("resolved");
    assert_eq!(settings.state_dir, Path::new("/home/u/.state/sexton"));
    assert_eq!(settings.run_dir, Path::new("/run/user/7/sexton"));
    assert_eq!(settings.drain.kinds.get("build"), Some(&DrainRule::Cancel));
}

#[test]
fn an_unknown_key_is_named_with_file_and_line() {
    let told = refused("unknown", "on_shutdown = \"drain\"\n\n[logs]\nkeeep = \"1MiB\"\n");
    assert!(told.contains(":4: ") && told.contains("keeep") && told.contains("unknown.toml"), "{told}");
    let told = refused("top", "colour = 1\n");
    assert!(told.contains(":1: ") && told.contains("colour"), "{told}");
}

#[test]
fn a_value_outside_its_rules_is_named_with_its_key_and_line() {
    let cases = [
        ("drain_timeout = 5\n", "drain_timeout", 1),
        ("drain_timeout = \"5\"\n", "drain_timeout", 1),
        ("[sweep]\ninterval = \"0s\"\n", "interval", 2),
        ("[logs]\nkeep = \"64MB\"\n", "keep", 2),
        ("[slots]\n\nsubnet = \"10.0.0.1/16\"\n", "subnet", 3),
        ("[slots]\ncount = 5\nsubnet = \"10.0.0.0/28\"\n", "slots.count", 2),
        ("[slots]\nuplink = \"a/b\"\n", "uplink", 2),
        ("[slots]\ncount = -1\n", "count", 2),
        ("cgroup = \"../x\"\n", "cgroup", 1),
        ("[fleet]\nservers = [\"tls://nats.example:4222\"]\n", "fleet.servers", 2),
        ("[[access]]\nuid = 1\nrole = \"root\"\n", "role", 3),
        ("[[access]]\nuid = -1\nrole = \"read\"\n", "uid", 2),
        ("[[access]]\nuid = 4294967295\nrole = \"read\"\n", "uid", 2),
        ("\n[[drain]]\n", "[drain]", 2),
        ("sweep = []\n", "[sweep]", 1),
        ("access = [[1, \"admin\"]]\n", "[[access]]", 1),
        ("[[runtime]]\nname = \"r\"\nexecutables = [\"/x\"]\nid_from = { env = \"\" }\n", "id_from", 4),
        ("[[runtime]]\nname = \"r\"\nexecutables = [\"/x\"]\nid_from = { flag = \"\" }\n", "id_from", 4),
        ("[[runtime]]\nname = \"qemu\"\nexecutables = [\"/x\"]\n", "qemu", 2),
        ("[[watch]]\nname = \"w\"\nruntimes = [\"nope\"]\nmetadata = \"/a/{id}/b\"\npid_field = \"P\"\n", "nope", 3),
        ("[[watch]]\nname = \"w\"\nruntimes = [\"qemu\"]\nmetadata = \"/a/b\"\npid_field = \"P\"\n", "metadata", 4),
        (
            concat!(
                "[[watch]]\nname = \"w\"\nruntimes = [\"qemu\"]\nmetadata = \"/a/{id}/b\"\n",
                "pid_field = \"P\"\nstart_ticks_field = \"P\"\n",
            ),
            "`watch.pid_field` and `watch.start_ticks_field`",
            2,
        ),
        (
            "[[runtime]]\nname = \"r\"\nexecutables = [\"/x\"]\nstop = [{ signal = \"KILL\" }, { signal = \"TERM\" }]\n",
            "runtime.stop",
            2,
        ),
        (
            "[[runtime]]\nname = \"r\"\nexecutables = [\"/x\"]\nstop = [{ signal = \"INT\" }, { signal = \"TERM\" }]\n",
            "runtime.stop",
            2,
        ),
        (
            "[[runtime]]\nname = \"r\"\nexecutables = [\"/x\"]\nstop = [[\"TERM\", \"1s\"]]\n",
            "`runtime.stop` holds tables",
            4,
        ),
        ("[drain]\nkinds = { build = \"stop\" }\n", "kinds", 2),
        ("state_dir = \"relative\"\n", "state_dir", 1),
        ("on_shutdown = \n", "on_shutdown", 1),
    ];
    for (text, key, line) in cases {
        let told = refused("value", text);
        assert!(told.contains(key) && told.contains(&format!(":{line}: ")), "{text}: {told}");
    }
}

#[test]
fn a_bad_flag_or_variable_is_named() {
    let bad = Flags { drain_timeout: Some("5".into()), config: Some("/dev/null".into()), ..Flags::default() };
    let told = resolve_in(&bad, &around(&[])).expect_err("a bare number").to_string();
    assert!(told.contains("--drain-timeout") && told.contains("5s"), "{told}");
    let variables = around(&[("SEXTON_ON_SHUTDOWN", "explode\x1b"), ("SEXTON_CONFIG", "/dev/null")]);
    let told = resolve_in(&Flags::default(), &variables).expect_err("an unknown word").to_string();
    assert!(told.contains("SEXTON_ON_SHUTDOWN") && !told.contains('\x1b'), "{told}");
}

#[test]
fn a_listener_without_a_token_is_refused_on_loopback_too() {
    let flags = Flags { listen: Some("127.0.0.1:7070".into()), config: Some("/dev/null".into()), ..Flags::default() };
    assert!(resolve_in(&flags, &around(&[])).is_err());
}

#[test]
fn a_named_file_must_be_there() {
    let flags = Flags { config: Some("/nonexistent/sexton.toml".into()), ..Flags::default() };
    assert!(matches!(resolve_in(&flags, &around(&[])), Err(ResolveError::Read { .. })));
}

#[test]
fn targets_are_paths_or_urls() {
    let base = Some(Path::new("/base"));
    for text in ["/run/s.sock", "http+unix:///run/s.sock", "http+unix://%2Frun%2Fs.sock"] {
        assert_eq!(Target::parse(text, base), Ok(Target::Unix("/run/s.sock".into())), "{text}");
    }
    assert_eq!(Target::parse("s.sock", base), Ok(Target::Unix("/base/s.sock".into())));
    assert_eq!(Target::parse("https://n1:7070", base), Ok(Target::Url("https://n1:7070".into())));
    assert!(Target::parse("http+unix://", base).is_err());
    for text in ["unix:///run/s.sock", "ftp://x", "HTTP+UNIX:///run/s.sock", "tcp://127.0.0.1:7070", "unix://"] {
        let refused = Target::parse(text, base).expect_err(text).to_string();
        let scheme = text.split("//").next().expect("a scheme");
        assert!(refused.contains(scheme) && refused.contains("`http+unix://`"), "{refused}");
    }
    for text in ["a:b", "/x/ftp://y", "./ftp://y", "://y", "9p://y", "a b://y"] {
        assert!(matches!(Target::parse(text, base), Ok(Target::Unix(_))), "{text}");
    }
}

#[test]
fn a_delegated_cgroup_is_the_default_and_a_named_one_wins() {
    let delegated = Some(Ok("system.slice/sexton.service".to_owned()));
    let given = Surroundings { delegated, ..around(&[]) };
    let resolved =
        |flags: Flags| resolve_in(&Flags { config: Some("/dev/null".into()), ..flags }, &given).expect("valid");
    assert_eq!(resolved(Flags::default()).cgroup, "system.slice/sexton.service/instances");
    assert_eq!(resolved(Flags { cgroup: Some("mine".into()), ..Flags::default() }).cgroup, "mine");
}

#[test]
fn a_delegation_that_cannot_be_read_is_not_one_that_nobody_has_given() {
    let unread = Surroundings { delegated: Some(Err("no room".to_owned())), ..around(&[]) };
    let flags = Flags { config: Some("/dev/null".into()), ..Flags::default() };
    // REGRESSION: a worker that could not read it at that moment looked for its instances in another cgroup.
    assert!(matches!(resolve_in(&flags, &unread), Err(ResolveError::Delegation(_))));
    let named = Flags { cgroup: Some("elsewhere".to_owned()), ..flags };
    assert_eq!(resolve_in(&named, &unread).expect("nobody asks for it").cgroup, "elsewhere");
}
