//! Kernels of Debian's releases, older and newer than the host's own: downloaded and unpacked, never installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::step::run;

/// Releases with a kernel of interest. What a mirror does not have (any more) is told by `apt-get`, and passed over.
const SUITES: [&str; 5] = ["bullseye", "bookworm", "trixie", "trixie-backports", "sid"];

/// What Debian's releases are signed with, whatever keys the host trusts else.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that is unpacked.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// What is booted.
    pub image: PathBuf,
    /// Its modules, with the table of who needs whom.
    pub modules: PathBuf,
    /// A place for what belongs to a run of it.
    pub dir: PathBuf,
}

/// Debian's archive, seen by an `apt-get` of our own: the host's lists and packages are not touched.
#[derive(Debug)]
pub struct Archive {
    config: PathBuf,
}

impl Archive {
    /// Fetches the lists of the releases from the mirrors that the host has for its own.
    ///
    /// # Errors
    /// The host is no Debian.
    pub fn open(dir: &Path) -> Result<Archive> {
        for below in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(below))?;
        }
        fs::write(dir.join("sources.list"), sources()?)?;
        fs::write(dir.join("status"), "")?;
        let config = dir.join("apt.conf");
        let here = dir.display();
        let lines = [
            format!("Dir::State \"{here}\"; Dir::State::status \"{here}/status\"; Dir::Cache \"{here}/cache\";"),
            format!("Dir::Etc::sourcelist \"{here}/sources.list\"; Dir::Etc::sourceparts \"/dev/null\";"),
            // The directory is the developer's, where the user that apt would take may write nothing.
            "Dir::Etc::preferencesparts \"/dev/null\"; APT::Sandbox::User \"root\"; Acquire::Languages \"none\";"
                .to_owned(),
        ];
        fs::write(&config, lines.join("\n"))?;
        let archive = Archive { config };
        // A release that is missing is no reason to do without the others.
        run(archive.command("apt-get", &["update", "-qq"]))?;
        Ok(archive)
    }

    /// A busybox that needs nothing, below `dir`.
    ///
    /// # Errors
    /// It could not be downloaded.
    pub fn busybox(&self, dir: &Path) -> Result<PathBuf> {
        let to = dir.join("busybox");
        self.unpack("busybox-static", &to)?;
        ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|place| to.join(place))
            .find(|program| program.is_file())
            .context("`busybox-static` holds no busybox")
    }

    /// The newest kernel of the series `version`, below `dir`.
    ///
    /// # Errors
    /// There is none, or it could not be downloaded.
    pub fn kernel(&self, version: &str, dir: &Path, busybox: &Path) -> Result<Kernel> {
        let out = self.command("apt-cache", &["search", "--names-only", "^linux-image-[0-9].*-amd64$"]).output()?;
        let listed = String::from_utf8_lossy(&out.stdout).into_owned();
        let releases = listed.lines().filter_map(|line| line.split(' ').next()?.strip_prefix("linux-image-"));
        let newest = releases.filter(|release| is_of(release, version)).max_by_key(|release| numbers(release));
        let release = newest.with_context(|| format!("Debian has no Linux {version}; {}", series_in(&listed)))?;
        let to = dir.join(release);
        self.unpack(&format!("linux-image-{release}"), &to)?;
        // Since 6.17 that is an empty one, and what it needs is in two others.
        if image_in(&to, release).is_none() {
            self.unpack(&format!("linux-binary-{release}"), &to)?;
            self.unpack(&format!("linux-modules-{release}"), &to)?;
        }
        let image = image_in(&to, release).with_context(|| format!("`linux-image-{release}` holds no image"))?;
        if !to.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", to.join("lib"))?;
        }
        let modules = to.join("lib/modules").join(release);
        if !modules.join("modules.dep").exists() {
            let mut depmod = Command::new(busybox);
            depmod.arg("depmod").arg("-b").arg(&to).arg(release);
            ensure!(run(depmod)?, "depmod failed");
        }
        Ok(Kernel { release: release.to_owned(), image, modules, dir: to })
    }

    /// Downloads a package, once, and unpacks it into `to`.
    fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        let done = to.join(format!(".{package}"));
        if done.exists() {
            return Ok(());
        }
        let fresh = to.join(format!("{package}.new"));
        fs::create_dir_all(&fresh)?;
        let mut download = self.command("apt-get", &["download", "-qq", package]);
        download.current_dir(&fresh);
        ensure!(run(download)?, "`{package}` could not be downloaded");
        for file in fs::read_dir(&fresh)? {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(file?.path()).arg(to);
            ensure!(run(unpack)?, "`{package}` could not be unpacked");
        }
        fs::remove_dir_all(&fresh)?;
        Ok(fs::write(done, "")?)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env("APT_CONFIG", &self.config);
        command
    }
}

