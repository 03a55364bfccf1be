//! `guest make` and `guest fetch`.

use super::print;
use crate::cli::{Guest, GuestMake};
use crate::failure::Failure;
use crate::progress::Progress;
use ::guest::image::{ImageOptions, make};
use ::guest::{Cache, SmallGuest};

/// `hindsight guest …`
pub fn guest(options: &Guest) -> Result<u8, Failure> {
    let progress = Progress::new();
    match options {
        Guest::Make(options) => {
            make(&image_options(options), &mut |line| progress.line(line))?;
            progress.clear();
            print(&format!("{0}\nstart it with: hindsight run --disk {0}", options.out.display()))?;
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
