//! The image of the process: what it is restarted from (see [`super::restart`]).
//!
//! It is taken when the server first asks for a connection, before there is one. By then it listens and has
//! its threads, and nothing of a client is in it. Memory is not copied: the tracker keeps what is overwritten
//! afterwards ([`recovery::Tracker::take_image`]).
//!
//! The other threads are in host calls at that moment, and nobody can look at their registers. So each has
//! left word where it would go on from before it gave up the run token ([`Thread::park`]), for as long as the
//! image has not been taken.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use clap::ValueEnum;
use guest_agentless::vma::FileBacking;
use guest_agentless::{Backing, GuestRange, SignalSet, Vma};
use kvm_bindings::kvm_xsave;
use recovery::tracker::SavedPages;

use super::control::ThreadControl;
use super::files::Kind;
use super::signals::{AlternateStack, Dispositions};
use super::thread::Thread;
use super::{State, Turn};
use crate::host;
use crate::kvm::Registers;
use crate::memory::{AddressSpace, OwnLimits, Stash};

/// Bytes of a `syscall` instruction.
const SYSCALL_LEN: u64 = 2;
/// How long the image waits for the other threads to be told what their calls have done.
const QUIET_TIME: Duration = Duration::from_millis(200);

/// Whether the process is restarted in place when nothing lesser helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum RestartMode {
    /// Never.
    #[default]
    Off,
    /// Unless it has written files since its image.
    On,
    /// Even then.
    Always,
}

impl RestartMode {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Always => "always",
        }
    }
}

/// Where a thread goes on from that is not in the guest.
pub struct Parked {
    /// General registers; a system call that waits is made again.
    pub registers: Registers,
    /// Vector registers.
    pub extended: Box<kvm_xsave>,
    /// Bases of FS and GS.
    pub bases: (u64, u64),
    /// Its signal mask.
    pub blocked: SignalSet,
    /// Its alternate signal stack.
    pub alternate_stack: AlternateStack,
    /// Where its ID is cleared when it ends.
    pub clear_tid: u64,
    /// Its name.
    pub name: Vec<u8>,
}

/// A thread of the image.
struct ImageThread {
    control: &'static ThreadControl,
    parked: Arc<Parked>,
}

/// The process at the moment at which it began to serve; its descriptors are in [`super::files::Files`], its
/// memory is in the tracker.
pub struct Image {
    threads: BTreeMap<i32, ImageThread>,
    /// The mappings, ascending.
    pub vmas: Vec<Vma>,
    /// See [`crate::memory::AddressSpace::heap`].
    pub heap: (u64, u64),
    /// Signal dispositions.
    pub dispositions: Dispositions,
    /// See [`State::own_limits`].
    pub own_limits: OwnLimits,
    /// When it was taken.
    pub taken: SystemTime,
    /// Mappings that the guest has unmapped since, contents and all, and which parts of them it needs.
    pub aside: Vec<(Vec<Stash>, Vec<SavedPages>)>,
}

impl Image {
    /// Where the thread behind `control` goes on; none if it did not exist.
    pub fn thread(&self, control: &'static ThreadControl) -> Option<Arc<Parked>> {
        let tid = control.tid.load(Ordering::Relaxed);
        let thread = self.threads.get(&tid)?;
        std::ptr::eq(thread.control, control).then(|| Arc::clone(&thread.parked))
    }

    /// A thread of the image that has ended.
    pub fn ended_thread(&self, living: &BTreeMap<i32, &'static ThreadControl>) -> Option<i32> {
        let mut threads = self.threads.iter();
        let ended = threads.find(|(tid, thread)| {
            !living
                .get(tid)
                .is_some_and(|control| std::ptr::eq(*control, thread.control))
        });
        ended.map(|(tid, _)| *tid)
    }

    /// Where its mappings are.
    pub fn ranges(&self) -> Vec<GuestRange> {
        self.vmas.iter().map(|vma| vma.range).collect()
    }
}

/// What is needed to restart the process.
#[derive(Default)]
pub struct RestartState {
    /// What to restart it from.
    pub image: Option<Image>,
    /// Why there is none, if one was to be taken.
    pub unavailable: Option<String>,
    /// How often the process was restarted.
    pub epoch: u64,
    /// The guest has changed files since.
    pub files_changed: bool,
}

/// Whether writes to the mapping reach a file.
pub fn is_of_shared_file(vma: &Vma) -> bool {
    match &vma.backing {
        Backing::File(file) => vma.shared && file.path != FileBacking::shared_anonymous(0).path,
        _ => false,
    }
}

impl Thread {
    /// Says where the thread would go on if it were to start over from here; `in_call`, by making its system
    /// call again.
    pub fn park(&mut self, in_call: bool) {
        self.show_registers();
        let options = &self.process.options;
        if !options.protect
            || options.restart == RestartMode::Off
            || self.process.serving.load(Ordering::Acquire)
        {
            return;
        }
        let mut registers = *self.vcpu.registers();
        if in_call {
            registers.rip = registers.rip.wrapping_sub(SYSCALL_LEN);
        }
        let parked = self.vcpu.extended_state().ok().map(|extended| {
            Arc::new(Parked {
                registers,
                extended,
                bases: (self.vcpu.fs_base(), self.vcpu.gs_base()),
                // A call that waits with another mask sets that again.
                blocked: self.mask_after_handler.unwrap_or(self.blocked),
                alternate_stack: self.alternate_stack,
                clear_tid: self.control.clear_tid.load(Ordering::Relaxed),
                name: host::thread_name().into_bytes(),
            })
        });
        let mut place = self
            .control
            .parked
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *place = parked;
    }

