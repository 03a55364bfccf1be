//! Bookmarks: positions that people gave a name, kept with the recording.

use crate::{Error, Recording, folder, source};
use base::Position;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

const BYTES_MAX: u64 = 4 << 20;
const COUNT_MAX: usize = 10_000;
const NAME_CHARS_MAX: usize = 100;

/// A named position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// Where.
    pub at: Position,
    /// Anything worth remembering about it.
    #[serde(default)]
    pub note: String,
}

/// A recording's bookmarks, by name.
pub struct Bookmarks {
    /// Where they are kept; `None` when that is not possible (a packed recording).
    path: Option<PathBuf>,
    by_name: BTreeMap<String, Bookmark>,
}

impl Bookmarks {
    /// Reads a recording's bookmarks.
    pub fn open(recording: &Recording) -> Result<Self, Error> {
        let path = recording.folder().map(|folder| folder.join(folder::BOOKMARKS));
        let by_name = match recording.place().source(folder::BOOKMARKS)? {
            None => BTreeMap::new(),
            Some(file) => decode(file.path(), &source::read_all(&*file, BYTES_MAX)?)?,
        };
        Ok(Self { path, by_name })
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Bookmark)> {
        self.by_name.iter().map(|(name, bookmark)| (name.as_str(), bookmark))
    }

    /// The position of a name.
    pub fn get(&self, name: &str) -> Option<&Bookmark> {
        self.by_name.get(name)
    }

    /// Names a position (anew) and keeps it on disk. Names are 1 to 100 printable characters.
    pub fn set(&mut self, name: &str, bookmark: Bookmark) -> Result<(), Error> {
        if !is_name(name) {
            let why = "a bookmark's name is 1 to 100 printable characters without blanks at its ends";
            return Err(Error::Name(why.to_owned()));
        }
        if self.by_name.len() >= COUNT_MAX && !self.by_name.contains_key(name) {
            return Err(Error::Name(format!("there are {COUNT_MAX} bookmarks; remove one first")));
        }
        let before = self.by_name.insert(name.to_owned(), bookmark);
        self.save().inspect_err(|_| {
            match before {
                Some(before) => self.by_name.insert(name.to_owned(), before),
                None => self.by_name.remove(name),
            };
        })
    }

    /// Forgets a name; false when it was not known.
    pub fn remove(&mut self, name: &str) -> Result<bool, Error> {
        let Some(before) = self.by_name.remove(name) else { return Ok(false) };
        self.save().inspect_err(|_| {
            self.by_name.insert(name.to_owned(), before);
        })?;
        Ok(true)
    }

    fn save(&self) -> Result<(), Error> {
        let Some(path) = &self.path else {
            return Err(Error::Name("a packed recording keeps no bookmarks; unpack it first".to_owned()));
        };
        let bytes = serde_json::to_vec_pretty(&self.by_name).expect("plain data");
        folder::replace(path, &bytes).map_err(|e| Error::io("write", path, e))
    }
}

fn is_name(name: &str) -> bool {
    let printable = name.chars().all(|c| !c.is_control());
    printable && !name.is_empty() && name.trim() == name && name.chars().count() <= NAME_CHARS_MAX
}

fn decode(path: &std::path::Path, bytes: &[u8]) -> Result<BTreeMap<String, Bookmark>, Error> {
    let by_name: BTreeMap<String, Bookmark> =
        serde_json::from_slice(bytes).map_err(|e| Error::damaged(path, 0, None, e.to_string()))?;
    if by_name.len() > COUNT_MAX || !by_name.keys().all(|name| is_name(name)) {
        return Err(Error::damaged(path, 0, None, "it has impossible names, or too many"));
    }
    Ok(by_name)
}
