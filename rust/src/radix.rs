//! Sorting by a number first: a radix sort from the lowest digit, which touches every record a few times
//! however many there are, and then the few that share a number. More records than fit in a cache
//! are moved near their places by their highest digit first, where they are.

/// Bits of a digit at most.
const DIGIT: u32 = 11;
/// Fewer records are sorted by comparing them.
const FEW: usize = 256;
/// So many records of some 20 bytes fit the cache of a core, twice.
const MANY: usize = 1 << 13;
/// Bits of the highest digit: more places than that have pages that the processor cannot keep in mind.
const HIGHEST: u32 = 10;
/// More passes are not faster than comparing.
const MOST_PASSES: u32 = 4;

/// Sorts `records`, whose order is that of `number` first; `scratch` is for use again.
pub(crate) fn sort<R: Copy + Ord>(
    records: &mut Vec<R>,
    scratch: &mut Vec<R>,
    number: impl Fn(&R) -> u64,
) {
    if place(records, scratch, &number) {
        std::mem::swap(records, scratch);
    }
    sort_equal(records, number);
}

/// The same where they are.
pub(crate) fn sort_slice<R: Copy + Ord>(
    records: &mut [R],
    scratch: &mut Vec<R>,
    number: impl Fn(&R) -> u64,
) {
    if place(records, scratch, &number) {
        records.copy_from_slice(scratch);
    }
    sort_equal(records, number);
}

/// The same with `scratch` for no more than [`MANY`] of them.
pub(crate) fn sort_where_they_lie<R: Copy + Ord>(
    records: &mut [R],
    scratch: &mut Vec<R>,
    number: &impl Fn(&R) -> u64,
) {
    if records.len() <= MANY {
        return sort_slice(records, scratch, number);
    }

    // One pass by the highest digit, after which each range fits the cache better and is sorted by
    // itself.
    let (low, high) = bounds(records, number);
    let bits = u64::BITS - (high - low).leading_zeros();
    if bits == 0 {
        return records.sort_unstable();
    }
    let shift = bits.saturating_sub(HIGHEST);
    let digit = |record: &R| ((number(record) - low) >> shift) as usize;
    let mut ends = [0; 1 << HIGHEST];
    records.iter().for_each(|record| ends[digit(record)] += 1);
    let (mut places, mut next) = ([0; 1 << HIGHEST], 0);
    for (place, end) in places.iter_mut().zip(&mut ends) {
        (*place, next) = (next, next + *end);
        *end = next;
    }
    bring_near(records, &mut places, &ends, digit);
    let mut rest = records;
    let mut start = 0;
    for end in ends {
        let (own, others) = rest.split_at_mut(end - start);
        sort_where_they_lie(own, scratch, number);
        (rest, start) = (others, end);
    }
}

/// Brings every record between the place and the end of its digit, by exchanging them (McIlroy, Bostic,
/// McIlroy 1993, "Engineering radix sort").
fn bring_near<R: Copy>(
    records: &mut [R],
    places: &mut [usize],
    ends: &[usize],
    digit: impl Fn(&R) -> usize,
) {
    for (own, &end) in ends.iter().enumerate() {
        while places[own] < end {
            let mut held = records[places[own]];
            let mut to = digit(&held);
            while to != own {
                std::mem::swap(&mut held, &mut records[places[to]]);
                places[to] += 1;
                to = digit(&held);
            }
            records[places[own]] = held;
            places[own] += 1;
        }
    }
}

/// The smallest and the largest number.
fn bounds<R>(records: &[R], number: &impl Fn(&R) -> u64) -> (u64, u64) {
    records.iter().fold((u64::MAX, 0), |(low, high), record| {
        let number = number(record);
        (low.min(number), high.max(number))
    })
}

/// Sorts those of one number, which are together.
fn sort_equal<R: Copy + Ord>(records: &mut [R], number: impl Fn(&R) -> u64) {
    let same = |a: &R, b: &R| number(a) == number(b);
    records.chunk_by_mut(same).filter(|some| some.len() > 1).for_each(<[R]>::sort_unstable);
}

/// Places records by their number; returns whether they are in `scratch` then, which is made as
/// long.
fn place<R: Copy + Ord>(
    records: &mut [R],
    scratch: &mut Vec<R>,
    number: &impl Fn(&R) -> u64,
) -> bool {
    if records.len() < FEW {
        records.sort_unstable();
        return false;
    }
    let (low, high) = bounds(records, number);
    let bits = u64::BITS - (high - low).leading_zeros();
    let passes = bits.div_ceil(DIGIT);
    if passes > MOST_PASSES || passes == 0 {
        records.sort_unstable();
        return false;
    }

    // Digits of equal width, so that the last pass is not nearly empty.
    let digit = bits.div_ceil(passes);
    let mask = (1_usize << digit) - 1;
    let mut places = [[0_u32; 1 << DIGIT]; MOST_PASSES as usize];
    let places = &mut places[..passes as usize];

    // One pass counts for all digits, since the counts do not depend on the order.
    for record in records.iter() {
        let mut rest = number(record) - low;
        for places in &mut *places {
            places[rest as usize & mask] += 1;
            rest >>= digit;
        }
    }
    // What is there is written over.
    scratch.resize(records.len(), records[0]);
    let (mut from, mut to) = (records, scratch.as_mut_slice());
    for (pass, places) in (0..).zip(places) {
        let mut next = 0;
        for place in &mut places[..=mask] {
            (*place, next) = (next, next + *place);
        }
        for record in from.iter() {
            let place = &mut places[((number(record) - low) >> (pass * digit)) as usize & mask];
            to[*place as usize] = *record;
            *place += 1;
        }
        (from, to) = (to, from);
    }

    // After an odd number of passes they are in the other slice.
    passes % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_as_comparing_does() {
        let mut state = 3_u64;
        let mut scratch = Vec::new();
        let cases = [
            (10, 9),
            (5000, 1),
            (5000, 300),
            (9000, 1),
            (9000, 1 << 30),
            (4000, u64::MAX - 1000),
            (50_000, 3),
            (50_000, 4000),
            (100_000, 1 << 40),
            (30_000, u64::MAX - 1000),
        ];
        for (num, values) in cases {
            let mut records: Vec<(u64, u64)> = (0..num)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (1000 + (state >> 8) % values, state >> 60)
                })
                .collect();
            let mut sorted = records.clone();
            sorted.sort_unstable();
            let (mut others, mut again) = (records.clone(), records.clone());
            sort(&mut records, &mut scratch, |record| record.0);
            assert!(records == sorted, "{num} records of {values} values");
            sort_slice(&mut others, &mut scratch, |record| record.0);
            assert!(others == sorted, "{num} records of {values} values in place");
            sort_where_they_lie(&mut again, &mut scratch, &|record: &(u64, u64)| record.0);
            assert!(again == sorted, "{num} records of {values} values where they lie");
        }
    }
}
