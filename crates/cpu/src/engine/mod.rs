//! The engine: executes guest code by translating it to host code of the same instruction set.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `regs` | where guest registers live; the budget register |
//! | `arena`, `hot` | the memory below 2 GiB that translated code runs in and talks to |
//! | `thunks`, `signals`, `x87` | crossing between Rust and translated code |
//! | `asm`, `emit`, `plain`, `strings`, `xstate`, `privileged`, `fast_calls`, `returns`, `translate`, `classify` | the translator |
//! | `mirror`, `mirrored` | programs' memory at their own addresses in this process, without checks |
//! | `moves`, `copies`, `slides`, `compare` | blocks copied or slid for programs that have the same pages elsewhere |
//! | `groups`, `stack`, `used` | which accesses share a check, or need none, and what instructions use |
//! | `blocks`, `sheets`, `tlb`, `spaces`, `tables`, `writers` | what is cached, and when it is dropped |
//! | `links`, `entered` | jumps from block to block; code that is entered without looking at its page |
//! | `run`, `find`, `access`, `interpret`, `flow`, `bounce` | the loop, TLB misses, and executing one instruction from Rust |
//! | `contexts` | several processors on one engine |
//! | `profile` | where the host's time goes |
//! | `vcpu` | the type everyone else sees |

mod access;
mod arena;
mod asm;
mod blocks;
mod bounce;
mod classify;
mod compare;
mod contexts;
mod copies;
mod debugging;
mod emit;
mod entered;
mod fast_calls;
mod find;
mod flow;
mod groups;
mod homeless;
mod hot;
mod interpret;
mod kept;
mod links;
mod mirror;
mod mirrored;
mod moves;
mod plain;
mod privileged;
pub mod profile;
mod regs;
mod returns;
mod run;
mod sheets;
mod signals;
mod slides;
mod spaces;
mod stack;
mod strings;
mod table_stores;
mod tables;
#[cfg(test)]
mod tests;
mod thunks;
mod tlb;
mod translate;
mod used;
mod vcpu;
mod writers;
mod x87;
mod xstate;

pub use contexts::PROCESSORS_MAX;
pub use vcpu::{CpuError, Exit, Statistics, Vcpu, VcpuConfig};
