//! From the arguments of a call to the connection that it works for.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::provenance::{Producer, Provenance};

/// Bytes of an object that are looked at.
const OBJECT: usize = 256;
/// Words of an object that are followed as pointers.
const FOLLOWED: usize = 24;
/// Bytes that are looked at of what an object points to.
const POINTEE: usize = 64;
/// How much more an object says about itself than what it points to does.
const DIRECT: u32 = 4;

/// The connection that a call works for, as far as its arguments tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// The connection.
    pub producer: Producer,
    /// How much speaks for it.
    pub score: u32,
    /// It is named: an argument leads to what belongs to that connection for certain. Otherwise there are only
    /// words that its requests happen to have changed last.
    pub named: bool,
    /// It is named by the arguments and what they point to, not only further away.
    pub direct: bool,
    /// Two calls with the same arguments have the same.
    pub signature: u64,
}

/// Guest memory, as the search sees it.
pub trait Memory {
    /// Copies from `address` and returns how many bytes there were.
    fn read(&mut self, address: u64, into: &mut [u8]) -> usize;
    /// Whether an address is in the thread's own stack, where the same place is used for one task after the
    /// other.
    fn is_local(&self, address: u64) -> bool;
    /// The connection that the guest knows by this pointer, as far as the monitor has been told (the `data` of
    /// an interest in events).
    fn known_as(&self, pointer: u64) -> Option<Producer>;
    /// Whether the connection is still open. What belonged to one that is not may be something else now.
    fn is_open(&self, producer: Producer) -> bool;
}

#[derive(Default)]
struct Votes {
    /// Those that are named: by the objects, and further away.
    named: HashMap<Producer, (u32, u32)>,
    /// Those whose descriptor is in a word that they have changed.
    described: HashMap<Producer, u32>,
    /// Those that have changed words of the objects.
    changed: HashMap<Producer, u32>,
    signature: u64,
}

impl Votes {
    /// Adds those of one more argument.
    fn add(&mut self, other: Votes, signature: u64) {
        if !other.named.is_empty() || !other.changed.is_empty() {
            self.signature = self.signature.rotate_left(1) ^ signature;
        }
        for (producer, (near, far)) in other.named {
            let sum = self.named.entry(producer).or_default();
            *sum = (sum.0 + near, sum.1 + far);
        }
        for (producer, words) in other.described {
            *self.described.entry(producer).or_default() += words;
        }
        for (producer, words) in other.changed {
            *self.changed.entry(producer).or_default() += words;
        }
    }
}

impl Provenance {
    /// Follows the arguments of a call, two steps far. None if they lead to nobody, or to several alike.
    ///
    /// A connection is named by a pointer to the memory that its bytes were received into, to the object that has
    /// this memory in it, or to what the guest gave `epoll_ctl` for it; and by a descriptor that its own request
    /// has written. Where nothing of this is found, whoever has changed most of the words counts. That is weaker:
    /// a word that was written anew with the value that it had is nobody's news.
    ///
    /// The first argument that names one connection is believed: a call may have fewer arguments than there
    /// are registers, and the others hold what was left there.
    pub fn attribute(&self, arguments: &[u64], memory: &mut dyn Memory) -> Option<Evidence> {
        let mut all = Votes::default();
        for &argument in arguments {
            let mut votes = Votes::default();
            let signature = self.weigh(&mut votes, argument, memory);
            if let Some(evidence) = decide(&votes, signature).filter(|e| e.direct) {
                return Some(evidence);
            }
            all.add(votes, signature);
        }
        decide(&all, all.signature)
    }

    /// Collects what one argument says; returns what tells it from others.
    fn weigh(&self, votes: &mut Votes, argument: u64, memory: &mut dyn Memory) -> u64 {
        let start = argument & !7;
        let mut bytes = [0u8; OBJECT];
        let len = object_len(start, memory).min(OBJECT);
        let len = memory.read(start, &mut bytes[..len]);
        if len == 0 {
            return 0;
        }
        self.name(votes, argument, memory, true);
        for (i, word) in bytes[..len].chunks_exact(8).enumerate() {
            let value = u64::from_ne_bytes(word.try_into().unwrap_or([0; 8]));
            let is_pointer = memory.read(value, &mut [0]) == 1;
            self.look_at(votes, start.wrapping_add(i as u64 * 8), value, is_pointer);
            if i < FOLLOWED && value != argument && !memory.is_local(value) {
                self.follow(votes, value, memory);
            }
        }
        let mut signature = DefaultHasher::new();
        if !memory.is_local(argument) {
            argument.hash(&mut signature);
        }
        bytes[..len.min(POINTEE)].hash(&mut signature);
        signature.finish()
    }

