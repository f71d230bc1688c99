//! Messages from each process of a server to all of them, in memory that they share.
//!
//! A ring of slots. A process may be killed in the middle of a message and another one may be slow, so nobody waits: a
//! message has a checksum, a reader passes over what is overwritten or stays unfinished, and all that is lost then is
//! that message. All zero is an empty ring.

use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use siphasher::sip::SipHasher13;

/// An unfinished message is passed over after this time.
const PATIENCE: Duration = Duration::from_millis(500);

/// A ring of `SLOTS` messages of up to `WORDS` * 8 bytes.
#[derive(Debug)]
#[repr(C)]
pub struct Broadcast<const SLOTS: usize, const WORDS: usize> {
    /// Messages begun so far.
    head: AtomicU64,
    slots: [Slot<WORDS>; SLOTS],
}

#[derive(Debug)]
#[repr(C)]
struct Slot<const WORDS: usize> {
    /// Twice the number of the message, counted from one, while it is written, and one more when it is complete.
    state: AtomicU64,
    len: AtomicU64,
    checksum: AtomicU64,
    words: [AtomicU64; WORDS],
}

/// How far one process has read.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    next: u64,
    /// Since when the next message is unfinished.
    unfinished: Option<Instant>,
}

impl<const SLOTS: usize, const WORDS: usize> Broadcast<SLOTS, WORDS> {
    /// An empty ring.
    #[cfg(test)]
    pub(crate) fn new() -> Box<Self> {
        let zero = || AtomicU64::new(0);
        let slot = |_| Slot {
            state: zero(),
            len: zero(),
            checksum: zero(),
            words: std::array::from_fn(|_| zero()),
        };
        Box::new(Self {
            head: zero(),
            slots: std::array::from_fn(slot),
        })
    }

    /// Sends `message`; one that is too long is not sent.
    pub fn send(&self, message: &[u8]) {
        if message.len() > WORDS * 8 {
            return;
        }
        let number = self.head.fetch_add(1, Ordering::AcqRel);
        let Some(slot) = self.slot(number) else {
            return;
        };
        slot.state.store(2 * (number + 1), Ordering::Release);
        fence(Ordering::Release);
        slot.len.store(message.len() as u64, Ordering::Relaxed);
        slot.checksum
            .store(checksum(number, message), Ordering::Relaxed);
        for (word, bytes) in slot.words.iter().zip(message.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
        }
        slot.state.store(2 * (number + 1) + 1, Ordering::Release);
    }

    /// The next message that `reader` has not had.
    pub fn receive(&self, reader: &mut Reader, now: Instant) -> Option<Vec<u8>> {
        loop {
            let head = self.head.load(Ordering::Acquire);
            reader.next = reader.next.max(head.saturating_sub(SLOTS as u64));
            if reader.next >= head {
                return None;
            }
            let number = reader.next;
            let slot = self.slot(number)?;
            if slot.state.load(Ordering::Acquire) < 2 * (number + 1) + 1 {
                let since = *reader.unfinished.get_or_insert(now);
                if now.saturating_duration_since(since) < PATIENCE {
                    return None;
                }
            }
            reader.unfinished = None;
            reader.next += 1;
            if let Some(message) = slot.read(number) {
                return Some(message);
            }
        }
    }

    fn slot(&self, number: u64) -> Option<&Slot<WORDS>> {
        self.slots.get((number % SLOTS as u64) as usize)
    }
}

impl<const WORDS: usize> Slot<WORDS> {
    /// Message `number`, unless it is unfinished, overwritten or mixed with another one.
    fn read(&self, number: u64) -> Option<Vec<u8>> {
        let len = self.len.load(Ordering::Relaxed) as usize;
        if len > WORDS * 8 {
            return None;
        }
        let words = self.words[..len.div_ceil(8)].iter();
        let mut message: Vec<u8> = words
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect();
        message.truncate(len);
        let is_whole = self.checksum.load(Ordering::Relaxed) == checksum(number, &message);
        is_whole.then_some(message)
    }
}

fn checksum(number: u64, message: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write_u64(number + 1);
    hasher.write(message);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Ring = Broadcast<4, 4>;

    fn all(ring: &Ring, reader: &mut Reader, now: Instant) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| ring.receive(reader, now)).collect()
    }

    #[test]
    fn every_reader_gets_every_message_in_order() {
        let (ring, now) = (Ring::new(), Instant::now());
        let (mut one, mut other) = (Reader::default(), Reader::default());
        ring.send(b"a");
        assert_eq!(all(&ring, &mut one, now), [b"a".to_vec()]);
        ring.send(b"");
        ring.send(&[7; 32]);
        ring.send(&[7; 33]);
        assert_eq!(all(&ring, &mut one, now), [vec![], vec![7; 32]]);
        assert_eq!(
            all(&ring, &mut other, now),
            [b"a".to_vec(), vec![], vec![7; 32]]
        );
    }

    #[test]
    fn a_slow_reader_misses_the_oldest() {
        let (ring, now) = (Ring::new(), Instant::now());
        let mut reader = Reader::default();
        (0..10u8).for_each(|n| ring.send(&[n]));
        let expected: Vec<Vec<u8>> = (6..10).map(|n| vec![n]).collect();
        assert_eq!(all(&ring, &mut reader, now), expected);
    }

    #[test]
    fn what_a_killed_process_left_unfinished_is_passed_over() {
        let (ring, now) = (Ring::new(), Instant::now());
        let mut reader = Reader::default();
        let number = ring.head.fetch_add(1, Ordering::Relaxed);
        ring.slots[0]
            .state
            .store(2 * (number + 1), Ordering::Relaxed);
        ring.send(b"later");
        assert_eq!(ring.receive(&mut reader, now), None);
        assert_eq!(all(&ring, &mut reader, now + PATIENCE), [b"later".to_vec()]);
    }

    #[test]
    fn threads_never_see_a_mixed_message() {
        let ring = Ring::new();
        std::thread::scope(|scope| {
            for n in 1..=3u8 {
                let ring = &ring;
                scope.spawn(move || (0..2000).for_each(|_| ring.send(&[n; 32])));
            }
            let mut reader = Reader::default();
            for _ in 0..2000 {
                for message in all(&ring, &mut reader, Instant::now()) {
                    assert!(message.len() == 32 && message.iter().all(|b| *b == message[0]));
                }
            }
        });
    }
}
