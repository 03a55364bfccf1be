//! Which kernel modules a guest needs and in which order they load.
//!
//! A Debian kernel package has no `modules.dep` (depmod writes it at installation), but each
//! module names what it needs in its `.modinfo` section: `depends=a,b` for symbols and
//! `softdep=pre: x` for what it asks for at run time.

use crate::{GuestError, tool};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io::Read};

/// A module ready to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Its ELF file, uncompressed.
    pub content: Vec<u8>,
    /// Loading it may fail (a processor feature or device that is not there).
    pub optional: bool,
}

/// The modules of one kernel, found by name.
#[derive(Debug)]
pub struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// `virtio-rng` and `virtio_rng` are the same module to the kernel.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name by its file: `kernel/fs/ext4/ext4.ko.xz` is `ext4`.
fn name_of(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| name.strip_suffix(end))?;
    Some(canonical(stem))
}

impl ModuleTree {
    /// Reads a folder `lib/modules/VERSION`.
    pub fn open(folder: &Path) -> Result<Self, GuestError> {
        let mut files = BTreeMap::new();
        let mut open = vec![folder.to_path_buf()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).map_err(GuestError::at(&folder))? {
                let entry = entry.map_err(GuestError::at(&folder))?;
                let kind = entry.file_type().map_err(GuestError::at(entry.path()))?;
                if kind.is_dir() {
                    open.push(entry.path());
                } else if let Some(name) = name_of(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        let list = folder.join("modules.builtin");
        let builtin = fs::read_to_string(&list).unwrap_or_default();
        let builtin = builtin.lines().filter_map(|line| name_of(Path::new(line))).collect();
        Ok(Self { files, builtin })
    }

    /// The modules of these names and all they need, each after what it needs.
    ///
    /// A name that ends in `?` may be missing and may fail to load. Built-in ones are left out.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<Module>, GuestError> {
        let mut plan = Plan { tree: self, done: BTreeSet::new(), order: Vec::new() };
        for name in names {
            let optional = name.ends_with('?');
            plan.visit(&canonical(name.trim_end_matches('?')), optional)?;
        }
        Ok(plan.order)
    }
}

struct Plan<'a> {
    tree: &'a ModuleTree,
    done: BTreeSet<String>,
    order: Vec<Module>,
}

impl Plan<'_> {
    fn visit(&mut self, name: &str, optional: bool) -> Result<(), GuestError> {
        if self.tree.builtin.contains(name) || !self.done.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.tree.files.get(name) else {
            if optional {
                return Ok(());
            }
            return Err(GuestError::Odd {
                package: "the kernel package".into(),
                what: format!("module {name}"),
            });
        };
        let content = read_module(path)?;
        let needs = needs_of(&content)
            .map_err(|reason| GuestError::Module { path: path.clone(), reason: reason.to_string() })?;
        for needed in &needs.hard {
            self.visit(needed, optional)?;
        }
        // Soft dependencies may be aliases or absent; those that are modules load, others are not missed.
        for needed in &needs.soft {
            self.visit(needed, true)?;
        }
        self.order.push(Module { name: name.to_owned(), content, optional });
        Ok(())
    }
}

struct Needs {
    hard: Vec<String>,
    soft: Vec<String>,
}

fn needs_of(content: &[u8]) -> Result<Needs, object::Error> {
    let elf = ElfFile64::<object::Endianness>::parse(content)?;
    let mut needs = Needs { hard: Vec::new(), soft: Vec::new() };
    let Some(section) = elf.section_by_name(".modinfo") else { return Ok(needs) };
    for line in section.data()?.split(|byte| *byte == 0) {
        let line = String::from_utf8_lossy(line);
        if let Some(names) = line.strip_prefix("depends=") {
            needs.hard.extend(names.split(',').filter(|name| !name.is_empty()).map(canonical));
        } else if let Some(soft) = line.strip_prefix("softdep=").and_then(|soft| soft.strip_prefix("pre:")) {
            let names = soft.split_whitespace().take_while(|word| *word != "post:");
            needs.soft.extend(names.map(canonical));
        }
    }
    Ok(needs)
}

