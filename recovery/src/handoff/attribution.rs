//! From the arguments of a call to the connection that it works for.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::provenance::{Producer, Provenance};

/// Bytes of an object that are looked at.
const OBJECT: usize = 256;
/// Words of an object that are followed as pointers.
const FOLLOWED: usize = 16;
/// Bytes that are looked at of what an object points to.
const POINTEE: usize = 64;
/// What a word of an object says, and what all that it points to says at most.
const WEIGHT: u32 = 4;

/// The connection that a call works for, as far as its arguments tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// The connection.
    pub producer: Producer,
    /// Its latest request among those that the arguments lead to.
    pub batch: u64,
    /// How much speaks for it.
    pub score: u32,
    /// Two calls with the same arguments have the same.
    pub signature: u64,
}

impl Provenance {
    /// Follows the arguments of a call, two steps far. `read` copies guest memory and returns how many bytes
    /// there were. `is_local` says whether an address is in the thread's own stack, where the same place is
    /// used for one task after the other. None if the words found belong to nobody, or to several alike.
    ///
    /// An object may have words that others wrote, such as the link to its successor in a queue; most of
    /// them tell whose it is.
    pub fn attribute(
        &self,
        arguments: &[u64],
        read: &mut dyn FnMut(u64, &mut [u8]) -> usize,
        is_local: &dyn Fn(u64) -> bool,
    ) -> Option<Evidence> {
        let mut votes: HashMap<Producer, (u32, u64)> = HashMap::new();
        let mut signature = DefaultHasher::new();
        let mut seen = Vec::new();
        for &argument in arguments {
            let start = argument & !7;
            if seen.contains(&start) {
                continue;
            }
            seen.push(start);
            let mut bytes = [0u8; OBJECT];
            let len = object_len(start, read).min(OBJECT);
            let len = read(start, &mut bytes[..len]);
            let before: u32 = votes.values().map(|(score, _)| score).sum();
            for (i, word) in bytes[..len].chunks_exact(8).enumerate() {
                self.vote(&mut votes, start.wrapping_add(i as u64 * 8), WEIGHT);
                let pointer = u64::from_ne_bytes(word.try_into().unwrap_or([0; 8])) & !7;
                if i < FOLLOWED && !seen.contains(&pointer) && !is_local(pointer) {
                    self.vote_pointee(&mut votes, pointer, read);
                }
            }
            if votes.values().map(|(score, _)| score).sum::<u32>() > before {
                if !is_local(argument) {
                    argument.hash(&mut signature);
                }
                bytes[..len.min(POINTEE)].hash(&mut signature);
            }
        }
        let most = votes.values().map(|(score, _)| *score).max()?;
        let rest = |(score, _): &&(u32, u64)| *score * 4 > most * 3;
        if votes.values().filter(rest).count() != 1 {
            return None;
        }
        let (producer, (score, batch)) = votes.into_iter().find(|(_, (n, _))| *n == most)?;
        Some(Evidence {
            producer,
            batch,
            score,
            signature: signature.finish(),
        })
    }

    fn vote(&self, votes: &mut HashMap<Producer, (u32, u64)>, address: u64, weight: u32) {
        let Some(number) = self.writer(address) else {
            return;
        };
        let Some(batch) = self.batch(number) else {
            return;
        };
        let (score, latest) = votes.entry(batch.producer).or_default();
        *score += weight;
        *latest = number.max(*latest);
    }

    /// What a pointer leads to is heard too, but says no more than one word of the object itself.
    fn vote_pointee(
        &self,
        votes: &mut HashMap<Producer, (u32, u64)>,
        pointer: u64,
        read: &mut dyn FnMut(u64, &mut [u8]) -> usize,
    ) {
        if read(pointer, &mut [0]) == 0 {
            return;
        }
        let len = object_len(pointer, read).min(POINTEE) as u64;
        let mut found = HashMap::new();
        for at in (0..len).step_by(8) {
            self.vote(&mut found, pointer.wrapping_add(at), 1);
        }
        for (producer, (score, batch)) in found {
            let (total, latest) = votes.entry(producer).or_default();
            *total += score.min(WEIGHT);
            *latest = batch.max(*latest);
        }
    }
}

