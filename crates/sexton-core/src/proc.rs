//! `/proc` as text: the only place that parses it.
//!
//! Everything here is by number, so it tells about *whatever process has that number now*: a caller that cares holds
//! a pidfd and asks it again afterwards. "Could not read" is an error, never "is gone".

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sexton_plan::id::{BootId, Pid};
use sexton_plan::identity::TICK_NANOS;
use sexton_plan::state::ExitStatus;

/// What `/proc/PID/stat` tells (`proc_pid_stat(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name, at most 15 bytes, as the process itself set it: a hint for human eyes, never evidence.
    pub comm: Vec<u8>,
    /// The main thread's state letter; `Z` is not "dead" while other threads run.
    pub state: char,
    /// Kernel flags (`PF_*`).
    pub flags: u64,
    /// Its parent, 0 where that lies outside the reader's PID namespace.
    pub ppid: i32,
    /// Threads, the main one included.
    pub threads: u64,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
    /// Resident memory, in pages.
    pub rss_pages: u64,
    /// CPU used, user and system, in clock ticks.
    pub cpu_ticks: u64,
    /// The status of a zombie; 0 for the living, and for readers without the right to know.
    pub wait_word: i32,
}

/// Why `/proc` told nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadProcError {
    /// No process of that number.
    #[error("process {0} does not exist")]
    Gone(Pid),
    /// It could not be read: it may exist.
    #[error("could not read `{path}`")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It reads like nothing that `proc_pid_stat(5)` describes.
    #[error("`{path}` is not as the manual has it")]
    Malformed {
        /// The file.
        path: String,
    },
}

/// The process ended while its file was open.
const ESRCH: i32 = 3;

/// Reads `/proc/PID/FILE` whole.
fn read(pid: Pid, file: &str) -> Result<Vec<u8>, ReadProcError> {
    let path = format!("/proc/{pid}/{file}");
    read_at_once(&path).map_err(|source| gone_or_unreadable(pid, path, source))
}

/// Reads a file that tells no size, by one read where it is of the usual length: [`fs::read`] feels its way, by five.
fn read_at_once(path: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(1024);
    fs::File::open(path)?.read_to_end(&mut text)?;
    Ok(text)
}

/// A process without its directory is gone, unless `/proc` itself is, or hides it.
fn gone_or_unreadable(pid: Pid, path: String, source: io::Error) -> ReadProcError {
    let missing = source.kind() == io::ErrorKind::NotFound && fs::metadata("/proc/self").is_ok() && !is_hidden(pid);
    if missing || source.raw_os_error() == Some(ESRCH) {
        return ReadProcError::Gone(pid);
    }
    ReadProcError::Unreadable { path, source }
}

/// Whether the kernel has a process of that number which `/proc` does not show: `hidepid`. Where another is born under
/// the number meanwhile that is said too, which is the safe side.
fn is_hidden(pid: Pid) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_err() && sexton_sys::pidfd::open(pid.as_raw()).is_ok()
}

/// Reads and parses `/proc/PID/stat`.
///
/// # Errors
/// Gone, unreadable, or not as the manual has it.
pub fn stat(pid: Pid) -> Result<Stat, ReadProcError> {
    let text = read(pid, "stat")?;
    parse_stat(&text).ok_or_else(|| ReadProcError::Malformed { path: format!("/proc/{pid}/stat") })
}

/// The start tick of a process that was made between these two moments of `CLOCK_BOOTTIME`; `None` where it may be one
/// of two. The kernel reads that clock as it makes a process, and `/proc` shows it in clock ticks
/// (`proc_pid_stat(5)`, field 22).
pub(crate) fn tick_between(before: Duration, after: Duration) -> Option<u64> {
    const TICK: u128 = TICK_NANOS as u128;
    // The clock is one, but not every way of reading it rounds alike.
    const ROUNDING: Duration = Duration::from_micros(1);
    let tick = |at: Duration| u64::try_from(at.as_nanos() / TICK).ok();
    let first = tick(before.saturating_sub(ROUNDING))?;
    (tick(after.saturating_add(ROUNDING))? == first).then_some(first)
}

