//! Names and numbers of a daemon's slots: pure, so that a crashed daemon's successor, and an administrator with the
//! configuration in hand, arrive at the same ones.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::config::Slots;
use crate::config::value::{SLOT_BITS, Subnet};

/// The cgroup of a host's main daemon.
const DEFAULT_CGROUP: &str = "sexton";
/// The TAP's name inside its namespace.
const TAP: &str = "tap0";

/// A hardware address.
pub type Mac = [u8; 6];

/// How the slots of one daemon are named and numbered. The same configuration always gives the same names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// 64 bits of the cgroup's path, from which every mark of this daemon is made.
    seed: u64,
    is_default: bool,
    subnet: Subnet,
    uplink: Option<String>,
    tap: bool,
}

/// One numbered network place: what it is called and which addresses it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number, from 0.
    pub index: u32,
    /// Its entry below `/run/netns`.
    pub netns: String,
    /// The host's end of its veth pair; at most 15 bytes.
    pub link: String,
    /// Its address, inside.
    pub address: Ipv4Addr,
    /// The host's address on the pair, and the slot's default gateway.
    pub gateway: Ipv4Addr,
    /// Of both addresses.
    pub prefix_len: u8,
    /// A persistent TAP inside, where slots have one.
    pub tap: Option<String>,
    /// Hardware address of the host's end: the proof that the link is ours.
    pub(super) host_mac: Mac,
    /// Hardware address of the inner end.
    pub(super) inner_mac: Mac,
    /// The number by which the kernel knows the namespace among the host's (`ip netns list-id`): the proof that it is
    /// ours, and, once nothing answers to it, that nobody holds it.
    pub(super) nsid: i32,
}

impl Slot {
    /// The nft table with its element: of the scheme that it was made by.
    pub fn table(&self) -> &str {
        // A namespace is named by its table and its number.
        self.netns.rsplit_once('-').map_or("", |(table, _)| table)
    }

    /// What its link is called besides: the same for whichever daemon makes a slot of these addresses, so that the
    /// kernel lets one of them alone have it, however many try at one moment.
    pub fn network_name(&self) -> String {
        let base = self.gateway.to_bits() >> SLOT_BITS << SLOT_BITS;
        format!("sexton-{}", Ipv4Addr::from_bits(base))
    }
}

/// Whether a daemon of ours, this one or another, calls its nft table so.
pub fn is_table(name: &str) -> bool {
    let is_short = |digits: &str| digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    name == DEFAULT_CGROUP || name.strip_prefix("sexton_").is_some_and(is_short)
}

impl Scheme {
    /// The scheme of the daemon whose subtree is `cgroup`, with the `[slots]` of its configuration.
    pub fn new(cgroup: &str, slots: &Slots) -> Scheme {
        let path = cgroup.trim_matches('/');
        let uplink = Some(slots.uplink.0.clone()).filter(|uplink| !uplink.is_empty());
        Scheme {
            seed: fnv(path.as_bytes()),
            is_default: path == DEFAULT_CGROUP,
            subnet: slots.subnet,
            uplink,
            tap: slots.tap,
        }
    }

    /// How many slots fit into the subnet: indexes from 0 up to this.
    pub fn capacity(&self) -> u32 {
        self.subnet.slots()
    }

    /// The slot of number `index`; `None` beyond the capacity.
    pub fn slot(&self, index: u32) -> Option<Slot> {
        if index >= self.capacity() {
            return None;
        }
        let base = self.subnet.base.to_bits().checked_add(index.checked_shl(SLOT_BITS.into())?)?;
        let (netns, link) = match self.is_default {
            true => (format!("sexton-{index}"), format!("sexton-{index}")),
            false => (format!("sexton_{:08x}-{index}", self.short()), format!("s{:08x}-{index}", self.short())),
        };
        Some(Slot {
            index,
            netns,
            link,
            address: Ipv4Addr::from_bits(base + 2),
            gateway: Ipv4Addr::from_bits(base + 1),
            prefix_len: 32 - SLOT_BITS,
            tap: self.tap.then(|| TAP.to_owned()),
            host_mac: self.mac(index, b'h'),
            inner_mac: self.mac(index, b'i'),
            nsid: self.nsid(index),
        })
    }

