//! What is watched: whose processes, by which executable files, under which ids. Pure.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sexton_core::look::Seen;
use sexton_core::proc::User;
use sexton_plan::plan::OnOrphan;

/// One watch: somebody else's processes and metadata.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Its name.
    pub name: String,
    /// The runtimes whose processes are looked for.
    pub runtimes: Vec<Runtime>,
    /// Where each id's metadata is.
    pub metadata: Template,
    /// The member that holds the PID.
    pub pid_field: String,
    /// The member that takes the start tick, where one is wanted.
    pub start_ticks_field: Option<String>,
    /// How old an orphan must be to be ended.
    pub grace: Duration,
    /// What is done with one.
    pub on_orphan: OnOrphan,
}

/// A path that holds `{id}` as one whole component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// What is before the id, without a slash at its end.
    pub tree: String,
    /// The components behind the id.
    pub below: Vec<String>,
}

/// A runtime, known by its executable files.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Its name, by which its orphans are asked to end as its instances are.
    pub name: String,
    /// The files.
    pub executables: Executables,
    /// Where its processes carry their id, if not below the tree on the command line.
    pub id_from: Option<IdFrom>,
    /// How long they have for it.
    pub stop_grace: Duration,
}

/// Executable files.
#[derive(Clone, Debug)]
pub enum Executables {
    /// `qemu-system-*`.
    Qemu,
    /// `firecracker`, or `firecracker-VERSION`.
    Firecracker,
    /// `cloud-hypervisor`, or `cloud-hypervisor-VERSION`.
    CloudHypervisor,
    /// Exactly these.
    Files(Vec<PathBuf>),
}

/// Where a process carries its id.
#[derive(Clone, Debug)]
pub enum IdFrom {
    /// In this variable of its environment.
    Env(String),
    /// In the argument behind this flag.
    Flag(String),
    /// In the component below this directory of any path on its command line.
    PathUnder(String),
}

/// The id that a process carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id {
    /// None: it is not of this watch.
    Absent,
    /// This one.
    Is(String),
    /// It cannot be told; why.
    Unsure(String),
}

impl Template {
    /// Parses `/tree/{id}/below`; `None` where that is not its form.
    pub fn parse(text: &str) -> Option<Template> {
        let (tree, below) = text.split_once("/{id}")?;
        let below = match below.strip_prefix('/') {
            Some(below) => below.split('/').map(str::to_owned).collect(),
            None if below.is_empty() => Vec::new(),
            None => return None,
        };
        (tree.starts_with('/') && below.iter().all(|part| !part.is_empty()))
            .then(|| Template { tree: tree.to_owned(), below })
    }

    /// The file of `id`.
    pub fn file(&self, id: &str) -> String {
        let mut file = format!("{}/{id}", self.tree);
        for part in &self.below {
            file.push('/');
            file.push_str(part);
        }
        file
    }
}

impl Executables {
    /// Whether `file` is one of them.
    pub fn hold(&self, file: &Path) -> bool {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is =
            |program: &str| name.strip_prefix(program).is_some_and(|rest| rest.is_empty() || rest.starts_with("-v"));
        match self {
            Executables::Qemu => name.starts_with("qemu-system-"),
            Executables::Firecracker => is("firecracker"),
            Executables::CloudHypervisor => is("cloud-hypervisor"),
            Executables::Files(files) => {
                files.iter().any(|known| known == file || known.canonicalize().is_ok_and(|known| known == file))
            }
        }
    }
}

impl Watch {
    /// The runtime that executes `file`, if it is one of this watch's.
    pub fn runtime_of(&self, file: &Path) -> Option<&Runtime> {
        self.runtimes.iter().find(|runtime| runtime.executables.hold(file))
    }

    /// The id that `seen` carries.
    pub fn id_of(&self, seen: &Seen) -> Id {
        // A program that is known by its own name may lie anywhere, also in a jail; a place is one of ours.
        let is_known = |runtime: &&Runtime| seen.is_here || !matches!(runtime.executables, Executables::Files(_));
        let Some(runtime) = self.runtime_of(&seen.executable).filter(is_known) else { return Id::Absent };
        match &runtime.id_from {
            None => id_below(&self.metadata.tree, &seen.arguments),
            Some(IdFrom::PathUnder(tree)) => id_below(tree.trim_end_matches('/'), &seen.arguments),
            Some(IdFrom::Env(name)) => {
                let prefix = format!("{name}=");
                one(seen.environment.iter().filter_map(|text| text.strip_prefix(prefix.as_bytes())))
            }
            Some(IdFrom::Flag(flag)) => one(behind_flag(flag, &seen.arguments).into_iter()),
        }
    }
}

