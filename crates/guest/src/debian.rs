//! Packages from Debian, by the host's own apt and without root.
//!
//! apt verifies signatures and knows the host's mirrors and proxies, so it does the fetching. It
//! is asked with the host's package lists first; when these are missing or too old, lists are
//! fetched into our own cache folder, and the host's stay as they are.

use crate::{GuestError, Notice, tool};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flavour {
    /// `linux-image-cloud-amd64`: for virtual machines, small.
    Cloud,
    /// `linux-image-amd64`: for all hardware, most drivers as modules.
    Generic,
}

impl Flavour {
    /// The package that depends on the newest kernel of the flavour.
    pub fn package(self) -> &'static str {
        match self {
            Flavour::Cloud => "linux-image-cloud-amd64",
            Flavour::Generic => "linux-image-amd64",
        }
    }

    /// A short name for people and file names.
    pub fn name(self) -> &'static str {
        match self {
            Flavour::Cloud => "cloud",
            Flavour::Generic => "generic",
        }
    }
}

/// A package in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its full version.
    pub version: String,
}

/// apt, with the host's lists or with our own.
#[derive(Debug)]
pub struct Apt {
    own_state: Option<PathBuf>,
}

impl Apt {
    /// Uses the lists that the host has.
    pub fn of_host() -> Result<Self, GuestError> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            if !tool::exists(tool) {
                return Err(GuestError::NoApt { tool });
            }
        }
        Ok(Self { own_state: None })
    }

    /// Fetches fresh lists into `folder`, from the host's sources, and uses those.
    pub fn with_fresh_lists(folder: &Path, notice: Notice) -> Result<Self, GuestError> {
        notice("fetching package lists");
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(GuestError::at(&path))?;
        }
        let apt = Self { own_state: Some(folder.to_path_buf()) };
        // An update that misses one of several sources still ends well; only nothing at all fails.
        let update = apt.run("apt-get", &["update", "-q"], None, "apt-get update");
        let fetched = fs::read_dir(folder.join("lists")).is_ok_and(|entries| {
            entries.flatten().any(|e| e.file_name().to_string_lossy().contains("Packages"))
        });
        match update {
            Err(error) if !fetched => Err(error),
            _ => Ok(apt),
        }
    }

    fn run(
        &self,
        program: &str,
        words: &[&str],
        folder: Option<&Path>,
        what: &str,
    ) -> Result<Vec<u8>, GuestError> {
        let mut command = Command::new(program);
        command.args(["-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20"]);
        // As root, apt would fetch as another user, who cannot write to our folder.
        command.args(["-o", "APT::Sandbox::User="]);
        if let Some(state) = &self.own_state {
            for (option, part) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
                command.arg("-o").arg(format!("{option}={}", state.join(part).display()));
            }
        }
        if let Some(folder) = folder {
            command.current_dir(folder);
        }
        tool::run(command.args(words), what, || GuestError::NoApt { tool: "apt" })
    }

    /// The newest version of a package that the lists have, with the names it depends on.
    pub fn newest(&self, name: &str) -> Result<(Package, Vec<Package>), GuestError> {
        let unknown = || GuestError::NoPackage { package: name.to_owned() };
        let words = ["show", "--no-all-versions", name];
        let text = self.run("apt-cache", &words, None, "apt-cache show").map_err(|_| unknown())?;
        parse_record(&String::from_utf8_lossy(&text)).ok_or_else(unknown)
    }

    /// Fetches a package into `folder` and unpacks it into `target`.
    pub fn unpack(&self, package: &Package, folder: &Path, target: &Path) -> Result<(), GuestError> {
        let exact = format!("{}={}", package.name, package.version);
        let what = format!("fetching {exact}");
        self.run("apt-get", &["download", "-q", &exact], Some(folder), &what)?;
        let prefix = format!("{}_", package.name);
        let fetched =
            fs::read_dir(folder).map_err(GuestError::at(folder))?.flatten().map(|entry| entry.path());
        let mut fetched = fetched.filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(".deb")
        });
        let odd = || GuestError::Odd { package: exact.clone(), what: "archive".into() };
        let archive = fetched.next().ok_or_else(odd)?;
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(&archive).arg(target);
        tool::run(&mut command, &format!("unpacking {exact}"), || GuestError::NoApt { tool: "dpkg-deb" })?;
        fs::remove_file(&archive).map_err(GuestError::at(&archive))
    }
}

/// Reads name, version and dependencies from the first record of `apt-cache show`.
fn parse_record(text: &str) -> Option<(Package, Vec<Package>)> {
    let field = |name: &str| {
        let mut record = text.lines().take_while(|line| !line.is_empty());
        record.find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    let package = Package { name: field("Package")?, version: field("Version")? };
    let depends = field("Depends").unwrap_or_default();
    let depends = depends.split(", ").filter_map(|item| {
        let (name, rest) = item.split_once(" (= ")?;
        Some(Package { name: name.to_owned(), version: rest.strip_suffix(')')?.to_owned() })
    });
    Some((package, depends.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_behind_the_metapackage_is_found_with_its_version() {
        let text = "Package: linux-image-cloud-amd64\nVersion: 6.1.9-2\nDepends: linux-image-6.1.0-5-cloud-amd64 \
                    (= 6.1.9-2), other\nDescription: x\n\nPackage: older\nVersion: 1\n";
        let (package, depends) = parse_record(text).unwrap();
        assert_eq!(package.version, "6.1.9-2");
        let kernel = Package { name: "linux-image-6.1.0-5-cloud-amd64".into(), version: "6.1.9-2".into() };
        assert_eq!(depends, [kernel]);
        assert!(parse_record("").is_none());
        assert!(parse_record("Package: virtual\n\nVersion: 1\n").is_none());
    }
}
