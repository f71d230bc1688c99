//! Writes the core of a fault from its quarantine.

use std::collections::BTreeMap;

use guest_agentless::coredump::CoreDump;
use guest_agentless::{Backing, GuestRange, PAGE_SIZE, PageNumber, Vma};
use recovery::report::{Core, ReportId, ReportStore, SaveError};

use crate::memory::copy;
use crate::process::quarantine::Quarantine;

/// Pages that are read only now at most.
const LATER_LIMIT: usize = 1024;

/// Saves the core of the report `id`.
pub(super) fn save(
    store: &ReportStore,
    id: &ReportId,
    quarantine: &Quarantine,
    mappings: &[Vma],
) -> Result<Core, SaveError> {
    let q = quarantine;
    let contents = q.contents.iter().map(|content| &content.bytes()[..]);
    let mut pages: BTreeMap<PageNumber, &[u8]> = q.pages.iter().copied().zip(contents).collect();
    let late = read_late(q, mappings, &pages);
    pages.extend(late.iter().map(|(page, content)| (*page, &content[..])));
    let dump = CoreDump {
        process: &q.process,
        threads: &q.threads,
        signal: q.signal.as_ref().map(|(number, info)| (*number, info)),
        mappings,
        pages,
        unchanged: unchanged(&q.modules, &q.changed),
    };
    let mut bytes = 0;
    let path = store.save_core(id, |out| {
        bytes = dump.write(out)?;
        Ok(())
    })?;
    Ok(Core {
        bytes,
        program: q.process.program.clone(),
        pages_written: q.written,
        pages_left_out: q.left_out,
        path: Some(path.display().to_string()),
    })
}

/// What need not be taken while everybody waits: the headers of mapped files, by which a debugger knows them again;
/// the vDSO; what the loader has relocated and then protected; and variables of libraries, which may have changed
/// by now.
fn read_late(
    q: &Quarantine,
    mappings: &[Vma],
    taken: &BTreeMap<PageNumber, &[u8]>,
) -> Vec<(PageNumber, Box<[u8; PAGE_SIZE as usize]>)> {
    let first =
        |range: GuestRange| GuestRange::from_bounds(range.start(), range.start() + PAGE_SIZE);
    let headers = mappings.iter().filter_map(|vma| match &vma.backing {
        Backing::File(file) if file.offset == 0 && !vma.protection.is_writable() => {
            Some(first(vma.range))
        }
        Backing::Vdso => Some(vma.range),
        _ => None,
    });
    headers
        .flat_map(|range| range.pages())
        .chain(q.changed.iter().copied())
        .filter(|page| !taken.contains_key(page))
        .take(LATER_LIMIT)
        .filter_map(|page| {
            let mut content = Box::new([0; PAGE_SIZE as usize]);
            copy::read(page.address().0, &mut content[..]).ok()?;
            Some((page, content))
        })
        .collect()
}

/// The parts of `modules` without the pages `changed`; both ascend.
fn unchanged(modules: &[GuestRange], changed: &[PageNumber]) -> Vec<GuestRange> {
    let mut parts = Vec::new();
    let mut add = |from: u64, to: u64| {
        if from < to {
            parts.push(GuestRange::from_bounds(from, to));
        }
    };
    for module in modules {
        let mut from = module.start();
        let first = changed.partition_point(|page| page.address().0 < module.start());
        let inside = changed[first..].iter().map(|page| page.address().0);
        for page in inside.take_while(|page| *page < module.end()) {
            add(from, page);
            from = page + PAGE_SIZE;
        }
        add(from, module.end());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, pages: u64) -> GuestRange {
        GuestRange::from_bounds(first * PAGE_SIZE, (first + pages) * PAGE_SIZE)
    }

    #[test]
    fn changed_pages_are_cut_out() {
        let modules = [range(10, 4), range(20, 2), range(22, 3), range(40, 1)];
        let changed = [10, 12, 13, 22, 30, 40].map(PageNumber);
        let expected = [range(11, 1), range(20, 2), range(23, 2)];
        assert_eq!(unchanged(&modules, &changed), expected);
        assert_eq!(unchanged(&modules, &[]), modules);
    }
}
