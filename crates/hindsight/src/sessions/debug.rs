//! `debug`: gdb served from a recording, with the kernel's own names.

use super::target::{History, position_at};
use super::{recording_failure, replay_failure};
use crate::failure::Failure;
use crate::session::{Listen, Ready};
use crate::stop::Stop;
use crate::values::Pos;
use base::{GuestTime, GuestVirt, Position};
use gdb::{Address, Ended, Listener, SymbolFile, SymbolPlace};
use recording::{HashCache, Recording};
use std::path::{Path, PathBuf};
use std::time::Duration;
use symbols::modules::{self, Module, ModuleFile};
use symbols::{Extents, Symbols, elf, image, orc, slide};
use timeline::{ReplayError, Travel, Tuning};

/// Opens a recording and goes to a place.
pub fn travel_to(path: &Path, at: Option<Pos>, tuning: &Tuning) -> Result<Travel, Failure> {
    let recording = Recording::open(path).map_err(recording_failure)?;
    let mut travel = Travel::open(recording, tuning, &mut HashCache::for_user()).map_err(replay_failure)?;
    let to = position_of(&mut travel, at.unwrap_or(Pos::End)).map_err(replay_failure)?;
    travel.seek(to).map_err(replay_failure)?;
    Ok(travel)
}

/// The position that a place is in a recording.
pub fn position_of(travel: &mut Travel, place: Pos) -> Result<Position, ReplayError> {
    let end = travel.end();
    Ok(match place {
        Pos::Count(count) => Position::from_count(count).min(end),
        Pos::Share(share) => Position::from_count((end.count() as f64 * share.clamp(0.0, 1.0)) as u64),
        Pos::Time(time) => position_at(travel, GuestTime::from_ns(time.as_nanos() as u64))?,
        Pos::End => end,
    })
}

/// Serves gdb until it leaves.
pub fn serve(
    recording: &Path,
    at: Option<Pos>,
    symbol_files: &[PathBuf],
    listen: &Listen,
    ready: &mut dyn FnMut(&Ready),
    stop: &Stop,
) -> Result<(), Failure> {
    let travel = travel_to(recording, at, &Tuning::default())?;
    let names = Names::read(&travel);
    let given =
        symbol_files.iter().map(|path| Given::read(path, names.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let own = names.as_ref().and_then(|names| names.write(&given));
    let mut files: Vec<SymbolFile> =
        given.iter().map(|given| SymbolFile { path: &given.path, place: given.place.clone() }).collect();
    if let Some(file) = &own {
        files.push(SymbolFile { path: file.path(), place: SymbolPlace::Moved(0) });
    }
    let address = match listen {
        Listen::Tcp(address) => Address::Tcp(address.to_string()),
        Listen::Unix(path) => Address::Unix(path.clone()),
    };
    let listener =
        Listener::bind(&address).map_err(|error| Failure::usage(format!("--listen {address}: {error}")))?;
    let shown = listener.address().map_err(Failure::host)?;
    let symbols = own.as_ref().map(|file| file.path().to_owned());
    ready(&Ready { script: gdb::startup_script(&shown, &files), address: shown, symbols });
    let stopper = listener.stopper();
    let watched = stop.clone();
    std::thread::spawn(move || {
        while watched.reason().is_none() {
            std::thread::sleep(Duration::from_millis(50));
        }
        stopper.stop();
    });
    let mut history = History(travel);
    let mut notice = |text: &str| eprintln!("hindsight: {text}");
    // gdb that lost its connection, or detached, may come back; killing ends the session.
    loop {
        let ended = gdb::serve(&listener, &mut history, &mut notice).map_err(Failure::host)?;
        match ended {
            Ended::Lost if matches!(listen, Listen::Tcp(_)) => {}
            _ => return Ok(()),
        }
    }
}

/// The names that the guest's kernel has for itself.
struct Names {
    kernel: Symbols,
    frames: Vec<u8>,
    modules: Vec<Module>,
}

impl Names {
    /// Finds them in memory.
    fn read(travel: &Travel) -> Option<Self> {
        let ram = travel.session().machine().board().memory();
        let mut read = |at: u64, buf: &mut [u8]| {
            let mut done = 0;
            while done < buf.len() {
                let here = GuestVirt(at.wrapping_add(done as u64));
                let n = (base::PAGE_SIZE - here.page_offset()).min(buf.len() - done);
                let found = travel.physical(here);
                if !found.is_some_and(|phys| ram.read(phys, &mut buf[done..done + n])) {
                    return false;
                }
                done += n;
            }
            true
        };
        let extents = Extents::of_guest(&mut read);
        let kernel = Symbols::find(&extents).ok()?;
        let modules = modules::list(&kernel, &mut read);
        let frames = orc::debug_frame(&extents, &kernel, &modules);
        Some(Self { kernel, frames, modules })
    }

    /// A file of them for gdb, without what the user has better files of.
    fn write(&self, given: &[Given]) -> Option<tempfile::NamedTempFile> {
        let of_user = |name: &str| given.iter().any(|given| given.module.as_deref() == Some(name));
        let others: Vec<&Module> = self.modules.iter().filter(|module| !of_user(&module.name)).collect();
        let bytes = elf::write(&self.kernel, &self.frames, &others).ok()?;
        let mut file = tempfile::Builder::new().prefix("hindsight-symbols-").tempfile().ok()?;
        std::io::Write::write_all(&mut file, &bytes).ok()?;
        Some(file)
    }
}

/// A file with debug information that the user gave.
struct Given {
    path: PathBuf,
    place: SymbolPlace,
    /// The module that it is of; `None` for the kernel.
    module: Option<String>,
}

impl Given {
    fn read(path: &Path, names: Option<&Names>) -> Result<Self, Failure> {
        let unusable = |why: String| Failure::usage(format!("--symbols {}: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let path = path.to_owned();
        let Some(module) = ModuleFile::read(&bytes) else {
            let own = image::elf_symbols(&bytes).map_err(|error| unusable(error.to_string()))?;
            let moved = names.and_then(|names| slide(&names.kernel, &own)).unwrap_or(0);
            return Ok(Self { path, place: SymbolPlace::Moved(moved), module: None });
        };
        let loaded = names.and_then(|names| names.modules.iter().find(|loaded| loaded.name == module.name));
        let absent = || unusable(format!("module {} is not loaded there; see --at", module.name));
        let sections = module.places(&loaded.ok_or_else(absent)?.symbols);
        if sections.is_empty() {
            return Err(unusable("the module that is loaded is another one".into()));
        }
        Ok(Self { path, place: SymbolPlace::Sections(sections), module: Some(module.name) })
    }
}
