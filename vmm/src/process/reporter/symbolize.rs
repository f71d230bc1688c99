//! Walks the stack of a fault and names its frames.

use std::sync::Arc;

use guest_agentless::unwind::{self, Registers};
use guest_agentless::{Backing, Vma};
use recovery::event::Hex;
use recovery::report::Frame;

use super::FaultRecord;
use super::compose::mapping_name;
use super::module::Modules;

/// Names code addresses, and remembers the files that it has read for it.
#[derive(Default)]
pub(super) struct Symbolizer {
    modules: Modules,
}

impl Symbolizer {
    /// The call stack at the fault, innermost frame first; at least the faulting instruction.
    pub(super) fn frames(&mut self, record: &FaultRecord) -> Vec<Frame> {
        let from = Registers {
            rip: record.rip,
            rsp: record.rsp,
            rbp: record.rbp,
        };
        let mappings = &record.mappings;
        let addresses = unwind::unwind(from, &record.stack, mappings, &mut |file| {
            self.modules.get(file)?.unwind_info.as_ref().map(Arc::clone)
        });
        let frame = |(index, address)| {
            // A return address may already belong to the next line, or even function.
            let back = u64::from(index > 0);
            self.frame(address, back, mappings)
        };
        addresses.into_iter().enumerate().map(frame).collect()
    }

    /// The frame at `address`, of the code that is `back` bytes before it.
    fn frame(&mut self, address: u64, back: u64, mappings: &[Vma]) -> Frame {
        let mut frame = Frame {
            address: Hex(address),
            module: None,
            symbol: None,
            offset: Hex(address),
            file: None,
            line: None,
        };
        let code = address.wrapping_sub(back);
        let Some(vma) = mappings.iter().find(|vma| vma.range.contains(code)) else {
            return frame;
        };
        frame.module = Some(mapping_name(vma).to_owned());
        // Of a file that cannot be read at least the offset in it is known.
        let offset = vma.file_offset(code).unwrap_or(code - vma.range.start());
        frame.offset = Hex(offset.wrapping_add(back));
        let Backing::File(file) = &vma.backing else {
            return frame;
        };
        let module = self.modules.get(file);
        let Some((module, vaddr)) = module.and_then(|m| Some((m, m.vaddr_of(offset)?))) else {
            return frame;
        };
        frame.offset = Hex(vaddr.wrapping_add(back));
        if let Some((name, offset)) = module.symbols.lookup(vaddr) {
            frame.symbol = Some(name.to_owned());
            frame.offset = Hex(offset.wrapping_add(back));
        }
        if let Some(place) = module.lines.as_ref().and_then(|lines| lines.lookup(vaddr)) {
            frame.file = Some(place.file);
            frame.line = place.line;
        }
        frame
    }
}
