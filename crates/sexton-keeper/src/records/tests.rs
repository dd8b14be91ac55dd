use super::*;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec::Vec;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(std::format!("sexton-records-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }

    fn c(&self) -> CString {
        CString::new(self.0.as_os_str().as_bytes()).unwrap()
    }

    fn file(&self) -> PathBuf {
        Path::new(&self.0).join("exits")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn exit(pid: u32) -> ExitRecord {
    ExitRecord { seq: 0, pid, ino: u64::from(pid) << 33, status: 256 * 7, at_ns: 1_700_000_000_000_000_000 }
}

fn add(records: &mut Records<'_>, batch: &[ExitRecord]) -> Result<(), SysError> {
    assert!(batch.iter().all(|exit| records.stage(exit)));
    records.commit()
}

fn all(records: &Records<'_>) -> Vec<ExitRecord> {
    let mut all = Vec::new();
    while let Some(record) = records.from(all.last().map_or(0, |last: &ExitRecord| last.seq + 1)) {
        all.push(record);
    }
    all
}

fn pids(records: &Records<'_>) -> Vec<u32> {
    all(records).iter().map(|record| record.pid).collect()
}

#[test]
fn a_new_keeper_reads_what_was_not_acknowledged() {
    let dir = Dir::new("reload");
    let path = dir.c();
    let mut records = Records::load(&path).unwrap();
    add(&mut records, &[exit(10), exit(11)]).unwrap();
    add(&mut records, &[exit(12)]).unwrap();
    assert_eq!(all(&records)[2], ExitRecord { seq: 3, ..exit(12) });
    let path = dir.c();
    let mut second = Records::load(&path).unwrap();
    assert_eq!(pids(&second), [10, 11, 12]);
    second.forget(2);
    add(&mut second, &[exit(13)]).unwrap();
    let path = dir.c();
    let third = Records::load(&path).unwrap();
    assert_eq!(
        all(&third).iter().map(|record| (record.seq, record.pid)).collect::<Vec<_>>(),
        [(1, 10), (2, 12), (3, 13)]
    );
}

#[test]
fn the_file_is_emptied_when_all_is_acknowledged_and_removed_at_the_end() {
    let dir = Dir::new("empty");
    let path = dir.c();
    let mut records = Records::load(&path).unwrap();
    add(&mut records, &[exit(10), exit(11)]).unwrap();
    records.forget(1);
    records.forget(1);
    records.forget(99);
    assert_eq!(records.waiting(), 1);
    records.remove_file();
    assert!(dir.file().exists(), "what is waited for stays");
    records.forget(2);
    assert_eq!(std::fs::read(dir.file()).unwrap(), HEAD);
    add(&mut records, &[exit(12)]).unwrap();
    assert_eq!(pids(&records), [12]);
    records.forget(3);
    records.remove_file();
    assert!(!dir.file().exists());
}

#[test]
fn the_file_of_an_earlier_keeper_goes_when_all_in_it_is_acknowledged() {
    let dir = Dir::new("earlier");
    let path = dir.c();
    add(&mut Records::load(&path).unwrap(), &[exit(10)]).unwrap();
    let mut records = Records::load(&path).unwrap();
    records.forget(1);
    assert!(!dir.file().exists());
    add(&mut records, &[exit(11)]).unwrap();
    assert_eq!(pids(&Records::load(&path).unwrap()), [11]);
}

#[test]
fn a_torn_record_is_left_out_and_the_others_are_found() {
    let dir = Dir::new("torn");
    let path = dir.c();
    let mut records = Records::load(&path).unwrap();
    add(&mut records, &[exit(10), exit(11), exit(12)]).unwrap();
    let whole = std::fs::read(dir.file()).unwrap();
    for at in HEAD.len()..whole.len() {
        let mut torn = whole.clone();
        torn[at] ^= 0x40;
        std::fs::write(dir.file(), &torn).unwrap();
        let path = dir.c();
        let second = Records::load(&path).unwrap();
        assert_eq!(second.waiting(), 2, "byte {at}");
    }
    for len in 0..whole.len() {
        std::fs::write(dir.file(), &whole[..len]).unwrap();
        let path = dir.c();
        let second = Records::load(&path).unwrap();
        assert_eq!(second.waiting(), (len.saturating_sub(HEAD.len()) / RECORD) as u64, "length {len}");
    }
    std::fs::write(dir.file(), b"SXTNEXIT\x02\0\0\0rest of another version").unwrap();
    let path = dir.c();
    let second = Records::load(&path).unwrap();
    assert_eq!(second.waiting(), 0);
}

#[test]
fn loading_changes_nothing_on_disk() {
    let dir = Dir::new("readonly");
    let path = dir.c();
    let records = Records::load(&path).unwrap();
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
    drop(records);
    let mut records = Records::load(c"/nonexistent").unwrap();
    assert!(add(&mut records, &[exit(1)]).is_err());
    assert_eq!(records.waiting(), 0, "what is not on disk is not told");
}

#[test]
fn the_file_stays_small_however_many_come_and_go() {
    let dir = Dir::new("waste");
    let path = dir.c();
    let mut records = Records::load(&path).unwrap();
    add(&mut records, &[exit(1)]).unwrap();
    for round in 0..100_u64 {
        let batch: Vec<ExitRecord> = (0..BATCH).map(|_| exit(5)).collect();
        add(&mut records, &batch).unwrap();
        all(&records).iter().filter(|record| record.pid == 5).for_each(|record| records.forget(record.seq));
        assert_eq!(records.waiting(), 1, "round {round}");
    }
    let bound = HEAD_BYTES + (MUCH_WASTE + 2 * BATCH as u64) * RECORD as u64;
    assert!(std::fs::metadata(dir.file()).unwrap().len() < bound);
    let path = dir.c();
    let second = Records::load(&path).unwrap();
    assert_eq!(all(&second)[0].pid, 1);
}

#[test]
fn a_full_queue_takes_no_more_until_one_is_acknowledged() {
    let dir = Dir::new("full");
    let path = dir.c();
    let mut records = Records::load(&path).unwrap();
    let batch: Vec<ExitRecord> = (1..=128).map(exit).collect();
    while !records.waiting.is_full() {
        add(&mut records, &batch).unwrap();
    }
    assert_eq!(records.waiting(), (BOUND - BATCH) as u64);
    records.forget(500);
    assert!(records.waiting.is_full());
    (1..=400).for_each(|seq| records.forget(seq));
    assert!(!records.waiting.is_full());
    assert_eq!(records.from(0).unwrap().seq, 401);
    assert_eq!(records.from(500).unwrap().seq, 501);
}

#[test]
fn an_exit_that_is_found_again_is_recorded_once_and_a_batch_has_a_bound() {
    let dir = Dir::new("again");
    let path = dir.c();
    let mut records = Records::load(&path).unwrap();
    assert!(records.stage(&exit(7)) && records.stage(&exit(8)) && records.stage(&exit(7)));
    assert!(pids(&records).is_empty(), "what is not on disk is not told");
    records.commit().unwrap();
    assert_eq!(pids(&records), [7, 8]);
    assert!((1..=128).map(exit).all(|exit| records.stage(&exit)));
    assert!(!records.stage(&exit(129)));
    records.commit().unwrap();
    assert_eq!(records.waiting(), 130);
}

#[test]
fn what_could_not_be_written_is_not_written_with_what_comes_later() {
    let dir = Dir::new("refused");
    let path = dir.c();
    let mut records = Records::load(&path).unwrap();
    let in_the_way = dir.0.join("exits.new");
    std::fs::create_dir(&in_the_way).unwrap();
    assert!(add(&mut records, &[exit(7)]).is_err());
    std::fs::remove_dir(in_the_way).unwrap();
    // By then its number may be another's, who would be reaped as what was recorded.
    assert!(records.staged().is_empty());
    add(&mut records, &[exit(8)]).unwrap();
    assert_eq!(pids(&records), [8]);
}

#[test]
fn a_file_of_more_than_ever_wait_is_read_to_its_end() {
    let dir = Dir::new("long");
    let path = dir.c();
    let count = 100_000;
    let records = (1..=count).flat_map(|pid| encode(&exit(pid)));
    std::fs::write(dir.file(), HEAD.into_iter().chain(records).collect::<Vec<u8>>()).unwrap();
    let mut records = Records::load(&path).unwrap();
    // REGRESSION: the first were read, which had been acknowledged, and the others forgotten.
    let waiting = pids(&records);
    let most = u32::try_from(BOUND - BATCH).unwrap();
    assert!(waiting.iter().copied().eq(count - most + 1..=count), "{:?} to {:?}", waiting.first(), waiting.last());
    assert!(add(&mut records, &[exit(1)]).is_err(), "zombies stay zombies");
    (1..=100_000).for_each(|seq| records.forget(seq));
    assert_eq!(records.waiting(), 0);
    add(&mut records, &[exit(1)]).unwrap();
}