    /// The nft table, of the family `inet`.
    pub fn table(&self) -> String {
        if self.is_default { "sexton".to_owned() } else { format!("sexton_{:08x}", self.short()) }
    }

    /// The link that slots are masqueraded to.
    pub fn uplink(&self) -> Option<&str> {
        self.uplink.as_deref()
    }

    /// The network that they are cut from.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The group that all host ends of this daemon are in (`ip link show group`): rules know them by it.
    pub fn group(&self) -> u32 {
        self.short() | 0x8000_0000
    }

    /// The 8 hex digits of the cgroup's path.
    fn short(&self) -> u32 {
        let [a, b, c, d, ..] = self.seed.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// A unicast, locally administered address, as good as unique to this daemon, slot and end.
    fn mac(&self, index: u32, end: u8) -> Mac {
        let [a, b, c, d] = index.to_be_bytes();
        let [e, f, g, h, i, ..] = fnv_from(self.seed, &[a, b, c, d, end]).to_be_bytes();
        [0x52, e, f, g, h, i]
    }

    /// Far above what the kernel numbers by itself, which counts from 0.
    fn nsid(&self, index: u32) -> i32 {
        let marked = 0x4000_0000 | (self.short() & 0x3fff) << 16 | index;
        // Bit 31 is never set.
        marked.cast_signed()
    }
}

/// FNV-1a, 64 bits, finished so that every bit of the result depends on every byte: stable over releases.
fn fnv(bytes: &[u8]) -> u64 {
    fnv_from(0xcbf2_9ce4_8422_2325, bytes)
}

fn fnv_from(start: u64, bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let mixed = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn scheme(cgroup: &str, subnet: &str) -> Scheme {
        let subnet = subnet.parse().expect("a network");
        Scheme::new(cgroup, &Slots { subnet, ..Slots::default() })
    }

    #[test]
    fn names_are_stable_and_fit() {
        let slot = scheme("sexton", "10.231.0.0/16").slot(3).expect("fits");
        assert_eq!((slot.link.as_str(), slot.netns.as_str()), ("sexton-3", "sexton-3"));
        assert_eq!((slot.gateway.to_string(), slot.address.to_string()), ("10.231.0.13".into(), "10.231.0.14".into()));
        assert_eq!(scheme("/sexton/", "10.231.0.0/16").table(), "sexton");
        let other = scheme("a/b", "10.0.0.0/8");
        let last = other.slot(other.capacity() - 1).expect("fits");
        assert_eq!(last.link.len(), 15, "{}", last.link);
        assert_eq!(last.nsid & 0xffff, 0xffff);
        assert!(last.nsid > 0);
        assert_eq!(other.table().len(), "sexton_".len() + 8);
        assert_eq!((slot.table(), last.table()), ("sexton", other.table().as_str()));
        // REGRESSION: a release that names them otherwise would not find what its forerunner made.
        assert_eq!(other.table(), "sexton_66b102c2");
    }

    #[test]
    fn the_capacity_is_what_fits() {
        for (subnet, slots) in [("10.0.0.0/28", 4), ("10.231.0.0/16", 16_384), ("10.0.0.0/8", 65_536)] {
            let scheme = scheme("sexton", subnet);
            assert_eq!(scheme.capacity(), slots, "{subnet}");
            assert!(scheme.slot(slots).is_none());
        }
    }

    #[test]
    fn marks_differ_between_daemons_slots_and_ends() {
        let mut seen = BTreeSet::new();
        for cgroup in ["sexton", "sexton2", "a/b", "a/c"] {
            let scheme = scheme(cgroup, "10.231.0.0/16");
            for slot in (0..2_000).filter_map(|index| scheme.slot(index)) {
                assert!(seen.insert(slot.host_mac) && seen.insert(slot.inner_mac), "{cgroup} {}", slot.index);
                assert_eq!(slot.host_mac[0] & 3, 2, "unicast, and administered locally");
            }
        }
    }
}
