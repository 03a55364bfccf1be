//! Per-page marks.

/// What makes a page special for writers. A processor's TLB holds a write translation only for
/// pages that are [`Marks::DIRTY`] and bear none of the [`Marks::HOOKED`] marks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Marks(pub u8);

impl Marks {
    /// Written in the current epoch.
    pub const DIRTY: Marks = Marks(1 << 0);
    /// Translated code was made from this page.
    pub const CODE: Marks = Marks(1 << 1);
    /// An entry that a cached address translation came from was read from this page.
    pub const TABLE: Marks = Marks(1 << 2);
    /// Was lent to a reader, and not written since; never together with [`Marks::DIRTY`].
    pub const LENT: Marks = Marks(1 << 3);
    /// A debugger watches bytes of this page.
    pub const WATCHED: Marks = Marks(1 << 4);
    /// A debugger watches for reads of bytes of this page, which go the slow way too.
    pub const READ_WATCHED: Marks = Marks(1 << 5);
    /// Every mark that sends a write the slow way.
    pub const HOOKED: Marks = Marks(Self::CODE.0 | Self::TABLE.0 | Self::WATCHED.0);
    /// Every mark whose pages, when written by anyone, the processors must hear of.
    pub const DISTURBING: Marks = Marks(Self::CODE.0 | Self::TABLE.0);

    /// Whether any of `other`'s marks is set.
    pub const fn any(self, other: Marks) -> bool {
        self.0 & other.0 != 0
    }
    /// Both sets together.
    pub const fn with(self, other: Marks) -> Marks {
        Marks(self.0 | other.0)
    }
    /// These marks less `other`'s.
    pub const fn without(self, other: Marks) -> Marks {
        Marks(self.0 & !other.0)
    }
}
