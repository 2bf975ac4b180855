//! Scanning tar headers beside a bare scan of a mapped file: `cargo bench --bench index -- SHARD...`.
//!
//! The bare scan maps the file, takes name and size out of each header without checking anything, and
//! adds up the lengths. Both run in turns on one thread; the table shows members a CPU second, the best
//! of five rounds of each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use wsl_core::index::map::Map;
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

fn main() {
    let paths: Vec<String> =
        std::env::args().skip(1).filter(|name| name.ends_with(".tar")).collect();
    if paths.is_empty() {
        println!("name some shards: cargo bench --bench index -- SHARD...");
        return;
    }
    let mut best = [f64::MAX; 2];
    let mut members = [0; 2];
    for _ in 0..ROUNDS {
        for (which, scan) in [bare, ours].into_iter().enumerate() {
            let started = Instant::now();
            members[which] = paths.iter().map(|path| scan(Path::new(path))).sum();
            best[which] = best[which].min(started.elapsed().as_secs_f64());
        }
    }
    assert_eq!(members[0], members[1]);
    for (name, seconds) in ["bare mmap scan", "wsl"].iter().zip(best) {
        println!("{name:16}{:>14.0} members/s", members[0] as f64 / seconds);
    }
}
