//! The data folder: where recordings are, under which names, and which is the latest.

use crate::failure::Failure;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// In every recording's folder.
const MANIFEST: &str = "manifest.json";
/// The end of a packed recording's name.
pub const PACKED: &str = "hindsight";
const NAMES_MAX: u32 = 1_000_000;

/// The user's recordings.
#[derive(Clone, Debug)]
pub struct Library {
    folder: PathBuf,
}

/// A recording that is there.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name in the library.
    pub name: String,
    /// Its folder or packed file.
    pub path: PathBuf,
    /// When it was begun or made.
    pub begun: SystemTime,
}

impl Library {
    /// The user's own: `$XDG_DATA_HOME/hindsight`, else `~/.local/share/hindsight`.
    pub fn of_user() -> Result<Self, Failure> {
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base =
            absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        let none = || Failure::usage("no data folder: set HOME or XDG_DATA_HOME to an absolute path");
        Ok(Self::at(base.ok_or_else(none)?.join("hindsight")))
    }

    /// A library in this folder, which need not exist yet.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The recording that `word` means: a path, or a name here; without a word the latest.
    pub fn find(&self, word: Option<&str>) -> Result<PathBuf, Failure> {
        let Some(word) = word else {
            let latest = self.list()?.into_iter().next_back();
            let none = || Failure::usage("there is no recording yet; hindsight record makes one");
            return Ok(latest.ok_or_else(none)?.path);
        };
        if word.is_empty() {
            return Err(Failure::usage("a recording's name cannot be empty"));
        }
        let as_path = PathBuf::from(word);
        let in_library = (!word.contains('/')).then(|| self.folder.join(word));
        let in_library = in_library.filter(|path| path.exists());
        let path = if is_recording(&as_path) { as_path } else { in_library.unwrap_or(as_path) };
        match fs::metadata(&path) {
            Ok(_) if is_recording(&path) => Ok(path),
            Ok(facts) if facts.is_dir() => {
                Err(Failure::usage(format!("{}: not a recording: it has no {MANIFEST}", path.display())))
            }
            Ok(_) => Err(Failure::usage(format!("{}: not a recording", path.display()))),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(Failure::usage(format!("there is no recording {word}; hindsight ls lists them")))
            }
            Err(error) => Err(Failure::usage(format!("{}: {error}", path.display()))),
        }
    }

    /// A new empty folder to record into: `word` as for [`Library::find`], or a new name here
    /// that begins with `stem`.
    pub fn create(&self, word: Option<&str>, stem: &str) -> Result<PathBuf, Failure> {
        let cannot = |path: &Path, error: std::io::Error| {
            Failure::usage(format!("cannot record to {}: {error}", path.display()))
        };
        if let Some(word) = word {
            let path = if word.contains('/') { PathBuf::from(word) } else { self.folder.join(word) };
            if word.is_empty() || matches!(word, "." | "..") {
                return Err(Failure::usage("a recording needs a name"));
            }
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                fs::create_dir_all(parent).map_err(|error| cannot(parent, error))?;
            }
            return match fs::create_dir(&path) {
                Ok(()) => Ok(path),
                // An empty folder loses nothing.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && is_empty_folder(&path) => Ok(path),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Failure::usage(format!(
                    "{} exists; choose another name or remove it",
                    path.display()
                ))),
                Err(error) => Err(cannot(&path, error)),
            };
        }
        fs::create_dir_all(&self.folder).map_err(|error| cannot(&self.folder, error))?;
        for number in 1..NAMES_MAX {
            let path = self.folder.join(format!("{stem}-{number}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                // Two recorders at once get different names: only one can create it.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot(&path, error)),
            }
        }
        Err(Failure::usage(format!("{} has no free name left", self.folder.display())))
    }

    /// All recordings, oldest first.
    pub fn list(&self) -> Result<Vec<Entry>, Failure> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Failure::usage(format!("{}: {error}", self.folder.display()))),
        };
        let mut found: Vec<Entry> = entries
            .flatten()
            .filter(|entry| is_recording(&entry.path()))
            .map(|entry| Entry {
                name: entry.file_name().to_string_lossy().into_owned(),
                begun: begun(&entry.path()),
                path: entry.path(),
            })
            .collect();
        found.sort_by(|a, b| (a.begun, &a.name).cmp(&(b.begun, &b.name)));
        Ok(found)
    }
}

/// The time of creation, which replays and packs do not change, where the file system keeps it.
fn begun(path: &Path) -> SystemTime {
    let facts = fs::metadata(path);
    facts.and_then(|facts| facts.created().or_else(|_| facts.modified())).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Whether this looks like a recording: a folder with a manifest, or a packed file.
fn is_recording(path: &Path) -> bool {
    path.join(MANIFEST).is_file() || (path.is_file() && path.extension().is_some_and(|end| end == PACKED))
}

fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Removes a recording: only what is one, never a folder that merely has its name.
pub fn remove(path: &Path) -> Result<(), Failure> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|error| Failure::host(format!("{}: {error}", path.display())))
}

/// The bytes that a recording takes on disk, by its files' lengths.
pub fn bytes(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => {
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| bytes(&entry.path())).sum()
        }
        Ok(facts) if facts.is_file() => facts.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(path: &Path) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join(MANIFEST), "{}").unwrap();
    }

    #[test]
    fn names_paths_and_the_latest() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::at(folder.path().join("data"));
        assert!(library.find(None).unwrap_err().to_string().contains("no recording yet"));
        let first = library.create(None, "ls").unwrap();
        let second = library.create(None, "ls").unwrap();
        assert_eq!(first.file_name().unwrap(), "ls-1");
        assert_eq!(second.file_name().unwrap(), "ls-2");
        assert!(library.find(Some("ls-1")).unwrap_err().to_string().contains("not a recording"));
        recording(&first);
        std::thread::sleep(std::time::Duration::from_millis(20));
        recording(&library.create(Some("mine"), "").unwrap());
        assert_eq!(library.find(Some("ls-1")).unwrap(), first);
        assert_eq!(library.find(None).unwrap().file_name().unwrap(), "mine");
        assert_eq!(library.list().unwrap().len(), 2);
        let elsewhere = folder.path().join("with space/there");
        recording(&elsewhere);
        assert_eq!(library.find(elsewhere.to_str()).unwrap(), elsewhere);
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_else_is_taken_for_a_recording() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::at(folder.path());
        recording(&folder.path().join("mine"));
        assert!(library.create(Some("mine"), "").unwrap_err().to_string().contains("exists"));
        assert!(library.find(Some("other")).unwrap_err().to_string().contains("hindsight ls"));
        for wrong in ["", ".", ".."] {
            assert_eq!(library.create(Some(wrong), "").unwrap_err().status(), Failure::USAGE);
        }
        assert_eq!(library.find(Some("")).unwrap_err().status(), Failure::USAGE);
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(library.find(file.to_str()).unwrap_err().to_string().ends_with("not a recording"));
        assert!(library.create(file.to_str(), "").is_err());
    }
}
