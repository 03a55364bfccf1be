//! `debug`: gdb served from a recording, with the kernel's own names.

use super::target::{History, position_at};
use super::{recording_failure, replay_failure};
use crate::failure::Failure;
use crate::session::{Listen, Ready};
use crate::stop::Stop;
use crate::values::Pos;
use base::{GuestTime, GuestVirt, Position};
use gdb::{Address, Ended, Listener};
use recording::{HashCache, Recording};
use std::path::Path;
use std::time::Duration;
use symbols::{Extents, Symbols, elf, image, modules, orc, slide};
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
    symbol_file: Option<&Path>,
    listen: &Listen,
    ready: &mut dyn FnMut(&Ready),
    stop: &Stop,
) -> Result<(), Failure> {
    let travel = travel_to(recording, at, &Tuning::default())?;
    let kernel = kernel_names(&travel);
    let names = kernel.as_ref().map(|(_, file)| file.path().to_owned());
    let debug_info = symbol_file.map(|path| {
        let file =
            std::fs::read(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
        let own = image::elf_symbols(&file).map_err(Failure::usage)?;
        let moved = kernel.as_ref().and_then(|(symbols, _)| slide(symbols, &own)).unwrap_or(0);
        Ok::<_, Failure>((path, moved))
    });
    let mut files = Vec::new();
    if let Some(found) = debug_info.transpose()? {
        files.push(found);
    } else if let Some(path) = &names {
        files.push((path.as_path(), 0));
    }
    let address = match listen {
        Listen::Tcp(address) => Address::Tcp(address.to_string()),
        Listen::Unix(path) => Address::Unix(path.clone()),
    };
    let listener =
        Listener::bind(&address).map_err(|error| Failure::usage(format!("--listen {address}: {error}")))?;
    let shown = listener.address().map_err(Failure::host)?;
    ready(&Ready { script: gdb::startup_script(&shown, &files), address: shown });
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

/// The names that the guest's kernel has for itself, and a file of them for gdb.
fn kernel_names(travel: &Travel) -> Option<(Symbols, tempfile::NamedTempFile)> {
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
    let symbols = Symbols::find(&extents).ok()?;
    let frames = orc::debug_frame(&extents, &symbols);
    let others = modules::list(&symbols, &mut read);
    let bytes = elf::write(&symbols, &frames, &others).ok()?;
    let mut file = tempfile::Builder::new().prefix("hindsight-symbols-").tempfile().ok()?;
    std::io::Write::write_all(&mut file, &bytes).ok()?;
    Some((symbols, file))
}