/// The inode of the network namespace that `pid` is in (`namespaces(7)`).
///
/// # Errors
/// Gone, which one that has ended and is not reaped is here too, or unreadable, as without `CAP_SYS_PTRACE`.
pub fn network_namespace(pid: Pid) -> Result<u64, ReadProcError> {
    let path = format!("/proc/{pid}/ns/net");
    match fs::metadata(&path) {
        Ok(about) => Ok(about.ino()),
        Err(source) => Err(gone_or_unreadable(pid, path, source)),
    }
}

/// The start tick of PID 1, with which this PID namespace began; `None` where it cannot be read.
pub fn namespace_start_ticks() -> Option<u64> {
    Some(parse_stat(&read_at_once("/proc/1/stat").ok()?)?.start_ticks)
}

/// Parses the text of `/proc/PID/stat`. The name may hold spaces, parentheses and newlines, so fields are counted
/// from the last `)`.
pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|b| *b == b'(')?;
    let close = text.iter().rposition(|b| *b == b')')?;
    let comm = text.get(open + 1..close)?.to_vec();
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    // Field 3 (state) is the first behind the name.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |at: usize| field(at)?.parse::<u64>().ok();
    Some(Stat {
        comm,
        state: field(3)?.chars().next()?,
        flags: number(9)?,
        ppid: field(4)?.parse().ok()?,
        threads: number(20)?,
        start_ticks: number(22)?,
        rss_pages: number(24)?,
        cpu_ticks: number(14)?.saturating_add(number(15)?),
        wait_word: field(52)?.parse().ok()?,
    })
}

impl Stat {
    /// Whether the kernel itself runs it (`PF_KTHREAD`).
    pub fn is_kernel_thread(&self) -> bool {
        const PF_KTHREAD: u64 = 0x20_0000;
        self.flags & PF_KTHREAD != 0
    }

    /// Whether its main thread is ending, or has ended (`PF_EXITING`): it has no executable file any more.
    pub fn is_exiting(&self) -> bool {
        const PF_EXITING: u64 = 0x4;
        self.flags & PF_EXITING != 0
    }

    /// Whether the whole of it has ended and is not reaped: a main thread may end before the others.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

/// How the zombie `pid`, which `stat` is of, ended; `None` for what is none, and where the reader may not know. To who
/// has no right to trace it the kernel shows 0 instead (`proc_pid_stat(5)`, `PTRACE_MODE_READ_FSCREDS`): root too has
/// none over another user's, or one in another user namespace, without `CAP_SYS_PTRACE` there.
pub fn zombie_status(pid: Pid, stat: &Stat) -> Option<ExitStatus> {
    let is_told = || stat.wait_word != 0 || may_trace_zombie(pid);
    if stat.is_zombie() && is_told() { ExitStatus::from_wait_word(stat.wait_word) } else { None }
}

/// Whether the kernel tells the caller what it tells those alone who may trace the zombie `pid`. The link to the program
/// asks for the same right, and only then finds that a zombie has none.
fn may_trace_zombie(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The kernel function that a process waits in (`/proc/PID/wchan`); empty where the kernel does not say.
pub fn wchan(pid: Pid) -> String {
    let text = read(pid, "wchan").unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    if text == "0" { String::new() } else { text }
}

/// The path of a process's cgroup2, beginning with `/` (`/proc/PID/cgroup`, the line `0::`).
///
/// # Errors
/// Gone, unreadable, or without a cgroup2 line.
pub fn cgroup_path(pid: Pid) -> Result<String, ReadProcError> {
    let text = read(pid, "cgroup")?;
    parse_cgroup(&text).ok_or_else(|| ReadProcError::Malformed { path: format!("/proc/{pid}/cgroup") })
}

/// The paths of the cgroups2 that its threads are in, one for each that can be read.
pub(crate) fn cgroup_paths_of_threads(pid: Pid) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    tasks.filter_map(|task| parse_cgroup(&fs::read(task.path().join("cgroup")).ok()?)).collect()
}

/// The path of a process's cgroup in the v1 hierarchy of `controller`, likewise.
///
/// # Errors
/// Gone, unreadable, or in no such hierarchy.
pub fn cgroup_v1_path(pid: Pid, controller: &str) -> Result<String, ReadProcError> {
    let text = read(pid, "cgroup")?;
    parse_cgroup_v1(&text, controller).ok_or_else(|| ReadProcError::Malformed { path: format!("/proc/{pid}/cgroup") })
}

/// The path in the v1 hierarchy of `controller` in the text of `/proc/PID/cgroup`.
fn parse_cgroup_v1(text: &[u8], controller: &str) -> Option<String> {
    String::from_utf8_lossy(text).lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then(|| path.to_owned())
    })
}

