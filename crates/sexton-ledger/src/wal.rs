//! Reading SQLite's write-ahead log, to notice what SQLite itself takes for the end of it.
//!
//! SQLite reads frames until one does not match its checksum and forgets the rest, which is right after a power cut:
//! what was not flushed was never acknowledged. A byte that changed later looks the same to it, and takes along every
//! commit behind it. Within one boot nothing that was written can be missing, so there a commit behind the end that
//! SQLite sees is damage. The format: <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::collections::BTreeSet;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wal {
    /// What tells it from the log that was here before it was begun anew, 0 where there is none.
    pub(crate) salts: u64,
    /// Pages of the database after its last valid commit, 0 where there is none.
    pub(crate) db_pages: u32,
    /// Size of a page in bytes, 0 where there is no valid commit.
    pub(crate) page_size: usize,
    /// Bytes up to the end of its last valid commit, 0 where there is none.
    pub(crate) end: usize,
    /// Pages that its valid commits hold.
    pub(crate) pages: BTreeSet<u32>,
    /// Whether it has a header and yet no valid commit.
    pub(crate) is_begun: bool,
    /// Whether commits follow behind what is valid, or its very header is not what was written.
    pub(crate) is_broken: bool,
}

/// The running checksum of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chain {
    is_big: bool,
    sum: (u32, u32),
}

impl Chain {
    fn over(self, bytes: &[u8]) -> Chain {
        let read = if self.is_big { u32::from_be_bytes } else { u32::from_le_bytes };
        let (pairs, _) = bytes.as_chunks::<8>();
        let mut sum = self.sum;
        for &[a, b, c, d, e, f, g, h] in pairs {
            sum.0 = sum.0.wrapping_add(read([a, b, c, d])).wrapping_add(sum.1);
            sum.1 = sum.1.wrapping_add(read([e, f, g, h])).wrapping_add(sum.0);
        }
        Chain { sum, ..self }
    }
}

/// Big-endian number `index`, of four bytes, in `bytes`; 0 behind its end.
fn number(bytes: &[u8], index: usize) -> u32 {
    let (numbers, _) = bytes.as_chunks::<4>();
    numbers.get(index).map_or(0, |number| u32::from_be_bytes(*number))
}

/// Reads the log `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Wal {
    let mut wal = Wal::default();
    let Some((header, frames)) = bytes.split_at_checked(HEADER) else { return wal };
    if header.iter().all(|byte| *byte == 0) {
        return wal;
    }
    let page_size = usize::try_from(number(header, 2)).unwrap_or(usize::MAX);
    wal.is_begun = true;
    let Some(mut chain) = header_chain(header).filter(|_| (512..=65_536).contains(&page_size)) else {
        wal.is_broken = true;
        return wal;
    };
    let salts = header.get(16..24);
    wal.salts = u64::from(number(header, 4)) << 32 | u64::from(number(header, 5));
    let mut pending = BTreeSet::new();
    let mut is_valid = true;
    // Where a stored sum was changed, the next frame still follows the one that should be there.
    let mut as_computed = chain;
    let frame_size = FRAME_HEADER + page_size;
    for (index, frame) in frames.chunks_exact(frame_size).enumerate() {
        let (head, page) = frame.split_at(FRAME_HEADER);
        if head.get(8..16) != salts {
            // Left from before the log was begun anew, or never written: the end, unless something follows.
            is_valid = false;
            chain.sum = (number(head, 4), number(head, 5));
            continue;
        }
        let told = (number(head, 4), number(head, 5));
        let over = |chain: Chain| chain.over(head.get(..8).unwrap_or_default()).over(page);
        let found = over(chain);
        is_valid &= found.sum == told;
        let (page, pages_after) = (number(head, 0), number(head, 1));
        if !is_valid && pages_after != 0 && (found.sum == told || over(as_computed).sum == told) {
            // It follows the frame before it, so it is as it was written, and what it followed was there.
            wal.is_broken = true;
            break;
        }
        chain.sum = told;
        as_computed = found;
        pending.insert(page);
        if is_valid && pages_after != 0 {
            wal.pages.append(&mut pending);
            (wal.db_pages, wal.page_size) = (pages_after, page_size);
            wal.is_begun = false;
            wal.end = HEADER + (index + 1) * frame_size;
        }
    }
    wal
}

/// The checksum that the first frame continues, if the header is what was written.
fn header_chain(header: &[u8]) -> Option<Chain> {
    let is_big = match number(header, 0) {
        MAGIC_LITTLE => false,
        MAGIC_BIG => true,
        _ => return None,
    };
    let chain = Chain { is_big, sum: (0, 0) }.over(header.get(..24)?);
    (chain.sum == (number(header, 6), number(header, 7))).then_some(chain)
}

impl Wal {
    /// Whether every page is in the log or in a database file of `db_size` bytes.
    pub(crate) fn completes(&self, db_size: u64) -> bool {
        let in_file = db_size.checked_div(u64::try_from(self.page_size).unwrap_or(u64::MAX)).unwrap_or(u64::MAX);
        let first_missing = u32::try_from(in_file).unwrap_or(u32::MAX).saturating_add(1);
        (first_missing..=self.db_pages).all(|page| self.pages.contains(&page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;
    use rusqlite::config::DbConfig;

    /// The log of ten commits, one page each, and what SQLite made of it.
    fn log() -> Vec<u8> {
        let path =
            std::env::temp_dir().join(format!("sexton-wal-{}-{:?}", std::process::id(), std::thread::current().id()));
        let conn = Connection::open(&path).unwrap();
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        conn.execute_batch("PRAGMA page_size = 512; PRAGMA journal_mode = WAL; CREATE TABLE t (x)").unwrap();
        for n in 0..10 {
            conn.execute("INSERT INTO t VALUES (?1)", [n]).unwrap();
        }
        let file = |suffix: &str| format!("{}{suffix}", path.display());
        let bytes = std::fs::read(file("-wal")).unwrap();
        drop(conn);
        for suffix in ["", "-wal", "-shm"] {
            std::fs::remove_file(file(suffix)).ok();
        }
        bytes
    }

    #[test]
    fn a_whole_log_is_read_as_sqlite_wrote_it() {
        let wal = read(&log());
        assert_eq!((wal.db_pages, wal.page_size, wal.is_broken), (2, 512, false));
        assert_eq!(wal.end, log().len());
        assert_eq!(wal.pages, BTreeSet::from([1, 2]));
        assert!(wal.completes(0) && wal.completes(4_096));
        assert!(!Wal { pages: BTreeSet::from([1]), ..wal }.completes(512), "page 2 is nowhere");
    }

    #[test]
    fn a_log_cut_anywhere_is_an_end_and_no_damage() {
        let whole = log();
        for keep in 0..whole.len() {
            assert!(!read(&whole[..keep]).is_broken, "{keep} bytes");
        }
        let mut zeros_follow = whole.clone();
        zeros_follow.resize(whole.len() + 10_000, 0);
        assert_eq!(read(&zeros_follow), read(&whole));
        assert_eq!(read(&vec![0; 10_000]), Wal::default());
    }

    #[test]
    fn a_changed_byte_before_the_last_commit_is_damage() {
        let whole = log();
        let last_frame = whole.len() - FRAME_HEADER - 512;
        for at in 0..last_frame {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            assert!(read(&changed).is_broken, "byte {at}");
        }
    }
}