/// Who may write something of a guest: its owner, and whoever its mode lets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its mode.
    pub mode: u32,
}

impl Place {
    /// Whether `user` may write it, as far as owner and mode tell. Where others may add files but not replace them (the
    /// sticky bit), nobody else may.
    fn is_open_to(self, user: User) -> bool {
        let lets = |bit: u32| self.mode & bit != 0 && self.mode & 0o1000 == 0;
        self.uid == user.uid || (self.gid == user.gid && lets(0o020)) || lets(0o002)
    }
}

/// Whether a process that carries a guest's id is taken for it. Anybody may execute a runtime's file with any command
/// line and leave it to PID 1, and would so pass for the guest, or stand in its way. So it must be root's, or of somebody
/// who can write the guest's `places`, and so what the metadata says, all the same, or in a jail that only root can make.
pub fn is_credible(seen: &Seen, places: &[Place]) -> bool {
    seen.user.uid == 0 || seen.is_jailed || places.iter().any(|place| place.is_open_to(seen.user))
}

/// The values given to `flag`: the next argument, or what is behind its `=`.
fn behind_flag<'a>(flag: &str, arguments: &'a [Vec<u8>]) -> Vec<&'a [u8]> {
    let assigned = format!("{flag}=");
    let next = arguments.windows(2).filter_map(|pair| match pair {
        [name, value] if name == flag.as_bytes() => Some(value.as_slice()),
        _ => None,
    });
    next.chain(arguments.iter().filter_map(|text| text.strip_prefix(assigned.as_bytes()))).collect()
}

/// The one id among `found`.
fn one<'a>(found: impl Iterator<Item = &'a [u8]>) -> Id {
    let found: BTreeSet<&[u8]> = found.collect();
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (None, _) => Id::Absent,
        (Some(id), None) => checked(id),
        (Some(_), Some(_)) => Id::Unsure("it carries several ids".to_owned()),
    }
}

/// `id`, if it is one path component.
fn checked(id: &[u8]) -> Id {
    match std::str::from_utf8(id) {
        Ok("" | "." | "..") => Id::Absent,
        Ok(id) if id.contains('/') || id.len() > 255 => Id::Unsure("its id is no path component".to_owned()),
        Ok(id) => Id::Is(id.to_owned()),
        Err(_) => Id::Unsure("its id is no text".to_owned()),
    }
}

/// The component below `tree` of any path in `arguments`.
fn id_below(tree: &str, arguments: &[Vec<u8>]) -> Id {
    let mut ids = BTreeSet::new();
    for argument in arguments {
        // What is no text elsewhere in an argument is no hindrance.
        let text = String::from_utf8_lossy(argument);
        for (at, _) in text.match_indices(tree) {
            let (before, path) = text.split_at(at);
            let Some(rest) = path.strip_prefix(tree).and_then(|rest| rest.strip_prefix('/')) else { continue };
            if begins_path(before) {
                match component(before, rest) {
                    Ok(Some(id)) if id.contains(char::REPLACEMENT_CHARACTER) && matches!(text, Cow::Owned(_)) => {
                        return Id::Unsure("its id is no text".to_owned());
                    }
                    Ok(Some(id)) => drop(ids.insert(id.to_owned())),
                    Ok(None) => {}
                    Err(why) => return Id::Unsure(why.to_owned()),
                }
            }
        }
    }
    one(ids.iter().map(|id| id.as_bytes()))
}

/// Whether an absolute path may begin behind `before`: not in the midst of another path.
fn begins_path(before: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || "/._-+~".contains(c);
    before.ends_with("://") || !before.chars().next_back().is_some_and(inside)
}