/// The cgroup2 path in the text of `/proc/PID/cgroup`.
pub fn parse_cgroup(text: &[u8]) -> Option<String> {
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    Some(String::from_utf8_lossy(line).into_owned())
}

/// Children of a process, of all its threads (`/proc/PID/task/*/children`); can miss one that is just exiting.
///
/// # Errors
/// Gone, or unreadable, as on a kernel without that file.
pub fn children(pid: Pid) -> Result<Vec<Pid>, ReadProcError> {
    children_of(pid.as_raw()).map_err(|(path, source)| {
        // The file is missing on some kernels; the process is gone only if its whole directory is.
        if fs::metadata(format!("/proc/{pid}")).is_err() {
            return gone_or_unreadable(pid, path, source);
        }
        ReadProcError::Unreadable { path, source }
    })
}

/// Children of PID 1, which is always there.
///
/// # Errors
/// Unreadable, as on a kernel without that file, or under `hidepid`.
pub fn children_of_init() -> Result<Vec<Pid>, ReadProcError> {
    children_of(1).map_err(|(path, source)| ReadProcError::Unreadable { path, source })
}

fn children_of(parent: i32) -> Result<Vec<Pid>, (String, io::Error)> {
    let path = format!("/proc/{parent}/task");
    let unreadable = |source| (path.clone(), source);
    let tasks = fs::read_dir(&path).map_err(unreadable)?;
    let mut found = Vec::new();
    for task in tasks {
        let task = task.map_err(unreadable)?.path().join("children");
        match fs::read_to_string(&task) {
            Ok(text) => found.extend(text.split_ascii_whitespace().filter_map(|pid| Pid::new(pid.parse().ok()?))),
            // A thread may end between the listing and the reading.
            Err(error) if error.kind() == io::ErrorKind::NotFound && task.parent().is_some_and(|t| !t.exists()) => {}
            Err(source) => return Err((task.display().to_string(), source)),
        }
    }
    Ok(found)
}

/// Those children of the calling process that may be orphans.
///
/// The kernel hands an orphan to the first thread of its new parent that is not exiting, which is the main one, and
/// leaves a child with the thread that started it: what hangs on another thread was started by this program. That
/// cannot be told where the main thread has ended, or the kernel lists no children by thread.
///
/// # Errors
/// `/proc` is unreadable.
pub fn own_children() -> Result<Vec<Pid>, ReadProcError> {
    let me = std::process::id();
    let task = format!("/proc/self/task/{me}");
    let read = |file: String| read_at_once(&file).map_err(|source| ReadProcError::Unreadable { path: file, source });
    let main = read(format!("{task}/stat"))?;
    let main_has_ended = parse_stat(&main).is_none_or(|stat| matches!(stat.state, 'Z' | 'X'));
    if main_has_ended {
        return children_by_scan(me);
    }
    match read(format!("{task}/children")) {
        Ok(text) => Ok(parse_children(&text)),
        Err(ReadProcError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            children_by_scan(me)
        }
        Err(error) => Err(error),
    }
}

