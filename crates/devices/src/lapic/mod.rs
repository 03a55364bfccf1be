//! The local APIC of one processor (SDM vol. 3A, chapter 10), in xAPIC and x2APIC mode.
//!
//! Interrupt life: a message sets a bit in IRR; when its class is above PPR's the processor takes
//! it, which moves the bit to ISR; EOI clears the highest ISR bit and, for a level-triggered one
//! (TMR), tells the IOAPIC. INIT, start-up and NMI go to the processor as requests to the board.
//!
//! The 32-bit registers live 16 bytes apart in a page of MMIO; in x2APIC mode the same registers
//! are MSRs 0x800 + offset/16. Both ways end in [`LocalApic::read_register`] and
//! [`LocalApic::write_register`].

#[cfg(test)]
mod tests;
mod timer;

use crate::data;
use crate::{
    ApicMessage, Audience, Cx, DeliveryMode, Device, DeviceState, ProcessorSignal, Request, StateError,
};
use base::GuestTime;
use serde::{Deserialize, Serialize};
use timer::{Mode, Timer};

const KIND: &str = "lapic";
const VERSION: u32 = 1;
/// Where the registers are after reset.
const DEFAULT_BASE: u64 = 0xfee0_0000;

/// IA32_APIC_BASE bits (SDM vol. 3A, figure 10-26).
mod base_bit {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    /// The page address, for a MAXPHYADDR of up to 52.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Register numbers: MMIO offset / 16, x2APIC MSR − 0x800.
mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const RRD: u32 = 0x0c;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const ICR_LOW: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const TIMER_DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// LVT entries, in register order from 0x32.
mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
    pub const MASKED: u32 = 1 << 16;
    /// Bits that can be written, per entry: timer (mode), thermal, performance, LINT0, LINT1, error.
    pub const WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
}

/// Error status bits (SDM vol. 3A, figure 10-9).
mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// SVR bit: software enable.
const SVR_ENABLE: u32 = 1 << 8;
/// Version 0x14, six LVT entries, no suppression of EOI broadcasts.
const VERSION_REGISTER: u32 = 0x0005_0014;

/// A set of the 256 vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Vectors([u64; 4]);