fn read_module(path: &Path) -> Result<Vec<u8>, GuestError> {
    let packed = fs::read(path).map_err(GuestError::at(path))?;
    match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => unpack("xz", "xz-utils", path),
        Some("gz") => unpack("gzip", "gzip", path),
        Some("zst") => {
            let mut content = Vec::new();
            zstd::Decoder::new(&packed[..])
                .and_then(|mut decoder| decoder.read_to_end(&mut content))
                .map_err(GuestError::at(path))?;
            Ok(content)
        }
        _ => Ok(packed),
    }
}

fn unpack(program: &'static str, package: &'static str, path: &Path) -> Result<Vec<u8>, GuestError> {
    let missing = || GuestError::NoTool { tool: program.to_owned(), package };
    tool::run(Command::new(program).arg("-dc").arg(path), &format!("unpacking {}", path.display()), missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object file whose `.modinfo` holds `lines`, made by hand: ELF header, the section's
    /// bytes, the names, three section headers.
    fn module(lines: &str) -> Vec<u8> {
        let info: Vec<u8> = lines.replace('\n', "\0").into_bytes();
        let names = b"\0.modinfo\0.shstrtab\0";
        let headers = 64 + info.len() + names.len();
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        elf.resize(16, 0);
        elf.extend([1u16, 62].iter().flat_map(|v| v.to_le_bytes()));
        elf.extend(1u32.to_le_bytes());
        elf.extend([0u64, 0, headers as u64].iter().flat_map(|v| v.to_le_bytes()));
        elf.extend(0u32.to_le_bytes());
        elf.extend([64u16, 0, 0, 64, 3, 2].iter().flat_map(|v| v.to_le_bytes()));
        elf.extend(&info);
        elf.extend(names);
        elf.extend([0; 64]);
        for (name, kind, offset, size) in
            [(1u32, 1u32, 64, info.len()), (10, 3, 64 + info.len(), names.len())]
        {
            elf.extend(name.to_le_bytes());
            elf.extend(kind.to_le_bytes());
            elf.extend([0u64, 0, offset as u64, size as u64, 0, 1, 0].iter().flat_map(|v| v.to_le_bytes()));
        }
        elf
    }

    fn tree(modules: &[(&str, &str)], builtin: &str) -> (tempfile::TempDir, ModuleTree) {
        let folder = tempfile::tempdir().unwrap();
        for (name, lines) in modules {
            let path = folder.path().join("kernel").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, module(lines)).unwrap();
        }
        fs::write(folder.path().join("modules.builtin"), builtin).unwrap();
        let tree = ModuleTree::open(folder.path()).unwrap();
        (folder, tree)
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let (_folder, tree) = tree(
            &[
                ("fs/ext4.ko", "license=GPL\ndepends=jbd2,mb-cache\nsoftdep=pre: crc32c other post: late\n"),
                ("fs/jbd2.ko", "depends=base\n"),
                ("fs/mb-cache.ko", "depends=\n"),
                ("lib/crc32c.ko", "depends=base\n"),
                ("lib/late.ko", "depends=\n"),
            ],
            "kernel/lib/base.ko\n",
        );
        let order = tree.load_order(&["ext4", "absent?"]).unwrap();
        assert_eq!(names(&order), ["jbd2", "mb_cache", "crc32c", "ext4"]);
        assert_eq!(order.iter().map(|m| m.optional).collect::<Vec<_>>(), [false, false, true, false]);
        let missing = tree.load_order(&["absent"]).unwrap_err();
        assert_eq!(missing.to_string(), "the kernel package has no module absent");
    }

    #[test]
    fn a_damaged_module_is_named() {
        let (folder, tree) = tree(&[("a.ko", "depends=\n")], "");
        fs::write(folder.path().join("kernel/a.ko"), b"not an object").unwrap();
        let error = tree.load_order(&["a"]).unwrap_err().to_string();
        assert!(error.contains("a.ko: not a usable kernel module"), "{error}");
    }
}