/// The PIDs in the text of a `children` file.
fn parse_children(text: &[u8]) -> Vec<Pid> {
    let words = text.split(|b| b.is_ascii_whitespace());
    words.filter_map(|word| Pid::new(std::str::from_utf8(word).ok()?.parse().ok()?)).collect()
}

/// Every process whose parent is `parent`, by reading all of `/proc`.
fn children_by_scan(parent: u32) -> Result<Vec<Pid>, ReadProcError> {
    let unreadable = |source| ReadProcError::Unreadable { path: "/proc".to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let pid = name.to_str().and_then(|name| Pid::new(name.parse().ok()?));
        // What cannot be read is left alone, which is the safe side.
        let stat = pid.and_then(|pid| Some((pid, stat(pid).ok()?)));
        found.extend(stat.filter(|(_, stat)| u32::try_from(stat.ppid) == Ok(parent)).map(|(pid, _)| pid));
    }
    Ok(found)
}

/// Whether `/proc` shows the processes of this PID namespace to the caller; else why not.
///
/// # Errors
/// It is not mounted, belongs to another PID namespace, or hides other users' processes (`hidepid`).
pub fn usable() -> Result<(), ReadProcError> {
    let unreadable = |path: &str, source| ReadProcError::Unreadable { path: path.to_owned(), source };
    let me = fs::read_link("/proc/self").map_err(|source| unreadable("/proc/self", source))?;
    if me.as_os_str() != std::process::id().to_string().as_str() {
        return Err(unreadable("/proc/self", io::Error::other("it belongs to another PID namespace")));
    }
    // A PID namespace always has its first process, and anybody may read this of it, unless `hidepid` hides it.
    fs::read("/proc/1/stat").map_err(|source| unreadable("/proc/1/stat", source))?;
    Ok(())
}

/// Every process that `/proc` lists.
///
/// # Errors
/// `/proc` could not be listed.
pub fn all() -> Result<Vec<Pid>, ReadProcError> {
    let unreadable = |source| ReadProcError::Unreadable { path: "/proc".to_owned(), source };
    let names = fs::read_dir("/proc").map_err(unreadable)?;
    let pid = |entry: fs::DirEntry| Pid::new(entry.file_name().to_str()?.parse().ok()?);
    names.filter_map(|entry| entry.map(pid).transpose()).map(|entry| entry.map_err(unreadable)).collect()
}

/// The file that a process executes, as the kernel names it; of one that was deleted or replaced since, the place
/// where it lay. A process that has a root or mounts of its own has files of the same names: see [`executes`].
///
/// # Errors
/// Gone, or a zombie; unreadable.
pub fn executable(pid: Pid) -> Result<PathBuf, ReadProcError> {
    let path = format!("/proc/{pid}/exe");
    let file = fs::read_link(&path).map_err(|source| gone_or_unreadable(pid, path.clone(), source))?;
    let Some(place) = file.as_os_str().as_bytes().strip_suffix(b" (deleted)") else { return Ok(file) };
    // A file may bear such a name itself.
    let about = fs::metadata(&path).map_err(|source| gone_or_unreadable(pid, path.clone(), source))?;
    Ok(if about.nlink() == 0 { PathBuf::from(OsStr::from_bytes(place)) } else { file })
}

/// The file that a process executes of which nothing but that can be read: its main thread has ended, and others live on.
/// `None` for any other, and for the dead.
pub fn executable_of_others(pid: Pid) -> Option<PathBuf> {
    let stat = stat(pid).ok()?;
    if stat.state != 'Z' || stat.threads <= 1 {
        return None;
    }
    let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks.find_map(|task| fs::read_link(task.ok()?.path().join("exe")).ok())
}