/// The first component of `rest`, which follows `before` and the tree in one argument. A path ends where its argument
/// does, or, as QEMU and others write it, before a `,`; a component that could be read in two ways is not guessed at.
fn component<'a>(before: &str, rest: &'a str) -> Result<Option<&'a str>, &'static str> {
    let rest = rest.trim_start_matches('/');
    let (whole, below) = rest.split_once('/').map_or((rest, None), |(whole, below)| (whole, Some(below)));
    let (id, is_whole) = match whole.split_once(',') {
        // What is behind the comma is another option, not a part of the name.
        Some((id, option)) if option.is_empty() || option.contains('=') => (id, false),
        Some(_) => return Err("a path on its command line holds a comma in its id"),
        None => (whole, below.is_some()),
    };
    let path_end = below.unwrap_or_default().split(',').next().unwrap_or_default();
    if is_whole && path_end.split('/').any(|part| part == "..") {
        return Err("a path on its command line leads upwards");
    }
    match id {
        "" | "." | ".." => Ok(None),
        id if is_doubtful(before, id, is_whole) => {
            Err("the id on its command line cannot be told from what is around it")
        }
        id => Ok(Some(id)),
    }
}

/// Whether what is taken for an id may be more than that: what looks like the end of a path, or like what follows one,
/// may be one. Between two slashes (`is_whole`), and in an argument that is nothing but a path, most things are a part of
/// the name, as in `a b` or `vm=1`.
fn is_doubtful(before: &str, id: &str, is_whole: bool) -> bool {
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || ":;=\"'`&?*$|<>()[]{}\\".contains(c);
    let Some(odd) = id.find(is_odd) else { return false };
    let is_alone = before.is_empty();
    let is_cut = !is_whole && (!is_alone || id.contains([';', '?', '&', '|', '<', '>']));
    // `SOURCE:/TARGET`, `PATH /PATH`, `NAME=PATH NAME=/PATH`: the slash begins another path.
    let begins_another = id.ends_with(|c: char| c.is_whitespace() || ":;=\"'`&|<>".contains(c));
    // `SOURCE:TARGET` is written for a path alone too, but hardly with a path behind it.
    let is_pair = id.contains(':') && !(is_alone && is_whole);
    // Text of several words, as a shell or a kernel is given, whose words end at spaces.
    let is_text = before.contains(char::is_whitespace) || id.get(odd..).is_some_and(has_assignment);
    is_cut || begins_another || is_pair || (is_text && id.contains(char::is_whitespace))
}

