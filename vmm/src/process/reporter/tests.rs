//! The reporter as a whole, with this very process in the place of the guest.

use std::arch::asm;
use std::fs;
use std::hint::black_box;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use guest_agentless::{Backing, FileBacking, GuestRange, Protection};
use recovery::event::Hex;
use recovery::report::{FaultReport, ReportArchive};
use serde_json::Value;

use super::*;
use crate::memory::reserved_fd;

/// A record with nothing in its optional parts.
pub(super) fn record() -> FaultRecord {
    FaultRecord {
        time: UNIX_EPOCH,
        outcome: Outcome::Recovered,
        reason: None,
        signal: Some(libc::SIGSEGV),
        kind: FaultKind::NullWrite,
        address: Some(0),
        detail: None,
        thread: 17,
        thread_name: "worker".into(),
        registers: vec![("rip", 0), ("rsp", 0)],
        rip: 0,
        rsp: 0,
        rbp: 0,
        rung: "abandon",
        origin: Origin::Stream(7),
        peer: Some("127.0.0.1:4242".into()),
        input: b"SET a 1\r\n".to_vec(),
        stack: Vec::new(),
        mappings: Vec::new(),
        quarantine: None,
        core_missing: None,
        written: vec![(PageNumber(1), 3)],
        pages_written: 1,
        pages_restored: 1,
        undone: vec!["open -> 9 closed".into()],
        dropped_output: b"+OK\r\n".to_vec(),
        kept: Vec::new(),
        replied: false,
        pause: Duration::from_micros(84),
        program: "/usr/bin/server".into(),
    }
}

/// A record of this place, with this thread's stack.
#[inline(never)]
fn record_here() -> FaultRecord {
    let (rip, rsp, rbp): (u64, u64, u64);
    // SAFETY: it only reads registers.
    unsafe {
        asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp", out(reg) rip, out(reg) rsp, out(reg) rbp,
             options(nomem, nostack, preserves_flags));
    }
    let mappings = own_mappings();
    let end = mappings
        .iter()
        .find(|vma| vma.range.contains(rsp))
        .unwrap()
        .range
        .end();
    let mut stack = vec![0; (end - rsp).min(64 << 10) as usize];
    let memory = fs::File::open("/proc/self/mem").unwrap();
    memory.read_exact_at(&mut stack, rsp).unwrap();
    FaultRecord {
        rip,
        rsp,
        rbp,
        stack,
        mappings,
        ..record()
    }
}

/// Likewise, with callers of known names.
#[inline(never)]
fn outermost_function() -> FaultRecord {
    black_box(outer_function())
}

#[inline(never)]
fn outer_function() -> FaultRecord {
    black_box(inner_function())
}

#[inline(never)]
fn inner_function() -> FaultRecord {
    black_box(record_here())
}

/// What `/proc/self/maps` says.
fn own_mappings() -> Vec<Vma> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let flags = fields.next()?;
        let protection = [
            ('r', Protection::READ),
            ('w', Protection::WRITE),
            ('x', Protection::EXEC),
        ];
        let protection = protection
            .into_iter()
            .filter(|(flag, _)| flags.contains(*flag))
            .fold(Protection::NONE, |sum, (_, each)| sum | each);
        let offset = hex(fields.next()?);
        let path = fields.nth(2).unwrap_or("");
        let backing = match path {
            "[heap]" => Backing::Heap,
            "[stack]" => Backing::Stack,
            "[vdso]" => Backing::Vdso,
            _ => file_backing(path, offset).unwrap_or(Backing::Anonymous),
        };
        Some(Vma::new(
            GuestRange::from_bounds(hex(start), hex(end)),
            protection,
            flags.contains('s'),
            backing,
        ))
    };
    maps.lines().filter_map(parse).collect()
}

