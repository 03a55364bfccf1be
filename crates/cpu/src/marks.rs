//! Coverage marks: which rare paths of the engine have been taken.
//!
//! A campaign of random programs is only worth what it reaches; a test of the `oracle` crate runs
//! one and requires every mark. Counted only in tests and with the feature `marks`, and without
//! effect on the guest.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the marks from one list.
macro_rules! marks {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A path of the engine.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark {
            $($(#[$doc])* $name,)*
        }
        impl Mark {
            /// All of them.
            pub const ALL: &'static [Mark] = &[$(Mark::$name,)*];
        }
    };
}

marks! {
    /// An instruction's own bytes serve.
    Copied,
    /// Registers without a home are brought to scratch registers and back.
    DisplacedRegister,
    /// One of them is the instruction's memory operand.
    RegisterFolded,
    /// Two of them, with a memory operand.
    TwoDisplaced,
    /// The guest's RCX visits the host's.
    RcxVisits,
    /// A high byte register with a memory operand.
    HighByteMemory,
    /// A high byte register that cannot be encoded: left to Rust.
    HighByteRefused,
    /// A bit string in memory, checked where the bit is.
    BitString,
    /// One of a width left to Rust.
    BitStringRefused,
    /// An operand relative to FS or GS.
    SegmentBase,
    /// An operand whose address is known.
    ConstantAddress,
    /// An address cut to 32 bits in 64-bit code.
    ShortAddress,
    /// A displacement that leaves no room for the operand's size.
    WideDisplacement,
    /// An operand that only Rust can address.
    AddressRefused,
    /// Mirrored code accesses memory by the guest's own bytes.
    CopiedInPlace,
    /// An access that an earlier one's guard serves.
    GuardShared,
    /// An instruction guards where it moves the stack pointer.
    StackGuarded,
    /// One that does so is executed from Rust.
    StackFollowedByRust,
    /// The stack pointer is where mirrored code may not run with it.
    StackElsewhere,
    /// A block is copied for another address.
    BlockCopied,
    /// A block that reaches into the next page is slid.
    SlidOnTwoPages,
    /// A block of an earlier run is taken from disk.
    BlockKept,
    /// What leads to a block from other pages is undone, as its page is gone.
    PageClosed,
    /// A copy is held against a translation.
    CopyCompared,
    /// So is what was slid.
    SlideCompared,
    /// The oldest of too many sheets of a page is forgotten.
    AddressForgotten,
    /// A block is slid to another address.
    BlockSlid,
    /// A block is linked to again.
    Rejoined,
    /// An address space is mirrored.
    MirrorAdopted,
    /// An access is to share no check any more.
    GroupGivenUp,
    /// Two pages are mapped for one access.
    MirrorCrossed,
    /// It needed too much.
    MirrorAbandoned,
    /// What was claimed for programs before is given up.
    ClaimsRenewed,
    /// Pages dropped from it are unmapped before a program runs again.
    MirrorUnmapped,
    /// A page mapped, or a chunk claimed, for mirrored code.
    MirrorFilled,
    /// An access of mirrored code made from Rust.
    MirrorRefused,
    /// A page mapped right behind the fault that the program had for it.
    MirrorMended,
    /// A repeated string instruction executed at once in the mirror.
    MirrorString,
    /// One that writes a page paged in a moment ago, which is not mapped for that.
    FreshString,
    /// An instruction of mirrored code gets a check.
    MirrorChecked,
    /// A jump out of the middle of a block.
    SideExit,
    /// A block whose last instruction lies on two pages.
    TwoPages,
    /// LOOP or JRCXZ translated.
    Counted,
    /// A branch left to Rust.
    BranchRefused,
    /// PUSH of memory.
    PushMemory,
    /// A return address or immediate too wide for a store.
    WideConstant,
    /// LEA of 16 bits.
    Lea16,
    /// Fewer instructions remained than a block has.
    Expired,
    /// A block made short because of that.
    LimitedBlock,
    /// One check for several accesses.
    GroupLeader,
    /// An access that needs no check of its own.
    GroupMember,
    /// One whose addend is still in its register.
    AddendHeld,
    /// A check for several that lie on two pages.
    GroupCrossing,
    /// A block translated again without such checks, to go on in.
    Twin,
    /// A block with such checks not resumed because a translation was dropped.
    GroupsStale,
    /// SYSCALL and SYSRET in translated code.
    FastSyscall,
    FastSysret,
    /// IRETQ that stays in translated code where it can.
    FastIretq,
    /// XSAVEC or XRSTOR that stays in translated code where it can.
    XstateThunk,
    /// MOVS or STOS in translated code.
    StringThunk,
    /// One tried again where it stands once the TLB knows its pages.
    StringFilled,
    /// A block that ends where another begins.
    RunsIntoAnother,
    /// A jump whose target goes on in the same block.
    JumpFollowed,
    /// A short loop translated several times over.
    Unrolled,
    /// An operand on two pages.
    Crossing,
    /// One that was read from a copy.
    CrossingRead,
    /// A store let through to a page of which a debugger watches other bytes.
    BesideWatched,
    /// One to an entry of a page table of which nothing is cached.
    TableWrittenInVain,
    /// Such stores that translated code had made by itself.
    TableStoresMade,
    /// A store to a page table acted on before it is made.
    TableWrittenAhead,
    /// A store to a page of code or page tables.
    HookedStore,
    /// Translated code overwritten, and thrown away.
    CodeOverwritten,
    /// An exception that the host processor found.
    HostFault,
    /// An indirect branch taken back.
    BranchUndone,
    /// A direct jump linked to its target.
    Linked,
    /// A link undone because its target went away.
    Unlinked,
    /// Execution went on in a block behind an instruction executed from Rust.
    Resumed,
    /// An instruction run by itself with its operand copied.
    BouncedMemory,
    /// One without memory operand.
    BouncedRegisters,
    /// A string instruction stopped between two iterations.
    StringStopped,
    /// One that faulted after some iterations.
    StringFaulted,
    /// A single-step trap.
    SingleStep,
    /// All translated code dropped.
    CodeDropped,
}

static COUNTS: [AtomicU64; Mark::ALL.len()] = [const { AtomicU64::new(0) }; Mark::ALL.len()];

/// Counts `mark`.
pub fn hit(mark: Mark) {
    COUNTS[mark as usize].fetch_add(1, Ordering::Relaxed);
}

/// How often `mark` was hit in this process.
pub fn count(mark: Mark) -> u64 {
    COUNTS[mark as usize].load(Ordering::Relaxed)
}

/// Counts a mark where marks are counted.
macro_rules! mark {
    ($name:ident) => {
        #[cfg(any(test, feature = "marks"))]
        crate::marks::hit(crate::marks::Mark::$name);
    };
}
pub(crate) use mark;
