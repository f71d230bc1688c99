//! Signals by number and name, what they do by default, and sets of them.

use std::fmt;

/// A signal number, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

/// What a signal does to a process that has no handler for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    /// Ends the process.
    Terminate,
    /// Ends the process and leaves a core file.
    Core,
    /// Nothing.
    Ignore,
    /// Stops the process.
    Stop,
    /// Lets a stopped process go on.
    Continue,
}

macro_rules! signals {
    ($($name:ident $action:ident $text:literal;)*) => {
        /// The standard signals of x86-64 Linux.
        impl Signal {
            $(#[doc = $text] pub const $name: Signal = Signal(libc::$name as u8);)*

            /// Symbol and default action; none for real-time signals.
            const fn entry(self) -> Option<(&'static str, DefaultAction)> {
                match self.0 as i32 {
                    $(libc::$name => Some((stringify!($name), DefaultAction::$action)),)*
                    _ => None,
                }
            }
        }
    };
}

signals! {
    SIGHUP Terminate "The terminal is gone, or: read the configuration again.";
    SIGINT Terminate "Interrupt from the keyboard.";
    SIGQUIT Core "Quit from the keyboard.";
    SIGILL Core "Illegal instruction.";
    SIGTRAP Core "Breakpoint or single step.";
    SIGABRT Core "`abort`.";
    SIGBUS Core "Access to a mapped page that has nothing behind it.";
    SIGFPE Core "Arithmetic error.";
    SIGKILL Terminate "Kill; cannot be caught or blocked.";
    SIGUSR1 Terminate "For the program to define.";
    SIGSEGV Core "Access to memory that is not mapped or not permitted.";
    SIGUSR2 Terminate "For the program to define.";
    SIGPIPE Terminate "Write to a pipe or socket that nobody reads.";
    SIGALRM Terminate "`alarm` or the real interval timer.";
    SIGTERM Terminate "Please end.";
    SIGSTKFLT Terminate "Unused.";
    SIGCHLD Ignore "A child stopped or ended.";
    SIGCONT Continue "Go on after a stop.";
    SIGSTOP Stop "Stop; cannot be caught or blocked.";
    SIGTSTP Stop "Stop from the keyboard.";
    SIGTTIN Stop "Background process reads from the terminal.";
    SIGTTOU Stop "Background process writes to the terminal.";
    SIGURG Ignore "Urgent data on a socket.";
    SIGXCPU Core "Limit of CPU time reached.";
    SIGXFSZ Core "Limit of file size reached.";
    SIGVTALRM Terminate "Virtual interval timer.";
    SIGPROF Terminate "Profiling interval timer.";
    SIGWINCH Ignore "The terminal changed its size.";
    SIGIO Terminate "A descriptor is ready.";
    SIGPWR Terminate "Power failure.";
    SIGSYS Core "Bad system call.";
}

impl Signal {
    /// The highest number.
    pub const MAX: u32 = 64;

    /// The first real-time signal of the kernel; glibc keeps the first two for itself.
    const KERNEL_SIGRTMIN: u8 = 32;

    /// `SIGRTMIN` as programs that use glibc see it.
    const LIBC_SIGRTMIN: u8 = 34;

    /// The signal with this number, unless there is none.
    pub const fn new(number: u32) -> Option<Signal> {
        match number {
            1..=Self::MAX => Some(Signal(number as u8)),
            _ => None,
        }
    }

    /// The number, 1 to 64.
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// The number as the type that libc uses.
    pub const fn raw(self) -> i32 {
        self.0 as i32
    }

    /// The name, such as `SIGSEGV`, `SIGRTMIN+3` or, for the two that glibc keeps for itself, `SIG32`.
    pub fn name(self) -> String {
        match self.entry() {
            Some((name, _)) => name.to_owned(),
            None if self.0 < Self::LIBC_SIGRTMIN => format!("SIG{}", self.0),
            None if self.0 == Self::LIBC_SIGRTMIN => "SIGRTMIN".to_owned(),
            None => format!("SIGRTMIN+{}", self.0 - Self::LIBC_SIGRTMIN),
        }
    }

    /// What it does to a process that has no handler for it.
    pub const fn default_action(self) -> DefaultAction {
        match self.entry() {
            Some((_, action)) => action,
            None => DefaultAction::Terminate,
        }
    }

    /// Whether a program may catch, ignore and block it.
    pub const fn is_catchable(self) -> bool {
        !matches!(self, Signal::SIGKILL | Signal::SIGSTOP)
    }

    /// Whether it is one that asks a server to end (by custom: service managers, terminals).
    pub const fn asks_to_end(self) -> bool {
        matches!(self, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)
    }

    /// Whether it is a real-time signal: queued, not merged.
    pub const fn is_realtime(self) -> bool {
        self.0 >= Self::KERNEL_SIGRTMIN
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A set of signals in the kernel's layout (`sigset_t`): bit `n - 1` stands for signal `n`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// No signal.
    pub const EMPTY: SignalSet = SignalSet(0);

    /// Every signal.
    pub const ALL: SignalSet = SignalSet(u64::MAX);

    /// The set with only `signal` in it.
    pub const fn of(signal: Signal) -> SignalSet {
        SignalSet(1 << (signal.0 - 1))
    }

    /// Puts `signal` in.
    pub const fn insert(&mut self, signal: Signal) {
        self.0 |= SignalSet::of(signal).0;
    }

    /// Takes `signal` out.
    pub const fn remove(&mut self, signal: Signal) {
        self.0 &= !SignalSet::of(signal).0;
    }

    /// Whether `signal` is in it.
    pub const fn contains(self, signal: Signal) -> bool {
        self.0 & SignalSet::of(signal).0 != 0
    }

    /// Whether no signal is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: SignalSet) -> SignalSet {
        SignalSet(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: SignalSet) -> SignalSet {
        SignalSet(self.0 & other.0)
    }

    /// What is in this one and not in `other`.
    #[must_use]
    pub const fn difference(self, other: SignalSet) -> SignalSet {
        SignalSet(self.0 & !other.0)
    }

    /// The signal with the lowest number.
    pub const fn lowest(self) -> Option<Signal> {
        match self.0 {
            0 => None,
            bits => Some(Signal(bits.trailing_zeros() as u8 + 1)),
        }
    }

    /// The signals in it, lowest number first.
    pub fn iter(self) -> impl Iterator<Item = Signal> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let signal = rest.lowest()?;
            rest.remove(signal);
            Some(signal)
        })
    }
}

