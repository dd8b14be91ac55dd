//! Who a workload runs as, and the environment that goes with it.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use sexton_core::spawn::User;
use sexton_ledger::entry::Spec;

/// The `PATH` of a workload that names none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A user as `/etc/passwd` knows it, or as numbers alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Numbers.
    pub ids: User,
    /// Name and home directory, where the user is listed.
    pub account: Option<(String, String)>,
}

/// Why a user cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ResolveUserError {
    /// No line of `/etc/passwd` names it.
    #[error("user `{0}` is not in `/etc/passwd`")]
    Unknown(String),
    /// The file could not be read.
    #[error("could not read `{path}`")]
    Io {
        /// Which.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Finds `USER`, `UID` or `UID:GID` in `/etc/passwd` and `/etc/group` (`passwd(5)`, `group(5)`). Numbers need no
/// line there.
///
/// # Errors
/// A name that is not listed, or a file that could not be read.
pub fn resolve(text: &str) -> Result<Found, ResolveUserError> {
    let read = |path: &'static str| match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ResolveUserError::Io { path, source }),
    };
    find(text, &read("/etc/passwd")?, &read("/etc/group")?).ok_or_else(|| ResolveUserError::Unknown(text.to_owned()))
}

fn find(text: &str, passwd: &str, group: &str) -> Option<Found> {
    let (user, gid) = match text.split_once(':') {
        Some((user, gid)) => (user, Some(gid.parse::<u32>().ok()?)),
        None => (text, None),
    };
    let uid = user.parse::<u32>().ok();
    let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|line| match uid {
        Some(uid) => line.get(2).and_then(|field| field.parse().ok()) == Some(uid),
        None => line.first() == Some(&user),
    });
    let field = |at: usize| line.as_ref().and_then(|line| line.get(at)).copied();
    let uid = uid.or_else(|| field(2)?.parse().ok())?;
    let gid = gid.or_else(|| field(3)?.parse().ok()).unwrap_or(uid);
    let account = field(0).zip(field(5)).map(|(name, home)| (name.to_owned(), home.to_owned()));
    let mut groups = account.as_ref().map_or_else(Vec::new, |(name, _)| groups_of(name, group));
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    Some(Found { ids: User { uid, gid, groups }, account })
}

fn groups_of(user: &str, group: &str) -> Vec<u32> {
    let lists_user = |line: &&str| line.rsplit(':').next().is_some_and(|members| members.split(',').any(|m| m == user));
    group.lines().filter(lists_user).filter_map(|line| line.split(':').nth(2)?.parse().ok()).collect()
}

/// The whole environment of a workload: its own, over `PATH` and what its account says.
pub fn environment(spec: &Spec, user: Option<&Found>) -> Vec<(String, String)> {
    let mut env = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
    if let Some((name, home)) = user.and_then(|found| found.account.as_ref()) {
        for (key, value) in [("USER", name), ("LOGNAME", name), ("HOME", home)] {
            env.insert(key.to_owned(), value.clone());
        }
    }
    env.extend(spec.env.clone());
    env.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n";
    const GROUP: &str = "root:x:0:\nkvm:x:104:nobody,other\nnogroup:x:65534:\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let nobody = find("nobody", PASSWD, GROUP).expect("listed");
        assert_eq!((nobody.ids.uid, nobody.ids.gid, nobody.ids.groups.as_slice()), (65534, 65534, &[104, 65534][..]));
        assert_eq!(find("65534", PASSWD, GROUP), Some(nobody));
        let free = find("4000:4001", PASSWD, GROUP).expect("numbers need no line");
        assert_eq!((free.ids.uid, free.ids.gid, free.account), (4000, 4001, None));
        assert_eq!(find("nosuch", PASSWD, GROUP), None);
        assert_eq!(find("nobody:x", PASSWD, GROUP), None);
    }
}
