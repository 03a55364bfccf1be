//! The recordings of a user, by name.
//!
//! They live in `$XDG_DATA_HOME/hindsight/recordings` (by default `~/.local/share/…`). A name is a
//! folder's, or a packed file's, in there; everywhere a name is accepted a path is too.

use crate::folder::{self, Lock};
use crate::{Error, FileSource, Manifest, Recording};
use std::io;
use std::path::{Path, PathBuf};

/// Suffix of packed recordings.
const PACKED: &str = "hindsight";
const NAME_BYTES_MAX: usize = 100;
const NUMBER_MAX: u64 = 1_000_000;

/// A folder of recordings.
pub struct Library {
    folder: PathBuf,
}

/// A recording in the library.
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its manifest, or why it cannot be read.
    pub manifest: Result<Manifest, Error>,
    /// Whether its recorder is alive.
    pub being_recorded: bool,
}

impl Library {
    /// The user's own.
    pub fn for_user() -> Result<Self, Error> {
        let data = std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".local/share")));
        match data {
            Some(data) => Ok(Self::at(&data.join("hindsight/recordings"))),
            None => Err(Error::Name("neither XDG_DATA_HOME nor HOME is set; name a folder with -o".into())),
        }
    }

    /// At any place. The folder is made when the first recording is.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes an empty folder for a new recording called `stem`-0, `stem`-1, … whichever is free.
    /// Two recorders at the same time get two folders.
    pub fn create(&self, stem: &str) -> Result<PathBuf, Error> {
        check_name(stem)?;
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::io("create", &self.folder, e))?;
        for number in self.next_number(stem)?..NUMBER_MAX {
            let path = self.folder.join(format!("{stem}-{number}"));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create", &path, e)),
            }
        }
        Err(Error::Name(format!("there are too many recordings called {stem}")))
    }

    fn next_number(&self, stem: &str) -> Result<u64, Error> {
        let number = |name: &str| name.strip_prefix(stem)?.strip_prefix('-')?.parse::<u64>().ok();
        let highest = self.names()?.iter().filter_map(|name| number(name)).max();
        Ok(highest.map_or(0, |n| n.saturating_add(1)))
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", &self.folder, e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("list", &self.folder, e))?;
            names.extend(entry.file_name().into_string().ok().filter(|name| check_name(name).is_ok()));
        }
        names.sort();
        Ok(names)
    }

    /// All recordings, oldest first. Folders without a manifest (a recorder that was killed before
    /// it began) are left out.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut entries: Vec<Entry> = self.names()?.into_iter().filter_map(|name| self.entry(name)).collect();
        entries.sort_by_key(|entry| entry.manifest.as_ref().map_or(0, |m| m.created_unix_ms));
        Ok(entries)
    }

    fn entry(&self, name: String) -> Option<Entry> {
        let path = self.folder.join(&name);
        let meta = std::fs::metadata(&path).ok()?;
        let manifest = if meta.is_dir() {
            let manifest = path.join(folder::MANIFEST);
            std::fs::symlink_metadata(&manifest).ok()?;
            FileSource::open(&manifest).and_then(|file| Manifest::read(&file))
        } else if path.extension().is_some_and(|suffix| suffix == PACKED) {
            Recording::open(&path).map(|recording| recording.manifest().clone())
        } else {
            return None;
        };
        let being_recorded = is_being_recorded(&path);
        Some(Entry { name, path, manifest, being_recorded })
    }

    /// The recording that was begun last.
    pub fn latest(&self) -> Result<PathBuf, Error> {
        let newest = self.list()?.into_iter().rfind(|entry| entry.manifest.is_ok());
        newest.map(|entry| entry.path).ok_or_else(|| {
            let folder = self.folder.display();
            Error::Name(format!("there are no recordings in {folder}; make one with `hindsight record`"))
        })
    }

    /// The recording that a user means: `None` and `latest` are the latest, a path is itself, and
    /// anything else is a name.
    pub fn resolve(&self, what: Option<&str>) -> Result<PathBuf, Error> {
        let what = what.unwrap_or("latest");
        let named = self.folder.join(what);
        if check_name(what).is_ok() && named.exists() {
            return Ok(named);
        }
        if what == "latest" {
            return self.latest();
        }
        if Path::new(what).exists() {
            return Ok(PathBuf::from(what));
        }
        let folder = self.folder.display();
        Err(Error::Name(format!(
            "there is no recording {what}, neither as a path nor in {folder}; `hindsight ls` lists them"
        )))
    }

    /// Deletes a recording, all of it. Refuses whatever is not one, or is being recorded.
    pub fn remove(path: &Path) -> Result<(), Error> {
        let meta = std::fs::symlink_metadata(path).map_err(|e| Error::io("open", path, e))?;
        let not_ours = |why: &str| Err(Error::NotARecording { path: path.to_owned(), why: why.into() });
        if meta.is_symlink() {
            return not_ours("it is a symbolic link");
        }
        if meta.is_file() {
            let mut magic = [0; 8];
            let file = FileSource::open(path)?;
            return match crate::ReadAt::read_at(&file, 0, &mut magic) {
                Ok(()) if &magic == b"HSPACK\0\0" => {
                    std::fs::remove_file(path).map_err(|e| Error::io("remove", path, e))
                }
                _ => not_ours("it is not a packed recording"),
            };
        }
        if is_being_recorded(path) {
            let path = path.display();
            return Err(Error::Name(format!("{path} is being recorded; end the recorder first")));
        }
        let found = |name: &str| path.join(name).is_file();
        if !found(folder::MANIFEST) || !found(folder::EVENTS) {
            return not_ours("it has no manifest.json beside an events.log");
        }
        remove_contents(path)?;
        std::fs::remove_dir(path).map_err(|e| Error::io("remove", path, e))
    }
}

/// Removes what a recording consists of, and nothing else that may be in its folder.
fn remove_contents(path: &Path) -> Result<(), Error> {
    let remove = |path: &Path| match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    };
    let list = |folder: &Path| -> Result<Vec<PathBuf>, Error> {
        let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|e| Error::io("list", folder, e))?;
        Ok(entries.into_iter().map(|entry| entry.path()).collect())
    };
    let files = path.join(folder::FILES);
    if std::fs::symlink_metadata(&files).is_ok_and(|meta| meta.is_dir()) {
        list(&files)?.iter().try_for_each(|file| remove(file))?;
        std::fs::remove_dir(&files).map_err(|e| Error::io("remove", &files, e))?;
    }
    for file in list(path)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = [folder::EVENTS, folder::TAIL, folder::CHECKPOINTS, folder::BOOKMARKS];
        let store = name.starts_with("pages.") && name.ends_with(".store");
        if known.contains(&name.as_str()) || store || name.ends_with(".new") {
            remove(&file)?;
        }
    }
    // Last, so that a removal that was interrupted can be repeated.
    remove(&path.join(folder::MANIFEST))
}

fn is_being_recorded(path: &Path) -> bool {
    matches!(Lock::try_on(&path.join(folder::TAIL)), Ok(None))
}

fn check_name(name: &str) -> Result<(), Error> {
    let harmless = |c: char| c.is_alphanumeric() || "._-+@ ".contains(c);
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name.starts_with(['.', '-', ' '])
        || !name.chars().all(harmless)
    {
        return Err(Error::Name(format!(
            "{name:?} cannot be a recording's name; use letters, digits, blanks and any of . _ - + @"
        )));
    }
    Ok(())
}