/// Lines for every release, from the mirrors of Debian and of its security updates that the host's own lists name.
fn sources() -> Result<String> {
    let of_packages = ["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"];
    let out = Command::new("apt-get").args(of_packages).output();
    let told = String::from_utf8_lossy(&out.context("apt-get: kernels come from Debian")?.stdout).into_owned();
    let mirrors: BTreeSet<&str> = told.lines().filter(|line| line.starts_with("Debian")).collect();
    if mirrors.is_empty() {
        bail!("the lists of this host name no mirror of Debian");
    }
    let mut lines = String::new();
    for (label, uri) in mirrors.iter().filter_map(|mirror| mirror.split_once(' ')) {
        let suffix = if label == "Debian-Security" { "-security" } else { "" };
        for suite in SUITES.iter().filter(|suite| suffix.is_empty() || !suite.contains('-') && **suite != "sid") {
            lines.push_str(&format!("deb [signed-by={KEYS}] {uri} {suite}{suffix} main\n"));
        }
    }
    Ok(lines)
}

/// The image, in either place where it may lie.
fn image_in(to: &Path, release: &str) -> Option<PathBuf> {
    let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    places.iter().map(|place| to.join(place)).find(|image| image.is_file())
}

/// Whether it is a plain kernel of the series: `6.12.1+deb13-amd64` of `6.12`, and not `6.12-amd64`, which names the newest,
/// nor one for clouds or of real time.
fn is_of(release: &str, version: &str) -> bool {
    let plain = !["cloud", "rt", "unsigned", "dbg"].iter().any(|word| release.split('-').any(|part| part == *word));
    let rest = release.strip_prefix(version).and_then(|rest| rest.strip_prefix('.'));
    plain && rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// What a release is ordered by.
fn numbers(release: &str) -> Vec<u32> {
    release.split(|letter: char| !letter.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

fn series_in(listed: &str) -> String {
    let series = |line: &str| {
        let [major, minor, _patch, ..] = numbers(line.split(' ').next()?)[..] else { return None };
        Some((major, minor))
    };
    let found: BTreeSet<(u32, u32)> = listed.lines().filter_map(series).collect();
    let names: Vec<String> = found.iter().map(|(major, minor)| format!("{major}.{minor}")).collect();
    format!("it has {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_plain_kernel_of_a_series_is_taken() {
        let listed = [
            "6.1-amd64",
            "6.1.0-9-amd64",
            "6.1.0-56-amd64",
            "6.1.0-0.deb11.99-amd64",
            "6.1.0-57-cloud-amd64",
            "6.1.0-57-rt-amd64",
            "6.12.117+deb12-amd64",
        ];
        let newest = |version: &str| {
            listed.iter().filter(|release| is_of(release, version)).max_by_key(|release| numbers(release)).copied()
        };
        assert_eq!(newest("6.1"), Some("6.1.0-56-amd64"));
        assert_eq!(newest("6.12"), Some("6.12.117+deb12-amd64"));
        assert_eq!(newest("6"), Some("6.12.117+deb12-amd64"));
        assert_eq!(newest("6.2"), None);
    }
}