/// Whether what a process executes is the file that is named `file` here; of one that was deleted since, whether the
/// process has our root.
///
/// # Errors
/// Gone, or a zombie; unreadable.
pub fn executes(pid: Pid, file: &Path) -> Result<bool, ReadProcError> {
    let look = |link: &str| {
        let path = format!("/proc/{pid}/{link}");
        fs::metadata(&path).map_err(|source| gone_or_unreadable(pid, path.clone(), source))
    };
    let executed = look("exe")?;
    let (theirs, ours) =
        if executed.nlink() == 0 { (look("root")?, fs::metadata("/")) } else { (executed, fs::metadata(file)) };
    match ours {
        Ok(ours) => Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ReadProcError::Unreadable { path: file.display().to_string(), source }),
    }
}

/// Whether the process holds a directory with a file named `inside` locked against everybody else (`flock(2)`).
///
/// # Errors
/// Gone, or its descriptors may not be read.
pub fn has_locked_directory_with(pid: Pid, inside: &str) -> Result<bool, ReadProcError> {
    let path = format!("/proc/{pid}/fdinfo");
    let unreadable = |source| gone_or_unreadable(pid, path.clone(), source);
    for info in fs::read_dir(&path).map_err(unreadable)? {
        let info = info.map_err(unreadable)?;
        let text = match fs::read_to_string(info.path()) {
            Ok(text) => text,
            // Closed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(unreadable(source)),
        };
        // What lies in it is looked for last: some file systems answer late, or never.
        if text.lines().any(is_exclusive_lock)
            && Path::new("/proc").join(pid.to_string()).join("fd").join(info.file_name()).join(inside).exists()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `lock: 1: FLOCK  ADVISORY  WRITE 2492 fe:00:10387478 0 EOF` (`proc_pid_fdinfo(5)`).
fn is_exclusive_lock(line: &str) -> bool {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    matches!(words.as_slice(), ["lock:", _, "FLOCK", _, "WRITE", ..])
}

/// On whose behalf a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its real user id, which only root can choose. The owner of its directory in `/proc` is another where the process
    /// is not dumpable, which is its own to choose.
    pub uid: u32,
    /// Its real group id.
    pub gid: u32,
}

/// Reads on whose behalf a process runs (`/proc/PID/status`).
///
/// # Errors
/// Gone, unreadable, or not as the manual has it.
pub fn user(pid: Pid) -> Result<User, ReadProcError> {
    parse_user(&read(pid, "status")?).ok_or_else(|| ReadProcError::Malformed { path: format!("/proc/{pid}/status") })
}

fn parse_user(status: &[u8]) -> Option<User> {
    Some(User { uid: first_of(status, b"Uid:")?, gid: first_of(status, b"Gid:")? })
}

/// The process that a thread is of (`/proc/TID/status`).
///
/// # Errors
/// Gone, unreadable, or not as the manual has it.
pub(crate) fn process_of(thread: Pid) -> Result<Pid, ReadProcError> {
    let found = first_of(&read(thread, "status")?, b"Tgid:").and_then(Pid::new);
    found.ok_or_else(|| ReadProcError::Malformed { path: format!("/proc/{thread}/status") })
}

/// The first word of the line `key` of a `status` file.
fn first_of<T: std::str::FromStr>(status: &[u8], key: &[u8]) -> Option<T> {
    // The name comes first and is escaped, so no line of it can pass for another.
    let line = status.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(key))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

/// Whether somebody with the right to has given a process a root of its own: it has one, and not by way of a user
/// namespace, in which everybody is root.
///
/// # Errors
/// Gone, or unreadable.
pub fn is_jailed(pid: Pid) -> Result<bool, ReadProcError> {
    let differs = |link: &str, ours: &str| {
        let path = format!("/proc/{pid}/{link}");
        let theirs = fs::metadata(&path).map_err(|source| gone_or_unreadable(pid, path, source))?;
        let ours = fs::metadata(ours).map_err(|source| ReadProcError::Unreadable { path: ours.to_owned(), source })?;
        Ok((theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()))
    };
    Ok(differs("root", "/")? && !differs("ns/user", "/proc/self/ns/user")?)
}

/// The arguments; the process writes them itself.
///
/// # Errors
/// Gone, or unreadable.
pub fn arguments(pid: Pid) -> Result<Vec<Vec<u8>>, ReadProcError> {
    Ok(strings(&read(pid, "cmdline")?))
}

/// The environment that the process was started with; it can overwrite that.
///
/// # Errors
/// Gone, or unreadable.
pub fn environment(pid: Pid) -> Result<Vec<Vec<u8>>, ReadProcError> {
    Ok(strings(&read(pid, "environ")?))
}

fn strings(text: &[u8]) -> Vec<Vec<u8>> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() { Vec::new() } else { text.split(|b| *b == 0).map(<[u8]>::to_vec).collect() }
}

