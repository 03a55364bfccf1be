//! The small guest: what runs when no kernel is given.

use crate::cache::{Cache, Guard, Scratch};
use crate::debian::{Apt, Package};
use crate::modules::ModuleTree;
use crate::{Flavour, GuestError, Notice, initramfs, tool};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of a small guest, in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmallGuest {
    /// Debian's bzImage.
    pub kernel: PathBuf,
    /// Our initramfs for it.
    pub initrd: PathBuf,
}

impl SmallGuest {
    /// The cached guest of this flavour, fetched and built if there is none.
    pub fn obtain(cache: &Cache, flavour: Flavour, notice: Notice) -> Result<Self, GuestError> {
        if let Some(found) = Self::cached(cache, flavour) {
            return Ok(found);
        }
        let guard = cache.lock()?;
        // Another process may have built it while this one waited for the lock.
        match Self::cached(cache, flavour) {
            Some(found) => Ok(found),
            None => Self::build(cache, &guard, flavour, notice),
        }
    }

    /// Fetches the newest versions, even if another guest is cached. Older guests stay in the cache,
    /// since recordings may refer to them.
    pub fn refresh(cache: &Cache, flavour: Flavour, notice: Notice) -> Result<Self, GuestError> {
        Self::build(cache, &cache.lock()?, flavour, notice)
    }

    fn cached(cache: &Cache, flavour: Flavour) -> Option<Self> {
        // The versioned folder, not its alias: an alias moves, and recordings keep paths.
        let folder = fs::canonicalize(cache.path(&alias(flavour))).ok()?;
        let guest = Self::in_folder(&folder);
        guest.is_whole().then_some(guest)
    }

    fn is_whole(&self) -> bool {
        self.kernel.is_file() && self.initrd.is_file()
    }

    fn in_folder(folder: &Path) -> Self {
        Self { kernel: folder.join("vmlinuz"), initrd: folder.join("initrd") }
    }

    fn build(cache: &Cache, guard: &Guard, flavour: Flavour, notice: Notice) -> Result<Self, GuestError> {
        match Self::build_with(&Apt::of_host()?, cache, guard, flavour, notice) {
            // The host's lists are missing, or name versions that the mirror no longer has.
            Err(error) if error.may_be_of_old_lists() => {
                let lists = guard.scratch("apt")?;
                let fresh = Apt::with_fresh_lists(&lists.folder("state")?, notice)?;
                Self::build_with(&fresh, cache, guard, flavour, notice)
            }
            built => built,
        }
    }

    /// Makes the newest guest that `apt` knows the one that [`Self::obtain`] finds, and builds it if it
    /// is not in the cache yet.
    pub(crate) fn build_with(
        apt: &Apt,
        cache: &Cache,
        guard: &Guard,
        flavour: Flavour,
        notice: Notice,
    ) -> Result<Self, GuestError> {
        let built = Self::entry(apt, cache, guard, flavour, notice)?;
        guard.point(&alias(flavour), &built)?;
        Ok(Self::in_folder(&cache.path(&built)))
    }

    /// Builds and publishes what is not in the cache yet; returns the entry's name.
    fn entry(
        apt: &Apt,
        cache: &Cache,
        guard: &Guard,
        flavour: Flavour,
        notice: Notice,
    ) -> Result<String, GuestError> {
        let (meta, depends) = apt.newest(flavour.package())?;
        let is_image = |package: &&Package| package.name.starts_with("linux-image-");
        let image = depends.iter().find(is_image).ok_or_else(|| GuestError::Odd {
            package: meta.name.clone(),
            what: "dependency on a kernel image".into(),
        })?;
        let (busybox, _) = apt.newest("busybox-static")?;
        let name = entry_name(image, &busybox);
        if Self::in_folder(&cache.path(&name)).is_whole() {
            notice(&format!("{} {} is here already", image.name, image.version));
            return Ok(name);
        }
        let scratch = guard.scratch(flavour.name())?;
        let (fetched, unpacked) = (scratch.folder("fetched")?, scratch.folder("unpacked")?);
        for package in [&busybox, image] {
            notice(&format!("fetching {} {}", package.name, package.version));
            apt.unpack(package, &fetched, &unpacked)?;
        }
        notice("building the initramfs");
        let built = assemble(&scratch, &unpacked, image)?;
        guard.publish(&built, &name)?;
        Ok(name)
    }
}

/// The name under which the newest guest made with today's recipe is found.
fn alias(flavour: Flavour) -> String {
    format!("{}-{}", flavour.name(), initramfs::recipe())
}

/// The folder of exactly these versions. Versions may have colons, which paths should not.
fn entry_name(image: &Package, busybox: &Package) -> String {
    let name =
        format!("{}_{}+busybox_{}+{}", image.name, image.version, busybox.version, initramfs::recipe());
    name.replace([':', '/'], "-")
}

/// Puts kernel and initramfs into a folder of their own.
fn assemble(scratch: &Scratch, unpacked: &Path, image: &Package) -> Result<PathBuf, GuestError> {
    let odd = |what: &str| GuestError::Odd { package: image.name.clone(), what: what.to_owned() };
    let version = image.name.strip_prefix("linux-image-").ok_or_else(|| odd("kernel version"))?;
    let kernel = unpacked.join(format!("boot/vmlinuz-{version}"));
    let modules = ["lib/modules", "usr/lib/modules"].map(|folder| unpacked.join(folder).join(version));
    let modules = modules.iter().find(|folder| folder.is_dir()).ok_or_else(|| odd("modules"))?;
    let modules = ModuleTree::open(modules)?.load_order(initramfs::MODULES)?;
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|file| unpacked.join(file));
    let busybox = busybox.iter().find(|file| file.is_file()).ok_or_else(|| odd("busybox"))?;
    let content = fs::read(busybox).map_err(GuestError::at(busybox))?;
    let initrd = initramfs::build(&content, &applets(busybox)?, version, &modules)?;

    let built = scratch.folder("built")?;
    let guest = SmallGuest::in_folder(&built);
    fs::rename(&kernel, &guest.kernel).map_err(GuestError::at(&kernel))?;
    fs::write(&guest.initrd, initrd).map_err(GuestError::at(&guest.initrd))?;
    Ok(built)
}

/// The names busybox answers to; it is a static program for this architecture, so it can be asked.
fn applets(busybox: &Path) -> Result<Vec<String>, GuestError> {
    let missing =
        || GuestError::Odd { package: "busybox-static".into(), what: "program that runs here".into() };
    let list = tool::run(Command::new(busybox).arg("--list"), "busybox --list", missing)?;
    let mut names: Vec<_> = String::from_utf8_lossy(&list).lines().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}