fn file_backing(path: &str, offset: u64) -> Option<Backing> {
    let metadata = fs::metadata(path).ok()?;
    Some(Backing::File(FileBacking {
        path: Arc::from(path),
        offset,
        device: (libc::major(metadata.dev()), libc::minor(metadata.dev())),
        inode: metadata.ino(),
    }))
}

/// An event log among the monitor's descriptors, which the reporter's thread keeps.
fn event_log(path: &Path) -> EventLog {
    let file = EventLog::append_options().open(path).unwrap();
    EventLog::new(reserved_fd(file.into()).unwrap().into())
}

/// A reporter that writes into a directory of its own.
struct Fixture {
    dir: tempfile::TempDir,
    reporter: Reporter,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let events = event_log(&dir.path().join("events"));
        let store = ReportStore::open(Some(dir.path().join("reports"))).unwrap();
        let reporter = Reporter::new(events, Some(store), 0, Box::leak(Box::default()));
        Fixture { dir, reporter }
    }

    fn reports(&self) -> PathBuf {
        self.dir.path().join("reports")
    }

    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("events")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The only report after everything is written.
    fn report_of(&self, record: FaultRecord) -> FaultReport {
        self.reporter.fault(record);
        self.reporter.finish();
        ReportArchive::new(Some(self.reports()))
            .unwrap()
            .load("last")
            .unwrap()
    }
}

fn listening(n: usize) -> Event {
    Event::Listening {
        address: n.to_string(),
    }
}

/// The frame whose function has `name` as the last part of its own.
fn position(report: &FaultReport, name: &str) -> usize {
    let is_it = |symbol: &String| symbol.contains(name);
    let found = report
        .stack
        .iter()
        .position(|f| f.symbol.as_ref().is_some_and(is_it));
    found.unwrap_or_else(|| panic!("no {name} in {}", report.to_text()))
}

#[test]
fn a_real_stack_has_names_and_lines() {
    let report = Fixture::new().report_of(outermost_function());
    assert_eq!(position(&report, "record_here"), 0);
    assert_eq!(position(&report, "inner_function"), 1);
    assert_eq!(position(&report, "outer_function"), 2);
    assert_eq!(position(&report, "outermost_function"), 3);
    let symbol = report.symbol.as_ref().unwrap();
    assert!(
        symbol.contains("record_here") && symbol.contains("+0x"),
        "{symbol}"
    );
    let inner = &report.stack[1];
    assert!(
        inner.file.as_ref().unwrap().ends_with("reporter/tests.rs"),
        "{inner:?}"
    );
    assert!(inner.line.is_some() && inner.module.is_some());
    // The bottom of a thread's stack is in libc, and the walk has reached it.
    let last = report.stack.last().unwrap();
    assert!(
        last.module.as_ref().unwrap().contains("libc"),
        "{}",
        report.to_text()
    );
}

#[test]
fn a_jump_to_nowhere_has_the_stack_of_its_caller() {
    let mut record = outer_function();
    // What a call through a null pointer does.
    record.stack.splice(0..0, record.rip.to_le_bytes());
    record.rsp -= 8;
    record.rip = 0;
    let report = Fixture::new().report_of(record);
    assert_eq!(report.symbol, None);
    let first = &report.stack[0];
    assert_eq!((first.address, &first.module), (Hex(0), &None));
    assert_eq!(position(&report, "record_here"), 1);
    assert_eq!(position(&report, "outer_function"), 3);
}

#[test]
fn functions_of_libraries_have_names() {
    let mut record = record();
    record.mappings = own_mappings();
    record.rip = libc::getpid as *const () as u64 + 3;
    let report = Fixture::new().report_of(record);
    // It has two names.
    assert!(report.symbol.as_ref().unwrap().ends_with("getpid+0x3"));
    assert!(report.stack[0].module.as_ref().unwrap().contains("libc"));
}