    /// A pointer may name a connection.
    fn name(&self, votes: &mut Votes, pointer: u64, memory: &mut dyn Memory, near: bool) -> bool {
        let known = memory.known_as(pointer);
        let producer = known.or_else(|| {
            if memory.is_local(pointer) {
                return None;
            }
            let len = object_len(pointer, memory) as u64;
            self.receivers(pointer, len).find(|p| memory.is_open(*p))
        });
        if let Some(producer) = producer {
            let (by_objects, further) = votes.named.entry(producer).or_default();
            match near {
                true => *by_objects += DIRECT,
                false => *further += 1,
            }
        }
        producer.is_some()
    }

    /// A word of an object: who has changed it, and whether it is a descriptor of theirs.
    fn look_at(&self, votes: &mut Votes, address: u64, value: u64, is_pointer: bool) {
        let Some(batch) = self.writer(address).and_then(|number| self.batch(number)) else {
            return;
        };
        let producer = batch.producer;
        *votes.changed.entry(producer).or_default() += DIRECT;
        let halves = [value as u32 as i32, (value >> 32) as i32];
        let is_descriptor = producer.origin.fd().is_some_and(|fd| halves.contains(&fd));
        if is_descriptor && !is_pointer {
            *votes.described.entry(producer).or_default() += DIRECT;
        }
    }

    /// What an object points to.
    fn follow(&self, votes: &mut Votes, pointer: u64, memory: &mut dyn Memory) {
        if memory.read(pointer, &mut [0]) == 0 || self.name(votes, pointer, memory, true) {
            return;
        }
        let start = pointer & !7;
        let mut bytes = [0u8; POINTEE];
        let len = object_len(start, memory).min(POINTEE);
        let len = memory.read(start, &mut bytes[..len]);
        let mut changed: HashMap<Producer, u32> = HashMap::new();
        for (i, word) in bytes[..len].chunks_exact(8).enumerate() {
            let value = u64::from_ne_bytes(word.try_into().unwrap_or([0; 8]));
            if memory.read(value, &mut [0]) == 1 {
                self.name(votes, value, memory, false);
            }
            let writer = self.writer(start.wrapping_add(i as u64 * 8));
            if let Some(batch) = writer.and_then(|number| self.batch(number)) {
                *changed.entry(batch.producer).or_default() += 1;
            }
        }
        // All of it says no more than one word of the object itself.
        for (producer, words) in changed {
            *votes.changed.entry(producer).or_default() += words.min(DIRECT);
        }
    }
}

fn decide(votes: &Votes, signature: u64) -> Option<Evidence> {
    let evidence = |(producer, score), named| Evidence {
        producer,
        score,
        named,
        direct: false,
        signature,
    };
    if votes.named.is_empty() {
        let described = clear_winner(votes.described.iter().map(|(p, n)| (*p, *n)));
        let changed = || clear_winner(votes.changed.iter().map(|(p, n)| (*p, *n)));
        return described
            .map(|found| evidence(found, true))
            .or_else(|| Some(evidence(changed()?, false)));
    }
    let all = votes.named.iter();
    let found = clear_winner(all.map(|(p, (near, far))| (*p, near + far)))?;
    let near = votes.named.get(&found.0).map_or(0, |(near, _)| *near);
    Some(Evidence {
        direct: near > 0,
        ..evidence(found, true)
    })
}

/// The one with most votes, if no other has nearly as many.
fn clear_winner(votes: impl Iterator<Item = (Producer, u32)> + Clone) -> Option<(Producer, u32)> {
    let most = votes.clone().map(|(_, n)| n).max()?;
    let mut near = votes.filter(|(_, n)| u64::from(*n) * 4 > u64::from(most) * 3);
    let winner = near.next()?;
    near.next().is_none().then_some(winner)
}

