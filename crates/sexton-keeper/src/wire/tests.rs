extern crate std;
use super::*;
use std::vec::Vec;

fn to_worker() -> Vec<ToWorker> {
    let mut swept = Swept::NOBODY;
    for pid in 0..40 {
        swept.add(Zombie { pid, comm: *b"a)b (\n\xff\0\0\0\0\0\0\0\0\0" });
    }
    let last = LastEnd { pid: u32::MAX, status: -1 };
    let welcome = Welcome { version: 7, keeper_pid: 1, restarts: u64::MAX, last_end: Some(last), was_ready: true };
    Vec::from([
        ToWorker::Welcome(welcome),
        ToWorker::Welcome(Welcome { last_end: None, was_ready: false, ..welcome }),
        ToWorker::Stored(StoreName::new(b"x").unwrap()),
        ToWorker::Stored(StoreName::new(&[0xfe; MAX_NAME]).unwrap()),
        ToWorker::Exit(ExitRecord { seq: 1, pid: 2, ino: u64::MAX, status: 0x8b, at_ns: 5 }),
        ToWorker::Swept(Swept::NOBODY),
        ToWorker::Swept(swept),
        ToWorker::Go,
        ToWorker::Retire,
        ToWorker::Shutdown { level: 2 },
    ])
}

fn to_keeper() -> Vec<ToKeeper> {
    let held = HeldProcess { pid: 9, ino: 1 << 60 };
    Vec::from([
        ToKeeper::Hello { version: VERSION },
        ToKeeper::Prepared,
        ToKeeper::Ready,
        ToKeeper::Hold(held),
        ToKeeper::Release(held),
        ToKeeper::Ack { seq: 77 },
        ToKeeper::Store(StoreName::new(b"api").unwrap()),
        ToKeeper::Unstore(StoreName::new(&[b'n'; MAX_NAME]).unwrap()),
        ToKeeper::Sweep(SweepPolicy { enabled: false, interval_ms: 1, grace_ms: u32::MAX }),
        ToKeeper::Mode(OnShutdown::Detach),
        ToKeeper::Mode(OnShutdown::Drain),
        ToKeeper::Finished { code: 78 },
    ])
}

fn packets() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut space = [0; MAX_MESSAGE];
    for message in to_worker() {
        let len = message.encode(&mut space);
        packets.push(space[..len].to_vec());
    }
    for message in to_keeper() {
        let len = message.encode(&mut space);
        packets.push(space[..len].to_vec());
    }
    packets
}

#[test]
fn every_message_reads_back_as_it_was() {
    let mut space = [0; MAX_MESSAGE];
    for message in to_worker() {
        let len = message.encode(&mut space);
        assert_eq!(ToWorker::decode(&space[..len]), Ok(Some(message)));
    }
    for message in to_keeper() {
        let len = message.encode(&mut space);
        assert_eq!(ToKeeper::decode(&space[..len]), Ok(Some(message)));
    }
}

#[test]
fn the_longest_message_fits_and_its_count_stays_exact() {
    let Some(ToWorker::Swept(swept)) = to_worker().into_iter().nth(6) else { panic!("the full sweep is seventh") };
    assert_eq!((swept.count, swept.named().len(), swept.named()[0].comm()), (40, MAX_SWEPT, &b"a)b (\n\xff"[..]));
    assert!(ToWorker::Swept(swept).encode(&mut [0; MAX_MESSAGE]) < MAX_MESSAGE);
}

#[test]
fn a_cut_message_is_malformed_and_never_another_one() {
    for packet in packets() {
        for len in 0..packet.len() {
            assert_eq!(ToWorker::decode(&packet[..len]), Err(Malformed));
            assert_eq!(ToKeeper::decode(&packet[..len]), Err(Malformed));
        }
    }
}

#[test]
fn fields_that_a_later_version_adds_are_skipped() {
    let mut space = [0; MAX_MESSAGE];
    for message in to_keeper() {
        let len = message.encode(&mut space);
        let mut longer = space[..len].to_vec();
        longer.extend([0xaa; 9]);
        let body = u16::try_from(longer.len() - HEAD).unwrap();
        longer[2..4].copy_from_slice(&body.to_le_bytes());
        assert_eq!(ToKeeper::decode(&longer), Ok(Some(message)));
    }
}

#[test]
fn kinds_that_a_later_version_adds_are_told_apart_from_garbage() {
    assert_eq!(ToWorker::decode(&[0x39, 0x30, 2, 0, 1, 2]), Ok(None));
    assert_eq!(ToKeeper::decode(&[0x39, 0x30, 2, 0, 1, 2]), Ok(None));
    assert_eq!(ToKeeper::decode(&[0x39, 0x30, 3, 0, 1, 2]), Err(Malformed));
}

/// Every one- and two-byte change of every message, and a long run of noise: read as something or refused, no panic,
/// and what is read reads back from its own encoding.
#[test]
fn garbage_is_refused_or_read_but_never_trusted() {
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise
    };
    let check = |packet: &[u8]| {
        let mut space = [0; MAX_MESSAGE];
        if let Ok(Some(message)) = ToWorker::decode(packet) {
            let len = message.encode(&mut space);
            assert_eq!(ToWorker::decode(&space[..len]), Ok(Some(message)));
        }
        if let Ok(Some(message)) = ToKeeper::decode(packet) {
            let len = message.encode(&mut space);
            assert_eq!(ToKeeper::decode(&space[..len]), Ok(Some(message)));
        }
    };
    for packet in packets() {
        for at in 0..packet.len() {
            for value in [0, 1, 2, 0x7f, 0x80, 0xff] {
                let mut changed = packet.clone();
                changed[at] = value;
                check(&changed);
            }
        }
    }
    for _ in 0..20_000 {
        let len = usize::try_from(next() % 600).unwrap();
        let mut packet: Vec<u8> = (0..len).map(|_| next().to_le_bytes()[3]).collect();
        if let Some(kind) = packet.first_mut() {
            *kind %= 12;
        }
        if let Some(high) = packet.get_mut(1) {
            *high = 0;
        }
        check(&packet);
    }
}