    /// The guest asks for its first work, in the system call that it is in: from here on it is tracked, and
    /// this is what it is restarted from.
    pub fn begin_serving(&mut self, turn: &mut Turn<'_>) {
        if !self.process.options.protect || turn.tracker.is_armed() {
            return;
        }
        let wanted = self.process.options.restart != RestartMode::Off;
        self.park(true);
        let quiet = wanted && self.wait_for_quiet(turn);
        if turn.tracker.is_armed() {
            return;
        }
        self.arm(turn);
        self.process.serving.store(true, Ordering::Release);
        if !self.process.options.is_child {
            self.process.reporter.make_room();
        }
        if !wanted {
            return;
        }
        let image = match quiet {
            true => self.image(turn),
            false => Err("its threads were never at rest when it began to serve".to_owned()),
        };
        match image {
            Ok(image) => turn.restart.image = Some(image),
            Err(reason) => {
                log::info!("the server cannot be restarted in place: {reason}");
                turn.tracker.drop_image();
                turn.files.drop_image();
                turn.restart.unavailable = Some(reason);
            }
        }
        turn.restart.files_changed = false;
    }

    /// Lets the other threads finish what their host calls have done: what a call has taken from the kernel
    /// would be lost to the image.
    fn wait_for_quiet(&self, turn: &mut Turn<'_>) -> bool {
        let deadline = Instant::now() + QUIET_TIME;
        while self.others().iter().any(|control| control.has_returned()) {
            if Instant::now() > deadline {
                return false;
            }
            turn.released(|| std::thread::sleep(Duration::from_millis(1)));
        }
        true
    }

    /// The other guest threads.
    pub(super) fn others(&self) -> Vec<&'static ThreadControl> {
        let threads = self.process.threads();
        let all = threads.values().copied();
        all.filter(|control| !std::ptr::eq(*control, self.control))
            .collect()
    }

    fn image(&mut self, state: &mut State) -> Result<Image, String> {
        let mut threads = BTreeMap::new();
        for (tid, control) in self.process.threads().iter() {
            let parked = control
                .parked
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let parked = parked.ok_or_else(|| format!("thread {tid} left no word"))?;
            threads.insert(*tid, ImageThread { control, parked });
        }
        state.files.take_image()?;
        let vmas: Vec<Vma> = state.space.vmas().iter().cloned().collect();
        let ranges = |keep: fn(&Vma) -> bool| -> Vec<GuestRange> {
            let kept = vmas.iter().filter(|vma| keep(vma));
            kept.map(|vma| vma.range).collect()
        };
        let limit = self.process.options.image_limit;
        state.tracker.take_image(
            ranges(|_| true),
            ranges(is_of_shared_file),
            limit.unwrap_or_else(|| host::memory_size() / 4),
        );
        Ok(Image {
            threads,
            heap: state.space.heap(),
            dispositions: state.dispositions.clone(),
            own_limits: state.own_limits,
            taken: SystemTime::now(),
            vmas,
            aside: Vec::new(),
        })
    }
}

impl State {
    /// Why the image has been given up, if a part of it has.
    pub fn lost_image(&self) -> Option<String> {
        self.restart.image.as_ref()?;
        let memory = self.tracker.image_lost().map(|lost| lost.to_string());
        memory.or_else(|| self.files.image_lost().map(str::to_owned))
    }

    /// Lets go of an image of which a part has been given up.
    pub fn drop_lost_image(&mut self) {
        let lost = self.tracker.image_lost().is_some() || self.files.image_lost().is_some();
        if !lost || self.restart.image.is_none() {
            return;
        }
        self.restart.unavailable = self.lost_image();
        for (stash, _) in self
            .restart
            .image
            .take()
            .into_iter()
            .flat_map(|image| image.aside)
        {
            AddressSpace::drop_stash(stash);
        }
        self.tracker.drop_image();
        self.files.drop_image();
    }

    /// The guest has written to `fd`. Files keep what they are given through a restart; the standard streams, and
    /// whatever else leads to their files, are nobody's memory.
    pub fn note_file_write(&mut self, fd: i32) {
        if fd > libc::STDERR_FILENO
            && !self.restart.files_changed
            && self.files.kind(fd) == Kind::File
            && !host::handles::is_standard_stream(fd)
        {
            self.restart.files_changed = true;
        }
    }

    /// A domain that has unmapped something ends well. What the image needs of that is kept; anything else
    /// is given back.
    pub fn keep_for_image(
        &mut self,
        stash: Vec<Stash>,
        pages: Vec<SavedPages>,
    ) -> Option<(Vec<Stash>, Vec<SavedPages>)> {
        let Some(image) = &mut self.restart.image else {
            return Some((stash, pages));
        };
        if self.tracker.has_image() && pages.iter().any(SavedPages::is_of_image) {
            let mut kept = Vec::with_capacity(pages.len());
            for saved in pages {
                kept.extend(self.tracker.keep_for_image(saved));
            }
            image.aside.push((stash, kept));
            return None;
        }
        Some((stash, pages))
    }
}
