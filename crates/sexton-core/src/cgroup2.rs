//! Where cgroup2 is seen from here (`cgroups(7)`).

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Where cgroup2 is mounted in this mount namespace (`proc_pid_mountinfo(5)`), and can be seen: another mount may lie
/// over it. `None` where it is not.
///
/// # Errors
/// That could not be read.
pub(crate) fn find_mount() -> io::Result<Option<PathBuf>> {
    mount_among("/proc/self/mountinfo")
}

fn mount_among(mounts: &str) -> io::Result<Option<PathBuf>> {
    let text = fs::read(mounts)?;
    let mut unread = None;
    let found = text.split(|b| *b == b'\n').filter_map(cgroup2_at).find_map(|(point, device)| {
        match fs::metadata(&point) {
            Ok(about) => (device_name(about.dev()).as_bytes() == device).then_some(point),
            // Another mount lies over it, or its directory is not to be searched.
            Err(error) if is_hidden(&error) => None,
            Err(error) => {
                unread = Some(error);
                None
            }
        }
    });
    match (found, unread) {
        (None, Some(error)) => Err(error),
        (found, _) => Ok(found),
    }
}

/// Where a line of `/proc/PID/mountinfo` mounts a cgroup2, and its device.
fn cgroup2_at(line: &[u8]) -> Option<(PathBuf, &[u8])> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let is_cgroup2 = *fields.get(dash + 1)? == b"cgroup2";
    let point = PathBuf::from(std::ffi::OsStr::from_bytes(fields.get(4)?));
    is_cgroup2.then_some((point, *fields.get(2)?))
}

fn is_hidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied)
}

/// The id of the cgroup that `/proc/PID/cgroup` calls `path`: the inode of its directory. `None` for one that is removed,
/// that this process cannot see, or that cannot be looked for.
pub(crate) fn id_of_path(path: &str) -> Option<u64> {
    // Outside of the reader's own cgroup namespace a path begins with `/..` (`cgroup_namespaces(7)`).
    let below = path.strip_prefix('/').filter(|below| !below.starts_with(".."))?;
    Some(fs::metadata(find_mount().ok()??.join(below)).ok()?.ino())
}

/// A device as `proc_pid_mountinfo(5)` writes it, from `st_dev` (`makedev(3)`).
fn device_name(dev: u64) -> String {
    let major = ((dev >> 8) & 0xfff) | ((dev >> 32) & !0xfff);
    let minor = (dev & 0xff) | ((dev >> 12) & 0xffff_ff00);
    format!("{major}:{minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_mounts_that_cannot_be_read_is_not_one_without_cgroup2() {
        assert_eq!(mount_among("/dev/null").expect("nothing is mounted there"), None);
        // REGRESSION: a worker that had no descriptor for it at that moment went on as on a host without cgroup2.
        assert!(mount_among("/proc/self/none").is_err());
    }

    #[test]
    fn a_mount_that_cannot_be_looked_at_is_not_one_that_is_hidden() {
        let file = std::env::temp_dir().join(format!("sexton-test-{}-mounts", std::process::id()));
        let among = |mount_points: &[&str]| {
            let line = |point: &&str| format!("30 20 0:1 / {point} rw - cgroup2 cgroup2 rw\n");
            fs::write(&file, mount_points.iter().map(line).collect::<String>()).expect("written");
            mount_among(&file.to_string_lossy())
        };
        let long = format!("/{}", "x".repeat(300));
        assert_eq!(among(&["/proc/self/none"]).expect("it is hidden"), None);
        // REGRESSION: a worker went on as on a host without cgroup2.
        among(&["/proc/self/none", &long]).expect_err("the kernel looks up no name of that length");
        fs::remove_file(file).expect("removed");
    }
}
