//! Where the time of a thread that runs a guest goes.
//!
//! A timer of the host interrupts the thread about a thousand times a second. What it interrupts is
//! either translated code, which its instruction pointer tells, or ours, and then a note says what
//! we were doing: whoever begins a kind of [`Work`] takes a guard from [`work`], which costs two
//! moves. Samples of translated code become guest addresses before the code can be thrown away.
//!
//! Nothing here reaches the guest: a sample is a count on the host's side.

use super::blocks::{BlockId, ExitKind, Mode};
use super::signals;
use super::vcpu::Vcpu;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// A kind of work done between stretches of translated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Work {
    /// Everything that is none of the others: the loops above the processor, the terminal, files.
    Host,
    /// The processor's loop: finding and linking blocks, and acting on exits.
    Loop,
    /// A data TLB miss: walking page tables, filling the table.
    TlbMiss,
    /// Keeping caches coherent with page tables and code that were written, and flushes.
    Coherence,
    /// Translating.
    Translate,
    /// Delivering exceptions and interrupts.
    Event,
    /// Executing one instruction from Rust.
    Interpret,
    /// Devices and their deadlines.
    Device,
    /// State hashes.
    Hash,
    /// Checkpoints, on this thread.
    Checkpoint,
    /// Writing or reading the event log.
    Log,
}

impl Work {
    /// All kinds.
    pub const ALL: [Work; 11] = [
        Work::Host,
        Work::Loop,
        Work::TlbMiss,
        Work::Coherence,
        Work::Translate,
        Work::Event,
        Work::Interpret,
        Work::Device,
        Work::Hash,
        Work::Checkpoint,
        Work::Log,
    ];

    /// What a report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Work::Host => "host side",
            Work::Loop => "exits, finding and linking blocks",
            Work::TlbMiss => "TLB misses",
            Work::Coherence => "coherence of TLB and code",
            Work::Translate => "translation",
            Work::Event => "exceptions and interrupts",
            Work::Interpret => "single instructions from Rust",
            Work::Device => "devices",
            Work::Hash => "state hashes",
            Work::Checkpoint => "checkpoints",
            Work::Log => "event log",
        }
    }
}

/// Which part of the code cache a sample fell into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A guest instruction as the host executes it.
    Own,
    /// What was put in front of it: the TLB check, address computation, register shuffles.
    Check,
    /// A block's head: whether its page is still mapped, and counting.
    Head,
    /// A block's tail: misses and exits on their way out.
    Tail,
    /// The doors between Rust and translated code, and the search of the spill table.
    Door,
}

impl Part {
    /// All parts.
    pub const ALL: [Part; 5] = [Part::Own, Part::Check, Part::Head, Part::Tail, Part::Door];

    /// What a report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Own => "guest instructions as they are",
            Part::Check => "what stands before them (TLB checks, addresses)",
            Part::Head => "heads of blocks (page check, counting)",
            Part::Tail => "tails of blocks (on the way out)",
            Part::Door => "doors to and from Rust, spill table",
        }
    }
}

/// Samples of translated code that can wait for being looked up.
const WAITING_MAX: usize = 1 << 14;

/// What the signal handler writes to; owned by the thread's [`Profiler`].
struct Notes {
    work: [u64; Work::ALL.len()],
    /// Host addresses in the code cache.
    waiting: [u32; WAITING_MAX],
    count: usize,
    /// No room was left for these.
    lost: u64,
    /// By [`Part`].
    parts: [u64; Part::ALL.len()],
    /// By guest address and privilege.
    guest: HashMap<(u64, bool), u64>,
    /// Executions from Rust by instruction and cause.
    interpreted: HashMap<(Mnemonic, bool), u64>,
    /// Exits by [`EXITS`].
    exits: [u64; EXITS.len()],
}

thread_local! {
    static WORK: Cell<Work> = const { Cell::new(Work::Host) };
    static NOTES: Cell<*mut Notes> = const { Cell::new(std::ptr::null_mut()) };
}

