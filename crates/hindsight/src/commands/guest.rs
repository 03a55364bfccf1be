//! `guest make`, `guest module` and `guest fetch`.

use super::print;
use crate::cli::{Guest, GuestMake, GuestModule};
use crate::failure::Failure;
use crate::progress::Progress;
use ::guest::image::{ImageOptions, make};
use ::guest::{Cache, SmallGuest, build_module};

/// `hindsight guest …`
pub fn guest(options: &Guest) -> Result<u8, Failure> {
    let progress = Progress::new();
    match options {
        Guest::Make(options) => {
            make(&image_options(options), &mut |line| progress.line(line))?;
            progress.clear();
            print(&format!("{0}\nstart it with: hindsight run --disk {0}", options.out.display()))?;
        }
        Guest::Module(GuestModule { sources, output, debian }) => {
            let cache = Cache::of_user()?;
            let notice = &mut |line: &str| progress.line(line);
            let built = build_module(&cache, (*debian).into(), sources, output, notice)?;
            progress.clear();
            built.iter().try_for_each(|file| print(&file.display().to_string()))?;
        }
        Guest::Fetch { debian } => {
            let cache = Cache::of_user()?;
            let guest = SmallGuest::refresh(&cache, (*debian).into(), &mut |line| progress.line(line))?;
            progress.clear();
            print(&format!("{}\n{}", guest.kernel.display(), guest.initrd.display()))?;
        }
    }
    Ok(0)
}

fn image_options(options: &GuestMake) -> ImageOptions {
    ImageOptions {
        out: options.out.clone(),
        bytes: options.size.bytes,
        packages: options.packages.clone(),
        suite: options.suite.clone(),
        mirror: options.mirror.clone(),
        replace: options.force,
    }
}