#[test]
fn without_its_file_an_address_is_told_by_module() {
    let mut record = record();
    let range = GuestRange::from_bounds(0x40_0000, 0x50_0000);
    record.mappings = vec![Vma {
        protection: Protection::READ | Protection::EXEC,
        backing: Backing::File(FileBacking {
            path: Arc::from("/opt/gone/server (deleted)"),
            offset: 0x1000,
            device: (1, 2),
            inode: 3,
        }),
        ..Vma::anonymous(range, Protection::NONE)
    }];
    record.rip = 0x40_0010;
    let report = Fixture::new().report_of(record);
    assert_eq!(report.symbol.as_deref(), Some("server (deleted)+0x1010"));
}

#[test]
fn everything_is_written_in_order() {
    let fixture = Fixture::new();
    for i in 0..50 {
        fixture.reporter.emit(listening(i));
        let rip = i as u64;
        fixture.reporter.fault(FaultRecord { rip, ..record() });
    }
    fixture.reporter.finish();
    fixture.reporter.finish();
    fixture.reporter.emit(listening(50));
    fixture.reporter.fault(FaultRecord {
        rip: 50,
        ..record()
    });
    let archive = ReportArchive::new(Some(fixture.reports())).unwrap();
    assert_eq!(archive.list().unwrap().len(), 51);
    let events = fixture.events();
    assert_eq!(events.len(), 102);
    for (i, pair) in events.chunks(2).enumerate() {
        assert_eq!(pair[0]["address"], i.to_string());
        assert_eq!(pair[1]["event"], "recovered");
        let report = archive.load(pair[1]["report"].as_str().unwrap()).unwrap();
        assert_eq!(report.peer.as_deref(), Some("127.0.0.1:4242"));
        assert_eq!((report.input.length, report.dropped_output.length), (9, 5));
        assert_eq!(report.written[0].mapping, "[unmapped]");
        assert_eq!((report.pause_us, report.registers.len()), (84, 2));
    }
}

#[test]
fn a_thousand_faults_of_one_bug_are_one_bug() {
    let fixture = Fixture::new();
    let fault = |n: usize| {
        let peer = Some(n.to_string());
        fixture.reporter.fault(FaultRecord { peer, ..record() });
    };
    (0..1000).for_each(fault);
    // What only counts up counts in a report that is there.
    fixture.reporter.finish();
    let archive = ReportArchive::new(Some(fixture.reports())).unwrap();
    let ids = archive.list().unwrap();
    assert_eq!(ids.len(), 3);
    let first = archive.read(&ids[2]).unwrap();
    let more = first.more.as_ref().unwrap();
    assert_eq!((first.repeat, more.count), (0, 997));
    assert_eq!(more.last_peer.as_deref(), Some("999"));
    let events = fixture.events();
    assert_eq!(events.len(), 1000);
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event["repeat"], n);
        assert_eq!(event["fault"], first.fault);
        let report = match n {
            1 | 2 => &ids[2 - n],
            _ => &first.id,
        };
        assert_eq!(event["report"], report.as_str());
    }
    // Without the first one, there is something to tell again.
    fs::remove_dir_all(archive.path(&first.id)).unwrap();
    fault(1000);
    let told = fixture.events();
    let last = archive
        .load(told[1000]["report"].as_str().unwrap())
        .unwrap();
    assert_eq!((last.repeat, last.more), (1000, None));
}

#[test]
fn a_report_that_cannot_be_saved_still_has_its_event() {
    let fixture = Fixture::new();
    fs::remove_dir_all(fixture.reports()).unwrap();
    fs::write(fixture.reports(), "in the way").unwrap();
    let mut escalated = record();
    escalated.outcome = Outcome::Escalated;
    escalated.reason = Some("again at the same place".into());
    fixture.reporter.fault(record());
    fixture.reporter.fault(escalated);
    fixture.reporter.finish();
    let events = fixture.events();
    assert_eq!(events.len(), 2);
    assert!(events.iter().all(|event| event["report"].is_null()));
    assert_eq!(events[1]["reason"], "again at the same place");
}

