//! Building a kernel module for the small guest, with Debian's headers and the host's compiler.
//!
//! The header packages of exactly the guest's kernel are unpacked into the cache; nothing is
//! installed. Kbuild itself (Linux, Documentation/kbuild/modules.rst) does the rest, in a copy of the
//! sources, so that their folder stays as it is.

use crate::cache::{Cache, Guard};
use crate::debian::{Apt, Package};
use crate::{Flavour, GuestError, Notice, SmallGuest, tool};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the modules whose sources and `Kbuild` or `Makefile` are in the folder `sources`, for the
/// cached small guest's kernel, and puts their `.ko` files, with debug information, into the folder
/// `out`. Returns where they are.
///
/// # Errors
/// When a tool or package is missing, or with the compiler's complaint.
pub fn build_module(
    cache: &Cache,
    flavour: Flavour,
    sources: &Path,
    out: &Path,
    notice: Notice,
) -> Result<Vec<PathBuf>, GuestError> {
    for (program, package) in [("make", "make"), ("gcc", "gcc"), ("ld", "binutils")] {
        if !tool::exists(program) {
            return Err(GuestError::NoTool { tool: program.to_owned(), package });
        }
    }
    let sources = fs::canonicalize(sources).map_err(GuestError::at(sources))?;
    if !["Kbuild", "Makefile"].iter().any(|name| sources.join(name).is_file()) {
        let why = "it has neither Kbuild nor Makefile, which say what to build (obj-m := NAME.o)";
        return Err(GuestError::Usage(format!("{}: {why}", sources.display())));
    }
    let headers = headers(cache, flavour, notice)?;
    let scratch = tempfile::tempdir().map_err(GuestError::at(std::env::temp_dir()))?;
    // Canonical, because the compiler is told to write another path in place of this one.
    let copy = fs::canonicalize(scratch.path()).map_err(GuestError::at(scratch.path()))?.join("module");
    copy_folder(&sources, &copy)?;
    notice("building the module");
    let map = format!("KCFLAGS=-fdebug-prefix-map={}={}", copy.display(), sources.display());
    let mut command = Command::new("make");
    command.arg("-s").arg("-C").arg(&headers).arg(format!("M={}", copy.display()));
    command.args(["CC=gcc", "HOSTCC=gcc", &map, "modules"]);
    // What a surrounding make or build says is not for this one.
    ["MAKEFLAGS", "MFLAGS", "KCFLAGS", "ARCH", "CROSS_COMPILE"].iter().for_each(|name| {
        command.env_remove(name);
    });
    tool::run(&mut command, "building the module", || GuestError::NoTool {
        tool: "make".into(),
        package: "make",
    })?;
    let mut built = Vec::new();
    for entry in fs::read_dir(&copy).map_err(GuestError::at(&copy))?.flatten() {
        if entry.path().extension().is_some_and(|end| end == "ko") {
            let to = out.join(entry.file_name());
            fs::copy(entry.path(), &to).map_err(GuestError::at(&to))?;
            built.push(to);
        }
    }
    built.sort();
    if built.is_empty() {
        return Err(GuestError::Usage(format!("{}: nothing was built; is obj-m set?", sources.display())));
    }
    Ok(built)
}

/// The folder to build modules in for the cached guest's kernel, fetched if it is not there.
///
/// Debian's archive keeps signed kernels for longer than their headers. When those of the cached guest
/// are gone, the newest guest takes its place, as after `hindsight guest fetch`.
fn headers(cache: &Cache, flavour: Flavour, notice: Notice) -> Result<PathBuf, GuestError> {
    let kernel = kernel_package(&SmallGuest::obtain(cache, flavour, notice)?)?;
    if let Some(folder) = cached_headers(cache, &kernel) {
        return Ok(folder);
    }
    let guard = cache.lock()?;
    match fetch(&Apt::of_host()?, cache, &guard, &kernel, notice) {
        Err(error) if error.may_be_of_old_lists() => {}
        fetched => return fetched,
    }
    let lists = guard.scratch("apt")?;
    let fresh = Apt::with_fresh_lists(&lists.folder("state")?, notice)?;
    let gone = match fetch(&fresh, cache, &guard, &kernel, notice) {
        Err(error) if error.may_be_of_old_lists() => error,
        fetched => return fetched,
    };
    let newest = kernel_package(&SmallGuest::build_with(&fresh, cache, &guard, flavour, notice)?)?;
    if newest == kernel {
        return Err(gone);
    }
    notice(&format!("guests run {} from now on, since {} has no headers any more", newest.name, kernel.name));
    fetch(&fresh, cache, &guard, &newest, notice)
}

