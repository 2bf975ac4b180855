//! Counting a billion records: `cargo bench --bench hashtags -- [RECORDS [MEMORY_MIB [DISTINCT]]]`.
//!
//! A generator makes records of 1 to 7 hashtags, Zipf-distributed with exponent 1.05, whose counts
//! are known by construction. They are counted within the limit of memory, ranked, and every count
//! is compared with what it must be. The stream cut at 20 M records is counted first, for
//! comparison, and the generator runs alone, so that its own time can be subtracted.
//!
//! How counts are known: record i has `1 + i % 7` tags, the j-th from a family of its own. Within
//! family j the positions of its N_j tags are visited in the order `q * a mod N_j`, and position p
//! has the rank at which a power law's inverse distribution function puts `(p + 1/2) / N_j`. That
//! function is monotone, so the count of a rank is the distance between two boundaries.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Instant;

use arrow_array::{ArrayRef, ListArray, RecordBatch, StringArray};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field};
use wsl_core::count::{CountOptions, HashtagCounts};
use wsl_core::job::Job;
use wsl_core::spill::Memory;

const FAMILIES: u64 = 7;
const BATCH: u64 = 1 << 16;
const SYLLABLES: u64 = 85;
/// 1 / (1.05 - 1): the power that inverts the distribution function.
const POWER: i32 = 20;

/// One family of tags.
#[derive(Clone, Copy)]
struct Family {
    num_tags: u64,
    step: u64,
    num_ranks: u64,
    span: f64,
}

impl Family {
    fn new(number: u64, num_records: u64, num_ranks: u64) -> Self {
        let rest = num_records % FAMILIES;
        let num_tags = num_records / FAMILIES * (FAMILIES - number) + rest.saturating_sub(number);
        let mut step = (num_tags as f64 * 0.618_033_988_7) as u64 | 1;
        while gcd(step, num_tags) != 1 {
            step += 2;
        }
        let span = 1.0 - ((num_ranks + 1) as f64).powi(-1).powf(1.0 / f64::from(POWER));
        Self { num_tags, step, num_ranks, span }
    }

    fn rank_at(&self, position: u64) -> u64 {
        let share = (position as f64 + 0.5) / self.num_tags as f64;
        let value = (1.0 - share * self.span).powi(-POWER);
        (value as u64 - 1).min(self.num_ranks - 1)
    }

    fn rank(&self, visit: u64) -> u64 {
        let position =
            (u128::from(visit) * u128::from(self.step) % u128::from(self.num_tags)) as u64;
        self.rank_at(position)
    }

    /// The first position of a rank or a later one.
    fn boundary(&self, rank: u64) -> u64 {
        if rank == 0 {
            return 0;
        }
        let share = (1.0 - ((rank + 1) as f64).powf(-1.0 / f64::from(POWER))) / self.span;
        let mut place = ((share * self.num_tags as f64) as u64).min(self.num_tags);
        while place < self.num_tags && self.rank_at(place) < rank {
            place += 1;
        }
        while place > 0 && self.rank_at(place - 1) >= rank {
            place -= 1;
        }
        place
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Two letters for each digit of `number` in base 85, two digits at least.
fn write_tag(out: &mut Vec<u8>, number: u64, syllables: &[[u8; 2]]) {
    let mut rest = number;
    let mut digits = 0;
    while rest > 0 || digits < 2 {
        out.extend_from_slice(&syllables[(rest % SYLLABLES) as usize]);
        rest /= SYLLABLES;
        digits += 1;
    }
}

fn read_tag(tag: &str, syllables: &[[u8; 2]]) -> u64 {
    tag.as_bytes().rchunks(2).fold(0, |number, pair| {
        let digit = syllables.iter().position(|syllable| syllable == pair).expect("a syllable");
        number * SYLLABLES + digit as u64
    })
}

fn syllables() -> Vec<[u8; 2]> {
    let pairs = b"bcdfghjklmnprstvz".iter().flat_map(|&c| b"aeiou".iter().map(move |&v| [c, v]));
    pairs.collect()
}

struct Generator {
    families: Vec<Family>,
    visits: [u64; FAMILIES as usize],
    syllables: Vec<[u8; 2]>,
    next: u64,
    num_records: u64,
}

impl Generator {
    fn new(num_records: u64, num_distinct: u64) -> Self {
        let ranks = num_distinct / FAMILIES;
        let families = (0..FAMILIES).map(|number| Family::new(number, num_records, ranks));
        Self {
            families: families.collect(),
            visits: [0; FAMILIES as usize],
            syllables: syllables(),
            next: 0,
            num_records,
        }
    }

    fn expected(&self, tag: u64) -> u64 {
        let (rank, family) = (tag / FAMILIES, &self.families[(tag % FAMILIES) as usize]);
        family.boundary(rank + 1).min(family.num_tags) - family.boundary(rank)
    }
}

impl Iterator for Generator {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = (self.next + BATCH).min(self.num_records);
        if self.next == end {
            return None;
        }
        let mut bytes = Vec::with_capacity(3 << 20);
        let (mut texts, mut lists) = (vec![0_i32], vec![0_i32]);
        for record in self.next..end {
            for number in 0..=(record % FAMILIES) as usize {
                let rank = self.families[number].rank(self.visits[number]);
                self.visits[number] += 1;
                write_tag(&mut bytes, rank * FAMILIES + number as u64, &self.syllables);
                texts.push(bytes.len() as i32);
            }
            lists.push(texts.len() as i32 - 1);
        }
        self.next = end;
        let texts = OffsetBuffer::new(ScalarBuffer::from(texts));
        let tags = StringArray::new(texts, Buffer::from_vec(bytes), None);
        let field = Arc::new(Field::new("item", DataType::Utf8, false));
        let lists = OffsetBuffer::new(ScalarBuffer::from(lists));
        let column: ArrayRef = Arc::new(ListArray::new(field, lists, Arc::new(tags), None));
        Some(RecordBatch::try_from_iter([("hashtags", column)]))
    }
}

/// User and system seconds of this process (clock ticks of a hundredth, as Linux has them).
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    let fields: Vec<&str> = text.rsplit(')').next().expect("stat").split_whitespace().collect();
    let ticks = |place: usize| fields[place].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

fn peak_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = text.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().nth(1).expect("a number").parse::<f64>().expect("a number") / 1024.0
}