/// Says what this thread does until the guard is dropped, which brings back what it did before.
#[inline]
pub fn work(work: Work) -> WorkGuard {
    WorkGuard { before: WORK.replace(work), _thread: PhantomData }
}

/// See [`work`].
#[derive(Debug)]
pub struct WorkGuard {
    before: Work,
    /// It belongs to the thread that made it.
    _thread: PhantomData<*const ()>,
}

impl Drop for WorkGuard {
    #[inline]
    fn drop(&mut self) {
        WORK.set(self.before);
    }
}

/// Whether this thread is being profiled.
pub fn is_on() -> bool {
    !NOTES.get().is_null()
}

/// Notes that an instruction of a translated block is executed from Rust: because of where its
/// operand is (`access`), or always.
pub(super) fn interpreted(mnemonic: Mnemonic, access: bool) {
    let notes = NOTES.get();
    if !notes.is_null() {
        // SAFETY: the profiler's notes, alive while the cell points to them; the handler, which may
        // run meanwhile on this thread, does not look at this table.
        let table = unsafe { &mut (*notes).interpreted };
        *table.entry((mnemonic, access)).or_default() += 1;
    }
}

/// Why translated code is left, as a report calls it.
pub const EXITS: [&str; 6] = [
    "TLB miss or special memory",
    "direct branch not linked yet",
    "indirect branch not in the jump cache",
    "an instruction for Rust",
    "the budget is used up",
    "the code page is not known to be mapped",
];

/// Notes that translated code was left, with the budget overdrawn or not.
pub(super) fn left(kind: &ExitKind, overdrawn: bool) {
    let notes = NOTES.get();
    if !notes.is_null() {
        let number = match kind {
            ExitKind::Access { .. } => 0,
            ExitKind::Branch { .. } => 1,
            ExitKind::Indirect | ExitKind::FastCall => 2,
            ExitKind::Interpret { .. } => 3,
            ExitKind::Head if overdrawn => 4,
            ExitKind::Head => 5,
        };
        // SAFETY: the profiler's notes, alive while the cell points to them; the handler does not
        // look at this table.
        unsafe { (*notes).exits[number] += 1 };
    }
}

/// Turns the waiting host addresses into guest addresses; `place` says what part of the code cache
/// one is in, and which guest address it belongs to and whether that is user code.
fn look_up(place: impl Fn(u32) -> (Part, Option<(u64, bool)>)) {
    // Taken out and put back, so that the handler finds the buffer free meanwhile; it runs on this
    // very thread, and nothing here needs what it changes.
    let notes = NOTES.get();
    if notes.is_null() {
        return;
    }
    let held = hold_back(true);
    // SAFETY: the profiler's notes, alive while the cell points to them; the handler is held back.
    let notes = unsafe { &mut *notes };
    for at in &notes.waiting[..notes.count] {
        let (part, place) = place(*at);
        notes.parts[part as usize] += 1;
        if let Some(place) = place {
            *notes.guest.entry(place).or_default() += 1;
        }
    }
    notes.count = 0;
    if !held {
        hold_back(false);
    }
}

/// Blocks the timer's signal on this thread, or lets it through; returns whether it was blocked.
fn hold_back(on: bool) -> bool {
    // SAFETY: sets of this thread's own.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGPROF);
        let how = if on { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
        libc::pthread_sigmask(how, &set, &mut before);
        libc::sigismember(&before, libc::SIGPROF) == 1
    }
}

extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let notes = NOTES.get();
    if notes.is_null() {
        return;
    }
    // SAFETY: the kernel's ucontext.
    let rip =
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] } as u64;
    // SAFETY: the thread's own notes, whose numbers nobody else touches without holding this back;
    // no reference to the whole is made, since the thread may be changing a table in it.
    unsafe {
        if !signals::runs_code_at(rip) {
            (*notes).work[WORK.get() as usize] += 1;
        } else if (*notes).count < WAITING_MAX {
            let count = (*notes).count;
            (*notes).waiting[count] = rip as u32;
            (*notes).count = count + 1;
        } else {
            (*notes).lost += 1;
        }
    }
}

