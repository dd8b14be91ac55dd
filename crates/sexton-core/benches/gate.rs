//! What it costs to enter a gate and leave it again, beside a mutex that counts, from one thread and from two.
//! `cargo bench -p sexton-core --bench gate`.
//!
//! Absolute numbers are the machine's; the ratios are what counts.

#![allow(clippy::print_stdout, reason = "a bench prints what it found")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use sexton_core::gate::{Gate, Kind};

/// Rounds of one thread; the best of several tries is told, for the others held something else as well.
const ROUNDS: u32 = 5_000_000;
const TRIES: usize = 5;

fn main() {
    println!("enter + leave, ns     one thread   two threads");
    let gate = Gate::default();
    let enter = || drop(black_box(gate.enter(Kind::START)));
    print("gate", &enter);
    let owned = || drop(black_box(gate.enter_owned(Kind::START)));
    print("gate, owned permit", &owned);
    let counter = Mutex::new((false, 0_u64));
    let count = || {
        for step in [1_i64, -1] {
            if let Ok(mut state) = counter.lock()
                && !state.0
            {
                state.1 = state.1.wrapping_add_signed(black_box(step));
            }
        }
    };
    print("mutex, a count", &count);
    let ages = Mutex::new((0_u64, BTreeMap::<u64, (u8, Instant)>::new()));
    let list = || {
        let mut number = 0;
        if let Ok(mut state) = ages.lock() {
            state.0 += 1;
            number = state.0;
            state.1.insert(number, (0, Instant::now()));
        }
        if let Ok(mut state) = ages.lock() {
            state.1.remove(&black_box(number));
        }
    };
    print("mutex, kinds and ages", &list);
}

fn print(name: &str, work: &(impl Fn() + Sync)) {
    println!("{name:<22} {:>9.1} {:>13.1}", nanos(1, work), nanos(2, work));
}

/// Nanoseconds of one round when `threads` do it at once.
fn nanos(threads: usize, work: &(impl Fn() + Sync)) -> f64 {
    let best = (0..TRIES).map(|_| once(threads, work)).min().unwrap_or_default();
    best.as_secs_f64() * 1e9 / f64::from(ROUNDS)
}

/// The longest time that one of the threads takes for its rounds.
fn once(threads: usize, work: &(impl Fn() + Sync)) -> Duration {
    let start = Barrier::new(threads);
    let timed = || {
        start.wait();
        let began = Instant::now();
        (0..ROUNDS).for_each(|_| work());
        began.elapsed()
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(timed)).collect();
        all.into_iter().map(|thread| thread.join().unwrap_or_default()).max().unwrap_or_default()
    })
}
