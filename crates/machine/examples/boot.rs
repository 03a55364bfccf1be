//! Boots a Linux kernel to its serial console: `boot KERNEL INITRD [SECONDS] [APPEND…]`.
//!
//! A tool for working on the machine without the command line around it.

use cpu::{Vcpu, VcpuConfig};
use devices::Outside;
use machine::boot::{self, Role, read_file};
use machine::{BoardConfig, Gate, Idle, Input, Machine, MachineConfig, PciBus, Stop};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Prints what the guest prints, and notes when it has prompted.
#[derive(Clone, Default)]
struct Terminal {
    prompted: Arc<AtomicBool>,
    tail: Vec<u8>,
}

impl Outside for Terminal {
    fn console(&mut self, _port: u32, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if self.tail.ends_with(b"~ # ") {
            self.prompted.store(true, Ordering::Relaxed);
        }
        self.tail.drain(..self.tail.len().saturating_sub(8));
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
    fn frame(&mut self, _card: u32, _frame: &[u8]) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(kernel), Some(initrd)) = (args.next(), args.next()) else {
        return Err("usage: boot KERNEL INITRD [SECONDS] [APPEND…]".into());
    };
    let (kernel, initrd) = (PathBuf::from(kernel), PathBuf::from(initrd));
    let seconds: u64 = args.next().map_or(Ok(60), |text| text.parse())?;
    let rest: Vec<String> = args.collect();
    let command_line = format!("console=ttyS0 earlyprintk=serial panic=-1 {}", rest.join(" "));

    let model = x86::CpuModel::plain(x86::Level::V3);
    let vcpu = Vcpu::new(VcpuConfig { model, code_cache_bytes: 64 << 20, chaos: None, mirror_after: None })?;
    let config = MachineConfig { board: BoardConfig::default(), idle: Idle::Skip, seed: 0 };
    let terminal = Terminal::default();
    let mut pci = PciBus::new();
    pci.add_entropy([7; 32])?;
    pci.add_console(1, 80, 25)?;
    let mut machine = Machine::new(config, vcpu, pci, Gate::live(None), Box::new(terminal.clone()))?;
    let (kernel_bytes, initrd_bytes) = (read_file(Role::Kernel, &kernel)?, read_file(Role::Initrd, &initrd)?);
    machine.load(&boot::Guest {
        kernel_path: &kernel,
        kernel: &kernel_bytes,
        initrd: Some(&initrd_bytes),
        command_line: &command_line,
    })?;

    let started = std::time::Instant::now();
    let mut typed = false;
    let interpret_from: Option<u64> = std::env::var("INTERPRET_FROM").ok().and_then(|text| text.parse().ok());
    let stop = loop {
        let interpret = interpret_from.is_some_and(|from| machine.position().count() >= from);
        machine.processor_mut().set_interpret_all(interpret);
        let limit = machine.position().after(10_000_000);
        match machine.run_until(limit) {
            Stop::Limit | Stop::Breath => {}
            other => break Some(other),
        }
        if !typed && terminal.prompted.load(Ordering::Relaxed) {
            typed = true;
            let text = "uname -a; date; cat /proc/interrupts; poweroff -f\n";
            machine.inject(Input::Serial { port: 0, bytes: text.into() })?;
        }
        if started.elapsed().as_secs() >= seconds {
            break None;
        }
    };
    let state = machine.processor().state();
    eprintln!(
        "\n{stop:?} at {} after {:.2} s wall, guest time {}, rip {:#x}, {:?}",
        machine.position(),
        started.elapsed().as_secs_f64(),
        machine.moment().time,
        state.rip,
        machine.processor().statistics,
    );
    let hash = machine.state_hash()?.combined();
    eprintln!("state {}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    Ok(())
}
