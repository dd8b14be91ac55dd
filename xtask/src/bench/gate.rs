//! What it costs to enter a gate and leave it again, beside a mutex, from one thread and from two.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use sexton_core::gate::{Gate, Kind};

use super::{Aim, Bench, Figure, Row};

/// Rounds of one thread; the best of several tries is told, for the others held something else as well.
const ROUNDS: u32 = 2_000_000;
const TRIES: usize = 5;

/// A permit that is borrowed beside a mutex that counts; one that is owned and knows its age beside one that lists.
pub fn gate(_bench: &Bench) -> Result<Vec<Row>> {
    let gate = Gate::default();
    let enter = || drop(black_box(gate.enter(Kind::START)));
    let owned = || drop(black_box(gate.enter_owned(Kind::START)));
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
    let mut rows = Vec::new();
    let aim = Aim::AtMost(Figure::Time(Duration::from_nanos(25)));
    for (threads, who) in [(1, "1 thread"), (2, "2 threads")] {
        let [enter, count, owned, list] = in_turns(threads, [&enter, &count, &owned, &list]);
        let row = Row::new(format!("gate, enter and leave, {who}"), Figure::Time(enter));
        rows.push(row.against("a mutex that counts", Figure::Time(count)).aim(aim));
        let row = Row::new(format!("gate, owned permit that knows its age, {who}"), Figure::Time(owned));
        rows.push(row.against("a mutex with kinds and ages", Figure::Time(list)).aim(aim));
    }
    Ok(rows)
}

/// What one round of each costs when `threads` do it at once: the best of the tries, which are taken in turns.
fn in_turns(threads: usize, sides: [&(dyn Fn() + Sync); 4]) -> [Duration; 4] {
    let mut best = [Duration::MAX; 4];
    for _ in 0..TRIES {
        for (side, best) in sides.iter().zip(&mut best) {
            *best = once(threads, side).min(*best);
        }
    }
    best
}

/// One round, by the thread that is the slowest with all of its own.
fn once(threads: usize, work: &(dyn Fn() + Sync)) -> Duration {
    let start = Barrier::new(threads);
    let timed = || {
        start.wait();
        let began = Instant::now();
        (0..ROUNDS).for_each(|_| work());
        began.elapsed()
    };
    let slowest = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(timed)).collect();
        all.into_iter().map(|thread| thread.join().unwrap_or(Duration::MAX)).max()
    });
    slowest.unwrap_or_default() / ROUNDS
}