/// Samples of one guest instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSample {
    /// Its linear address.
    pub address: u64,
    /// Whether it ran at privilege level 3.
    pub user: bool,
    /// How often it was interrupted.
    pub samples: u64,
}

/// What the samples say.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The time between two samples.
    pub period: Duration,
    /// How long it lasted.
    pub elapsed: Duration,
    /// Samples of each kind of work, in the order of [`Work::ALL`].
    pub work: [u64; Work::ALL.len()],
    /// Samples of the code cache, in the order of [`Part::ALL`].
    pub parts: [u64; Part::ALL.len()],
    /// Samples that belong to guest code, most first.
    pub guest: Vec<GuestSample>,
    /// Samples of translated code that nobody looked up in time.
    pub lost: u64,
    /// Instructions of translated blocks that were executed from Rust, most first: what they are,
    /// whether because of where their operand was, and how many executions.
    pub interpreted: Vec<(String, bool, u64)>,
    /// How often translated code was left, in the order of [`EXITS`].
    pub exits: [u64; EXITS.len()],
}

impl Profile {
    /// Samples of translated code.
    pub fn translated(&self) -> u64 {
        self.guest.iter().map(|sample| sample.samples).sum::<u64>() + self.lost
    }

    /// All samples.
    pub fn total(&self) -> u64 {
        self.translated() + self.parts[Part::Door as usize] + self.work.iter().sum::<u64>()
    }
}

/// Samples the thread that made it, until it is finished or dropped. One at a time on a thread.
pub struct Profiler {
    notes: *mut Notes,
    timer: libc::timer_t,
    period: Duration,
    begun: Instant,
}

impl Profiler {
    /// Begins to interrupt this thread every `period` of the host's time.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn start(period: Duration) -> io::Result<Self> {
        if is_on() {
            return Err(io::Error::other("this thread is being profiled already"));
        }
        let notes = Box::new(Notes {
            work: [0; Work::ALL.len()],
            waiting: [0; WAITING_MAX],
            count: 0,
            lost: 0,
            parts: [0; Part::ALL.len()],
            guest: HashMap::new(),
            interpreted: HashMap::new(),
            exits: [0; EXITS.len()],
        });
        // SAFETY: a handler of the right signature; the timer's signal goes to this thread only,
        // and the structures are plain data of the kernel's interface.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            if libc::sigaction(libc::SIGPROF, &action, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGPROF;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer: libc::timer_t = std::ptr::null_mut();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
                return Err(io::Error::last_os_error());
            }
            let notes = Box::into_raw(notes);
            NOTES.set(notes);
            let every = libc::timespec {
                tv_sec: period.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(period.subsec_nanos()),
            };
            let times = libc::itimerspec { it_interval: every, it_value: every };
            let profiler = Self { notes, timer, period, begun: Instant::now() };
            if libc::timer_settime(timer, 0, &times, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(profiler)
        }
    }

    /// Ends it.
    pub fn finish(self) -> Profile {
        hold_back(true);
        // SAFETY: ours until dropped; the handler is held back.
        let notes = unsafe { &mut *self.notes };
        let mut guest: Vec<GuestSample> = std::mem::take(&mut notes.guest)
            .into_iter()
            .map(|((address, user), samples)| GuestSample { address, user, samples })
            .collect();
        guest.sort_by_key(|sample| (std::cmp::Reverse(sample.samples), sample.address));
        let mut interpreted: Vec<_> = std::mem::take(&mut notes.interpreted)
            .into_iter()
            .map(|((mnemonic, access), count)| (format!("{mnemonic:?}").to_lowercase(), access, count))
            .collect();
        interpreted.sort_by(|a, b| (b.2, &a.0, a.1).cmp(&(a.2, &b.0, b.1)));
        Profile {
            interpreted,
            exits: notes.exits,
            period: self.period,
            elapsed: self.begun.elapsed(),
            work: notes.work,
            parts: notes.parts,
            guest,
            lost: notes.lost + notes.count as u64,
        }
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        hold_back(true);
        NOTES.set(std::ptr::null_mut());
        // SAFETY: our timer and our notes; without a pointer to them the handler does nothing, also
        // when a last signal is let through below.
        unsafe {
            libc::timer_delete(self.timer);
            drop(Box::from_raw(self.notes));
        }
        hold_back(false);
    }
}