impl FromIterator<Signal> for SignalSet {
    fn from_iter<I: IntoIterator<Item = Signal>>(signals: I) -> SignalSet {
        let mut set = SignalSet::EMPTY;
        signals.into_iter().for_each(|signal| set.insert(signal));
        set
    }
}

impl fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_1_to_64_are_no_signals() {
        assert_eq!(Signal::new(0), None);
        assert_eq!(Signal::new(65), None);
        assert_eq!(Signal::new(u32::MAX), None);
        assert_eq!(Signal::new(11), Some(Signal::SIGSEGV));
        assert_eq!(Signal::new(64).map(Signal::number), Some(64));
    }

    #[test]
    fn names_are_those_that_programs_know() {
        let name = |number| Signal::new(number).unwrap().name();
        assert_eq!(name(11), "SIGSEGV");
        assert_eq!(name(32), "SIG32");
        assert_eq!(name(34), "SIGRTMIN");
        assert_eq!(name(37), "SIGRTMIN+3");
        assert!((1..32).all(|n| Signal::new(n).unwrap().entry().is_some()));
        assert_eq!(format!("{:>9}", Signal::SIGHUP), "   SIGHUP");
    }

    #[test]
    fn default_actions() {
        assert_eq!(Signal::SIGABRT.default_action(), DefaultAction::Core);
        assert_eq!(Signal::SIGCHLD.default_action(), DefaultAction::Ignore);
        assert_eq!(Signal::SIGTTIN.default_action(), DefaultAction::Stop);
        assert_eq!(Signal::SIGCONT.default_action(), DefaultAction::Continue);
        assert_eq!(
            Signal::new(40).unwrap().default_action(),
            DefaultAction::Terminate
        );
        assert!(!Signal::SIGKILL.is_catchable() && Signal::SIGTERM.is_catchable());
    }

    #[test]
    fn sets_hold_all_64_signals() {
        let all: SignalSet = (1..=64).filter_map(Signal::new).collect();
        assert_eq!(all, SignalSet::ALL);
        assert_eq!(all.iter().count(), 64);

        let mut set = SignalSet::of(Signal::SIGTERM);
        set.insert(Signal::SIGHUP);
        assert_eq!(set.lowest(), Some(Signal::SIGHUP));
        assert_eq!(set.0, 1 << 14 | 1);
        assert_eq!(
            set.difference(SignalSet::of(Signal::SIGHUP)),
            SignalSet::of(Signal::SIGTERM)
        );
        assert_eq!(
            set.intersection(SignalSet::of(Signal::SIGHUP)),
            SignalSet::of(Signal::SIGHUP)
        );
        set.remove(Signal::SIGHUP);
        set.remove(Signal::SIGTERM);
        assert!(set.is_empty() && set.lowest().is_none());
        assert_eq!(
            format!("{:?}", set.union(SignalSet::of(Signal::SIGINT))),
            "{SIGINT}"
        );
    }
}
