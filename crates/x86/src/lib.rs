//! Facts of the x86-64 architecture: registers, flags, modes, descriptors, page-table formats,
//! model-specific registers, exceptions and the processor models a guest can have.
//!
//! **What it may know:** the manuals (Intel SDM, AMD APM). **What it must never do:** hold a
//! machine's state, or touch the host.
#![forbid(unsafe_code)]

pub mod control;
pub mod cpuid;
mod exception;
pub mod flags;
pub mod gpr;
pub mod msr;
pub mod paging;
mod segment;

pub use cpuid::{CpuModel, CpuidContext, HostFeatures, Level};
pub use exception::{Exception, vector};
pub use segment::{DescriptorTable, Segment, SegmentIndex};