/// Whether a space has `NAME=` behind it.
fn has_assignment(text: &str) -> bool {
    text.split_once(char::is_whitespace).is_some_and(|(_, behind)| behind.contains('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(arguments: &[&str]) -> Id {
        id_below("/var/lib/guests", &arguments.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn the_id_is_the_component_below_the_tree() {
        for arguments in [
            &["qemu", "-qmp", "unix:/var/lib/guests/vm-1/q.sock,server=on,wait=off"][..],
            &["qemu", "-drive", "file=/var/lib/guests/vm-1/disk.img,if=virtio,x=/y"],
            &["fc", "--api-sock", "/var/lib/guests/vm-1/fc.sock", "--log", "/var/lib/guests/vm-1/log"],
            &["fc", "--chroot=/var/lib/guests/vm-1"],
            &["fc", "-fsdev", "local,path=/var/lib/guests/vm-1,security_model=none"],
            &["fc", "file:///var/lib/guests//vm-1/x"],
            &["qemu", "-append", "path=/var/lib/guests/vm-1/init quiet x='y'"],
        ] {
            assert_eq!(id(arguments), Id::Is("vm-1".to_owned()), "{arguments:?}");
        }
    }

    #[test]
    fn an_id_is_any_path_component() {
        for (argument, expected) in [
            ("/var/lib/guests/a b/s", "a b"),
            ("/var/lib/guests/a b", "a b"),
            ("/var/lib/guests/a:b/s", "a:b"),
            ("/var/lib/guests/a=b/s", "a=b"),
            ("/var/lib/guests/it's \"x\"(1)/s", "it's \"x\"(1)"),
            ("/var/lib/guests/\u{e9}\t*/s", "\u{e9}\t*"),
            ("file=/var/lib/guests/a b/disk.img,if=virtio", "a b"),
            ("unix:/var/lib/guests/a=b/q.sock,server=on", "a=b"),
            ("--api-sock=/var/lib/guests/[a]/s", "[a]"),
        ] {
            assert_eq!(id(&["qemu", argument]), Id::Is(expected.to_owned()), "{argument}");
        }
        let odd = |bytes: &[u8]| id_below("/var/lib/guests", &[bytes.to_vec()]);
        assert_eq!(odd(b"\xff=/var/lib/guests/a/\xfe"), Id::Is("a".to_owned()));
        assert_eq!(odd("/var/lib/guests/\u{fffd}/x".as_bytes()), Id::Is("\u{fffd}".to_owned()));
        assert!(matches!(odd(b"/var/lib/guests/a\xff/x"), Id::Unsure(_)));
    }

    #[test]
    fn other_paths_carry_no_id() {
        for argument in [
            "/var/lib/guests",
            "/var/lib/guests/",
            "/var/lib/guests/.",
            "/var/lib/guests/../x",
            "/mnt/var/lib/guests/vm-1/x",
            "/var/lib/guests2/vm-1/x",
            "guests/vm-1/x",
            "vm-1",
        ] {
            assert_eq!(id(&["qemu", argument]), Id::Absent, "{argument}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_guessed_at() {
        for arguments in [
            &["/var/lib/guests/vm-1/x", "/var/lib/guests/vm-2/x"][..],
            &["/var/lib/guests/vm-1/../vm-2/x"],
            &["/var/lib/guests/vm,1/x"],
            &["/var/lib/guests/vm-1:rw"],
            &["exec /var/lib/guests/vm 1/x"],
            &["/var/lib/guests/vm-1:/mnt/x"],
            &["/var/lib/guests/vm-1 /mnt/x"],
            &["path=/var/lib/guests/vm-1 init=/sbin/init"],
            &["fat:rw:/var/lib/guests/vm-1:x/y"],
            &["/var/lib/guests/vm-1;x"],
            &["path=/var/lib/guests/vm 1"],
        ] {
            assert!(matches!(id(arguments), Id::Unsure(_)), "{arguments:?}: {:?}", id(arguments));
        }
    }

    #[test]
    fn runtimes_are_known_by_their_file_alone() {
        for (executables, file, known) in [
            (Executables::Qemu, "/usr/bin/qemu-system-x86_64", true),
            (Executables::Qemu, "/usr/bin/qemu-img", false),
            (Executables::Firecracker, "/opt/firecracker-v1.7.0-x86_64", true),
            (Executables::Firecracker, "/opt/firecracker-shim", false),
            (Executables::CloudHypervisor, "/usr/bin/cloud-hypervisor", true),
            (Executables::CloudHypervisor, "/usr/bin/sleep", false),
            (Executables::Files(vec!["/opt/x/shim".into()]), "/opt/x/shim", true),
            (Executables::Files(vec!["/opt/x/shim".into()]), "/opt/y/shim", false),
        ] {
            assert_eq!(executables.hold(Path::new(file)), known, "{file}");
        }
    }

    #[test]
    fn who_can_write_a_place_can_write_what_it_says() {
        let user = User { uid: 1000, gid: 1001 };
        for (uid, gid, mode, open) in [
            (0, 0, 0o755, false),
            (1000, 0, 0o700, true),
            (0, 1001, 0o750, false),
            (0, 1001, 0o770, true),
            (0, 0, 0o777, true),
            (0, 1001, 0o1777, false),
            (1000, 0, 0o1777, true),
        ] {
            assert_eq!(Place { uid, gid, mode }.is_open_to(user), open, "{uid} {gid} {mode:o}");
        }
    }

    #[test]
    fn ids_from_flags_and_variables_are_components() {
        let arguments: Vec<Vec<u8>> = ["x", "--id", "a", "--id=b"].map(|text| text.as_bytes().to_vec()).into();
        assert_eq!(behind_flag("--id", &arguments), [b"a", b"b"]);
        assert_eq!(one([b"a".as_slice(), b"a"].into_iter()), Id::Is("a".to_owned()));
        assert!(matches!(one([b"a".as_slice(), b"b"].into_iter()), Id::Unsure(_)));
        assert!(matches!(one([b"a/b".as_slice()].into_iter()), Id::Unsure(_)));
        assert_eq!(one([b"..".as_slice()].into_iter()), Id::Absent);
    }

    #[test]
    fn a_template_names_the_file_of_an_id() {
        let template = Template::parse("/var/lib/guests/{id}/metadata.json").expect("a template");
        assert_eq!(template.file("a"), "/var/lib/guests/a/metadata.json");
        assert_eq!(Template::parse("/x/{id}").map(|template| template.file("a")).as_deref(), Some("/x/a"));
        assert_eq!(Template::parse("/x/{id}.json"), None);
    }
}