impl Vectors {
    fn set(&mut self, vector: u8, on: bool) {
        let bit = 1 << (vector & 63);
        let word = &mut self.0[usize::from(vector >> 6)];
        if on { *word |= bit } else { *word &= !bit }
    }
    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }
    fn highest(&self) -> Option<u8> {
        (0..4).rev().find(|i| self.0[*i] != 0).map(|i| (i as u8) * 64 + 63 - self.0[i].leading_zeros() as u8)
    }
    /// The eighth of the set that register `n` (0 to 7) shows.
    fn word32(&self, n: u32) -> u32 {
        (self.0[(n as usize & 7) / 2] >> (32 * (n & 1))) as u32
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fields {
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// As last shown to the guest, and gathered since.
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    timer: Timer,
    /// Level of the LINT0 pin.
    lint0: bool,
}

/// One local APIC.
pub struct LocalApic {
    /// Index of the processor, and its initial APIC id.
    cpu: u32,
    fields: Fields,
    /// The vector that can be taken now: derived from the fields, kept for speed.
    deliverable: Option<u8>,
}

impl LocalApic {
    /// The local APIC of processor `cpu`, in its state after reset; processor 0 is the BSP.
    pub fn new(cpu: u32) -> Self {
        let base = DEFAULT_BASE | base_bit::ENABLE | if cpu == 0 { base_bit::BSP } else { 0 };
        let fields = Fields {
            base,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [lvt::MASKED; 6],
            timer: Timer::default(),
            lint0: false,
        };
        Self { cpu, fields, deliverable: None }
    }

    /// Back to the state after INIT: as after reset, but IA32_APIC_BASE stays (SDM 10.4.7.3).
    pub fn init(&mut self) {
        let (base, lint0) = (self.fields.base, self.fields.lint0);
        *self = Self::new(self.cpu);
        self.fields.base = base;
        self.fields.lint0 = lint0;
        if self.x2apic() {
            self.fields.ldr = self.x2apic_ldr();
        }
    }

    /// What firmware leaves behind on the BSP: enabled, LINT0 passing the 8259s' interrupts on
    /// (virtual wire mode, MP specification 3.6.2.2) and LINT1 as NMI.
    pub fn set_virtual_wire(&mut self) {
        self.fields.svr = 0xff | SVR_ENABLE;
        self.fields.lvt[lvt::LINT0] = 7 << 8;
        self.fields.lvt[lvt::LINT1] = 4 << 8;
    }

    /// Whether IA32_APIC_BASE enables it.
    pub fn enabled(&self) -> bool {
        self.fields.base & base_bit::ENABLE != 0
    }

    fn x2apic(&self) -> bool {
        self.fields.base & base_bit::X2APIC != 0
    }

    /// Guest physical address of its registers, if they are memory-mapped now.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.enabled() && !self.x2apic()).then_some(self.fields.base & base_bit::ADDRESS)
    }

    /// IA32_APIC_BASE.
    pub fn base_msr(&self) -> u64 {
        self.fields.base
    }

    /// Writes IA32_APIC_BASE; false: #GP (reserved bits, or a transition SDM figure 10-27 forbids).
    #[must_use]
    pub fn set_base_msr(&mut self, value: u64) -> bool {
        let known = base_bit::ADDRESS | base_bit::ENABLE | base_bit::X2APIC | base_bit::BSP;
        let (enable, x2apic) = (value & base_bit::ENABLE != 0, value & base_bit::X2APIC != 0);
        let leaves_x2apic_for_xapic = self.x2apic() && enable && !x2apic;
        let skips_xapic = !self.enabled() && enable && x2apic;
        if value & !known != 0 || (x2apic && !enable) || leaves_x2apic_for_xapic || skips_xapic {
            return false;
        }
        if self.enabled() && !enable {
            self.init();
        }
        let entered = x2apic && !self.x2apic();
        self.fields.base = value & !base_bit::BSP | self.fields.base & base_bit::BSP;
        if entered {
            self.fields.ldr = self.x2apic_ldr();
            self.fields.icr &= 0xffff_ffff;
        }
        self.update();
        true
    }

    fn x2apic_ldr(&self) -> u32 {
        (self.cpu >> 4) << 16 | 1 << (self.cpu & 15)
    }

    /// The task priority as CR8 shows it.
    pub fn cr8(&self) -> u64 {
        u64::from(self.fields.tpr >> 4)
    }

    /// A write of CR8 (0 to 15).
    pub fn set_cr8(&mut self, value: u64) {
        self.fields.tpr = (value as u8 & 15) << 4;
        self.update();
    }

    /// Whether a maskable interrupt of this APIC waits with a priority above the processor's.
    pub fn interrupt_pending(&self) -> bool {
        self.deliverable.is_some()
    }

    /// The processor takes the interrupt. The spurious vector if it went away (SDM 10.9).
    pub fn acknowledge(&mut self) -> u8 {
        let Some(vector) = self.deliverable else { return self.fields.svr as u8 };
        self.fields.irr.set(vector, false);
        self.fields.isr.set(vector, true);
        self.update();
        vector
    }

    /// Whether LINT0 lets the 8259s interrupt the processor.
    pub fn accepts_external(&self) -> bool {
        let lint0 = self.fields.lvt[lvt::LINT0];
        !self.enabled() || (lint0 & lvt::MASKED == 0 && lint0 >> 8 & 7 == DeliveryMode::ExtInt as u32)
    }

    /// The level of the 8259s' output, on pin LINT0.
    pub fn set_lint0(&mut self, cx: &mut Cx, level: bool) {
        let rises = level && !self.fields.lint0;
        self.fields.lint0 = level;
        if rises {
            self.local_interrupt(cx, lvt::LINT0);
        }
    }

    /// Whether a message is for this APIC (SDM vol. 3A, 10.6.2).
    pub fn is_addressed(&self, audience: Audience) -> bool {
        match audience {
            Audience::Only(cpu) => cpu == self.cpu,
            Audience::AllBut(cpu) => cpu != self.cpu && self.enabled(),
            Audience::All => self.enabled(),
            Audience::Physical(id) => self.enabled() && (id == self.cpu || id == u32::MAX),
            Audience::Logical(mask) => self.enabled() && self.matches_logical(mask),
        }
    }

    fn matches_logical(&self, mask: u32) -> bool {
        let ldr = self.fields.ldr;
        if self.x2apic() {
            return mask == u32::MAX || (mask >> 16 == ldr >> 16 && mask & ldr & 0xffff != 0);
        }
        let (mask, ldr) = (mask as u8, (ldr >> 24) as u8);
        if self.fields.dfr >> 28 == 0xf {
            mask & ldr != 0
        } else {
            (mask >> 4 == ldr >> 4 || mask >> 4 == 0xf) && mask & ldr & 0xf != 0
        }
    }

    /// The processor's priority, by which lowest-priority delivery chooses.
    pub fn priority(&self) -> u8 {
        self.ppr()
    }

    /// Takes in a message that is addressed to this APIC.
    pub fn accept(&mut self, cx: &mut Cx, message: ApicMessage) {
        let signal = match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                return self.accept_vector(cx, message.vector, message.level);
            }
            DeliveryMode::Nmi => ProcessorSignal::Nmi,
            DeliveryMode::Init => {
                self.init();
                ProcessorSignal::Init
            }
            DeliveryMode::StartUp => ProcessorSignal::StartUp { vector: message.vector },
            // ExtINT by message would need an INTA cycle to the 8259s, which LINT0 already has.
            DeliveryMode::Smi | DeliveryMode::Reserved | DeliveryMode::ExtInt => return,
        };
        cx.irq.requests.push(Request::Processor { cpu: self.cpu, signal });
    }

    fn accept_vector(&mut self, cx: &mut Cx, vector: u8, level: bool) {
        if !self.enabled() || self.fields.svr & SVR_ENABLE == 0 {
            return;
        }
        if vector < 16 {
            return self.report_error(cx, error::RECEIVE_ILLEGAL_VECTOR);
        }
        self.fields.irr.set(vector, true);
        self.fields.tmr.set(vector, level);
        self.update();
    }

    fn local_interrupt(&mut self, cx: &mut Cx, entry: usize) {
        let lvt = self.fields.lvt[entry];
        if lvt & lvt::MASKED != 0 || !self.enabled() {
            return;
        }
        match DeliveryMode::from_bits(u64::from(lvt >> 8)) {
            DeliveryMode::Fixed => self.accept_vector(cx, lvt as u8, false),
            DeliveryMode::Nmi => {
                let signal = ProcessorSignal::Nmi;
                cx.irq.requests.push(Request::Processor { cpu: self.cpu, signal });
            }
            _ => {}
        }
    }

    fn report_error(&mut self, cx: &mut Cx, bit: u32) {
        let first = self.fields.errors & bit == 0;
        self.fields.errors |= bit;
        // An illegal vector in the error entry itself must not report for ever.
        if first && self.fields.lvt[lvt::ERROR] as u8 >= 16 {
            self.local_interrupt(cx, lvt::ERROR);
        }
    }

    fn ppr(&self) -> u8 {
        let in_service = self.fields.isr.highest().unwrap_or(0);
        if self.fields.tpr >> 4 >= in_service >> 4 { self.fields.tpr } else { in_service & 0xf0 }
    }

    fn update(&mut self) {
        let ppr = self.ppr();
        let above = self.fields.irr.highest().filter(|vector| vector >> 4 > ppr >> 4);
        self.deliverable = if self.enabled() { above } else { None };
    }

    fn end_of_interrupt(&mut self, cx: &mut Cx) {
        let Some(vector) = self.fields.isr.highest() else { return };
        self.fields.isr.set(vector, false);
        if self.fields.tmr.has(vector) {
            cx.irq.requests.push(Request::EndOfInterrupt { vector });
        }
        self.update();
    }

    fn mode(&self) -> Mode {
        Mode::of(self.fields.lvt[lvt::TIMER])
    }

    fn timer_masked(&self) -> bool {
        self.fields.lvt[lvt::TIMER] & lvt::MASKED != 0
    }

    /// While masked the timer raises nothing and has no deadline, so it catches up when looked at.
    fn settle_masked_timer(&mut self, now: GuestTime) {
        if self.timer_masked() {
            let mode = self.mode();
            self.fields.timer.settle(now, mode);
        }
    }

    /// Reads register number `index` (MMIO offset / 16); `None` where there is none.
    fn read_register(&self, now: GuestTime, index: u32) -> Option<u32> {
        use register::*;
        let f = &self.fields;
        Some(match index {
            ID if self.x2apic() => self.cpu,
            ID => self.cpu << 24,
            VERSION => VERSION_REGISTER,
            TPR => u32::from(f.tpr),
            PPR => u32::from(self.ppr()),
            APR | RRD if !self.x2apic() => 0,
            LDR => f.ldr,
            DFR if !self.x2apic() => f.dfr,
            SVR => f.svr,
            ISR..TMR => f.isr.word32(index - ISR),
            TMR..IRR => f.tmr.word32(index - TMR),
            IRR..ESR => f.irr.word32(index - IRR),
            ESR => f.esr,
            ICR_LOW => f.icr as u32,
            ICR_HIGH if !self.x2apic() => (f.icr >> 32) as u32,
            LVT_TIMER..=LVT_ERROR => f.lvt[(index - LVT_TIMER) as usize],
            TIMER_INITIAL => f.timer.initial,
            TIMER_CURRENT => f.timer.current(now, self.mode()),
            TIMER_DIVIDE => f.timer.divide,
            _ => return None,
        })
    }

    /// Writes register number `index`; false where there is none that can be written.
    fn write_register(&mut self, cx: &mut Cx, index: u32, value: u32) -> bool {
        use register::*;
        self.settle_masked_timer(cx.now);
        match index {
            ID if !self.x2apic() => {} // fixed by the board
            TPR => {
                self.fields.tpr = value as u8;
                self.update();
            }
            EOI => self.end_of_interrupt(cx),
            LDR if !self.x2apic() => self.fields.ldr = value & 0xff00_0000,
            DFR if !self.x2apic() => self.fields.dfr = value | 0x0fff_ffff,
            SVR => self.write_svr(value),
            ESR => self.fields.esr = std::mem::take(&mut self.fields.errors),
            ICR_LOW => {
                self.fields.icr = self.fields.icr & !0xffff_ffff | u64::from(value & 0x000c_cfff);
                self.send_ipi(cx);
            }
            ICR_HIGH if !self.x2apic() => {
                self.fields.icr = self.fields.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            LVT_TIMER..=LVT_ERROR => self.write_lvt((index - LVT_TIMER) as usize, value),
            TIMER_INITIAL => {
                if self.mode() != Mode::TscDeadline {
                    self.fields.timer.start(cx.now, value);
                }
            }
            TIMER_DIVIDE => {
                let mode = self.mode();
                self.fields.timer.set_divide(cx.now, mode, value);
            }
            _ => return false,
        }
        true
    }

    fn write_svr(&mut self, value: u32) {
        self.fields.svr = value & 0x1ff;
        if value & SVR_ENABLE == 0 {
            for entry in &mut self.fields.lvt {
                *entry |= lvt::MASKED;
            }
        }
        self.update();
    }

    fn write_lvt(&mut self, entry: usize, value: u32) {
        let mut value = value & lvt::WRITABLE[entry];
        if self.fields.svr & SVR_ENABLE == 0 {
            value |= lvt::MASKED;
        }
        if entry == lvt::TIMER && (Mode::of(value) == Mode::TscDeadline) != (self.mode() == Mode::TscDeadline)
        {
            self.fields.timer.disarm();
        }
        self.fields.lvt[entry] = value;
    }

    fn send_ipi(&mut self, cx: &mut Cx) {
        let icr = self.fields.icr;
        let mode = DeliveryMode::from_bits(icr >> 8);
        let (vector, asserted, level) = (icr as u8, icr >> 14 & 1 != 0, icr >> 15 & 1 != 0);
        if mode == DeliveryMode::Init && level && !asserted {
            return; // INIT level de-assert only synchronised arbitration ids
        }
        if matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) && vector < 16 {
            return self.report_error(cx, error::SEND_ILLEGAL_VECTOR);
        }
        let destination = (icr >> 32) as u32;
        let audience = match (icr >> 18 & 3, icr >> 11 & 1 != 0) {
            (0, true) if self.x2apic() => Audience::Logical(destination),
            (0, true) => Audience::Logical(destination >> 24),
            (0, false) if self.x2apic() => Audience::Physical(destination),
            (0, false) => Audience::physical8((destination >> 24) as u8),
            (1, _) => Audience::Only(self.cpu),
            (2, _) => Audience::All,
            _ => Audience::AllBut(self.cpu),
        };
        cx.irq.requests.push(Request::Apic(ApicMessage { audience, mode, vector, level: false }));
    }

    /// Reads an x2APIC register or IA32_TSC_DEADLINE by MSR number; `None`: #GP.
    pub fn read_msr(&self, now: GuestTime, msr: u32) -> Option<u64> {
        if msr == x86::msr::TSC_DEADLINE {
            let armed = self.mode() == Mode::TscDeadline;
            return Some(if armed { self.fields.timer.tsc_deadline(now) } else { 0 });
        }
        if !self.x2apic() {
            return None;
        }
        match msr.checked_sub(x86::msr::X2APIC_FIRST)? {
            register::ICR_LOW => Some(self.fields.icr),
            register::EOI | register::SELF_IPI => None,
            index => self.read_register(now, index).map(u64::from),
        }
    }

    /// Writes an x2APIC register or IA32_TSC_DEADLINE (in TSC ticks without IA32_TSC_ADJUST);
    /// false: #GP.
    #[must_use]
    pub fn write_msr(&mut self, cx: &mut Cx, msr: u32, value: u64) -> bool {
        if msr == x86::msr::TSC_DEADLINE {
            if self.mode() == Mode::TscDeadline {
                self.fields.timer.set_tsc_deadline(value);
                self.settle_masked_timer(cx.now);
            }
            return true;
        }
        let Some(index) = msr.checked_sub(x86::msr::X2APIC_FIRST).filter(|_| self.x2apic()) else {
            return false;
        };
        match index {
            register::ICR_LOW => {
                self.fields.icr = value & 0xffff_ffff_000c_cfff;
                self.send_ipi(cx);
                true
            }
            register::SELF_IPI => {
                if value >> 8 == 0 {
                    let request = ApicMessage {
                        audience: Audience::Only(self.cpu),
                        mode: DeliveryMode::Fixed,
                        vector: value as u8,
                        level: false,
                    };
                    cx.irq.requests.push(Request::Apic(request));
                }
                value >> 8 == 0
            }
            register::EOI | register::ESR if value != 0 => false,
            register::TPR if value >> 8 != 0 => false,
            _ if value >> 32 != 0 => false,
            _ => self.write_register(cx, index, value as u32),
        }
    }
}