/// The cache's entry for the headers of a kernel.
fn entry_name(kernel: &Package) -> String {
    format!("{}_{}", headers_name(&kernel.name), kernel.version)
}

fn cached_headers(cache: &Cache, kernel: &Package) -> Option<PathBuf> {
    let entry = cache.path(&entry_name(kernel));
    entry.is_dir().then(|| entry.join("usr/src").join(headers_name(&kernel.name)))
}

fn headers_name(image: &str) -> String {
    image.replacen("linux-image-", "linux-headers-", 1)
}

/// The package that a cached guest's kernel came from, which its folder is named after.
fn kernel_package(guest: &SmallGuest) -> Result<Package, GuestError> {
    let folder = guest.kernel.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let parsed =
        folder.split_once('_').and_then(|(name, rest)| Some((name, rest.split_once("+busybox_")?.0)));
    let (name, version) = parsed.ok_or_else(|| GuestError::Odd {
        package: folder.clone().into_owned(),
        what: "kernel package in its name".into(),
    })?;
    Ok(Package { name: name.to_owned(), version: version.to_owned() })
}

/// Returns the folder of a kernel's headers, and fetches them unless another process has by now.
fn fetch(
    apt: &Apt,
    cache: &Cache,
    guard: &Guard,
    kernel: &Package,
    notice: Notice,
) -> Result<PathBuf, GuestError> {
    if let Some(folder) = cached_headers(cache, kernel) {
        return Ok(folder);
    }
    let odd = |what: &str| GuestError::Odd { package: kernel.name.clone(), what: what.to_owned() };
    let release = kernel.name.strip_prefix("linux-image-").ok_or_else(|| odd("kernel version"))?;
    // 6.1.0-56-cloud-amd64: version, ABI number, flavour.
    let mut parts = release.split('-');
    let (version, abi) = parts.next().zip(parts.next()).ok_or_else(|| odd("kernel version"))?;
    let series: Vec<&str> = version.split('.').take(2).collect();
    let common = format!("linux-headers-{version}-{abi}-common");
    let same = |name: String| Package { name, version: kernel.version.clone() };
    let (kbuild, _) = apt.newest(&format!("linux-kbuild-{}", series.join(".")))?;
    let scratch = guard.scratch("headers")?;
    let (fetched, built) = (scratch.folder("fetched")?, scratch.folder("built")?);
    for package in [same(headers_name(&kernel.name)), same(common.clone()), kbuild] {
        notice(&format!("fetching {} {}", package.name, package.version));
        apt.unpack(&package, &fetched, &built)?;
    }
    // The one absolute path in it.
    let makefile = built.join("usr/src").join(headers_name(&kernel.name)).join("Makefile");
    let include = format!("include $(dir $(lastword $(MAKEFILE_LIST)))../{common}/Makefile\n");
    fs::write(&makefile, include).map_err(GuestError::at(&makefile))?;
    let entry = guard.publish(&built, &entry_name(kernel))?;
    Ok(entry.join("usr/src").join(headers_name(&kernel.name)))
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), GuestError> {
    fs::create_dir_all(to).map_err(GuestError::at(to))?;
    for entry in fs::read_dir(from).map_err(GuestError::at(from))? {
        let entry = entry.map_err(GuestError::at(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_folder(&source, &target)?;
        } else {
            fs::copy(&source, &target).map_err(GuestError::at(&source))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_package_is_known_by_the_cache_folder() {
        let guest = |folder: &str| SmallGuest {
            kernel: PathBuf::from(format!("/c/{folder}/vmlinuz")),
            initrd: PathBuf::from(format!("/c/{folder}/initrd")),
        };
        let package =
            kernel_package(&guest("linux-image-6.1.0-5-cloud-amd64_6.1.9-2+deb12u1+busybox_1-1.35+6a"))
                .unwrap();
        assert_eq!(package.name, "linux-image-6.1.0-5-cloud-amd64");
        assert_eq!(package.version, "6.1.9-2+deb12u1");
        assert!(kernel_package(&guest("mine")).is_err());
    }
}
