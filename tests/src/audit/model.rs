//! What a connection of the guest holds, computed a second time: `model.c` in Rust.

const WORDS: usize = 1536;
const SEED: u64 = 1;

/// Three pages that every request of a connection changes in a way that its seed decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model(Vec<u64>);

impl Default for Model {
    fn default() -> Self {
        let mut state = SEED;
        Self((0..WORDS).map(|_| next(&mut state)).collect())
    }
}

impl Model {
    /// A request with `count` operations of `seed`.
    pub fn step(&mut self, mut seed: u64, count: u32) {
        for _ in 0..count {
            let at = next(&mut seed) % WORDS as u64;
            let word = &mut self.0[at as usize];
            *word = word
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(next(&mut seed));
        }
    }

    /// What the guest answers.
    pub fn sum(&self) -> u64 {
        self.0
            .iter()
            .fold(0u64, |sum, word| sum.rotate_left(7) ^ word)
    }
}

/// SplitMix64, as `random.c` has it.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_and_its_order_count() {
        let sum = |steps: &[(u64, u32)]| {
            let mut model = Model::default();
            steps
                .iter()
                .for_each(|(seed, count)| model.step(*seed, *count));
            model.sum()
        };
        assert_ne!(sum(&[]), sum(&[(1, 1)]));
        assert_ne!(sum(&[(1, 100), (2, 100)]), sum(&[(2, 100), (1, 100)]));
        assert_eq!(sum(&[(7, 0)]), sum(&[]));
    }
}
