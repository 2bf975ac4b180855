//! Several sorted sources read as one.

use crate::Result;

/// Something sorted that is read record by record.
pub trait Source<R> {
    /// The next record, not smaller than the one before.
    fn next_record(&mut self) -> Result<Option<R>>;

    /// Whether a source holds more of an entry than its record, such as a text of any length.
    const HOLDS_MORE: bool = false;

    /// Where it does: whether this source goes first although its record equals the other's.
    fn is_before(&self, _other: &Self) -> bool {
        false
    }
}

impl<R: super::Record> Source<R> for super::RunReader<R> {
    #[inline]
    fn next_record(&mut self) -> Result<Option<R>> {
        Self::next_record(self)
    }
}

/// A merge of sources of one order; equal records come one after another.
///
/// The sources' next records meet in a tree of losers (Knuth, The Art of Computer Programming 3, 5.4.1): a
/// new one plays against those that lost on its own way up, one comparison on each level.
#[derive(Debug)]
pub struct Merge<R, S> {
    sources: Vec<S>,
    /// The sources that are not read to their end; players are numbered by their places here.
    players: Vec<u32>,
    /// The winner, then the loser of each match; the match above matches 2n and 2n + 1 is n, and players
    /// stand below all of them.
    tree: Vec<(R, u32)>,
    started: bool,
}

impl<R: Copy + Ord, S: Source<R>> Merge<R, S> {
    /// A merge that has read nothing yet.
    pub fn new(sources: Vec<S>) -> Self {
        Self { sources, players: Vec::new(), tree: Vec::new(), started: false }
    }

    /// The next record of all.
    #[inline]
    pub fn next_record(&mut self) -> Result<Option<R>> {
        if !self.started {
            self.start()?;
        } else if let Some(&(_, player)) = self.tree.first() {
            // Only now, so that until now its source held what it returned last.
            match self.sources[self.players[player as usize] as usize].next_record()? {
                Some(next) => self.play((next, player)),
                None => self.leave(player),
            }
        }
        Ok(self.tree.first().map(|&(record, _)| record))
    }

    /// The source of the record that was returned last, where it has not gone on yet.
    #[inline]
    pub fn source(&self) -> Option<&S> {
        let &(_, player) = self.tree.first()?;
        self.sources.get(self.players[player as usize] as usize)
    }

    /// The sources, as far as they were read: each is one record ahead of what was merged at most.
    pub fn into_sources(self) -> Vec<S> {
        self.sources
    }

    fn start(&mut self) -> Result<()> {
        self.started = true;
        let mut records = Vec::with_capacity(self.sources.len());
        for (number, source) in (0..).zip(&mut self.sources) {
            if let Some(record) = source.next_record()? {
                self.players.push(number);
                records.push(record);
            }
        }
        self.play_all(&records);
        Ok(())
    }

    /// Whether the first of two players goes before the second.
    #[inline]
    fn is_before(&self, one: (R, u32), other: (R, u32)) -> bool {
        let source = |player: u32| &self.sources[self.players[player as usize] as usize];
        let is_tie = || S::HOLDS_MORE && one.0 == other.0;
        one.0 < other.0 || is_tie() && source(one.1).is_before(source(other.1))
    }

    /// Plays the matches of the last winner's way up, with its next record.
    #[inline]
    fn play(&mut self, mut best: (R, u32)) {
        let mut place = (best.1 as usize + self.players.len()) / 2;
        while place > 0 {
            if self.is_before(self.tree[place], best) {
                std::mem::swap(&mut self.tree[place], &mut best);
            }
            place /= 2;
        }
        self.tree[0] = best;
    }

    /// Goes on without a player, the last winner.
    #[cold]
    fn leave(&mut self, player: u32) {
        let mut left: Vec<(R, u32)> = self.tree[1..].to_vec();
        left.sort_unstable_by_key(|one| one.1);
        self.players.remove(player as usize);
        self.play_all(&left.into_iter().map(|(record, _)| record).collect::<Vec<R>>());
    }

    /// Plays all matches of players with these records.
    fn play_all(&mut self, records: &[R]) {
        let num = records.len();
        self.tree.clear();
        let Some(&first) = records.first() else { return };
        self.tree.resize(num, (first, 0));
        let mut winners = vec![(first, 0); num];
        winners.extend(records.iter().copied().zip(0..));
        for place in (1..num).rev() {
            let (one, other) = (winners[2 * place], winners[2 * place + 1]);
            (winners[place], self.tree[place]) =
                if self.is_before(other, one) { (other, one) } else { (one, other) };
        }
        // A single player has no match.
        self.tree[0] = winners[1];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Source<(u8, u8)> for std::vec::IntoIter<(u8, u8)> {
        fn next_record(&mut self) -> Result<Option<(u8, u8)>> {
            Ok(self.next())
        }
    }

    #[test]
    fn any_number_of_sources_of_any_length_is_merged() {
        let mut state = 5_u64;
        for num_sources in 0..40 {
            let sources: Vec<Vec<(u8, u8)>> = (0..num_sources)
                .map(|number| {
                    let mut records: Vec<(u8, u8)> = (0..state >> 59)
                        .map(|_| {
                            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            ((state >> 60) as u8, number)
                        })
                        .collect();
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    records.sort_unstable();
                    records
                })
                .collect();
            let mut expected = sources.concat();
            expected.sort_unstable();
            let mut merge = Merge::new(sources.into_iter().map(Vec::into_iter).collect());
            for record in expected {
                assert_eq!(merge.next_record().unwrap(), Some(record));
            }
            assert_eq!(merge.next_record().unwrap(), None);
            assert_eq!(merge.next_record().unwrap(), None);
        }
    }

    /// Numbers, each with a text that the record does not hold.
    struct Texts(std::vec::IntoIter<(u8, String)>, String);

    impl Source<u8> for Texts {
        const HOLDS_MORE: bool = true;

        fn next_record(&mut self) -> Result<Option<u8>> {
            let Some((number, text)) = self.0.next() else { return Ok(None) };
            self.1 = text;
            Ok(Some(number))
        }

        fn is_before(&self, other: &Self) -> bool {
            self.1 < other.1
        }
    }

    #[test]
    fn what_a_record_does_not_hold_orders_equal_ones_and_is_there_until_the_next() {
        for num_sources in 1..20_u32 {
            let sources: Vec<Vec<(u8, String)>> = (0..num_sources)
                .map(|number| {
                    let mut entries: Vec<(u8, String)> = (0..number % 7 * 5)
                        .map(|place| {
                            let mixed = (number * 31 + place).wrapping_mul(2_654_435_761);
                            ((mixed >> 30) as u8, format!("{}", mixed >> 8))
                        })
                        .collect();
                    entries.sort_unstable();
                    entries
                })
                .collect();
            let mut expected = sources.concat();
            expected.sort_unstable();
            let readers = sources.into_iter().map(|all| Texts(all.into_iter(), String::new()));
            let mut merge = Merge::new(readers.collect());
            assert!(merge.source().is_none());
            for (number, text) in expected {
                assert_eq!(merge.next_record().unwrap(), Some(number));
                assert_eq!(merge.source().unwrap().1, text);
            }
            assert_eq!(merge.next_record().unwrap(), None);
            assert!(merge.source().is_none());
        }
    }
}
