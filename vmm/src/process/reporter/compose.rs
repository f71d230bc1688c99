//! Makes the report of a fault from its record.

use guest_agentless::{Backing, PageNumber, Vma};
use recovery::event::Hex;
use recovery::report::{Excerpt, FaultReport, Frame, Register, WrittenMapping};
use recovery::stats;

use super::FaultRecord;

/// The report of the fault with that call stack.
pub(super) fn report(record: FaultRecord, stack: Vec<Frame>) -> FaultReport {
    let r = record;
    let registers = r.registers.iter().map(|(name, value)| Register {
        name: (*name).to_owned(),
        value: Hex(*value),
    });
    FaultReport {
        program: r.program,
        reason: r.reason,
        address: r.address.map(Hex),
        detail: r.detail,
        thread_name: r.thread_name,
        symbol: stack.first().and_then(symbol),
        rung: r.rung.to_owned(),
        registers: registers.collect(),
        peer: r.peer,
        input: Excerpt::new(&r.input),
        pages_written: r.pages_written,
        pages_restored: r.pages_restored,
        written: by_mapping(&r.written, &r.mappings),
        undone: r.undone,
        dropped_output: Excerpt::new(&r.dropped_output),
        kept: r.kept,
        core_missing: r.core_missing,
        replied: r.replied,
        pause_us: stats::micros(r.pause),
        ..FaultReport::new(
            r.time, r.outcome, r.signal, r.kind, r.thread, r.rip, r.origin,
        )
    }
    .with_stack(stack)
}

/// `function+0x12`, or `libc.so.6+0x12` where the function is not known.
fn symbol(frame: &Frame) -> Option<String> {
    let module = || frame.module.as_deref()?.rsplit('/').next();
    let place = frame.symbol.as_deref().or_else(module)?;
    Some(format!("{place}+{}", frame.offset))
}

/// The name of a mapping in reports: the file's path, or what the kernel calls it.
pub(super) fn mapping_name(vma: &Vma) -> &str {
    match &vma.backing {
        Backing::File(file) => &file.path,
        Backing::Anonymous => "[anonymous]",
        Backing::Stack => "[stack]",
        Backing::Heap => "[heap]",
        Backing::Vdso => "[vdso]",
        Backing::Vvar => "[vvar]",
    }
}

/// Pages and changed bytes, summed up for each name of a mapping, in the order of the first page of each.
fn by_mapping(written: &[(PageNumber, u32)], mappings: &[Vma]) -> Vec<WrittenMapping> {
    let mut sums: Vec<WrittenMapping> = Vec::new();
    let mut last: Option<&Vma> = None;
    for (page, bytes_changed) in written {
        let address = page.address().0;
        let holds = |vma: &&Vma| vma.range.contains(address);
        // Most pages lie in the same mapping as the one before.
        last = last.filter(holds).or_else(|| mappings.iter().find(holds));
        let name = last.map_or("[unmapped]", mapping_name);
        let at = sums.iter().position(|sum| sum.mapping == name);
        let at = at.unwrap_or_else(|| {
            sums.push(WrittenMapping {
                mapping: name.to_owned(),
                pages: 0,
                bytes_changed: 0,
            });
            sums.len() - 1
        });
        sums[at].pages += 1;
        sums[at].bytes_changed += u64::from(*bytes_changed);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_agentless::{GuestRange, Protection};

    fn vma(first_page: u64, pages: u64, backing: Backing) -> Vma {
        let range = GuestRange::from_bounds(first_page * 4096, (first_page + pages) * 4096);
        Vma {
            backing,
            ..Vma::anonymous(range, Protection::READ | Protection::WRITE)
        }
    }

    #[test]
    fn pages_are_summed_up_by_name() {
        let mappings = [
            vma(10, 5, Backing::Heap),
            vma(20, 1, Backing::Anonymous),
            vma(30, 1, Backing::Anonymous),
        ];
        let written = [(11, 7), (12, 1), (20, 4), (30, 4096), (99, 1)]
            .map(|(page, bytes)| (PageNumber(page), bytes));
        let sums = by_mapping(&written, &mappings);
        let sums: Vec<_> = sums
            .iter()
            .map(|sum| (&*sum.mapping, sum.pages, sum.bytes_changed))
            .collect();
        let expected = [
            ("[heap]", 2, 8),
            ("[anonymous]", 2, 4100),
            ("[unmapped]", 1, 1),
        ];
        assert_eq!(sums, expected);
    }

    #[test]
    fn a_symbol_names_the_function_or_the_file() {
        let mut frame = Frame {
            address: Hex(0x1012),
            module: Some("/usr/bin/redis-server".into()),
            symbol: Some("main".into()),
            offset: Hex(0x12),
            file: None,
            line: None,
        };
        assert_eq!(symbol(&frame).as_deref(), Some("main+0x12"));
        frame.symbol = None;
        assert_eq!(symbol(&frame).as_deref(), Some("redis-server+0x12"));
        frame.module = None;
        assert_eq!(symbol(&frame), None);
    }
}
