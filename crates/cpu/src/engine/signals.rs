//! Host faults raised by guest instructions in translated code.
//!
//! Division errors, unmasked x87 and SIMD exceptions and misaligned aligned-only accesses are
//! found by the host processor itself. The kernel turns them into signals; the handler, seeing
//! that the fault lies in the code cache of the vCPU running on this thread, notes it and makes
//! the thread continue at the exit door, which stores the guest's registers as they were at the
//! faulting instruction. Everything else is passed to whoever handled the signal before.
//!
//! While translated code runs, RSP is the guest's, so the handler runs on an alternate stack;
//! SS_AUTODISARM keeps the kernel from taking a guest RSP inside that stack for nesting. Handlers of
//! others need not ask for that stack: theirs would be run on whatever RSP the guest has. So every
//! other signal is held back on this thread while a guest may run; it waits for the next return to
//! the machine, or goes to another thread.

use super::blocks::HOST_FAULT;
use super::hot::Hot;
use std::cell::Cell;
use std::sync::Once;

/// What the handler needs to know of the vCPU on this thread.
#[derive(Clone, Copy)]
pub struct Running {
    pub hot: *mut Hot,
    pub code_start: u32,
    pub code_end: u32,
    pub exit_thunk: u32,
}

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
    static STACK: Cell<Option<SignalStack>> = const { Cell::new(None) };
}

const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];
const STACK_BYTES: usize = 64 << 10;
const SS_AUTODISARM: libc::c_int = 1 << 31;

static mut PREVIOUS: [Option<libc::sigaction>; 5] = [None; 5];

/// Says that translated code of `running` may fault on this thread until the guard is dropped.
pub fn guard(running: Running) -> Guard {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(install);
    arm_stack();
    let mask = hold_back_others();
    Guard { before: RUNNING.replace(Some(running)), mask }
}

/// Whether `rip` is in the code cache of the vCPU running on this thread.
pub fn runs_code_at(rip: u64) -> bool {
    RUNNING.get().is_some_and(|running| (running.code_start as u64..running.code_end as u64).contains(&rip))
}

/// Blocks every signal but ours on this thread; returns what was blocked before.
fn hold_back_others() -> libc::sigset_t {
    // SAFETY: plain sets of this thread's own.
    unsafe {
        let mut wanted: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut wanted);
        for signal in SIGNALS {
            libc::sigdelset(&mut wanted, signal);
        }
        if super::profile::is_on() {
            libc::sigdelset(&mut wanted, libc::SIGPROF);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &wanted, &mut before);
        before
    }
}

/// See [`guard`].
pub struct Guard {
    before: Option<Running>,
    mask: libc::sigset_t,
}

impl Drop for Guard {
    fn drop(&mut self) {
        RUNNING.set(self.before);
        // SAFETY: the mask this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.mask, std::ptr::null_mut()) };
    }
}

fn install() {
    for (n, signal) in SIGNALS.into_iter().enumerate() {
        // SAFETY: a handler of the right signature, installed once before any guest runs.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, &action, &mut old) == 0 {
                PREVIOUS[n] = Some(old);
            }
        }
    }
}

struct SignalStack(*mut libc::c_void);

impl Drop for SignalStack {
    fn drop(&mut self) {
        // SAFETY: the stack is ours and no signal is being handled on it while the thread ends.
        unsafe {
            let off = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
            libc::sigaltstack(&off, std::ptr::null_mut());
            libc::munmap(self.0, STACK_BYTES);
        }
    }
}

/// Gives this thread its alternate stack, once.
fn arm_stack() {
    STACK.with(|cell| {
        let existing = cell.take();
        cell.set(existing.or_else(|| {
            // SAFETY: a fresh mapping becomes the alternate stack of this thread.
            unsafe {
                let stack = libc::mmap(
                    std::ptr::null_mut(),
                    STACK_BYTES,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
                assert!(stack != libc::MAP_FAILED, "no memory for a signal stack");
                let new = libc::stack_t { ss_sp: stack, ss_flags: SS_AUTODISARM, ss_size: STACK_BYTES };
                assert!(libc::sigaltstack(&new, std::ptr::null_mut()) == 0, "sigaltstack failed");
                Some(SignalStack(stack))
            }
        }));
    });
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's ucontext; registers may be edited to redirect the thread.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let rip = registers[libc::REG_RIP as usize] as u64;
    if let Some(running) = RUNNING.get()
        && (running.code_start as u64..running.code_end as u64).contains(&rip)
    {
        let vector = registers[libc::REG_TRAPNO as usize] as u64;
        // SAFETY: the hot data of the vCPU that was running on this very thread.
        let hot = unsafe { &mut *running.hot };
        hot.fault.vector = vector;
        hot.fault.rip = rip;
        hot.fault.address = registers[libc::REG_CR2 as usize] as u64;
        hot.fault.error = registers[libc::REG_ERR as usize] as u64;
        registers[libc::REG_RIP as usize] = running.exit_thunk as i64;
        registers[libc::REG_RCX as usize] = HOST_FAULT as i64;
        return;
    }
    pass_on(signal, info, context);
}

/// Not ours: let the previous handler have it, or die of it as if we had not been there.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: &mut libc::ucontext_t) {
    let previous = SIGNALS.iter().position(|s| *s == signal).and_then(|n| {
        // SAFETY: written once in `install`, before any handler could run.
        unsafe { PREVIOUS[n] }
    });
    // SAFETY: calling what was installed with the signature its flags declare, or restoring the
    // default action so that the returning instruction faults again and ends the process.
    unsafe {
        match previous {
            Some(p) if p.sa_sigaction > 1 && p.sa_flags & libc::SA_SIGINFO != 0 => {
                let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(p.sa_sigaction);
                call(signal, info, std::ptr::from_mut(context).cast());
            }
            _ => {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, std::ptr::null_mut());
            }
        }
    }
}
