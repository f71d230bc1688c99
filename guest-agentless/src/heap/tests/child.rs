//! The child whose heap is looked at, and copies of its memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use super::super::{Memory, Overlay};
use crate::{GuestRange, PageNumber};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linkage {
    Dynamic,
    Static,
    StaticPie,
}

impl Linkage {
    pub const ALL: [Linkage; 3] = [Linkage::Dynamic, Linkage::Static, Linkage::StaticPie];

    fn program(self) -> PathBuf {
        static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
        let dir = DIR.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            for (linkage, flag) in Self::ALL
                .into_iter()
                .zip(["-pie", "-static", "-static-pie"])
            {
                let built = Command::new("cc")
                    .args(["-std=gnu11", "-O1", "-pthread", "-fPIE", "-w", flag, "-o"])
                    .arg(dir.path().join(format!("{linkage:?}")))
                    .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/heap/child.c"))
                    .status();
                assert!(built.unwrap().success());
            }
            dir
        });
        dir.path().join(format!("{self:?}"))
    }
}

/// No memory at all: what is behind the pages of a snapshot.
pub struct Nothing;

impl Memory for Nothing {
    fn read(&self, _: u64, _: &mut [u8]) -> bool {
        false
    }
}

pub type Snapshot = Overlay<'static, Nothing>;

pub struct Child {
    process: std::process::Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    memory: File,
    /// The last snapshot, and the pages that differed from the one before.
    last: BTreeMap<u64, Box<[u8; 4096]>>,
    changed: Vec<PageNumber>,
    freed: BTreeMap<usize, u64>,
}

impl Child {
    pub fn start(linkage: Linkage) -> Child {
        let mut command = Command::new(linkage.program());
        // The whole command line for another C library: its loader with options, and the program if it was
        // built for it.
        if let (Ok(other), Linkage::Dynamic) = (std::env::var("VMSRS_HEAP_CHILD"), linkage) {
            let mut words = other.split(' ');
            command = Command::new(words.next().unwrap_or_default());
            command.args(words);
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", process.id()))
            .unwrap();
        Child {
            process,
            stdin,
            stdout,
            memory,
            last: BTreeMap::new(),
            changed: Vec::new(),
            freed: BTreeMap::new(),
        }
    }

    /// Runs commands to the end.
    pub fn run(&mut self, commands: &str) {
        for line in commands.lines() {
            if line.starts_with('f') {
                let slot = line.split(' ').nth(1).unwrap().parse().unwrap();
                let (address, _) = self.slot(slot);
                if address != 0 {
                    self.freed.insert(slot, address);
                }
            }
            writeln!(self.stdin, "{line}").unwrap();
        }
        self.ask("s");
    }

    fn ask(&mut self, command: &str) -> (u64, u64) {
        writeln!(self.stdin, "{command}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let words: Vec<_> = line
            .split_whitespace()
            .map(|word| u64::from_str_radix(word, 16).unwrap())
            .collect();
        (words[0], words[1])
    }

    /// Address and usable size of a slot.
    pub fn slot(&mut self, slot: usize) -> (u64, u64) {
        self.ask(&format!("p0 {slot}"))
    }

    /// Where a slot was when it was last freed.
    pub fn freed(&self, slot: usize) -> u64 {
        self.freed[&slot]
    }

    /// The thread pointer of a thread.
    pub fn thread(&mut self, thread: usize) -> u64 {
        self.ask(&format!("b{thread}")).0
    }

    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, address).unwrap();
    }

    pub fn peek(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, address).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// The top chunk: the one whose end is the end of the heap.
    pub fn top(&mut self) -> u64 {
        let snapshot = self.snapshot();
        let main = super::find(&snapshot, self.data()).unwrap();
        self.peek(main + 96)
    }

    fn mappings(&self) -> Vec<(GuestRange, String)> {
        let text = fs::read_to_string(format!("/proc/{}/maps", self.process.id())).unwrap();
        let mut found = Vec::new();
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let (start, end) = words[0].split_once('-').unwrap();
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            if words[1].starts_with("rw-p") {
                let name = words.get(5).copied().unwrap_or_default();
                found.push((
                    GuestRange::from_bounds(hex(start), hex(end)),
                    name.to_owned(),
                ));
            }
        }
        found
    }

    pub fn data(&self) -> Vec<GuestRange> {
        let files = self.mappings().into_iter();
        let files = files.filter(|(_, name)| name.starts_with('/'));
        files.map(|(range, _)| range).collect()
    }

    pub fn brk(&self) -> GuestRange {
        let heap = self
            .mappings()
            .into_iter()
            .find(|(_, name)| name == "[heap]");
        heap.map_or(GuestRange::from_bounds(0, 0), |(range, _)| range)
    }

    /// A copy of all that the child can write, without the stacks of its threads.
    pub fn snapshot(&mut self) -> Snapshot {
        let mut pages = BTreeMap::new();
        for (range, _) in self.mappings() {
            let skipped = match range.len() >= 8 << 20 {
                // The end of a thread's stack holds its thread-local variables.
                true => range.len() - (64 << 10),
                false => 0,
            };
            let mut bytes = vec![0; (range.len() - skipped) as usize];
            let start = range.start() + skipped;
            if self.memory.read_exact_at(&mut bytes, start).is_err() {
                continue;
            }
            for (i, page) in bytes.chunks_exact(4096).enumerate() {
                let page: Box<[u8; 4096]> = Box::new(page.try_into().unwrap());
                pages.insert(start / 4096 + i as u64, page);
            }
        }
        let differs = |(number, page): &(&u64, _)| self.last.get(number) != Some(*page);
        self.changed = pages
            .iter()
            .filter(differs)
            .map(|(number, _)| PageNumber(*number))
            .collect();
        self.last = pages.clone();
        Overlay {
            memory: &Nothing,
            pages,
        }
    }

    /// What the last snapshot has that the one before had not.
    pub fn changed(&self) -> Vec<PageNumber> {
        self.changed.clone()
    }

    pub fn pages(&self, snapshot: &Snapshot) -> Vec<PageNumber> {
        snapshot
            .pages
            .keys()
            .map(|number| PageNumber(*number))
            .collect()
    }
}

/// Writes to a snapshot.
pub fn write(snapshot: &mut Snapshot, address: u64, bytes: &[u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        let at = address + i as u64;
        if let Some(page) = snapshot.pages.get_mut(&(at / 4096)) {
            page[(at % 4096) as usize] = *byte;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
