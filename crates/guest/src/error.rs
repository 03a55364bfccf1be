//! What can go wrong while making a guest, each as one line that says what to do next.

use std::io;
use std::path::{Path, PathBuf};

/// Why a guest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// This host has no apt, so nothing can be fetched.
    #[error("this host has no {tool}, so no guest can be fetched; pass --kernel FILE and --initrd FILE")]
    NoApt {
        /// The program that is missing.
        tool: &'static str,
    },
    /// A program that makes images is missing.
    #[error("{tool} is missing; get it with: apt-get install {package}")]
    NoTool {
        /// The program.
        tool: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program of the host failed.
    #[error("{what} failed: {reason}")]
    Tool {
        /// The program and what it was to do.
        what: String,
        /// The last line it said, or its exit status.
        reason: String,
    },
    /// No source of packages on this host knows a package.
    #[error("the package sources of this host do not have {package}; pass --kernel FILE and --initrd FILE")]
    NoPackage {
        /// The package's name.
        package: String,
    },
    /// A package does not hold what it should.
    #[error("{package} has no {what}")]
    Odd {
        /// The package.
        package: String,
        /// What was looked for.
        what: String,
    },
    /// A kernel module cannot be understood.
    #[error("{path}: not a usable kernel module: {reason}")]
    Module {
        /// The module's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no folder to keep guests in.
    #[error("no cache folder: set HOME or XDG_CACHE_HOME to an absolute path")]
    NoCache,
    /// The host's file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// An image option makes no sense.
    #[error("{0}")]
    Usage(String),
}

impl GuestError {
    /// Whether fresh package lists may help: the ones at hand are missing, or older than the mirror.
    pub(crate) fn may_be_of_old_lists(&self) -> bool {
        matches!(self, GuestError::NoPackage { .. } | GuestError::Tool { .. })
    }

    /// For `map_err`: puts the path beside the host's reason.
    pub(crate) fn at(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> GuestError {
        let path = path.as_ref().to_path_buf();
        move |source| GuestError::Io { path, source }
    }
}