/// The size of the object at `start` if it looks like a chunk of glibc's malloc, so that its neighbours are
/// not taken for parts of it; else as much as is looked at.
fn object_len(start: u64, read: &mut dyn FnMut(u64, &mut [u8]) -> usize) -> usize {
    let mut header = [0u8; 8];
    if !start.is_multiple_of(16) || read(start.wrapping_sub(8), &mut header) != 8 {
        return OBJECT;
    }
    let size = u64::from_ne_bytes(header);
    match size & !7 {
        len if size & 8 == 0 && (32..1 << 20).contains(&len) => (len - 8) as usize,
        _ => OBJECT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;
    use crate::handoff::Batch;
    use crate::tracker::PageContent;
    use guest_agentless::PageNumber;
    use proptest::prelude::*;
    use std::sync::Arc;

    const BASE: u64 = 0x10000;

    /// One page of memory that requests write to.
    struct Memory(Box<PageContent>, Provenance);

    impl Memory {
        fn new() -> Memory {
            let mut provenance = Provenance::default();
            provenance.handed_off();
            Memory(PageContent::boxed(), provenance)
        }

        fn request(&mut self, fd: i32, writes: &[(u64, u64)]) {
            let before = self.0.clone();
            for (address, value) in writes {
                let at = (address - BASE) as usize;
                self.0.bytes_mut()[at..at + 8].copy_from_slice(&value.to_ne_bytes());
            }
            let producer = Producer {
                origin: Origin::Stream(fd),
                generation: fd as u64,
            };
            let number = self.1.commits(Some(Batch {
                producer,
                peer: None,
                input: Arc::from(&b""[..]),
            }));
            self.1
                .changed(number, PageNumber(BASE / 4096), &before, &self.0);
        }

        fn attribute(&self, arguments: &[u64]) -> Option<Evidence> {
            let mut read = |address: u64, into: &mut [u8]| {
                let Some(at) = address.checked_sub(BASE).filter(|at| *at < 4096) else {
                    return 0;
                };
                let from = &self.0.bytes()[at as usize..];
                let len = from.len().min(into.len());
                into[..len].copy_from_slice(&from[..len]);
                len
            };
            self.1.attribute(arguments, &mut read, &|_| false)
        }

        fn fd(&self, arguments: &[u64]) -> Option<i32> {
            self.attribute(arguments)?.producer.origin.fd()
        }
    }

    #[test]
    fn a_task_belongs_to_who_filled_it_in_and_not_to_who_linked_it() {
        let mut m = Memory::new();
        let (conn, task, next) = (BASE + 0x800, BASE + 0x100, BASE + 0x140);
        m.request(5, &[(conn, 9), (conn + 8, 4)]);
        // Chunk size, link, connection, command, number.
        m.request(
            5,
            &[
                (task - 8, 0x41),
                (task + 8, conn),
                (task + 16, 7),
                (task + 24, 1),
            ],
        );
        m.request(
            6,
            &[
                (next - 8, 0x41),
                (next + 8, 1),
                (next + 16, 2),
                (task, next),
            ],
        );
        assert_eq!(m.fd(&[task]), Some(5));
        assert_eq!(m.fd(&[0, 3, task, u64::MAX]), Some(5));
        assert_eq!(m.fd(&[next]), Some(6));
        assert_eq!(m.fd(&[BASE + 0xf00]), None);
        assert_eq!(m.fd(&[]), None);
    }

    #[test]
    fn a_copy_leads_to_the_connection_by_its_pointers() {
        let mut m = Memory::new();
        let (conn, copy) = (BASE + 0x800, BASE + 0x100);
        m.request(5, &[(conn, 9), (conn + 8, 4)]);
        m.0.bytes_mut()[0x108..0x110].copy_from_slice(&conn.to_ne_bytes());
        assert_eq!(m.fd(&[copy]), Some(5));
    }

    #[test]
    fn what_belongs_to_several_alike_is_nobodys() {
        let mut m = Memory::new();
        m.request(5, &[(BASE, 1), (BASE + 16, 1)]);
        m.request(6, &[(BASE + 8, 1), (BASE + 24, 1)]);
        assert_eq!(m.fd(&[BASE]), None);
    }

    #[test]
    fn the_same_arguments_have_the_same_signature() {
        let mut m = Memory::new();
        m.request(5, &[(BASE, 1), (BASE + 0x400, 1)]);
        let of = |m: &Memory, a| m.attribute(&[a]).unwrap().signature;
        assert_eq!(of(&m, BASE), of(&m, BASE));
        assert_ne!(of(&m, BASE), of(&m, BASE + 0x400));
    }

    proptest! {
        /// Whatever memory holds and the arguments are, the walk ends and finds only what was recorded.
        #[test]
        fn any_arguments_can_be_followed(
            arguments in prop::collection::vec(prop_oneof![any::<u64>(), BASE..BASE + 4096], 0..7),
            writes in prop::collection::vec(
                (0..512u64, prop_oneof![any::<u64>(), BASE..BASE + 4096], 0..4i32), 0..100),
        ) {
            let mut m = Memory::new();
            for (word, value, fd) in &writes {
                m.request(*fd, &[(BASE + word * 8, *value)]);
            }
            if let Some(fd) = m.fd(&arguments) {
                prop_assert!(writes.iter().any(|(_, _, by)| *by == fd));
            }
        }
    }
}