/// A translated block, for a map of the code cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslatedBlock {
    /// Where it is in this process.
    pub host: u64,
    /// Its length there.
    pub bytes: u64,
    /// The linear address it was translated from.
    pub address: u64,
    /// Whether it runs at privilege level 3.
    pub user: bool,
}

impl Vcpu {
    /// What is in the code cache, by host address.
    pub fn translated_blocks(&self) -> impl Iterator<Item = TranslatedBlock> {
        self.blocks.list.iter().map(|block| TranslatedBlock {
            host: block.checked.into(),
            bytes: (block.end - block.checked).into(),
            address: block.key.virt,
            user: block.key.mode.has(Mode::USER),
        })
    }

    /// Turns samples of a profile into guest addresses while the blocks are there.
    pub(super) fn look_up_samples(&self) {
        look_up(|host| {
            if let Some(block) = self.blocks.at_cold(host) {
                return (Part::Tail, Some((block.key.virt, block.key.mode.has(Mode::USER))));
            }
            let after = self.blocks.list.partition_point(|block| block.checked <= host);
            let Some(id) = after.checked_sub(1).map(|n| BlockId(n as u32)) else {
                return (Part::Door, None);
            };
            let block = self.blocks.get(id);
            let insns = self.blocks.insns_of(block);
            let k = insns.partition_point(|insn| block.checked + u32::from(insn.host) <= host).checked_sub(1);
            let guest = |k: usize| Some((self.blocks.virt_of(id, k as u8), block.key.mode.has(Mode::USER)));
            match k {
                None => (Part::Head, guest(0)),
                Some(k) if k + 1 >= insns.len() => (Part::Tail, guest(k)),
                Some(k) => {
                    let host_of = |k: usize| self.blocks.host_of(id, k as u8);
                    let last = self.last_instruction(host_of(k), host_of(k + 1));
                    (if host >= last { Part::Own } else { Part::Check }, guest(k))
                }
            }
        });
    }

    /// The address of the last host instruction between two boundaries.
    fn last_instruction(&self, from: u32, to: u32) -> u32 {
        // SAFETY: between two instructions of a block, inside of the code cache.
        let code = unsafe { std::slice::from_raw_parts(from as usize as *const u8, (to - from) as usize) };
        let mut decoder = Decoder::with_ip(64, code, from.into(), DecoderOptions::NONE);
        let mut last = from;
        while decoder.can_decode() {
            last = decoder.decode().ip32();
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    /// Some milliseconds of work at a time, until the profile has what is asked for.
    fn busy(kind: Work, enough: impl Fn() -> bool) {
        let _work = work(kind);
        while !enough() {
            black_box((0..100_000u64).fold(0, |a, b| black_box(a ^ b)));
        }
    }

    #[test]
    fn samples_are_counted_for_the_work_at_hand_and_the_guard_brings_back_the_one_before() {
        let profiler = Profiler::start(Duration::from_millis(1)).unwrap();
        assert!(is_on() && Profiler::start(Duration::from_millis(1)).is_err());
        let notes = profiler.notes;
        // SAFETY: this thread's own notes; a sample between two reads is what is waited for.
        let seen = |kind: Work| unsafe { std::ptr::read_volatile(&raw const (*notes).work[kind as usize]) };
        let _outer = work(Work::Device);
        busy(Work::Translate, || seen(Work::Translate) >= 3);
        busy(Work::Device, || seen(Work::Device) >= 3);
        assert_eq!(WORK.get(), Work::Device);
        let profile = profiler.finish();
        assert!(profile.work[Work::Translate as usize] >= 3 && profile.work[Work::Device as usize] >= 3);
        assert_eq!((profile.translated(), profile.work[Work::Hash as usize]), (0, 0));
        assert!(profile.total() >= 6 && !is_on());
    }

    #[test]
    fn every_kind_is_at_its_place() {
        for (n, kind) in Work::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, n);
        }
    }
}
