//! Where interrupt lines and messages go.

use super::chipset::Slot;
use super::{Board, Ending};
use base::{GuestPhys, GuestTime};
use devices::{ApicMessage, Audience, Cx, DeliveryMode, Request};

impl Board {
    /// Applies what devices asked for, in order; what that leads to comes after it.
    pub(super) fn apply_requests(&mut self, now: GuestTime, source: Slot) {
        let mut next = 0;
        while let Some(&request) = self.irq.requests.get(next) {
            next += 1;
            self.apply(now, source, request);
        }
        self.irq.requests.clear();
        self.follow_external(now);
        self.follow_others();
    }

    /// Brings a change of the 8259s' output to the boot processor's LINT0.
    fn follow_external(&mut self, now: GuestTime) {
        let output = self.chipset.pic.output();
        if output == self.external {
            return;
        }
        self.external = output;
        let mut cx = Cx { now, ram: &mut self.ram, irq: &mut self.irq, out: &mut *self.out };
        self.chipset.lapics[0].set_lint0(&mut cx, output);
        // LINT0 as NMI is the one thing that can come of it.
        let mut next = 0;
        while let Some(&request) = self.irq.requests.get(next) {
            next += 1;
            self.apply(now, Slot::LocalApic(0), request);
        }
        self.irq.requests.clear();
    }

    fn apply(&mut self, now: GuestTime, source: Slot, request: Request) {
        let mut cx = Cx { now, ram: &mut self.ram, irq: &mut self.irq, out: &mut *self.out };
        match request {
            Request::Line { .. } if self.chipset.is_cut_off(source) => {}
            Request::Line { gsi, level } => {
                self.chipset.ioapic.set_line(&mut cx, gsi, level);
                match gsi {
                    0 => {}
                    // The timer's ISA line 0 arrives on pin 2 of the IOAPIC.
                    2 => self.chipset.pic.set_line(0, level),
                    _ => self.chipset.pic.set_line(gsi, level),
                }
            }
            Request::Message { address, data } => self.message(now, address, data),
            Request::Apic(message) => self.deliver(now, message),
            Request::EndOfInterrupt { vector } => self.chipset.ioapic.end_of_interrupt(&mut cx, vector),
            Request::Processor { cpu, signal } => {
                self.signals.push((cpu, signal));
                // INIT has stopped the timer of another's local APIC.
                self.refresh(Slot::LocalApic(cpu));
                self.refresh_horizon();
            }
            Request::PowerOff => self.end(Ending::PowerOff),
            Request::Reset => self.end(Ending::Reset),
            Request::Panic => self.end(Ending::Panic),
            Request::DebugExit(value) => self.end(Ending::DebugExit(value)),
        }
    }

    /// A message-signalled interrupt (SDM vol. 3A, 10.11): a write into the local APICs' range.
    /// One to another address is the memory write it says it is.
    fn message(&mut self, now: GuestTime, address: u64, data: u32) {
        if address >> 20 != 0xfee {
            // Where no RAM is, the write goes nowhere, as on the bus.
            let _ = self.ram.write(GuestPhys(address), &data.to_le_bytes());
            return;
        }
        let logical = address >> 2 & 1 != 0;
        let mode = DeliveryMode::from_bits(u64::from(data >> 8));
        let (triggered, asserted) = (data >> 15 & 1 != 0, data >> 14 & 1 != 0);
        if triggered && !asserted {
            return;
        }
        self.deliver(
            now,
            ApicMessage {
                audience: Audience::from_8bit((address >> 12) as u8, logical),
                mode,
                vector: data as u8,
                level: triggered,
            },
        );
    }

    fn deliver(&mut self, now: GuestTime, message: ApicMessage) {
        let mut cx = Cx { now, ram: &mut self.ram, irq: &mut self.irq, out: &mut *self.out };
        let addressed = self.chipset.lapics.iter_mut().filter(|a| a.is_addressed(message.audience));
        if message.mode == DeliveryMode::LowestPriority {
            // The first of equals, so that the choice is a function of the state.
            if let Some(apic) = addressed.min_by_key(|apic| apic.priority()) {
                apic.accept(&mut cx, message);
            }
        } else {
            addressed.for_each(|apic| apic.accept(&mut cx, message));
        }
    }

    /// Whether the 8259s interrupt the running processor.
    pub(super) fn has_external(&self) -> bool {
        self.external && self.current == 0 && self.chipset.lapics[0].accepts_external()
    }
}
