//! Selecting out of a billion: `cargo bench --bench selection -- classes|images [SIZE [MEMORY_MIB]]`.
//!
//! `classes`: 17,000 classes, K = 16,000, SIZE pairs from a generator, P = 3, selected without a
//! limit of memory and with one, in processes of their own; the two results are compared by their
//! hash. `images`: SIZE images with ten pairs each over 1,000 classes, K = 8,000, P = 10, within the
//! limit. The result leaves as a stream. The generator runs alone first, so that its own CPU time
//! can be subtracted. Both default to a billion, and to 1,024 MiB.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::ArrowError;
use wsl_core::job::Job;
use wsl_core::selection::{Order, Selection};
use wsl_core::spill::Memory;
use xxhash_rust::xxh3::Xxh3;

const ROWS: u64 = 1 << 16;

/// Pairs of images, each with some classes of uneven frequency, all different.
struct Generator {
    num_classes: u32,
    pairs_per_image: u32,
    num_pairs: u64,
    next: u64,
}

impl Iterator for Generator {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = (self.next + ROWS).min(self.num_pairs);
        if self.next == end {
            return None;
        }
        let number = (end - self.next) as usize;
        let mut samples = Vec::with_capacity(number);
        let mut classes = Vec::with_capacity(number);
        let mut scores = Vec::with_capacity(number);
        let per_image = u64::from(self.pairs_per_image);
        let stratum = self.num_classes / self.pairs_per_image;
        for pair in self.next..end {
            let random = mix(pair);
            // A class of the pair's own stratum, the first ones more often than the last: the
            // product of two uniform numbers.
            let (a, b) = (random as u16, (random >> 16) as u16);
            let share = (u64::from(a) * u64::from(b)) >> 16;
            let class = (share as u32 * stratum) >> 16;
            samples.push(pair / per_image);
            classes.push((pair % per_image) as u32 * stratum + class);
            scores.push((random >> 40) as f32 / (1 << 24) as f32);
        }
        self.next = end;
        let columns: [(&str, ArrayRef); 3] = [
            ("sample", Arc::new(UInt64Array::from(samples))),
            ("class", Arc::new(UInt32Array::from(classes))),
            ("score", Arc::new(Float32Array::from(scores))),
        ];
        Some(RecordBatch::try_from_iter(columns))
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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

struct Task {
    num_classes: u32,
    k: u32,
    p: u32,
    pairs_per_image: u32,
}

const CLASSES: Task = Task { num_classes: 17_000, k: 16_000, p: 3, pairs_per_image: 10 };
const IMAGES: Task = Task { num_classes: 1_000, k: 8_000, p: 10, pairs_per_image: 10 };

/// One selection in this process; prints a line of the table.
fn run(task: &Task, num_pairs: u64, memory_mib: u64) {
    let generator = || Generator {
        num_classes: task.num_classes,
        pairs_per_image: task.pairs_per_image,
        num_pairs,
        next: 0,
    };
    // A part of the stream tells what the generator costs.
    let part = num_pairs.min(100_000_000);
    let cpu = cpu_seconds();
    let rows: usize = Generator { num_pairs: part, ..generator() }
        .map(|batch| batch.expect("a batch").num_rows())
        .sum();
    assert_eq!(rows as u64, part);
    let alone = (cpu_seconds() - cpu) * num_pairs as f64 / part as f64;
    let limit = (memory_mib > 0).then_some((memory_mib << 20) as usize);
    let folder = std::env::var_os("WSL_BENCH_SPILL").map(Into::into);
    let memory = Memory::limited(limit, folder).expect("memory");
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    let mut selection = Selection::new(task.num_classes, task.k, task.p, Order::ClassFirst, memory)
        .expect("options");
    selection.update_batches(generator(), &Job::new()).expect("pairs");
    let taken = cpu_seconds() - cpu;
    let selected = selection.finish(None, None, &Job::new()).expect("a selection");
    let mut hasher = Xxh3::new();
    for pair in selected.pairs().expect("pairs") {
        let pair = pair.expect("a pair");
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&pair.sample.to_le_bytes());
        bytes[8..12].copy_from_slice(&pair.class.to_le_bytes());
        bytes[12..16].copy_from_slice(&pair.rank.to_le_bytes());
        bytes[16..].copy_from_slice(&pair.score.to_bits().to_le_bytes());
        hasher.update(&bytes);
    }
    let (cpu, wall) = (cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
    // What the generator costs is only estimated: less than its tenth cannot be told from nothing.
    let own = cpu - alone;
    let rate = (own > 0.1 * alone).then(|| format!("{:.0}", num_pairs as f64 / own));
    println!(
        "{memory_mib:>10} {cpu:>9.1} {taken:>9.1} {alone:>9.1} {wall:>9.1} {:>14} {:>9.0} {:>12} {:032x}",
        rate.as_deref().unwrap_or("-"),
        peak_mib(),
        selected.num_pairs(),
        hasher.digest128(),
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |place: usize| arguments.get(place).and_then(|text| text.parse::<u64>().ok());
    let name = arguments.first().map_or("classes", String::as_str);
    let (size, memory_mib) = (number(1).unwrap_or(1_000_000_000), number(2).unwrap_or(1024));
    match name {
        "run-classes" => return run(&CLASSES, size, memory_mib),
        "run-images" => return run(&IMAGES, size * 10, memory_mib),
        "classes" | "images" => {}
        other => panic!("expected classes or images, got {other}"),
    }
    println!(
        "{:>10} {:>9} {:>9} {:>9} {:>9} {:>14} {:>9} {:>12} hash",
        "limit MiB",
        "CPU s",
        "phase 1",
        "generator",
        "wall s",
        "pairs/CPU s",
        "peak MiB",
        "selected"
    );
    let limits = if name == "classes" { vec![0, memory_mib] } else { vec![memory_mib] };
    for limit in limits {
        let program = std::env::current_exe().expect("this program");
        let done = Command::new(program)
            .args([format!("run-{name}"), size.to_string(), limit.to_string()])
            .status();
        assert!(done.expect("a process").success());
    }
}