fn count(num_records: u64, num_distinct: u64, memory: Memory) -> (HashtagCounts, f64, f64) {
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    let options = CountOptions { column: "hashtags".into(), separator: None, num_threads: None };
    let mut counts = HashtagCounts::new(memory);
    counts
        .update(Generator::new(num_records, num_distinct), &options, &Job::new())
        .expect("counts");
    let ranked = counts.ranked(&Job::new()).expect("ranks");
    let rows: usize = ranked.batches().map(|batch| batch.expect("a batch").num_rows()).sum();
    assert_eq!(rows as u64, ranked.len());
    (counts, cpu_seconds() - cpu, wall.elapsed().as_secs_f64())
}

fn generate(num_records: u64, num_distinct: u64) -> f64 {
    let cpu = cpu_seconds();
    let rows: usize = Generator::new(num_records, num_distinct)
        .map(|batch| batch.expect("batch").num_rows())
        .sum();
    assert_eq!(rows as u64, num_records);
    cpu_seconds() - cpu
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let number = |place: usize, default: u64| numbers.get(place).copied().unwrap_or(default);
    let (num_records, memory_mib) = (number(0, 1_000_000_000), number(1, 2048));
    let num_distinct = number(2, 50_000_000);
    let memory =
        || Memory::limited((memory_mib > 0).then_some((memory_mib << 20) as usize), None).unwrap();
    println!(
        "{:>14} {:>9} {:>9} {:>9} {:>14} {:>9}",
        "records", "CPU s", "wall s", "generator", "records/CPU s", "peak MiB"
    );
    let mut rates = Vec::new();
    let mut last = None;
    for records in [num_records.min(20_000_000), num_records] {
        let alone = generate(records, num_distinct);
        let (counts, cpu, wall) = count(records, num_distinct, memory());
        let rate = records as f64 / (cpu - alone);
        println!(
            "{records:>14} {cpu:>9.1} {wall:>9.1} {alone:>9.1} {rate:>14.0} {:>9.0}",
            peak_mib()
        );
        rates.push(rate);
        last = Some(counts);
    }
    println!("rate of the whole stream over that of the cut: {:.2}", rates[1] / rates[0]);
    let mut counts = last.expect("counts");
    let generator = Generator::new(num_records, num_distinct);
    let syllables = syllables();
    let (mut checked, mut sum) = (0_u64, 0_u64);
    for row in counts.ranked(&Job::new()).expect("ranks").iter() {
        let (tag, count) = row.expect("a row");
        let expected = generator.expected(read_tag(&tag, &syllables));
        assert_eq!(count, expected, "{tag}");
        checked += 1;
        sum += count;
    }
    let total: u64 = generator.families.iter().map(|family| family.num_tags).sum();
    assert_eq!(sum, total);
    println!("{checked} tags checked, {sum} occurrences: every count is exact");
}