impl Device for LocalApic {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn reset(&mut self) {
        *self = Self::new(self.cpu);
    }

    fn save(&self) -> DeviceState {
        DeviceState::encode(KIND, VERSION, &self.fields)
    }
    fn show(&self) -> String {
        format!("{:#?}", self.fields)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let fields: Fields = state.decode(KIND, VERSION)?;
        let known = base_bit::ADDRESS | base_bit::ENABLE | base_bit::X2APIC | base_bit::BSP;
        if fields.base & !known != 0 {
            return Err(StateError::Damaged {
                kind: KIND,
                why: format!("IA32_APIC_BASE {:#x}", fields.base),
            });
        }
        self.fields = fields;
        self.update();
        Ok(())
    }

    /// Block 0: the page of registers.
    fn read(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &mut [u8]) {
        let (index, byte) = ((offset >> 4) as u32, offset & 15);
        let value = self.read_register(cx.now, index);
        if value.is_none() {
            self.report_error(cx, error::ILLEGAL_REGISTER);
        }
        data::answer(data, u64::from(value.unwrap_or(0)).checked_shr(8 * byte as u32).unwrap_or(0));
    }

    fn write(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &[u8]) {
        // Registers take aligned accesses of 32 bits or more (SDM 10.4.1); the rest is undefined.
        if offset & 15 != 0 || data.len() < 4 {
            return;
        }
        if !self.write_register(cx, (offset >> 4) as u32, data::value(data) as u32) {
            self.report_error(cx, error::ILLEGAL_REGISTER);
        }
    }

    fn deadline(&self) -> Option<GuestTime> {
        if self.timer_masked() { None } else { self.fields.timer.expiry(self.mode()) }
    }

    fn expire(&mut self, cx: &mut Cx) {
        let mode = self.mode();
        if self.fields.timer.settle(cx.now, mode) {
            self.local_interrupt(cx, lvt::TIMER);
        }
    }
}
