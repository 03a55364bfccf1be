//! Moving the x87 state between the host's registers and the processor state.
//!
//! Rust never touches x87, so the guest's lives in the host while the vCPU runs and is fetched
//! only when something looks at it. The instruction and data pointers that the host keeps for
//! the last x87 instruction would show addresses of the code cache; they are defined to be zero,
//! as on processors that report them only for pending exceptions.

use crate::Fpu;
use std::arch::asm;

#[repr(C, align(16))]
struct Image([u8; 512]);

const MXCSR: std::ops::Range<usize> = 24..32;

/// Reads the host's x87 registers into `fpu`, then leaves the host's in their initial state.
pub fn take(fpu: &mut Fpu) {
    let mut image = Image([0; 512]);
    // SAFETY: FXSAVE64 writes 512 aligned bytes; FNINIT touches only x87 state, which Rust does
    // not use.
    unsafe { asm!("fxsave64 [{}]", "fninit", in(reg) &mut image, options(nostack)) };
    canonical(&image.0, &mut fpu.x87);
}

fn canonical(image: &[u8; 512], x87: &mut [u8; 512]) {
    *x87 = [0; 512];
    x87[0..5].copy_from_slice(&image[0..5]);
    for n in 0..8 {
        let at = 32 + 16 * n;
        x87[at..at + 10].copy_from_slice(&image[at..at + 10]);
    }
}

/// Whether the host's x87 status has its summary bit set: the next waiting instruction raises #MF.
pub fn exception_pending() -> bool {
    let status: u16;
    // SAFETY: FNSTSW changes nothing but AX.
    unsafe { asm!("fnstsw ax", out("ax") status, options(nomem, nostack, preserves_flags)) };
    status & 1 << 7 != 0
}

/// Loads the host's x87 registers from `fpu`.
pub fn give(fpu: &Fpu) {
    let mut image = Image(fpu.x87);
    let mut host = Image([0; 512]);
    // SAFETY: FXSAVE64 writes 512 aligned bytes.
    unsafe { asm!("fxsave64 [{}]", in(reg) &mut host, options(nostack)) };
    // FXRSTOR loads MXCSR and XMM too: give it what they are now.
    image.0[MXCSR].copy_from_slice(&host.0[MXCSR]);
    image.0[160..416].copy_from_slice(&host.0[160..416]);
    // SAFETY: the image came from FXSAVE or from validated state; reserved MXCSR bits are the
    // host's own. XMM registers are declared clobbered although they keep their values.
    unsafe {
        asm!("fxrstor64 [{}]", in(reg) &image, options(nostack, readonly),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _);
    }
}
