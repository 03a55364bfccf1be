//! The guest maker: what runs inside the machine, made from Debian's packages without root.
//!
//! Four things come out of here:
//!
//! * **the small guest** ([`SmallGuest`]): Debian's kernel and an initramfs of busybox and the
//!   virtio modules, fetched on first use and cached; it is what runs when no kernel is given;
//! * **root images** ([`image`]): a whole Debian on an ext4 disk, for systemd, compilers, servers;
//! * **the job** ([`job`]): how a command of the host reaches either of them, and how its exit
//!   status comes back;
//! * **modules** ([`build_module`]) for the small guest's kernel, from sources.
//!
//! **What it may know:** Debian's package tools, archive and module formats, the host's files.
//! **What it must never do:** need root, change anything of the host outside its own cache
//! folder, or let a file's content depend on the host's clock, user or folder order.
//! It knows nothing of the machine that will run the guest.
#![forbid(unsafe_code)]

mod archive;
mod cache;
mod debian;
mod error;
pub mod image;
mod initramfs;
pub mod job;
mod kernel_module;
mod modules;
mod panic;
mod passt;
mod small;
mod tool;

pub use archive::{Archive, join};
pub use cache::Cache;
pub use debian::Flavour;
pub use error::GuestError;
pub use kernel_module::build_module;
pub use panic::{PanicLine, PanicReader};
pub use passt::{cached_passt, passt};
pub use small::SmallGuest;

/// Where a long step says what it does, one short line each, without a trailing full stop.
pub type Notice<'a> = &'a mut dyn FnMut(&str);
