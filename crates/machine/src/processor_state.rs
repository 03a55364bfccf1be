//! One canonical encoding of a processor's registers, for hashes and checkpoints.
//!
//! Fields follow each other in a fixed order, little-endian, without padding. The structures are
//! taken apart exhaustively: a register that is added and not encoded is a compile error here, not
//! a divergence later.

use cpu::{Activity, CpuState, Fpu, SystemMsrs};
use x86::{DescriptorTable, Segment};

/// Version of the layout.
pub const VERSION: u32 = 1;

/// A processor state that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessorStateError {
    /// Fewer or more bytes than the registers take.
    #[error("processor state has {0} bytes, which is not its size")]
    Size(usize),
    /// A byte that no value of its field has.
    #[error("processor state holds an impossible value at byte {0}")]
    Value(usize),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Result<T> = std::result::Result<T, ProcessorStateError>;

trait Field {
    fn put(&self, out: &mut Vec<u8>);
    fn take(&mut self, from: &mut Reader) -> Result<()>;
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Field for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(&mut self, from: &mut Reader) -> Result<()> {
                const SIZE: usize = size_of::<$t>();
                let Some(bytes) = from.bytes.get(from.at..from.at + SIZE) else {
                    return Err(ProcessorStateError::Size(from.bytes.len()));
                };
                *self = <$t>::from_le_bytes(bytes.try_into().expect("SIZE bytes"));
                from.at += SIZE;
                Ok(())
            }
        }
    )*};
}
integers!(u8, u16, u32, u64);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(&mut self, from: &mut Reader) -> Result<()> {
        let mut byte = 0u8;
        byte.take(from)?;
        *self = match byte {
            0 => false,
            1 => true,
            _ => return Err(ProcessorStateError::Value(from.at - 1)),
        };
        Ok(())
    }
}

impl Field for Activity {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
    fn take(&mut self, from: &mut Reader) -> Result<()> {
        let mut byte = 0u8;
        byte.take(from)?;
        let all = [Activity::Running, Activity::Halted, Activity::Shutdown, Activity::WaitForSipi];
        let found = all.into_iter().find(|activity| *activity as u8 == byte);
        *self = found.ok_or(ProcessorStateError::Value(from.at - 1))?;
        Ok(())
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|field| field.put(out));
    }
    fn take(&mut self, from: &mut Reader) -> Result<()> {
        self.iter_mut().try_for_each(|field| field.take(from))
    }
}

macro_rules! structure {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let $name { $($field),* } = self;
                $($field.put(out);)*
            }
            fn take(&mut self, from: &mut Reader) -> Result<()> {
                let $name { $($field),* } = self;
                $($field.take(from)?;)*
                Ok(())
            }
        }
    };
}

structure!(Segment { base, limit, attributes, selector });
structure!(DescriptorTable { base, limit });
structure!(SystemMsrs {
    star,
    lstar,
    cstar,
    sfmask,
    kernel_gs_base,
    tsc_aux,
    sysenter_cs,
    sysenter_esp,
    sysenter_eip,
    pat,
    tsc_adjust,
    spec_ctrl,
    hwcr,
    de_cfg,
    misc_enable,
    mtrr_def_type,
    mtrr_fixed,
    mtrr_variable,
});
structure!(CpuState {
    gpr,
    rip,
    rflags,
    seg,
    ldtr,
    tr,
    gdtr,
    idtr,
    cr0,
    cr2,
    cr3,
    cr4,
    efer,
    xcr0,
    dr,
    cpl,
    activity,
    nmi_blocked,
    apic_id,
    retired,
    shadow_at,
    msr,
    fpu,
});

impl Field for Fpu {
    /// Of the FXSAVE image only what the processor model defines: not MXCSR (bytes 24 to 31, kept
    /// beside it), XMM registers or reserved bytes.
    fn put(&self, out: &mut Vec<u8>) {
        let Fpu { ymm, x87, mxcsr } = self;
        ymm.put(out);
        out.extend_from_slice(&x87[..24]);
        out.extend_from_slice(&x87[32..160]);
        mxcsr.put(out);
    }
    fn take(&mut self, from: &mut Reader) -> Result<()> {
        let Fpu { ymm, x87, mxcsr } = self;
        ymm.take(from)?;
        *x87 = [0; 512];
        x87[..24].iter_mut().try_for_each(|byte| byte.take(from))?;
        x87[32..160].iter_mut().try_for_each(|byte| byte.take(from))?;
        mxcsr.take(from)
    }
}

/// The canonical bytes of `state`.
pub fn encode(state: &CpuState) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    VERSION.put(&mut out);
    state.put(&mut out);
    out
}

/// Takes the registers on from [`encode`]d bytes; on an error `state` is unchanged.
pub fn decode(state: &mut CpuState, bytes: &[u8]) -> Result<()> {
    let mut reader = Reader { bytes, at: 0 };
    let mut version = 0u32;
    version.take(&mut reader)?;
    if version != VERSION {
        return Err(ProcessorStateError::Value(0));
    }
    let mut fresh = state.clone();
    fresh.take(&mut reader)?;
    if reader.at != bytes.len() {
        return Err(ProcessorStateError::Size(bytes.len()));
    }
    *state = fresh;
    Ok(())
}