/// The size of the object at `start` if it looks like a chunk of glibc's malloc, so that its neighbours are
/// not taken for parts of it; else as much as is looked at.
fn object_len(start: u64, memory: &mut dyn Memory) -> usize {
    let mut header = [0u8; 8];
    if !start.is_multiple_of(16) || memory.read(start.wrapping_sub(8), &mut header) != 8 {
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
    use guest_agentless::{GuestRange, PageNumber};
    use proptest::prelude::*;
    use std::sync::Arc;

    const BASE: u64 = 0x10000;

    fn producer(fd: i32) -> Producer {
        Producer {
            origin: Origin::Stream(fd),
            generation: fd as u64,
        }
    }

    /// One page of memory that requests write to.
    struct Page {
        content: Box<PageContent>,
        provenance: Provenance,
        known: HashMap<u64, Producer>,
        closed: Vec<Producer>,
    }

    struct View<'a>(&'a Page);

    impl Memory for View<'_> {
        fn read(&mut self, address: u64, into: &mut [u8]) -> usize {
            let Some(at) = address.checked_sub(BASE).filter(|at| *at < 4096) else {
                return 0;
            };
            let from = &self.0.content.bytes()[at as usize..];
            let len = from.len().min(into.len());
            into[..len].copy_from_slice(&from[..len]);
            len
        }

        fn is_local(&self, address: u64) -> bool {
            (BASE + 0xf00..BASE + 0x1000).contains(&address)
        }

        fn known_as(&self, pointer: u64) -> Option<Producer> {
            self.0.known.get(&pointer).copied()
        }

        fn is_open(&self, producer: Producer) -> bool {
            !self.0.closed.contains(&producer)
        }
    }

    impl Page {
        fn new() -> Page {
            let mut provenance = Provenance::default();
            provenance.handed_off();
            Page {
                content: PageContent::boxed(),
                provenance,
                known: HashMap::new(),
                closed: Vec::new(),
            }
        }

        fn request(&mut self, fd: i32, writes: &[(u64, u64)]) {
            let before = self.content.clone();
            self.put(writes);
            let number = self.provenance.commits(Some(Batch {
                producer: producer(fd),
                peer: None,
                input: Arc::from(&b""[..]),
            }));
            let page = PageNumber(BASE / 4096);
            self.provenance
                .changed(number, page, &before, &self.content);
        }

        fn put(&mut self, writes: &[(u64, u64)]) {
            for (address, value) in writes {
                let at = (address - BASE) as usize;
                self.content.bytes_mut()[at..at + 8].copy_from_slice(&value.to_ne_bytes());
            }
        }

        fn receive(&mut self, fd: i32, address: u64) {
            let range = GuestRange::from_bounds(address, address + 16);
            self.provenance.received(range, producer(fd));
        }

        fn attribute(&self, arguments: &[u64]) -> Option<Evidence> {
            self.provenance.attribute(arguments, &mut View(self))
        }

        fn fd(&self, arguments: &[u64]) -> Option<i32> {
            self.attribute(arguments)?.producer.origin.fd()
        }
    }

    /// Two connections, and a queue of a task of each: link, connection, number.
    fn queue() -> (Page, u64, u64) {
        let mut m = Page::new();
        let (a, b) = (BASE + 0x800, BASE + 0x900);
        let (first, second) = (BASE + 0x100, BASE + 0x140);
        for (fd, connection) in [(5, a), (6, b)] {
            m.put(&[(connection - 8, 0x61)]);
            m.receive(fd, connection + 32);
        }
        m.request(5, &[(first - 8, 0x41), (first + 8, a), (first + 16, 1)]);
        let linked = [
            (second - 8, 0x41),
            (second + 8, b),
            (second + 16, 2),
            (first, second),
        ];
        m.request(6, &linked);
        (m, first, second)
    }

    #[test]
    fn a_task_belongs_to_whom_it_names_and_not_to_who_linked_it() {
        let (m, first, second) = queue();
        assert_eq!(m.fd(&[first]), Some(5));
        assert_eq!(m.fd(&[0, 3, first, u64::MAX]), Some(5));
        let evidence = m.attribute(&[first]).unwrap();
        assert!(evidence.named && evidence.direct);
        let evidence = m.attribute(&[second]).unwrap();
        assert_eq!(evidence.producer, producer(6));
        assert!(evidence.named && evidence.direct);
        assert_eq!(m.fd(&[BASE + 0xc00]), None);
        assert_eq!(m.fd(&[]), None);
    }

    #[test]
    fn a_task_that_was_written_anew_with_the_same_values_is_not_that_of_its_predecessor() {
        let (mut m, first, _) = queue();
        // All of it is as it was, but for the connection, which is another one at another place.
        m.put(&[(BASE + 0xa00 - 8, 0x61)]);
        m.receive(9, BASE + 0xa20);
        m.request(9, &[(first, 0), (first + 8, BASE + 0xa00)]);
        assert_eq!(m.fd(&[first]), Some(9));
        // And here at the same place.
        m.receive(10, BASE + 0xa20);
        assert_eq!(m.fd(&[first]), Some(10));
    }

    #[test]
    fn a_copy_in_the_stack_names_the_connection_by_its_pointers() {
        let (mut m, first, _) = queue();
        m.put(&[(BASE + 0xf08, BASE + 0x800)]);
        let evidence = m.attribute(&[BASE + 0xf00]).unwrap();
        assert_eq!(evidence.producer, producer(5));
        assert!(evidence.direct);
        assert_eq!(m.fd(&[first]), Some(5));
    }

    #[test]
    fn a_connection_is_known_by_what_events_are_told_with() {
        let mut m = Page::new();
        m.known.insert(BASE + 0x40, producer(7));
        m.put(&[(BASE + 0x200, BASE + 0x40)]);
        assert_eq!(m.fd(&[BASE + 0x40]), Some(7));
        assert_eq!(m.fd(&[BASE + 0x200]), Some(7));
    }

    #[test]
    fn a_buffer_of_a_closed_connection_is_something_else_now() {
        let (mut m, first, _) = queue();
        m.receive(9, first + 24);
        assert_eq!(m.fd(&[first]), None, "two buffers");
        m.closed.push(producer(9));
        assert_eq!(m.fd(&[first]), Some(5));
    }

    #[test]
    fn a_descriptor_that_its_own_request_has_written_names_it() {
        let mut m = Page::new();
        m.request(5, &[(BASE, 5 | 1 << 32)]);
        m.request(6, &[(BASE + 8, 5), (BASE + 16, 1), (BASE + 24, 1)]);
        let evidence = m.attribute(&[BASE]).unwrap();
        assert_eq!((evidence.producer, evidence.named), (producer(5), true));
    }

    #[test]
    fn who_has_changed_most_of_it_is_the_last_resort() {
        let mut m = Page::new();
        m.request(5, &[(BASE, 1), (BASE + 8, 2), (BASE + 16, 3)]);
        m.request(6, &[(BASE, 9)]);
        let evidence = m.attribute(&[BASE]).unwrap();
        assert_eq!((evidence.producer, evidence.named), (producer(5), false));
    }

    #[test]
    fn what_belongs_to_several_alike_is_nobodys() {
        let mut m = Page::new();
        m.request(5, &[(BASE, 1), (BASE + 16, 1)]);
        m.request(6, &[(BASE + 8, 1), (BASE + 24, 1)]);
        assert_eq!(m.fd(&[BASE]), None);
        let (m, first, second) = queue();
        assert_eq!(m.fd(&[first, second]), Some(5), "the first argument");
    }

    #[test]
    fn the_same_arguments_have_the_same_signature() {
        let mut m = Page::new();
        m.request(5, &[(BASE, 1), (BASE + 0x400, 1)]);
        let of = |m: &Page, a| m.attribute(&[a]).unwrap().signature;
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
            received in prop::collection::vec((0..4i32, BASE..BASE + 4000), 0..10),
        ) {
            let mut m = Page::new();
            for (word, value, fd) in &writes {
                m.request(*fd, &[(BASE + word * 8, *value)]);
            }
            for (fd, address) in &received {
                m.receive(*fd, *address);
            }
            if let Some(fd) = m.fd(&arguments) {
                let written = writes.iter().any(|(_, _, by)| *by == fd);
                prop_assert!(written || received.iter().any(|(by, _)| *by == fd));
            }
        }
    }
}
