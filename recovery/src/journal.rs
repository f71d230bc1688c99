//! The journal of a domain's effects outside guest memory.
//!
//! `D` is an effect that waits for the commit (output, a close), `U` the inverse of one that was done at
//! once. What they are and how they are done is the machine's business; here is only the order: waiting
//! effects are done first to last, inverses last to first.

/// The journal of one domain.
#[derive(Debug)]
pub struct Journal<D, U> {
    deferred: Vec<D>,
    undo: Vec<U>,
    /// How many of each there were at the last [`Journal::mark`].
    marked: (usize, usize),
}

impl<D, U> Default for Journal<D, U> {
    fn default() -> Self {
        Journal {
            deferred: Vec::new(),
            undo: Vec::new(),
            marked: (0, 0),
        }
    }
}

impl<D, U> Journal<D, U> {
    /// Adds an effect to be done at commit, and forgotten at abandon.
    pub fn defer(&mut self, effect: D) {
        self.deferred.push(effect);
    }

    /// Adds the inverse of an effect that has been done.
    pub fn compensate(&mut self, inverse: U) {
        self.undo.push(inverse);
    }

    /// The effects that wait for the commit, in order.
    pub fn deferred(&self) -> &[D] {
        &self.deferred
    }

    /// The inverses of what has been done, in the order in which it was done.
    pub fn inverses(&self) -> &[U] {
        &self.undo
    }

    /// The most recent waiting effect, to be extended in place.
    pub fn last_deferred(&mut self) -> Option<&mut D> {
        self.deferred.last_mut()
    }

    /// Takes the inverses out that `chosen` picks: what they were for is gone.
    pub fn take_inverses(&mut self, mut chosen: impl FnMut(&U) -> bool) -> Vec<U> {
        extract(&mut self.undo, &mut self.marked.1, &mut chosen)
    }

    /// Takes the waiting effects out that `chosen` picks, in order.
    pub fn take_deferred(&mut self, mut chosen: impl FnMut(&D) -> bool) -> Vec<D> {
        extract(&mut self.deferred, &mut self.marked.0, &mut chosen)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.deferred.is_empty() && self.undo.is_empty()
    }

    /// Remembers this point of the domain, for [`Journal::split_at_mark`].
    pub fn mark(&mut self) {
        self.marked = (self.deferred.len(), self.undo.len());
    }

    /// Splits off what has been added since the last mark.
    pub fn split_at_mark(&mut self) -> Journal<D, U> {
        let (deferred, undo) = self.marked;
        Journal {
            deferred: self.deferred.split_off(deferred.min(self.deferred.len())),
            undo: self.undo.split_off(undo.min(self.undo.len())),
            marked: (0, 0),
        }
    }

    /// Ends the domain well: the effects to do, first to last, and the inverses that are not needed any
    /// more (which may hold resources to be released).
    pub fn commit(&mut self) -> (Vec<D>, Vec<U>) {
        (
            std::mem::take(&mut self.deferred),
            std::mem::take(&mut self.undo),
        )
    }

    /// Undoes the domain: the inverses to do, in the order to do them, and the effects that are dropped.
    pub fn abandon(&mut self) -> (Vec<U>, Vec<D>) {
        self.undo.reverse();
        (
            std::mem::take(&mut self.undo),
            std::mem::take(&mut self.deferred),
        )
    }
}

/// Takes what `chosen` picks out of a list of which the first `marked` elements are marked.
fn extract<T>(
    list: &mut Vec<T>,
    marked: &mut usize,
    chosen: &mut impl FnMut(&T) -> bool,
) -> Vec<T> {
    let before = list.get(..*marked).unwrap_or_default();
    let gone = before.iter().filter(|item| chosen(item)).count();
    *marked -= gone;
    list.extract_if(.., |item| chosen(item)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_go_forward_and_inverses_backward() {
        let mut journal = Journal::default();
        for i in 1..=3 {
            journal.defer(i);
            journal.compensate(-i);
        }
        assert_eq!(journal.commit().0, [1, 2, 3]);
        assert!(journal.is_empty());
        for i in 1..=4 {
            journal.defer(i);
        }
        assert_eq!(journal.take_deferred(|i| i % 2 == 0), [2, 4]);
        assert_eq!(journal.deferred(), [1, 3]);
        journal.compensate(-1);
        journal.compensate(-2);
        journal.compensate(-3);
        assert_eq!(journal.inverses(), [-1, -2, -3]);
        assert_eq!(journal.take_inverses(|i| *i == -3), [-3]);
        assert_eq!(journal.abandon().0, [-2, -1]);
        assert!(journal.is_empty());
    }

    #[test]
    fn what_came_after_the_mark_is_split_off() {
        let mut journal = Journal::default();
        journal.defer(1);
        journal.compensate(-1);
        journal.mark();
        journal.defer(2);
        journal.compensate(-2);
        journal.compensate(-3);
        journal.defer(3);
        assert_eq!(journal.take_deferred(|i| *i == 2), [2]);
        assert_eq!(journal.take_inverses(|i| *i == -2), [-2]);
        assert_eq!(journal.split_at_mark().abandon(), (vec![-3], vec![3]));
        assert_eq!(journal.commit(), (vec![1], vec![-1]));
    }
}