/// The command line as one text, arguments separated by spaces; the process writes it itself.
pub fn command_line(pid: Pid) -> Option<String> {
    let text = read(pid, "cmdline").ok()?;
    let words = text.split(|b| *b == 0).filter(|word| !word.is_empty());
    let line = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" ");
    (!line.is_empty()).then_some(line)
}

/// Boot and PID namespace of the calling process: where its identities mean something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// `/proc/sys/kernel/random/boot_id`, as mounted.
    pub boot_id: BootId,
    /// Inode of `/proc/self/ns/pid`.
    pub pid_ns: u64,
    /// By how many nanoseconds this time namespace counts the time since boot ahead of the host.
    pub boottime_offset: i64,
}

impl Here {
    /// Whether every process of the PID namespace `pid_ns` can be seen from here. A number that was another namespace's
    /// once is ours only when nobody was left in that one.
    pub fn sees(&self, pid_ns: u64) -> bool {
        /// The first PID namespace, which all others lie below (`PROC_PID_INIT_INO` of the kernel).
        const INITIAL: u64 = 0xEFFF_FFFC;
        self.pid_ns == pid_ns || self.pid_ns == INITIAL
    }
}

/// Reads boot id, PID namespace, and the clock of the time namespace.
///
/// # Errors
/// `/proc` is not mounted, or unreadable.
pub fn here() -> io::Result<Here> {
    use std::os::unix::fs::MetadataExt;
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot_id = text.trim_end().parse().map_err(io::Error::other)?;
    let boottime_offset = match fs::read_to_string("/proc/self/timens_offsets") {
        Ok(text) => parse_boottime_offset(&text).ok_or_else(|| io::Error::other("offsets of another form"))?,
        // KERNEL(5.6): before, all count alike.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(Here { boot_id, pid_ns: fs::metadata("/proc/self/ns/pid")?.ino(), boottime_offset })
}

/// The offset of `CLOCK_BOOTTIME` in the text of `/proc/PID/timens_offsets` (`time_namespaces(7)`), in nanoseconds.
fn parse_boottime_offset(text: &str) -> Option<i64> {
    let mut words = text.lines().find_map(|line| line.strip_prefix("boottime"))?.split_ascii_whitespace();
    let (seconds, nanos): (i64, i64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(comm: &str) -> String {
        let mut text = format!("77 ({comm}) S 1 77 77 0 -1 4194304 1 2 3 4 10 20 7 8 20 0 3 0 4242 99 55");
        for field in 25..52 {
            text.push_str(&format!(" {field}"));
        }
        text.push_str(" 256\n");
        text
    }

    #[test]
    fn a_process_runs_for_its_real_user_whatever_it_is_called() {
        let status = b"Name:\tUid:\\nUid:\t9\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t1001\t0\t0\t0\n";
        assert_eq!(parse_user(status), Some(User { uid: 1000, gid: 1001 }));
        let me = Pid::new(i32::try_from(std::process::id()).expect("fits")).expect("not init");
        assert_eq!(user(me).expect("readable").uid, fs::metadata("/proc/self").expect("there").uid());
        assert!(!is_jailed(me).expect("readable"));
    }

    #[test]
    fn a_zombie_is_in_no_network_namespace_any_more() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("runs");
        let pid = Pid::new(child.id().cast_signed()).expect("not init");
        let own = fs::metadata("/proc/self/ns/net").expect("there").ino();
        assert_eq!(network_namespace(pid).expect("readable"), own);
        child.kill().expect("killed");
        let pidfd = sexton_sys::pidfd::open(pid.as_raw()).expect("opened");
        let mut fds = [sexton_sys::poll::PollFd::new(pidfd.raw(), sexton_sys::poll::events::IN)];
        sexton_sys::poll::poll(&mut fds, None).expect("it ends");
        assert!(matches!(network_namespace(pid), Err(ReadProcError::Gone(_))));
        child.wait().expect("reaped");
    }

    #[test]
    fn a_name_may_hold_anything() {
        for comm in ["sh", "a b", "a) Z 1 (b", "new\nline", ")))", ""] {
            let stat = parse_stat(line(comm).as_bytes()).expect("parses");
            assert_eq!(stat.comm, comm.as_bytes());
            let told = (stat.state, stat.ppid, stat.threads, stat.start_ticks, stat.rss_pages, stat.cpu_ticks);
            assert_eq!(told, ('S', 1, 3, 4242, 55, 30), "{comm}");
            assert_eq!(stat.wait_word, 256);
        }
    }

    #[test]
    fn half_a_line_is_no_process() {
        let whole = line("sh");
        for cut in 0..whole.len() - 5 {
            assert_eq!(parse_stat(&whole.as_bytes()[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_living_process_has_no_exit_status() {
        let mut stat = parse_stat(line("sh").as_bytes()).expect("parses");
        let told = |stat: &Stat| zombie_status(Pid::new(2).expect("not init"), stat);
        assert_eq!(told(&stat), None);
        stat.state = 'Z';
        assert_eq!(told(&stat), None, "a zombie leader with live threads");
        stat.threads = 1;
        assert_eq!(told(&stat), Some(ExitStatus::Code(1)));
    }

    #[test]
    fn the_cgroup2_line_is_found_on_a_hybrid_host() {
        let text = b"9:name=systemd:/x\n4:memory:/y\n0::/sexton/vm-1\n";
        assert_eq!(parse_cgroup(text).as_deref(), Some("/sexton/vm-1"));
        assert_eq!(parse_cgroup(b"4:memory:/y\n"), None);
        assert_eq!(parse_cgroup_v1(text, "memory").as_deref(), Some("/y"));
        assert_eq!(parse_cgroup_v1(b"5:cpu,cpuacct:/a:b\n", "cpuacct").as_deref(), Some("/a:b"));
        assert_eq!(parse_cgroup_v1(text, "pids"), None);
    }

    #[test]
    fn the_offset_of_a_time_namespace_is_that_of_the_time_since_boot() {
        let offset = parse_boottime_offset;
        assert_eq!(offset("monotonic           5         0\nboottime           -7         3\n"), Some(-6_999_999_997));
        assert_eq!(offset("monotonic           5         0\n"), None);
    }

    #[test]
    fn a_tick_is_known_only_where_both_moments_are_in_it() {
        let micros = Duration::from_micros;
        assert_eq!(tick_between(micros(50_002), micros(59_998)), Some(5));
        assert_eq!(tick_between(micros(50_002), micros(60_002)), None);
        assert_eq!(
            tick_between(micros(50_002), micros(59_999) + Duration::from_nanos(1)),
            None,
            "too near to the next"
        );
        assert_eq!(tick_between(micros(50_000), micros(50_100)), None, "too near to the one before");
    }

    #[test]
    fn own_facts_are_readable() {
        let me = Pid::new(i32::try_from(std::process::id()).expect("fits")).expect("not init");
        assert!(stat(me).expect("readable").start_ticks > 0);
        assert!(here().expect("readable").pid_ns > 0);
    }
}
