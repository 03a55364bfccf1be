//! Guest addresses, so that a physical one is never used where a linear one is meant.

use serde::{Deserialize, Serialize};
use std::fmt;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// The smallest page of the architecture and the grain of every page table of ours, in bytes.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The number of the page that holds this address.
            pub const fn page(self) -> u64 {
                self.0 >> PAGE_SHIFT
            }
            /// The first address of that page.
            pub const fn page_base(self) -> Self {
                Self(self.0 & !(PAGE_SIZE as u64 - 1))
            }
            /// The distance in bytes from the start of the page, below [`PAGE_SIZE`].
            pub const fn page_offset(self) -> usize {
                (self.0 & (PAGE_SIZE as u64 - 1)) as usize
            }
            /// The address `bytes` further on, wrapping at 2^64 as the processor does.
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest physical address.
    GuestPhys
}
address! {
    /// A guest linear (virtual) address, after segmentation and before paging.
    GuestVirt
}
