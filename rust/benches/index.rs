//! Limits of the machine beside the engine: `cargo bench --bench index -- SHARD... INDEX...`.
//!
//! Shards: tar headers beside a bare scan, which maps the file, takes name and size out of each header
//! without checking anything, and adds up the lengths.
//!
//! Folders of indexes: random whole samples in calls of 256, fetched (Python's `Index.read` is in
//! `tests/bench/index.py`), beside a bare loop of `pread`, which knows beforehand from which open file and
//! where each sample is read, header and image in one call, and does nothing with it.
//! All shards should be in the page cache.
//!
//! Both run in turns on one thread; the table shows what is done in a CPU second, the best of five rounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use wsl_core::index::Index;
use wsl_core::job::Job;
use wsl_core::map::Map;
use wsl_core::shard::{BLOCK, Member, Scanner};

const ROUNDS: usize = 5;

fn bare(path: &Path) -> u64 {
    let map = Map::open(path, None).unwrap();
    let (mut at, mut members) = (0, 0);
    while at + BLOCK <= map.len() && map[at] != 0 {
        let header = &map[at..at + BLOCK];
        let name = header[..100].iter().position(|&byte| byte == 0).unwrap_or(100);
        black_box(&header[..name]);
        let digits = header[124..135].iter().filter(|byte| byte.is_ascii_digit());
        let size = digits.fold(0_usize, |size, &digit| size * 8 + usize::from(digit - b'0'));
        at += BLOCK + size.next_multiple_of(BLOCK);
        members += 1;
    }
    members
}

fn ours(path: &Path) -> u64 {
    let mut scanner = Scanner::open(path).unwrap();
    let mut member = Member::default();
    let mut members = 0;
    while scanner.next_into(&mut member).unwrap() {
        black_box(&member.name);
        members += 1;
    }
    members
}

/// What this thread has used of a processor.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// The best rates of two ways to do the same, in turns.
fn in_turns(names: [&str; 2], unit: &str, mut work: impl FnMut(usize) -> u64) {
    let mut best = [0.0_f64; 2];
    for round in 0..2 * ROUNDS {
        let started = cpu_seconds();
        let done = work(round % 2);
        let rate = done as f64 / (cpu_seconds() - started);
        best[round % 2] = best[round % 2].max(rate);
    }
    for (name, rate) in names.iter().zip(best) {
        println!("{name:24}{rate:>14.0} {unit} a CPU second");
    }
}

fn scans(shards: &[PathBuf]) {
    let mut members = [0; 2];
    in_turns(["bare mmap scan", "wsl"], "members", |which| {
        members[which] = shards.iter().map(|path| [bare, ours][which](path)).sum();
        members[which]
    });
    assert_eq!(members[0], members[1]);
}

fn reads(folder: &Path) {
    const NUM: u64 = 300_000;
    let index = Index::open(folder, None).unwrap();
    // The upper half of a product with an odd number is as good as random here.
    let drawn =
        |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32) % index.num_samples();
    let ordinals: Vec<u64> = (1..=NUM).map(drawn).collect();
    let files: Vec<File> = (0..index.shards().len())
        .map(|shard| File::open(index.shard_path(shard as u32).unwrap()).unwrap())
        .collect();
    let places: Vec<(u32, u64, usize)> = ordinals
        .iter()
        .map(|&ordinal| {
            let row = index.row(ordinal).unwrap();
            (row.shard, row.offset - BLOCK as u64, BLOCK + row.size as usize)
        })
        .collect();
    let mut buffer = vec![0; places.iter().map(|place| place.2).max().unwrap()];
    in_turns(["bare pread", "wsl, without Python"], "samples", |which| {
        if which == 0 {
            for &(shard, start, length) in &places {
                files[shard as usize].read_exact_at(&mut buffer[..length], start).unwrap();
            }
        } else {
            for some in ordinals.chunks(256) {
                let mut fetch = index.fetch(some, 1).unwrap();
                while let Some(chunk) = fetch.next_chunk(&Job::new()).unwrap() {
                    chunk.images().for_each(|image| _ = black_box(image));
                }
            }
        }
        NUM
    });
}

fn main() {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) =
        paths.into_iter().filter(|path| path.exists()).partition(|path| path.is_dir());
    if files.is_empty() && folders.is_empty() {
        println!("name shards or indexes: cargo bench --bench index -- SHARD... INDEX...");
        return;
    }
    if !files.is_empty() {
        scans(&files);
    }
    folders.iter().for_each(|folder| reads(folder));
}