fn quarantine() -> Option<Box<Quarantine>> {
    Some(Box::new(Quarantine {
        pages: vec![PageNumber(0x40_0000)],
        // One more than is used.
        contents: vec![PageContent::zero().clone(); 2],
        written: 1,
        left_out: 2,
        ..Quarantine::default()
    }))
}

#[test]
fn the_core_lies_beside_the_report_until_the_bug_is_known() {
    let fixture = Fixture::new();
    let site = Some((0, 0));
    for n in 0..5 {
        assert!(
            matches!(fixture.reporter.room_for_memory(site), Room::Given(_)),
            "{n}"
        );
        fixture.reporter.fault(FaultRecord {
            quarantine: quarantine(),
            ..record()
        });
        if n < 3 {
            continue;
        }
        // The fourth only counts up, and there need not be memory of the next one.
        let begin = std::time::Instant::now();
        while matches!(fixture.reporter.room_for_memory(site), Room::Given(_)) {
            assert!(begin.elapsed() < Duration::from_secs(30));
            thread::sleep(Duration::from_millis(1));
        }
        break;
    }
    assert!(matches!(
        fixture.reporter.room_for_memory(None),
        Room::Given(_)
    ));
    fixture.reporter.finish();
    let archive = ReportArchive::new(Some(fixture.reports())).unwrap();
    let ids = archive.list().unwrap();
    assert_eq!(ids.len(), 3);
    for id in ids {
        let core = archive.read(&id).unwrap().core.unwrap();
        let path = core.path.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), core.bytes);
        assert_eq!((core.pages_written, core.pages_left_out), (1, 2));
        assert!(fs::read(&path).unwrap().starts_with(b"\x7fELF"));
    }
}

#[test]
fn while_much_waits_no_memory_is_taken() {
    let fixture = Fixture::new();
    // The reporter is made to wait for the first one, so that the others stay in the queue.
    let mut big = record();
    big.stack = vec![0; queue::MAX_BYTES / 2];
    big.mappings = own_mappings();
    for _ in 0..2 {
        fixture.reporter.fault(big.clone());
    }
    let refused = (0..1000).any(|_| {
        fixture.reporter.fault(big.clone());
        matches!(fixture.reporter.room_for_memory(None), Room::Refused(_))
    });
    assert!(refused);
}

#[test]
fn without_a_store_there_are_events_only() {
    let dir = tempfile::tempdir().unwrap();
    let events = event_log(&dir.path().join("events"));
    let reporter = Reporter::new(events, None, 0, Box::leak(Box::default()));
    reporter.fault(record());
    drop(reporter);
    let text = fs::read_to_string(dir.path().join("events")).unwrap();
    let event: Value = serde_json::from_str(&text).unwrap();
    assert!(event["report"].is_null() && event["event"] == "recovered");
}

#[test]
fn many_threads_lose_nothing() {
    let fixture = Fixture::new();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..3000).for_each(|n| fixture.reporter.emit(listening(n))));
        }
    });
    fixture.reporter.finish();
    assert_eq!(fixture.events().len(), 12_000);
}

#[test]
fn the_thread_has_its_name_and_no_signals() {
    let fixture = Fixture::new();
    let status = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        let mut texts = tasks.filter_map(|t| fs::read_to_string(t.path().join("status")).ok());
        texts.find(|text| text.starts_with("Name:\tvmsrs-reporter\n"))
    };
    fixture.reporter.emit(listening(0));
    let text = loop {
        // It takes its name when it first runs.
        match status() {
            Some(text) => break text,
            None => thread::yield_now(),
        }
    };
    let blocked = text
        .lines()
        .find_map(|line| line.strip_prefix("SigBlk:\t"))
        .unwrap();
    let blocked = u64::from_str_radix(blocked, 16).unwrap();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGALRM] {
        assert_ne!(blocked & 1 << (signal - 1), 0, "signal {signal}");
    }
}
